"""The registry when several want the same at once, and when a process or a connection dies."""

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.support.postgres import PostgresServer
from tests.support.racers import (
    NOON,
    Racers,
    after_statement,
    draft,
    end,
    minutes,
    start,
    submitted,
    take_over,
)

from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import MOVES, RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.errors import IllegalMoveError, RegistryUnavailableError

ROUNDS = 4


@pytest.fixture(scope="module")
def racers() -> Iterator[Racers]:
    with Racers(4) as racers:
        yield racers


def assert_story_replays(registry: Registry, run: str) -> None:
    """Moves follow one another without gap, each is legal, and the last is where the run is."""
    status = None
    for event in registry.events(run):
        if event.to_status is None:
            continue
        assert event.from_status is status
        assert status is None or event.to_status in MOVES[status]
        status = event.to_status
    assert registry.get(run).status is status


class TestRaces:
    def test_all_who_open_a_new_database_succeed(
        self, racers: Racers, new_schema: Callable[[], str], tmp_path: Path
    ) -> None:
        urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(3)]
        for url in [*urls, *(new_schema() for _ in range(3))]:
            assert racers.race(url, "open", {}, {}, {}, {}) == [True] * 4
            with Registry.open(url) as registry:
                assert submitted(registry) in registry.runs()

    def test_of_several_submitters_one_makes_the_run(
        self, racers: Racers, registry: Registry, registry_url: str
    ) -> None:
        for _ in range(ROUNDS):
            first = draft()
            # Of several versions, whose rows of definitions don't put them into a queue.
            drafts = [draft(instance=first.instance, code_version=version) for version in "1234"]
            given = [json.loads(each.model_dump_json()) for each in drafts]
            answers = racers.race(registry_url, "submit", *given)
            (run,) = registry.instance_runs(first.process, first.instance)
            assert sorted(answers) == [[run.id, False]] * 3 + [[run.id, True]]
            assert len(registry.events(run.id)) == 1

    def test_of_several_launchers_one_gets_the_attempt(
        self, racers: Racers, registry: Registry, registry_url: str
    ) -> None:
        for _ in range(ROUNDS):
            run = submitted(registry).id
            launchers = [{"run": run, "launcher": f"racer-{number}"} for number in range(4)]
            answers = racers.race(registry_url, "start", *launchers)
            (attempt,) = registry.get(run).attempts
            assert answers == [launcher["launcher"] == attempt.launcher for launcher in launchers]
            assert len(registry.events(run)) == 2

    def test_of_several_who_start_a_launcher_one_may(self, registry: Registry) -> None:
        seen = submitted(registry)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(registry.begin_launch, seen, minutes(n)) for n in range(8)]
            assert sorted(each.result() for each in asked) == [False] * 7 + [True]
        begun = registry.get(seen.id)
        assert begun.launcher_started_at is not None
        registry.record_launcher(seen.id, begun.launcher_started_at, "host:1:2.00")
        assert registry.get(seen.id).launcher_process == "host:1:2.00"
        # It comes, and with that it is on its way no more.
        assert start(registry, seen.id)
        assert registry.get(seen.id).launcher_started_at is None
        registry.record_launcher(seen.id, begun.launcher_started_at, "host:3:4.00")
        assert registry.get(seen.id).launcher_process is None
        # Who saw the run before it came is too late, though none is on its way now either.
        assert not registry.begin_launch(seen, minutes(9))
        assert registry.begin_launch(registry.get(seen.id), minutes(9))
        assert take_over(registry, seen.id, "launcher-2")
        assert registry.get(seen.id).launcher_started_at is None

    def test_of_several_reconcilers_one_takes_over(
        self, racers: Racers, registry: Registry, registry_url: str
    ) -> None:
        for _ in range(ROUNDS):
            run = submitted(registry).id
            start(registry, run)
            reconcilers = [{"run": run, "launcher": f"racer-{number}"} for number in range(4)]
            answers = racers.race(registry_url, "take_over", *reconcilers)
            (attempt,) = registry.get(run).attempts
            assert answers == [each["launcher"] == attempt.launcher for each in reconcilers]
            assert len(registry.events(run)) == 3

    def test_an_attempt_ends_once(
        self, racers: Racers, registry: Registry, registry_url: str
    ) -> None:
        for _ in range(ROUNDS):
            run = submitted(registry).id
            start(registry, run)
            answers = racers.race(registry_url, "end", *[{"run": run}] * 4)
            assert sorted(answers) == [False] * 3 + [True]
            assert len(registry.events(run)) == 3

    def test_moves_of_many_follow_one_another(
        self, racers: Racers, registry: Registry, registry_url: str
    ) -> None:
        run = submitted(registry).id
        walks = [{"run": run, "seed": seed, "steps": 40} for seed in range(4)]
        made = racers.race(registry_url, "wander", *walks)
        assert all(count > 0 for count in made), made
        assert len(registry.events(run)) == 1 + sum(made)
        assert_story_replays(registry, run)


