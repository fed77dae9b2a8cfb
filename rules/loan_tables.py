"""Tables of loans as they go from one night to the next: what stands in them, read and written.

A loan's row holds its terms, its state as it was last closed, and its opening: the state in which
this book took it over, in columns that begin with `opening_`. Closing needs all three. A row that
has no opening yet is boarded in the state that it is in. What is written one night is read the
next one.
"""

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.book import (
    AMOUNT,
    STATE_SCHEMA,
    TRANSACTION_SCHEMA,
    States,
    TermsColumns,
)
from ledgerbeam.rules.loan import RATE_SCALE

OPENING = "opening_"
LOCKED = "locked"
"""Column that says why a loan couldn't be closed; null for one that was."""

RATE_CHANGES = "rate_changes"
REQUIRED_STATE = STATE_SCHEMA.names[: STATE_SCHEMA.names.index("late_fees_through") + 1]
NUMBERS = [name for name in STATE_SCHEMA.names if name != RATE_CHANGES]
"""Columns of a state but for the changes of the rate, which an opening has none of."""


def complete(loans: pa.Table) -> pa.Table:
    """Rows with all the columns of a state and of an opening, and `LOCKED`.

    Args:
        loans: a row a loan, with the columns of `TERMS_SCHEMA` and the required ones of
            `STATE_SCHEMA`; others of the state may be missing or null, which is 0, and the
            opening may be, which is then the state. `rate_changes` is text, as `write_states`
            writes it.

    Returns:
        A table of the same rows, further columns as they were.
    """
    columns = dict(zip(loans.column_names, loans.columns, strict=True))
    rows = loans.num_rows
    for name in NUMBERS:
        type_ = STATE_SCHEMA.field(name).type
        if name not in REQUIRED_STATE:
            zero: Any = Decimal(0) if pa.types.is_decimal(type_) else 0
            known = columns.get(name, pa.nulls(rows, type_))
            columns[name] = known.fill_null(pa.scalar(zero, type_))
    columns.setdefault(RATE_CHANGES, pa.nulls(rows, pa.string()))
    for name in NUMBERS:
        opening = columns.get(OPENING + name, pa.nulls(rows, STATE_SCHEMA.field(name).type))
        columns[OPENING + name] = pc.coalesce(opening, columns[name])
    columns.setdefault(LOCKED, pa.nulls(rows, pa.string()))
    return pa.table(columns)


def read_states(loans: pa.Table) -> tuple[States, States]:
    """The openings and the states of a table that `complete` gave.

    Raises:
        ValueError: a state can't be: a loan closed before it was made, or a negative balance.
    """
    opening = loans.select([OPENING + name for name in NUMBERS]).rename_columns(NUMBERS)
    states = loans.select(NUMBERS).append_column(RATE_CHANGES, _parsed(loans.column(RATE_CHANGES)))
    result = States.from_table(opening), States.from_table(states)
    originated = loans.column("origination_date").to_numpy()
    for found in result:
        for is_wrong, what in (
            (found.closed_through < originated, "closed_through {closed_through} is before"),
            (found.next_due < originated, "next_due {next_due} is before"),
        ):
            if is_wrong.any():
                row = loans.slice(int(np.flatnonzero(is_wrong)[0]), 1).to_pylist()[0]
                raise ValueError(
                    f"{what.format(**row)} the loan's origination {row['origination_date']}"
                )
        if (found.balance < 0).any():
            row = loans.slice(int(np.flatnonzero(found.balance < 0)[0]), 1).to_pylist()[0]
            raise ValueError(f"balance {row['balance']} is negative")
    return result


def with_rate_changes(loans: pa.Table) -> pa.Table:
    """Rows with `rate_changes` as `STATE_SCHEMA` has it, where they have it as text.

    Raises:
        ValueError: a text is none that `write_states` writes.
    """
    if RATE_CHANGES not in loans.column_names:
        return loans
    at = loans.column_names.index(RATE_CHANGES)
    return loans.set_column(at, RATE_CHANGES, _parsed(loans.column(RATE_CHANGES)))


def write_states(loans: pa.Table, states: States) -> pa.Table:
    """The rows of `loans`, which `complete` gave, with other states and not locked."""
    table = states.table()
    for name in NUMBERS:
        loans = loans.set_column(loans.column_names.index(name), name, table.column(name))
    at = loans.column_names.index(RATE_CHANGES)
    loans = loans.set_column(at, RATE_CHANGES, _as_text(table.column(RATE_CHANGES)))
    at = loans.column_names.index(LOCKED)
    return loans.set_column(at, LOCKED, pa.nulls(loans.num_rows, pa.string()))


def with_all_columns(transactions: pa.Table) -> pa.Table:
    """Transactions with null in the columns of `TRANSACTION_SCHEMA` that are missing."""
    for field in TRANSACTION_SCHEMA:
        if field.name not in transactions.column_names:
            nulls = pa.nulls(transactions.num_rows, field.type)
            transactions = transactions.append_column(field, nulls)
    return transactions


def read_terms(loans: pa.Table) -> TermsColumns:
    """The terms of loans.

    Raises:
        ValueError: terms can't be: an unknown day count, a due day that no month has.
    """
    return TermsColumns.from_table(loans)


def _parsed(texts: pa.ChunkedArray) -> pa.Array:
    """`2024-06-01 5.125000 1234.56; …`: day, yearly rate in percent, payment."""
    type_ = STATE_SCHEMA.field(RATE_CHANGES).type
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), type_)
    return pa.array([_changes(text) for text in texts.to_pylist()], type_)


def _changes(text: str | None) -> list[dict[str, Any]]:
    changes = []
    for change in (text or "").split(";"):
        if not change.strip():
            continue
        try:
            day, rate, payment = change.split()
            changes.append(
                {
                    "effective_date": datetime.date.fromisoformat(day),
                    "rate": Decimal(rate),
                    "payment": Decimal(payment),
                }
            )
        except (ValueError, ArithmeticError):
            raise ValueError(
                f"rate_changes {text!r} is no list of DAY RATE PAYMENT, with ; in between"
            ) from None
    return changes


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    if not pc.any(pc.greater(pc.list_value_length(column), 0), min_count=0).as_py():
        return pa.nulls(len(column), pa.string())
    return pa.array(
        [
            "; ".join(
                f"{each['effective_date']} {each['rate']:.{RATE_SCALE}f} "
                f"{each['payment']:.{AMOUNT.scale}f}"
                for each in changes
            )
            or None
            for changes in column.to_pylist()
        ],
        pa.string(),
    )
