"""Control totals: sums that can't overflow, and hashes that don't depend on the rows' order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import has_more_decimals, more_decimals
from ledgerbeam.transforms.columnar.hashing import hash_rows, order_independent


@dataclass(frozen=True)
class TableTotals:
    """Totals by which lost or changed rows are noticed: count of rows, sums of amounts, ids.

    Attributes:
        rows: the number of rows.
        amounts: exact sums of columns, `{amount: sum}` in units of the column's last digit, or
            `{amount_CURRENCY: sum}` in minor units of each currency that occurs.
        id_hash: the sum of the hashes of the rows' ids, modulo 2^64.
    """

    rows: int = 0
    amounts: Mapping[str, int] = field(default_factory=dict)
    id_hash: int = 0

    def __add__(self, other: Self) -> Self:
        amounts = dict(self.amounts)
        for name, value in other.amounts.items():
            amounts[name] = amounts.get(name, 0) + value
        id_hash = (self.id_hash + other.id_hash) % 2**64
        return replace(self, rows=self.rows + other.rows, amounts=amounts, id_hash=id_hash)

    def __sub__(self, other: Self) -> Self:
        negative = {name: -value for name, value in other.amounts.items()}
        return self + replace(other, rows=-other.rows, amounts=negative, id_hash=-other.id_hash)


NO_ROWS = TableTotals()


def table_totals(
    table: pa.Table, amounts: Sequence[str] = (), currency: str = "", ids: Sequence[str] = ()
) -> TableTotals:
    """The totals of a table.

    Args:
        table: a table with the columns that the other arguments name.
        amounts: names of int64 or decimal columns to add up; nulls are left out.
        currency: name of a column of ISO 4217 codes; empty for amounts of one currency.
        ids: names of the columns that identify a row; empty for no hash.

    Raises:
        ValueError: an amount has more decimals than its currency, or ISO 4217 doesn't list a code.
    """
    sums: dict[str, int] = {}
    for amount in amounts:
        sums |= sums_by_currency(table, amount, currency)
    return TableTotals(table.num_rows, sums, id_hash(table, ids) if ids else 0)


def exact_sum(column: pa.ChunkedArray) -> int:
    """Sum of an int64 or decimal column without its nulls, as a Python integer.

    Decimals are counted in units of their last digit: 12.50 at scale 2 is 1250.
    """
    if pa.types.is_decimal(column.type):
        scale = column.type.scale
        total = pc.sum(column.cast(pa.decimal256(76, scale)), min_count=0).as_py()
        return int(total.scaleb(scale))
    total = 0
    for chunk in column.chunks:
        values = (chunk.fill_null(0) if chunk.null_count else chunk).to_numpy()
        # Sums of 32-bit halves fit into 64 bits for any table that fits into memory.
        low = (values & 0xFFFFFFFF).astype(np.uint64)
        total += (int((values >> 32).sum()) << 32) + int(low.sum())
    return total


def sums_by_currency(table: pa.Table, amount: str, currency: str) -> dict[str, int]:
    """`{amount_CURRENCY: exact sum in minor units}` for each currency that occurs.

    1234.50 USD counts 123450, 1234.00 JPY counts 1234 and 1.234 KWD counts 1234, however many
    decimals the column has. An int64 column already counts minor units.

    Args:
        table: a table with both columns.
        amount: name of an int64 or decimal column; nulls are left out.
        currency: name of the column of ISO 4217 codes; if it is empty, the result is
            `{amount: sum}` with the sum of `exact_sum`.

    Raises:
        ValueError: an amount has more decimals than its currency, or ISO 4217 doesn't list a code.
    """
    if not currency:
        return {amount: exact_sum(table.column(amount))}
    currencies, amounts = table.column(currency), table.column(amount)
    codes = sorted(pc.unique(currencies).drop_null().to_pylist())
    return {
        f"{amount}_{code}": _sum_in_minor_units(
            amount, amounts.filter(pc.equal(currencies, code)), code
        )
        for code in codes
    }


def _sum_in_minor_units(name: str, amounts: pa.ChunkedArray, currency: str) -> int:
    places = minor_units(currency)
    total = exact_sum(amounts)
    if not pa.types.is_decimal(amounts.type):
        return total
    extra_digits = amounts.type.scale - places
    if extra_digits <= 0:
        return total * 10**-extra_digits
    # Each amount is checked, and not only the sum: two halves of a cent must not add up to a cent.
    finer = has_more_decimals(amounts, places)
    if pc.any(finer, min_count=0).as_py():
        value = amounts.filter(finer)[0].as_py()
        raise ValueError(more_decimals(name, value, currency))
    return total // 10**extra_digits


def id_hash(table: pa.Table, ids: Sequence[str]) -> int:
    """The hashes of all rows' ids added modulo 2^64, so that the order of rows doesn't matter.

    Args:
        table: with the columns `ids`, which are integers, strings, dates or decimals.
        ids: names of the columns that identify a row.
    """
    return order_independent(hash_rows(table, ids))


def add_totals(all_totals: Iterable[dict[str, int]]) -> dict[str, int]:
    """Totals added up by name; those whose name ends with `_hash` modulo 2^64."""
    sums: dict[str, int] = {}
    for totals in all_totals:
        for name, value in totals.items():
            sums[name] = wrapped(name, sums.get(name, 0) + value)
    return sums


def wrapped(name: str, value: int) -> int:
    """The value of a total: modulo 2^64 if it is a hash, else unchanged."""
    return value % 2**64 if name.endswith("_hash") else value
