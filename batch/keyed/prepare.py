"""Inspecting the input of a keyed process, and preparing how its pipeline is built."""

import hashlib
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import astuple, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, Lookup, RowInput
from ledgerbeam.batch.execute.prepared import AttemptContext, Partitioning, Prepared
from ledgerbeam.batch.keyed.beside import helpers_for
from ledgerbeam.batch.keyed.pipeline import KeyedBatch
from ledgerbeam.batch.keyed.plan import Plan
from ledgerbeam.io.datasets.inputs import (
    Input,
    Split,
    Splits,
    SqlSplit,
    TableName,
    plan_input,
    shard_count,
)
from ledgerbeam.io.datasets.readers import read_whole
from ledgerbeam.io.datasets.reading import Reading, reading_of
from ledgerbeam.io.errors import InputError
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo


def prepare_keyed(process: KeyedProcess[Any]) -> Prepared:
    """Inspect the files and tables that a keyed process reads.

    Raises:
        UserError: a file or table can't be read, or breaks its contract.
    """
    planned = plan_inputs(process)
    fields = {field.name for field in planned[0].splits[0].fields}
    process.bind(fields)
    present = process.present
    splits: list[Splits] = []
    for input_ in planned:
        first = sum(map(len, splits))
        there = {field.name for field in input_.splits[0].fields}
        # What the definition derives, readers don't know: rows are chosen by that afterwards.
        only = tuple((name, text) for name, text in process.only if name in there)
        splits.append(Splits(replace(s, index=first + s.index, only=only) for s in input_.splits))
    estimated = sum(input_.estimated_rows for input_ in planned)
    lookups = [it for it in process.lookups if getattr(process.parameters, it.name)]
    looked_up = [read_lookup(process, lookup) for lookup in lookups]
    process.lookup_tables = {
        lookup.name: table for lookup, (_, table) in zip(lookups, looked_up, strict=True)
    }
    lookup_files = [file for files, _ in looked_up for file in files]
    # The fingerprint holds the files themselves, not the pattern that named them.
    fingerprinted: list[Any] = [[astuple(file) for file in input_.files] for input_ in planned]
    shipped = {path for lookup in lookups for path in lookup.shipped.values()}
    if lookup_files:
        fingerprinted.append([_fingerprint_of(file, shipped) for file in lookup_files])
    # A profile may have other settings tomorrow, so the settings themselves count.
    fingerprinted += [reading.to_json() for reading in _readings(process) if reading.profile]

    if process.rules:
        fingerprinted.append("rules")  # its shards have a column more

    def build(context: AttemptContext, stack: ExitStack) -> beam.PTransform:
        # The columns that the first attempt found count, even if today's code asks for more.
        process.bind(context.attempt.record.plan.get("columns", ()))
        plan = Plan(process, _in_snapshots(splits, stack), context)
        helpers = helpers_for(plan, estimated)
        if helpers is None:
            return KeyedBatch(plan)
        return KeyedBatch(plan, helpers, stack.enter_context(helpers.open()))

    parameters = process.parameters
    asked = parameters.shards if isinstance(parameters, FileParameters) else None
    return Prepared(
        files=[*(file for input_ in planned for file in input_.files), *lookup_files],
        fingerprinted=fingerprinted,
        excluded=frozenset(
            {rows.name for rows in process.inputs}
            | {lookup.name for lookup in lookups}
            | {"max_decompressed", "max_rejects", "shuffle"}
        ),
        partition=lambda: Partitioning(
            asked or (1 if process.only else shard_count(estimated, process.rows_per_shard)),
            {"columns": list(present)} if present else {},
        ),
        build=build,
        rows=estimated,
    )


def plan_inputs(process: KeyedProcess[Any]) -> list[Input]:
    """Inspect the inputs of a process, without its lookups.

    Raises:
        UserError: a file or table can't be read, or breaks its contract.
    """
    return [_plan(process, number, rows) for number, rows in enumerate(process.inputs)]


def read_lookup(process: KeyedProcess[Any], lookup: Lookup) -> tuple[list[FileInfo], pa.Table]:
    """The files that the parameter of a lookup names, and its table.

    Raises:
        UserError: there is no such file, a row breaks the contract, or two have the same key.
    """
    reading = reading_of(process.parameters.model_dump(), f"{lookup.name}_")
    named = str(getattr(process.parameters, lookup.name)).split(",")
    # Shipped files have a format of their own, however the user's files are read.
    shipped = [lookup.shipped[name] for name in named if name in lookup.shipped]
    own = [name for name in named if name not in lookup.shipped]
    read = [
        read_whole(",".join(names), lookup.contract, how)
        for names, how in ((shipped, None), (own, reading))
        if names
    ]
    files = [file for input_, _ in read for file in input_.files]
    table = pa.concat_tables([table for _, table in read], promote_options="default")
    of_key = (lookup.key,) if isinstance(lookup.key, str) else lookup.key
    names = [name for name in of_key if name in table.column_names]
    keys = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        shown = ", ".join(f"{name} {value}" for name, value in zip(names, twice[0], strict=True))
        raise InputError(
            f"{files[0].uri}: {shown} comes {keys.count(twice[0])} times: "
            f"each must be there once in --{lookup.name.replace('_', '-')}",
            file=files[0].uri,
            value=shown,
        )
    return files, table


def _fingerprint_of(file: FileInfo, shipped: Collection[str]) -> tuple[Any, ...]:
    """What identifies a lookup's file: for a shipped one its content, wherever it is installed."""
    if file.uri not in shipped:
        return astuple(file)
    return (uris.base_name(file.uri), hashlib.sha256(stores.read_bytes(file.uri)).hexdigest())


def _plan(process: KeyedProcess[Any], number: int, rows: RowInput) -> Input:
    reading = _reading(process, number)
    source = process.source(rows.name)
    if isinstance(source, TableName):
        # Database clients are imported only if a database is read.
        from ledgerbeam.io.datasets.tables import plan_table

        ids = rows.identity(process.key)
        return plan_table(source, rows.contract, ids, reading.columns, process.only)
    return plan_input(source, rows.contract, reading)


def _reading(process: KeyedProcess[Any], number: int) -> Reading:
    """How an input is read; the first one has the parameters without a prefix."""
    prefix = f"{process.inputs[number].name}_" if number else ""
    return reading_of(process.parameters.model_dump(), prefix)


def _readings(process: KeyedProcess[Any]) -> list[Reading]:
    settings = process.parameters.model_dump()
    inputs = [_reading(process, number) for number in range(len(process.inputs))]
    return inputs + [reading_of(settings, f"{lookup.name}_") for lookup in process.lookups]


def _in_snapshots(splits: list[Splits], stack: ExitStack) -> tuple[Splits, ...]:
    """The splits of all inputs, with a snapshot of its database for each split of a table.

    Raises:
        InputChangedError: a table has changed since it was inspected.
    """
    if not any(isinstance(split, SqlSplit) for of_input in splits for split in of_input):
        return tuple(splits)
    from ledgerbeam.io.datasets.tables import check_version
    from ledgerbeam.io.secrets import resolve_url
    from ledgerbeam.io.sql.reader import exported_snapshot

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

    return tuple(Splits(map(in_snapshot, of_input)) for of_input in splits)
