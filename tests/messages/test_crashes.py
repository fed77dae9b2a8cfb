"""Sender, scheduler and consumer, killed with -9 at every failpoint, or stopped beyond their lease.

The points are found in the code, so that a new one is tested without anybody thinking of it. After
each, others go on; nothing may be lost, nothing may have its effect twice, and the books balance.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.messages.crashing import LEASE, TOPIC
from tests.support.pages import ROOT

from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
from ledgerbeam.messages.store.send import cancel
from ledgerbeam.messages.store.topics import declare_topic

pytestmark = pytest.mark.slow

SENT = 30
SECONDS = 90


def points() -> list[str]:
    """The failpoints of the room, as the code names them."""
    texts = (file.read_text() for file in (ROOT / "messages").rglob("*.py"))
    found = re.findall(r'failpoint\("messages\.([\w-]+)"\)', "\n".join(texts))
    return sorted(set(found))


def role_of(point: str) -> str:
    if point == "scheduled":
        return "send"
    return "consume" if "handled" in point else "schedule"


class World:
    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.engine = sa.create_engine(url)
        self.processes: list[subprocess.Popen[bytes]] = []
        create_sqlite_file(url)
        with MessageDatabase(url) as database:
            database.migrate()
            with database.begin("tables") as connection:
                declare_topic(connection, TOPIC, "payer")
                for table in ("sent (number int)", "expired (number int, payer text)"):
                    connection.execute(sa.text(f"CREATE TABLE {table}"))

    def start(self, role: str, *arguments: object, point: str = "") -> "subprocess.Popen[bytes]":
        environment = dict(os.environ)
        if point:
            environment |= {
                FAILPOINT: f"messages.{point}",
                FAILPOINT_ONCE: str(self.folder / "killed"),
            }
        command = [sys.executable, "-m", "tests.messages.crashing", role, self.url]
        with (self.folder / f"{role}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *map(str, arguments)], cwd=ROOT, env=environment, stderr=log
            )
        self.processes.append(process)
        return process

    def count(self, select: str) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(sa.text(select)).scalar_one())

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            logs = "".join(file.read_text() for file in self.folder.glob("*.log"))
            assert time.monotonic() < end, f"waited in vain: {what}\n{logs[-3_000:]}"
            time.sleep(0.05)

    def is_done(self) -> bool:
        """Whether each message that was sent, and the notice that it causes, had its effect."""
        sent = self.count("SELECT count(*) FROM sent")
        return sent > 0 and self.count("SELECT count(*) FROM expired") >= 2 * sent

    def check(self) -> None:
        """Nothing is lost, nothing is double, and the books balance."""
        self.wait(self.is_done, "everything is handled")
        twice = (
            "SELECT count(*) FROM (SELECT number FROM expired GROUP BY number HAVING count(*) > 1)"
        )
        assert self.count(f"{twice} AS twice") == 0
        assert self.count("SELECT count(*) FROM expired") == 2 * self.count(
            "SELECT count(*) FROM sent"
        )
        with MessageDatabase.open(self.url) as database:
            books = verify(database)
        assert books.differences == []
        (day,) = books.days[:1]
        assert (day.pending, day.scheduled) == (0, day.posted)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.engine.dispose()


@contextmanager
def world(url: str, folder: Path) -> Iterator[World]:
    made = World(url, folder)
    try:
        yield made
    finally:
        made.close()


def test_there_are_points_in_every_part() -> None:
    assert {role_of(point) for point in points()} == {"send", "schedule", "consume"}
    assert len(points()) >= 9


@pytest.mark.parametrize("point", points())
def test_nothing_is_lost_or_double_whoever_is_killed(
    point: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    with world(new_schema(), tmp_path) as made:
        role = role_of(point)
        if role == "send":
            killed = made.start("send", 0, SENT, point=point)
            assert killed.wait(SECONDS) == -signal.SIGKILL
            made.start("send", 1_000, SENT).wait(SECONDS)
        else:
            made.start("send", 0, SENT).wait(SECONDS)
        for each in ("schedule", "consume"):
            with made.engine.connect() as undecided:
                if point == "held":
                    assert each != role or cancel(undecided, TOPIC, "3") == 1
                process = made.start(each, point=point if each == role else "")
                if each == role:
                    assert process.wait(SECONDS) == -signal.SIGKILL
                undecided.rollback()
            if each == role:
                made.start(each)
        made.check()


@pytest.mark.parametrize("point", ["before-commit", "handled", "handled-commit"])
def test_nothing_is_lost_or_double_on_sqlite(point: str, tmp_path: Path) -> None:
    with world(f"sqlite:///{tmp_path}/bank.db", tmp_path) as made:
        made.start("send", 0, SENT).wait(SECONDS)
        for each in ("schedule", "consume"):
            process = made.start(each, point=point if each == role_of(point) else "")
            if each == role_of(point):
                assert process.wait(SECONDS) == -signal.SIGKILL
                made.start(each)
        made.check()


@pytest.mark.parametrize("role", ["schedule", "consume"])
def test_who_is_stopped_longer_than_its_lease_and_woken_changes_nothing(
    role: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    with world(new_schema(), tmp_path) as made:
        first = {each: made.start(each) for each in ("schedule", "consume")}
        made.start("send", 0, SENT).wait(SECONDS)
        made.wait(lambda: made.count("SELECT count(*) FROM expired") > 0, "a beginning")
        first[role].send_signal(signal.SIGSTOP)
        made.start(role)
        made.start("send", 1_000, SENT).wait(SECONDS)
        leases = f"SELECT count(*) FROM ledgerbeam_lease WHERE epoch >= 2 AND work LIKE '{role}%'"
        made.wait(lambda: made.count(leases) > 0, "another process takes over")
        time.sleep(LEASE)
        first[role].send_signal(signal.SIGCONT)
        made.start("send", 2_000, SENT).wait(SECONDS)
        made.check()
