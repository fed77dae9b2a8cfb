"""Checks of money: which rows have an amount or a currency that is rejected."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.datasets.contract import Rejections
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import has_more_decimals, more_decimals


def check_money(rows: pa.Table, currencies: Mapping[str, str]) -> Rejections:
    """Rows whose currency is not in ISO 4217, or whose amount has too many decimals for it.

    Args:
        rows: the table to check, in the types of its contract.
        currencies: name of the column of currency codes, by name of the column of amounts.
    """
    rejected: dict[int, list[str]] = defaultdict(list)
    for column in sorted({*currencies.values()} & {*rows.column_names}):
        codes = rows.column(column)
        amounts = [n for n, of in currencies.items() if of == column and n in rows.column_names]
        for code in pc.unique(codes).drop_null().to_pylist():
            if not code:
                continue  # the contract rejects a missing code where one is required
            try:
                places = minor_units(code)
            except ValueError as error:
                for row in _where(pc.equal(codes, code)):
                    rejected[row].append(str(error))
                continue
            for name in amounts:
                type_ = rows.schema.field(name).type
                # Most columns can't hold more decimals than the currency has.
                if pa.types.is_decimal(type_) and type_.scale > places:
                    finer = has_more_decimals(rows.column(name), places)
                    for row in _where(pc.and_(finer, pc.equal(codes, code))):
                        value = rows.column(name)[row].as_py()
                        rejected[row].append(more_decimals(name, value, code))
    return rejected


def _where(flags: pa.ChunkedArray) -> list[int]:
    """The numbers of the rows whose flag is true."""
    rows: list[int] = np.flatnonzero(pc.fill_null(flags, False).to_numpy()).tolist()
    return rows
