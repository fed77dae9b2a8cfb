"""Runs while they are executed: steered, canceled, deserted by launchers, told to listeners."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from tests.recorded import ACCOUNTS, Place, until, workloads_installed

from ledgerbeam.batch.alarm import Alarm
from ledgerbeam.batch.jobs import JobId, ProcessId
from ledgerbeam.batch.records import AttemptKind, AttemptOutcome, RunRecord
from ledgerbeam.batch.status import ComponentStatus, RunStatus
from ledgerbeam.batch.webhook import EVENT_HEADER, SIGNATURE_HEADER, verify_signature
from ledgerbeam.io.attempts import Attempt, FencedError, attempts, commits
from ledgerbeam.io.published import read_part

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("live")
    with workloads_installed(folder / "state", lease=2):
        yield folder


@pytest.fixture
def place(tmp_path: Path, base: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place", f"sqlite:///{tmp_path}/registry.db")
    yield place
    place.let_go()


@pytest.fixture
def served(tmp_path: Path, base: Path, new_schema: Callable[[], str]) -> Iterator[Place]:
    """A place whose registry outlives clients that stop within a transaction; SQLite's waits."""
    place = Place(tmp_path / "place", new_schema())
    yield place
    place.let_go()


@pytest.fixture
def charging(tmp_path: Path, base: Path) -> Iterator[Place]:
    place = Place(tmp_path / "place", f"sqlite:///{tmp_path}/registry.db", "charging")
    yield place
    place.let_go()


def held(place: Place, **others: Any) -> "tuple[RunRecord, subprocess.Popen[bytes]]":
    """A run whose components wait, the first of them being executed; and its launcher."""
    place.set("hold")
    run = place.record(**others)
    launcher = place.launcher(run)
    until(place.calls, "the first call")
    return place.run(), launcher


def job_of(run: RunRecord) -> psutil.Process:
    job = run.attempts[-1].job_id
    assert job is not None
    return psutil.Process(JobId.parse(job).driver.pid)


def in_flight(place: Place) -> int:
    return len(place.calls("begin")) - len(place.calls("end"))


class TestSteering:
    def test_pause_and_rate_take_effect(self, place: Place) -> None:
        run = place.record()
        place.runs.set_rate(run.id, 1.0)
        launcher = place.launcher(run)
        until(lambda: len(place.calls()) >= 2, "two calls")
        place.runs.pause(run.id, "the desk calls")
        # Within 10 s, and then nothing new begins while there is much to do.
        until(lambda: not in_flight(place) and _stands_still(place, 4), "a standstill", 30)
        begun = len(place.calls())
        assert begun < len(ACCOUNTS)
        view = place.runs.get(run.id)
        assert (view.run.status, view.progress.steering.state) == (RunStatus.PAUSED, "pause")
        assert view.progress.shards_done < 4
        place.runs.set_rate(run.id, None)
        place.runs.resume(run.id)
        assert launcher.wait() == 0
        assert place.run().status is RunStatus.SUCCESS, place.told()
        begins = [call.at for call in place.calls()]
        # One a second, but for the burst at the beginning.
        assert begins[begun - 1] - begins[0] >= begun - 2
        assert len(begins) == len(ACCOUNTS)
        place.check_story()

    def test_parallelism_takes_effect(self, charging: Place) -> None:
        run, launcher = held(charging, shards=2)
        until(lambda: in_flight(charging) == 3, "three in flight, as its definition says")
        charging.runs.set_parallelism(run.id, 5)
        until(lambda: in_flight(charging) == 5, "five in flight", 30)
        assert _stands_still(charging, 2)
        executing = until(lambda: charging.runs.get(run.id).progress.executing, "a sign of life")
        assert {told.component for told in executing} <= {c.account for c in charging.calls()}
        charging.unset("hold")
        assert launcher.wait() == 0
        flow = sorted(
            [(c.at, 1) for c in charging.calls()] + [(c.at, -1) for c in charging.calls("end")]
        )
        most = now = 0
        for _, change in flow:
            now += change
            most = max(most, now)
        assert most == 5
        assert charging.run().status is RunStatus.SUCCESS

    def test_stuck_components_are_told(self, place: Place) -> None:
        place.set("flaky-A3", "hold-A3")
        run = place.record()
        launcher = place.launcher(run)
        (stuck,) = until(lambda: place.runs.get(run.id).progress.stuck, "a stuck component")
        assert (stuck.component, stuck.tries) == ("A3", 2)
        assert "A3 can't be counted yet" in stuck.error
        shown = place.command("get", run.id)
        assert "A3: 2 tries: RuntimeError: A3 can't be counted yet" in shown.stdout
        place.unset("hold-A3")
        assert launcher.wait() == 0
        assert not place.runs.get(run.id).progress.stuck


