"""The registry: what is submitted, moved, attempted and found again."""

from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import StatementError
from tests.support.racers import NOON, draft, end, minutes, play, start, submitted, take_over

from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome, RunOptions, RunRecord
from ledgerbeam.batch.model.status import MOVES, RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.schema import metadata
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.io.errors import IllegalMoveError, RunNotFoundError, UserError


def move(registry: Registry, run: str, *statuses: RunStatus, **facts: Any) -> bool:
    moved = [registry.move(run, to, who="ada@bank", at=NOON, **facts) for to in statuses]
    return all(moved)


def history(registry: Registry, run: str) -> list[tuple[str, RunStatus | None]]:
    return [(event.type, event.to_status) for event in registry.events(run)]


class TestSubmission:
    def test_a_run_comes_back_as_it_was_submitted(self, registry: Registry) -> None:
        given = draft(
            reason="first",
            beam_flags=["--parallelism=4"],
            must_start_by=minutes(10),
            must_finish_by=minutes(60),
            results_expire_at=minutes(100),
            options=RunOptions(runner="local", lost_attempts=5, folder="/jobs"),
        )
        run, created = registry.submit(given, {"type": "object"})
        assert created
        assert run == RunRecord(
            **given.model_dump(),
            status=RunStatus.INITIATED,
            error=None,
            results_expired_at=None,
            next_kind=AttemptKind.FIRST,
            attempts=(),
        )
        assert registry.get(run.id) == run
        (event,) = registry.events(run.id)
        assert event.to_status is RunStatus.INITIATED
        assert (event.who, event.at, event.why) == ("ada@bank", NOON, "first")

    def test_options_are_stored_as_plain_json_and_read_whatever_version_stored_them(
        self, registry: Registry, engine: sa.Engine
    ) -> None:
        run = submitted(registry, options=RunOptions(runner="local", lost_attempts=5))
        table = metadata.tables["run"]
        with engine.begin() as connection:
            assert connection.execute(sa.select(table.c.options)).scalar_one() == {
                "runner": "local",
                "attempt_deadline_seconds": 86400,
                "lost_attempts": 5,
                "failure_event": "components_failed",
                "has_cleanup": False,
                "results_expire_after_seconds": None,
                "folder": "",
            }
            other = {"lost_attempts": 2, "of_another_version": [1]}
            connection.execute(table.update().values(options=other))
        assert registry.get(run.id).options == RunOptions(lost_attempts=2)

    def test_times_come_back_in_utc_and_none_is_taken_without_zone(
        self, registry: Registry
    ) -> None:
        delhi = timezone(timedelta(hours=5, minutes=30))
        at = datetime(2026, 11, 20, 1, 2, 3, 456789, tzinfo=delhi)
        run = submitted(registry, submitted_at=at)
        for time in (run.submitted_at, registry.events(run.id)[0].at):
            assert time == at
            assert time.utcoffset() == timedelta(0)
        with pytest.raises(StatementError, match="no time zone"):
            registry.move(run.id, RunStatus.PAUSED, who="ada", at=at.replace(tzinfo=None))
        assert registry.get(run.id) == run

    def test_the_same_again_is_the_same_run(self, registry: Registry) -> None:
        first = draft()
        run, _ = registry.submit(first, {})
        start(registry, run.id)
        again, created = registry.submit(first.model_copy(update={"id": draft().id}), {})
        assert not created
        assert again == registry.get(run.id)
        assert len(registry.events(run.id)) == 2

    def test_other_parameters_are_refused_by_name(self, registry: Registry) -> None:
        first = draft(parameters={"trades": "a", "shards": 7, "format": None})
        registry.submit(first, {})
        other = first.model_copy(
            update={"id": draft().id, "parameters": {"trades": "b", "shards": 7, "day": 1}}
        )
        with pytest.raises(UserError, match=r"parameters: day, format, trades: .* --replace --why"):
            registry.submit(other, {})

    def test_a_parameter_that_the_definition_got_since_changes_nothing_while_it_is_empty(
        self, registry: Registry
    ) -> None:
        first = draft(parameters={"trades": "a"})
        run, _ = registry.submit(first, {})
        update = {"id": draft().id, "parameters": {"trades": "a", "values": "", "change": None}}
        assert registry.submit(first.model_copy(update=update), {})[0].id == run.id

    def test_a_new_run_needs_an_end_of_the_last_one_its_number_and_a_reason(
        self, registry: Registry
    ) -> None:
        first = draft()
        run, _ = registry.submit(first, {})

        def again(number: int, reason: str) -> RunRecord:
            changes = {"id": draft().id, "run_number": number, "reason": reason}
            return registry.submit(first.model_copy(update=changes), {})[0]

        with pytest.raises(UserError, match=r"\(.*\) is INITIATED: wait for its end"):
            again(2, "late trades")
        start(registry, run.id)
        end(registry, run.id)
        with pytest.raises(UserError, match=r"SUCCESS.*: give the reason"):
            again(2, " ")
        with pytest.raises(UserError, match="give --run-number=2"):
            again(3, "late trades")
        second = again(2, "late trades")
        assert second.reason == "late trades"
        assert second.id != run.id
        assert again(1, "").id == run.id
        assert registry.instance_runs(run.process, run.instance) == [second, registry.get(run.id)]

    def test_the_first_run_is_number_one(self, registry: Registry) -> None:
        with pytest.raises(UserError, match="give --run-number=1"):
            submitted(registry, run_number=2, reason="late trades")
        assert registry.runs() == []

    def test_a_name_stands_for_one_instance(self, registry: Registry) -> None:
        first = draft()
        registry.submit(first, {})
        for other in ({"identity": {"trade_date": "x"}}, {"business_date": date(2026, 1, 1)}):
            changes = {"id": draft().id, "run_number": 2, "reason": "r", **other}
            with pytest.raises(UserError, match="give one of them another name"):
                registry.submit(first.model_copy(update=changes), {})

    def test_definitions_are_kept_by_code_version(
        self, registry: Registry, engine: sa.Engine
    ) -> None:
        for version, schema, at in (("1.0", "a", 0), ("1.0", "b", 1), ("1.1", "c", 2)):
            changes = {"code_version": version, "submitted_at": minutes(at)}
            run, _ = registry.submit(draft(**changes), {"title": schema})
            assert run.code_version == version
        with engine.connect() as connection:
            rows = connection.execute(metadata.tables["definition"].select()).all()
        assert [tuple(row)[2:] for row in rows] == [
            ("1.0", {"title": "b"}, NOON, minutes(1)),
            ("1.1", {"title": "c"}, minutes(2), minutes(2)),
        ]

    def test_text_that_no_database_takes_is_kept_as_escapes(self, registry: Registry) -> None:
        run = submitted(registry, submitted_by="a\0b\udcff€")
        move(registry, run.id, RunStatus.FAILURE, why="\0", detail={"file": "\udcff", "nul": "\0"})
        assert registry.get(run.id).submitted_by == r"a\x00b\udcff€"
        assert registry.get(run.id).error == r"\x00"
        assert registry.events(run.id)[-1].detail == {"file": "\udcff", "nul": "\0"}


