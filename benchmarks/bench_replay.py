"""Catching up with messages on PostgreSQL: a consumer's process beside the same handler on Beam.

    python benchmarks/bench_replay.py --messages 5000000

All are commands in processes of their own, and handle the same messages, with one UPDATE of the
customer's row each. Each of them, in each repetition, has a copy of one database in which the
messages are posted and nobody has handled any. The server is the tests' own, which doesn't wait for
a disk, and so is the Flink cluster, of which a job takes two slots; without `make flink-test`,
which fetches it, Flink is left out. All of it shares the machine's cores.
"""

import datetime
import itertools
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import report
import sqlalchemy as sa
import typer
from bench_messages import HERE, RESULTS, ROOT, Bench
from measure import measure, server_cpu
from payments import TOPIC
from rich.console import Console

from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.send import schedule_many

if TYPE_CHECKING:
    from tests.support.flink_cluster import FlinkCluster
    from tests.support.postgres import PostgresServer

COMMAND = Path(sys.executable).parent / "ledgerbeam"
HANDLER = "payments:OneUpdate"
LIMIT_SECONDS = 7_200.0
CONSUMER, LOCAL, FLINK = "`consume --slots=2`", "`run`, local runner", "`run`, Flink"
HEADINGS = (
    "",
    "seconds",
    "messages a second",
    "client µs",
    "of it Java",
    "server µs",
    "all µs",
    "MB",
)
Figures = dict[str, list[dict[str, float]]]


class Stream:
    """A database in which messages are posted, and copies of it.

    Attributes:
        process: of the server.
        messages: how many.
        range: the flags of a run that handles them all.
    """

    def __init__(self, server: "PostgresServer", messages: int) -> None:
        """Post so many messages, all of which are due."""
        pid = int((server.data / "postmaster.pid").read_text().split()[0])
        self.process = psutil.Process(pid)
        self.messages = messages
        begin = datetime.datetime.now(datetime.UTC)
        self._admin = sa.create_engine(server.url(), isolation_level="AUTOCOMMIT")
        bench = Bench(server.create_database(), self.process)
        outgoing = iter(bench.outgoing(messages, begin))
        with bench.engine.begin() as connection:
            while block := list(itertools.islice(outgoing, 50_000)):
                schedule_many(connection, TOPIC, block)
        Scheduler(bench.database).run(threading.Event(), once=True)
        bench.close()
        self._url = sa.make_url(bench.url)
        end = datetime.datetime.now(datetime.UTC)
        self.range = [f"--from={begin.isoformat()}", f"--to={end.isoformat()}"]
        # Neither is left to those that are measured.
        engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
            connection.exec_driver_sql("CHECKPOINT")
        engine.dispose()

    @contextmanager
    def copy(self) -> Iterator[str]:
        """The URL of a copy, which is dropped at the end."""
        name = f"{self._url.database}_copy"
        with self._admin.connect() as connection:
            template = f"CREATE DATABASE {name} TEMPLATE {self._url.database}"
            connection.exec_driver_sql(template)
        try:
            yield self._url.set(database=name).render_as_string()
        finally:
            with self._admin.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def measured(
    stream: Stream, arguments: list[str], cluster: "FlinkCluster | None"
) -> dict[str, float]:
    """What it takes to handle all messages once: seconds, CPU seconds, bytes.

    Args:
        stream: of the messages.
        arguments: of the command; `DATABASE` in them is the URL of its copy of the database.
        cluster: of which the job takes some slots; None if it takes none.

    Returns:
        By name; the client's CPU seconds are those of all processes but the server's.
    """
    with stream.copy() as url:
        given = [argument.replace("DATABASE", url) for argument in arguments]
        pids = () if cluster is None else (*cluster.pids.values(),)
        before = {} if cluster is None else cluster.cpu_seconds()
        server = server_cpu(stream.process)
        taken = measure(
            [str(COMMAND), *given],
            limit_seconds=LIMIT_SECONDS,
            env=dict(os.environ),
            folder=HERE,
            beside=pids,
        )
        server = server_cpu(stream.process) - server
        if taken.exit_code != 0:
            raise SystemExit(f"{' '.join(given)}: {taken.output[-2000:]}{taken.errors[-2000:]}")
        if cluster is not None:
            cluster.await_idle()
        after = {} if cluster is None else cluster.cpu_seconds()
        of_cluster = {name: after[name] - before[name] for name in after}
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            handled = connection.exec_driver_sql("SELECT sum(handled) FROM customer").scalar()
        engine.dispose()
    if handled != stream.messages:
        raise SystemExit(f"{' '.join(given)}: {handled} of {stream.messages} messages are handled")
    return {
        "wall_seconds": taken.wall_seconds,
        "client_cpu_seconds": taken.cpu_seconds + sum(of_cluster.values()),
        "java_cpu_seconds": sum(of_cluster.values()) - of_cluster.get("pool", 0),
        "server_cpu_seconds": server,
        "peak_bytes": taken.peak_bytes,
    }


