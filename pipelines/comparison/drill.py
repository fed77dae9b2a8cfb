"""One customer of a comparison: what differs, and the input from which both sides were made."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.parameters import parameter_error
from ledgerbeam.batch.keyed.prepare import plan_inputs
from ledgerbeam.io.commit.attempts import find_manifest, load_manifest
from ledgerbeam.io.commit.published import instance_of, read_published
from ledgerbeam.io.commit.records import Manifest, damaged_record
from ledgerbeam.io.datasets.readers import ROW_LOCATION, read_split
from ledgerbeam.io.errors import InputChangedError, ParameterError
from ledgerbeam.io.storage import uris
from ledgerbeam.pipelines.comparison.candidate import definition_of
from ledgerbeam.pipelines.comparison.compare import DIFFERENCES
from ledgerbeam.transforms.columnar.differences import as_text


class CustomerTable(NamedTuple):
    """Rows of one customer.

    Attributes:
        what: `differences`, or of which side and input the rows are.
        columns: their names.
        rows: their values as text; empty for none.
    """

    what: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def of_customer(uri: str, customer: str, definition: str = "") -> Iterator[CustomerTable]:
    """What a comparison has found of one customer, and the rows of input behind it.

    Input is read again, and is that of the runs: one that has changed since is refused. A side that
    is no published instance of a keyed process has none.

    Args:
        uri: of the published comparison.
        customer: the customer's name.
        definition: MODULE:CLASS of the process of both sides; empty for the installed one.

    Raises:
        ParameterError: it is no comparison, or has no such customer.
        InputChangedError: a file of the input has changed since it was read.
    """
    manifest = load_manifest(uri)
    given = manifest.attempt.parameters
    if manifest.attempt.process != "compare":
        raise ParameterError(
            f"{uri} is no comparison but what {manifest.attempt.process} has published",
            parameter="COMPARISON",
            value=uri,
        )
    keys = [name for name in given["keys"].split(",") if name]
    column = given["customer"] or keys[0]
    results = _of(read_published(uri).to_table(), {column: {customer}})
    if not results.num_rows:
        raise ParameterError(
            f"{uri} has no row whose {column} is {customer}", parameter="--customer", value=customer
        )
    wanted = {name: set(as_text(results.column(name)).to_pylist()) for name in keys}
    differences = _of(read_published(uri, DIFFERENCES).to_table(), wanted)
    yield _shown("differences", differences.drop_columns(["known"]))
    for side in ("before", "after"):
        for name, rows in _inputs(given[side], definition, {column: {customer}}, wanted):
            yield _shown(f"input {name}, {side}", rows)


def _inputs(
    side: str, definition: str, of_customer: Mapping[str, set[str]], wanted: Mapping[str, set[str]]
) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each input of a side's run that are of the customer, or of its keys."""
    instance = instance_of(uris.absolute(side.partition("#")[0]))
    manifest = find_manifest(instance)
    if manifest is None:
        return
    process = _process(instance, manifest, definition)
    if process is None:
        return
    known = {file.uri: file for file in manifest.attempt.inputs}
    for input_, declared in zip(plan_inputs(process), process.inputs, strict=True):
        for file in input_.files:
            if known.get(file.uri) != file:
                raise InputChangedError(
                    f"{file.uri} has changed since {instance} has read it: restore it, to see "
                    "what that was made of"
                )
        found = []
        for split in input_.splits:
            for rows in read_split(split):
                table = rows.table.drop_columns(ROW_LOCATION)
                named = of_customer if of_customer.keys() <= {*table.column_names} else wanted
                by = {n: values for n, values in named.items() if n in table.column_names}
                found.append(_of(table, by) if by else table.slice(0, 0))
        yield declared.name, pa.concat_tables(found, promote_options="default")


def _process(instance: str, manifest: Manifest, definition: str) -> KeyedProcess[Any] | None:
    kind = definition_of(definition, manifest.attempt.process)
    if not issubclass(kind, KeyedProcess):
        return None
    try:
        process: KeyedProcess[Any] = kind(
            kind.parameters_type.model_validate(manifest.attempt.parameters)
        )
    except ValidationError as error:
        raise damaged_record(instance, str(parameter_error(error))) from error
    process.bind(manifest.attempt.plan.get("columns", ()))
    return process


def _of(table: pa.Table, wanted: Mapping[str, set[str]]) -> pa.Table:
    """The rows whose columns have one of the wanted values, as text."""
    for name, values in wanted.items():
        is_wanted = pc.is_in(as_text(table.column(name)), pa.array(sorted(values), pa.string()))
        table = table.filter(is_wanted)
    return table


def _shown(what: str, table: pa.Table) -> CustomerTable:
    columns = [as_text(column).to_pylist() for column in table.columns]
    rows = [["" if value is None else value for value in row] for row in zip(*columns, strict=True)]
    return CustomerTable(what, table.column_names, rows)
