"""For the tests of workloads: components executed in the test itself, and whole pipelines.

def test_a_day_of_interest() -> None:
    results = run_components(process, accounts=[{"account": "A1", "balance": "10.00"}])
    assert results == [{"account": "A1", "interest": Decimal("0.01")}]

def test_the_pipeline() -> None:
    with local_pipeline() as pipeline:
        assert_that(pipeline | Results(process), equal_to([…]))
"""

import datetime
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline

from ledgerbeam import __version__
from ledgerbeam.batch.keyed_process import KeyedProcess, RowInput
from ledgerbeam.batch.launch import instance_uri
from ledgerbeam.batch.prepare import Start, prepare
from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.batch.runner import local_runner
from ledgerbeam.io.attempts import start_attempt
from ledgerbeam.io.contract import conform, encode_few_values
from ledgerbeam.io.published import read_published
from ledgerbeam.io.records import AttemptRecord, Manifest
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import align, sort_components

Rows = Sequence[Mapping[str, Any]]


def run_components(process: KeyedProcess[Any], **rows: Rows) -> list[dict[str, Any]]:
    """Execute components here and now: no Beam, no files, no retries.

    Args:
        process: the definition with its parameters.
        rows: of each input, under its name, in any order; values are Python's or text. All are
            taken to be of the business date.

    Returns:
        The results as rows, by key, with the columns of the key.

    Raises:
        ValueError: a row would be refused; the message says why.
        Exception: whatever a component raises.
    """
    first, *others = [
        _sorted(process, rows_input, rows.pop(rows_input.name)) for rows_input in process.inputs
    ]
    if rows:
        raise TypeError(f"{type(process).__name__} has no input {next(iter(rows))}")
    related: dict[str, Components] = {}
    for rows_input, components in zip(process.inputs[1:], others, strict=True):
        related[rows_input.name], orphans = align(first, components, process.key)
        if orphans.num_rows:
            raise ValueError(
                f"{rows_input.name}: {orphans.to_pylist()[0]}: {process.inputs[0].name} has no "
                "such key"
            )
    components = first._replace(related=related)
    if not process.executes_each():
        table: pa.Table = process.execute_components(components)
        return table.to_pylist()
    assert process.results is not None
    results: list[dict[str, Any]] = []
    for component in components.each(process.key):
        key = dict(zip(process.key, component.key, strict=True))
        given = [dict(record) for record in process.execute(component)]
        if wrong := [record for record in given if record.keys() != set(process.results.names)]:
            raise TypeError(f"execute gave {wrong[0]}, and results has {process.results.names}")
        typed = pa.Table.from_pylist(given, process.results).to_pylist()
        results += [key | record for record in typed]
    return results


def _sorted(process: KeyedProcess[Any], rows_input: RowInput, rows: Rows) -> Components:
    known = {column.name: column.type for column in rows_input.contract.columns}
    names = list(dict.fromkeys(name for row in rows for name in row)) or list(known)
    arrays = {}
    for name in names:
        values = [row.get(name) for row in rows]
        type_ = known.get(name, pa.string())
        if any(isinstance(value, str) for value in values):
            # As it would stand in a CSV file.
            values = [None if value is None else str(value) for value in values]
            type_ = pa.string()
        arrays[name] = pa.array(values, type_)
    table = pa.table(arrays)
    types = {name: None if pa.types.is_string(a.type) else a.type for name, a in arrays.items()}
    fields = rows_input.contract.resolve(rows_input.name, types, {})
    table, refusals = conform(table, fields)
    if refusals:
        row, reasons = next(iter(refusals.items()))
        raise ValueError(f"{rows_input.name}: {dict(rows[row])}: {'; '.join(reasons)}")
    table = encode_few_values(table, rows_input.contract)
    components, repeats = sort_components(table, process.key, rows_input.order)
    if repeats.any():
        repeated = components.table.filter(pa.array(repeats)).to_pylist()[0]
        raise ValueError(f"{rows_input.name}: {repeated}: its key and {rows_input.order} repeat")
    return components


def local_pipeline(*beam_flags: str) -> TestPipeline:
    """Beam's `TestPipeline` on the local Fn API runner: it runs here and nowhere else."""
    options = PipelineOptions(list(beam_flags))
    return TestPipeline(runner=local_runner(options), options=options)


class Results(beam.PTransform):
    """A process from its input to what it publishes; outputs the results, a dictionary a row.

    It is applied to the root of a pipeline, once for a folder of output.
    """

    def __init__(self, process: BatchProcess[Any]) -> None:
        """Hold the definition with its parameters."""
        super().__init__()
        self._process = process

    def expand(self, root: Any) -> beam.PCollection:
        """Begin an attempt and build its pipeline."""
        process = self._process
        prepared = prepare(process)
        cut = prepared.cut()
        record = AttemptRecord(
            process=process.name,
            instance=process.instance,
            number=1,
            started_at=datetime.datetime.now(datetime.UTC),
            code_version=__version__,
            parameters=process.parameters.model_dump(mode="json"),
            inputs=prepared.files,
            shards=cut.shards,
            plan=cut.plan,
            fingerprint="",
        )
        uri = instance_uri(process)
        # What has to stay open while the pipeline runs is closed with this transform.
        self._stack = ExitStack()
        batch = prepared.build(Start(start_attempt(uri, record), (), (), None, self._stack))
        return root | process.name >> batch | "ReadPublished" >> beam.FlatMap(_rows, uri)


def _rows(manifest: Manifest, uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_published(uri).to_table().to_pylist()
    return rows
