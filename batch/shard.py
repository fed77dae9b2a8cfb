"""Executing a shard of a keyed process: its results, its outcomes, its totals."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.execution import MOST_FAILURES, Executor, records_table
from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.outcomes import Outcome, component_name, error_line, outcomes_of
from ledgerbeam.batch.plan import prefix_of, row_totals
from ledgerbeam.batch.process import FailureLimit
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.arrow_stream import join
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part
from ledgerbeam.io.records import ShardCommit, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import component_starts, sort_components, tidy


class ShardResult(NamedTuple):
    """What executing a shard gave.

    Attributes:
        results: of the components that succeeded, in the order of their keys.
        outcomes: of those that did not just succeed.
        totals: by name.
    """

    results: pa.Table
    outcomes: list[Outcome]
    totals: Totals


def execute_shard(
    process: KeyedProcess[Any],
    attempt: Attempt,
    governor: Governor,
    shard: int,
    components: Components,
    earlier: ShardCommit | None = None,
) -> ShardResult:
    """Execute a shard's components, or those that failed in an earlier attempt.

    Args:
        process: the definition.
        attempt: in whose name it is done.
        governor: of this worker.
        shard: its number.
        components: all of the shard.
        earlier: the shard's marker of an earlier attempt, whose failed components are tried
            again and whose other results are kept.

    Raises:
        UserError: too many components fail.
    """
    names = _Names(components, process.key)
    known: dict[str, Outcome] = {}
    failed: set[str] = set()
    todo = np.ones(len(components.starts), bool)
    if earlier is not None and earlier.outcomes is not None:
        found = outcomes_of(read_part(attempt.instance_uri, earlier.outcomes))
        known = {outcome.component: outcome for outcome in found}
        failed = {o.component for o in found if o.status is ComponentStatus.FAILURE}
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
    )
    chosen = components.select(todo)
    numbers = np.flatnonzero(todo)

    def name_of(number: int) -> str:
        return names[int(numbers[number])]

    results, outcomes = _execute(process, executor, chosen, name_of)
    if earlier is not None:
        part = read_part(attempt.instance_uri, earlier.part)
        table = join([part.cast(results.schema), results])
        results = sort_components(table, process.key, None).components.table
    for outcome in outcomes:
        known[outcome.component] = outcome
    for name in failed.difference(outcome.component for outcome in outcomes):
        before = known[name]
        known[name] = before._replace(status=ComponentStatus.SUCCESS, tries=before.tries + 1)
    totals = _totals(process, components, names, results, known)
    return ShardResult(results, list(known.values()), totals)


def _execute(
    process: KeyedProcess[Any],
    executor: Executor,
    components: Components,
    name_of: Callable[[int], str],
) -> tuple[pa.Table, list[Outcome]]:
    if not process.executes_each():
        if not len(components.starts):
            return _no_results(process, components), []
        executed = executor.execute_tables(
            components, lambda part: _checked(process, process.execute_components(part)), name_of
        )
        outcomes = [executed.outcomes[number] for number in sorted(executed.outcomes)]
        if not executed.tables:
            return _no_results(process, components), outcomes
        is_whole = len(executed.tables) == 1 and not outcomes
        if is_whole and _is_tidy(executed.tables[0], components.table):
            return executed.tables[0], []
        return tidy(join(executed.tables)), outcomes
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
    return tidy(pa.table(columns)), [each.outcomes[number] for number in sorted(each.outcomes)]


def _no_results(process: KeyedProcess[Any], components: Components) -> pa.Table:
    """The results of no components: the function alone knows their columns."""
    try:
        none = process.execute_components(components.slice(0, 0))
    except Exception as error:
        raise UserError(
            f"{type(process).__name__}.execute_components fails where it is given no components, "
            f"which it is to learn the columns of a shard without results: {error_line(error)}: "
            "let it give a table without rows there"
        ) from error
    return tidy(_checked(process, none))


def _checked(process: KeyedProcess[Any], table: pa.Table) -> pa.Table:
    missing = [name for name in process.key if name not in table.column_names]
    if missing:
        raise UserError(
            f"{type(process).__name__}.execute_components gave no column {missing[0]}: the key "
            f"({', '.join(process.key)}) must be among its results"
        )
    return table


class _Names:
    """The components' names, made when they are asked for: most runs never do."""

    def __init__(self, components: Components, key: Sequence[str]) -> None:
        self._keys = components.table.select(list(key))
        self._starts = components.starts
        self._all: list[str] | None = None

    def all(self) -> list[str]:
        if self._all is None:
            keys = self._keys.take(pa.array(self._starts))
            columns = [column.to_pylist() for column in keys.columns]
            self._all = [component_name(key) for key in zip(*columns, strict=True)]
        return self._all

    def __getitem__(self, number: int) -> str:
        return self.all()[number]


def _totals(
    process: KeyedProcess[Any],
    components: Components,
    names: _Names,
    results: pa.Table,
    outcomes: dict[str, Outcome],
) -> Totals:
    """Totals of the shard; adds an outcome for each success that gave no row."""
    lost = {
        name: outcome.status
        for name, outcome in outcomes.items()
        if outcome.status is not ComponentStatus.SUCCESS
    }
    starts = _starts_of_results(process, components, results)
    if len(starts) + len(lost) < len(components.starts):
        with_rows = set(_Names(Components(results, starts), process.key).all())
        for name in names.all():
            if name not in with_rows and name not in outcomes:
                outcomes[name] = Outcome(name, ComponentStatus.SUCCESS)
    totals: Totals = {
        "components": len(components.starts),
        "failed": sum(status is ComponentStatus.FAILURE for status in lost.values()),
        "unknown": sum(status is ComponentStatus.UNKNOWN for status in lost.values()),
        "result_rows": results.num_rows,
        "result_components": len(starts),
        **process.result_totals(Components(results, starts)),
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
    return totals


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
