"""What the page shows is worked out from records: bars, grids, balances, what waits for whom."""

import datetime
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.batch.model.approval import Act, Approval
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.model.run import (
    AttemptKind,
    AttemptOutcome,
    RecordedEvent,
    RunAttempt,
    RunOptions,
    RunRecord,
)
from ledgerbeam.batch.model.sla import Sla
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.observe.progress import Progress
from ledgerbeam.batch.runs.reading import RunView
from ledgerbeam.io.commit.control_log import Executing, Steering
from ledgerbeam.io.commit.records import Control
from ledgerbeam.service.model import KindRecord, schema_of
from ledgerbeam.service.page.actions import actions, command
from ledgerbeam.service.page.balance import balances, sheet
from ledgerbeam.service.page.night import Night, Seen, night
from ledgerbeam.service.page.shards import STATES, grid_of
from ledgerbeam.service.page.timeline import Axis, duration, forecast, gantt

NOW = datetime.datetime(2026, 11, 21, 3, 0, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


def attempt(
    number: int = 1,
    started: datetime.datetime = NOW - 2 * HOUR,
    ended: datetime.datetime | None = None,
    outcome: AttemptOutcome | None = None,
) -> RunAttempt:
    return RunAttempt(
        number=number,
        launcher="laptop:1:1",
        lease_until=NOW,
        deadline=NOW + HOUR,
        runner="local",
        job_id=None,
        kind=AttemptKind.FIRST,
        started_at=started,
        ended_at=ended,
        outcome=outcome,
        error=None,
    )


def run(status: RunStatus = RunStatus.EXECUTING, **others: Any) -> RunRecord:
    values: dict[str, Any] = {
        "id": f"{others.get('instance', 'a')}-id",
        "process": "closing",
        "code_version": "1",
        "instance": "a",
        "identity": {},
        "business_date": NOW.date(),
        "parameters": {},
        "output": "results",
        "uri": "results/a",
        "submitted_by": "ann",
        "submitted_at": NOW - 3 * HOUR,
        "status": status,
        "error": None,
        "results_expired_at": None,
        "next_kind": AttemptKind.FIRST,
        "attempts": (attempt(),),
    }
    return RunRecord(**{**values, **others})


def seen(record: RunRecord, **progress: Any) -> Seen:
    return Seen(RunView(record, Progress(at=NOW, **progress)))


def ended(outcome: AttemptOutcome, at: datetime.datetime = NOW - HOUR) -> tuple[RunAttempt, ...]:
    return (attempt(ended=at, outcome=outcome),)


def of(*looked_at: Seen) -> Night:
    return night(looked_at, [], [], NOW)


def kind(name: str, sla: Sla | None) -> KindRecord:
    """As a front end reads it from what a router has published."""
    schema = json.loads(json.dumps(schema_of({"type": "object"}, sla)))
    return KindRecord(
        name=name, description="", parameters_schema=schema, code_version="1",
        policy=QueuePolicy(), seen_at=NOW,
    )  # fmt: skip


class TestForecast:
    @pytest.mark.parametrize(
        ("expected", "due", "is_late"),
        [
            (NOW + HOUR, NOW + 2 * HOUR, False),
            (NOW + HOUR, NOW + HOUR, False),
            (NOW + 2 * HOUR, NOW + HOUR, True),
            (None, NOW - HOUR, True),
            (None, NOW + HOUR, False),
            (NOW + HOUR, None, False),
        ],
    )
    def test_a_run_is_late_if_it_ends_behind_its_deadline(
        self,
        expected: datetime.datetime | None,
        due: datetime.datetime | None,
        is_late: bool,
    ) -> None:
        record = run(must_finish_by=due)
        view = RunView(record, Progress(at=NOW, estimated_end=expected))
        axis = Axis(NOW - 4 * HOUR, NOW + 4 * HOUR)
        found = forecast(view, axis, NOW)
        assert found.is_late is is_late
        assert found.deadline == (None if due is None else axis.place(due))
        assert [span.style for span in found.spans] == ["done", *(["ahead"] if expected else [])]
        assert found.spans[0].start == 25
        assert found.spans[0].width == 25

    def test_what_has_published_in_time_is_not_late_for_ever(self) -> None:
        record = run(
            RunStatus.SUCCESS,
            attempts=ended(AttemptOutcome.SUCCESS),
            must_finish_by=NOW - HOUR / 2,
        )
        axis = Axis(NOW - 4 * HOUR, NOW)
        assert not forecast(RunView(record, Progress(at=NOW)), axis, NOW).is_late
        failed = record.model_copy(update={"status": RunStatus.FAILURE})
        assert forecast(RunView(failed, Progress(at=NOW)), axis, NOW).is_late


class TestGantt:
    def test_pauses_are_seen_in_the_attempts_that_they_were_in(self) -> None:
        record = run(
            attempts=(
                attempt(1, NOW - 3 * HOUR, NOW - 2 * HOUR, AttemptOutcome.LOST),
                attempt(2, NOW - HOUR),
            )
        )
        found = gantt(record, [moved(RunStatus.PAUSED, 2.5), moved(RunStatus.EXECUTING, 0.5)], NOW)
        assert found is not None
        first, second = found.attempts
        assert [span.style for span in first.spans] == ["LOST", "paused"]
        assert [span.style for span in second.spans] == ["done", "paused"]
        assert second.spans[1].width == pytest.approx(100 * 0.5 / 3, abs=0.01)

    def test_a_pause_that_lasts_is_seen_up_to_now(self) -> None:
        found = gantt(run(), [moved(RunStatus.PAUSED, 1)], NOW)
        assert found is not None
        assert found.attempts[0].spans[1].start + found.attempts[0].spans[1].width == 100

    def test_there_is_none_before_the_first_attempt(self) -> None:
        assert gantt(run(attempts=()), [], NOW) is None


def moved(status: RunStatus, hours_ago: float) -> RecordedEvent:
    event = Event(
        run="a-id",
        process="closing",
        instance="a",
        at=NOW - hours_ago * HOUR,
        who="ann",
        type="moved",
        to_status=status,
    )
    return RecordedEvent(**event.model_dump(), sequence=1)


@given(
    st.dictionaries(st.integers(0, 3000), st.sampled_from(["good", "bad", "busy"]), max_size=50),
    st.none() | st.integers(0, 3000),
)
def test_each_shard_is_in_the_grid_once(states: dict[int, str], total: int | None) -> None:
    found = grid_of(states, total)
    size = max([total or 0, *(number + 1 for number in states)])
    if found is None:
        assert size == 0
        return
    drawn = Counter(
        (strip.row * found.columns + strip.column + offset, strip.state)
        for strip in found.strips
        for offset in range(strip.length)
    )
    assert drawn == Counter((number, states.get(number, "open")) for number in range(size))
    assert all(strip.column + strip.length <= found.columns for strip in found.strips)
    assert sum(found.counts.values()) == size
    assert set(found.counts) <= set(STATES)
    assert set(found.bad) <= {number for number, state in states.items() if state == "bad"}


def test_a_shard_that_cannot_be_is_not_drawn() -> None:
    found = grid_of({2**62: "good", -1: "busy", 1: "good"}, None)
    assert found is not None
    assert found.counts == {"good": 1, "open": 1}
    assert grid_of({2**62: "good"}, 0) is None


class TestBalance:
    def test_money_has_its_decimals_and_what_differs_says_by_how_much(self) -> None:
        controls = [
            Control(name="USD: beginning - principal = ending", expected=980_00, actual=979_95),
            Control(name="balance_JPY: in = out + rejected", expected=1200, actual=1200),
            Control(name="interest + principal = remittance, USD", expected=5, actual=5),
            Control(name="quantity: in = out", expected=1234567, actual=1234567),
        ]
        found = balances(controls, {"quantity": 3})
        assert [group.currency for group in found] == ["", "JPY", "USD"]
        (counts, yen, (first, second)) = (group.balances for group in found)
        assert (first.of, first.equation) == ("", "beginning - principal = ending")
        assert (first.expected, first.actual) == ("980.00 USD", "979.95 USD")
        assert (first.difference, first.balances) == ("-0.05 USD", False)
        assert (second.equation, second.balances) == ("interest + principal = remittance", True)
        assert (yen[0].of, yen[0].expected) == ("balance", "1,200 JPY")
        assert (counts[0].of, counts[0].expected) == ("quantity", "1,234.567")

    @given(st.integers(-(10**18), 10**18), st.sampled_from(["USD", "JPY", "KWD"]))
    def test_a_total_is_read_back_exactly(self, units: int, currency: str) -> None:
        digits = {"USD": 2, "JPY": 0, "KWD": 3}[currency]
        found = sheet({f"paid_{currency}": units, "rows": 7, "id_hash": 1}, {})
        assert found.currencies == ["", currency]
        ((label, values), (rows, counts)) = found.lines
        assert (label, rows, counts) == ("paid", "rows", {"": "7"})
        assert Decimal(values[currency].replace(",", "")) == Decimal(units).scaleb(-digits)


class TestNight:
    def test_each_thing_that_waits_for_a_person_is_told_with_its_reason(self) -> None:
        late = run(instance="late", must_finish_by=NOW - HOUR)
        stuck = run(instance="stuck")
        unsure = run(RunStatus.FAILURE, instance="unsure", error="one is unknown",
                     attempts=ended(AttemptOutcome.FAILURE))  # fmt: skip
        locked = run(RunStatus.SUCCESS, instance="locked", attempts=ended(AttemptOutcome.SUCCESS),
                     options=RunOptions(failure_event="stayed_locked"))  # fmt: skip
        paused = run(RunStatus.PAUSED, instance="paused")
        steering = Steering(number=1, at=NOW - HOUR, who="bob", why="a look", state="pause")
        asked = Approval(
            number=4, act=Act.CORRECT, who="ann", at=NOW, why="a typing error", arguments={}
        )
        found = of(
            seen(late),
            seen(stuck, stuck=[Executing(shard=1, component="A5", tries=3, error="no answer")]),
            seen(unsure, components={ComponentStatus.UNKNOWN: 1}),
            seen(locked, components={ComponentStatus.FAILURE: 2, ComponentStatus.SUCCESS: 8}),
            seen(paused, steering=steering),
            Seen(RunView(run(instance="asked"), Progress(at=NOW), approvals=[asked])),
        )
        told = {(m.name.partition("/")[2], m.what): (m.style, m.why) for m in found.matters}
        assert told.keys() == {
            ("late", "late"),
            ("stuck", "1 stuck"),
            ("unsure", "failed"),
            ("unsure", "to be resolved"),
            ("locked", "stayed locked"),
            ("paused", "paused"),
            ("asked", "to be approved"),
        }
        assert told["late", "late"] == (
            "bad",
            "no end can be foretold yet, deadline 11-21 02:00:00 UTC: 60 min late",
        )
        assert told["stuck", "1 stuck"][1] == "A5, in try 3: no answer"
        assert told["unsure", "failed"][1] == "one is unknown"
        assert told["locked", "stayed locked"][1] == "2 components failed"
        assert told["paused", "paused"][1] == "paused since 60 min by bob: a look"
        assert "ann: a typing error" in told["asked", "to be approved"][1]
        styles = [matter.style for matter in found.matters]
        assert styles == sorted(styles, key=["bad", "warn"].index)
        assert (found.late, found.stuck) == (1, 1)
        assert found.rows[0].seen.run is late

    def test_what_is_over_is_no_matter_of_this_night(self) -> None:
        old = run(
            RunStatus.FAILURE,
            attempts=ended(AttemptOutcome.FAILURE, NOW - 25 * HOUR),
            must_finish_by=NOW - 26 * HOUR,
        )
        found = of(seen(old))
        assert (found.matters, found.late, found.rows[0].forecast) == ([], 0, None)

    def test_a_run_that_hangs_for_days_leaves_room_for_the_night(self) -> None:
        hangs = run(instance="hangs", attempts=(attempt(started=NOW - 500 * HOUR),))
        found = of(seen(hangs), seen(run()))
        assert found.axis is not None
        assert found.axis.end - found.axis.start <= 48 * HOUR

    def test_a_kind_that_never_ran_has_its_deadline(self) -> None:
        india = "Asia/Kolkata"  # where it is half past eight in the morning
        unrun = [
            kind("tomorrow", Sla(must_finish_by=datetime.timedelta(hours=30), zone="UTC")),
            kind("six", Sla(must_finish_by=datetime.timedelta(hours=30), zone=india)),
            kind("nine", Sla(must_finish_by=datetime.timedelta(hours=33), zone=india)),
            kind("eight", Sla(must_start_by=datetime.time(8), zone=india)),
            kind("whenever", None),
        ]
        found = night([], [], unrun, NOW)
        assert [(due.kind, due.is_late, due.text) for due in found.due] == [
            ("six", True, "never ran, must have ended by 11-21 00:30:00 UTC: 2 h 30 min late"),
            ("eight", True, "never ran, must have started by 11-21 02:30:00 UTC: 30 min late"),
            ("nine", False, "never ran, must have ended by 11-21 03:30:00 UTC: 30 min to spare"),
            (
                "tomorrow",
                False,
                "never ran, must have ended by 11-21 06:00:00 UTC: 3 h 00 min to spare",
            ),
        ]
        assert found.axis == Axis(NOW - 2.5 * HOUR, NOW + 3 * HOUR)
        assert [due.place for due in found.due] == [0, 36.36, 54.55, 100]
        assert [(matter.name, matter.what, matter.style) for matter in found.matters] == [
            ("six", "late", "bad"),
            ("eight", "late", "bad"),
        ]
        assert found.late == 2

    def test_deadlines_that_cannot_be_read_keep_no_page_closed(self) -> None:
        damaged = kind("a", Sla(must_finish_by=datetime.timedelta(hours=6), zone="UTC"))
        damaged.parameters_schema["x-sla"]["zone"] = "Nowhere/At all"
        assert night([], [], [damaged], NOW).due == []

    @given(
        hours=st.integers(0, 100),
        minutes=st.integers(0, 366 * 24 * 60),
        zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York", "Pacific/Auckland"]),
    )
    def test_the_deadline_of_a_kind_that_never_ran_is_the_nearest(
        self, hours: int, minutes: int, zone: str
    ) -> None:
        at = NOW + datetime.timedelta(minutes=minutes)
        sla = Sla(must_finish_by=datetime.timedelta(hours=hours), zone=zone)
        (due,) = night([], [], [kind("a", sla)], at).due
        days = [at.date() + datetime.timedelta(days=days) for days in range(-7, 4)]
        deadlines = [sla.deadlines(day).finish_by for day in days]
        nearest = min(abs(by - at) for by in deadlines if by is not None)
        assert nearest <= 12.5 * HOUR
        told = (f"{by:%m-%d %H:%M:%S}" for by in deadlines if by and abs(by - at) <= 13 * HOUR)
        assert any(text in due.text for text in told)

    def test_a_run_whose_storage_is_out_of_reach_is_told(self) -> None:
        view = RunView(run(), Progress(at=NOW))
        (matter,) = of(Seen(view, "s3://results can't be reached")).matters
        assert (matter.what, matter.why) == ("out of sight", "s3://results can't be reached")


def test_an_action_has_its_command() -> None:
    found = actions(run(), ["cancel", "set-rate", "pause", "unheard-of"])
    assert [action.verb for action in found] == ["pause", "cancel", "set-rate"]
    assert found[2].command == "ledgerbeam set-rate a-id none --why=…"
    assert (
        command("retry", "id", "--component=A B") == "ledgerbeam retry id '--component=A B' --why=…"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (6100, "1 h 42 min"), (300_000, "3 d 11 h")],
)
def test_spans_of_time_are_said_as_people_do(seconds: int, text: str) -> None:
    assert duration(datetime.timedelta(seconds=seconds)) == text