class TestMoves:
    def test_a_move_is_an_event(self, registry: Registry) -> None:
        run = submitted(registry)
        assert registry.move(
            run.id,
            RunStatus.PAUSED,
            who="ada@bank",
            at=minutes(3),
            why="source is being repaired",
            detail={"ticket": 7},
        )
        assert registry.get(run.id).status is RunStatus.PAUSED
        event = registry.events(run.id)[-1]
        assert event.model_dump(exclude={"sequence"}) == {
            "run": run.id,
            "process": run.process,
            "instance": run.instance,
            "attempt": None,
            "at": minutes(3),
            "who": "ada@bank",
            "type": "status",
            "from_status": RunStatus.INITIATED,
            "to_status": RunStatus.PAUSED,
            "why": "source is being repaired",
            "detail": {"ticket": 7},
        }

    @pytest.mark.parametrize("status", RunStatus)
    def test_only_legal_moves_are_made(self, registry: Registry, status: RunStatus) -> None:
        for to in RunStatus:
            run = submitted(registry)
            move(registry, run.id, *_way_to(status))
            before = registry.events(run.id)
            if to in MOVES[status]:
                assert move(registry, run.id, to)
                assert registry.get(run.id).status is to
            else:
                with pytest.raises(IllegalMoveError, match=f"is {status}, and can't become {to}"):
                    move(registry, run.id, to)
                assert registry.get(run.id).status is status
                assert registry.events(run.id) == before

    def test_a_run_that_others_have_moved_is_left_alone(self, registry: Registry) -> None:
        run = submitted(registry)
        move(registry, run.id, RunStatus.PAUSED)
        assert not move(registry, run.id, RunStatus.CANCELED, expected=RunStatus.INITIATED)
        assert move(registry, run.id, RunStatus.CANCELING, expected=RunStatus.PAUSED)
        assert len(registry.events(run.id)) == 3

    def test_a_run_does_not_end_before_its_attempt(self, registry: Registry) -> None:
        run = submitted(registry)
        start(registry, run.id)
        with pytest.raises(IllegalMoveError, match=r"attempt 1 is live: .*launcher-1"):
            move(registry, run.id, RunStatus.FAILURE)
        assert registry.get(run.id).status is RunStatus.EXECUTING
        assert move(registry, run.id, RunStatus.CANCELING)

    def test_what_follows_a_lost_attempt_does_what_was_asked_for(self, registry: Registry) -> None:
        run = play(registry, submitted(registry).id, "start fail retry start lose start lose")
        kinds = [attempt.kind.value for attempt in run.attempts]
        assert kinds == ["first", "retry", "reconcile"]
        assert run.request == run.attempts[1:]
        assert run.next_kind is AttemptKind.RECONCILE
        asked = play(registry, run.id, "start give-up restart start")
        assert asked.request == asked.attempts[4:]
        assert [attempt.kind.value for attempt in asked.request] == ["restart"]

    def test_a_request_is_on_record(self, registry: Registry) -> None:
        run = play(registry, submitted(registry).id, "start fail retry")
        assert registry.events(run.id)[-1].detail == {"kind": "retry"}

    def test_the_last_error_stays_until_success(self, registry: Registry) -> None:
        run = submitted(registry)
        move(registry, run.id, RunStatus.FAILURE, why="no capacity")
        assert registry.get(run.id).error == "no capacity"
        move(registry, run.id, RunStatus.EXECUTING)
        start(registry, run.id)
        assert registry.get(run.id).error == "no capacity"
        failed: dict[str, Any] = {"outcome": AttemptOutcome.FAILURE, "to": RunStatus.FAILURE}
        end(registry, run.id, error="disk full", **failed)
        assert registry.get(run.id).error == "disk full"
        move(registry, run.id, RunStatus.EXECUTING)
        start(registry, run.id, 2)
        end(registry, run.id, 2)
        assert registry.get(run.id).error is None
        assert [attempt.error for attempt in registry.get(run.id).attempts] == ["disk full", None]

    def test_events_without_move(self, registry: Registry) -> None:
        run = submitted(registry)
        entry = Event(
            run=run.id,
            process=run.process,
            instance=run.instance,
            attempt=1,
            at=minutes(1),
            who="ada@bank",
            type="parallelism",
            why="database is idle",
            detail={"from": 4, "to": 16},
        )
        registry.append(entry)
        (_, event) = registry.events(run.id)
        assert Event(**event.model_dump(exclude={"sequence"})) == entry
        with pytest.raises(UserError, match="no run x"):
            registry.append(entry.model_copy(update={"run": "x"}))
        with pytest.raises(ValueError, match="use move"):
            registry.append(entry.model_copy(update={"to_status": RunStatus.SUCCESS}))

    def test_events_are_delivered_until_marked(self, registry: Registry) -> None:
        runs = [submitted(registry) for _ in range(3)]
        assert [event.run for event in registry.undelivered(2)] == [run.id for run in runs[:2]]
        registry.mark_delivered([event.sequence for event in registry.undelivered(2)])
        move(registry, runs[0].id, RunStatus.PAUSED)
        left = registry.undelivered(10)
        assert [(event.run, event.type) for event in left] == [
            (runs[2].id, "submitted"),
            (runs[0].id, "status"),
        ]
        registry.mark_delivered([event.sequence for event in left])
        assert registry.undelivered(10) == []
        assert len(registry.events(runs[0].id)) == 2


