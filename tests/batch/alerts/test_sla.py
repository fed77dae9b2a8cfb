"""Deadlines on the wall's clock, and breaches: missed or foreseen, told once."""

import datetime
import pickle
import re
from datetime import UTC, time, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.batch.alerts.breaches import (
    MIN_SAMPLES,
    WINDOW,
    BreachKind,
    RunFacts,
    Sample,
    breaches,
    estimated_end,
)
from ledgerbeam.batch.model.sla import Deadlines, Sla

DAY = datetime.date(2026, 11, 20)
NOON = datetime.datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
SPANS = st.timedeltas(timedelta(0), timedelta(days=3))
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]
)


def utc(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "date", "by", "expected"),
    [
        ("Europe/Berlin", "2026-11-20", time(22), "2026-11-20 21:00"),
        ("Europe/Berlin", "2026-11-20", timedelta(hours=30), "2026-11-21 05:00"),
        ("Asia/Kolkata", "2026-11-20", time(0), "2026-11-19 18:30"),
        # Clocks go forward in the night of 2026-03-29: 06:00 is 06:00, 29 hours after midnight.
        ("Europe/Berlin", "2026-03-28", timedelta(hours=30), "2026-03-29 04:00"),
        ("Europe/Berlin", "2026-03-29", time(2, 30), "2026-03-29 01:30"),
        # They go back in that of 2026-10-25, when 02:30 comes twice.
        ("Europe/Berlin", "2026-10-24", timedelta(hours=30), "2026-10-25 05:00"),
        ("Europe/Berlin", "2026-10-25", time(2, 30), "2026-10-25 00:30"),
        ("America/New_York", "2026-10-31", timedelta(hours=30), "2026-11-01 11:00"),
    ],
)
def test_deadlines_are_those_of_the_clock_on_the_wall(
    zone: str, date: str, by: Any, expected: str
) -> None:
    sla = Sla(must_start_by=by, must_finish_by=by, zone=zone)
    assert sla.deadlines(datetime.date.fromisoformat(date)) == (utc(expected), utc(expected))


