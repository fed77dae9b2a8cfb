"""Helpers for tests of workloads: execute components in the test itself, or a whole pipeline.

def test_a_day_of_interest() -> None:
    executed = run_components(process, accounts=[{"account": "A1", "balance": "10.00"}])
    assert executed.results == [{"account": "A1", "interest": Decimal("0.01")}]

def test_the_pipeline() -> None:
    with local_pipeline() as pipeline:
        assert_that(pipeline | RunProcess(process), equal_to([…]))
"""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline

from ledgerbeam import __version__
from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.money import check_money
from ledgerbeam.batch.define.page_process import Page, PageProcess, SqlPages
from ledgerbeam.batch.define.process import BatchProcess, instance_uri
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.batch.keyed.prepare import read_lookup
from ledgerbeam.batch.keyed.rejects import with_row_locations
from ledgerbeam.batch.keyed.shard import checked_results
from ledgerbeam.batch.runners.beam import local_runner
from ledgerbeam.io.commit.attempts import start_attempt
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import AttemptRecord, Manifest
from ledgerbeam.io.datasets.contract import Contract, Rejections, conform, encode_dictionaries
from ledgerbeam.io.datasets.readers import ROW_LOCATION, pack_locations
from ledgerbeam.io.datasets.rejections import RowLocator
from ledgerbeam.io.sql.connections import Engines, Transactions
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import (
    align,
    component_name,
    side_by_side,
    sort_components,
)
from ledgerbeam.transforms.concurrency.rows import GivenRows, UnitRows

Rows = Sequence[Mapping[str, Any]]


class Executed(NamedTuple):
    """The results of executed components, each row as values by column with those of the key.

    Attributes:
        results: the rows of the results, in the order of their keys.
        tables: the rows of extra tables, by the table's name.
    """

    results: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]]


def run_components(
    process: BatchProcess[Any], rule: int | None = None, /, **rows: Rows
) -> Executed:
    """Execute components in this thread, without a pipeline, retries or hooks.

    Args:
        process: the definition with its parameters.
        rule: number of the rule of a process with `rules`; by default the present one.
        rows: for a keyed process the rows of each input under the input's name, in any order. All
            of them are taken to be of the business date. Rows of a lookup are given likewise; if
            none are, it is read from the files of its parameter. For a page process the `items` of
            one page. Values are Python's, or text as in a CSV file.

    Raises:
        TypeError: the process has no such input, or returned rows with other columns than
            `results`.
        ValueError: a row would be rejected; the message says why.
        Exception: any error that a component raises.
    """
    if isinstance(process, KeyedProcess):
        return _run_keyed(process, rows, rule)
    assert isinstance(process, PageProcess)
    return Executed(_run_page(process, rows), {})


def _run_keyed(process: KeyedProcess[Any], rows: dict[str, Rows], rule: int | None) -> Executed:
    execute = process.execution(min(process.rules, default=None) if rule is None else rule)
    process.bind({name for row in rows.get(process.inputs[0].name, ()) for name in row})
    inputs, lookups = process.inputs, process.lookups
    known = [*(it.name for it in inputs), *(it.name for it in lookups)]
    _check_names(process, rows, known)
    process.lookup_tables = {
        lookup.name: _conform(lookup.name, lookup.contract, rows[lookup.name])
        if lookup.name in rows
        else read_lookup(process, lookup)[1]
        for lookup in lookups
        if lookup.name in rows or getattr(process.parameters, lookup.name)
    }
    by_input = {
        rows_input.name: _sorted(process, number, rows.get(rows_input.name, ()))
        for number, rows_input in enumerate(inputs)
    }
    first, related = by_input[inputs[0].name], dict[str, Components]()
    if process.is_outer:
        first, sides = side_by_side([*by_input.values()], process.key)
        related = dict(zip(by_input, sides, strict=True))
    for rows_input in () if process.is_outer else inputs[1:]:
        components = by_input[rows_input.name]
        related[rows_input.name], orphans = align(first, components, process.key)
        if orphans.num_rows:
            raise ValueError(
                f"{rows_input.name}: {orphans.to_pylist()[0]}: {inputs[0].name} has no such key"
            )
    components = first._replace(related=related)
    if not process.executes_each():
        results = checked_results(process, execute(components))
        located = with_row_locations(results, _GivenRows(process))
        tables = {name: table.to_pylist() for name, table in located.tables.items()}
        return Executed(located.table.to_pylist(), tables)
    records: list[dict[str, Any]] = []
    for component in components.each(process.key):
        key = dict(zip(process.key, component.key, strict=True))
        records += _typed(process, key, execute(component))
    return Executed(records, {})


def _run_page(process: PageProcess[Any], rows: dict[str, Rows]) -> list[dict[str, Any]]:
    _check_names(process, rows, ["items"])
    source, items = process.source, rows.get("items", ())
    transactions = Transactions(process.instance, Engines(1))
    if isinstance(source, SqlPages):
        table = pa.Table.from_pylist([dict(item) for item in items])
        for at, name in enumerate(table.column_names):
            type_ = source.source.types.get(name, table.column(name).type)
            table = table.set_column(at, name, table.column(name).cast(type_))
        page = Page("1", table=table, transactions=transactions)
    else:
        page = Page("1", items=items, transactions=transactions)
    if not process.executes_items():
        return _typed(process, {"page": page.name}, process.execute(page))
    results = []
    for number, values in enumerate(page.items):
        key = {name: values[name] for name in process.key}
        if not isinstance(source, SqlPages):
            key = {name: str(value) for name, value in key.items()}
        item = page.item(number, component_name(key.values()))
        results += _typed(process, key, process.execute_item(item))
    return results