def _way_to(status: RunStatus) -> list[RunStatus]:
    """Moves from the beginning to a status."""
    ways: dict[RunStatus, list[RunStatus]] = {RunStatus.INITIATED: []}
    while status not in ways:
        ways |= {to: [*way, to] for at, way in ways.items() for to in MOVES[at] if to not in ways}
    return ways[status]


class TestAttempts:
    def test_an_attempt_from_beginning_to_end(self, registry: Registry) -> None:
        run = submitted(registry).id
        assert start(registry, run)
        own = {"launcher": "launcher-1"}
        assert registry.record_job(run, 1, **own, job_id="job-7", who="launcher", at=minutes(1))
        assert registry.renew(run, 1, **own, lease_until=minutes(2))
        live = registry.get(run).live_attempt
        assert live is not None
        assert (live.job_id, live.lease_until, live.deadline) == ("job-7", minutes(2), minutes(60))
        assert end(registry, run, results_expire_at=minutes(90))
        record = registry.get(run)
        assert record.status is RunStatus.SUCCESS
        assert record.live_attempt is None
        assert record.results_expire_at == minutes(90)
        assert [(a.outcome, a.ended_at) for a in record.attempts] == [
            (AttemptOutcome.SUCCESS, minutes(2))
        ]
        assert history(registry, run) == [
            ("submitted", RunStatus.INITIATED),
            ("attempt_started", RunStatus.EXECUTING),
            ("job", None),
            ("attempt_ended", RunStatus.SUCCESS),
        ]
        assert [event.attempt for event in registry.events(run)] == [None, 1, 1, 1]

    def test_who_is_late_gets_no_attempt(self, registry: Registry) -> None:
        run = submitted(registry).id
        assert start(registry, run)
        assert not start(registry, run, launcher="launcher-2")
        assert not start(registry, run, 2, launcher="launcher-2")
        end(registry, run, outcome=AttemptOutcome.FAILURE, to=RunStatus.FAILURE)
        # It has failed since, but another one wasn't what this launcher wanted.
        assert not start(registry, run, launcher="launcher-2")
        assert len(registry.get(run).attempts) == 1
        # Nor does anybody get one until the run is to go on.
        assert not start(registry, run, 2, launcher="launcher-2")
        move(registry, run, RunStatus.EXECUTING)
        assert start(registry, run, 2, launcher="launcher-2")
        with pytest.raises(ValueError, match="has 2 attempts"):
            start(registry, run, 4)

    def test_an_end_is_final_for_its_launcher(self, registry: Registry) -> None:
        run = submitted(registry).id
        start(registry, run)
        end(registry, run, outcome=AttemptOutcome.LOST, to=None)
        before = registry.get(run), registry.events(run)
        own = {"launcher": "launcher-1"}
        assert not registry.renew(run, 1, **own, lease_until=minutes(9))
        assert not registry.record_job(run, 1, **own, job_id="j", who="launcher", at=minutes(1))
        assert not end(registry, run)
        assert not take_over(registry, run, "launcher-2")
        assert (registry.get(run), registry.events(run)) == before

    @pytest.mark.parametrize("wish", [RunStatus.PAUSED, RunStatus.CANCELING])
    def test_what_was_asked_for_survives_a_lost_attempt(
        self, registry: Registry, wish: RunStatus
    ) -> None:
        run = submitted(registry).id
        start(registry, run)
        move(registry, run, wish)
        end(registry, run, outcome=AttemptOutcome.LOST, to=None)
        assert registry.get(run).status is wish
        assert start(registry, run, 2)
        assert registry.get(run).status is wish

    def test_a_run_can_be_paused_before_it_begins(self, registry: Registry) -> None:
        run = submitted(registry).id
        move(registry, run, RunStatus.PAUSED, RunStatus.EXECUTING)
        assert start(registry, run)

    def test_what_succeeded_is_not_attempted_again(self, registry: Registry) -> None:
        run = submitted(registry).id
        start(registry, run)
        end(registry, run)
        assert not start(registry, run, 2)
        with pytest.raises(IllegalMoveError, match="next run number and a reason"):
            move(registry, run, RunStatus.EXECUTING)

    def test_a_run_that_was_canceled_before_it_began_never_begins(self, registry: Registry) -> None:
        run = submitted(registry).id
        move(registry, run, RunStatus.CANCELED)
        assert not start(registry, run)
        assert registry.get(run).status is RunStatus.CANCELED

    def test_only_the_latest_run_of_an_instance_is_attempted(self, registry: Registry) -> None:
        first = draft()
        run, _ = registry.submit(first, {})
        move(registry, run.id, RunStatus.CANCELED)
        changes = {"id": draft().id, "run_number": 2, "reason": "late trades"}
        registry.submit(first.model_copy(update=changes), {})
        with pytest.raises(IllegalMoveError, match=r"run 2 of .* was submitted after it"):
            move(registry, run.id, RunStatus.EXECUTING)
        assert registry.get(run.id).status is RunStatus.CANCELED

    def test_an_end_that_the_run_can_not_have_changes_nothing(self, registry: Registry) -> None:
        run = submitted(registry).id
        start(registry, run)
        with pytest.raises(IllegalMoveError, match="EXECUTING, and can't become CANCELED"):
            end(registry, run, outcome=AttemptOutcome.CANCELED, to=RunStatus.CANCELED)
        assert registry.get(run).live_attempt is not None

    def test_an_attempt_is_taken_over_when_its_lease_ran_out(self, registry: Registry) -> None:
        run = submitted(registry).id
        start(registry, run, lease_until=minutes(5))
        assert not take_over(registry, run, "launcher-2")
        registry.renew(run, 1, launcher="launcher-1", lease_until=minutes(4))
        assert take_over(registry, run, "launcher-2")
        assert not take_over(registry, run, "launcher-3")
        # The one that was thought dead wakes up.
        assert not registry.renew(run, 1, launcher="launcher-1", lease_until=minutes(20))
        assert not end(registry, run)
        assert registry.renew(run, 1, launcher="launcher-2", lease_until=minutes(20))
        assert end(registry, run, launcher="launcher-2")