def _stands_still(place: Place, seconds: float) -> bool:
    """Nothing begins for so long: what can't be waited for has to be looked at for a while."""
    before = len(place.calls())
    time.sleep(seconds)
    return len(place.calls()) == before


class TestCancel:
    def test_confirmed_when_it_has_stopped(self, place: Place) -> None:
        run, launcher = held(place)
        job = job_of(run)
        assert place.runs.cancel(run.id, "wrong day").status is RunStatus.CANCELING
        assert place.runs.cancel(run.id).status is RunStatus.CANCELING
        waited = place.command("wait", run.id)
        assert waited.returncode == 3, waited.stderr
        assert not job.is_running()
        before = place.tree()
        assert launcher.wait() == 0
        place.unset("hold")
        assert not place.processes()
        assert place.tree() == before
        assert place.run().attempts[-1].outcome is AttemptOutcome.CANCELED
        assert place.runs.get(run.id).progress.workers == 0
        # A late writer finds all its names taken.
        late = Attempt(run.uri, attempts(run.uri)[-1])
        committed = commits(run.uri, [1])
        for shard in set(range(4)) - committed.keys():
            marker = _some_marker(place, late, shard)
            with pytest.raises(FencedError, match="given up by launcher@"):
                late.commit(marker)
        place.runs.restart(run.id, "the right one after all")
        assert place.until_rest().status is RunStatus.SUCCESS
        assert [a.kind for a in place.run().attempts] == [AttemptKind.FIRST, AttemptKind.RESTART]
        place.check_story()

    def test_while_the_launcher_is_dead(self, place: Place) -> None:
        run, launcher = held(place)
        launcher.kill()
        launcher.wait()
        place.runs.cancel(run.id)
        assert place.until_rest().status is RunStatus.CANCELED, place.told()
        place.check_story()
        place.check_cleaned_up()

    def test_of_a_process_that_is_stopped(self, place: Place) -> None:
        run, launcher = held(place)
        job = job_of(run)
        job.suspend()
        place.runs.cancel(run.id)
        assert place.until_rest().status is RunStatus.CANCELED
        launcher.wait()
        assert not job.is_running()


def _some_marker(place: Place, attempt: Attempt, shard: int) -> Any:
    import pyarrow as pa

    from ledgerbeam.io.records import ShardCommit

    part = attempt.write_part(shard, pa.table({"account": ["A1"]}))
    return ShardCommit(shard=shard, attempt=1, code_version="1", part=part, totals={})


