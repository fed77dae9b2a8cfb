"""Repayment schedules from files to published parts, held against the plain rule loan by loan."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.repayment_schedules import (
    LOANS,
    RepaymentSchedules,
    ScheduleParameters,
)
from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.money import Rounding
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.repayment import FirstPeriod

DAY = date(2026, 11, 20)
US, FOLLOWING = business_calendar("US", 1777, 2100), BusinessDayConvention.FOLLOWING
SMALL = Loan(
    "L1", "USD", Decimal("100.00"), Decimal(12), "30/360", date(2024, 1, 1), "P1M", 6, "level"
)
MORTGAGE = SMALL._replace(
    loan_id="L2", principal=Decimal("187500.00"), annual_rate_percent=Decimal("3.50"), term=360
)


def write(path: Path, loans: Sequence[Loan]) -> str:
    rows = [loan._asdict() for loan in loans]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, Loan._fields)
            writer.writeheader()
            writer.writerows(rows)
    else:
        schema = pa.schema([(column.name, column.type) for column in LOANS.columns])
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return str(path)


def process(loans: str, output: Path, **others: Any) -> RepaymentSchedules:
    values = {"loans": loans, "business_date": DAY, "output": str(output), **others}
    return RepaymentSchedules(ScheduleParameters.model_validate(values))


def schedules_of(manifest: Manifest) -> dict[str, list[ScheduledInstalment]]:
    rows = read_published(instance_uri(manifest)).to_table().to_pylist()
    found: dict[str, list[ScheduledInstalment]] = {}
    for row in rows:
        found.setdefault(row.pop("loan_id"), []).append(ScheduledInstalment(**row))
    return found


def rejects_of(uri: str) -> list[dict[str, Any]]:
    paths = sorted(Path(uri).glob("attempt-*/rejects-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_worked_examples(tmp_path: Path, kind: str) -> None:
    loans = write(tmp_path / f"loans.{kind}", [MORTGAGE, SMALL])
    definition = process(loans, tmp_path / "out")
    manifest = run(definition)
    uri = instance_uri(manifest)
    table = read_published(uri).to_table()
    amount = pa.decimal128(18, 2)
    assert table.schema.names == [
        "loan_id", "number", "due_date", "principal", "interest", "payment", "balance",
    ]  # fmt: skip
    assert {table.schema.field(name).type for name in table.schema.names[3:]} == {amount}
    found = schedules_of(manifest)
    assert [str(each.payment) for each in found["L1"]] == ["17.25"] * 5 + ["17.28"]
    interest = [str(each.interest) for each in found["L1"]]
    assert interest == ["1.00", "0.84", "0.67", "0.51", "0.34", "0.17"]
    assert {str(each.payment) for each in found["L2"][:-1]} == {"841.96"}
    assert len(found["L2"]) == 360
    assert manifest.totals["principal_USD"] == 187_600_00
    assert manifest.totals["instalment_principal_USD"] == 187_600_00
    names = [control.name for control in verify(uri, definition)]
    assert "principal of instalments = principal of loans, USD" in names


loans_of_any_kind = st.builds(
    Loan,
    loan_id=st.text("aé1\U0001f600", min_size=1),
    currency=st.sampled_from(["USD", "EUR", "JPY", "KWD", "usd"]),
    principal=st.decimals(-1, 10**9, places=2),
    annual_rate_percent=st.decimals(0, 40, places=3),
    day_count=st.sampled_from([*DayCount, "ACT/366"]),
    disbursed_on=st.dates(date(1990, 1, 1), date(2040, 1, 1)),
    frequency=st.sampled_from(["P1M", "P2W", "P3M", "P1Y", "P0.5M", "quarterly", "1M"]),
    term=st.integers(0, 40),
    method=st.sampled_from(["level", "equal_principal", "interest_only:3", "bullet"]),
    first_due=st.none() | st.dates(date(1990, 1, 1), date(2041, 1, 1)),
    second_due_day=st.none() | st.integers(0, 31),
    first_period=st.none() | st.sampled_from([*FirstPeriod, "later"]),
    payment=st.none() | st.decimals(0, 10**7, places=2),
    round_payment_to=st.none() | st.sampled_from([Decimal(0), Decimal("0.05"), Decimal(10)]),
)


def grows(loan: Loan) -> bool:
    """Whether it is a failed component, and not a rejected row."""
    try:
        schedule(loan, Rounding.HALF_EVEN, US, FOLLOWING)
    except ValueError as error:
        return "negative amortisation" in str(error)
    return False


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(loans=st.lists(loans_of_any_kind, max_size=12))
def test_any_loans_give_what_plain_python_gives(
    tmp_path_factory: pytest.TempPathFactory, loans: list[Loan]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    loans = [loan for loan in loans if not grows(loan)]
    expected: dict[str, list[ScheduledInstalment]] = {}
    refused = 0
    # A currency that ISO 4217 doesn't list is found when a row is read, twins are found later.
    read = [loan for loan in loans if loan.currency.isupper()]
    for loan in loans:
        try:
            twins = sum(other.loan_id == loan.loan_id for other in read)
            if twins > 1 or (loan.currency == "KWD"):
                raise ValueError("refused")
            expected[loan.loan_id] = schedule(loan, Rounding.HALF_EVEN, US, FOLLOWING)
        except ValueError:
            refused += 1
    definition = process(
        write(folder / "loans.csv", loans), folder / "out", max_rejects=99, shards=3, min_rows=0,
        calendar="US", due_dates="following",
    )  # fmt: skip
    manifest = run(definition)
    assert schedules_of(manifest) == expected
    assert manifest.counts["rejected"] == refused
    verify(instance_uri(manifest), definition)


def test_what_is_wrong_with_a_loan_is_said_by_file_and_row(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "principal": Decimal("100.005"),
        "day_count": "ACT/366",
        "frequency": "daily",
        "method": "interest_only:6",
        "currency": "dollar",
        "term": 0,
        "annual_rate_percent": Decimal(-1),
    }
    loans = [MORTGAGE]
    loans += [SMALL._replace(loan_id=f"W{n}", **{k: v}) for n, (k, v) in enumerate(wrong.items())]
    loans += [SMALL, SMALL]
    file = write(tmp_path / "loans.csv", loans)
    with pytest.raises(UserError, match=r"nothing published: 9 rows rejected"):
        run(process(file, tmp_path / "out"))
    manifest = run(process(file, tmp_path / "out", max_rejects=9))
    assert list(schedules_of(manifest)) == ["L2"]
    reasons = {row["row"]: row["reason"] for row in rejects_of(instance_uri(manifest))}
    assert reasons == {
        3: "principal '100.005' has more than 2 decimals",
        4: f"day_count 'ACT/366' is not one of {', '.join(DayCount)}",
        5: "frequency 'daily' is not a duration such as P1M or P2W, P0.5M for twice a month, or "
        "one of weekly, biweekly, semimonthly, monthly, quarterly, semiannual, annual",
        6: "method interest_only:6 leaves no instalment of a term of 6 to repay principal",
        7: "currency 'dollar' is not three capital letters, such as USD",
        8: "term 0 is below 1",
        9: "annual_rate_percent -1.000000 is not from 0 to 1000",
        10: "loan_id L1 comes 2 times: loans.csv row 10, loans.csv row 11",
        11: "loan_id L1 comes 2 times: loans.csv row 10, loans.csv row 11",
    }


def test_contradictions_are_said_by_row(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"first_due": date(2024, 1, 1)},
        {"second_due_day": 15},
        {"payment": Decimal("17.50"), "round_payment_to": Decimal(1)},
        {"day_count": "BUS/252"},
    ]
    loans = [SMALL._replace(loan_id=f"W{n}", **change) for n, change in enumerate(changes)]
    manifest = run(
        process(write(tmp_path / "l.csv", loans), tmp_path / "out", max_rejects=4, min_rows=0)
    )
    assert {row["row"]: row["reason"] for row in rejects_of(instance_uri(manifest))} == {
        2: "first_due 2024-01-01 is not after disbursed_on 2024-01-01",
        3: "second_due_day 15 needs a frequency of P0.5M, not P1M",
        4: "payment 17.50 is no multiple of round_payment_to 1.00",
        5: "day_count BUS/252 needs a calendar of business days: name it by --calendar",
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_further_terms(tmp_path: Path, kind: str) -> None:
    loans = [
        SMALL._replace(loan_id="A", first_due=date(2024, 2, 15), first_period="upfront"),
        SMALL._replace(loan_id="B", payment=Decimal("20.00"), day_count="ACT/ACT ICMA"),
        SMALL._replace(
            loan_id="C", frequency="P0.5M", second_due_day=15, round_payment_to=Decimal(1)
        ),
        SMALL._replace(loan_id="D", day_count="BUS/252"),
    ]
    file = write(tmp_path / f"loans.{kind}", loans)
    definition = process(file, tmp_path / "out", calendar="US", due_dates="modifiedfollowing")
    manifest = run(definition)
    names = read_published(instance_uri(manifest)).to_table().schema.names
    assert names[-2:] == ["balance", "unadjusted_due_date"]
    convention = BusinessDayConvention.MODIFIED_FOLLOWING
    assert schedules_of(manifest) == {
        loan.loan_id: schedule(loan, Rounding.HALF_EVEN, US, convention) for loan in loans
    }
    assert manifest.totals["instalment_principal_USD"] == 4 * 100_00
    verify(instance_uri(manifest), definition)


def test_files_with_and_without_the_optional_columns(tmp_path: Path) -> None:
    header = ",".join(Loan._fields[:9])
    line = "USD,100.00,12,30/360,2024-01-01,P1M,6,level"
    (tmp_path / "old.csv").write_text(f"{header}\nL1,{line}\n")
    (tmp_path / "new.csv").write_text(f"{header},first_due,first_period\nL2,{line},,\n")
    manifest = run(process(f"{tmp_path}/old.csv", tmp_path / "out"))
    assert schedules_of(manifest)["L1"] == schedule(SMALL)
    manifest = run(process(f"{tmp_path}/new.csv", tmp_path / "other"))
    assert schedules_of(manifest)["L2"] == schedule(SMALL)


def test_calendars_are_named_right(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--due-dates=following needs a calendar"):
        process("loans.csv", tmp_path, due_dates="following")
    with pytest.raises(UserError, match=r"^--calendar=XX: no calendar of business days 'XX'"):
        process("loans.csv", tmp_path, calendar="XX")


def test_years_that_the_calendar_does_not_know(tmp_path: Path) -> None:
    late = SMALL._replace(disbursed_on=date(2100, 9, 1))
    file = write(tmp_path / "loans.csv", [late])
    reason = "the calendar XFED knows 1999-01-01 to 2100-12-31, which must hold 2100-09-01 to 2101-"
    with pytest.raises(UserError, match=reason):
        run(process(file, tmp_path / "out", calendar="XFED", due_dates="preceding"))
    # Without moving dates, the calendar is only asked for BUS/252.
    run(process(file, tmp_path / "out", calendar="XFED"))


def test_floats_are_refused(tmp_path: Path) -> None:
    row = SMALL._asdict() | {"principal": 100.0, "annual_rate_percent": "12"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "loans.parquet")
    with pytest.raises(UserError, match="principal is double: floats are refused"):
        run(process(str(tmp_path / "loans.parquet"), tmp_path / "out"))


def test_a_loan_that_would_grow_fails_and_names_itself(tmp_path: Path) -> None:
    growing = SMALL._replace(
        loan_id="G", principal=Decimal("1000.00"), annual_rate_percent=Decimal(30),
        day_count="ACT/360", disbursed_on=date(2024, 2, 1), frequency="P1M", term=1200,
    )  # fmt: skip
    with pytest.raises(ValueError, match="negative amortisation") as reason:
        schedule(growing)
    file = write(tmp_path / "loans.csv", [MORTGAGE, growing])
    with pytest.raises(UserError) as error:
        run(process(file, tmp_path / "out"))
    assert "1 of 2 components failed" in str(error.value)
    assert f"first G (ValueError: {reason.value}" in str(error.value)


def test_loans_of_three_decimals_need_them_asked_for(tmp_path: Path) -> None:
    dinars = SMALL._replace(currency="KWD", principal=Decimal("100.125"))
    file = write(tmp_path / "loans.csv", [dinars])
    with pytest.raises(UserError, match="more than 2 decimals"):
        run(process(file, tmp_path / "out"))
    manifest = run(process(file, tmp_path / "out", decimals=3))
    assert schedules_of(manifest)["L1"] == schedule(dinars)


def test_shards_are_cut_by_what_comes_out(tmp_path: Path) -> None:
    loans = [SMALL._replace(loan_id=str(number), term=1) for number in range(4_001)]
    of_loans = process(write(tmp_path / "loans.parquet", loans), tmp_path / "out")
    assert kind_of(of_loans).prepare(of_loans).partition().shards == 3


def test_parts_are_the_same_whatever_the_order_of_the_loans(tmp_path: Path) -> None:
    loans = [SMALL._replace(loan_id=f"L{n}", term=1 + n % 9) for n in range(50)]
    parts = []
    for number, some in enumerate((loans, loans[::-1])):
        file = write(tmp_path / f"loans-{number}.parquet", some)
        manifest = run(process(file, tmp_path / f"out-{number}", shards=4))
        parts.append([commit.part.sha256 for commit in manifest.shards])
    assert parts[0] == parts[1]


def test_the_module_prints_json(tmp_path: Path) -> None:
    file = write(tmp_path / "loans.csv", [SMALL])
    done = subprocess.run(
        [
            sys.executable, "-m", "ledgerbeam.pipelines.repayment_schedules", f"--loans={file}",
            f"--business-date={DAY}", f"--output={tmp_path / 'out'}", "--json",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    manifest = load_manifest(result["published"])
    assert read_part(result["published"], manifest.shards[0].part).num_rows == 6
    assert result["counts"]["rows_out"] == 6
