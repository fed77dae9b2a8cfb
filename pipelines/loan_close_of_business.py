"""Loan close of business: loans and what came in for them, closed through a business date.

    ledgerbeam run loan-close-of-business --loans='loans-*' --transactions='transactions-*'
        --business-date=2026-11-20 --output=results

Each loan is closed day by day from its own last closed date on; the rules are in
`ledgerbeam.rules.closing.close`. Published are the loans in their new state, which are the next
night's `--loans`, the ledger `entries` made, and `receipts`: where the money of all transactions
is. A loan that can't be closed is locked: it stays as it was, with the reason in `locked`.
"""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import KeyedProcess, RowInput
from ledgerbeam.batch.define.process import FailureLimit
from ledgerbeam.batch.define.results import Results
from ledgerbeam.io.commit.records import Control, Totals
from ledgerbeam.io.datasets.readers import ROW_LOCATION
from ledgerbeam.io.errors import ControlTotalMismatchError, ParameterError
from ledgerbeam.pipelines.loan_inputs import A_YEAR, TRANSACTIONS, loans_input
from ledgerbeam.pipelines.loan_policy import PolicyParameters
from ledgerbeam.rules.closing.close import BookMismatchError
from ledgerbeam.rules.closing.close_book import ClosedBook, close_book
from ledgerbeam.rules.closing.close_each import close_each
from ledgerbeam.rules.closing.close_many import ClosedMany, close_many
from ledgerbeam.rules.closing.receipts import (
    RECEIPT_SCHEMA,
    RECEIPTS,
)
from ledgerbeam.rules.closing.roll_forward import roll_forwards
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.currency import format_money
from ledgerbeam.rules.loans.columns import with_places
from ledgerbeam.rules.loans.entries import ENTRY_SCHEMA
from ledgerbeam.rules.loans.loan import STATE_VERSION, EntryKind
from ledgerbeam.rules.loans.read_book import Book, read_book
from ledgerbeam.rules.loans.tables import (
    LOCKED,
    with_state_columns,
)
from ledgerbeam.transforms.columnar.totals import sums_by_currency

LOANS = loans_input(investor=False)
"""Loans: one row per loan, as it is boarded or as it was published the night before."""

ENTRIES = pa.schema(
    [*ENTRY_SCHEMA, pa.field("currency", pa.string()), pa.field(ROW_LOCATION, pa.uint64())]
)


class Rule(StrEnum):
    """Which form of the rules runs; both give the same result."""

    VECTORISED = "vectorised"
    PER_LOAN = "per-loan"


