"""Ledger entries of many loans in columns."""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers, Objects
from ledgerbeam.rules.loans.columns import AMOUNT, BASE, as_decimals, with_places
from ledgerbeam.rules.loans.loan import AMOUNTS, BASE_SCALE, CHARGES, Entry, EntryKind

ENTRY_SCHEMA = pa.schema(
    [
        ("loan_id", pa.string()),
        ("kind", pa.string()),
        ("effective_date", pa.date32()),
        ("posted_date", pa.date32()),
        ("transaction_id", pa.int64()),
        *((name, BASE if name == "interest_base" else AMOUNT) for name in AMOUNTS),
        ("reverses", pa.string()),
        ("reason", pa.string()),
    ]
)
KINDS = tuple(EntryKind)
"""Kinds of entries by the codes that stand for them in columns."""

_CHARGES = [KINDS.index(kind) for kind in CHARGES]
_NONE = -1


@dataclass(slots=True)
class Entries:
    """Ledger entries of many loans, those of a loan together and in the order they were made.

    Attributes:
        loan: int64, which loan of the book.
        kind: code in `KINDS`; -1 in `reverses` where there is none, as in `transaction_id`.
        amounts: int64 `(entries,)` by the names of `AMOUNTS`.
    """

    loan: Integers
    kind: Integers
    effective_date: Dates
    posted_date: Dates
    transaction_id: Integers
    amounts: dict[str, Integers]
    reverses: Integers
    reason: Objects

    def __len__(self) -> int:
        return len(self.loan)

    def original_kind(self) -> Integers:
        """Code of the kind of each entry; for a reversal, of the entry that it takes back."""
        return np.where(self.reverses == _NONE, self.kind, self.reverses)

    def is_charge(self) -> Flags:
        """Which entries are about what is owed, not about money received; bool `(entries,)`."""
        return np.isin(self.original_kind(), _CHARGES)

    def take(self, at: npt.NDArray[Any]) -> "Entries":
        """The entries at these places, or where the mask is true."""
        return Entries(
            self.loan[at], self.kind[at], self.effective_date[at], self.posted_date[at],
            self.transaction_id[at], {name: values[at] for name, values in self.amounts.items()},
            self.reverses[at], self.reason[at],
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        kind: EntryKind,
        loan: Integers,
        day: datetime.date,
        amounts: dict[str, Integers],
        effective_date: Dates | None = None,
        transaction_id: Integers | None = None,
    ) -> "Entries":
        """Entries of one kind, posted on one day; amounts that aren't given are 0."""
        rows = len(loan)
        posted = np.full(rows, day, "datetime64[D]")
        return cls(
            loan,
            np.full(rows, KINDS.index(kind)),
            posted if effective_date is None else effective_date,
            posted,
            np.full(rows, _NONE) if transaction_id is None else transaction_id,
            {name: amounts.get(name, np.zeros(rows, np.int64)) for name in AMOUNTS},
            np.full(rows, _NONE),
            np.full(rows, None, object),
        )

    @classmethod
    def from_rows(cls, loans: Sequence[int], entries: Sequence[Entry]) -> "Entries":
        """Entries from those of the plain function, and the loan of each."""
        return cls(
            np.array(loans, np.int64),
            np.array([KINDS.index(each.kind) for each in entries], np.int64),
            np.array([each.effective_date for each in entries], "datetime64[D]"),
            np.array([each.posted_date for each in entries], "datetime64[D]"),
            np.array([_code(each.transaction_id) for each in entries], np.int64),
            {
                name: np.array([getattr(each, name) for each in entries], np.int64)
                for name in AMOUNTS
            },
            np.array(
                [
                    _NONE if each.reverses is None else KINDS.index(each.reverses)
                    for each in entries
                ],
                np.int64,
            ),
            np.array([each.reason for each in entries], object),
        )

    @classmethod
    def joined(cls, batches: Iterable["Entries"]) -> "Entries":
        """All entries, by loan and day; those of a day in the order of the batches."""
        whole = [*batches] or [cls.from_rows([], [])]

        def column(name: str) -> Any:
            return np.concatenate([getattr(batch, name) for batch in whole])

        amounts = {
            name: np.concatenate([batch.amounts[name] for batch in whole]) for name in AMOUNTS
        }
        joined = cls(
            column("loan"), column("kind"), column("effective_date"), column("posted_date"),
            column("transaction_id"), amounts, column("reverses"), column("reason"),
        )  # fmt: skip
        return joined.take(np.lexsort((joined.posted_date, joined.loan)))

    def table(
        self, loan_ids: pa.StringArray, places: Integers | None = None, scale: int = AMOUNT.scale
    ) -> pa.Table:
        """A table of `ENTRY_SCHEMA`.

        Args:
            loan_ids: of the book.
            places: decimals of each entry's currency; None for those of the table.
            scale: decimals of the table's amounts.
        """
        schema = with_places(ENTRY_SCHEMA, scale)
        if places is None:
            places = np.full(len(self), scale)
        names = pa.array([*map(str, KINDS)])
        return pa.table(
            [
                loan_ids.take(pa.array(self.loan)),
                names.take(pa.array(self.kind)),
                pa.array(self.effective_date),
                pa.array(self.posted_date),
                pa.array(self.transaction_id, mask=self.transaction_id == _NONE),
                *(
                    as_decimals(
                        self.amounts[name],
                        places + (BASE_SCALE if name == "interest_base" else 0),
                        schema.field(name).type,
                    )
                    for name in AMOUNTS
                ),
                names.take(pa.array(self.reverses, mask=self.reverses == _NONE)),
                pa.array(self.reason, pa.string()),
            ],
            schema=schema,
        )


def _code(number: int | None) -> int:
    return _NONE if number is None else number
