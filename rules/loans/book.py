"""Many loans in columns: states and transactions as arrays, from and to Arrow tables.

A column has the name of the field that it holds for one loan (`State`, `Transaction`) and the same
units: int64 minor units of the loan's currency and rate units, datetime64[D]. In tables amounts are
decimals, of as many places for all currencies as the table has, rates percentages of six, days
date32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers, Objects, array_of
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.columns import (
    AMOUNT,
    BASE,
    PERCENT,
    RATE_CHANGE,
    amounts_of,
    as_decimals,
    coded,
    dates_of,
    encoded,
    integers_of,
    with_places,
)
from ledgerbeam.rules.loans.loan import (
    BASE_SCALE,
    RATE_SCALE,
    RATE_UNITS,
    STATE_VERSION,
    RateChange,
    State,
    Transaction,
    in_minor_units,
)
from ledgerbeam.rules.money import decimals, multiply_divide_many, units

STATE_SCHEMA = pa.schema(
    {
        "closed_through": pa.date32(),
        "balance": AMOUNT,
        "rate": PERCENT,
        "payment": AMOUNT,
        "next_due": pa.date32(),
        "accrued_from": pa.date32(),
        "late_fees_through": pa.date32(),
        "brought": AMOUNT,
        "accrued": AMOUNT,
        "suspense": AMOUNT,
        "fees": AMOUNT,
        "escrow": AMOUNT,
        "instalment_paid": AMOUNT,
        "escrow_paid": AMOUNT,
        "missed_payments": pa.int64(),
        "days_past_due": pa.int64(),
        "brought_base": BASE,
        "ahead": AMOUNT,
        "ahead_until": pa.date32(),
        "fees_ahead": AMOUNT,
        "version": pa.int64(),
        "rate_changes": pa.list_(RATE_CHANGE),
    }
)
"""Columns of a state; those after `late_fees_through` may be missing from an opening: 0, or the
present `version`. A missing `brought_base` follows from what is brought and from the rate."""
TRANSACTION_SCHEMA = pa.schema(
    {
        "transaction_id": pa.int64(),
        "kind": pa.string(),
        "effective_date": pa.date32(),
        "posted_date": pa.date32(),
        "amount": AMOUNT,
        "currency": pa.string(),
        "reverses": pa.int64(),
        "rate": PERCENT,
        "payment": AMOUNT,
    }
)
"""`reverses`, `rate` and `payment` are null where they don't apply."""
RATE_CHANGES = "rate_changes"
NONE = -1
"""What stands in columns of integers for nothing."""


