"""A day without rows, or with far fewer or more than the last one, is published only if asked."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pytest

import ledgerbeam as lb
from ledgerbeam.batch.cli.module import main
from ledgerbeam.io.commit.attempts import attempts

DAY = datetime.date(2026, 11, 20)
PAYMENTS = lb.Contract(
    (
        lb.Column("customer", pa.string()),
        lb.Column("number", pa.int64()),
        lb.Column("date", pa.date32()),
    )
)
FEES = lb.Contract((lb.Column("customer", pa.string()), lb.Column("fee", pa.int64())))


class CountParameters(lb.FileParameters):
    """Payments of a day, and fees."""

    payments: Annotated[str, lb.RowInput(PAYMENTS, order="number", date_column="date")]
    fees: Annotated[str, lb.RowInput(FEES, order="fee")]
    branch: str = "north"
    business_date: datetime.date = DAY


class Count(lb.KeyedProcess[CountParameters]):
    """Counts the payments of a customer."""

    name = "count"
    key = ("customer",)
    identity = ("branch",)
    results = pa.schema([("payments", pa.int64())])

    def execute(self, component: lb.Component) -> Iterable[lb.Record]:
        yield {"payments": len(component)}


class CountMany(Count):
    """Knows how many there are on a day."""

    expect = lb.Expect(min_rows=3, change="50%")


class BalanceParameters(lb.FileParameters):
    """All payments up to a day."""

    payments: Annotated[str, lb.RowInput(PAYMENTS, order="number", dated_by="date")]
    business_date: datetime.date = DAY


class Balance(lb.KeyedProcess[BalanceParameters]):
    """A report over all payments so far, which expects one of the last ten days."""

    name = "balance"
    key = ("customer",)
    results = pa.schema([("payments", pa.int64())])
    expect = lb.Expect(max_age=datetime.timedelta(days=10))

    def execute(self, component: lb.Component) -> Iterable[lb.Record]:
        yield {"payments": len(component)}


class ItemParameters(lb.Parameters):
    """Which day."""

    items: int
    business_date: datetime.date = DAY


class Items(lb.PageProcess[ItemParameters]):
    """Counts items of a source of pages."""

    name = "items"
    item_key = ("id",)
    results = pa.schema([("n", pa.int64())])

    @property
    def source(self) -> lb.CursorPages:
        def fetch(cursor: Any) -> lb.CursorPage:
            return lb.CursorPage([{"id": n} for n in range(self.parameters.items)], None)

        return lb.CursorPages(fetch)

    def execute_item(self, item: lb.Item) -> Iterable[lb.Record]:
        yield {"n": 1}


def flags(folder: Path, rows: int, day: datetime.date = DAY, **changes: Any) -> dict[str, Any]:
    """Parameters of a run over so many rows of the day, and one of the day before."""
    lines = [f"C{n % 2},{n},{day}\n" for n in range(rows)]
    lines.append(f"C0,-1,{day - datetime.timedelta(1)}\n")
    payments, fees = folder / f"{day}-{rows}.csv", folder / f"fees-{day}-{rows}.csv"
    if not payments.exists():  # a file that is written again is another input
        payments.write_text("customer,number,date\n" + "".join(lines))
        fees.write_text("customer,fee\n")
    given = {"payments": payments, "fees": fees, "output": folder / "out", "business_date": day}
    return {name: str(value) for name, value in (given | changes).items()}


def published(folder: Path, process: type[Count], rows: int, **changes: Any) -> lb.Manifest:
    return lb.run(process(CountParameters.model_validate(flags(folder, rows, **changes))))


def refused(folder: Path, process: type[Count], rows: int, **changes: Any) -> str:
    given = process(CountParameters.model_validate(flags(folder, rows, **changes)))
    with pytest.raises(lb.UnexpectedRowsError) as raised:
        lb.run(given)
    assert raised.value.rows in {rows, None}
    with pytest.raises(lb.NotPublishedError):
        lb.load_manifest(lb.instance_uri(given))
    return str(raised.value)


def days_after(count: int) -> datetime.date:
    return DAY + datetime.timedelta(count)


def test_a_day_without_rows_is_a_question(tmp_path: Path) -> None:
    line = refused(tmp_path, Count, 0)
    assert "no payments of 2026-11-20 were found (beside 1 of other dates): see whether" in line
    assert line.endswith("allow it by --min-rows=0")
    # The input that says which components there are is there; others may be empty.
    manifest = published(tmp_path, Count, 1, branch="south")
    assert manifest.volume is not None
    assert (manifest.volume.rows, manifest.volume.min_rows) == (1, 1)


def test_files_with_a_header_alone_are_no_rows(tmp_path: Path) -> None:
    given = flags(tmp_path, 1)
    Path(given["payments"]).write_text("customer,number,date\n")
    process = Count(CountParameters.model_validate(given))
    with pytest.raises(lb.UnexpectedRowsError, match="no payments of 2026-11-20 were found: see"):
        lb.run(process)


def test_rejected_rows_are_no_rows(tmp_path: Path) -> None:
    given = flags(tmp_path, 1, max_rejects=5)
    Path(given["payments"]).write_text("customer,number,date\nC1,x,2026-11-20\n")
    process = Count(CountParameters.model_validate(given))
    with pytest.raises(lb.UnexpectedRowsError, match=r"were found \(beside 1 rejected\)"):
        lb.run(process)


def test_it_is_published_if_asked_and_goes_on_from_the_same_attempt(tmp_path: Path) -> None:
    refused(tmp_path, Count, 0)
    manifest = published(tmp_path, Count, 0, min_rows=0)
    assert manifest.volume is not None
    assert (manifest.volume.rows, manifest.volume.min_rows) == (0, 0)
    first, second = attempts(lb.instance_uri(Count(CountParameters(**flags(tmp_path, 0)))))
    assert first.fingerprint == second.fingerprint
    assert manifest.shards[0].attempt == 1
    given = manifest.attempt.parameters
    assert lb.verify(
        lb.instance_uri(Count(CountParameters.model_validate(given))),
        Count(CountParameters.model_validate(given)),
    )


def test_a_definition_says_what_it_expects(tmp_path: Path) -> None:
    line = refused(tmp_path, CountMany, 2)
    assert "2 payments of 2026-11-20 were found" in line
    assert "and 3 or more are expected" in line
    assert "--min-rows=2" in line
    assert published(tmp_path, CountMany, 2, min_rows=2).volume is not None


def test_a_day_is_compared_with_the_last_one(tmp_path: Path) -> None:
    first = published(tmp_path, CountMany, 10).volume
    assert first is not None
    assert (first.change, first.compared_with) == ("50%", None)
    # Of another branch, and of an earlier day: neither is the last one.
    published(tmp_path, CountMany, 1_000, branch="south", day=days_after(1))
    published(tmp_path, CountMany, 100, day=days_after(-5))
    line = refused(tmp_path, CountMany, 4, day=days_after(3))
    assert "4 payments of 2026-11-23 were found, 60% fewer than the 10 of 2026-11-20-b" in line
    assert "the most expected is 50%" in line
    assert "60% more" in refused(tmp_path, CountMany, 16, day=days_after(3))
    found = published(tmp_path, CountMany, 15, day=days_after(3)).volume
    assert found is not None
    assert (found.rows, found.rows_before) == (15, 10)
    assert found.compared_with == "2026-11-20-branch-north"


def test_a_change_is_allowed_by_a_flag_or_limited_by_one(tmp_path: Path) -> None:
    published(tmp_path, Count, 10)
    assert "90% fewer" in refused(tmp_path, Count, 1, day=days_after(1), max_change="20%")
    published(tmp_path, Count, 1, day=days_after(1))
    published(tmp_path, CountMany, 90, day=days_after(2), max_change="none")
    # A day that was allowed to be empty says nothing about the next one.
    published(tmp_path, Count, 0, day=days_after(3), min_rows=0)
    published(tmp_path, CountMany, 90, day=days_after(4))


def test_the_last_run_of_a_day_counts(tmp_path: Path) -> None:
    published(tmp_path, Count, 100)
    published(tmp_path, Count, 10, run_number=2, reason="half of it was twice")
    found = published(tmp_path, CountMany, 12, day=days_after(1)).volume
    assert found is not None
    assert found.compared_with == "2026-11-20-branch-north-run-2"


class TestAge:
    """The newest row is as old as it may be, a day older, or of no date at all."""

    @staticmethod
    def balance(folder: Path, dates: list[str], **given: Any) -> Balance:
        """A process over two files, the older dates in the second one."""
        for number, half in enumerate((dates[:1], dates[1:])):
            rows = [f"C{number},{row},{date}\n" for row, date in enumerate(half)]
            (folder / f"payments-{number}.csv").write_text("customer,number,date\n" + "".join(rows))
        given = {"payments": str(folder / "payments-*.csv"), "output": str(folder), **given}
        return Balance(BalanceParameters.model_validate(given))

    def test_rows_that_are_new_enough_are_published(self, tmp_path: Path) -> None:
        dates = ["2026-11-10", "2024-02-29", "2026-01-01"]
        volume = lb.run(self.balance(tmp_path, dates)).volume
        assert volume is not None
        assert (volume.newest, volume.max_age_days) == (datetime.date(2026, 11, 10), 10)

    def test_rows_that_are_too_old_are_a_question(self, tmp_path: Path) -> None:
        dates = ["2026-11-09", "2024-02-29"]
        with pytest.raises(lb.StaleInputError) as raised:
            lb.run(self.balance(tmp_path, dates))
        assert raised.value.attributes == {"newest": "2026-11-09", "max_age": 10}
        assert str(raised.value) == (
            "nothing published: the newest row is of 2026-11-09, 11 days before 2026-11-20, and "
            "the most expected is 10: see whether the date is right, and the input the last one; "
            "if they are, allow it by --max-age=none"
        )
        with pytest.raises(lb.StaleInputError, match="376 days before 2027-11-20"):
            lb.run(self.balance(tmp_path, dates, business_date="2027-11-20"))

    @pytest.mark.parametrize("max_age", ["none", "11"])
    def test_a_flag_allows_it_and_what_is_committed_is_kept(
        self, tmp_path: Path, max_age: str
    ) -> None:
        process = self.balance(tmp_path, ["2026-11-09", "2024-02-29"])
        with pytest.raises(lb.StaleInputError):
            lb.run(process)
        allowed = process.parameters.model_copy(update={"max_age": max_age})
        manifest = lb.run(Balance(allowed))
        assert [shard.attempt for shard in manifest.shards] == [1]
        assert manifest.volume is not None
        assert manifest.volume.max_age_days == (None if max_age == "none" else 11)

    def test_dates_after_the_business_date_are_new(self, tmp_path: Path) -> None:
        assert lb.run(self.balance(tmp_path, ["2026-12-24"])).volume is not None

    def test_rejected_rows_and_no_rows_have_no_age(self, tmp_path: Path) -> None:
        process = self.balance(tmp_path, ["2026-11-09", "2026-13-01"], max_rejects=1)
        with pytest.raises(lb.StaleInputError):
            lb.run(process)
        manifest = lb.run(self.balance(tmp_path, [], min_rows=0, run_number=2, reason="empty"))
        assert manifest.volume is not None
        assert manifest.volume.newest is None

    def test_it_takes_a_column_of_dates(self) -> None:
        class Undated(Balance):
            expect = lb.Expect(max_age=datetime.timedelta(days=1))

            @property
            def inputs(self) -> tuple[lb.RowInput, ...]:
                return tuple(replace(rows, dated_by=self.column) for rows in super().inputs)

            column = ""

        parameters = BalanceParameters(payments="x", output="y")
        with pytest.raises(lb.DefinitionError, match="max_age, and no input is dated_by a column"):
            Undated(parameters)
        Undated.column = "number"
        with pytest.raises(lb.DefinitionError, match="dated_by is 'number', and must be a column"):
            Undated(parameters)
        with pytest.raises(ValueError, match="max_age=12:00:00: give a day or more"):
            lb.Expect(max_age=datetime.timedelta(hours=12))

    def test_a_misspelt_date_column_is_noticed(self, tmp_path: Path) -> None:
        class Misspelt(Count):
            @property
            def inputs(self) -> tuple[lb.RowInput, ...]:
                payments, fees = super().inputs
                return replace(payments, date_column="dtae"), fees

        with pytest.raises(lb.DefinitionError, match="date_column is 'dtae', and must be"):
            Misspelt(CountParameters.model_validate(flags(tmp_path, 1)))


def test_pages_without_items_are_a_question(tmp_path: Path) -> None:
    def process(**given: Any) -> Items:
        return Items(ItemParameters(output=str(tmp_path), **given))

    with pytest.raises(lb.UnexpectedRowsError, match="no items of 2026-11-20 were found"):
        lb.run(process(items=0))
    assert lb.run(process(items=0, min_rows=0)).volume is not None
    day = days_after(1)
    assert lb.run(process(items=2, business_date=day)).counts["components"] == 2


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags(tmp_path, 0).items()]
    assert main(Count, [*given, "--json"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    error = json.loads(line)["error"]
    assert error["code"] == "unexpected-rows"
    assert main(Count, [*given, "--max-change=half"]) == 2
    assert capsys.readouterr().err.startswith("count: --max-change=half: ")
    assert main(Count, [*given, "--min-rows=0"]) == 0


@pytest.mark.parametrize(
    "wrong", [{"min_rows": -1}, {"change": "half"}, {"change": "-5%"}, {"change": "50"}]
)
def test_an_expectation_is_checked_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        lb.Expect(**wrong)
