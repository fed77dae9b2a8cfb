"""A workload over a range of days: which days, how many at once, and where it goes on."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.json_lines import lines_of
from tests.support.recorded import NewPlace
from typer.testing import CliRunner

from ledgerbeam.batch.cli.app import app
from ledgerbeam.batch.cli.backfill import days_between
from ledgerbeam.batch.cli.filters import read_pairs, read_since
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.run import AttemptKind, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.backfill import Submission, backfill
from ledgerbeam.batch.runs.reconcile import see_to_launcher
from ledgerbeam.io.errors import ParameterError


def date(day: int, month: int = 12) -> datetime.date:
    return datetime.date(2026, month, day)


@pytest.mark.parametrize(
    ("calendar", "days"),
    [
        ("", [23, 24, 25, 28]),
        ("XNYS", [23, 24, 28]),
        ("none", [23, 24, 25, 26, 27, 28]),
    ],
)
def test_business_days_of_a_range(calendar: str, days: Sequence[int]) -> None:
    assert days_between(date(23), date(28), calendar) == [date(day) for day in days]


@pytest.mark.parametrize(
    ("first", "last", "calendar", "line"),
    [
        (28, 23, "", "there is no business day from 2026-12-28 to 2026-12-23"),
        (26, 27, "", "there is no business day from 2026-12-26 to 2026-12-27"),
        (25, 25, "XNYS", "there is no business day"),
        (23, 28, "NOWHERE", "--calendar=NOWHERE: "),
    ],
)
def test_a_range_without_any_is_a_mistake(first: int, last: int, calendar: str, line: str) -> None:
    arguments = [f"--from={date(first)}", f"--to={date(last)}", f"--calendar={calendar}"]
    done = CliRunner().invoke(app, ["backfill", "delivery-marking", *arguments])
    assert isinstance(done.exception, ParameterError)
    assert line in str(done.exception)


def test_days_are_listed() -> None:
    # The NSE traded on the Sunday of the budget, and not on the Thursday of an election.
    done = CliRunner().invoke(
        app, ["days", "--from=2026-01-30", "--to=2026-02-02", "--calendar=XNSE"]
    )
    assert done.output.split() == ["2026-01-30", "2026-02-01", "2026-02-02"]
    closed = ["days", "--from=2026-01-15", "--to=2026-01-15", "--json"]
    assert CliRunner().invoke(app, [*closed, "--calendar=XNSE"]).output == ""
    (line,) = lines_of(CliRunner().invoke(app, closed).output)
    assert line == {"date": "2026-01-15", "calendar": ""}


def test_a_time_since_when() -> None:
    midnight = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
    assert read_since("2026-11-20") == midnight
    assert read_since("2026-11-20T09:00+09:00") == midnight
    for text, line in {
        "20 November": "give a date as YYYY-MM-DD",
        "2026-11-20T08:00": "give its zone",
        "2026-11-20T99:00Z": "--since=2026-11-20T99:00Z: ",
    }.items():
        with pytest.raises(ParameterError, match=line):
            read_since(text)


def test_pairs_are_names_and_values() -> None:
    assert read_pairs(["bank=north", "max-rejects=3", "note=a=b"]) == {
        "bank": "north",
        "max_rejects": "3",
        "note": "a=b",
    }
    with pytest.raises(ParameterError, match="--where=bank: give NAME=VALUE"):
        read_pairs(["bank"])


def test_runs_are_listed_by_time_and_parameters(new_place: NewPlace) -> None:
    place = new_place()
    one = place.record(business_date="2026-11-10", max_rejects=5)
    other = place.record(business_date="2026-11-11")
    listed = place.runs.list(where={"max_rejects": "3"})
    assert [run.id for run in listed] == [other.id]
    listed = place.runs.list(where={"business_date": "2026-11-10", "max_rejects": "5"})
    assert [run.id for run in listed] == [one.id]
    assert [run.id for run in place.runs.list(since=other.submitted_at)] == [other.id]
    assert place.runs.list(where={"business_date": "2026-11-12"}) == []
    assert place.runs.list("none", where={"bank": "x"}) == []
    with pytest.raises(ParameterError, match="no run has a parameter business_dat"):
        place.runs.list(where={"business_dat": "2026-11-10"})


@pytest.mark.slow
def test_it_stops_at_a_failure_and_goes_on_from_there(new_place: NewPlace, tmp_path: Path) -> None:
    place = new_place()
    days = [date(day, month=11) for day in (18, 19, 20)]
    asked: list[datetime.date] = []

    def submission_of(day: datetime.date) -> Submission:
        asked.append(day)
        return place.parameters(business_date=day.isoformat()), []

    def ended() -> list[tuple[datetime.date, RunStatus]]:
        def see_to(run: RunRecord) -> None:
            see_to_launcher(place.runs.registry, place.settings, run, utc_now())

        runs = backfill(place.runs, place.process, days, submission_of, 1, see_to)
        return [(run.business_date, run.status) for run in runs]

    place.set("fail-A7")
    assert ended() == [(days[0], RunStatus.FAILURE)]
    assert asked == days[:1]
    place.unset("fail-A7")
    assert ended() == [(day, RunStatus.SUCCESS) for day in days]
    first = place.runs.registry.find(f"{place.process}/{days[0]}")
    assert [attempt.kind for attempt in first.attempts] == [AttemptKind.FIRST, AttemptKind.RETRY]
    attempts = [len(run.attempts) for run in place.runs.list()]
    assert ended() == [(day, RunStatus.SUCCESS) for day in days]
    assert [len(run.attempts) for run in place.runs.list()] == attempts
