"""The columnar keyed shuffle, which groups rows of tables into whole components.

    tables ─ cut by key ─ (shard, batch) ─ GroupByKey ─ assemble ─ (shard, components)

A table is cut into a batch for each shard by a hash of its rows' keys; the batches of a shard are
joined, sorted by key and order, and the components of other inputs put beside those of the first.
`assemble` and `cut` are the pure functions.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

import ledgerbeam.io.arrow.coder  # noqa: F401 - how Beam hands tables on
from ledgerbeam.io.arrow.shared import shared_dictionaries
from ledgerbeam.io.arrow.spill import Batch, load_batches, spill
from ledgerbeam.io.arrow.stream import decode_large, join, narrow
from ledgerbeam.io.datasets.contract import Contract, encode_dictionaries
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import align, side_by_side, sort_components, without
from ledgerbeam.transforms.columnar.partition import split_by_shard
from ledgerbeam.transforms.read import Collections

Judge = Callable[[pa.Table], Mapping[int, str]]
"""A function from a table to the reasons for rejecting rows, by their number in the table."""


@dataclass(frozen=True)
class ShuffledInput:
    """The properties of an input that the shuffle needs.

    Attributes:
        name: the name of the input.
        schema: the schema of its tables; whether columns are dictionary-encoded doesn't matter.
        order: columns that order the rows of a component; `-` in front means descending.
        ids: columns that identify a row within a component; rows that share them are rejected.
            None if rows may be equal.
        constants: columns that have the same value in all rows; the shuffle doesn't transfer them.
        contract: defines which columns are dictionary-encoded; None to keep them as they come.
        location: column with the row's place in the input, by which rejected rows are ordered.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None
    constants: Mapping[str, pa.Scalar] = field(default_factory=dict)
    contract: Contract | None = None
    location: str = ""

    def pack(self, table: pa.Table) -> pa.Table:
        """A table in its smaller form for transfer, since each byte is written and read again."""
        constant = [name for name in self.constants if name in table.column_names]
        return narrow(table.drop_columns(constant) if constant else table)

    def unpack(self, table: pa.Table) -> pa.Table:
        """The table as it was before `pack`, with its columns in the order of the schema."""
        for index, column in enumerate(self.schema):
            if column.name in self.constants and column.name not in table.column_names:
                values = pa.repeat(self.constants[column.name], table.num_rows)
                table = table.add_column(index, column.name, values)
            elif pa.types.is_decimal(column.type):
                values = table.column(index).cast(column.type)
                table = table.set_column(index, column.name, values)
        return table


class RejectedRowsOfShard(NamedTuple):
    """Rows that can be rejected only when all rows of their shard are together.

    Attributes:
        input: the number of their input.
        rows: the rejected rows, ordered by the input's location.
        is_orphan: whether they are rejected because the first input lacks their key.
        reasons: the reasons of the input's judge, one per row. If this is empty and `is_orphan` is
            false, the rows are rejected because they share key and ids.
    """

    input: int
    rows: pa.Table
    is_orphan: bool = False
    reasons: tuple[str, ...] = ()


class Assembled(NamedTuple):
    """A shard, ready to be executed.

    Attributes:
        components: components of the first input; those of the others are in `related`, by name.
        rejected: the rejected rows, which are in no component.
    """

    components: Components
    rejected: list[RejectedRowsOfShard]


def cut(
    table: pa.Table,
    input_: ShuffledInput,
    key: Sequence[str],
    shards: int,
    done: Collection[int] = (),
    shared: Collection[str] = (),
) -> Iterator[tuple[int, pa.Table]]:
    """A table's rows by shard, packed for transfer; rows keep their order.

    Args:
        table: a table of the input.
        input_: the properties of the input.
        key: the columns that identify a component.
        shards: the number of shards.
        done: numbers of shards whose rows are dropped.
        shared: columns whose dictionaries stay as they are.
    """
    for shard, batch in split_by_shard(input_.pack(table), key, shards):
        if shard not in done:
            yield shard, decode_large(batch, shared)


