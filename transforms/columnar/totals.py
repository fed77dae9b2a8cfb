"""Control totals: sums that can't overflow, and hashes that don't depend on the rows' order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Integers, Objects, array_of
from ledgerbeam.rules.currency import WIDE, minor_units, scaled
from ledgerbeam.rules.money import more_decimals, unscaled
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
    return sum(_added(_whole_numbers(chunk)) for chunk in column.chunks)


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
    amounts = table.column(amount)
    if not len(amounts):
        return {}
    numbers, names = _codes(table.column(currency))
    whole = _whole_numbers(array_of(amounts))
    scale = amounts.type.scale if pa.types.is_decimal(amounts.type) else None
    sums: dict[str, int] = {}
    used = [n for n, count in enumerate(np.bincount(numbers, minlength=len(names))) if count]
    for number in used:
        if number == len(names):
            continue
        code = names[number]
        places = minor_units(code)
        # Zeros in place of other rows: taking the rows out costs several times as much.
        of_code = whole if len(used) == 1 else np.where(numbers == number, whole, 0)
        shift = 0 if scale is None else scale - places
        if scale is not None and shift > 0:
            _check_decimals(amount, of_code, scale, code)
        name = f"{amount}_{code}"
        # Whole minor units, each of them and therefore their sum.
        total = _added(of_code) * 10 ** max(-shift, 0) // 10 ** max(shift, 0)
        sums[name] = sums.get(name, 0) + total
    return dict(sorted(sums.items()))


def _codes(currencies: pa.ChunkedArray) -> tuple[Integers, list[str]]:
    """The number of each row's code in a list of codes; null is the number after the last."""
    if not pa.types.is_dictionary(currencies.type):
        currencies = currencies.dictionary_encode()
    encoded = currencies.unify_dictionaries().combine_chunks()
    names = encoded.dictionary.to_pylist()
    indices = encoded.indices
    if indices.null_count:
        indices = indices.cast(pa.int64()).fill_null(len(names))
    return indices.to_numpy(), names


def _whole_numbers(amounts: pa.Array) -> Integers | Objects:
    """Integers or decimals as whole numbers of their last digit; 0 for nulls.

    They are Python integers where int64 doesn't hold all of them.
    """
    if not pa.types.is_decimal(amounts.type):
        return (amounts.fill_null(0) if amounts.null_count else amounts).to_numpy()
    if pa.types.is_decimal128(amounts.type):
        whole, fits = unscaled(amounts)
        if amounts.null_count:
            is_null = amounts.is_null().to_numpy(zero_copy_only=False)
            whole[is_null] = 0
            fits |= is_null
        if fits.all():
            return whole
    scale = amounts.type.scale
    return np.array(
        [0 if each is None else int(each.scaleb(scale, WIDE)) for each in amounts.to_pylist()],
        object,
    )


def _added(values: Integers | Objects) -> int:
    """Exact sum."""
    if values.dtype == object or not len(values):
        return int(values.sum())
    if max(int(values.max()), -int(values.min())) * len(values) < 2**63:
        return int(values.sum())
    # Sums of 32-bit halves fit into 64 bits for any table that fits into memory.
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


def _check_decimals(name: str, whole: Integers | Objects, scale: int, currency: str) -> None:
    """Check each amount, and not only the sum: two halves of a cent must not add up to a cent.

    Raises:
        ValueError: an amount has more decimals than its currency.
    """
    finer = np.flatnonzero(whole % 10 ** (scale - minor_units(currency)))
    if len(finer):
        raise ValueError(more_decimals(name, scaled(int(whole[finer[0]]), scale), currency))


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
