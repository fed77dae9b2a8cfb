"""Handlers on Beam in processes of their own: killed, beside a consumer's process, on record."""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.command import COMMAND, SECONDS, ledgerbeam
from tests.support.pages import ROOT

from ledgerbeam import messages
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.store.database import MessageDatabase

pytestmark = pytest.mark.slow

HANDLER = """
import sqlalchemy as sa
from ledgerbeam import Retry, messages


class Due(messages.Message):
    request: int
    payer: str


class Expire(messages.MessageHandler[Due]):
    name, topic, customer = "expire-requests", "requests", "payer"
    retry = Retry(tries=3, first_delay=0.01)
    batch = 7

    def handle(self, message, work):
        work.connection.execute(
            sa.text("INSERT INTO expired VALUES (:request, :payer)"), message.model_dump()
        )
        if message.request % 7 == 0 and not work.tries:
            raise OSError("the bank is closed")
        work.publish("notices", message)
"""
SENT, PAYERS = 120, 40


class World:
    """A package with a handler that is installed, and messages that were posted."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        package = folder / "package"
        info = package / "bank_handlers-1.0.dist-info"
        info.mkdir(parents=True)
        (package / "bank_handlers.py").write_text(HANDLER)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bank-handlers\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[ledgerbeam.handlers]\nexpire-requests = bank_handlers:Expire\n"
        )
        self.environment = os.environ | {
            "PYTHONPATH": str(package),
            "LEDGERBEAM_MESSAGES": url,
            "LEDGERBEAM_STATE": str(folder / "state"),
        }
        self.url = url
        self.command("messages", "init", "--topic=requests:payer", "--topic=notices:payer")
        self.engine = sa.create_engine(url)
        now = datetime.datetime.now(datetime.UTC)
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE expired (number int, payer text)"))
            messages.schedule_many(
                connection,
                "requests",
                [
                    ({"request": number, "payer": f"P{number % PAYERS}"}, now)
                    for number in range(SENT)
                ],
            )
        self.command("schedule-messages", "--once")
        last = self.rows("SELECT max(posted_at) FROM ledgerbeam_stream")[0][0]
        end = datetime.datetime.fromtimestamp(last / 1e6 + 0.001, datetime.UTC)
        self.range = [
            "--from=2026-01-01T00:00Z",
            f"--to={end.isoformat()}",
            f"--output={folder / 'results'}",
        ]

    def command(self, *arguments: str) -> str:
        return ledgerbeam(*arguments, folder=self.folder, environment=self.environment)

    def start(self, *arguments: str, point: str = "") -> "subprocess.Popen[bytes]":
        failing = {FAILPOINT: point, FAILPOINT_ONCE: str(self.folder / "killed")} if point else {}
        return subprocess.Popen(
            [str(COMMAND), *arguments],
            cwd=self.folder,
            env=self.environment | failing,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def rows(self, select: str) -> list[tuple[int, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(select))]

    def outcomes(self) -> set[str]:
        (instance,) = (self.folder / "results" / "expire-requests").iterdir()
        table = read_published(str(instance)).to_table()
        assert table.num_rows == SENT
        return set(table.column("outcome").to_pylist())

    def check(self) -> None:
        """Each message had its effect once, each customer's in order, and the books balance."""
        numbers = [row[0] for row in self.rows("SELECT number FROM expired")]
        assert sorted(numbers) == list(range(SENT))
        sent = "SELECT count(*) FROM ledgerbeam_message m JOIN ledgerbeam_topic t ON t.id = m.topic"
        assert self.rows(f"{sent} WHERE t.name = 'notices'") == [(SENT,)]
        with MessageDatabase.open(self.url) as database:
            assert verify(database).differences == []


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    url = f"sqlite:///{tmp_path}/bank.db"
    if request.param == "postgresql":
        create: Callable[[], str] = request.getfixturevalue("new_schema")
        url = create()
    return World(url, tmp_path)


def points() -> list[str]:
    """The failpoints that a run passes, as the code names them."""
    texts = [(ROOT / "messages" / "replay" / "customers.py").read_text()]
    texts.append((ROOT / "messages" / "consumer" / "handling.py").read_text())
    return sorted(re.findall(r'failpoint\("([\w.-]+)"\)', "\n".join(texts)))


@pytest.mark.parametrize("point", points())
def test_killed_and_started_again_nothing_is_handled_twice(world: World, point: str) -> None:
    run = ("run", "expire-requests", *world.range)
    assert world.start(*run, point=point).wait(SECONDS) == -signal.SIGKILL
    world.command(*run)
    assert world.outcomes() == {"handled"}
    world.check()


def test_there_are_points_before_and_after_commits() -> None:
    assert len(points()) >= 3


def test_beside_a_process_of_the_consumer(world: World) -> None:
    consumer = world.start("consume", "expire-requests", "--slots=2", "--until-idle")
    world.command("run", "expire-requests", *world.range)
    assert consumer.wait(SECONDS) == 0
    assert world.outcomes() <= {"handled", "duplicate"}
    world.check()


def test_on_record_and_by_the_class(world: World) -> None:
    assert "expire-requests" in world.command("workloads").splitlines()
    registry = f"--registry=sqlite:///{world.folder}/runs.db"
    submitted = world.command("submit", "expire-requests", *world.range, registry, "--json")
    run = json.loads(submitted.splitlines()[-1])["id"]
    world.command("wait", run, registry)
    assert world.outcomes() == {"handled"}
    world.check()
    again = ["--consumer=once-more", f"--output={world.folder / 'more'}"]
    told = world.command("run", "bank_handlers:Expire", *world.range[:2], *again, "--json")
    totals = json.loads(told.splitlines()[-1])["totals"]
    assert (totals["handled"], totals["duplicate"], totals["dead"]) == (SENT, 0, 0)
    assert len(world.rows("SELECT number FROM expired")) == 2 * SENT


BY_HELPERS = """
import sys

from ledgerbeam.batch.cli.app import main
from ledgerbeam.batch.execute.helpers import Helpers, _Helper
from ledgerbeam.batch.keyed import beside
from ledgerbeam.messages.replay.process import HandlerProcess

beside.ROWS_AT_ONCE = 0
beside.available_cores = lambda: 2
HandlerProcess.rows_per_shard = 10
start, execute = Helpers._start, _Helper.execute


def start_and_wait(self):
    start(self)
    with self._changed:
        assert self._changed.wait_for(lambda: self._ready, 60)


def execute_and_say(self, *arguments):
    print("by a helper", file=sys.stderr)
    return execute(self, *arguments)


Helpers._start, _Helper.execute = start_and_wait, execute_and_say
sys.exit(main())
"""


def test_a_large_run_has_a_process_for_each_core(world: World) -> None:
    script = world.folder / "by_helpers.py"
    script.write_text(BY_HELPERS)
    done = subprocess.run(
        [sys.executable, str(script), "run", "expire-requests", *world.range],
        cwd=world.folder,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "by a helper" in done.stderr
    assert world.outcomes() == {"handled"}
    world.check()
