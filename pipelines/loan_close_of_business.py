"""Loan close of business: loans and what came in for them, closed through a business date.

    ledgerbeam run loan-close-of-business --loans='loans-*' --transactions='transactions-*'
        --business-date=2026-11-20 --output=results

Each loan is closed day by day from its own last closed date on; the rules are in
`ledgerbeam.rules.close_of_day`. Published are the loans in their new state, which are the next
night's `--loans`, the ledger `entries` made, and `receipts`: where the money of all transactions
is. A loan that can't be closed is locked: it stays as it was, with the reason in `locked`.
"""

import datetime
import sys
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.keyed_process import KeyedProcess, RowInput
from ledgerbeam.batch.launch import run_module
from ledgerbeam.batch.process import FailureLimit
from ledgerbeam.batch.results import Results
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.readers import POSITION
from ledgerbeam.io.records import Control, Totals
from ledgerbeam.pipelines.loan_inputs import loan_inputs
from ledgerbeam.pipelines.loan_policy import PolicyParameters
from ledgerbeam.rules.book import AMOUNT, PERCENT, STATE_SCHEMA, Transactions
from ledgerbeam.rules.close_each import close_each
from ledgerbeam.rules.close_many import close_many
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.day_count import DayCount
from ledgerbeam.rules.entries import ENTRY_SCHEMA
from ledgerbeam.rules.loan import (
    TransactionKind,
)
from ledgerbeam.rules.loan_tables import (
    LOCKED,
    NUMBERS,
    OPENING,
    RATE_CHANGES,
    REQUIRED_STATE,
    complete,
    read_states,
    read_terms,
    with_all_columns,
    write_states,
)
from ledgerbeam.rules.receipts import (
    RECEIPT_SCHEMA,
    RECEIPTS,
    currencies,
    receipts,
    rejected_transactions,
)
from ledgerbeam.transforms.totals import sums_by_currency

LOANS = Contract(
    (
        Column("loan_id", pa.string()),
        Column("investor_id", pa.string(), required=False, nullable=True, few_values=True),
        Column("pool_id", pa.string(), required=False, nullable=True, few_values=True),
        Column("currency", pa.string(), few_values=True),
        Column("participation", PERCENT, required=False, nullable=True),
        Column("day_count", pa.string(), few_values=True, one_of=tuple(DayCount)),
        Column("origination_date", pa.date32()),
        Column("maturity_date", pa.date32()),
        Column("due_day", pa.int64(), minimum=1),
        Column("escrow_payment", AMOUNT),
        Column("scheduled_balance", AMOUNT, required=False, nullable=True),
        *(
            Column(
                name,
                STATE_SCHEMA.field(name).type,
                required=name in REQUIRED_STATE,
                nullable=name not in REQUIRED_STATE,
            )
            for name in NUMBERS
        ),
        Column(RATE_CHANGES, pa.string(), required=False, nullable=True),
        *(
            Column(OPENING + name, STATE_SCHEMA.field(name).type, required=False, nullable=True)
            for name in NUMBERS
        ),
        Column(LOCKED, pa.string(), required=False, nullable=True),
    )
)
"""Loans: a row a loan, as it is boarded or as it was published the night before."""

TRANSACTIONS = Contract(
    (
        Column("transaction_id", pa.int64()),
        Column("loan_id", pa.string()),
        Column("kind", pa.string(), few_values=True, one_of=tuple(TransactionKind)),
        Column("effective_date", pa.date32()),
        Column("posted_date", pa.date32()),
        Column("amount", AMOUNT),
        Column("currency", pa.string(), few_values=True),
        Column("reverses", pa.int64(), required=False, nullable=True),
        Column("rate", PERCENT, required=False, nullable=True),
        Column("payment", AMOUNT, required=False, nullable=True),
    )
)
"""All that came in for the loans since they were boarded."""

ENTRIES = pa.schema(
    [*ENTRY_SCHEMA, pa.field("currency", pa.string()), pa.field(POSITION, pa.uint64())]
)


class Rule(StrEnum):
    """Which form of the rules runs; both give the same result."""

    VECTORISED = "vectorised"
    PER_LOAN = "per-loan"


class CloseParameters(PolicyParameters):
    """Parameters of the close of business."""

    loans: str = Field(
        description="URI or glob of the loans, or a published close of business: its loans"
    )
    transactions: str = Field(
        description="URI or glob of all transactions since the loans were boarded"
    )
    transactions_columns: str = Field(default="", description="as --columns, of the transactions")
    business_date: datetime.date = Field(description="the day to close the loans through")
    max_locked: str = Field(
        default="100%",
        description="publish in spite of so many locked loans: a count, or a share such as 0.5%",
    )
    rule: Rule = Field(
        default=Rule.VECTORISED,
        description="vectorised or per-loan: the same rules over whole tables, or as plain Python "
        "for one loan at a time",
    )