class TestQuestions:
    @pytest.mark.parametrize("text", ["abcdef\0", "abcdef\udcff", "a\0/b", "a/\udcff"])
    def test_what_no_database_takes_names_no_run(self, registry: Registry, text: str) -> None:
        submitted(registry)
        for ask in (registry.find, registry.get):
            with pytest.raises(RunNotFoundError, match="no run a"):
                ask(text)
        assert registry.runs(RunFilter(text)) == []

    def test_runs_are_found_as_people_name_them(self, registry: Registry) -> None:
        first = draft(id="abcdef00-0000-4000-8000-000000000001", instance="2026/11/20")
        run, _ = registry.submit(first, {})
        for text in (run.id, "abcdef", "ABCDEF00", "delivery-marking/2026/11/20", f"{run.name}/1"):
            assert registry.find(text) == run
        move(registry, run.id, RunStatus.CANCELED)
        changes = {"id": f"{run.id[:-1]}2", "run_number": 2, "reason": "late trades"}
        second, _ = registry.submit(first.model_copy(update=changes), {})
        assert second.name == "delivery-marking/2026/11/20/2"
        assert registry.find(second.name) == second
        assert registry.find("delivery-marking/2026/11/20") == second
        assert registry.find("delivery-marking/2026/11/20/1").id == run.id
        with pytest.raises(UserError, match=f"several.*{second.id}.*{run.id}"):
            registry.find("abcdef")
        with pytest.raises(UserError, match="abcde is no run: give 6 or more"):
            registry.find("abcde")
        for text in ("abcdeg", "abcd_f", "%%%%%%", "delivery-marking/x", f"{run.name}/3", "/"):
            with pytest.raises(UserError, match="no run"):
                registry.find(text)
        with pytest.raises(UserError, match="no run abcdef"):
            registry.get("abcdef")

    def test_the_latest_run_has_the_highest_number(self, registry: Registry) -> None:
        first = draft(id="ffffffff-0000-4000-8000-000000000001")
        run, _ = registry.submit(first, {})
        move(registry, run.id, RunStatus.CANCELED)
        changes = {"id": f"0{run.id[1:]}", "run_number": 2, "reason": "late trades"}
        second, _ = registry.submit(first.model_copy(update=changes), {})
        assert registry.find(f"{run.process}/{run.instance}") == second
        assert [r.run_number for r in registry.instance_runs(run.process, run.instance)] == [2, 1]

    def test_runs_are_listed_page_by_page(self, registry: Registry) -> None:
        # Some at the same time, and none in the order of their ids.
        runs = [submitted(registry, submitted_at=minutes(at)) for at in (3, 1, 2, 2, 2, 5, 4)]
        expected = sorted(runs, key=lambda run: (run.submitted_at, run.id), reverse=True)
        pages, last = [], None
        while page := registry.runs(limit=2, before=last):
            pages.append(page)
            last = page[-1].id
        assert [len(page) for page in pages] == [2, 2, 2, 1]
        assert [run for page in pages for run in page] == expected
        assert registry.runs() == expected

    def test_runs_are_chosen_by_process_and_status(self, registry: Registry) -> None:
        mine = submitted(registry, process="a").id
        start(registry, mine)
        other = submitted(registry, process="b").id
        done = submitted(registry, process="a").id
        move(registry, done, RunStatus.CANCELED)

        def ids(runs: list[RunRecord]) -> set[str]:
            return {run.id for run in runs}

        assert ids(registry.runs(RunFilter("a"))) == {mine, done}
        assert ids(registry.runs(RunFilter(status=RunStatus.EXECUTING))) == {mine}
        assert ids(registry.runs(RunFilter("b", RunStatus.EXECUTING))) == set()
        assert ids(registry.open_runs()) == {mine, other}
        assert [
            len(run.attempts) for run in registry.runs(RunFilter("a", RunStatus.EXECUTING))
        ] == [1]

    def test_results_expire_once_their_run_has_ended(self, registry: Registry) -> None:
        run = submitted(registry, results_expire_at=minutes(10)).id
        submitted(registry)
        assert registry.expiring(minutes(20)) == []
        start(registry, run)
        end(registry, run)
        assert registry.expiring(minutes(9)) == []
        assert [due.id for due in registry.expiring(minutes(10))] == [run]
        assert registry.mark_expired(run, who="expire@host", at=minutes(11))
        assert not registry.mark_expired(run, who="expire@host", at=minutes(12))
        assert registry.expiring(minutes(20)) == []
        assert registry.get(run).results_expired_at == minutes(11)
        assert history(registry, run)[-1] == ("results_expired", None)

    def test_no_story_without_a_run(self, registry: Registry) -> None:
        assert registry.events("x") == []
        assert registry.instance_runs("delivery-marking", "x") == []


