"""A process that posts to a sink, killed with -9 at every failpoint, or stopped beyond its lease.

Nothing is lost, what comes twice has the same id, customers' messages are in order, and the books
balance.
"""

import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from tests.sinks.world import SECONDS, Receiver, check_posted, receiver, world
from tests.support.pages import ROOT

from ledgerbeam.io.secrets import Secret
from ledgerbeam.messages.sinks.sinks import WebhookSink

pytestmark = pytest.mark.slow

SENT = 40


def points() -> list[str]:
    """The failpoints that a sink's process passes, as the code names them."""
    files = [*(ROOT / "messages/sinks").glob("*.py"), ROOT / "messages/consumer/progress.py"]
    texts = "\n".join(file.read_text() for file in files)
    return [*sorted(set(re.findall(r'failpoint\("([\w.-]+)"\)', texts))), "messages.leased"]


def sink_of(server: Receiver) -> WebhookSink:
    return WebhookSink(url=server.url, secret=Secret("env:SINK_SECRET"), allow_private=True)


def test_there_are_points_before_and_behind_each_effect() -> None:
    assert {"sink.before-post", "sink.posted", "sink.before-commit", "sink.committed"} <= {
        *points()
    }
    assert len(points()) >= 8


@pytest.mark.parametrize("point", points())
def test_nothing_is_lost_wherever_it_is_killed(
    point: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    first_tries: set[int] = set()

    def answer(body: dict[str, Any]) -> int:
        # Every seventh is taken at its second try.
        number = body["message"]["number"]
        if number % 7 == 0 and number not in first_tries:
            first_tries.add(number)
            return 503
        return 200

    with world(new_schema(), tmp_path) as made, receiver() as server:
        server.answers = answer
        made.declare(sink_of(server))
        made.send(SENT)
        assert made.start(point=point).wait(SECONDS) == -signal.SIGKILL
        made.start(lease=2)
        made.wait(lambda: made.books().handled == SENT, "all is posted")
        check_posted(server.taken, SENT)


def test_who_is_stopped_in_the_middle_of_a_post_ends_with_it(
    new_schema: Callable[[], str], tmp_path: Path
) -> None:
    posting, goes_on = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> int:
        if body["message"]["number"] == 10 and not posting.is_set():
            posting.set()
            goes_on.wait(SECONDS)
        return 200

    with world(new_schema(), tmp_path) as made, receiver() as server:
        server.answers = answer
        made.declare(sink_of(server))
        made.send(SENT)
        first = made.start("--slots=1", lease=4)
        assert posting.wait(SECONDS)
        first.send_signal(signal.SIGSTOP)
        made.start(lease=4)
        made.wait(lambda: made.books().handled == SENT, "another process has posted all")
        goes_on.set()
        before = len(server.seen)
        first.send_signal(signal.SIGCONT)
        made.send(5, first=SENT)
        made.wait(lambda: made.books().handled == SENT + 5, "both go on")
        # The one that was in the receiver's hands is all that came again.
        assert len(server.taken) <= before + 1 + 5
        check_posted(server.taken, SENT + 5)


def test_who_is_stopped_before_a_post_and_has_lost_its_lease_posts_nothing(
    new_schema: Callable[[], str], tmp_path: Path
) -> None:
    with world(new_schema(), tmp_path) as made, receiver() as server:
        made.declare(sink_of(server))
        made.send(SENT)
        # With more slots another one may be stopped within a transaction, whose end others await.
        first = made.start("--slots=1", point="sink.before-post", stops=True, lease=4)
        stopped = psutil.Process(first.pid)
        made.wait(lambda: stopped.status() == psutil.STATUS_STOPPED, "it stops")
        made.start(lease=4)
        made.wait(lambda: made.books().handled == SENT, "another process has posted all")
        first.send_signal(signal.SIGCONT)
        owners = "SELECT count(DISTINCT owner) FROM ledgerbeam_lease WHERE work LIKE :work"

        def share() -> bool:
            with made.database.begin("leases") as connection:
                row = connection.execute(sa.text(owners), {"work": "consume%"})
                return int(row.scalar_one()) == 2

        made.wait(share, "both share the buckets")
        check_posted(server.taken, SENT)
        # A busy machine may be too late with an answer, and so have one posted again; but what was
        # read before the stop, all messages of a payer, isn't posted.
        assert len(server.taken) < SENT + SENT // 5
