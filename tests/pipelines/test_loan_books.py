"""Books from one night to the next: what was on them isn't lost, old files go on, reports agree."""

import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.loan_jobs import (
    LAST,
    close_files,
    parameters_of,
    portfolio,
    published,
    uri_of,
    write_portfolio,
)

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.investor_report import InvestorReport, InvestorReportParameters
from ledgerbeam.pipelines.loan_close_of_business import LoanCloseOfBusiness
from ledgerbeam.rules.closing.roll_forward import RollForward
from ledgerbeam.rules.loans.loan import STATE_VERSION
from ledgerbeam.rules.loans.tables import OPENING
from ledgerbeam.synthetic.loans import investor_table

NEW = ("brought_base", "ahead", "ahead_until", "fees_ahead", "version")
LOAN = """\
loan_id,currency,day_count,origination_date,maturity_date,due_day,escrow_payment,balance,payment,rate,closed_through,next_due,accrued_from,late_fees_through
HELD,USD,30/360,2025-01-01,2055-01-01,1,0.00,200000.00,1199.10,6,2026-01-31,2026-02-01,2026-01-01,2026-01-01
"""
COLUMNS = "transaction_id,loan_id,kind,effective_date,posted_date,amount,currency\n"
HELD = "1,HELD,payment,2026-02-02,2026-02-02,500.00,USD\n"
BACK_DATED = "2,HELD,payment,2026-02-03,2026-02-11,1.00,USD\n"


def close_text(folder: Path, day: int, transactions: str, loans: str = "", **others: str) -> str:
    """Close a night of February 2026; where it is published."""
    (folder / "loans.csv").write_text(LOAN)
    (folder / f"{day}.csv").write_text(COLUMNS + transactions)
    date = datetime.date(2026, 2, day)
    given = {
        "loans": loans or str(folder / "loans.csv"), "transactions": str(folder / f"{day}.csv")
    } | others  # fmt: skip
    close_files(folder, date, **given)
    return uri_of(folder, date, **given)


@pytest.mark.parametrize("partials", ["hold", "apply"])
def test_nothing_is_published_that_loses_what_was_on_the_book(
    tmp_path: Path, partials: str
) -> None:
    first = close_text(tmp_path, 10, HELD, partials=partials)
    (loan,) = read_published(first).to_table().to_pylist()
    assert loan["suspense"] + loan["instalment_paid"] == Decimal("500.00")
    held = "suspense" if partials == "hold" else "instalment_paid"
    reason = f"loan HELD: {held} is 500.00 USD on the book, and 0.00 USD by its opening and"
    with pytest.raises(UserError, match=f"nothing published: {reason} the transactions given"):
        close_text(tmp_path, 11, BACK_DATED, first, partials=partials)
    # With all transactions it is what it is.
    second = close_text(tmp_path, 11, HELD + BACK_DATED, first, partials=partials)
    (loan,) = read_published(second).to_table().to_pylist()
    assert loan["suspense"] + loan["instalment_paid"] == Decimal("501.00")


def test_a_night_that_changes_no_past_needs_no_earlier_transactions(tmp_path: Path) -> None:
    first = close_text(tmp_path, 10, HELD)
    second = close_text(tmp_path, 11, "", first)
    (loan,) = read_published(second).to_table().to_pylist()
    assert loan["suspense"] == Decimal("500.00")


class ForgetfulClose(LoanCloseOfBusiness):
    """Loses a cent of what is held."""

    def _close(self, *arguments):  # type: ignore[no-untyped-def]
        closed = super()._close(*arguments)
        closed.closed.states.suspense -= 1
        return closed


def test_a_state_that_does_not_follow_from_the_entries_is_not_published(tmp_path: Path) -> None:
    write_portfolio(tmp_path, *portfolio())
    process = ForgetfulClose(parameters_of(tmp_path))
    with pytest.raises(UserError, match=r"suspense was .* is booked, and .* is left"):
        run(process)


def test_the_first_loan_that_does_not_roll_forward_is_found() -> None:
    rolled = RollForward("suspense", *(np.array(row) for row in ([1, 2, 3], [0, 1, 0], [1, 3, 4])))
    assert rolled.first_wrong() == 2
    assert rolled._replace(after=np.array([1, 3, 3])).first_wrong() is None


def of_old_form(loans: pa.Table) -> pa.Table:
    """Loans as they were published before states had a version."""
    names = [*NEW, *(OPENING + name for name in NEW), f"{OPENING}rate_changes"]
    return loans.drop_columns([name for name in names if name in loans.column_names])


def test_files_of_the_old_form_are_read(tmp_path: Path) -> None:
    """The same loans, with and without what the old form lacks, are closed alike."""
    write_portfolio(tmp_path, *portfolio())
    start = LAST - datetime.timedelta(10)
    close_files(tmp_path, start)
    loans = read_published(uri_of(tmp_path, start)).to_table()
    # Money that is paid ahead has no place in the old form, and loans of its version may differ.
    usual = loans.filter(pa.compute.equal(loans.column("ahead"), 0))
    assert usual.num_rows > 20
    found = {}
    for form, table in (("new", usual), ("old", of_old_form(usual))):
        pq.write_table(table, tmp_path / f"{form}.parquet")
        manifest = close_files(
            tmp_path, loans=str(tmp_path / f"{form}.parquet"), output=str(tmp_path / form),
            max_rejects=10**6,
        )  # fmt: skip
        found[form] = {row["loan_id"]: row for row in published(manifest)}
    for loan, row in found["new"].items():
        old = found["old"][loan]
        assert (row["version"], row["opening_version"]) == (STATE_VERSION, STATE_VERSION)
        assert old["opening_version"] == 1
        for name in ("balance", "suspense", "fees", "accrued", "next_due", "locked"):
            assert old[name] == row[name], (loan, name)


def report(folder: Path, loans: str, output: str) -> InvestorReport:
    values = {
        "loans": loans, "transactions": str(folder / "transactions.parquet"),
        "investors": str(folder / "investors.parquet"), "business_date": datetime.date(2026, 2, 28),
        "output": str(folder / output),
    }  # fmt: skip
    return InvestorReport(InvestorReportParameters.model_validate(values))


def test_a_report_on_published_loans_is_that_of_the_loans_as_boarded(tmp_path: Path) -> None:
    loans, transactions = portfolio()
    write_portfolio(tmp_path, loans, transactions)
    pq.write_table(investor_table(), tmp_path / "investors.parquet")
    month_end = datetime.date(2026, 2, 28)
    close_files(tmp_path, month_end)
    boarded = report(tmp_path, str(tmp_path / "loans.parquet"), "boarded")
    closed = report(tmp_path, uri_of(tmp_path, month_end), "closed")
    lines = []
    for process in (boarded, closed):
        run(process)
        table = read_published(instance_uri(process)).to_table()
        lines.append(table.sort_by("loan_id").to_pylist())
    assert lines[0] == lines[1]
    # Without what came in before, it isn't the book that was closed.
    late = pa.compute.greater(transactions.column("posted_date"), pa.scalar(month_end))
    pq.write_table(transactions.filter(late), tmp_path / "transactions.parquet")
    with pytest.raises(UserError, match=r"is .* on the book, and .* by its opening"):
        run(report(tmp_path, uri_of(tmp_path, month_end), "late"))
