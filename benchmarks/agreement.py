"""Whether the contenders agree on every trade.

A result is boiled down to a fingerprint that doesn't depend on the order of its rows: their
number, and sum and exclusive or of a 64-bit hash of each. That takes one pass and next to no
memory. Only where two fingerprints differ are the rows themselves compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import pyarrow.dataset as ds

DELIVERY_QUANTITY = "delivery_quantity"


class Fingerprint(NamedTuple):
    """Of a table, whatever the order of its rows.

    Attributes:
        rows: how many.
        total: sum of the rows' hashes.
        parity: exclusive or of the rows' hashes.
    """

    rows: int
    total: int
    parity: int


def fingerprint(table: ds.Dataset, columns: Sequence[str], types: Sequence[str]) -> Fingerprint:
    """Boil the given columns down, each cast to the SQL type at its place in `types`."""
    with _connection() as connection:
        connection.register("result", table)
        values = _cast(columns, types)
        row = connection.execute(
            "SELECT count(*), coalesce(sum(h::HUGEINT), 0), coalesce(bit_xor(h), 0) "
            f"FROM (SELECT hash({values}) AS h FROM result)"
        ).fetchall()[0]
        return Fingerprint(*row)


def differences(
    left: ds.Dataset, right: ds.Dataset, columns: Sequence[str], types: Sequence[str], most: int = 3
) -> list[tuple[object, ...]]:
    """Find rows that only one of two results has, at most `most` of each, left ones first."""
    with _connection() as connection:
        connection.register("l", left)
        connection.register("r", right)
        values = _cast(columns, types)
        rows: list[tuple[object, ...]] = []
        for ours, theirs in (("l", "r"), ("r", "l")):
            rows += connection.execute(
                f"SELECT {values} FROM {ours} EXCEPT ALL SELECT {values} FROM {theirs} LIMIT {most}"
            ).fetchall()
        return rows


def sql_types(table: ds.Dataset, columns: Sequence[str]) -> list[str]:
    """Give the SQL types of the columns, by which all results are then compared."""
    with _connection() as connection:
        connection.register("input", table)
        described = connection.execute("DESCRIBE input").fetchall()
    types = {str(name): str(type_) for name, type_, *_ in described}
    return [types[name] for name in columns]


def groups(results: dict[str, Fingerprint]) -> list[list[str]]:
    """Gather contenders of equal results: all pairs within a group agree, and no others do."""
    by_result: dict[Fingerprint, list[str]] = {}
    for name, result in results.items():
        by_result.setdefault(result, []).append(name)
    return list(by_result.values())


def _cast(columns: Sequence[str], types: Sequence[str]) -> str:
    return ", ".join(
        f'CAST("{name}" AS {type_})' for name, type_ in zip(columns, types, strict=True)
    )


def _connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET memory_limit = '2GB'")
    return connection
