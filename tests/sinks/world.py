"""A database with messages to post, and a receiver of webhooks that is a real server."""

import datetime
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.alerts.webhook import EVENT_HEADER, SIGNATURE_HEADER, verify_signature
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE, FAILPOINT_SIGNAL
from ledgerbeam.messages.books.verify import ConsumerBooks, verify
from ledgerbeam.messages.model.message import Message
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.sinks.sinks import Definition, declare_sink
from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
from ledgerbeam.messages.store.send import Outgoing, schedule_many
from ledgerbeam.messages.store.topics import declare_topic

TOPIC, NAME = "payment-due", "outside"
SECRET = "not known to others"
SECONDS = 60
_LEDGERBEAM = "from ledgerbeam.batch.cli import main; raise SystemExit(main())"


class PaymentDue(Message):
    number: int
    payer: str
    amount: str = "0.10"


class World:
    """A database with a topic and a sink, and the processes that post to it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []
        create_sqlite_file(url)
        with MessageDatabase(url) as database:
            database.migrate()
        self.database = MessageDatabase.open(url)
        with self.database.begin("topics") as connection:
            declare_topic(connection, TOPIC, "payer")

    def declare(self, definition: Definition) -> None:
        with self.database.begin("the sink") as connection:
            self.source = declare_sink(connection, TOPIC, NAME, definition).source

    def send(self, count: int, payers: int = 5, first: int = 0, amount: str = "0.10") -> None:
        """Send messages that are due, and post them to the stream."""
        now = datetime.datetime.now(datetime.UTC)
        with self.database.begin("messages") as connection:
            numbers = range(first, first + count)
            messages = [
                PaymentDue(number=n, payer=f"P{n % payers}", amount=amount) for n in numbers
            ]
            schedule_many(connection, TOPIC, [Outgoing(m, now, f"K{m.number}") for m in messages])
        Scheduler(self.database, 60).run(threading.Event(), once=True)

    def start(
        self, *flags: str, point: str = "", stops: bool = False, lease: float = 1
    ) -> "subprocess.Popen[str]":
        """`ledgerbeam consume` of the sink."""
        environment = os.environ | {"LEDGERBEAM_MESSAGES": self.url, "SINK_SECRET": SECRET}
        if point:
            environment |= {FAILPOINT: point, FAILPOINT_ONCE: str(self.folder / "killed")}
        if stops:
            environment[FAILPOINT_SIGNAL] = "SIGSTOP"
        with (self.folder / "log").open("a") as log:
            arguments = ["consume", NAME, f"--lease-seconds={lease}", *flags]
            process = subprocess.Popen(
                [sys.executable, "-c", _LEDGERBEAM, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def post_all(self, *flags: str, lease: float = 10) -> str:
        """Post until there is nothing left to do; what the command said."""
        process = self.start("--until-idle", *flags, lease=lease)
        told, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, self.log()
        return told

    def log(self) -> str:
        return (self.folder / "log").read_text()[-3_000:]

    def books(self) -> ConsumerBooks:
        """What the sink has posted, once it has been checked that the books balance."""
        books = verify(self.database)
        assert books.differences == []
        (of_sink,) = books.consumers
        return of_sink

    def execute(self, statement: str) -> None:
        with self.database.begin("a statement") as connection:
            connection.execute(sa.text(statement))

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain: {what}\n{self.log()}"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.database.close()


@contextmanager
def world(url: str, folder: Path) -> Iterator[World]:
    made = World(url, folder)
    try:
        yield made
    finally:
        made.close()


class Receiver(ThreadingHTTPServer):
    """Takes what is signed, and notes it.

    Attributes:
        taken: what was answered by 200, in that order: the id and the body.
        answers: gives the status for a body; 200 unless a test says otherwise.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.seen: list[int] = []
        self.answers: Callable[[dict[str, Any]], int] = lambda body: 200
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/in"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        event = self.headers[EVENT_HEADER]
        now = datetime.datetime.now(datetime.UTC)
        signed = verify_signature(SECRET, self.headers[SIGNATURE_HEADER], event, data, now)
        body = json.loads(data)
        status = self.server.answers(body) if signed else 401
        with self.server.lock:
            self.server.seen.append(body["message"]["number"])
            if status == 200:
                self.server.taken.append((event, body))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_posted(posted: list[tuple[str, dict[str, Any]]], count: int, payers: int = 5) -> None:
    """Each is there; what came twice has the same id and body; customers' are in order."""
    by_id: dict[str, dict[str, Any]] = {}
    for number, body in posted:
        assert by_id.setdefault(number, body) == body
        assert body["id"] == number
    first_of_each = [body["message"]["number"] for body in by_id.values()]
    assert sorted(first_of_each) == list(range(count))
    for payer in range(payers):
        of_payer = [number for number in first_of_each if number % payers == payer]
        assert of_payer == sorted(of_payer)
