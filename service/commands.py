"""The commands `serve`, `route`, `work`, `up` and `keys`.

Each imports what it needs when it is called: a front end does without Beam.
"""

import asyncio
import contextlib
import datetime
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerbeam.batch import traces
from ledgerbeam.batch.cli.verbs import Json, Registry
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import REGISTRY, Settings, whoami
from ledgerbeam.io.errors import ParameterError, RunnerError

if TYPE_CHECKING:
    from ledgerbeam.service.model import KeyRecord
    from ledgerbeam.service.store.keys import Keys

PORT = 8017
_WITH_PARENT = "--with-parent"
"""Given to the processes of `up`, which end with it even where it is killed."""

app = typer.Typer(help="Service")
keys = typer.Typer(help="API keys: who may call the service, and what for.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Host = Annotated[str, typer.Option(help="address to listen on; without keys, loopback only")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free")]
Kinds = Annotated[
    str, typer.Option(help="names of workloads, with commas between; by default, all installed")
]
Slots = Annotated[int, typer.Option(min=1, help="how many runs at once")]
Why = Annotated[str, typer.Option(help="the reason, for the record")]


@app.command()
def serve(
    host: Host = "127.0.0.1",
    port: Port = PORT,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Serve REST and the page; any number of replicas may do so."""
    try:
        import uvicorn

        from ledgerbeam.service.web.app import create_app, import_for_pages
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"{error.name} isn't installed: pip install 'ledgerbeam[service]'"
        ) from error
    from ledgerbeam.batch.registry.registry import Registry as Opened
    from ledgerbeam.service.access.front import has_provider, is_loopback
    from ledgerbeam.service.store.keys import Keys

    traces.check()
    settings = Settings.from_environment(registry)
    with Opened.open(settings.registry_url) as opened:
        has_keys = Keys(opened.database).are_there()
    has_keys |= has_provider()
    if not has_keys and not is_loopback(host):
        raise ParameterError(
            f"there are no API keys, so whoever reaches {host} could do anything: make one by "
            "`ledgerbeam keys create`, or leave --host out to serve this machine only",
            parameter="--host",
            value=host,
        )
    application = create_app(settings, needs_key=has_keys)
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise ParameterError(
            f"can't listen on {host}:{port}: {error.strerror}: give another --port",
            parameter="--port",
            value=port,
        ) from error
    who = "callers need keys" if has_keys else "this machine only, without keys"
    address = f"http://{host}:{listener.getsockname()[1]}"
    _tell(as_json, f"serving {address} ({who})", "front-end", address=address, needs_key=has_keys)
    config = uvicorn.Config(
        application,
        log_level="warning",
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        server_header=False,
    )

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            """Look once a second, which is ten times less often: it costs CPU while it idles."""
            ticks = 0
            while not await self.on_tick(ticks):
                ticks += 10  # of a tenth of a second, as it counts them
                await asyncio.sleep(1.0)

    import_for_pages()
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])


@app.command()
def route(registry: Registry = None, as_json: Json = False) -> None:
    """Check what callers have sent against the definitions that are installed, and queue it."""
    from ledgerbeam.batch.alerts.configuration import check_configuration
    from ledgerbeam.batch.runs.client import Runs
    from ledgerbeam.service.router import Router

    _log_as("router")
    check_configuration()
    with Runs(Settings.from_environment(registry)) as runs, _stopping() as stopping:
        router = Router(runs)
        _tell(as_json, "routing", "router", routing=True)
        router.run(stopping)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def work(
    context: typer.Context,
    kinds: Kinds = "",
    slots: Slots = 1,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="end when the queues are empty")
    ] = False,
    drain: Annotated[
        float, typer.Option(min=0, help="seconds that runs are given to end, when it is to stop")
    ] = 60.0,
    ahead: Annotated[
        int, typer.Option(min=0, help="launchers that wait with Beam imported, 300 MB each")
    ] = 1,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Take requests from queues and have them run; further flags go to Beam."""
    from ledgerbeam.batch.alerts.configuration import check_configuration
    from ledgerbeam.batch.define.workloads import load_workload, workload_names
    from ledgerbeam.batch.runs.client import Runs
    from ledgerbeam.service.node import Node

    _log_as("node")
    check_configuration()
    settings = Settings.from_environment(registry)
    names = [name.strip() for name in kinds.split(",") if name.strip()] or workload_names()
    for name in names:
        load_workload(name)  # now, and not when the first request has come
    with Runs(settings) as runs, _stopping() as stopping:
        node = Node(runs, settings, names, slots, context.args, ahead)
        _tell(as_json, f"working as {node.name}", "node", node=node.name, workloads=names)
        node.run(stopping, until_empty=until_empty, drain_seconds=drain)


@app.command()
def up(
    port: Port = PORT, slots: Slots = 2, registry: Registry = None, as_json: Json = False
) -> None:
    """Run all of it on this machine: front end, router and one node, until Ctrl-C."""
    settings = Settings.from_environment(registry)
    # So that they don't all make its tables.
    from ledgerbeam.batch.registry.registry import Registry as Opened

    Opened.open(settings.registry_url).close()
    environment = {**os.environ, REGISTRY: settings.registry_url}
    parts = {
        "front end": ["serve", f"--port={port}"],
        "router": ["route"],
        "node": ["work", f"--slots={slots}", "--drain=5"],
    }
    with _stopping() as stopping:
        started = {
            name: subprocess.Popen(
                [
                    *(sys.executable, "-m", "ledgerbeam.service.commands", *arguments),
                    *(["--json"] if as_json else []),
                    _WITH_PARENT,
                ],
                env=environment,
                stdin=subprocess.PIPE,
                # Ctrl-C reaches this process alone, which then ends them in order.
                start_new_session=True,
            )
            for name, arguments in parts.items()
        }
        try:
            while not stopping.wait(0.2):
                ended = [name for name, part in started.items() if part.poll() is not None]
                if ended:
                    raise RunnerError(f"the {ended[0]} has ended: see what it has said above")
        finally:
            for part in started.values():
                part.terminate()
            deadline = time.monotonic() + 20
            for part in started.values():
                try:
                    part.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    part.kill()
    _tell(as_json, "stopped; runs that are at work go on", "stopped", stopped=list(parts))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="of its owner, who signs what is done with it")],
    role: Annotated[
        list[str], typer.Option(help="viewer, submitter, operator, approver, admin; or KIND=ROLE")
    ],
    days: Annotated[int | None, typer.Option(min=1, help="until it expires")] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Make an API key, and print it; it can't be had again."""
    from ledgerbeam.service.store.keys import read_roles

    now = utc_now()
    expires_at = None if days is None else now + datetime.timedelta(days=days)
    with _keys(registry) as opened:
        made = opened.create(name, read_roles(role), who=whoami(), at=now, expires_at=expires_at)
    _tell(as_json, made, "new-key", key=made)