class TestAgain:
    def test_retry_does_only_what_failed(self, place: Place) -> None:
        place.set("fail-A7")
        run = place.record()
        assert place.launcher(run).wait() == 0
        failed = place.run()
        assert failed.status is RunStatus.FAILURE
        assert "1 of 12 components failed" in (failed.error or "")
        (outcome,) = place.runs.components(run.id, ComponentStatus.FAILURE)
        assert (outcome.component, outcome.tries) == ("A7", 3)
        assert place.runs.get(run.id).progress.tries == 12 + 2
        before = Counter(call.account for call in place.calls())
        place.runs.restart(run.id, "what is missing")
        assert place.until_status(RunStatus.FAILURE).attempts[-1].kind is AttemptKind.RESTART
        assert Counter(call.account for call in place.calls()) == before
        place.unset("fail-A7")
        asked = place.command("retry", run.id, "--why=mended")
        assert asked.returncode == 0, asked.stderr
        # It goes on from here: who waits now waits for the retry.
        assert place.command("wait", run.id).returncode == 0, place.told()
        after = Counter(call.account for call in place.calls())
        assert after - before == Counter({"A7": 1})
        (outcome,) = (o for o in place.runs.components(run.id) if o.tries > 1)
        assert (outcome.component, outcome.status, outcome.tries) == ("A7", "SUCCESS", 4)
        assert place.runs.get(run.id).progress.tries == len(place.calls()) == 15
        kinds = [a.kind for a in place.run().attempts]
        assert kinds == [AttemptKind.FIRST, AttemptKind.RESTART, AttemptKind.RETRY]
        until(lambda: not place.processes(), "the launcher's end")
        place.check_story()
        place.check_cleaned_up()

    def test_a_lost_restart_stays_one(self, place: Place) -> None:
        place.set("fail-A7")
        run = place.record()
        assert place.launcher(run).wait() == 0
        before = Counter(call.account for call in place.calls())
        place.runs.reopen(run.id, AttemptKind.RESTART, "")
        launcher = place.launcher(run, "job: let work")
        assert launcher.wait() == 0
        assert place.run().status is RunStatus.FAILURE
        outcomes = [(a.kind, a.outcome) for a in place.run().attempts]
        assert outcomes == [
            (AttemptKind.FIRST, AttemptOutcome.FAILURE),
            (AttemptKind.RESTART, AttemptOutcome.LOST),
            (AttemptKind.RECONCILE, AttemptOutcome.FAILURE),
        ]
        assert Counter(call.account for call in place.calls()) == before

    def test_what_gets_lost_time_after_time_fails(self, place: Place) -> None:
        place.set("hold")
        run = place.record()
        launcher = place.launcher(run)
        for number in range(1, 4):
            until(partial(_has_worked, place, number), f"a call of attempt {number}")
            job_of(place.run()).kill()
        assert launcher.wait() == 0
        run = place.run()
        assert run.status is RunStatus.FAILURE
        assert [a.outcome for a in run.attempts] == [AttemptOutcome.LOST] * 3
        assert run.error == "attempt 3: its process is gone, and 3 attempts got lost"
        place.unset("hold")
        place.runs.retry(run.id)
        assert place.until_rest().status is RunStatus.SUCCESS


def _has_worked(place: Place, number: int) -> bool:
    return (
        len({call.pid for call in place.calls()}) == number and len(place.run().attempts) == number
    )


class TestDesertedRuns:
    def test_a_job_that_goes_on_is_taken_over(self, place: Place) -> None:
        run, launcher = held(place)
        job = job_of(run)
        launcher.kill()
        launcher.wait()
        actions = until(place.reconcile, "the end of the lease")
        assert "is silent: another one takes over" in actions[0]
        until(lambda: place.run().attempts[0].launcher != run.attempts[0].launcher, "a take-over")
        assert job.is_running()
        place.unset("hold")
        assert place.until_rest().status is RunStatus.SUCCESS
        assert len(place.run().attempts) == 1
        assert {call.pid for call in place.calls()} == {job.pid}
        place.check_story()

    def test_a_job_that_is_gone_too_is_begun_again(self, place: Place) -> None:
        run, launcher = held(place)
        launcher.kill()
        job_of(run).kill()
        launcher.wait()
        place.unset("hold")
        assert place.until_rest().status is RunStatus.SUCCESS, place.told()
        outcomes = [a.outcome for a in place.run().attempts]
        assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
        place.check_story()
        place.check_cleaned_up()
        place.check_committed_once()

    def test_a_job_on_another_machine_is_left_alone(self, place: Place) -> None:
        run, launcher = held(place)
        launcher.kill()
        job = job_of(run)
        job.kill()
        launcher.wait()
        engine = sa.create_engine(place.url)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE attempt SET job_id = 'elsewhere:1:2.00'"))
        engine.dispose()
        actions = until(place.reconcile, "the end of the lease")
        assert actions == ["its launcher is silent, and its job ran on elsewhere: reconcile there"]
        assert place.run().live_attempt is not None

    def test_of_two_reconcilers_one_takes_over(self, place: Place) -> None:
        run, launcher = held(place)
        launcher.kill()
        launcher.wait()
        lease = run.attempts[0].lease_until
        until(lambda: datetime.now(UTC) > lease, "the end of the lease")
        code = "import sys; from ledgerbeam.batch.cli import main; sys.exit(main())"
        racers = [
            subprocess.Popen([sys.executable, "-c", code, "reconcile"], env=place.environment())
            for _ in range(3)
        ]
        assert [racer.wait() for racer in racers] == [0, 0, 0]
        until(lambda: place.run().attempts[0].launcher != run.attempts[0].launcher, "a take-over")
        place.unset("hold")
        assert place.until_rest().status is RunStatus.SUCCESS
        types = Counter(event.type for event in place.runs.events(run.id))
        assert len(place.run().attempts) == 1
        # On a busy machine the second one may fall silent as well, but none takes it twice at once.
        launchers = [e.detail["to"] for e in place.runs.events(run.id) if "to" in e.detail]
        assert types["attempt_taken_over"] == len(set(launchers))
        place.check_story()

    def test_a_launcher_that_wakes_up_does_nothing(self, served: Place) -> None:
        run, launcher = held(served)
        launcher.send_signal(signal.SIGSTOP)
        until(served.reconcile, "the end of the lease")
        until(lambda: served.run().attempts[0].launcher != run.attempts[0].launcher, "a take-over")
        served.unset("hold")
        served.until_status(RunStatus.SUCCESS)
        until(lambda: len(served.processes()) == 1, "the other launcher's end")
        before = served.tree(), served.run(), served.runs.events(run.id)
        launcher.send_signal(signal.SIGCONT)
        assert launcher.wait() == 1
        assert (served.tree(), served.run(), served.runs.events(run.id)) == before
        assert "somebody else answers for the attempt now" in served.told()

    def test_a_launcher_that_wakes_up_before_it_let_its_job_work(self, served: Place) -> None:
        """Its job has never been on record, so it must not work."""
        run = served.record()
        launcher = served.launcher(run)
        until(psutil.Process(launcher.pid).children, "the job's process")
        launcher.send_signal(signal.SIGSTOP)
        assert served.run().attempts[0].job_id is None
        until(served.reconcile, "the end of the lease")
        served.until_status(RunStatus.SUCCESS)
        launcher.send_signal(signal.SIGCONT)
        launcher.wait()
        until(lambda: not served.processes(), "the end of all")
        assert len({call.pid for call in served.calls()}) == 1
        served.check_committed_once()