def assemble(
    batches: Sequence[tuple[int, Batch]],
    inputs: Sequence[ShuffledInput],
    key: Sequence[str],
    judges: Mapping[int, Judge] | None = None,
    is_outer: bool = False,
) -> Assembled:
    """The components of a shard.

    Args:
        batches: the batches of the shard, each with the number of its input, in any order.
        inputs: the inputs; the first one defines which components there are.
        key: the columns that identify a component.
        judges: by number of the input, functions that reject more rows.
        is_outer: whether all inputs define which components there are. The components then have
            the key only, and the rows of all inputs are in `related`.
    """
    rejected: list[RejectedRowsOfShard] = []
    by_input: list[Components] = []
    for number, input_ in enumerate(inputs):
        components = _sorted(batches, number, input_, key, rejected)
        judge = (judges or {}).get(number)
        if judge is not None:
            components = _judged(components, number, input_, judge, rejected)
        by_input.append(components)
    if is_outer:
        keys, sides = side_by_side(by_input, key)
        names = (input_.name for input_ in inputs)
        return Assembled(keys._replace(related=dict(zip(names, sides, strict=True))), rejected)
    first = by_input[0]
    related: dict[str, Components] = {}
    for number, components in enumerate(by_input[1:], 1):
        aligned, orphans = align(first, components, key)
        if orphans.num_rows:
            rows = _in_order(orphans, inputs[number])
            rejected.append(RejectedRowsOfShard(number, rows, is_orphan=True))
        related[inputs[number].name] = aligned
    return Assembled(first._replace(related=related), rejected)


def _sorted(
    batches: Sequence[tuple[int, Batch]],
    number: int,
    input_: ShuffledInput,
    key: Sequence[str],
    rejected: list[RejectedRowsOfShard],
) -> Components:
    tables = load_batches([batch for of_input, batch in batches if of_input == number])
    tables = [table for table in tables if table.num_rows]
    table = join(tables) if tables else input_.pack(input_.schema.empty_table())
    if input_.contract is not None:
        table = encode_dictionaries(table, input_.contract)
    found = sort_components(table, key, input_.order or None, input_.ids or ())
    components = found.components._replace(table=input_.unpack(found.components.table))
    if input_.ids is not None and found.repeats.any():
        repeated = components.table.filter(pa.array(found.repeats))
        rejected.append(RejectedRowsOfShard(number, _in_order(repeated, input_)))
        components = without(components, found.repeats)
    return components


def _judged(
    components: Components,
    number: int,
    input_: ShuffledInput,
    judge: Judge,
    rejected: list[RejectedRowsOfShard],
) -> Components:
    table = components.table
    wrong = judge(table.drop_columns(input_.location) if input_.location else table)
    if not wrong:
        return components
    locations = table.column(input_.location).to_pylist() if input_.location else None
    rows = sorted(wrong, key=lambda row: locations[row] if locations else row)
    reasons = tuple(wrong[row] for row in rows)
    rejected.append(RejectedRowsOfShard(number, table.take(rows), reasons=reasons))
    is_wrong = np.zeros(table.num_rows, bool)
    is_wrong[list(wrong)] = True
    return without(components, is_wrong)


def _in_order(table: pa.Table, input_: ShuffledInput) -> pa.Table:
    return table.sort_by(input_.location) if input_.location else table


def no_rows(inputs: Sequence[ShuffledInput]) -> tuple[int, pa.Table]:
    """An empty batch of the first input, for shards that may have no other."""
    return 0, inputs[0].pack(inputs[0].schema.empty_table())


def element_type(is_spilled: bool) -> Any:
    """The type of `(shard, (input, batch))`, by which Beam chooses the coder."""
    return tuple[int, Any] if is_spilled else tuple[int, tuple[int, pa.Table]]


@dataclass(frozen=True)
class Cut:
    """Cuts tables of one input, to be grouped by shard: a function of Beam's `FlatMap`.

    Attributes:
        number: the number of the input.
        input: the properties of the input.
        key: the columns that identify a component.
        shards: the number of shards.
        done: numbers of shards that are done already, whose rows are dropped.
        spill_directory: folder on a disk shared by all workers, to which batches are written; empty
            if they go through GroupByKey.
    """

    number: int
    input: ShuffledInput
    key: tuple[str, ...]
    shards: int
    done: frozenset[int] = frozenset()
    spill_directory: str = ""

    def __call__(self, table: pa.Table) -> Iterator[tuple[int, tuple[int, Batch]]]:
        """Yield `(shard, (input, batch))` for each shard that has rows in the table."""
        batches: Iterable[tuple[int, Batch]]
        if self.spill_directory:
            dictionaries = shared_dictionaries(self.spill_directory)
            table, shared = dictionaries.encode(self.input.pack(table))
            batches = cut(table, self.input, self.key, self.shards, self.done, shared.columns)
            batches = spill(self.spill_directory, batches, shared)
        else:
            batches = cut(table, self.input, self.key, self.shards, self.done)
        for shard, batch in batches:
            yield shard, (self.number, batch)


