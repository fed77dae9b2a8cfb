"""Messages to the future on PostgreSQL, beside raw SQL, and beside River and other peers.

    python benchmarks/bench_messages.py --messages 20000 --cold 10000000 --repetitions 3
    python benchmarks/bench_messages.py --part rest --part steps

Each step is measured in messages a second, and in microseconds of CPU of client and server for
each, which hold on a busy machine. The server is durable: a commit waits for the disk. There are
these parts, each in a database of its own; one that is measured alone takes the place of its former
figures.

    steps     with nothing else waiting, and while a session holds a snapshot open
    peers     do the same: are sent messages for a moment, change the customer's row for each
    rest      lateness of single messages, and what a scheduler and a consumer take that are idle
    cold      steps, lateness and idleness with many messages waiting for next year
    load      lateness where many messages are due each second
    backlog   so many messages are due at once: the first of them are worked off

Lateness is from a message's due time to its place in the stream, and to the call of its handler.
"""

import datetime
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import psutil
import report
import sqlalchemy as sa
import typer
from measure import server_cpu
from messages_page import Figure, Lateness, markdown
from payments import TOPIC, UPDATE, Nothing, OneUpdate, OneUpdateForMany, PaymentDue
from peers import SMALLER, built, running
from rich.console import Console

from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import BUCKETS, LANES, to_microseconds
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import Outgoing, schedule, schedule_many
from ledgerbeam.messages.store.topics import declare_topic

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PAYERS = 10_000
BATCH = 1_000
STEPS = {"schedule": "scheduled", "work": "due to handled, changes the customer's row"}
CUSTOMERS = (
    "CREATE TABLE customer (id text PRIMARY KEY, handled int NOT NULL)",
    f"INSERT INTO customer SELECT 'P' || n, 0 FROM generate_series(0, {PAYERS}) n",
)
DURABLE = (
    "fsync = on",
    "synchronous_commit = on",
    "full_page_writes = on",
    "shared_buffers = 1GB",
    "max_wal_size = 4GB",
)
PARTS = ("steps", "peers", "rest", "cold", "load", "backlog")
_names = (f"consumer-{number}" for number in itertools.count())


class Late(OneUpdate):
    """Notes by how many milliseconds it is late."""

    name = "late"
    seen: ClassVar[list[float]] = []

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Count, and note."""
        self.seen.append((time.time() - work.due.timestamp()) * 1e3)
        super().handle(message, work)


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

    def fill(self, count: int, days: int) -> None:
        """Have so many messages wait for moments in so many days; by SQL, since they are many."""
        first = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"""
                INSERT INTO ledgerbeam_message
                    (topic, lane, bucket, version, due, customer, key, payload)
                SELECT 1, n %% {PAYERS} %% {LANES}, n %% {PAYERS} %% {BUCKETS}, 1,
                    {to_microseconds(first)} + n, 'P' || n %% {PAYERS}, 'R' || n,
                    '{{"request":' || n || ',"payer":"P' || n %% {PAYERS} || '"}}'
                FROM generate_series(1, {count}) AS n""")

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
        for handler in (Nothing, OneUpdate, OneUpdateForMany):
            self._handle(handler, count, label)

    def snapshot_held(self, count: int) -> None:
        """Send, post and handle while another session holds a snapshot."""
        with self.engine.connect() as holder:
            holder.execution_options(isolation_level="REPEATABLE READ")
            holder.exec_driver_sql("SELECT count(*) FROM customer")
            self.repetition(count, ", snapshot held")

    def backlog(self, count: int, drained: int) -> None:
        """Have scheduler and consumer work together on the first of many messages that are due."""
        self.fill(count, days=-1)
        with self._consumer(OneUpdateForMany) as process:

            def drain() -> None:
                with self._scheduling(), _running(process.run):
                    while process.handled < drained:
                        time.sleep(0.01)

            step = f"the first of {count:,} due at once, due to handled, by one UPDATE for many"
            self.measure(step, drained, drain)

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

    def _handle(self, kind: type[MessageHandler[PaymentDue]], count: int, label: str) -> None:
        with self._consumer(kind, behind=count) as process:
            self.measure(
                f"handled, {kind.__doc__}".split(":")[0].rstrip(".") + label,
                count,
                lambda: process.run(threading.Event(), until_idle=True),
            )
        if process.handled != count:
            raise RuntimeError(f"{process.handled:,} of {count:,} messages were handled")

    @contextmanager
    def _consumer(
        self, kind: type[MessageHandler[PaymentDue]], behind: int = 0
    ) -> Iterator[ConsumerProcess]:
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


def durable_server() -> AbstractContextManager["PostgresServer"]:
    """The tests' own server, which starts in two seconds and leaves nothing behind; durable."""
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    return postgres_server(DURABLE)


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
            connection.execute(UPDATE, {"id": one.message.payer})  # type: ignore[union-attr]
        connection.commit()