class TestModuleRuns:
    """A pipeline module that is told of a registry."""

    def test_it_is_recorded_and_gone_on_with(self, place: Place) -> None:
        place.set("fail-A7")
        command = ("run", "counting", *place.flags())
        failed = place.command(*command)
        assert failed.returncode == 1
        assert f"run {place.run().id} is FAILURE: nothing published" in failed.stderr
        place.unset("fail-A7")
        before = Counter(call.account for call in place.calls())
        again = place.command(*command, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout.splitlines()[-1])["counts"]["failed"] == 0
        assert Counter(call.account for call in place.calls()) - before == Counter({"A7": 1})
        assert place.run().status is RunStatus.SUCCESS
        place.check_story()

    def test_interrupted_it_is_canceled(self, place: Place) -> None:
        place.set("hold")
        code = "import sys; from ledgerbeam.batch.cli import main; sys.exit(main())"
        running = subprocess.Popen(
            [sys.executable, "-c", code, "run", "counting", *place.flags()],
            env=place.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        until(place.calls, "the first call")
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
        assert running.returncode == 130, said
        assert "goes on from what is committed" in said
        assert place.run().status is RunStatus.CANCELED
        assert not place.processes()
        place.unset("hold")
        again = place.command("run", "counting", *place.flags())
        assert again.returncode == 0, again.stderr
        place.check_story()


def test_expired_results_are_told_in_one_line(tmp_path: Path, base: Path) -> None:
    place = Place(tmp_path / "place", f"sqlite:///{tmp_path}/registry.db", "ephemeral")
    place.set("flaky-A3")
    run = place.record()
    assert place.launcher(run).wait() == 0
    assert place.runs.results(run.id).count_rows() == 11
    expired = place.command("expire", "--json")
    assert json.loads(expired.stdout) == {"run": run.id, "name": run.name, "uri": run.uri}
    assert place.command("expire", "--json").stdout == ""
    said = place.command("results", run.id)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert "its results have expired and were deleted" in said.stderr
    assert "results deleted" in place.command("get", run.id).stdout
    late = [o.component for o in place.runs.components(run.id) if o.tries > 1]
    assert late == ["A3"]
    assert place.manifest().counts["components"] == len(ACCOUNTS)


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
        'secret = "env:ALERTS_SECRET"\n'
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
    code = "import sys; from ledgerbeam.batch.cli import main; sys.exit(main())"
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
            assert verify_signature("between us", signature, body, datetime.now(UTC))
            told[headers[EVENT_HEADER]] = json.loads(body)
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
        alarm = Alarm(place.runs.registry, place.run().id, "late", lambda: next(looks))
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