def _check_names(
    process: BatchProcess[Any], rows: Mapping[str, Rows], known: Sequence[str]
) -> None:
    unknown = [name for name in rows if name not in known]
    if unknown:
        raise TypeError(
            f"{type(process).__name__} has no input {unknown[0]}: it has {', '.join(known)}"
        )


def _typed(
    process: BatchProcess[Any], key: dict[str, Any], given: GivenRows
) -> list[dict[str, Any]]:
    """The rows that one component returned, with its key, in the types of the results."""
    assert process.results is not None
    rows = UnitRows(1, process.results)
    rows.add(0, given)
    return [key | record for record in rows.table().to_pylist()]


def _sorted(process: KeyedProcess[Any], number: int, rows: Rows) -> Components:
    """The rows of an input as components, as in a shard of a pipeline."""
    rows_input = process.inputs[number]
    table = _conform(rows_input.name, rows_input.contract, rows)
    _refuse(rows_input.name, rows, check_money(table, rows_input.currencies))
    table = process.derived(rows_input.name, table)
    table = encode_dictionaries(table, rows_input.contract)
    location = pack_locations(number, np.arange(table.num_rows))
    table = table.append_column(ROW_LOCATION, location)
    ids = rows_input.identity(process.key)
    components, repeats = sort_components(table, process.key, rows_input.orders, ids)
    without_location = components._replace(table=components.table.drop_columns(ROW_LOCATION))
    if repeats.any():
        repeated = without_location.table.filter(pa.array(repeats)).to_pylist()[0]
        raise ValueError(f"{rows_input.name}: {repeated}: its key and {', '.join(ids)} repeat")
    rejected = process.rejections(rows_input.name, without_location.table)
    _refuse(
        rows_input.name,
        without_location.table.to_pylist(),
        {row: [reason] for row, reason in rejected.items()},
    )
    return components if rows_input.row_locations else without_location


def _conform(name: str, contract: Contract, rows: Rows) -> pa.Table:
    """Rows as a table in the types of their contract."""
    known = {column.name: column.type for column in contract.columns}
    required = [column.name for column in contract.columns if column.required]
    arrays = {}
    for column in dict.fromkeys(name for row in rows for name in row) or required:
        values = [row.get(column) for row in rows]
        # Other columns are carried through in whatever type they have.
        type_ = known.get(column)
        if any(isinstance(value, str) for value in values):
            # Parsed as in a CSV file.
            values = [None if value is None else str(value) for value in values]
            type_ = pa.string()
        arrays[column] = pa.array(values, type_)
    types = {name: None if pa.types.is_string(a.type) else a.type for name, a in arrays.items()}
    table, rejected = conform(pa.table(arrays), contract.resolve(name, types, {}))
    _refuse(name, rows, rejected)
    return table


def _refuse(name: str, rows: Rows, rejected: Rejections) -> None:
    if rejected:
        row, reasons = next(iter(rejected.items()))
        raise ValueError(f"{name}: {dict(rows[row])}: {'; '.join(reasons)}")


class _GivenRows(RowLocator):
    """Locates rows in the list of their input: its name as the file, and the row from 1."""

    def __init__(self, process: KeyedProcess[Any]) -> None:
        self._inputs = process.inputs

    def locate(self, split: int, row: int) -> tuple[str, int]:
        return self._inputs[split].name, row + 1


def local_pipeline(*beam_flags: str) -> TestPipeline:
    """Beam's `TestPipeline` on the local Fn API runner, which runs in this process.

        with local_pipeline() as pipeline:
            assert_that(pipeline | RunProcess(process), equal_to([{"account": "A1", …}]))

    Args:
        beam_flags: flags for Beam, such as `--direct_num_workers=2`.
    """
    options = PipelineOptions(list(beam_flags))
    return TestPipeline(runner=local_runner(options), options=options)


class RunProcess(beam.PTransform):
    """A transform that runs a process from its input to its publication.

    It is applied to the root of a pipeline, and gives the published results, a dictionary for each
    row. Every run needs a folder of its own as `output`.
    """

    def __init__(self, process: BatchProcess[Any]) -> None:
        super().__init__()
        self._process = process

    def expand(self, root: Any) -> beam.PCollection:
        """Begin an attempt and build its pipeline."""
        process = self._process
        prepared = kind_of(process).prepare(process)
        cut = prepared.partition()
        record = AttemptRecord(
            process=process.name,
            instance=process.instance,
            number=1,
            started_at=utc_now(),
            code_version=__version__,
            parameters=process.parameters.model_dump(mode="json"),
            inputs=prepared.files,
            shards=cut.shards,
            plan=cut.plan,
            fingerprint="",
        )
        uri = instance_uri(process)
        # Holds what must stay open while the pipeline runs.
        self._stack = ExitStack()
        batch = prepared.build(AttemptContext(start_attempt(uri, record)), self._stack)
        return root | process.name >> batch | "ReadPublished" >> beam.FlatMap(_rows, uri)


def _rows(manifest: Manifest, uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_published(uri).to_table().to_pylist()
    return rows
