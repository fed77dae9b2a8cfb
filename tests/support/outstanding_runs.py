"""Runs of `Outstanding`: their input written, their results read."""

import datetime
import random
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.processes import (
    DAY,
    LOANS,
    TRANSACTIONS,
    LoanParameters,
    Outstanding,
)
from tests.support.reading import instance_uri

from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest

DAY_BEFORE = DAY - datetime.timedelta(days=1)


Row = dict[str, Any]


def write(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    lines = [",".join(columns)] + [",".join(str(row[name]) for name in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")


LOAN_COLUMNS = [column.name for column in LOANS.columns]


TRANSACTION_COLUMNS = [column.name for column in TRANSACTIONS.columns]


def outstanding(
    folder: Path, loans: list[Row], transactions: list[Row], **others: Any
) -> Outstanding:
    """The definition, with its input written."""
    write(folder / "loans.csv", LOAN_COLUMNS, loans)
    write(folder / "transactions.csv", TRANSACTION_COLUMNS, transactions)
    return outstanding_of(folder, **others)


def outstanding_of(folder: Path, **others: Any) -> Outstanding:
    parameters = {
        "loans": str(folder / "loans.csv"),
        "transactions": str(folder / "transactions.csv"),
        "output": str(folder / "output"),
        "shards": 3,
        "max_rejects": 1000,
        "min_rows": 0,
        **others,
    }
    return Outstanding(LoanParameters.model_validate(parameters))


def results_of(manifest: Manifest) -> list[Row]:
    rows: list[Row] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["branch"], row["loan"].encode()))


def random_loans(count: int, seed: int = 7) -> tuple[list[Row], list[Row]]:
    """Loans with one or two tranches, and transactions of theirs and of others."""
    source = random.Random(seed)
    keys = [(source.randrange(3), f"L{number}") for number in range(count)]
    strangers = [(9, "L1"), (9, "GONE"), *((branch + 1, loan) for branch, loan in keys)]
    loans = [
        {
            "branch": branch,
            "loan": loan,
            "tranche": tranche,
            "principal": Decimal(source.randrange(10**7)).scaleb(-2),
            "currency": source.choice(["EUR", "INR"]),
        }
        for branch, loan in keys
        for tranche in range(source.choice([1, 1, 2]))
    ]
    transactions = [
        {
            "number": number,
            "branch": branch,
            "loan": loan,
            "booked_on": source.choice([DAY, DAY, DAY, DAY_BEFORE]),
            "amount": Decimal(source.randrange(-(10**5), 10**5)).scaleb(-2),
            "currency": source.choice(["EUR", "INR", "USD"]),
        }
        for number in range(4 * count)
        for branch, loan in [source.choice(source.choice([keys, keys, keys, strangers]))]
    ]
    source.shuffle(loans)
    return loans, transactions