@keys.command("list")
def list_keys(registry: Registry = None, as_json: Json = False) -> None:
    """Print all API keys, without their secrets."""
    with _keys(registry) as opened:
        found = opened.list()
    if as_json:
        for key in found:
            print_record("key", key.model_dump(mode="json"))
        return
    from ledgerbeam.batch.attempt.terminal import print_table

    rows = (
        (key.id, key.name, ",".join(map("=".join, key.roles.items())), _state_of(key))
        for key in found
    )
    print_table(("key", "name", "roles", "state"), rows)


def _state_of(key: "KeyRecord") -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    return "expired" if key.expires_at <= utc_now() else f"until {key.expires_at:%Y-%m-%d}"


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="its id, as `list` prints it")],
    why: Why = "",
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Make an API key invalid, at once."""
    with _keys(registry) as opened:
        opened.revoke(key, who=whoami(), at=utc_now(), why=why)
    _tell(as_json, f"{key} is revoked", "revoked-key", key=key)


def _tell(as_json: bool, line: str, kind: str, **record: Any) -> None:
    """A line for people, or one of JSON."""
    if as_json:
        print_record(kind, record)
    else:
        print_line(line)


@contextlib.contextmanager
def _keys(registry: str | None) -> "Iterator[Keys]":
    from ledgerbeam.batch.registry.registry import Registry as Opened
    from ledgerbeam.service.store.keys import Keys

    with Opened.open(Settings.from_environment(registry).registry_url) as opened:
        yield Keys(opened.database)


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    event = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Wait until whoever holds the other end of standard input is gone, however it ended."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _log_as(role: str) -> None:
    from ledgerbeam.batch import logs

    logs.configure(role)


def main() -> int:
    """These commands alone, as the processes of `up`."""
    if _WITH_PARENT in sys.argv:
        sys.argv.remove(_WITH_PARENT)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    from ledgerbeam.batch.cli.errors import print_error
    from ledgerbeam.batch.model.exits import Exit, exit_of
    from ledgerbeam.io.errors import UserError

    try:
        app()
    except UserError as error:
        print_error("ledgerbeam", error, "--json" in sys.argv[1:])
        return exit_of(error)
    return Exit.OK


if __name__ == "__main__":
    from ledgerbeam.service.commands import main as importable_main

    sys.exit(importable_main())
