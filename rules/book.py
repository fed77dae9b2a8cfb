"""Many loans in columns: terms, states and transactions as arrays, from and to Arrow tables.

A column has the name of the field that it holds for one loan (`Terms`, `State`, `Transaction`)
and the same units: int64 minor units and rate units, datetime64[D]. In tables amounts are decimals
of two places, rates percentages of six, days date32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.delinquency import DAY_COUNTS
from ledgerbeam.rules.loan import (
    RATE_SCALE,
    RateChange,
    State,
    Terms,
    Transaction,
    in_minor_units,
)
from ledgerbeam.rules.money import decimals, units

Integers = npt.NDArray[np.int64]
Dates = npt.NDArray[np.datetime64]
Objects = npt.NDArray[np.object_]

AMOUNT = pa.decimal128(18, 2)
PERCENT = pa.decimal128(9, RATE_SCALE)
RATE_CHANGE = pa.struct({"effective_date": pa.date32(), "rate": PERCENT, "payment": AMOUNT})

TERMS_SCHEMA = pa.schema(
    {
        "loan_id": pa.string(),
        "currency": pa.string(),
        "day_count": pa.string(),
        "origination_date": pa.date32(),
        "maturity_date": pa.date32(),
        "due_day": pa.int64(),
        "escrow_payment": AMOUNT,
    }
)
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
        "rate_changes": pa.list_(RATE_CHANGE),
    }
)
"""Columns of a state; those behind `late_fees_through` may be missing from an opening: 0."""
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
_NONE = -1


@dataclass(slots=True)
class TermsColumns:
    """`Terms` of many loans, one element a loan; `day_count` is a code, see `DAY_COUNTS`."""

    loan_id: pa.StringArray
    currency: Objects
    day_count: Integers
    origination_date: Dates
    maturity_date: Dates
    due_day: Integers
    escrow_payment: Integers

    def __len__(self) -> int:
        return len(self.due_day)

    def row(self, at: int) -> Terms:
        """The terms of one loan."""
        return Terms(
            self.loan_id[at].as_py(),
            self.currency[at],
            DAY_COUNTS[self.day_count[at]],
            self.origination_date[at].item(),
            self.maturity_date[at].item(),
            int(self.due_day[at]),
            int(self.escrow_payment[at]),
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "TermsColumns":
        """Columns of a table with those of `TERMS_SCHEMA`.

        Raises:
            ValueError: an unknown day count, a null, or a day that no month has.
        """
        names = table.column("day_count").to_pylist()
        unknown = set(names) - set(DAY_COUNTS)
        if unknown:
            raise ValueError(
                f"day_count {min(map(str, unknown))} is none of {', '.join(DAY_COUNTS)}"
            )
        due_day = _integers(table.column("due_day"))
        if len(due_day) and not 1 <= due_day.min() <= due_day.max() <= 31:
            raise ValueError(f"due_day {due_day.min()} to {due_day.max()} is not from 1 to 31")
        codes = {day_count.value: code for code, day_count in enumerate(DAY_COUNTS)}
        return cls(
            _array(table.column("loan_id").cast(pa.string())),
            np.array(table.column("currency").to_pylist(), object),
            np.array([codes[name] for name in names], np.int64),
            _dates(table.column("origination_date")),
            _dates(table.column("maturity_date")),
            due_day,
            units(table.column("escrow_payment"), AMOUNT.scale),
        )


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
    rate_changes: Objects

    def __len__(self) -> int:
        return len(self.balance)

    def copy(self) -> "States":
        """The same in arrays of its own."""
        return States(*(getattr(self, name).copy() for name in STATE_SCHEMA.names))

    def row(self, at: int) -> State:
        """The state of one loan."""
        return State(**{name: _item(getattr(self, name)[at]) for name in STATE_SCHEMA.names})

    def put(self, at: int, state: State) -> None:
        """Take the state of one loan over."""
        for name in STATE_SCHEMA.names:
            getattr(self, name)[at] = getattr(state, name)

    def put_many(self, at: Integers, other: "States") -> None:
        """Take the states of the loans `at` over from another book of the same loans."""
        for name in STATE_SCHEMA.names:
            getattr(self, name)[at] = getattr(other, name)[at]

    @classmethod
    def from_table(cls, table: pa.Table) -> "States":
        """Columns of a table with those of `STATE_SCHEMA`."""
        rows = table.num_rows
        columns: dict[str, npt.NDArray[Any]] = {}
        for field in STATE_SCHEMA:
            if field.name == "rate_changes":
                columns[field.name] = _rate_changes(table)
            elif field.name not in table.column_names:
                columns[field.name] = np.zeros(rows, np.int64)
            else:
                columns[field.name] = _values(table.column(field.name), field.type)
        return cls(**columns)

    def table(self) -> pa.Table:
        """A table of `STATE_SCHEMA`."""
        return pa.table(
            [
                pa.array(list(map(_as_dicts, self.rate_changes)), field.type)
                if field.name == "rate_changes"
                else _column(getattr(self, field.name), field.type)
                for field in STATE_SCHEMA
            ],
            schema=STATE_SCHEMA,
        )


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
        """Which loan each transaction belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rows(self, loan: int) -> list[Transaction]:
        """The transactions of one loan."""
        return self.between(self.offsets[loan], self.offsets[loan + 1])

    def between(self, first: int, behind: int) -> list[Transaction]:
        """The transactions from one place up to, and without, another."""
        at = slice(first, behind)
        return [
            Transaction(
                number, self.kinds[kind], effective, posted, amount, self.currencies[currency],
                *(None if value == _NONE else value for value in optional),
            )
            for number, kind, effective, posted, amount, currency, *optional in zip(
                *(
                    getattr(self, name)[at].tolist()
                    for name in (
                        "transaction_id", "kind", "effective_date", "posted_date", "amount",
                        "currency", "reverses", "rate", "payment",
                    )
                ),
                strict=True,
            )
        ]  # fmt: skip

    @classmethod
    def from_table(cls, table: pa.Table, offsets: Integers) -> "Transactions":
        """Columns of a table with those of `TRANSACTION_SCHEMA`."""
        kind = _encoded(table.column("kind"))
        currency = _encoded(table.column("currency"))
        return cls(
            offsets,
            _integers(table.column("transaction_id")),
            kind.indices.to_numpy().astype(np.int64),
            kind.dictionary.to_pylist(),
            _dates(table.column("effective_date")),
            _dates(table.column("posted_date")),
            units(table.column("amount").fill_null(0), AMOUNT.scale),
            currency.indices.to_numpy().astype(np.int64),
            currency.dictionary.to_pylist(),
            _integers(table.column("reverses").fill_null(_NONE)),
            _optional(table.column("rate"), RATE_SCALE),
            _optional(table.column("payment"), AMOUNT.scale),
        )


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return _array(column.unify_dictionaries())