class TestCorrections:
    def test_parameters_are_changed_with_the_move(self, registry: Registry) -> None:
        run = submitted(registry)
        move(registry, run.id, RunStatus.FAILURE)
        assert move(registry, run.id, RunStatus.EXECUTING, parameters={"shards": 9, "rule": "a"})
        assert registry.get(run.id).parameters == {**run.parameters, "shards": 9, "rule": "a"}
        assert registry.events(run.id)[-1].detail == {
            "parameters": {
                "rule": {"before": None, "now": "a"},
                "shards": {"before": 7, "now": 9},
            }
        }

    def test_a_run_takes_the_place_of_one_that_failed(self, registry: Registry) -> None:
        old = submitted(registry)
        start(registry, old.id)
        failed: dict[str, Any] = {"outcome": AttemptOutcome.FAILURE, "to": RunStatus.FAILURE}
        assert end(registry, old.id, **failed, results_expire_at=minutes(5))
        again = draft(instance=old.instance, uri=old.uri, parameters={"shards": 9})
        new = registry.replace(old.id, again, {}, "too few")
        assert (new.id, new.name, new.status) == (again.id, old.name, RunStatus.INITIATED)
        assert registry.find(old.name).id == new.id
        assert registry.submit(again, {}) == (new, False)
        aside = registry.get(old.id)
        assert (aside.status, aside.attempts, aside.run_number) == (
            RunStatus.FAILURE, registry.get(old.id).attempts, 1,
        )  # fmt: skip
        assert registry.expiring(minutes(9)) == []
        assert (registry.successor(old.id), registry.successor(new.id)) == (new.id, None)
        with pytest.raises(IllegalMoveError, match=f"run {new.id} was submitted in its place"):
            move(registry, old.id, RunStatus.EXECUTING)
        with pytest.raises(IllegalMoveError, match="isn't the last run of"):
            registry.replace(old.id, draft(instance=old.instance), {}, "once more")
        assert registry.get(old.id).status is RunStatus.FAILURE

    @pytest.mark.parametrize(
        "status", [s for s in RunStatus if s not in (RunStatus.FAILURE, RunStatus.CANCELED)]
    )
    def test_only_what_has_ended_without_publishing_is_replaced(
        self, registry: Registry, status: RunStatus
    ) -> None:
        run = submitted(registry)
        move(registry, run.id, *_way_to(status))
        with pytest.raises(IllegalMoveError, match=f"is {status}, and can be replaced only when"):
            registry.replace(run.id, draft(instance=run.instance), {}, "why not")
        assert [each.id for each in registry.runs() if each.instance == run.instance] == [run.id]
