"""What an attempt is made from: a process's input, looked at, and how its pipeline is built."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from ledgerbeam.batch.keyed import KeyedBatch
from ledgerbeam.batch.keyed_process import FileParameters, KeyedProcess, Lookup, RowInput
from ledgerbeam.batch.plan import Plan
from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import (
    ColumnNames,
    Input,
    Split,
    SqlSplit,
    TableName,
    plan_input,
    shard_count,
)
from ledgerbeam.io.readers import read_whole
from ledgerbeam.io.records import ShardCommit
from ledgerbeam.io.storage import FileInfo


class Start(NamedTuple):
    """What a pipeline needs to know of its attempt.

    Attributes:
        attempt: that it belongs to.
        committed: shards that earlier attempts on the same input have committed.
        retried: those of them whose failed components are tried again.
        spill_directory: where pieces are spilled; None where they go through GroupByKey.
        stack: is left when the pipeline has ended; for what has to stay open until then.
    """

    attempt: Attempt
    committed: tuple[ShardCommit, ...]
    retried: tuple[ShardCommit, ...]
    spill_directory: str | None
    stack: ExitStack


class Cut(NamedTuple):
    """How the work of an instance is cut into shards.

    Attributes:
        shards: how many there are; None where only the end of a walk will tell.
        plan: what later attempts must keep to.
    """

    shards: int | None
    plan: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A process's input as it stands.

    Attributes:
        files: that will be read.
        decisive: what decides the result besides the parameters, as JSON can hold it.
        without_effect: parameters that do not.
        cut: cuts the work; called where no earlier attempt has.
        build: makes the pipeline's transform; given the plan that is kept to.
    """

    files: list[FileInfo]
    decisive: Any
    without_effect: frozenset[str]
    cut: Callable[[], Cut]
    build: Callable[[Start], beam.PTransform]


def prepare(process: BatchProcess[Any]) -> Prepared:
    """Look at a process's input.

    Raises:
        UserError: it can't be read.
    """
    if isinstance(process, KeyedProcess):
        return _prepare_keyed(process)
    # Databases' clients are imported only where one is read: they take a fifth of a second.
    from ledgerbeam.batch.page_process import PageProcess
    from ledgerbeam.batch.prepare_pages import prepare_pages

    if isinstance(process, PageProcess):
        return prepare_pages(process)
    raise TypeError(f"{type(process).__name__} is neither a KeyedProcess nor a PageProcess")


def _prepare_keyed(process: KeyedProcess[Any]) -> Prepared:
    planned = [_plan(process, number, rows) for number, rows in enumerate(process.inputs)]
    splits: list[tuple[Split, ...]] = []
    for input_ in planned:
        first = sum(map(len, splits))
        splits.append(tuple(replace(s, index=first + s.index) for s in input_.splits))
    estimated = sum(input_.estimated_rows for input_ in planned)
    looked_up = [_look_up(process, lookup) for lookup in process.lookups]
    process.lookup_tables = {
        lookup.name: table for lookup, (_, table) in zip(process.lookups, looked_up, strict=True)
    }
    lookup_files = [file for input_, _ in looked_up for file in input_.files]
    # Of the input it is the files that decide, not how they were named.
    decisive = [[astuple(file) for file in input_.files] for input_ in planned]

    def build(start: Start) -> beam.PTransform:
        plan = Plan(
            process,
            _in_snapshots(splits, start.stack),
            start.attempt,
            start.committed,
            start.spill_directory,
            start.retried,
        )
        return KeyedBatch(plan)

    parameters = process.parameters
    asked = parameters.shards if isinstance(parameters, FileParameters) else None
    return Prepared(
        files=[*(file for input_ in planned for file in input_.files), *lookup_files],
        decisive=[*decisive, *([[astuple(file) for file in lookup_files]] if lookup_files else [])],
        without_effect=frozenset(
            {rows.name for rows in process.inputs}
            | {lookup.name for lookup in process.lookups}
            | {"max_rejects", "shuffle"}
        ),
        cut=lambda: Cut(asked or shard_count(estimated, process.rows_a_shard), {}),
        build=build,
    )


def _look_up(process: KeyedProcess[Any], lookup: Lookup) -> tuple[Input, pa.Table]:
    input_, table = read_whole(str(getattr(process.parameters, lookup.name)), lookup.contract)
    keys = table.column(lookup.key).to_pylist()
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise UserError(
            f"{input_.files[0].uri}: {lookup.key} {twice[0]} comes {keys.count(twice[0])} times: "
            f"each must be there once in --{lookup.name}"
        )
    return input_, table


def _plan(process: KeyedProcess[Any], number: int, rows: RowInput) -> Input:
    options: Mapping[str, Any] = process.parameters.model_dump()
    prefix = f"{rows.name}_" if number else ""
    columns = ColumnNames.parse(options.get(f"{prefix}columns", ""))
    name = str(options[rows.name])
    table = TableName.parse(name)
    if table is not None:
        # Databases' clients are imported only where one is read.
        from ledgerbeam.io.sql_input import plan_table

        ids = rows.ids or (*process.key, rows.order)
        return plan_table(table, rows.contract, ids, columns)
    return plan_input(name, rows.contract, columns=columns, format=options.get(f"{prefix}format"))


def _in_snapshots(
    splits: list[tuple[Split, ...]], stack: ExitStack
) -> tuple[tuple[Split, ...], ...]:
    """The splits of all inputs, those of tables in a snapshot each of their database.

    Raises:
        UserError: a table isn't any more what it was when it was looked at.
    """
    if not any(isinstance(split, SqlSplit) for of_input in splits for split in of_input):
        return tuple(splits)
    from ledgerbeam.io.secrets import resolve_url
    from ledgerbeam.io.sql import exported_snapshot
    from ledgerbeam.io.sql_input import check_version

    firsts = [of_input[0] for of_input in splits]
    snapshots: dict[str, str | None] = {}

    def in_snapshot(split: Split) -> Split:
        if not isinstance(split, SqlSplit):
            return split
        if split.url not in snapshots:
            opened = exported_snapshot(resolve_url(split.url))
            snapshots[split.url] = stack.enter_context(opened)
        pinned = replace(split, snapshot=snapshots[split.url])
        if split in firsts:
            check_version(pinned)
        return pinned

    return tuple(tuple(map(in_snapshot, of_input)) for of_input in splits)
