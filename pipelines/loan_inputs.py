"""The inputs that loan workloads share: loans and their transactions."""

import datetime

import pyarrow as pa

from ledgerbeam.batch.define.expect import Expect
from ledgerbeam.batch.define.keyed_process import RowInput
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.rules.loans.book import RATE_CHANGES, STATE_SCHEMA
from ledgerbeam.rules.loans.columns import AMOUNT, PERCENT
from ledgerbeam.rules.loans.loan import TransactionKind
from ledgerbeam.rules.loans.tables import LOCKED, NUMBERS, OPENING, REQUIRED_STATE
from ledgerbeam.rules.terms.day_count import DayCount

A_YEAR = Expect(max_age=datetime.timedelta(days=366))
"""Of loans and their transactions: if all are older than that, the date is mistyped, or the
files are old ones."""


def loans_input(investor: bool) -> RowInput:
    """Loans: one row per loan, as it is boarded or as the close of business has published it.

    Args:
        investor: whether the columns of the investor's part in the loan are required.
    """

    def of_investor(name: str, type_: pa.DataType, *, dictionary_encoded: bool = False) -> Column:
        return Column(
            name,
            type_,
            required=investor,
            nullable=not investor,
            dictionary_encoded=dictionary_encoded,
            currency=_currency(type_),
        )

    contract = Contract(
        (
            Column("loan_id", pa.string()),
            of_investor("investor_id", pa.string(), dictionary_encoded=True),
            of_investor("pool_id", pa.string(), dictionary_encoded=True),
            Column("currency", pa.string(), dictionary_encoded=True),
            of_investor("participation", PERCENT),
            Column("day_count", pa.string(), dictionary_encoded=True, one_of=tuple(DayCount)),
            Column("origination_date", pa.date32()),
            Column("maturity_date", pa.date32()),
            Column("due_day", pa.int64(), minimum=1),
            Column("escrow_payment", AMOUNT, currency="currency"),
            _optional("frequency", pa.string(), dictionary_encoded=True),
            _optional("second_due_day", pa.int64()),
            _optional("first_due", pa.date32()),
            _optional("method", pa.string(), dictionary_encoded=True),
            _optional("first_period", pa.string(), dictionary_encoded=True),
            _optional("round_payment_to", AMOUNT),
            of_investor("scheduled_balance", AMOUNT),
            *(
                Column(
                    name,
                    STATE_SCHEMA.field(name).type,
                    required=name in REQUIRED_STATE,
                    nullable=name not in REQUIRED_STATE,
                    currency=_currency(STATE_SCHEMA.field(name).type),
                )
                for name in NUMBERS
            ),
            _optional(RATE_CHANGES, pa.string()),
            *(_optional(OPENING + name, STATE_SCHEMA.field(name).type) for name in NUMBERS),
            _optional(OPENING + RATE_CHANGES, pa.string()),
            _optional(LOCKED, pa.string()),
        )
    )
    return RowInput(
        contract,
        order="loan_id",
        amounts=("balance",),
        currency="currency",
        ids=("loan_id",),
        dated_by="closed_through",
    )


TRANSACTIONS = RowInput(
    Contract(
        (
            Column("transaction_id", pa.int64()),
            # A loan has many of them: a text is decoded, hashed and sorted once a file.
            Column("loan_id", pa.string(), dictionary_encoded=True),
            Column("kind", pa.string(), dictionary_encoded=True, one_of=tuple(TransactionKind)),
            Column("effective_date", pa.date32()),
            Column("posted_date", pa.date32()),
            Column("amount", AMOUNT, currency="currency"),
            Column("currency", pa.string(), dictionary_encoded=True),
            Column("reverses", pa.int64(), required=False, nullable=True),
            Column("rate", PERCENT, required=False, nullable=True),
            Column("payment", AMOUNT, required=False, nullable=True, currency="currency"),
        )
    ),
    order="transaction_id",
    amounts=("amount",),
    currency="currency",
    dated_by="posted_date",
)
"""All transactions of the loans since they were boarded; see `ledgerbeam.rules.loans.loan`."""


def _optional(name: str, type_: pa.DataType, *, dictionary_encoded: bool = False) -> Column:
    return Column(
        name, type_, required=False, nullable=True, dictionary_encoded=dictionary_encoded,
        currency=_currency(type_),
    )  # fmt: skip


def _currency(type_: pa.DataType) -> str:
    """Name of the column of an amount's currency; empty if the type isn't that of an amount."""
    return "currency" if type_ == AMOUNT else ""
