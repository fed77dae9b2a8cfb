"""The protocol by which late commits are never skipped: in a model, and in real databases.

What it proves, for every interleaving that the machine finds: a message whose transaction has
committed and that is due is posted exactly once, however late it was committed and wherever the
clock stood; one that was rolled back, canceled or moved before is never posted; nothing is posted
before its time; and a sweep posts in order of due time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.messages.window import Model, Real, World

from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file

DUES = st.integers(1, 40)


class Senders(RuleBasedStateMachine):
    """Transactions that overlap, and a scheduler that posts whenever it likes."""

    make_world: Callable[[], World]
    overlap = 4
    waits = False
    """Whether posting waits for senders' transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.world = self.make_world()
        self.now = self.latest = 10
        self.number = 0
        self.open: dict[int, Any] = {}
        self.pending: dict[int, dict[str, int | None]] = {}
        self.expected: dict[str, int] = {}
        self.checked = 0
        self.committed_before_sweep: dict[str, int] | None = None

    def teardown(self) -> None:
        try:
            for transaction in list(self.open):
                self.end(transaction, commits=bool(transaction % 2))
            self.latest = self.now = 100
            self.sweep()
            self.sweep()
            assert dict(self.world.posted()) == self.expected
        finally:
            for connection in self.open.values():
                self.world.rollback(connection)
            self.world.close()

    def sweep(self) -> None:
        while not self.world.post(self.now, 2):
            pass
        self.check()

    def is_free(self, key: str) -> bool:
        return all(key not in changes for changes in self.pending.values())

    @precondition(lambda self: len(self.open) < self.overlap)
    @rule(due=DUES)
    def begins(self, due: int) -> None:
        self.number += 1
        self.open[self.number] = self.world.begin()
        self.pending[self.number] = {}
        self._write(self.number, due)

    @precondition(lambda self: self.open)
    @rule(due=DUES, choice=st.integers(0, 10))
    def writes(self, due: int, choice: int) -> None:
        self._write(sorted(self.open)[choice % len(self.open)], due)

    def _write(self, number: int, due: int) -> None:
        self.number += 1
        key = f"m{self.number}"
        self.world.schedule(self.open[number], key, due)
        self.pending[number][key] = due

    @precondition(lambda self: self.open and self.expected)
    @rule(which=st.integers(0, 50), choice=st.integers(0, 10), due=st.none() | DUES)
    def withdraws(self, which: int, choice: int, due: int | None) -> None:
        key = sorted(self.expected)[which % len(self.expected)]
        number = sorted(self.open)[choice % len(self.open)]
        if not self.is_free(key):
            return
        if due is None:
            is_done = self.world.cancel(self.open[number], key)
        else:
            is_done = self.world.move(self.open[number], key, due)
        assert is_done != (key in dict(self.world.posted()))
        # One that was posted is locked all the same: another sender would wait.
        self.pending[number][key] = due if is_done else self.expected[key]

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 10), commits=st.booleans())
    def ends(self, choice: int, commits: bool) -> None:
        self.end(sorted(self.open)[choice % len(self.open)], commits)

    def end(self, number: int, commits: bool) -> None:
        connection = self.open.pop(number)
        changes = self.pending.pop(number)
        if not commits:
            self.world.rollback(connection)
            return
        self.world.commit(connection)
        for key, due in changes.items():
            if due is None:
                del self.expected[key]
            else:
                self.expected[key] = due

    @rule(step=st.integers(-20, 20))
    def clock_is_set(self, step: int) -> None:
        self.now = max(1, self.now + step)
        self.latest = max(self.latest, self.now)

    @precondition(lambda self: not (self.waits and self.open))
    @rule(limit=st.integers(1, 3))
    def posts(self, limit: int) -> None:
        if self.committed_before_sweep is None:
            self.committed_before_sweep = dict(self.expected)
            self.until = self.now
        is_done = self.world.post(self.now, limit)
        posted = self.check()
        if is_done:
            for key, due in self.committed_before_sweep.items():
                if due <= self.until and self.expected.get(key) == due and self.is_free(key):
                    assert key in posted, f"{key} was skipped"
            self.committed_before_sweep = None

    def check(self) -> set[str]:
        posted = self.world.posted()
        keys = [key for key, _ in posted]
        assert len(set(keys)) == len(keys), "posted twice"
        for key, due in posted:
            assert self.expected.get(key) == due, "posted what isn't committed"
            assert due <= self.latest, "posted before its time"
        return set(keys)


def run(
    make_world: Callable[[], World],
    examples: int,
    steps: int,
    one_writer: bool = False,
    phases: Sequence[Phase] = tuple(Phase),
) -> None:
    members: dict[str, Any] = {"make_world": staticmethod(make_world)}
    if one_writer:
        members |= {"overlap": 1, "waits": True}
    machine = type("Machine", (Senders,), members)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            report_multiple_bugs=False,
            phases=phases,
        ),
    )


def test_the_protocol_posts_every_message_once() -> None:
    run(Model, 100, 30)


def test_a_cursor_that_is_a_time_alone_skips_late_commits() -> None:
    with pytest.raises(AssertionError):
        # The first skipped message will do; to find the shortest story takes minutes.
        run(lambda: Model(forget_snapshot=True), 150, 30, phases=[Phase.generate])


@pytest.fixture(scope="module")
def postgres_messages(new_schema: Callable[[], str]) -> Iterator[tuple[str, MessageDatabase]]:
    url = new_schema()
    with MessageDatabase(url) as database:
        database.migrate()
        yield url, database


@pytest.mark.slow
def test_postgresql_does_as_the_protocol_says(
    postgres_messages: tuple[str, MessageDatabase],
) -> None:
    run(lambda: Real(*postgres_messages), 40, 40)


def test_sqlite_does_as_the_protocol_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('messages')}/bank.db"
    create_sqlite_file(url)
    with MessageDatabase(url) as database:
        database.migrate()
        run(lambda: Real(url, database), 15, 30, one_writer=True)
