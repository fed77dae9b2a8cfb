"""Messages to the future on PostgreSQL, beside what raw SQL needs for the same.

    python benchmarks/bench_messages.py --messages 100000 --cold 1000000 --repetitions 3

Each step is measured in messages a second, and in microseconds of CPU of client and server for
each, which hold on a busy machine. The server is the tests' own, which doesn't wait for a disk:
commits are cheaper than in earnest, on both sides. `lateness` is from a message's due time to its
place in the stream, with the scheduler at rest otherwise.
"""

import datetime
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import psutil
import report
import sqlalchemy as sa
import typer
from rich.console import Console

from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import Message
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import Outgoing, schedule, schedule_many
from ledgerbeam.messages.store.topics import declare_topic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
TOPIC = "payment-due"
PAYERS = 10_000
BATCH = 1_000
HEADINGS = ("step", "messages a second", "client µs", "server µs", "both µs")
_UPDATE = sa.text("UPDATE customer SET handled = handled + 1 WHERE id = :id")
_names = (f"consumer-{number}" for number in itertools.count())


class PaymentDue(Message):
    """A payment request is due."""

    request: int
    payer: str


class Nothing(MessageHandler[PaymentDue]):
    """Does nothing: what is left is the framework's."""

    name = "nothing"
    topic = TOPIC
    customer = "payer"

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Return."""


class OneUpdate(Nothing):
    """Changes the customer's row."""

    name = "one-update"

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Count."""
        work.connection.execute(_UPDATE, {"id": message.payer})


class Figure(NamedTuple):
    """What a step took: messages, wall seconds, CPU seconds of client and server."""

    messages: int
    seconds: float
    client: float
    server: float


class Bench:
    """A database with tables for both sides."""

    def __init__(self, url: str, server: psutil.Process) -> None:
        self.url = url
        self.server = server
        self.database = MessageDatabase(url, 8)
        self.consumers = MessageDatabase(url, 8, keeps_plans=True)
        self.engine = sa.create_engine(url)
        self.figures: dict[str, list[Figure]] = {}
        self.database.migrate()
        with self.database.begin("tables") as connection:
            declare_topic(connection, TOPIC, "payer")
            for statement in (
                "CREATE TABLE customer (id text PRIMARY KEY, handled int NOT NULL)",
                f"INSERT INTO customer SELECT 'P' || n, 0 FROM generate_series(0, {PAYERS}) n",
                "CREATE TABLE job (id bigserial, due bigint, payer text, key text, payload text)",
                "CREATE INDEX ON job (due, id)",
                "CREATE TABLE log (id bigserial PRIMARY KEY, job bigint, due bigint, payer text, "
                "key text, payload text)",
            ):
                connection.exec_driver_sql(statement)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
        self.consumers.close()
        self.engine.dispose()

    def _server_cpu(self) -> float:
        total = 0.0
        for process in self.server.children():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def measure(self, step: str, messages: int, function: Callable[[], object]) -> None:
        """Run a step, and keep what it took."""
        client, server = time.process_time(), self._server_cpu()
        start = time.perf_counter()
        function()
        figure = Figure(
            messages,
            time.perf_counter() - start,
            time.process_time() - client,
            self._server_cpu() - server,
        )
        self.figures.setdefault(step, []).append(figure)

    def outgoing(self, count: int, due: datetime.datetime) -> list[Outgoing]:
        """Messages, made before anything is measured."""
        return [
            Outgoing(PaymentDue(request=n, payer=f"P{n % PAYERS}"), due, f"R{n}")
            for n in range(count)
        ]

    def repetition(self, count: int) -> None:
        """Send, post and handle so many messages, both ways."""
        now = datetime.datetime.now(datetime.UTC)
        messages = self.outgoing(count, now)
        with self.engine.connect() as connection:
            connection.begin()
            self.measure("raw COPY", count, lambda: _copy(connection, messages))
            connection.commit()
            self.measure("schedule_many", count, lambda: schedule_many(connection, TOPIC, messages))
            connection.commit()
            self.measure("raw take and delete", count, lambda: _take(connection, count))
        scheduler = Scheduler(self.database)
        scheduler.renew()

        def post() -> None:
            while scheduler.posted < count:
                scheduler.look()

        self.measure("due to stream", count, post)
        with self.database.begin("leases") as connection:
            scheduler._leases.release(connection)
        with self.engine.connect() as connection:
            self.measure("raw UPDATE, 100 a commit", count, lambda: _update(connection, messages))
        for handler in (Nothing, OneUpdate):
            self._handle(handler, count)

    def _handle(self, kind: type[Nothing], count: int) -> None:
        handler: Any = type(kind.__name__, (kind,), {"name": next(_names)})
        with self.database.begin("consumer") as connection:
            since = self.database.now(connection)
            last = "SELECT coalesce(max(position), 0) FROM ledgerbeam_stream"
            first = connection.exec_driver_sql(last).scalar_one() - count
            consumer = declare_consumer(connection, handler, since)
            connection.exec_driver_sql(
                f"UPDATE ledgerbeam_progress SET position = {first} WHERE consumer = {consumer.id}"
            )
        buckets = Buckets(self.consumers, consumer, handler())
        process = ConsumerProcess(self.consumers, consumer, buckets, slots=2)
        self.measure(
            f"handled, {kind.__doc__}".split(":")[0].rstrip("."),
            count,
            lambda: process.run(threading.Event(), until_idle=True),
        )
        if process.handled != count:
            raise RuntimeError(f"{process.handled:,} of {count:,} messages were handled")

    def lateness(self, count: int, every: float) -> list[float]:
        """Milliseconds from due time to the stream, of messages that are sent one by one."""
        with self._scheduling():
            for _ in range(count):
                due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.7 * every)
                with self.engine.begin() as connection:
                    message = PaymentDue(request=1, payer="late")
                    schedule(connection, TOPIC, message, due=due)
                time.sleep(every)
            time.sleep(1)
        select = "SELECT (posted_at - due) / 1e3 FROM ledgerbeam_stream WHERE customer = 'late'"
        with self.engine.connect() as connection:
            return sorted(float(late) for late in connection.exec_driver_sql(select).scalars())

    def idle(self, seconds: float) -> Figure:
        """What a scheduler takes that has nothing to do."""
        with self._scheduling():
            time.sleep(2)
            client, server = time.process_time(), self._server_cpu()
            time.sleep(seconds)
            used = time.process_time() - client, self._server_cpu() - server
        return Figure(0, seconds, *used)

    @contextmanager
    def _scheduling(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=Scheduler(self.database).run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _copy(connection: sa.Connection, messages: list[Outgoing]) -> None:
    due = int(messages[0].due.timestamp() * 1e6)  # type: ignore[union-attr]
    driver: Any = connection.connection.driver_connection
    statement = "COPY job (due, payer, key, payload) FROM STDIN"
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for start in range(0, len(messages), BATCH):
            copy.write(
                "".join(
                    f"{due}\t{one.message.payer}\t{one.key}\t{one.message.model_dump_json()}\n"  # type: ignore[union-attr]
                    for one in messages[start : start + BATCH]
                )
            )


def _take(connection: sa.Connection, count: int) -> None:
    statement = f"""
        WITH taken AS (DELETE FROM job WHERE id = ANY(ARRAY(
            SELECT id FROM job WHERE due <= extract(epoch FROM clock_timestamp()) * 1000000
            ORDER BY due, id LIMIT {BATCH} FOR UPDATE SKIP LOCKED)) RETURNING *)
        INSERT INTO log (job, due, payer, key, payload)
        SELECT id, due, payer, key, payload FROM taken"""
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS job_id ON job (id)")
    taken = 0
    while taken < count:
        taken += connection.exec_driver_sql(statement).rowcount
        connection.commit()


def _update(connection: sa.Connection, messages: list[Outgoing]) -> None:
    for start in range(0, len(messages), 100):
        for one in messages[start : start + 100]:
            connection.execute(_UPDATE, {"id": one.message.payer})  # type: ignore[union-attr]
        connection.commit()


def cells(figures: dict[str, list[Figure]]) -> Iterator[list[str]]:
    """Rows of the table: medians of the repetitions."""
    for step, ones in figures.items():
        rate = statistics.median(one.messages / one.seconds for one in ones)
        client = statistics.median(1e6 * one.client / one.messages for one in ones)
        server = statistics.median(1e6 * one.server / one.messages for one in ones)
        micros = (f"{value:.1f}" for value in (client, server, client + server))
        yield [step, f"{rate:,.0f}", *micros]


def markdown(raw: dict[str, Any], rows: list[list[str]]) -> str:
    """The page of results."""
    late, idle = raw["lateness_ms"], raw["idle"]
    percentile = statistics.quantiles(late, n=100, method="inclusive")
    lines = [
        "# Messages to the future, beside raw SQL",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; PostgreSQL on the same, which doesn't wait for a disk",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        f"- {raw['messages']:,} messages a step, medians of {raw['repetitions']} repetitions, with "
        f"{raw['cold']:,} more waiting for next year",
        "- `raw` is the least that SQL can do for the same, with one table and one index",
        "",
        *report.table(HEADINGS, rows),
        "",
        f"Lateness at rest, {len(late):,} messages: p50 {percentile[49]:.0f} ms, p99 "
        f"{percentile[98]:.0f} ms, at most {late[-1]:.0f} ms.",
        "",
        f"A scheduler with nothing to do takes {3600 * idle.client / idle.seconds:.0f} s of CPU an "
        f"hour, and PostgreSQL for it {3600 * idle.server / idle.seconds:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def main(
    messages: Annotated[int, typer.Option(min=1, help="of each step")] = 100_000,
    cold: Annotated[int, typer.Option(min=0, help="messages that wait for next year")] = 1_000_000,
    late: Annotated[int, typer.Option(min=2, help="messages whose lateness is taken")] = 200,
    repetitions: Annotated[int, typer.Option(min=1, help="of each step")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure messages against raw SQL; writes messages.md and messages.json."""
    # The tests' own server: it starts in two seconds and leaves nothing behind.
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    started = datetime.datetime.now().astimezone()
    console = Console(stderr=True)
    with postgres_server() as server:
        pid = int((server.data / "postmaster.pid").read_text().split()[0])
        bench = Bench(server.create_database(), psutil.Process(pid))
        try:
            next_year = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)
            with bench.engine.begin() as connection:
                for start in range(0, cold, 100_000):
                    size = min(100_000, cold - start)
                    schedule_many(connection, TOPIC, bench.outgoing(size, next_year))
            for repetition in range(repetitions):
                bench.repetition(messages)
                console.print(f"{repetition + 1} of {repetitions}")
            lateness = bench.lateness(late, 0.1)
            idle = bench.idle(min(30.0, late / 10))
        finally:
            bench.close()
    raw = report.circumstances(started) | {
        "messages": messages,
        "cold": cold,
        "repetitions": repetitions,
        "figures": bench.figures,
        "lateness_ms": lateness,
        "idle": idle,
    }
    rows = list(cells(bench.figures))
    report.save(results, "messages", raw, markdown(raw, rows))
    console.print(f"written to {results / 'messages.md'}")


if __name__ == "__main__":
    typer.run(main)
