"""What a comparison says to people: a page, and the same as JSON."""

import datetime
import decimal
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList

import ledgerbeam.io.arrow.coder  # noqa: F401 - how Beam hands tables on
from ledgerbeam.io.arrow.stream import join
from ledgerbeam.pipelines.comparison.known import EVERYTHING, KnownDifference
from ledgerbeam.pipelines.comparison.noise import Noise
from ledgerbeam.pipelines.comparison.page import render
from ledgerbeam.rules.arrays import Flags, array_of
from ledgerbeam.rules.currency import scaled, to_decimal
from ledgerbeam.transforms.columnar.differences import RowStatus
from ledgerbeam.transforms.columnar.totals import sums_by_currency

STATUS = "comparison"
DIFFERING = "differing"
CHANGE = "_change"

LARGEST = 50
"""How many customers and rows a page shows."""


@dataclass(frozen=True)
class Layout:
    """What is compared, and the columns of the results.

    Attributes:
        title: the datasets of before and after, as the user named them.
        business_date: the day of the comparison.
        key: the columns that identify a row.
        customer: the column by which differences are grouped.
        currency: the column of the currency; empty for none.
        decimals: decimals of each column of money.
        one_sided: columns that only one of the sides has, by side.
        noise: what differs in a repetition of the first side; None if that wasn't looked at.
        known: differences that are listed as known.
    """

    title: tuple[str, str]
    business_date: datetime.date
    key: tuple[str, ...]
    customer: str
    currency: str
    decimals: Mapping[str, int]
    one_sided: Mapping[str, tuple[str, ...]]
    noise: Noise | None = None
    known: tuple[KnownDifference, ...] = ()


class Part(NamedTuple):
    """A summary of some of the keys.

    Attributes:
        statuses: keys by status.
        columns: keys by column in which they differ.
        money: `{net_AMOUNT_CURRENCY: sum, gross_AMOUNT_CURRENCY: sum}`, as `changes` gives it.
        sizes: differences by amount, currency and power of ten of their absolute value.
        customers: for each amount, customer and currency, the keys, and the net and gross change.
        largest: the rows with the largest absolute change of any amount.
        known: rows that have each of the listed differences, by its place in the list.
    """

    statuses: Counter[str]
    columns: Counter[str]
    money: Counter[str]
    sizes: Counter[tuple[str, str, int]]
    customers: pa.Table
    largest: pa.Table
    known: Counter[int]