@dataclass(slots=True)
class States:
    """`State` of many loans, one element a loan."""

    closed_through: Dates
    balance: Integers
    rate: Integers
    payment: Integers
    next_due: Dates
    accrued_from: Dates
    late_fees_through: Dates
    brought: Integers
    accrued: Integers
    suspense: Integers
    fees: Integers
    escrow: Integers
    instalment_paid: Integers
    escrow_paid: Integers
    missed_payments: Integers
    days_past_due: Integers
    brought_base: Integers
    ahead: Integers
    ahead_until: Dates
    fees_ahead: Integers
    version: Integers
    rate_changes: Objects

    def __len__(self) -> int:
        return len(self.balance)

    def copy(self) -> "States":
        """A copy that shares no array with this."""
        return States(*(getattr(self, name).copy() for name in STATE_SCHEMA.names))

    def row(self, at: int) -> State:
        """The state of one loan."""
        return self.rows(np.array([at]))[0]

    def rows(self, at: Integers) -> list[State]:
        """The states of some loans."""
        columns = (getattr(self, name)[at].tolist() for name in STATE_SCHEMA.names)
        return [State(*values) for values in zip(*columns, strict=True)]

    def put(self, at: Integers, states: Sequence[State]) -> None:
        """Replace the states of some loans."""
        for name in STATE_SCHEMA.names:
            column = getattr(self, name)
            values = (getattr(state, name) for state in states)
            # Through an array of objects, since numpy would take a tuple of changes apart.
            column[at] = np.fromiter(values, object, len(states)).astype(column.dtype)

    def differs(self, other: "States") -> Flags:
        """The loans whose money, dates or rates aren't the same in both; bool `(loans,)`."""
        result = np.zeros(len(self), bool)
        for name in ("balance", "suspense", "fees", "escrow", "brought", "next_due", "rate",
                     "accrued_from", "instalment_paid", "escrow_paid", "ahead"):  # fmt: skip
            result |= getattr(self, name) != getattr(other, name)
        return result

    @classmethod
    def from_table(cls, table: pa.Table, places: Integers | None = None) -> "States":
        """Columns of a table with those of `STATE_SCHEMA`.

        Args:
            table: a row a loan.
            places: decimals of each one's currency; None for those of the table's amounts.

        Raises:
            ValueError: an amount has more decimals than its currency.
        """
        rows = table.num_rows
        if places is None:
            places = np.full(rows, table.field("balance").type.scale)
        columns: dict[str, npt.NDArray[Any]] = {}
        for field in STATE_SCHEMA:
            name = field.name
            if name == RATE_CHANGES:
                columns[name] = _rate_changes(table, places)
            elif name in table.column_names:
                columns[name] = _values(table.column(name), field, places)
            elif name == "version":
                columns[name] = np.full(rows, STATE_VERSION)
            elif pa.types.is_date(field.type):
                columns[name] = np.full(rows, np.datetime64("NaT", "D"))
            elif name == "brought_base":
                rate = columns["rate"]
                unit = RATE_UNITS * 10**BASE_SCALE
                base = multiply_divide_many(columns["brought"], unit, rate + (rate == 0))
                columns[name] = base * (rate != 0)
            else:
                columns[name] = np.zeros(rows, np.int64)
        return cls(**columns)

    def table(self, places: Integers | None = None, scale: int = AMOUNT.scale) -> pa.Table:
        """A table of `STATE_SCHEMA`, amounts with `scale` decimals."""
        schema = with_places(STATE_SCHEMA, scale)
        return pa.table([self.column(name, places, scale) for name in schema.names], schema=schema)

    def column(
        self, name: str, places: Integers | None = None, scale: int = AMOUNT.scale
    ) -> pa.Array:
        """A column of `table`."""
        field = with_places(STATE_SCHEMA, scale).field(name)
        if places is None:
            places = np.full(len(self), scale)
        if name != RATE_CHANGES:
            return _column(getattr(self, name), field, places)
        dicts = [
            _as_dicts(changes, of, scale) if changes else []
            for changes, of in zip(self.rate_changes.tolist(), places.tolist(), strict=True)
        ]
        return pa.array(dicts, field.type)

    def rate_changes_text(self, places: Integers, scale: int) -> pa.Array:
        """The changes of rates as `DAY RATE PAYMENT; …`; null where there are none.

        Args:
            places: decimals of each one's currency.
            scale: decimals of the payments.
        """
        texts: list[str | None] = [
            "; ".join(
                f"{each['effective_date']} {each['rate']:.{RATE_SCALE}f} "
                f"{each['payment']:.{scale}f}"
                for each in _as_dicts(changes, of, scale)
            )
            if changes
            else None
            for changes, of in zip(self.rate_changes.tolist(), places.tolist(), strict=True)
        ]
        return pa.array(texts, pa.string())


