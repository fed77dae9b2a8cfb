"""Runs while they are executed: listeners notified, deadlines watched, secrets kept."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from tests.support.recorded import ACCOUNTS, Place, held, job_of, until

from ledgerbeam.batch.alerts.watcher import AlertWatcher
from ledgerbeam.batch.alerts.webhook import EVENT_HEADER, SIGNATURE_HEADER, verify_signature
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.machine import ProcessId

pytestmark = pytest.mark.slow


class Receiver(ThreadingHTTPServer):
    """Takes webhooks."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[dict[str, str], bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((dict(self.headers), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def listeners(folder: Path, url: str) -> str:
    file = folder / "alerts.toml"
    file.write_text(
        f'[[listener]]\nname = "on-call"\nkind = "webhook"\nurl = "{url}"\n'
        'secret = "env:ALERTS_SECRET"\nallow_private = true\n'
    )
    return str(file)


def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Place:
    """A run that must finish in so many seconds; one of its two shards is held."""
    place = Place(
        tmp_path / "place",
        f"sqlite:///{tmp_path}/registry.db",
        "punctual",
        datetime.now(UTC).date(),
    )
    probe = Place(tmp_path / "probe", f"sqlite:///{tmp_path}/probe.db", day=place.day)
    assert probe.launcher(probe.record(shards=2)).wait() == 0
    last = read_part(probe.run().uri, probe.manifest().shards[1].part)
    place.set(*(f"hold-{account}" for account in last.column("account").to_pylist()))
    midnight = datetime.combine(place.day, datetime.min.time(), UTC)
    until_now = (datetime.now(UTC) - midnight).total_seconds()
    monkeypatch.setenv("PUNCTUAL_SECONDS", str(until_now + seconds))
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    submit = [sys.executable, "-c", code, "submit", "punctual", *place.flags(shards=2)]
    subprocess.run(submit, env=place.environment(), check=True, capture_output=True)
    return place


