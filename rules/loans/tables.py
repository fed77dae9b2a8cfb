"""Tables of loans as they go from one night to the next: their columns, read and written.

A loan's row holds its terms, its state as it was last closed, and its opening: the state in which
this book took it over, in columns that begin with `opening_`. Closing needs all three. A row that
has no opening yet is boarded in the state that it is in. What is written one night is read the
next one.
"""

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Integers
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.loans.book import RATE_CHANGES, STATE_SCHEMA, TRANSACTION_SCHEMA, States
from ledgerbeam.rules.loans.columns import with_places
from ledgerbeam.rules.loans.contradictions import check_consistent
from ledgerbeam.rules.loans.loan import BASE_SCALE, RATE_SCALE, RATE_UNITS, STATE_VERSION
from ledgerbeam.rules.loans.terms_columns import TERMS_SCHEMA, TermsColumns
from ledgerbeam.rules.money import decimals, multiply_divide_many, units

OPENING = "opening_"
LOCKED = "locked"
"""Column that says why a loan couldn't be closed; null for one that was."""

REQUIRED_STATE = STATE_SCHEMA.names[: STATE_SCHEMA.names.index("late_fees_through") + 1]
NUMBERS = [name for name in STATE_SCHEMA.names if name != RATE_CHANGES]
"""Columns of a state but for the changes of the rate, which are text."""


def with_state_columns(loans: pa.Table) -> pa.Table:
    """Rows with all the columns of a state and of an opening, and `LOCKED`.

    Args:
        loans: a row a loan, with the columns of `TERMS_SCHEMA` and the required ones of
            `STATE_SCHEMA`; others of the state may be missing or null, which is 0, and the
            opening may be, which is then the state. `rate_changes` is text, as `write_states`
            writes it. Rows that were published before states had a version are of version 1.

    Returns:
        A table of the same rows, other columns as they were.
    """
    columns = dict(zip(loans.column_names, loans.columns, strict=True))
    rows = loans.num_rows
    schema = with_places(STATE_SCHEMA, loans.field("balance").type.scale)
    columns["version"] = _versions(loans)
    columns["brought_base"] = _brought_bases(loans, schema)
    for name in NUMBERS:
        type_ = schema.field(name).type
        if name not in REQUIRED_STATE and not pa.types.is_date(type_):
            zero: Any = Decimal(0) if pa.types.is_decimal(type_) else 0
            known = columns.get(name, pa.nulls(rows, type_))
            columns[name] = known.fill_null(pa.scalar(zero, type_))
    columns.setdefault("ahead_until", pa.nulls(rows, pa.date32()))
    columns.setdefault(RATE_CHANGES, pa.nulls(rows, pa.string()))
    # A row without an opening is boarded as it is, with its future changes of the rate.
    boarded = pc.is_null(_column(loans, f"{OPENING}closed_through", pa.date32()))
    columns[OPENING + RATE_CHANGES] = pc.if_else(
        boarded, columns[RATE_CHANGES], _column(loans, OPENING + RATE_CHANGES, pa.string())
    )
    for name in NUMBERS:
        opening = columns.get(OPENING + name, pa.nulls(rows, schema.field(name).type))
        columns[OPENING + name] = pc.coalesce(opening, columns[name])
    if "ahead_until" in loans.column_names and OPENING + "ahead_until" in loans.column_names:
        # Where the opening has no date, it stays so, whatever the state has since.
        columns[OPENING + "ahead_until"] = loans.column(OPENING + "ahead_until")
    columns.setdefault(LOCKED, pa.nulls(rows, pa.string()))
    return pa.table(columns)


def _versions(loans: pa.Table) -> pa.ChunkedArray:
    """The version of each state; a row with an opening and none is of a time before versions."""
    known = _column(loans, "version", pa.int64())
    opened = _column(loans, f"{OPENING}closed_through", pa.date32())
    return pc.coalesce(known, pc.if_else(pc.is_valid(opened), 1, STATE_VERSION))


