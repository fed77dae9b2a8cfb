"""Roll-forward of a book: what was on it, and what is booked, is what is on it now.

For every loan, and so in total: of the balance, what is held in suspense and in escrow, fees, and
interest that is accrued and not paid. Whatever a night leaves out or does twice shows here.
"""

from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Integers
from ledgerbeam.rules.loans.book import States
from ledgerbeam.rules.loans.entries import KINDS, Entries
from ledgerbeam.rules.loans.loan import EntryKind

_ACCRUAL, _LATE_FEE = KINDS.index(EntryKind.ACCRUAL), KINDS.index(EntryKind.LATE_FEE)


class RollForward(NamedTuple):
    """A field of the state over a run, int64 `(loans,)` each, in minor units.

    Attributes:
        field: of `State`.
        before: as the loans were last closed.
        booked: what the entries change it by.
        after: as they are closed now.
    """

    field: str
    before: Integers
    booked: Integers
    after: Integers

    def first_wrong(self) -> int | None:
        """The first loan for which it doesn't hold; None if it holds for all."""
        is_wrong = self.before + self.booked != self.after
        return int(np.argmax(is_wrong)) if is_wrong.any() else None


def roll_forwards(before: States, entries: Entries, after: States) -> list[RollForward]:
    """The roll-forward of every field that entries account for.

    Args:
        before: the loans' states as they were last closed.
        entries: made since.
        after: their states now.
    """
    amounts = entries.amounts
    kind = entries.original_kind()
    charged = amounts["amount"]
    changes = {
        "balance": -amounts["principal"] - amounts["curtailment"],
        "suspense": amounts["suspense"],
        "escrow": amounts["escrow"],
        "fees": np.where(kind == _LATE_FEE, charged, 0) - amounts["fees"],
        "accrued": np.where(kind == _ACCRUAL, charged, 0) - amounts["interest"],
    }
    result = []
    for field, change in changes.items():
        booked = np.zeros(len(before), np.int64)
        np.add.at(booked, entries.loan, change)
        result.append(RollForward(field, getattr(before, field), booked, getattr(after, field)))
    return result
