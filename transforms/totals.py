"""Control totals: sums that can't overflow, and hashes that don't depend on the rows' order."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.transforms.hashing import hash_rows, order_independent


def exact_sum(column: pa.ChunkedArray) -> int:
    """Sum of an int64 or decimal column, nulls left out, as a Python integer.

    Decimals are counted in units of their last digit: 12.50 at scale 2 is 1250.
    """
    if pa.types.is_decimal(column.type):
        scale = column.type.scale
        total = pc.sum(column.cast(pa.decimal256(76, scale)), min_count=0).as_py()
        return int(total.scaleb(scale))
    total = 0
    for chunk in column.chunks:
        values = (chunk.fill_null(0) if chunk.null_count else chunk).to_numpy()
        # Halves of 32 bits, whose sums fit into 64 for any table that fits into memory.
        low = (values & 0xFFFFFFFF).astype(np.uint64)
        total += (int((values >> 32).sum()) << 32) + int(low.sum())
    return total


def sums_by_currency(table: pa.Table, amount: str, currency: str) -> dict[str, int]:
    """`{amount_CURRENCY: exact sum}` for each currency that occurs; `{amount: sum}` without one."""
    if not currency:
        return {amount: exact_sum(table.column(amount))}
    currencies = table.column(currency)
    return {
        f"{amount}_{code}": exact_sum(table.filter(pc.equal(currencies, code)).column(amount))
        for code in sorted(pc.unique(currencies).drop_null().to_pylist())
    }


def id_hash(table: pa.Table, ids: Sequence[str]) -> int:
    """The hashes of all rows' ids added modulo 2^64, so that the order of rows doesn't matter."""
    return order_independent(hash_rows(table, ids))


def add_totals(all_totals: Iterable[dict[str, int]]) -> dict[str, int]:
    """Totals added up by name; those called `…_hash` modulo 2^64."""
    sums: dict[str, int] = {}
    for totals in all_totals:
        for name, value in totals.items():
            sums[name] = wrapped(name, sums.get(name, 0) + value)
    return sums


def wrapped(name: str, value: int) -> int:
    """The value of a total: hashes are added modulo 2^64, all others exactly."""
    return value % 2**64 if name.endswith("_hash") else value
