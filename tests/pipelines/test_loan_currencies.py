"""Loans in yen, dinars and dollars: each currency's own decimals, from the close to the report."""

from decimal import Decimal
from pathlib import Path

import pytest
from tests.support.command import ledgerbeam

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.investor_report import InvestorReport, InvestorReportParameters
from ledgerbeam.pipelines.loan_close_of_business import CloseParameters, LoanCloseOfBusiness

LOANS = """\
loan_id,investor_id,pool_id,currency,participation,day_count,origination_date,maturity_date,due_day,escrow_payment,closed_through,balance,scheduled_balance,rate,payment,next_due,accrued_from,late_fees_through
Y,AA,PY,JPY,100,30/360,2020-01-01,2050-05-01,1,0,2026-10-31,1234567,1234567,3,5205,2026-11-01,2026-10-01,2026-10-01
K,SS,PK,KWD,100,30/360,2020-01-01,2050-05-01,1,0,2026-10-31,10000.125,10000.125,4,60.500,2026-11-01,2026-10-01,2026-10-01
D,SA,PD,USD,100,30/360,2020-01-01,2050-05-01,1,0,2026-10-31,200000.00,200000.00,6,1199.10,2026-11-01,2026-10-01,2026-10-01
"""
TRANSACTIONS = """\
transaction_id,loan_id,kind,effective_date,posted_date,amount,currency
1,Y,payment,2026-11-01,2026-11-01,5205,JPY
2,K,payment,2026-11-01,2026-11-01,60.500,KWD
3,D,payment,2026-11-01,2026-11-01,1199.10,USD
4,D,payment,2026-11-02,2026-11-02,3.125,KWD
"""
INVESTORS = """\
investor_id,name,remittance_type,servicing_fee,guaranty_fee
AA,Actual,A/A,0.25,0
SA,Interest,S/A,0.25,0
SS,Scheduled,S/S,0.25,0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loans.csv").write_text(LOANS)
    (tmp_path / "transactions.csv").write_text(TRANSACTIONS)
    (tmp_path / "investors.csv").write_text(INVESTORS)
    return tmp_path


def close(folder: Path, **others: object) -> LoanCloseOfBusiness:
    values = {
        "loans": str(folder / "loans.csv"), "transactions": str(folder / "transactions.csv"),
        "business_date": "2026-11-30", "output": str(folder / "results"), "decimals": 3,
    }  # fmt: skip
    return LoanCloseOfBusiness(CloseParameters.model_validate(values | others))


def report(folder: Path, **others: object) -> InvestorReport:
    values = {
        "loans": str(folder / "loans.csv"), "transactions": str(folder / "transactions.csv"),
        "investors": str(folder / "investors.csv"), "business_date": "2026-11-30",
        "output": str(folder / "results"), "decimals": 3,
    }  # fmt: skip
    return InvestorReport(InvestorReportParameters.model_validate(values | others))


def by_loan(uri: str, table: str | None, *columns: str) -> dict[str, list[str]]:
    rows = read_published(uri, table).to_table(columns=["loan_id", *columns]).to_pylist()
    return {row["loan_id"]: [str(row[name]) for name in columns] for row in rows}


def test_each_loan_is_closed_in_its_own_decimals(folder: Path) -> None:
    process = close(folder)
    run(process)
    uri = instance_uri(process)
    # 1,234,567 * 3% / 12 = 3,086.4 yen; 10,000.125 * 4% / 12 = 33.33375 dinars.
    paid = {
        row["loan_id"]: (row["interest"], row["principal"])
        for row in read_published(uri, "entries").to_table().to_pylist()
        if row["kind"] == "payment"
    }
    assert paid == {
        "Y": (Decimal(3086), Decimal(2119)),
        "K": (Decimal("33.334"), Decimal("27.166")),
        "D": (Decimal("1000.00"), Decimal("199.10")),
    }
    assert by_loan(uri, None, "balance") == {
        "Y": ["1232448.000"], "K": ["9972.959"], "D": ["199800.900"],
    }  # fmt: skip
    # Money in another currency than the loan's is rejected, in its own decimals.
    found = read_published(uri, "receipts").to_table().to_pylist()
    assert [(r["currency"], r["rejected"]) for r in found if r["rejected"]] == [
        ("KWD", Decimal("3.125"))
    ]
    assert all(control.balances for control in verify(uri, process))


def test_the_report_has_them_too(folder: Path) -> None:
    process = report(folder)
    run(process)
    uri = instance_uri(process)
    assert by_loan(uri, None, "interest", "servicing_fee", "principal", "ending_balance") == {
        # 1,234,567 / 12 at 2.75% = 2,829.2.
        "Y": ["2829.000", "257.000", "2119.000", "1232448.000"],
        # 10,000.125 / 12 at 3.75% = 31.2504; of 33.334 the rest is the servicer's.
        "K": ["31.250", "2.084", "27.166", "9972.959"],
        "D": ["958.330", "41.670", "199.100", "199800.900"],
    }
    assert all(control.balances for control in verify(uri, process))
    totals = read_published(uri).to_table()
    assert totals.schema.field("interest").type.scale == 3


def test_money_is_shown_as_money(folder: Path) -> None:
    printed = ledgerbeam(
        "run", "loan-close-of-business", "--loans=loans.csv", "--transactions=transactions.csv",
        "--business-date=2026-11-30", "--output=results", "--decimals=3", folder=folder,
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "ending balance 1,232,448 JPY" in lines
    assert "ending balance 9,972.959 KWD" in lines
    assert "ending balance 199,800.90 USD" in lines


def test_files_of_one_currency_have_its_decimals(folder: Path) -> None:
    yen = LOANS.splitlines()[:2]
    (folder / "loans.csv").write_text("\n".join(yen) + "\n")
    (folder / "transactions.csv").write_text("\n".join(TRANSACTIONS.splitlines()[:2]) + "\n")
    process = close(folder, decimals=0)
    run(process)
    assert by_loan(instance_uri(process), None, "balance") == {"Y": ["1232448"]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("1234567,1234567", "1234567.5,1234567"), "balance 1234567.500 has more than the 0 dec"),
        (("60.500", "60.5005"), "payment '60.5005' has more than 3 decimals"),
        (("KWD", "KWX"), "currency KWX is not in the list of ISO 4217"),
        (
            (",0,2026-10-31,200000.00", ",0.125,2026-10-31,200000.00"),
            "escrow_payment 0.125 has more",
        ),
    ],
)
def test_more_decimals_than_the_currency_has_are_refused(
    folder: Path, row: tuple[str, str], reason: str
) -> None:
    assert row[0] in LOANS
    (folder / "loans.csv").write_text(LOANS.replace(*row))
    for process in (close(folder), report(folder)):
        with pytest.raises(UserError, match=r"loans\.csv row \d \(.*") as error:
            run(process)
        assert reason in str(error.value)