@given(st.dates(datetime.date(2000, 1, 1), datetime.date(2035, 1, 1)), ZONES, SPANS)
def test_a_deadline_shows_its_time_in_its_zone_unless_the_clock_skips_it(
    date: datetime.date, zone: str, by: timedelta
) -> None:
    deadline = Sla(must_finish_by=by, zone=zone).deadlines(date).finish_by
    assert deadline is not None
    assert deadline.tzinfo is UTC
    wanted = datetime.datetime.combine(date, time()) + by
    shown = deadline.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    # An hour where clocks go forward; a day where a country moved over the date line.
    assert shown - wanted in (timedelta(0), timedelta(hours=1), timedelta(days=1))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"must_start_by": time(22), "zone": "Europe/Atlantis"}, "zone='Europe/Atlantis'"),
        ({"must_start_by": time(22), "zone": "../etc/passwd"}, "IANA"),
        ({"must_start_by": time(22), "zone": ""}, "IANA"),
        ({"zone": "UTC"}, "neither must_start_by nor must_finish_by"),
        ({"must_start_by": time(22, tzinfo=UTC), "zone": "UTC"}, "must_start_by=22:00:00"),
        ({"must_finish_by": timedelta(hours=-1), "zone": "UTC"}, "must_finish_by=-1 day"),
        (
            {"must_start_by": timedelta(hours=30), "must_finish_by": time(6), "zone": "UTC"},
            "must_start_by=1 day, 6:00:00 is later than must_finish_by=06:00:00",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_made(fields: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        Sla(**fields)


def test_one_deadline_is_enough_and_a_definition_can_be_pickled() -> None:
    sla = Sla(must_start_by=time(22), zone="Europe/Berlin")
    assert sla.deadlines(DAY) == Deadlines(utc("2026-11-20 21:00"), None)
    assert pickle.loads(pickle.dumps(sla)) == sla


def constant(
    a_second: int, total: int, seconds: int, every: int = 10, start: datetime.datetime = NOON
) -> list[Sample]:
    """Samples of a run that is so fast, up to a time."""
    return [
        Sample(start + second * SECOND, min(total, second * a_second), total)
        for second in range(0, seconds + 1, every)
    ]


@given(
    st.integers(1, 1000),
    st.integers(1, 10_000_000),
    st.integers(MIN_SAMPLES - 1, 200),
    st.integers(1, 60),
    st.timedeltas(SECOND, timedelta(hours=3)),
    st.integers(0, 50),
)
def test_at_a_constant_rate_the_end_is_exact(
    a_second: int, remaining: int, intervals: int, every: int, window: timedelta, min_done: int
) -> None:
    seconds = intervals * every
    total = seconds * a_second + remaining
    samples = constant(a_second, total, seconds, every)
    end = estimated_end(samples, window=window, min_done=min_done)
    assert end is not None
    microseconds = (end - NOON) // timedelta(microseconds=1)
    assert 0 <= microseconds - Fraction(total, a_second) * 1_000_000 < 1


@given(
    st.integers(1, 20),
    st.integers(1, 100_000),
    st.integers(40, 1_000),
    st.integers(-20_000, 200_000),
    st.booleans(),
)
def test_a_breach_is_foreseen_if_and_only_if_what_remains_takes_longer_than_the_time_left(
    a_second: int, remaining: int, seconds: int, seconds_left: int, is_told: bool
) -> None:
    total = seconds * a_second + remaining
    samples = constant(a_second, total, seconds)
    last = samples[-1]
    deadline = last.at + seconds_left * SECOND
    facts = RunFacts(Deadlines(None, deadline), started_at=NOON, samples=samples)
    told = {BreachKind.FORESEEN} if is_told else set()
    kinds = [breach.kind for breach in breaches(last.at, facts, told)]
    if seconds_left < 0:
        assert kinds == [BreachKind.NOT_FINISHED]
    elif Fraction(total - last.done, a_second) > seconds_left and not is_told:
        assert kinds == [BreachKind.FORESEEN]
    else:
        assert kinds == []


@given(
    st.lists(st.tuples(st.integers(0, 3600), st.integers(0, 50)), max_size=30),
    st.integers(0, 2_000),
    st.integers(-7200, 7200),
)
def test_any_run_has_an_estimate_that_is_not_in_the_past_or_none(
    steps: list[tuple[int, int]], total: int, seconds_left: int
) -> None:
    at, done, samples = NOON, 0, []
    for seconds, units in steps:
        at, done = at + seconds * SECOND, min(total, done + units)
        samples.append(Sample(at, done, total))
    end = estimated_end(samples)
    assert end is None or end >= at
    if samples and done == total:
        assert end == at
    deadlines = Deadlines(None, at + seconds_left * SECOND)
    found = breaches(at, RunFacts(deadlines, started_at=NOON, samples=samples))
    assert len(found) <= 1


def test_nothing_is_foreseen_from_a_few_samples_or_before_the_first_unit_is_done() -> None:
    deadline = NOON + timedelta(minutes=30)
    reading = [Sample(NOON + n * 10 * SECOND, 0, 64) for n in range(100)]
    assert estimated_end(reading) is None
    # Shards come at the end, after all is read: 4 a sample, and the time before isn't theirs.
    at_work = [Sample(reading[-1].at + n * 10 * SECOND, 4 * n, 64) for n in range(1, MIN_SAMPLES)]
    for count in range(1, MIN_SAMPLES - 1):
        facts = RunFacts(Deadlines(None, deadline), NOON, None, reading + at_work[:count])
        assert breaches(facts.samples[-1].at, facts) == []
    assert estimated_end(reading + at_work) == reading[-1].at + 160 * SECOND


def test_a_later_attempt_starts_with_what_is_done() -> None:
    samples = [Sample(NOON + n * SECOND, 50 + max(0, n - 100), 100) for n in range(111)]
    assert estimated_end(samples) == NOON + 150 * SECOND


def test_the_rate_is_the_latest_so_a_run_that_slows_down_is_foreseen_to_be_late() -> None:
    fast = constant(10, 100_000, 3600)
    slow = [Sample(fast[-1].at + n * 10 * SECOND, 36_000 + 10 * n, 100_000) for n in range(1, 200)]
    assert estimated_end(fast) == NOON + 10_000 * SECOND
    remaining = slow[-1].total - slow[-1].done
    assert WINDOW < 199 * 10 * SECOND
    assert estimated_end(fast + slow) == slow[-1].at + remaining * SECOND


def test_a_run_that_stands_still_looks_worse_with_time() -> None:
    samples = constant(1, 1000, 500)
    ends = []
    for minutes in (0, 20, 60, 120):
        still = Sample(samples[-1].at + timedelta(minutes=minutes), 500, 1000)
        ends.append(estimated_end([*samples, still]))
    assert ends == sorted(set(ends))  # type: ignore[type-var]


def test_few_long_shards_make_no_alarm_and_no_false_calm() -> None:
    """8 shards, one every 20 minutes: longer than the window, and fewer than it wants."""
    samples = [Sample(NOON + n * timedelta(minutes=1), n // 20, 8) for n in range(101)]
    for count in range(21, 102):
        end = estimated_end(samples[:count])
        if count >= 45:
            assert end is not None
            assert abs(end - (NOON + timedelta(minutes=160))) <= timedelta(minutes=65)


def test_an_end_beyond_all_calendars_is_the_last_one() -> None:
    samples = [Sample(NOON + n * timedelta(hours=1), n // 9, 10**12) for n in range(20)]
    end = estimated_end(samples)
    assert end == datetime.datetime.max.replace(tzinfo=UTC)
    facts = RunFacts(Deadlines(None, NOON + timedelta(days=2)), NOON, None, samples)
    assert [breach.kind for breach in breaches(samples[-1].at, facts)] == [BreachKind.FORESEEN]


START, FINISH = NOON + timedelta(hours=1), NOON + timedelta(hours=3)
BOTH = Deadlines(START, FINISH)


@pytest.mark.parametrize(
    ("now", "started", "finished", "kinds"),
    [
        (START, None, None, []),
        (START + SECOND, None, None, ["not_started"]),
        (START + SECOND, START, None, []),
        (START + SECOND, START + SECOND, None, ["not_started"]),
        (FINISH, START, None, []),
        (FINISH + SECOND, START, None, ["not_finished"]),
        (FINISH + SECOND, START, FINISH, []),
        (FINISH + 9 * SECOND, START, FINISH + SECOND, ["not_finished"]),
        (FINISH + SECOND, None, None, ["not_started", "not_finished"]),
    ],
)
def test_a_run_is_in_time_up_to_and_including_its_deadline(
    now: datetime.datetime,
    started: datetime.datetime | None,
    finished: datetime.datetime | None,
    kinds: list[str],
) -> None:
    facts = RunFacts(BOTH, started, finished)
    found = breaches(now, facts)
    assert [breach.kind for breach in found] == kinds
    assert breaches(now, facts, {breach.kind for breach in found}) == []
    assert breaches(now, RunFacts(Deadlines(None, None), started, finished)) == []


def test_the_reason_is_a_line_for_people() -> None:
    samples = constant(1, 20_000, 1000)
    facts = RunFacts(BOTH, NOON, None, samples)
    (foreseen,) = breaches(samples[-1].at, facts)
    assert foreseen.deadline == FINISH
    assert foreseen.expected == NOON + 20_000 * SECOND
    assert foreseen.why == (
        "1,000 of 20,000 done, at this rate until 2026-11-20 17:33:20 UTC, "
        "must finish by 2026-11-20 15:00:00 UTC"
    )
    (late,) = breaches(START + SECOND, RunFacts(BOTH))
    assert late.why == "not started, must start by 2026-11-20 13:00:00 UTC"
    (ended,) = breaches(FINISH + SECOND, RunFacts(BOTH, NOON, FINISH + SECOND))
    assert ended.why == (
        "finished at 2026-11-20 15:00:01 UTC, must finish by 2026-11-20 15:00:00 UTC"
    )
