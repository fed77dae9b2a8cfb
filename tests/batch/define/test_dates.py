"""Dates are `YYYY-MM-DD`, wherever a workload's parameters are given, and nothing else is one."""

import datetime
import json
from typing import Annotated, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from tests.support.command import ledgerbeam

from ledgerbeam.batch.cli.arguments import parse_arguments
from ledgerbeam.batch.define.dates import DATE_WORDS, date_of_word, read_date
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.model.sla import Sla
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.pipelines.loan_close_of_business import CloseParameters
from ledgerbeam.pipelines.parameters import CalendarParameters
from ledgerbeam.rules.components import Component

DAY = datetime.date(2026, 11, 20)
LAST = datetime.date(2099, 12, 31)
NOT_DATES = [
    0, 1, 20261120, 1_795_132_800, 1_795_132_800.0, True, None, b"2026-11-20", "0", "20261120",
    "2026-11-20T00:00:00", "2026-11-20T00:00:00Z", "2026-11-20 ", " 2026-11-20", "2026-11-2",
    "20-11-2026", "2026/11/20", "2026-W47-5", "2026-324", "2026-02-30", "2026-13-01", "0000-01-01",
    "\u0662\u0660\u0662\u0666-11-20", "", "Today", "today", "tomorrow", "now", "last-business-day",
    datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
]  # fmt: skip


class PeriodParameters(FileParameters):
    """Dates in all the places where a field may have one."""

    accounts: Annotated[str, RowInput(Contract((Column("account", pa.string()),)), order="account")]
    business_date: datetime.date
    until: datetime.date | None = None
    holidays: tuple[datetime.date, ...] = ()
    default: Annotated[datetime.date | None, Field(le=LAST)] = None
    note: str = ""
    calendar: str = ""


class InKolkata(KeyedProcess[PeriodParameters]):
    """A definition with a time zone."""

    name = "in-kolkata"
    key = ("account",)
    results = pa.schema([("n", pa.int64())])
    sla = Sla(must_finish_by=datetime.timedelta(hours=30), zone="Asia/Kolkata")

    def execute(self, component: Component) -> list[dict[str, Any]]:
        return []


def parameters(**changes: Any) -> PeriodParameters:
    given = {"accounts": "a.csv", "output": "out", "business_date": DAY}
    return PeriodParameters.model_validate(given | changes)


@pytest.mark.parametrize("value", NOT_DATES)
def test_nothing_else_is_a_date(value: object) -> None:
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        read_date(value)
    places: list[dict[str, Any]] = [{"holidays": ["2026-01-26", value]}, {"business_date": value}]
    places += [{"default": value}, {"until": value}] if value is not None else []
    for changes in places:
        with pytest.raises(ValidationError, match="YYYY-MM-DD"):
            parameters(**changes)
    if not isinstance(value, bytes | datetime.datetime):
        given = {"accounts": "a.csv", "output": "out", "business_date": value}
        with pytest.raises(ValidationError, match="YYYY-MM-DD"):
            PeriodParameters.model_validate_json(json.dumps(given))


@given(st.dates())
@settings(max_examples=50, deadline=None)
def test_a_date_comes_back_as_it_was_given(date: datetime.date) -> None:
    changes = {"until": str(date), "holidays": [str(date)]}
    read = parameters(business_date=date, **changes)
    assert [read.business_date, read.until, *read.holidays] == [date] * 3
    assert PeriodParameters.model_validate_json(read.model_dump_json()) == read
    assert PeriodParameters.model_validate(read.model_dump()) == read


def test_bounds_of_a_field_hold() -> None:
    assert parameters(default="2099-12-31").default == LAST
    with pytest.raises(ValidationError, match="less than or equal to"):
        parameters(default="2100-01-01")


def test_shipped_workloads_and_their_schema() -> None:
    with pytest.raises(ValidationError, match="YYYY-MM-DD"):
        CloseParameters.model_validate(
            {"loans": "l", "transactions": "t", "output": "o", "business_date": 0}
        )
    for model in (CloseParameters, PeriodParameters):
        shape = model.model_json_schema()["properties"]["business_date"]
        assert (shape["type"], shape["format"]) == ("string", "date")


def date_of(*flags: str, now: str) -> PeriodParameters:
    parsed = parse_arguments(
        InKolkata, ["--accounts=a.csv", "--output=out", *flags],
        lambda: datetime.datetime.fromisoformat(now),
    ).parameters  # fmt: skip
    assert isinstance(parsed, PeriodParameters)
    return parsed


@pytest.mark.parametrize(
    ("word", "now", "date"),
    [
        # Half past one in the morning, in Kolkata.
        ("today", "2026-11-20T20:00+00:00", "2026-11-21"),
        ("yesterday", "2026-11-20T20:00+00:00", "2026-11-20"),
        ("last-business-day", "2026-11-20T20:00+00:00", "2026-11-20"),
        ("last-business-day", "2026-11-20T12:00+00:00", "2026-11-19"),
        ("last-business-day", "2026-11-23T12:00+00:00", "2026-11-20"),
        ("2026-11-05", "2026-11-23T12:00+00:00", "2026-11-05"),
    ],
)
def test_words_are_read_on_the_command_line(word: str, now: str, date: str) -> None:
    assert str(date_of(f"--business-date={word}", now=now).business_date) == date
    assert str(date_of(f"--until={word}", "--business-date=today", now=now).until) == date


def test_business_days_are_those_of_the_calendar() -> None:
    # Republic Day is a Monday.
    now = "2026-01-27T12:00+00:00"
    word = "--business-date=last-business-day"
    assert str(date_of(word, now=now).business_date) == "2026-01-26"
    assert str(date_of(word, "--calendar=XNSE", now=now).business_date) == "2026-01-23"
    with pytest.raises(ParameterError, match=r"--business-date=last-business-day: .*NOWHERE"):
        date_of(word, "--calendar=NOWHERE", now=now)
    assert "calendar" in CalendarParameters.model_fields


def test_a_word_is_no_date_where_a_text_is_asked_for() -> None:
    parsed = date_of("--note=today", "--business-date=today", now="2026-11-20T12:00+00:00")
    assert parsed.note == "today"


@pytest.mark.parametrize("text", ["0", "20261120", "Today", "tomorrow", "2026-1-5", "2026-02-30"])
def test_a_mistake_is_one_line(text: str) -> None:
    with pytest.raises(ParameterError, match=rf"--business-date={text}: .*YYYY-MM-DD"):
        date_of(f"--business-date={text}", now="2026-11-20T12:00+00:00")


def test_input_is_made_for_a_date(tmp_path: Any) -> None:
    flags = ["generate", "trades", "--output=made", "--count=10", "--files=1"]
    assert "10 trades of 2026-11-20" in ledgerbeam(*flags, folder=tmp_path)
    told = ledgerbeam(*flags[:2], "--output=other", "--count=10", "--trade-date=2026-01-05",
                      folder=tmp_path)  # fmt: skip
    assert "10 trades of 2026-01-05" in told


def test_the_words_are_those() -> None:
    assert DATE_WORDS == ("today", "yesterday", "last-business-day")
    noon = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
    assert date_of_word("today", noon) == DAY
