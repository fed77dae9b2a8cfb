"""Executing a shard of a keyed process: its results, its outcomes, its totals."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import FailureLimit, Record, is_overridden
from ledgerbeam.batch.define.results import Results, joined, replaced
from ledgerbeam.batch.execute.executions import ShardControl
from ledgerbeam.batch.execute.executor import EarlierOutcomes, shard_executor
from ledgerbeam.batch.keyed.by_rule import RuledShard, execute_by_rules
from ledgerbeam.batch.keyed.plan import row_totals
from ledgerbeam.batch.keyed.rejects import with_row_locations
from ledgerbeam.batch.model.outcomes import Outcome, retries
from ledgerbeam.batch.model.rules import RULE
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.rollouts.choice import choose_rules
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import ShardCommit, Totals
from ledgerbeam.io.datasets.rejections import RowLocator
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.columnar.components import ComponentNames, align, component_starts, tidy
from ledgerbeam.transforms.columnar.shard_totals import ShardTotals
from ledgerbeam.transforms.columnar.totals import NO_ROWS
from ledgerbeam.transforms.concurrency.executor import MAX_FAILURES, Executor
from ledgerbeam.transforms.concurrency.retry import error_line
from ledgerbeam.transforms.execute import with_key


class ShardResult(NamedTuple):
    """The result of executing a shard.

    Attributes:
        results: results of the components that succeeded, and substitutes for those that failed,
            in the order of their keys.
        outcomes: outcomes of components, without plain successes.
        totals: totals of the shard, without rows that were rejected before execution.
    """

    results: Results
    outcomes: list[Outcome]
    totals: ShardTotals


def execute_shard(
    process: KeyedProcess[Any],
    attempt: Attempt,
    worker_control: ShardControl,
    shard: int,
    components: Components,
    places: RowLocator,
    earlier: ShardCommit | None = None,
    chosen: frozenset[str] | None = None,
) -> ShardResult:
    """Execute a shard's components, or those that failed in an earlier attempt.

    Args:
        process: the definition.
        attempt: the attempt that executes the shard.
        worker_control: the control of this worker process.
        shard: the number of the shard.
        components: all components of the shard.
        places: finds where the shard's rows stood in their files.
        earlier: the shard's marker of an earlier attempt. Its failed components are tried again,
            and so are unknown ones that somebody has decided about; its other results are kept.
        chosen: names of the components that alone are tried again; None for all of those.

    Raises:
        TooManyFailuresError: too many components fail.
    """
    names = ComponentNames(components, process.key)
    before = EarlierOutcomes.read(attempt, shard, earlier, chosen)
    known = dict(before.outcomes)
    failed = before.retried
    todo, todo_names, is_todo = components, names, None
    if known:
        is_todo = np.array([name in failed for name in names.all()], bool)
        todo = components.select(is_todo)
        todo_names = ComponentNames(todo, process.key)
    # If the limit is a share of all components, one shard may use up all of it. The total is
    # estimated from this shard, since shards are cut by a hash and so have similar sizes.
    everywhere = len(components.starts) * (attempt.record.shards or 1)
    max_failures = max(MAX_FAILURES, FailureLimit(process.failure_limit).most(everywhere))
    executor = shard_executor(process, attempt, worker_control, shard, before, max_failures)
    chosen_rules = choose_rules(process, attempt.record, components) if process.rules else None

    def execute(
        call: Callable[[Any], Any], some: Components, of_some: ComponentNames
    ) -> tuple[Results, list[Outcome]]:
        if process.executes_each():
            return _execute_each(process, call, executor, some, of_some, before)
        return _execute_components(process, call, executor, some, of_some, before, places)

    if chosen_rules is None:
        results, outcomes = execute(process.execution(None), todo, todo_names)
    else:
        rules_todo = chosen_rules if is_todo is None else chosen_rules.select(is_todo)
        results, outcomes = execute_by_rules(process, execute, todo, todo_names, rules_todo)
    put_in = [results] if earlier is not None else []
    lost = {o.component: o.error for o in outcomes if o.status is ComponentStatus.FAILURE}
    if lost:
        is_lost = np.array([name in lost for name in names.all()], bool)
        errors = [lost[name] for name in names.all() if name in lost]
        stand_in = process.results_of_failed(components.select(is_lost), errors)
        if stand_in is not None:
            put_in = [*put_in, _located(process, places, stand_in)]
    if earlier is not None:
        results = replaced(_read(process, attempt, earlier), failed, put_in, process.key)
    elif put_in:
        results = replaced(results, (), put_in, process.key)
    for outcome in outcomes:
        known[outcome.component] = outcome
    for name in failed.difference(outcome.component for outcome in outcomes):
        outcome = known[name]
        known[name] = outcome._replace(status=ComponentStatus.SUCCESS, tries=outcome.tries + 1)
    totals = _totals(process, components, names, results, known)
    if chosen_rules is not None:
        by_rule = RuledShard(process, components, names, chosen_rules)
        totals = totals.with_own(by_rule.totals(results, known), process.total_names)
        results, known = by_rule.with_rules(results), by_rule.outcomes(known)
    return ShardResult(results, list(known.values()), totals)


def _read(process: KeyedProcess[Any], attempt: Attempt, commit: ShardCommit) -> Results:
    """The results of a shard that an earlier attempt has committed, as they are executed."""
    uri = attempt.instance_uri
    tables = {name: read_part(uri, file) for name, file in commit.tables.items()}
    results = Results(read_part(uri, commit.part), tables)
    return results._replace(table=results.table.drop_columns(RULE)) if process.rules else results


def _execute_components(
    process: KeyedProcess[Any],
    call: Callable[[Components], pa.Table | Results],
    executor: Executor,
    components: Components,
    names: ComponentNames,
    earlier: EarlierOutcomes,
    places: RowLocator,
) -> tuple[Results, list[Outcome]]:
    """Results and outcomes of a process with `execute_components`."""
    if not len(components.starts):
        return _no_results(process, components, places), []
    executed = executor.execute_tables(
        components, partial(_results_of, process, places, call), names
    )
    now = earlier.outcomes_now(executed, names)
    outcomes = [now[number] for number in sorted(now)]
    if not executed.results:
        return _no_results(process, components, places), outcomes
    is_whole = len(executed.results) == 1 and not outcomes
    if is_whole:
        return executed.results[0].each(
            lambda table: table if _is_tidy(table, components.table) else tidy(table)
        ), []
    return joined(executed.results).each(tidy), outcomes


def _execute_each(
    process: KeyedProcess[Any],
    call: Callable[[Component], Iterable[Record]],
    executor: Executor,
    components: Components,
    names: ComponentNames,
    earlier: EarlierOutcomes,
) -> tuple[Results, list[Outcome]]:
    """Results and outcomes of a process with `execute`."""
    results = process.results
    assert results is not None
    units = components.each(process.key)
    executed = executor.execute_each(units, call, names, results)
    now = earlier.outcomes_now(executed, names)
    table = with_key(components, process.key, executed)
    return Results(table), [now[number] for number in sorted(now)]


def _results_of(
    process: KeyedProcess[Any],
    places: RowLocator,
    call: Callable[[Components], pa.Table | Results],
    components: Components,
) -> Results:
    return _located(process, places, call(components))


def _located(process: KeyedProcess[Any], places: RowLocator, given: pa.Table | Results) -> Results:
    return with_row_locations(checked_results(process, given), places)


def _no_results(process: KeyedProcess[Any], components: Components, places: RowLocator) -> Results:
    """The results of no components: a call of the function, which alone knows their columns."""
    execute = process.execution(min(process.rules, default=None))
    try:
        given = execute(components.slice(0, 0))
    except Exception as error:
        raise DefinitionError(
            f"{type(process).__name__}.{_called(execute)} fails where it is given no components, "
            f"which it is to learn the columns of a shard without results: {error_line(error)}: "
            "let it give a table without rows there"
        ) from error
    return _located(process, places, given).each(tidy)


def _called(execute: Callable[..., Any]) -> str:
    of_rule = getattr(execute, "func", execute)
    return str(getattr(of_rule, "__name__", of_rule))


def checked_results(process: KeyedProcess[Any], given: pa.Table | Results) -> Results:
    """The return value of `execute_components` as `Results`.

    Raises:
        DefinitionError: its tables are not those of the definition, or one lacks the key.
    """
    who = type(process).__name__
    if not isinstance(given, pa.Table | Results):
        raise DefinitionError(
            f"{who}.execute_components gave {type(given).__name__}: return a pyarrow.Table, or "
            "Results with extra tables"
        )
    results = Results(given) if isinstance(given, pa.Table) else given
    if sorted(results.tables) != sorted(process.tables):
        raise DefinitionError(
            f"{who}.execute_components gave the tables {', '.join(results.tables) or 'none'} "
            f"beside its results, and {who}.tables names {', '.join(process.tables) or 'none'}"
        )
    for table in (results.table, *results.tables.values()):
        missing = [name for name in process.key if name not in table.column_names]
        if missing:
            raise DefinitionError(
                f"{who}.execute_components gave no column {missing[0]}: the key "
                f"({', '.join(process.key)}) must be among its results"
            )
    return results


def _totals(
    process: KeyedProcess[Any],
    components: Components,
    names: ComponentNames,
    results: Results,
    outcomes: dict[str, Outcome],
) -> ShardTotals:
    """Totals of the shard; adds to `outcomes` each successful component without rows."""
    lost = {
        name: outcome.status
        for name, outcome in outcomes.items()
        if outcome.status is not ComponentStatus.SUCCESS
    }
    starts = _starts_of_results(process, components, results.table)
    if len(starts) < len(components.starts):
        with_rows = set(ComponentNames(Components(results.table, starts), process.key).all())
        for name in names.all():
            if name not in with_rows and name not in outcomes:
                outcomes[name] = Outcome(name, ComponentStatus.SUCCESS)
    of_results = process.result_totals(results.components(process.key, starts))
    is_lost = np.zeros(len(components.starts), bool)
    if lost:
        is_lost[:] = [name in lost for name in names.all()]
    succeeded, lost_rows = [], []
    for number, input_ in enumerate(process.inputs):
        rows = components.related.get(input_.name, components)
        is_covered = _is_covered(process, number, of_results)
        chosen = NO_ROWS
        if not is_covered:
            chosen = row_totals(input_, process.key, rows.select(~is_lost).table)
        succeeded.append(chosen)
        if lost:
            lost_rows.append(row_totals(input_, process.key, rows.select(is_lost).table))
    names_of_totals = process.total_names
    totals = ShardTotals(
        components=len(components.starts),
        failed=sum(status is ComponentStatus.FAILURE for status in lost.values()),
        unknown=sum(status is ComponentStatus.UNKNOWN for status in lost.values()),
        retries=retries(outcomes.values()),
        result_rows=results.table.num_rows,
        result_components=len(starts),
        results=tuple(succeeded),
        lost=tuple(lost_rows),
    ).with_own(of_results, names_of_totals)
    if is_overridden(type(process), KeyedProcess, "executed_totals"):
        executed = components.select(~is_lost)
        given = _of_executed(executed, results, process.key)
        totals = totals.with_own(process.executed_totals(executed, given), names_of_totals)
    return totals


def _of_executed(executed: Components, results: Results, key: Sequence[str]) -> Components:
    """Results by executed component, which may have no rows; without those of failed ones."""

    def beside(table: pa.Table) -> Components:
        return align(executed, Components(table, component_starts(table, key)), key)[0]

    related = {name: beside(table) for name, table in results.tables.items()}
    return beside(results.table)._replace(related=related)


def _starts_of_results(
    process: KeyedProcess[Any], components: Components, results: pa.Table
) -> npt.NDArray[np.int64]:
    """Where components start in the results.

    Results that are the input rows with added columns have the starts of the input.
    """
    if results.num_rows == components.table.num_rows and all(
        name in components.table.column_names
        and _memory(results.column(name)) == _memory(components.table.column(name))
        for name in process.key
    ):
        return components.starts
    return component_starts(results, process.key)


def _is_tidy(results: pa.Table, given: pa.Table) -> bool:
    """Whether results are tidy already, since their dictionaries are those of the input."""
    return all(
        column.num_chunks == 1
        and (
            not pa.types.is_dictionary(column.type)
            or (name in given.column_names and _memory(column) == _memory(given.column(name)))
        )
        for name, column in zip(results.column_names, results.columns, strict=True)
    )


def _memory(column: pa.ChunkedArray) -> list[tuple[int, int]]:
    """The addresses of a column's values in memory; columns with equal addresses are the same."""
    arrays = []
    for chunk in column.chunks:
        is_dictionary = isinstance(chunk, pa.DictionaryArray)
        arrays += [chunk.indices, chunk.dictionary] if is_dictionary else [chunk]
    last_buffers = [array.buffers()[-1] for array in arrays]
    addresses = [0 if buffer is None else buffer.address for buffer in last_buffers]
    return list(zip(addresses, (array.offset for array in arrays), strict=True))


def _is_covered(process: KeyedProcess[Any], number: int, totals: Totals) -> bool:
    """Whether the process's own totals of results include all totals of an input."""
    rows = process.inputs[number]
    prefix = process.total_names.prefix(number)
    names = ("rows", "id_hash", *rows.amounts)
    return not rows.currency and all(prefix + name in totals for name in names)