@dataclass(slots=True)
class Transactions:
    """Transactions of many loans, those of a loan together, the loans in the order of the book.

    Attributes:
        offsets: int64 `(loans + 1,)`; a loan's transactions are those from its offset up to the
            next one.
        kind: code in `kinds`, as `currency` is in `currencies`.
        reverses: -1 where there is none, as for `rate` and `payment`.
    """

    offsets: Integers
    transaction_id: Integers
    kind: Integers
    kinds: Sequence[str]
    effective_date: Dates
    posted_date: Dates
    amount: Integers
    currency: Integers
    currencies: Sequence[str]
    reverses: Integers
    rate: Integers
    payment: Integers

    def loans(self) -> Integers:
        """Which loan each transaction belongs to, int64 `(transactions,)`."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rows(self, loan: int) -> list[Transaction]:
        """The transactions of one loan."""
        return self.rows_of(np.array([loan]))[0]

    def rows_of(self, loans: Integers) -> list[list[Transaction]]:
        """The transactions of each of some loans."""
        counts = self.offsets[loans + 1] - self.offsets[loans]
        ends = np.cumsum(counts)
        at = np.arange(counts.sum()) + np.repeat(self.offsets[loans] - ends + counts, counts)
        reverses, rate, payment = (
            [None if value == NONE else value for value in column[at].tolist()]
            for column in (self.reverses, self.rate, self.payment)
        )
        rows = [
            Transaction(
                number, self.kinds[kind], effective, posted, amount, self.currencies[currency],
                *optional,
            )
            for number, kind, effective, posted, amount, currency, *optional in zip(
                *(
                    getattr(self, name)[at].tolist()
                    for name in (
                        "transaction_id", "kind", "effective_date", "posted_date", "amount",
                        "currency",
                    )
                ),
                reverses,
                rate,
                payment,
                strict=True,
            )
        ]  # fmt: skip
        return [
            rows[end - count : end]
            for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
        ]

    @classmethod
    def from_table(cls, table: pa.Table, offsets: Integers) -> "Transactions":
        """Columns of a table with those of `TRANSACTION_SCHEMA`.

        Raises:
            ValueError: an amount has more decimals than its currency.
        """
        kind = encoded(table.column("kind"))
        currency = encoded(table.column("currency"))
        places, _ = coded(pa.table({"currency": currency}), "currency", minor_units)
        return cls(
            offsets,
            integers_of(table.column("transaction_id")),
            kind.indices.to_numpy().astype(np.int64),
            kind.dictionary.to_pylist(),
            dates_of(table.column("effective_date")),
            dates_of(table.column("posted_date")),
            amounts_of(table.column("amount").fill_null(0), places, "amount"),
            currency.indices.to_numpy().astype(np.int64),
            currency.dictionary.to_pylist(),
            integers_of(table.column("reverses").fill_null(NONE)),
            _optional(table.column("rate"), np.full(table.num_rows, RATE_SCALE), "rate"),
            _optional(table.column("payment"), places, "payment"),
        )


def _optional(column: pa.ChunkedArray, places: Integers, name: str) -> Integers:
    values = np.full(len(column), NONE)
    # Nearly all rows have none.
    at = np.flatnonzero(array_of(column.is_valid()).to_numpy(zero_copy_only=False))
    values[at] = amounts_of(column.take(pa.array(at)), places[at], name)
    return values


def _values(column: pa.ChunkedArray, field: pa.Field, places: Integers) -> npt.NDArray[Any]:
    if field.type == PERCENT:
        return units(column, RATE_SCALE)
    if pa.types.is_decimal(field.type):
        return amounts_of(column, places + _more_places(field), field.name)
    return dates_of(column) if pa.types.is_date(field.type) else integers_of(column)


def _column(values: npt.NDArray[Any], field: pa.Field, places: Integers) -> pa.Array:
    if field.type == PERCENT:
        return decimals(values, PERCENT)
    if pa.types.is_decimal(field.type):
        return as_decimals(values, places + _more_places(field), field.type)
    return pa.array(values, field.type)


def _more_places(field: pa.Field) -> int:
    """Decimals that a column has beyond those of the currency."""
    return BASE_SCALE if field.name == "brought_base" else 0


def _rate_changes(table: pa.Table, places: Integers) -> Objects:
    changes = np.empty(table.num_rows, object)
    changes.fill(())
    if RATE_CHANGES in table.column_names:
        column = table.column(RATE_CHANGES)
        if column.null_count == len(column):
            return changes
        known = np.flatnonzero(column.is_valid().to_numpy())
        for at, rows in zip(known.tolist(), column.take(pa.array(known)).to_pylist(), strict=True):
            changes[at] = tuple(
                RateChange(
                    row["effective_date"],
                    in_minor_units(row["rate"], RATE_SCALE),
                    in_minor_units(row["payment"], int(places[at])),
                )
                for row in rows or ()
            )
    return changes


def _as_dicts(changes: tuple[RateChange, ...], places: int, scale: int) -> list[dict[str, Any]]:
    return [
        {
            "effective_date": change.effective_date,
            "rate": Decimal(change.rate).scaleb(-RATE_SCALE),
            "payment": (Decimal(change.payment).scaleb(-places)).quantize(
                Decimal(1).scaleb(-scale)
            ),
        }
        for change in changes
    ]
