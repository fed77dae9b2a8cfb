"""Messages to the future on PostgreSQL, beside raw SQL, and beside River and other peers.

    python benchmarks/bench_messages.py --messages 10000 --cold 1000000 --repetitions 3

Each step is measured in messages a second, and in microseconds of CPU of client and server for
each, which hold on a busy machine. The server is the tests' own, which doesn't wait for a disk:
commits are cheaper than in earnest, on all sides. The steps are measured with nothing else waiting,
while a session holds a snapshot open, and with many messages waiting for next year. Peers do the
same work: they are sent messages for a moment, and change the customer's row for each. `lateness`
is from a message's due time to its place in the stream, and to the call of its handler.
"""

import datetime
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import psutil
import report
import sqlalchemy as sa
import typer
from measure import server_cpu
from peers import SMALLER, built, running
from rich.console import Console

from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import BUCKETS, LANES, Message, to_microseconds
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import Outgoing, schedule, schedule_many
from ledgerbeam.messages.store.topics import declare_topic

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
TOPIC = "payment-due"
PAYERS = 10_000
BATCH = 1_000
HEADINGS = ("step", "messages a second", "client µs", "server µs", "both µs")
STEPS = {"schedule": "scheduled", "work": "due to handled, changes the customer's row"}
CUSTOMERS = (
    "CREATE TABLE customer (id text PRIMARY KEY, handled int NOT NULL)",
    f"INSERT INTO customer SELECT 'P' || n, 0 FROM generate_series(0, {PAYERS}) n",
)
Lateness = dict[str, list[float]]
"""Milliseconds from the due time, sorted, by what they are counted to."""
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