class ShuffleByKey(beam.PTransform):
    """Groups rows of tables by key into whole components in sorted tables.

    It is applied to a collection of tables, or to a dictionary of collections by name. The first
    input defines which components there are; rows of the others are rejected if it lacks their key.
    It outputs collections by name: `components`, one pair of number and `Components` for each
    shard, and `rejected`, tables of rows that share their ids with another row or have no
    component, with a column `reason`.

        from ledgerbeam.transforms import ShuffleByKey

        shuffled = {"loans": loans, "payments": payments} | ShuffleByKey(
            key=("loan_id",),
            shards=16,
            schemas={"loans": LOANS, "payments": PAYMENTS},
            order={"payments": ("paid_on", "id")},
        )
        _ = shuffled.components | "Close" >> beam.MapTuple(lambda _, components: close(components))

    If no two rows of a component are equal in the columns of the order, the same rows always give
    the same tables, whatever tables, bundles and workers they came from.
    """

    def __init__(
        self,
        key: Sequence[str],
        shards: int,
        schemas: Mapping[str, pa.Schema] | pa.Schema,
        order: Mapping[str, Sequence[str]] | Sequence[str] = (),
        ids: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Make the transform.

        Args:
            key: the columns that identify a component: integers, strings, dates or decimals, no
                nulls.
            shards: the number of groups of components; about 300,000 rows per shard work well.
            schemas: the schemas of the tables, by name of the input.
            order: columns that order a component's rows, by name of the input.
            ids: columns that identify a row within its component, by name of the input; inputs that
                are left out may have equal rows.

        Raises:
            ValueError: key or shards are missing, or an input lacks a column of the key.
        """
        super().__init__()
        if not key or shards < 1:
            raise ValueError(f"a key and a shard are needed, not key={key!r}, shards={shards}")
        of_input = schemas if isinstance(schemas, Mapping) else {"rows": schemas}
        orders = order if isinstance(order, Mapping) else {next(iter(of_input)): order}
        for name, schema in of_input.items():
            missing = [column for column in key if column not in schema.names]
            if missing:
                raise ValueError(f"{name}: the schema has no column {missing[0]} of the key")
        self._key = tuple(key)
        self._shards = shards
        self._inputs = tuple(
            ShuffledInput(
                name,
                schema,
                tuple(orders.get(name, ())),
                None if ids is None or name not in ids else tuple(ids[name]),
            )
            for name, schema in of_input.items()
        )

    def expand(self, tables: Any) -> Any:
        """Build the graph.

        Raises:
            ValueError: an input has no collection, or a collection has no schema.
        """
        names = [input_.name for input_ in self._inputs]
        collections = tables if isinstance(tables, Mapping) else {names[0]: tables}
        if sorted(collections) != sorted(names):
            raise ValueError(f"collections {sorted(collections)}, and schemas {sorted(names)}")
        cuts = [
            collections[input_.name]
            | f"Cut {input_.name}"
            >> beam.FlatMap(Cut(number, input_, self._key, self._shards)).with_output_types(
                element_type(is_spilled=False)
            )
            for number, input_ in enumerate(self._inputs)
        ]
        # So that there are shards without rows, too.
        shards = cuts[0].pipeline | "Shards" >> beam.Create(
            [(shard, no_rows(self._inputs)) for shard in range(self._shards)], reshuffle=False
        ).with_output_types(element_type(is_spilled=False))
        assembled = (
            ((*cuts, shards) | "All" >> beam.Flatten())
            | "GroupByShard" >> beam.GroupByKey()
            | "Assemble"
            >> beam.FlatMap(_Assemble(self._inputs, self._key)).with_outputs(
                "rejected", main="components"
            )
        )
        return Collections(components=assembled.components, rejected=assembled.rejected)


@dataclass(frozen=True)
class _Assemble:
    inputs: tuple[ShuffledInput, ...]
    key: tuple[str, ...]

    def __call__(self, element: tuple[int, Iterable[tuple[int, Batch]]]) -> Iterator[Any]:
        shard, batches = element
        assembled = assemble(list(batches), self.inputs, self.key)
        for rejected in assembled.rejected:
            name = self.inputs[rejected.input].name
            first = self.inputs[0].name
            of_ids = f"another row of {name} has the same key and ids"
            reason = f"{first} has no row of this key" if rejected.is_orphan else of_ids
            reasons = pa.array([reason] * rejected.rows.num_rows, pa.string())
            yield beam.pvalue.TaggedOutput(
                "rejected", rejected.rows.append_column("reason", reasons)
            )
        yield shard, assembled.components