class WriteComparison(beam.PTransform):
    """Turns tables of results into pairs of file name and bytes."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        """Build the graph."""
        parts = results | "Summarise" >> beam.Map(summarise, self._layout)
        return (
            results.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Write" >> beam.FlatMap(_write, AsList(parts), self._layout)
        )


def counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {
        str(value["values"]): int(value["counts"]) for value in pc.value_counts(column).to_pylist()
    }


def changes(results: pa.Table, amounts: Sequence[str], currency: str) -> dict[str, int]:
    """`net_AMOUNT` is the sum of the changes, `gross_AMOUNT` that of their absolute values.

    With a column of currencies, names end with the currency, and sums count its minor units.
    """
    sums: dict[str, int] = {}
    for name in amounts:
        rows = _changed_amounts(results, name, currency)
        for kind, values in (("net", rows.column(name)), ("gross", pc.abs(rows.column(name)))):
            total = f"{kind}_{name}"
            sums |= sums_by_currency(rows.append_column(total, values), total, currency)
    return sums


def _changed_amounts(results: pa.Table, name: str, currency: str) -> pa.Table:
    """The changes other than 0, and one of 0 for each currency, so that each has a sum."""
    change = results.column(name + CHANGE)
    zero = pa.scalar(Decimal(0), change.type)
    used = results.select([name + CHANGE, *([currency] if currency else [])])
    changed = used.filter(pc.not_equal(change, zero))
    columns = {name: [*changed.column(name + CHANGE).chunks, pa.array([0], change.type)]}
    if currency:
        codes = pc.unique(results.column(currency)).cast(pa.string())
        columns[name][-1] = pa.repeat(zero, len(codes))
        columns[currency] = [*changed.column(currency).cast(pa.string()).chunks, codes]
    return pa.table({column: pa.chunked_array(chunks) for column, chunks in columns.items()})


def summarise(results: pa.Table, layout: Layout) -> Part:
    """The summary of a table of results."""
    columns: Counter[str] = Counter()
    for names, count in counts(results.column(DIFFERING)).items():
        columns.update({name: count for name in names.split(",") if name})
    changed = results.filter(pa.array(~_is_value(results.column(STATUS), RowStatus.SAME)))
    customers, largest = [], []
    sizes: Counter[tuple[str, str, int]] = Counter()
    for name in layout.decimals:
        rows = _money_rows(changed, name, layout)
        customers.append(_by_customer(rows))
        largest.append(_largest(rows))
        sizes += _sizes(rows, name)
    return Part(
        Counter(counts(results.column(STATUS))),
        columns,
        Counter(changes(results, [*layout.decimals], layout.currency)),
        sizes,
        _together(customers),
        _together(largest),
        _known_rows(changed, layout),
    )


def merged(parts: Sequence[Part]) -> Part:
    """One summary of all parts."""
    customers = _together([part.customers for part in parts])
    largest = _together([part.largest for part in parts])
    return Part(
        sum((part.statuses for part in parts), Counter()),
        sum((part.columns for part in parts), Counter()),
        _added([part.money for part in parts]),
        sum((part.sizes for part in parts), Counter()),
        _summed(customers) if customers.num_rows else customers,
        largest,
        sum((part.known for part in parts), Counter()),
    )


def _is_value(column: pa.ChunkedArray, text: str) -> Flags:
    """Bool `(rows,)`: whether a row has a text; each value of a dictionary is compared once."""
    array = array_of(column if pa.types.is_dictionary(column.type) else column.dictionary_encode())
    return np.asarray(array.indices.to_numpy() == pc.index(array.dictionary, text).as_py(), bool)


def _known_rows(changed: pa.Table, layout: Layout) -> Counter[int]:
    """How many rows have each of the listed differences, those that have expired too."""
    found: Counter[int] = Counter()
    customers = changed.column(layout.customer).cast(pa.string())
    differing = changed.column(DIFFERING).cast(pa.string())
    for number, known in enumerate(layout.known):
        if known.column == EVERYTHING:  # one side lacks the row, which so differs in no column
            has = pc.equal(differing, "")
        else:
            name = re.escape(known.column)
            has = pc.match_substring_regex(differing, f"(^|,){name}(,|$)")
        if known.customer != EVERYTHING:
            has = pc.and_(has, pc.equal(customers, known.customer))
        count = pc.sum(pc.fill_null(has, False)).as_py() or 0
        if count:
            found[number] = count
    return found


def _added(parts: Sequence[Counter[str]]) -> Counter[str]:
    """Sums of which some are negative, which `Counter`'s `+` would drop."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


_MONEY = pa.decimal256(70, 12)
_WIDE = decimal.Context(prec=76)
_EMPTY = pa.table({"customer": pa.array([], pa.string())})


def _money_rows(changed: pa.Table, name: str, layout: Layout) -> pa.Table:
    """The rows whose amount has changed: key, customer, currency, amount, change, gross."""
    change = changed.column(name + CHANGE)
    zero = pa.scalar(Decimal(0), change.type)
    keep = pc.fill_null(pc.not_equal(change, zero), False)
    rows, change = changed.filter(keep), change.filter(keep).cast(_MONEY)
    count = rows.num_rows
    keys = [rows.column(column).cast(pa.string()) for column in layout.key]
    key = pc.binary_join_element_wise(*keys, ",") if len(keys) > 1 else keys[0]
    currency = (
        rows.column(layout.currency).cast(pa.string())
        if layout.currency
        else pa.array([""] * count, pa.string())
    )
    return pa.table(
        {
            "customer": rows.column(layout.customer).cast(pa.string()),
            "currency": currency,
            "amount": pa.array([name] * count, pa.string()),
            "key": key,
            "change": change,
            "gross": pc.abs(change),
        }
    )


def _by_customer(rows: pa.Table) -> pa.Table:
    ones = pa.array(np.ones(rows.num_rows, np.int64))
    return _summed(rows.drop_columns("key").append_column("keys", ones))


def _summed(rows: pa.Table) -> pa.Table:
    names = ["customer", "currency", "amount", "change", "gross", "keys"]
    sums = [(name, "sum") for name in names[3:]]
    grouped = rows.group_by(names[:3]).aggregate(sums)
    schema = pa.schema([rows.schema.field(name) for name in names])
    return (
        grouped.select([*names[:3], *(f"{name}_sum" for name in names[3:])])
        .rename_columns(names)
        .cast(schema)
    )