class TestDying:
    @pytest.mark.parametrize("call", ["submit", "start", "take_over", "end"])
    def test_a_process_killed_at_any_statement_has_done_nothing(
        self, racers: Racers, registry: Registry, registry_url: str, call: str
    ) -> None:
        argument: dict[str, Any]
        if call == "submit":
            argument = json.loads(draft().model_dump_json())
        else:
            argument = {"run": submitted(registry).id}
            if call != "start":
                start(registry, argument["run"])
            if call == "take_over":
                argument["launcher"] = "launcher-2"

        def state() -> Any:
            return [(run, registry.events(run.id)) for run in registry.runs()]

        before = state()
        statements = 1
        while racers.die(registry_url, call, argument, statements):
            assert state() == before
            statements += 1
        assert statements > 3
        assert state() != before

    def test_a_connection_cut_at_any_statement_has_done_nothing(
        self, postgres: PostgresServer
    ) -> None:
        url = postgres.create_database()
        admin = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with Registry.open(url) as registry:
            run = submitted(registry).id
            before = registry.get(run), registry.events(run)
            for cuts in itertools.count(1):
                cut = after_statement(cuts, lambda: _cut_others(admin))
                with suppress(RegistryUnavailableError), cut:
                    start(registry, run)
                    break
                # The next call connects again.
                assert (registry.get(run), registry.events(run)) == before
            assert cuts > 4
            assert registry.get(run).status is RunStatus.EXECUTING
            assert len(registry.events(run)) == 2

    def test_a_connection_cut_between_calls_is_not_noticed(self, postgres: PostgresServer) -> None:
        url = postgres.create_database()
        admin = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with Registry.open(url) as registry:
            run = submitted(registry).id
            _cut_others(admin)
            assert start(registry, run)
            _cut_others(admin)
            assert registry.get(run).live_attempt is not None


def _cut_others(admin: sa.Engine) -> None:
    # Its own statement would count.
    with admin.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert all(done for (done,) in cursor.fetchall())


@dataclass
class Attempt:
    """What the model remembers of an attempt."""

    launcher: str
    lease: int
    outcome: AttemptOutcome | None = None