def _brought_bases(loans: pa.Table, schema: pa.Schema) -> pa.ChunkedArray:
    """What `brought` is the interest on: as the table has it, else by the rate of the state."""
    amount, type_ = schema.field("brought").type, schema.field("brought_base").type
    known = _column(loans, "brought_base", type_)
    if not known.null_count or "brought" not in loans.column_names:
        return known
    brought = loans.column("brought").fill_null(pa.scalar(Decimal(0), amount))
    rate = units(loans.column("rate"), RATE_SCALE)
    unit = RATE_UNITS * 10**BASE_SCALE
    base = multiply_divide_many(units(brought, amount.scale), unit, rate + (rate == 0))
    return pc.coalesce(known, decimals(base * (rate != 0), type_))


def _column(loans: pa.Table, name: str, type_: pa.DataType) -> pa.ChunkedArray:
    if name in loans.column_names:
        return loans.column(name)
    return pa.chunked_array([pa.nulls(loans.num_rows, type_)])


def read_states(loans: pa.Table, terms: TermsColumns) -> tuple[States, States]:
    """The openings and the states of a table that `with_state_columns` gave.

    Args:
        loans: the table.
        terms: of the same loans.

    Raises:
        ValueError: a state can't be, or contradicts the terms; see `contradictions`.
    """
    names = [*NUMBERS, RATE_CHANGES]
    opening, states = (
        _with_changes(loans.select([prefix + name for name in names]).rename_columns(names))
        for prefix in (OPENING, "")
    )
    result = States.from_table(opening, terms.places), States.from_table(states, terms.places)
    for found in result:
        check_consistent(terms, found)
    return result


def write_states(loans: pa.Table, states: States, places: Integers) -> pa.Table:
    """The rows of `loans`, which `with_state_columns` gave, with other states and not locked.

    Args:
        loans: a row a loan.
        states: of the same loans, in minor units.
        places: decimals of each loan's currency, int64 `(loans,)`.

    Raises:
        ValueError: the table's amounts have fewer decimals than a currency.
    """
    scale = loans.field("balance").type.scale
    columns = {name: states.column(name, places, scale) for name in NUMBERS}
    columns[RATE_CHANGES] = states.rate_changes_text(places, scale)
    columns[LOCKED] = pa.nulls(loans.num_rows, pa.string())
    for name, column in columns.items():
        loans = loans.set_column(loans.column_names.index(name), name, column)
    return loans


def with_transaction_columns(transactions: pa.Table) -> pa.Table:
    """Transactions with null in the columns of `TRANSACTION_SCHEMA` that are missing."""
    for field in TRANSACTION_SCHEMA:
        if field.name not in transactions.column_names:
            nulls = pa.nulls(transactions.num_rows, field.type)
            transactions = transactions.append_column(field, nulls)
    return transactions


def read_terms(loans: pa.Table, calendar: BusinessCalendar | None = None) -> TermsColumns:
    """The terms of loans; columns of `TERMS_SCHEMA` that are missing count as null.

    Raises:
        ValueError: terms can't be: an unknown day count, a due day that no month has.
    """
    for field in TERMS_SCHEMA:
        if field.name not in loans.column_names:
            loans = loans.append_column(field, pa.nulls(loans.num_rows, field.type))
    return TermsColumns.from_table(loans, calendar)


def _with_changes(states: pa.Table) -> pa.Table:
    """States with the changes of their rates as `STATE_SCHEMA` has them, from text."""
    type_ = with_places(STATE_SCHEMA, states.field("balance").type.scale).field(RATE_CHANGES).type
    at, texts = states.column_names.index(RATE_CHANGES), states.column(RATE_CHANGES)
    if texts.null_count == len(texts):
        return states.set_column(at, RATE_CHANGES, pa.nulls(len(texts), type_))
    known: dict[str | None, list[dict[str, Any]] | None] = {None: None}
    for text in pc.unique(texts).drop_null().to_pylist():
        known[text] = _changes(text)
    changes = pa.array([known[text] for text in texts.to_pylist()], type_)
    return states.set_column(at, RATE_CHANGES, changes)


def _changes(text: str | None) -> list[dict[str, Any]]:
    """`2024-06-01 5.125000 1234.56; …`: day, yearly rate in percent, payment."""
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