def _integers(column: pa.ChunkedArray) -> Integers:
    return _array(column).cast(pa.int64()).to_numpy()


def _dates(column: pa.ChunkedArray) -> Dates:
    return _array(column).to_numpy(zero_copy_only=False).astype("datetime64[D]")


def _optional(column: pa.ChunkedArray, scale: int) -> Integers:
    values = units(column.fill_null(0), scale)
    return np.where(_array(column.is_null()).to_numpy(zero_copy_only=False), _NONE, values)


def _values(column: pa.ChunkedArray, type_: pa.DataType) -> npt.NDArray[Any]:
    if pa.types.is_decimal(type_):
        return units(column, type_.scale)
    return _dates(column) if pa.types.is_date(type_) else _integers(column)


def _column(values: npt.NDArray[Any], type_: pa.DataType) -> pa.Array:
    return decimals(values, type_) if pa.types.is_decimal(type_) else pa.array(values, type_)


def _rate_changes(table: pa.Table) -> Objects:
    changes = np.empty(table.num_rows, object)
    changes.fill(())
    if "rate_changes" in table.column_names:
        column = table.column("rate_changes")
        for at, rows in enumerate(column.to_pylist()):
            changes[at] = tuple(
                RateChange(
                    row["effective_date"],
                    in_minor_units(row["rate"], RATE_SCALE),
                    in_minor_units(row["payment"], AMOUNT.scale),
                )
                for row in rows or ()
            )
    return changes


def _as_dicts(changes: tuple[RateChange, ...]) -> list[dict[str, Any]]:
    return [
        {
            "effective_date": change.effective_date,
            "rate": decimals(np.array([change.rate]), PERCENT)[0].as_py(),
            "payment": decimals(np.array([change.payment]), AMOUNT)[0].as_py(),
        }
        for change in changes
    ]


def _item(value: Any) -> Any:
    return value if isinstance(value, tuple) else value.item()