class Late(OneUpdate):
    """Notes by how many milliseconds it is late."""

    name = "late"
    seen: ClassVar[list[float]] = []

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Count, and note."""
        self.seen.append((time.time() - work.due.timestamp()) * 1e3)
        super().handle(message, work)


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
                *CUSTOMERS,
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

    def measure(
        self,
        step: str,
        messages: int,
        function: Callable[[], object],
        client_cpu: Callable[[], float] = time.process_time,
    ) -> None:
        """Run a step, and keep what it took."""
        client, server = client_cpu(), server_cpu(self.server)
        start = time.perf_counter()
        function()
        figure = Figure(
            messages,
            time.perf_counter() - start,
            client_cpu() - client,
            server_cpu(self.server) - server,
        )
        self.figures.setdefault(step, []).append(figure)

    def outgoing(self, count: int, due: datetime.datetime) -> list[Outgoing]:
        """Messages, made before anything is measured."""
        return [
            Outgoing(PaymentDue(request=n, payer=f"P{n % PAYERS}"), due, f"R{n}")
            for n in range(count)
        ]

    def fill(self, cold: int) -> None:
        """Have so many messages wait for moments of next year; by SQL, since they are many."""
        next_year = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"""
                INSERT INTO ledgerbeam_message
                    (topic, lane, bucket, version, due, customer, key, payload)
                SELECT 1, n %% {LANES}, n %% {BUCKETS}, 1, {to_microseconds(next_year)} + n,
                    'P' || n %% {PAYERS}, 'R' || n,
                    '{{"request":' || n || ',"payer":"P' || n %% {PAYERS} || '"}}'
                FROM generate_series(1, {cold}) AS n""")

    def repetition(self, count: int, label: str = "") -> None:
        """Send, post and handle so many messages, both ways.

        Args:
            count: messages of each step.
            label: what is added to the names of ledgerbeam's own steps.
        """
        messages = self.outgoing(count, datetime.datetime.now(datetime.UTC))
        with self.engine.connect() as connection:
            if not label:
                connection.begin()
                self.measure("raw COPY", count, lambda: _copy(connection, messages))
                connection.commit()
            step = f"schedule_many{label}"
            self.measure(step, count, lambda: schedule_many(connection, TOPIC, messages))
            connection.commit()
            if not label:
                self.measure("raw take and delete", count, lambda: _take(connection, count))
        self._post(count, label)
        if not label:
            with self.engine.connect() as connection:
                update = "raw UPDATE, 100 a commit"
                self.measure(update, count, lambda: _update(connection, messages))
        for handler in (Nothing, OneUpdate):
            self._handle(handler, count, label)

    def snapshot_held(self, count: int) -> None:
        """Send, post and handle while another session holds a snapshot."""
        with self.engine.connect() as holder:
            holder.execution_options(isolation_level="REPEATABLE READ")
            holder.exec_driver_sql("SELECT count(*) FROM customer")
            self.repetition(count, ", snapshot held")

    def due_to_handled(self, count: int, lead: float) -> None:
        """Send messages for a moment, and have scheduler and consumer work them off together."""
        due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=lead)
        messages = self.outgoing(count, due)
        with self.engine.begin() as connection:
            schedule_many(connection, TOPIC, messages)
        time.sleep(max(0.0, due.timestamp() - time.time()))
        with self._consumer(OneUpdate) as process:

            def drain() -> None:
                with self._scheduling(), _running(process.run):
                    while process.handled < count:
                        time.sleep(0.01)

            self.measure("due to handled, changes the customer's row", count, drain)

    def _post(self, count: int, label: str) -> None:
        scheduler = Scheduler(self.database)
        scheduler.renew()

        def post() -> None:
            while scheduler.posted < count:
                scheduler.look()

        self.measure(f"due to stream{label}", count, post)
        with self.database.begin("leases") as connection:
            scheduler._leases.release(connection)

    def _handle(self, kind: type[Nothing], count: int, label: str) -> None:
        with self._consumer(kind, behind=count) as process:
            self.measure(
                f"handled, {kind.__doc__}".split(":")[0].rstrip(".") + label,
                count,
                lambda: process.run(threading.Event(), until_idle=True),
            )
        if process.handled != count:
            raise RuntimeError(f"{process.handled:,} of {count:,} messages were handled")

    @contextmanager
    def _consumer(self, kind: type[Nothing], behind: int = 0) -> Iterator[ConsumerProcess]:
        """A consumer that begins so many messages before the end of the stream."""
        handler: Any = type(kind.__name__, (kind,), {"name": next(_names)})
        with self.database.begin("consumer") as connection:
            consumer = declare_consumer(connection, handler)
            connection.exec_driver_sql(
                "UPDATE ledgerbeam_progress SET position = (SELECT coalesce(max(position), 0) "
                f"FROM ledgerbeam_stream) - {behind} WHERE consumer = {consumer.id}"
            )
        buckets = Buckets(self.consumers, consumer, handler())
        yield ConsumerProcess(self.consumers, consumer, buckets, slots=2)

    def lateness(self, count: int, every: float) -> Lateness:
        """Milliseconds by which messages are late that are sent one by one."""
        with self._consumer(Late) as process, self._scheduling(), _running(process.run):
            Late.seen.clear()
            time.sleep(1)
            for _ in range(count):
                due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.7 * every)
                with self.engine.begin() as connection:
                    message = PaymentDue(request=1, payer="late")
                    schedule(connection, TOPIC, message, due=due)
                time.sleep(every)
            while process.handled < count:
                time.sleep(0.01)
        return self._lateness(count)

    def lateness_under_load(self, a_second: int, seconds: float) -> Lateness:
        """Milliseconds by which messages are late of which so many are due each second."""
        count = int(a_second * seconds)
        first = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3 + count / 10_000)
        messages = [
            one._replace(due=first + datetime.timedelta(seconds=number / a_second))
            for number, one in enumerate(self.outgoing(count, first))
        ]
        with self.engine.begin() as connection:
            schedule_many(connection, TOPIC, messages)
        with self._consumer(Late) as process, self._scheduling(), _running(process.run):
            Late.seen.clear()
            while process.handled < count:
                time.sleep(0.01)
        return self._lateness(count)

    def _lateness(self, count: int) -> Lateness:
        last = "SELECT posted_at - due FROM ledgerbeam_stream ORDER BY position DESC LIMIT"
        with self.engine.connect() as connection:
            posted = [
                late / 1e3 for late in connection.exec_driver_sql(f"{last} {count}").scalars()
            ]
        return {"to the stream": sorted(posted), "to the handler": sorted(Late.seen)}

    def idle(self, seconds: float) -> dict[str, float]:
        """What a scheduler and a consumer take that have nothing to do."""
        statements = itertools.count()
        for engine in (self.database.engine, self.consumers.engine):
            sa.event.listen(engine, "after_cursor_execute", lambda *_: next(statements))
        with self._consumer(Nothing) as process, self._scheduling(), _running(process.run):
            time.sleep(2)
            before, client, server = next(statements), time.process_time(), server_cpu(self.server)
            time.sleep(seconds)
            return {
                "seconds": seconds,
                "statements": next(statements) - before - 1,
                "client": time.process_time() - client,
                "server": server_cpu(self.server) - server,
            }

    @contextmanager
    def _scheduling(self) -> Iterator[None]:
        with _running(Scheduler(self.database).run):
            yield


@contextmanager
def _running(run: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def beside_peers(
    bench: Bench, server: "PostgresServer", count: int, late: int, repetitions: int
) -> dict[str, Lateness]:
    """Have each of the peers do the same, in turns; milliseconds by which each is late at rest."""
    lateness: dict[str, Lateness] = {}
    with ExitStack() as stack:
        peers = {}
        for name in built():
            url = server.create_database()
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                for statement in CUSTOMERS:
                    connection.exec_driver_sql(statement)
            engine.dispose()
            peers[name] = stack.enter_context(running(name, url))
        for repetition in range(repetitions):
            for name, peer in peers.items():
                size = max(1, count // SMALLER.get(name, 1))
                lead = 3 + size / 10_000
                due = time.time() + lead
                for verb, number in (("schedule", due * 1e3), ("work", 0.0)):
                    ask = partial(peer.ask, verb, size, number)
                    bench.measure(f"{name}: {STEPS[verb]}", size, ask, peer.cpu)
                    time.sleep(max(0.0, due - time.time()))
                if repetition + 1 == repetitions:
                    lateness[name] = {"to the handler": sorted(peer.ask("late", late, 100))}
            bench.due_to_handled(count, 3 + count / 10_000)
    return lateness


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


def late_cells(lateness: dict[str, Lateness]) -> Iterator[list[str]]:
    """Rows of the table of lateness."""
    for name, kinds in lateness.items():
        for kind, late in kinds.items():
            percentile = statistics.quantiles(late, n=100, method="inclusive")
            millis = (f"{value:,.0f}" for value in (percentile[49], percentile[98], late[-1]))
            yield [f"{name}, {kind}", f"{len(late):,}", *millis]


def markdown(raw: dict[str, Any]) -> str:
    """The page of results."""
    idle = raw["idle"]
    hour = 3600 / idle["seconds"]
    lines = [
        "# Messages to the future, beside raw SQL and peers",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; PostgreSQL on the same, which doesn't wait for a disk",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        "- The machine was loaded by other work: CPU time holds better than messages a second",
        f"- {raw['messages']:,} messages a step, medians of {raw['repetitions']} repetitions",
        "- `raw` is the least that SQL can do for the same, with one table and one index",
        "- Peers are given the same number of messages, "
        + ", ".join(f"{name} a {part}th" for name, part in SMALLER.items()),
        "",
        *report.table(HEADINGS, list(cells(raw["figures"]))),
        "",
        "Milliseconds from due time, by at most:",
        "",
        *report.table(
            ("", "messages", "half of them", "99 in 100", "all"), list(late_cells(raw["lateness"]))
        ),
        "",
        f"A scheduler and a consumer with nothing to do, and {raw['cold']:,} messages waiting, "
        f"take {hour * idle['client']:.0f} s of CPU an hour, and PostgreSQL for them "
        f"{hour * idle['server']:.0f} s, for {60 * idle['statements'] / idle['seconds']:.0f} "
        "statements a minute.",
    ]
    return "\n".join(lines) + "\n"


def main(
    messages: Annotated[int, typer.Option(min=1, help="of each step")] = 10_000,
    cold: Annotated[int, typer.Option(min=1, help="messages that wait for next year")] = 1_000_000,
    late: Annotated[int, typer.Option(min=2, help="messages whose lateness is taken")] = 60,
    a_second: Annotated[int, typer.Option(min=1, help="messages that are due a second")] = 6_000,
    repetitions: Annotated[int, typer.Option(min=1, help="of each step")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure messages against raw SQL and peers; writes messages.md and messages.json."""
    # The tests' own server: it starts in two seconds and leaves nothing behind.
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    started = datetime.datetime.now().astimezone()
    console = Console(stderr=True)
    with postgres_server() as server:
        pid = int((server.data / "postmaster.pid").read_text().split()[0])
        bench = Bench(server.create_database(), psutil.Process(pid))
        try:
            for repetition in range(repetitions):
                bench.repetition(messages)
                bench.snapshot_held(messages)
                console.print(f"{repetition + 1} of {repetitions}, nothing waiting")
            lateness = {"ledgerbeam": bench.lateness(late, 0.1)}
            lateness |= beside_peers(bench, server, messages, late, repetitions)
            console.print("peers done")
            bench.fill(cold)
            for repetition in range(repetitions):
                bench.repetition(messages, f", {cold:,} waiting")
                console.print(f"{repetition + 1} of {repetitions}, {cold:,} waiting")
            lateness[f"ledgerbeam, {cold:,} waiting"] = bench.lateness(late, 0.1)
            lateness[f"ledgerbeam, {a_second:,} due a second"] = bench.lateness_under_load(
                a_second, min(10, late / 10)
            )
            idle = bench.idle(min(30.0, late / 4))
        finally:
            bench.close()
    raw = report.circumstances(started) | {
        "messages": messages,
        "cold": cold,
        "repetitions": repetitions,
        "figures": bench.figures,
        "lateness": lateness,
        "idle": idle,
    }
    report.save(results, "messages", raw, markdown(raw))
    console.print(f"written to {results / 'messages.md'}")


if __name__ == "__main__":
    typer.run(main)