class Sizes(NamedTuple):
    """How much of everything is measured; see the options of `main`."""

    messages: int
    cold: int
    late: int
    a_second: int
    backlog: int
    repetitions: int


def measured(part: str, bench: Bench, server: "PostgresServer", sizes: Sizes) -> dict[str, Any]:
    """Measure a part; lateness and idleness by what was waiting meanwhile."""
    lateness: dict[str, Lateness] = {}
    idle = {}
    if part == "steps":
        for _ in range(sizes.repetitions):
            bench.repetition(sizes.messages)
            bench.snapshot_held(sizes.messages)
    if part == "peers":
        lateness = beside_peers(bench, server, sizes.messages, sizes.late, sizes.repetitions)
    if part in ("rest", "cold"):
        label = ""
        if part == "cold":
            label = f", {sizes.cold:,} waiting"
            bench.fill(sizes.cold, days=300)
            for _ in range(sizes.repetitions):
                bench.repetition(sizes.messages, label)
        lateness[f"ledgerbeam{label}"] = bench.lateness(sizes.late, 0.1)
        idle[f"ledgerbeam{label}"] = bench.idle(min(30.0, sizes.late / 4))
    if part == "load":
        name = f"ledgerbeam, {sizes.a_second:,} due a second"
        lateness[name] = bench.lateness_under_load(sizes.a_second, min(10, sizes.late / 10))
    if part == "backlog":
        bench.backlog(sizes.backlog, min(sizes.backlog, 10 * sizes.messages))
    return {"figures": bench.figures, "lateness": lateness, "idle": idle}


def main(
    messages: Annotated[int, typer.Option(min=1, help="of each step")] = 20_000,
    cold: Annotated[int, typer.Option(min=1, help="messages that wait for next year")] = 10_000_000,
    late: Annotated[int, typer.Option(min=2, help="messages whose lateness is taken")] = 100,
    a_second: Annotated[int, typer.Option(min=1, help="messages that are due a second")] = 6_000,
    backlog: Annotated[int, typer.Option(min=1, help="messages that are due at once")] = 10_000_000,
    repetitions: Annotated[int, typer.Option(min=1, help="of each step")] = 3,
    part: Annotated[list[str] | None, typer.Option(help="only this one; any number")] = None,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure messages against raw SQL and peers; writes messages.md and messages.json."""
    unknown = set(part or ()) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    sizes = Sizes(messages, cold, late, a_second, backlog, repetitions)
    console = Console(stderr=True)
    former = results / "messages.json"
    if not part:
        former.unlink(missing_ok=True)
    for name in part or PARTS:
        started = datetime.datetime.now().astimezone()
        with durable_server() as server:
            pid = int((server.data / "postmaster.pid").read_text().split()[0])
            bench = Bench(server.create_database(), psutil.Process(pid))
            try:
                found = measured(name, bench, server, sizes)
            finally:
                bench.close()
        raw: dict[str, Any] = {"parts": {}, "figures": {}, "lateness": {}, "idle": {}}
        if former.exists():
            raw = json.loads(former.read_text())
            raw["figures"] = {
                step: [Figure(*one) for one in ones] for step, ones in raw["figures"].items()
            }
        for kind, figures in found.items():
            raw[kind] |= figures
        raw["parts"][name] = report.circumstances(started) | sizes._asdict()
        report.save(results, "messages", raw, markdown(raw))
        console.print(f"{name} measured, written to {results / 'messages.md'}")


if __name__ == "__main__":
    typer.run(main)