class LoanCloseOfBusiness(KeyedProcess[CloseParameters]):
    """The definition of the loans' close of business."""

    name = "loan-close-of-business"
    parameters_type = CloseParameters
    key = ("loan_id",)
    tables = ("entries", "receipts")
    failure_event = "stayed_locked"

    def __init__(self, parameters: CloseParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            UserError: a parameter can't be meant.
        """
        super().__init__(parameters)
        self.failure_limit = _limit(parameters.max_locked)
        self.policy = parameters.policy()

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans, and what came in for them."""
        return loan_inputs(LOANS, TRANSACTIONS, positions=True)

    def execute_components(self, components: Components) -> Results:
        """Close loans."""
        loans = _in_order(complete(components.table))
        related = components.related["transactions"]
        offsets = np.append(related.starts, related.table.num_rows)
        transactions = Transactions.from_table(with_all_columns(related.table), offsets)
        positions = related.column(POSITION)
        terms = read_terms(loans)
        opening, before = read_states(loans)
        rule = close_many if self.parameters.rule is Rule.VECTORISED else close_each
        date, policy = self.business_date, self.policy
        closed = rule(terms, opening, before, transactions, date, policy)
        entries = closed.entries.table(terms.loan_id)
        codes = currencies(terms, transactions, closed.entries)
        rejected = positions.take(rejected_transactions(transactions, closed.entries))
        found = receipts(
            terms, opening, before, closed.states, transactions, closed.entries, policy
        )
        return Results(
            write_states(loans, closed.states),
            {
                "entries": entries.append_column("currency", codes).append_column(
                    POSITION, rejected
                ),
                "receipts": found,
            },
        )

    def results_of_failed(self, components: Components, errors: Sequence[str]) -> Results:
        """Locked loans, in the state that they were in."""
        loans = _in_order(complete(components.table))
        at = loans.column_names.index(LOCKED)
        loans = loans.set_column(at, LOCKED, pa.array(errors, pa.string()))
        nothing = {"entries": ENTRIES.empty_table(), "receipts": RECEIPT_SCHEMA.empty_table()}
        return Results(loans, nothing)

    def result_totals(self, results: Components) -> Totals:
        """Balances, entries and receipts by currency; locked loans by themselves."""
        is_closed = results.table.column(LOCKED).is_null()
        closed = results.table.filter(is_closed)
        entries, found = results.related["entries"].table, results.related["receipts"].table
        totals: Totals = {"entries": entries.num_rows, "locked": len(results.starts)}
        totals["locked"] -= closed.num_rows
        totals |= _renamed(sums_by_currency(closed, "balance", "currency"), "ending_")
        for name in ("principal", "curtailment"):
            totals |= _renamed(sums_by_currency(entries, name, "currency"), "entries_")
        for name in RECEIPTS:
            totals |= _renamed(sums_by_currency(found, name, "currency"), "receipts_")
        return totals

    def controls(self, totals: Totals) -> list[Control]:
        """Per currency: beginning + changes = ending; sent in = applied + suspense + rejected."""

        def codes(start: str) -> list[str]:
            return sorted(n.removeprefix(start) for n in totals if n.startswith(start))

        balances = [
            Control(
                name=f"{code}: beginning balance - principal = ending balance",
                expected=totals.get(f"balance_{code}", 0)
                - totals.get(f"entries_principal_{code}", 0)
                - totals.get(f"entries_curtailment_{code}", 0),
                actual=totals.get(f"ending_balance_{code}", 0),
            )
            for code in sorted({*codes("balance_"), *codes("ending_balance_")})
        ]
        money = [
            Control(
                name=f"{code}: transactions in = applied + suspense + rejected + earlier + open",
                expected=totals.get(f"transactions_amount_{code}", 0),
                actual=sum(totals.get(f"receipts_{name}_{code}", 0) for name in RECEIPTS[1:]),
            )
            for code in sorted({*codes("transactions_amount_"), *codes("receipts_applied_")})
        ]
        return [*balances, *money]


PROCESS = LoanCloseOfBusiness
"""What `ledgerbeam` runs and verifies under this module's name."""


def _limit(text: str) -> int | str:
    limit = int(text) if text.isdecimal() else text
    try:
        FailureLimit(limit)
    except ValueError as error:
        raise UserError(f"max_locked={text}: {error}") from error
    return limit


def _in_order(loans: pa.Table) -> pa.Table:
    """The columns in the contract's order, whatever the source's, and others behind them."""
    known = [c.name for c in LOANS.columns if c.name in loans.column_names]
    return loans.select([*known, *(name for name in loans.column_names if name not in known)])


def _renamed(totals: Totals, start: str) -> Totals:
    return {start + name: value for name, value in totals.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the workload from the command line; returns the exit status."""
    return run_module(LoanCloseOfBusiness, __doc__ or "", arguments)


if __name__ == "__main__":
    # Not from here: what is pickled to workers must live in an importable module.
    from ledgerbeam.pipelines.loan_close_of_business import main as importable_main

    sys.exit(importable_main())
