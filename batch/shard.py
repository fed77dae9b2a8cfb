"""Executing a shard of a keyed process: its results, its outcomes, its totals."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.execution import MOST_FAILURES, Executor, records_table
from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.outcomes import Outcome, decisions, error_line, outcomes_of, retries
from ledgerbeam.batch.plan import prefix_of, row_totals
from ledgerbeam.batch.process import FailureLimit, is_overridden
from ledgerbeam.batch.rejects import RowPlaces, with_places
from ledgerbeam.batch.results import ComponentNames, Results, joined, replaced
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.claims import Decision
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part
from ledgerbeam.io.records import ShardCommit, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import align, component_starts, tidy


class ShardResult(NamedTuple):
    """What executing a shard gave.

    Attributes:
        results: of the components that succeeded, and what stands for those that failed, in the
            order of their keys.
        outcomes: of those that did not just succeed.
        totals: by name.
    """

    results: Results
    outcomes: list[Outcome]
    totals: Totals


def execute_shard(
    process: KeyedProcess[Any],
    attempt: Attempt,
    governor: Governor,
    shard: int,
    components: Components,
    places: RowPlaces,
    earlier: ShardCommit | None = None,
) -> ShardResult:
    """Execute a shard's components, or those that failed in an earlier attempt.

    Args:
        process: the definition.
        attempt: in whose name it is done.
        governor: of this worker.
        shard: its number.
        components: all of the shard.
        places: where its rows stood.
        earlier: the shard's marker of an earlier attempt, whose failed components are tried
            again, as those are of which somebody has found out that they may be; its other results
            are kept.

    Raises:
        UserError: too many components fail.
    """
    names = ComponentNames(components, process.key)
    known: dict[str, Outcome] = {}
    decided: dict[str, Decision] = {}
    failed: set[str] = set()
    todo = np.ones(len(components.starts), bool)
    if earlier is not None and earlier.outcomes is not None:
        found = outcomes_of(read_part(attempt.instance_uri, earlier.outcomes))
        known = {outcome.component: outcome for outcome in found}
        decided = decisions(attempt.instance_uri, shard, found)
        failed = {o.component for o in found if o.status is ComponentStatus.FAILURE}
        failed |= decided.keys()
        todo = np.array([name in failed for name in names.all()], bool)
    # Of a share the shard may use up all; shards are cut by a hash and so have similar sizes.
    everywhere = len(components.starts) * (attempt.record.shards or 1)
    executor = Executor(
        process.retry,
        shard,
        attempt,
        governor,
        most_failures=max(MOST_FAILURES, FailureLimit(process.failure_limit).most(everywhere)),
        tries={name: outcome.tries for name, outcome in known.items()},
        decided=decided,
    )
    chosen = components.select(todo)
    numbers = np.flatnonzero(todo)

    def name_of(number: int) -> str:
        return names[int(numbers[number])]

    def checked(given: pa.Table | Results) -> Results:
        return with_places(_checked(process, given), places)

    results, outcomes = _execute(process, executor, chosen, name_of, checked)
    put_in = [results] if earlier is not None else []
    lost = {o.component: o.error for o in outcomes if o.status is ComponentStatus.FAILURE}
    if lost:
        is_lost = np.array([name in lost for name in names.all()], bool)
        errors = [lost[name] for name in names.all() if name in lost]
        stand_in = process.results_of_failed(components.select(is_lost), errors)
        if stand_in is not None:
            put_in = [*put_in, checked(stand_in)]
    if earlier is not None:
        results = replaced(_read(attempt, earlier), failed, put_in, process.key)
    elif put_in:
        results = replaced(results, (), put_in, process.key)
    for outcome in outcomes:
        known[outcome.component] = outcome
    for name in failed.difference(outcome.component for outcome in outcomes):
        before = known[name]
        known[name] = before._replace(status=ComponentStatus.SUCCESS, tries=before.tries + 1)
    totals = _totals(process, components, names, results, known)
    return ShardResult(results, list(known.values()), totals)


def _read(attempt: Attempt, commit: ShardCommit) -> Results:
    """What an earlier attempt has committed."""
    uri = attempt.instance_uri
    tables = {name: read_part(uri, file) for name, file in commit.tables.items()}
    return Results(read_part(uri, commit.part), tables)


def _execute(
    process: KeyedProcess[Any],
    executor: Executor,
    components: Components,
    name_of: Callable[[int], str],
    checked: Callable[[pa.Table | Results], Results],
) -> tuple[Results, list[Outcome]]:
    if not process.executes_each():
        if not len(components.starts):
            return checked(_no_results(process, components)).each(tidy), []
        executed = executor.execute_tables(
            components, lambda part: checked(process.execute_components(part)), name_of
        )
        outcomes = [executed.outcomes[number] for number in sorted(executed.outcomes)]
        if not executed.results:
            return checked(_no_results(process, components)).each(tidy), outcomes
        is_whole = len(executed.results) == 1 and not outcomes
        if is_whole:
            return executed.results[0].each(
                lambda table: table if _is_tidy(table, components.table) else tidy(table)
            ), []
        return joined(executed.results).each(tidy), outcomes
    results = process.results
    assert results is not None
    units = list(components.each(process.key))
    each = executor.execute_each(units, process.execute, name_of, results)
    table, counts = records_table(each, results, executor, name_of)
    for number, (records, count) in enumerate(zip(each.records, counts, strict=True)):
        if records is not None and not count:
            each.outcomes.setdefault(
                number, executor.outcome(name_of(number), ComponentStatus.SUCCESS, 1, "")
            )
    rows = pa.array(np.repeat(components.starts, np.array(counts, np.int64)))
    keys = {name: components.table.column(name).take(rows) for name in process.key}
    columns = keys | {name: table.column(name) for name in results.names}
    return Results(tidy(pa.table(columns))), [
        each.outcomes[number] for number in sorted(each.outcomes)
    ]


def _no_results(process: KeyedProcess[Any], components: Components) -> pa.Table | Results:
    """The results of no components: the function alone knows their columns."""
    try:
        return process.execute_components(components.slice(0, 0))
    except Exception as error:
        raise UserError(
            f"{type(process).__name__}.execute_components fails where it is given no components, "
            f"which it is to learn the columns of a shard without results: {error_line(error)}: "
            "let it give a table without rows there"
        ) from error


def _checked(process: KeyedProcess[Any], given: pa.Table | Results) -> Results:
    results = Results(given) if isinstance(given, pa.Table) else given
    who = type(process).__name__
    if sorted(results.tables) != sorted(process.tables):
        raise UserError(
            f"{who}.execute_components gave the tables {', '.join(results.tables) or 'none'} "
            f"beside its results, and {who}.tables names {', '.join(process.tables) or 'none'}"
        )
    for table in (results.table, *results.tables.values()):
        missing = [name for name in process.key if name not in table.column_names]
        if missing:
            raise UserError(
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
) -> Totals:
    """Totals of the shard; adds an outcome for each success that gave no row."""
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
    totals: Totals = {
        "components": len(components.starts),
        "failed": sum(status is ComponentStatus.FAILURE for status in lost.values()),
        "unknown": sum(status is ComponentStatus.UNKNOWN for status in lost.values()),
        "result_rows": results.table.num_rows,
        "result_components": len(starts),
        **retries(outcomes.values()),
        **process.result_totals(results.components(process.key, starts)),
    }
    is_lost = np.zeros(len(components.starts), bool)
    if lost:
        is_lost[:] = [name in lost for name in names.all()]
    for number in range(len(process.inputs)):
        rows = components
        if number:
            rows = components.related[process.inputs[number].name]
        if not _is_covered(process, number, totals):
            executed = row_totals(process, number, rows.select(~is_lost).table)
            totals = executed | totals
        if lost:
            failed = row_totals(process, number, rows.select(is_lost).table)
            totals |= {f"failed_{name}": value for name, value in failed.items()}
    if is_overridden(type(process), KeyedProcess, "executed_totals"):
        executed_components = components.select(~is_lost)
        given = _of_executed(executed_components, results, process.key)
        totals |= process.executed_totals(executed_components, given)
    return totals


def _of_executed(executed: Components, results: Results, key: Sequence[str]) -> Components:
    """Results by executed component: none for some, and without what stands for failed ones."""

    def beside(table: pa.Table) -> Components:
        return align(executed, Components(table, component_starts(table, key)), key)[0]

    related = {name: beside(table) for name, table in results.tables.items()}
    return beside(results.table)._replace(related=related)


def _starts_of_results(
    process: KeyedProcess[Any], components: Components, results: pa.Table
) -> npt.NDArray[np.int64]:
    """Where components start in the results; known already where these are the rows, extended."""
    if results.num_rows == components.table.num_rows and all(
        name in components.table.column_names
        and _memory(results.column(name)) == _memory(components.table.column(name))
        for name in process.key
    ):
        return components.starts
    return component_starts(results, process.key)


def _is_tidy(results: pa.Table, given: pa.Table) -> bool:
    """Whether results need not be tidied: their dictionaries are columns that were given."""
    return all(
        column.num_chunks == 1
        and (
            not pa.types.is_dictionary(column.type)
            or (name in given.column_names and _memory(column) == _memory(given.column(name)))
        )
        for name, column in zip(results.column_names, results.columns, strict=True)
    )


def _memory(column: pa.ChunkedArray) -> list[tuple[int, int]]:
    """Where a column's values are: columns that share it are the same."""
    arrays = []
    for chunk in column.chunks:
        is_dictionary = isinstance(chunk, pa.DictionaryArray)
        arrays += [chunk.indices, chunk.dictionary] if is_dictionary else [chunk]
    last_buffers = [array.buffers()[-1] for array in arrays]
    addresses = [0 if buffer is None else buffer.address for buffer in last_buffers]
    return list(zip(addresses, (array.offset for array in arrays), strict=True))


def _is_covered(process: KeyedProcess[Any], number: int, totals: Totals) -> bool:
    """Whether the results' own totals stand for all of an input's."""
    rows = process.inputs[number]
    names = ("rows", "id_hash", *rows.amounts)
    return not rows.currency and all(f"{prefix_of(process, number)}{n}" in totals for n in names)