def _largest(rows: pa.Table) -> pa.Table:
    order = [("gross", "descending"), ("key", "ascending")]
    return rows.take(pc.sort_indices(rows, order)[:LARGEST])


def _sizes(rows: pa.Table, name: str) -> Counter[tuple[str, str, int]]:
    """How many changes have each number of digits in front of the point."""
    # Sizes are for a histogram, where floats are fine.
    digits = np.floor(np.log10(rows.column("gross").cast(pa.float64()).to_numpy()) + 1e-9)
    found: Counter[tuple[str, str, int]] = Counter()
    for currency, power in zip(rows.column("currency").to_pylist(), digits.tolist(), strict=True):
        found[name, currency, int(power)] += 1
    return found


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    with_rows = [table for table in tables if table.num_rows]
    return join(with_rows) if with_rows else _EMPTY


def _write(_: None, parts: list[Part], layout: Layout) -> Iterator[tuple[str, bytes]]:
    content = comparison(merged(parts), layout)
    yield "comparison.json", json.dumps(content, indent=2, default=str).encode() + b"\n"
    yield "comparison.html", render(content)


def comparison(found: Part, layout: Layout) -> dict[str, Any]:
    """What the page and the JSON file say; amounts are texts with their currency's decimals."""
    money = [
        {
            "amount": name,
            "currency": currency,
            "net": _shown(found.money[f"net_{label}"], name, currency, layout),
            "gross": _shown(found.money[f"gross_{label}"], name, currency, layout),
            "sizes": _histogram(found.sizes, name, currency),
            "customers": _rows_of(found.customers, name, currency, layout),
            "largest": _rows_of(found.largest, name, currency, layout),
        }
        for name in layout.decimals
        for currency in _currencies(found.money, name, layout)
        for label in [f"{name}_{currency}" if currency else name]
    ]
    return {
        "before": layout.title[0],
        "after": layout.title[1],
        "business_date": layout.business_date.isoformat(),
        "keys": list(layout.key),
        "customer": layout.customer,
        "rows": {status: found.statuses[status] for status in RowStatus},
        "columns": dict(found.columns.most_common()),
        "one_sided_columns": layout.one_sided,
        "baseline": None if layout.noise is None else layout.noise._asdict(),
        "known": [
            known._asdict() | {"rows": found.known[number]}
            for number, known in enumerate(layout.known)
        ],
        "money": money,
    }


def _currencies(money: Counter[str], name: str, layout: Layout) -> list[str]:
    if not layout.currency:
        return [""]
    prefix = f"gross_{name}_"
    return sorted(
        total.removeprefix(prefix)
        for total in money
        if total.startswith(prefix) and len(total) == len(prefix) + 3
    )


def _rows_of(table: pa.Table, name: str, currency: str, layout: Layout) -> list[dict[str, Any]]:
    """The rows of an amount with the largest change, at most `LARGEST`."""
    if not table.num_rows:
        return []
    is_asked = pc.and_(
        pc.equal(table.column("amount"), name), pc.equal(table.column("currency"), currency)
    )
    rows = table.filter(is_asked)
    tie = "key" if "key" in rows.column_names else "customer"
    order = pc.sort_indices(rows, [("gross", "descending"), (tie, "ascending")])[:LARGEST]
    shown = []
    for row in rows.take(order).drop_columns(["amount", "currency"]).to_pylist():
        for column in ("change", "gross"):
            row[column] = _decimal(row[column], name, currency, layout)
        shown.append(row)
    return shown


def _decimal(value: Decimal, name: str, currency: str, layout: Layout) -> str:
    unit = to_decimal(1, currency) if currency else scaled(1, layout.decimals[name])
    return f"{value.quantize(unit, context=_WIDE):f}"


def _shown(units: int, name: str, currency: str, layout: Layout) -> str:
    return f"{to_decimal(units, currency) if currency else scaled(units, layout.decimals[name]):f}"


def _histogram(
    sizes: Counter[tuple[str, str, int]], name: str, currency: str
) -> list[dict[str, Any]]:
    powers = sorted(power for amount, code, power in sizes if (amount, code) == (name, currency))
    if not powers:
        return []
    return [
        {"from": f"{Decimal(10) ** power:f}", "changes": sizes[name, currency, power]}
        for power in range(powers[0], powers[-1] + 1)
    ]