class CloseParameters(PolicyParameters):
    """Parameters of the close of business."""

    loans: Annotated[str, LOANS] = Field(
        description="URI or glob of the loans, or a published close of business: its loans"
    )
    transactions: Annotated[str, replace(TRANSACTIONS, row_locations=True)] = Field(
        description="URI or glob of all transactions since the loans were boarded"
    )
    transactions_columns: str = Field(default="", description="as --columns, of the transactions")
    transactions_profile: str = Field(default="", description="as --profile, of the transactions")
    transactions_constants: str = Field(
        default="", description="as --constants, of the transactions"
    )
    transactions_values: str = Field(default="", description="as --values, of the transactions")
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
    key = ("loan_id",)
    tables = ("entries", "receipts")
    failure_event = "stayed_locked"
    expect = A_YEAR

    def __init__(self, parameters: CloseParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            UserError: a parameter has an invalid value.
        """
        super().__init__(parameters)
        self.failure_limit = _limit(parameters.max_locked)
        self.policy = parameters.policy()

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans and their transactions, with the requested number of decimals in amounts."""
        return self.parameters.with_decimals(super().inputs)

    def execute_components(self, components: Components) -> Results:
        """Close loans."""
        positions = components.related["transactions"].column(ROW_LOCATION)
        loans = _in_order(with_state_columns(components.table))
        calendar = self.parameters.business_days(self.lookup_tables)
        book = read_book(loans, components.related["transactions"], calendar)
        closed = self._close(loans, book)
        _check_roll_forward(book, closed.closed)
        entries = closed.entries.append_column(ROW_LOCATION, positions.take(closed.rejected))
        return Results(closed.loans, {"entries": entries, "receipts": closed.receipts})

    def _close(self, loans: pa.Table, book: Book) -> ClosedBook:
        rule = close_many if self.parameters.rule is Rule.VECTORISED else close_each
        try:
            return close_book(loans, book, self.business_date, self.policy, rule)
        except BookMismatchError as error:
            at = book.terms.loan_id.index(error.loan_id).as_py()
            if book.opening.version[at] < STATE_VERSION:
                # Rules have changed since: the loan is locked, and the others close.
                raise
            raise ControlTotalMismatchError(
                f"nothing published: {error}: give all transactions since the loans were boarded",
                name=error.field,
                expected=str(error.computed),
                actual=str(error.on_book),
            ) from error

    def results_of_failed(self, components: Components, errors: Sequence[str]) -> Results:
        """Locked loans, in the state that they were in."""
        loans = _in_order(with_state_columns(components.table))
        at = loans.column_names.index(LOCKED)
        loans = loans.set_column(at, LOCKED, pa.array(errors, pa.string()))
        schemas = {"entries": ENTRIES, "receipts": RECEIPT_SCHEMA}
        nothing = {
            name: with_places(schema, self.parameters.decimals).empty_table()
            for name, schema in schemas.items()
        }
        return Results(loans, nothing)

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Suspense and accrued interest before and after, and the changes by the entries."""
        before, after = with_state_columns(executed.table), results.table
        entries = results.related["entries"].table
        totals: Totals = {}
        for field in ("suspense", "accrued"):
            totals |= _renamed(sums_by_currency(before, field, "currency"), "opening_")
            totals |= _renamed(sums_by_currency(after, field, "currency"), "ending_")
        kind = pc.coalesce(entries.column("reverses"), entries.column("kind"))
        accruals = entries.filter(pc.equal(kind, EntryKind.ACCRUAL))
        accrued = sums_by_currency(accruals, "amount", "currency")
        totals |= {name.replace("amount", "entries_accrual"): v for name, v in accrued.items()}
        for name in ("suspense", "interest"):
            totals |= _renamed(sums_by_currency(entries, name, "currency"), "entries_")
        return totals

    def result_totals(self, results: Components) -> Totals:
        """Balances, entries and receipts by currency; the numbers of entries and locked loans."""
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
        changes = {
            "suspense": ("entries_suspense", ""),
            "accrued": ("entries_accrual", "entries_interest"),
        }
        states = [
            Control(
                name=f"{code}: beginning {field} + entries = ending {field}",
                expected=totals.get(f"opening_{field}_{code}", 0)
                + totals.get(f"{plus}_{code}", 0)
                - totals.get(f"{minus}_{code}", 0),
                actual=totals.get(f"ending_{field}_{code}", 0),
            )
            for field, (plus, minus) in changes.items()
            for code in sorted({*codes(f"opening_{field}_"), *codes(f"ending_{field}_")})
        ]
        return [*balances, *money, *states]


def _check_roll_forward(book: Book, closed: ClosedMany) -> None:
    """Check each loan: its state before and the entries must give its state after.

    Raises:
        ControlTotalMismatchError: they don't for some loan.
    """
    assert book.on_book is not None
    for rolled in roll_forwards(book.on_book, closed.entries, closed.states):
        at = rolled.first_wrong()
        if at is None:
            continue
        amounts = (rolled.before, rolled.booked, rolled.after, rolled.before + rolled.booked)
        was, booked, is_now, expected = (
            format_money(int(values[at]), book.terms.currency[at]) for values in amounts
        )
        raise ControlTotalMismatchError(
            f"nothing published: loan {book.terms.loan_id[at]}: {rolled.field} was {was}, "
            f"{booked} is booked, and {is_now} is left: give all transactions since the loans "
            "were boarded",
            name=rolled.field,
            expected=expected,
            actual=is_now,
        )


def _limit(text: str) -> int | str:
    limit = int(text) if text.isdecimal() else text
    try:
        FailureLimit(limit)
    except ValueError as error:
        raise ParameterError(
            f"max_locked={text}: {error}", parameter="--max-locked", value=text
        ) from error
    return limit


def _in_order(loans: pa.Table) -> pa.Table:
    """The columns in the contract's order, whatever the source's order, and then the others."""
    known = [c.name for c in LOANS.contract.columns if c.name in loans.column_names]
    return loans.select([*known, *(name for name in loans.column_names if name not in known)])


def _renamed(totals: Totals, start: str) -> Totals:
    return {start + name: value for name, value in totals.items()}


if __name__ == "__main__":
    sys.exit(main(LoanCloseOfBusiness))