class TestAlerts:
    def test_a_failing_run_is_told_and_signed(
        self, place: Place, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = f"http://127.0.0.1:{receiver.server_port}/alerts"
        monkeypatch.setenv("LEDGERBEAM_ALERTS", listeners(place.folder, url))
        monkeypatch.setenv("ALERTS_SECRET", "between us")
        place.set("fail-A7")
        run = place.record()
        assert place.launcher(run).wait() == 0
        events = place.runs.events(run.id)
        told = {}
        for headers, body in receiver.requests:
            signature = headers[SIGNATURE_HEADER]
            id_ = headers[EVENT_HEADER]
            assert verify_signature("between us", signature, id_, body, datetime.now(UTC))
            told[id_] = json.loads(body)
        assert len(receiver.requests) == len(told) == len(events)
        assert [each["type"] for each in told.values()] == [event.type for event in events]
        assert list(told.values())[-1]["to_status"] == "FAILURE"
        assert "A7 can't be counted" in list(told.values())[-1]["why"]
        assert not place.runs.registry.undelivered(1)

    def test_who_does_not_answer_holds_nobody_up(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A listener that hangs takes longer than a lease; nobody takes the run over."""
        import socket

        with socket.create_server(("127.0.0.1", 0)) as deaf:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            monkeypatch.setenv("LEDGERBEAM_ALERTS", listeners(place.folder, url))
            monkeypatch.setenv("ALERTS_SECRET", "between us")
            run, launcher = held(place)
            renewed = {place.run().attempts[0].lease_until}

            def look() -> bool:
                renewed.add(place.run().attempts[0].lease_until)
                return len(renewed) > 8

            until(look, "leases renewed")
            place.unset("hold")
            place.until_status(RunStatus.SUCCESS)
            launcher.terminate()  # it would go on trying for a minute
            launcher.wait()
        types = [event.type for event in place.runs.events(run.id)]
        assert "attempt_taken_over" not in types
        monkeypatch.delenv("LEDGERBEAM_ALERTS")

    def test_listeners_that_nobody_can_read_lose_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LEDGERBEAM_ALERTS", str(place.folder / "none.toml"))
        run = place.record()
        place.reconcile()
        assert [e.type for e in place.runs.registry.undelivered(9)] == ["submitted"]
        assert place.runs.cancel(run.id).status is RunStatus.CANCELED

    def test_a_late_end_is_foreseen(
        self, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = half_done(tmp_path, monkeypatch, seconds=120)

        def breaches() -> list[Any]:
            events = place.runs.events(place.run().id)
            return [event for event in events if event.type == "sla_breach"]

        (breach,) = until(breaches, "a breach")
        assert breach.detail["kind"] == "finish_foreseen_late", place.told()
        must = place.run().must_finish_by
        assert must is not None
        assert breach.at < must
        assert "1 of 2 done, at this rate until" in breach.why
        place.unset(*(f"hold-{account}" for account in ACCOUNTS))
        place.until_rest()
        assert place.run().status is RunStatus.SUCCESS

    def test_who_looks_late_foresees_it_too(
        self, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = half_done(tmp_path, monkeypatch, seconds=3600)
        until(lambda: place.runs.get(place.run().id).progress.shards_done == 1, "one of two")
        attempt = place.run().attempts[0]
        psutil.Process(ProcessId.parse(attempt.launcher).pid).kill()
        looks = iter(attempt.started_at + timedelta(minutes=40 + n) for n in range(9))
        alarm = AlertWatcher(place.runs.registry, place.run().id, "late", lambda: next(looks))
        for _ in range(5):
            alarm.watch()
        events = place.runs.events(place.run().id)
        (breach,) = [event for event in events if event.type == "sla_breach"]
        assert (breach.who, breach.detail["kind"]) == ("late", "finish_foreseen_late")
        place.unset(*(f"hold-{account}" for account in ACCOUNTS))
        assert place.until_rest().status is RunStatus.SUCCESS


def test_secrets_are_nowhere(
    tmp_path: Path,
    base: Path,
    new_schema: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password, canary = "registry-canary-4711", "component-canary-0815"
    monkeypatch.setenv("COUNTING_PASSWORD", canary)
    url = new_schema().replace("postgres@", f"postgres:{password}@")
    place = Place(tmp_path / "place", url)
    place.set("leak-A7", "hold")
    submitted = place.command(
        "submit", "counting", *place.flags(password="env:COUNTING_PASSWORD"), "--json"
    )
    assert submitted.returncode == 0, submitted.stderr
    until(place.calls, "the first call")
    run = place.run()
    # While it runs: nobody can read it from a list of processes, and the job can't reach the
    # registry.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            assert password not in line
            assert canary not in line
    environment = job_of(run).environ()
    assert not [name for name, value in environment.items() if password in value]
    place.unset("hold")
    assert place.until_rest().status is RunStatus.FAILURE
    shown = [
        place.command(name, run.id, *flags)
        for name in ("get", "audit", "components")
        for flags in ((), ("--json",))
    ]
    listed = place.command("list", "--json")
    texts = [done.stdout + done.stderr for done in [submitted, *shown, listed]]
    (outcome,) = place.runs.components(run.id, ComponentStatus.FAILURE)
    assert "login with *** failed" in outcome.error
    assert "login with *** failed" in (place.run().error or "")
    texts += [str(outcome), place.told(), _dump(url)]
    for folder in (place.folder, place.settings.state):
        texts += [p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file()]
    assert len(_dump(url)) > 1000
    for text in texts:
        assert password not in text
        assert canary not in text


def _dump(url: str) -> str:
    """All rows of all tables."""
    engine = sa.create_engine(url)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = [
            str(tuple(row))
            for table in metadata.tables.values()
            for row in connection.execute(sa.select(table))
        ]
    engine.dispose()
    assert {"run", "attempt", "event", "instance", "definition"} <= metadata.tables.keys()
    return "\n".join(rows)