def cells(figures: Figures, messages: int) -> Iterator[list[str]]:
    """Rows of the table of results."""
    for way, ones in figures.items():
        median = {name: statistics.median(one[name] for one in ones) for name in ones[0]}
        cpu = [median[f"{name}_cpu_seconds"] for name in ("client", "java", "server")]
        client, java, server = (f"{1e6 * seconds / messages:.0f}" for seconds in cpu)
        yield [
            way,
            f"{median['wall_seconds']:.0f}",
            f"{messages / median['wall_seconds']:,.0f}",
            client,
            java if way == FLINK else "",
            server,
            f"{1e6 * (cpu[0] + cpu[2]) / messages:.0f}",
            f"{median['peak_bytes'] / 1e6:,.0f}",
        ]


def markdown(raw: dict[str, Any]) -> str:
    """The page of results."""
    count = raw["repetitions"]
    repetitions = "measured once" if count == 1 else f"medians of {count} repetitions in turn"
    lines = [
        "# Replay of messages: a consumer, and the same handler on Beam",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; PostgreSQL on the same, which doesn't wait for a disk",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        f"- {raw['messages']:,} messages with one UPDATE each, {repetitions}; whole processes",
        "- `client` is the CPU of all processes but PostgreSQL's, for each message; on Flink also "
        "of the JobManager, two TaskManagers and the Python workers, of which `MB` are those of "
        "the whole cluster",
        "",
        *report.table(HEADINGS, list(cells(raw["figures"], raw["messages"]))),
    ]
    return "\n".join(lines) + "\n"


def main(
    messages: Annotated[int, typer.Option(min=1, help="how many")] = 5_000_000,
    repetitions: Annotated[int, typer.Option(min=1, help="of each way")] = 1,
    with_flink: Annotated[bool, typer.Option("--flink/--no-flink", help="on Flink as well")] = True,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure a consumer, and the same handler on Beam; writes replay.md and replay.json."""
    sys.path.insert(0, str(ROOT))
    # Workers of Flink import the handler, too.
    os.environ["PYTHONPATH"] = str(HERE)
    from tests.support.flink_cluster import HOME, flink_cluster
    from tests.support.postgres import postgres_server

    started = datetime.datetime.now().astimezone()
    console = Console(stderr=True)
    figures: Figures = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stream = Stream(stack.enter_context(postgres_server()), messages)
        console.print(f"{messages:,} messages are posted")
        cluster = None
        if with_flink and (HOME / "stamp").exists():
            cluster = stack.enter_context(flink_cluster(folder))
        for repetition in range(repetitions):
            consume = ["consume", HANDLER, "--slots=2", "--until-idle", "--database=DATABASE"]
            run = ["run", HANDLER, *stream.range, "--database=DATABASE"]
            ways = {CONSUMER: consume, LOCAL: [*run, f"--output={folder}/local-{repetition}"]}
            if cluster is not None:
                ways[FLINK] = [*run, f"--output={folder}/flink-{repetition}", *cluster.flags()]
            for way, arguments in ways.items():
                one = measured(stream, arguments, cluster if way == FLINK else None)
                figures.setdefault(way, []).append(one)
                console.print(f"{repetition + 1} of {repetitions}: {way}: {one}")
                raw = report.circumstances(started) | {
                    "messages": messages,
                    "repetitions": repetition + 1,
                    "figures": figures,
                }
                report.save(results, "replay", raw, markdown(raw))
    console.print(f"written to {results / 'replay.md'}")


if __name__ == "__main__":
    typer.run(main)