class Model(RuleBasedStateMachine):
    """Calls at random, against plain Python that says what each has to do."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.registry = registry
        self.run = submitted(registry).id
        self.status = RunStatus.INITIATED
        self.attempts: list[Attempt] = []
        self.events = 1

    @property
    def live(self) -> Attempt | None:
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.outcome is None else None

    @rule(to=st.sampled_from(RunStatus), expected=st.none() | st.sampled_from(RunStatus))
    def move(self, to: RunStatus, expected: RunStatus | None) -> None:
        legal = to in MOVES[self.status] and not (to.is_final and self.live is not None)
        try:
            moved = self.registry.move(self.run, to, who="me", at=NOON, expected=expected)
        except IllegalMoveError:
            assert expected in (None, self.status)
            assert not legal
            return
        assert moved == (expected in (None, self.status))
        if moved:
            assert legal
            self._moved_to(to)

    @rule(ahead=st.integers(-1, 1), launcher=st.sampled_from("abc"), lease=st.integers(1, 9))
    def start(self, ahead: int, launcher: str, lease: int) -> None:
        number = len(self.attempts) + ahead
        free = ahead == 1 and self.live is None
        facts = {"launcher": launcher, "lease_until": minutes(lease)}
        started = start(self.registry, self.run, number, **facts)
        assert started == (free and not self.status.is_final)
        if started:
            self.attempts.append(Attempt(launcher, lease))
            begins = self.status is RunStatus.INITIATED
            self._moved_to(RunStatus.EXECUTING if begins else self.status)

    @rule(
        launcher=st.sampled_from("abc"),
        outcome=st.sampled_from(AttemptOutcome),
        to=st.none() | st.sampled_from([RunStatus.SUCCESS, RunStatus.FAILURE, RunStatus.CANCELED]),
    )
    def end(self, launcher: str, outcome: AttemptOutcome, to: RunStatus | None) -> None:
        owns = self.live is not None and self.live.launcher == launcher
        number = max(len(self.attempts), 1)
        facts = {"launcher": launcher, "outcome": outcome, "to": to}
        try:
            ended = end(self.registry, self.run, number, **facts)
        except IllegalMoveError:
            assert owns
            assert to not in MOVES[self.status]
            return
        assert ended == owns
        if ended:
            self.attempts[-1].outcome = outcome
            self._moved_to(to or self.status)

    @rule(launcher=st.sampled_from("abc"), lease=st.integers(1, 9))
    def renew(self, launcher: str, lease: int) -> None:
        owns = self.live is not None and self.live.launcher == launcher
        number = max(len(self.attempts), 1)
        until = minutes(lease)
        renewed = self.registry.renew(self.run, number, launcher=launcher, lease_until=until)
        assert renewed == owns
        if renewed:
            self.attempts[-1].lease = lease

    @rule(old=st.sampled_from("abc"), new=st.sampled_from("abc"), at=st.integers(0, 9))
    def take_over(self, old: str, new: str, at: int) -> None:
        owns = self.live is not None and self.live.launcher == old and self.live.lease < at
        taken = self.registry.take_over(
            self.run,
            max(len(self.attempts), 1),
            old_launcher=old,
            new_launcher=new,
            lease_until=minutes(9),
            who="me",
            at=minutes(at),
        )
        assert taken == owns
        if taken:
            self.attempts[-1] = Attempt(new, 9)
            self.events += 1

    @invariant()
    def the_record_is_as_the_model_says(self) -> None:
        record: RunRecord = self.registry.get(self.run)
        assert record.status is self.status
        assert [(a.launcher, a.lease_until, a.outcome) for a in record.attempts] == [
            (a.launcher, minutes(a.lease), a.outcome) for a in self.attempts
        ]
        assert len(self.registry.events(self.run)) == self.events
        assert_story_replays(self.registry, self.run)

    def _moved_to(self, status: RunStatus) -> None:
        self.status = status
        self.events += 1


def test_any_sequence_of_calls_does_what_the_model_says(registry: Registry) -> None:
    class OfRegistry(Model):
        def __init__(self) -> None:
            super().__init__(registry)

    run_state_machine_as_test(
        OfRegistry,
        settings=settings(
            max_examples=25,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_an_old_owner_and_a_new_one_never_both_hold_an_attempt(registry: Registry) -> None:
    run = submitted(registry).id
    start(registry, run)
    assert take_over(registry, run, "launcher-2")
    renewals = [
        registry.renew(run, 1, launcher=launcher, lease_until=minutes(20))
        for launcher in ("launcher-1", "launcher-2")
    ]
    assert renewals == [False, True]
