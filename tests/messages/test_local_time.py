"""Moments by clocks and calendars: gaps, overlaps, business days, what comes again, what moved."""

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.messages.senders import NOON, Bank

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.model.local_time import Gap, LocalTime, Overlap, Recurrence
from ledgerbeam.messages.store.derive import derive
from ledgerbeam.messages.store.send import schedule

PRECEDING = {"convention": "preceding"}
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]


def local(date: str, time: str, zone: str, **options: Any) -> LocalTime:
    day, clock = datetime.date.fromisoformat(date), datetime.time.fromisoformat(time)
    return LocalTime(date=day, time=clock, zone=zone, **options)


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        (local("2026-11-20", "08:00", "Australia/Sydney"), "2026-11-19T21:00"),
        (local("2026-07-20", "08:00", "Australia/Sydney"), "2026-07-19T22:00"),
        # Clocks in New York are put forward at 02:00 on March 8, 2026: EST is UTC-5, EDT UTC-4.
        (local("2026-03-08", "02:30", "America/New_York"), "2026-03-08T07:30"),
        (local("2026-03-08", "02:30", "America/New_York", gap=Gap.EARLIER), "2026-03-08T06:30"),
        # They are put back at 02:00 on November 1.
        (local("2026-11-01", "01:30", "America/New_York"), "2026-11-01T05:30"),
        (
            local("2026-11-01", "01:30", "America/New_York", overlap=Overlap.SECOND),
            "2026-11-01T06:30",
        ),
        # Samoa had no December 30, 2011.
        (local("2011-12-30", "12:00", "Pacific/Apia"), "2011-12-30T22:00"),
        (
            local(
                "2026-10-31", "17:00", "America/New_York", calendar="XNYS", convention="preceding"
            ),
            "2026-10-30T21:00",
        ),
        (local("2026-12-25", "09:00", "Europe/London", calendar="GB"), "2026-12-29T09:00"),
        (
            local("2027-01-01", "09:00", "UTC", calendar="US", convention="preceding"),
            "2026-12-31T09:00",
        ),
    ],
)
def test_a_local_time_is_a_moment(given: LocalTime, moment: str) -> None:
    assert given.moment().isoformat() == f"{moment}:00+00:00"
    assert LocalTime.model_validate_json(given.model_dump_json(exclude_defaults=True)) == given


@given(
    days=st.integers(0, 14_000),
    time=st.times(),
    zone=st.sampled_from(ZONES),
    gap=st.sampled_from(Gap),
    overlap=st.sampled_from(Overlap),
)
def test_clocks_show_the_time_or_there_is_none(
    days: int, time: datetime.time, zone: str, gap: Gap, overlap: Overlap
) -> None:
    date = datetime.date(2000, 1, 1) + datetime.timedelta(days)
    local_time = LocalTime(date=date, time=time, zone=zone, gap=gap, overlap=overlap)
    at = datetime.datetime.combine(date, time)
    shown = local_time.moment().astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    if shown != at:
        # It is skipped.
        assert abs(shown - at) <= datetime.timedelta(hours=1)
        assert (shown > at) == (gap is Gap.LATER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        ({"zone": "../etc"}, "there is no time zone"),
        ({"zone": "UTC", "time": "08:00+01:00"}, "has a zone of its own"),
    ],
)
def test_mistakes_are_found_when_it_is_made(options: dict[str, Any], message: str) -> None:
    fields = {"date": "2026-11-20", "time": "08:00", **options}
    with pytest.raises(ValidationError, match=message):
        LocalTime.model_validate(fields)


def test_months_end_where_they_end() -> None:
    monthly = Recurrence(start=local("2026-01-31", "08:00", "UTC"), months=1)
    days = [monthly.occurrence(number).date.isoformat() for number in range(4)]
    assert days == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]
    at_end = Recurrence(start=local("2026-02-28", "08:00", "UTC"), months=3, month_end=True)
    assert [at_end.occurrence(number).date.day for number in range(3)] == [28, 31, 31]


@given(
    start=st.dates(datetime.date(2020, 1, 1), datetime.date(2022, 1, 1)),
    days=st.integers(0, 40),
    months=st.integers(1, 13),
    calendar=st.sampled_from([None, "US"]),
)
def test_none_is_left_out_and_none_comes_twice(
    start: datetime.date, days: int, months: int, calendar: str | None
) -> None:
    first = LocalTime(date=start, time=datetime.time(8), zone="UTC", calendar=calendar)
    again = Recurrence(start=first, days=days, months=0 if days else months)
    moments = [again.occurrence(number).moment() for number in range(12)]
    distinct = sorted(set(moments))
    found = [distinct[0]]
    while len(found) < len(distinct):
        found.append(again.after(found[-1]).moment())
    assert found == distinct


@pytest.mark.parametrize("options", [{}, {"days": 1, "months": 1}, {"days": -1}])
def test_a_recurrence_has_one_step(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        Recurrence(start=local("2026-01-31", "08:00", "UTC"), **options)


class TestStored:
    DUE = local("2049-07-20", "08:00", "Australia/Sydney")

    def test_what_was_taken_for_another_moment_is_moved_and_listed(self, bank: Bank) -> None:
        with bank.sender() as connection:
            for key in ("a", "b"):
                schedule(connection, bank.topic, {"payer": "P1"}, due=self.DUE, key=key)
        # As if zone rules had been others when the first was sent.
        bank.execute(
            "UPDATE ledgerbeam_message SET due = due + 3600000000 "
            "WHERE topic = :topic AND key = 'a'",
            topic=bank.topic_id,
        )
        (planned,) = derive(bank.database, dry_run=True)
        assert (planned.key, planned.before - planned.after) == ("a", datetime.timedelta(hours=1))
        (moved,) = derive(bank.database, dry_run=False)
        assert moved == planned
        assert derive(bank.database, dry_run=False) == []
        rows = bank.rows(
            "SELECT key, state, local IS NOT NULL FROM ledgerbeam_message WHERE topic = :topic "
            "ORDER BY id",
            topic=bank.topic_id,
        )
        assert [(key, state, bool(is_local)) for key, state, is_local in rows] == [
            ("a", 2, True),
            ("b", 0, True),
            ("a", 0, True),
        ]

    def test_a_calendar_that_nobody_knows_is_refused(self, bank: Bank) -> None:
        unknown = local("2026-11-20", "08:00", "UTC", calendar="XXXX")
        with bank.sender() as connection, pytest.raises(ParameterError, match="XXXX"):
            schedule(connection, bank.topic, {"payer": "P1"}, due=unknown)


def test_noon_is_noon() -> None:
    assert local("2026-11-20", "12:00", "UTC").moment() == NOON
