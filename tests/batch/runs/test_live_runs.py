"""Runs while they are executed: steered, canceled, deserted by launchers."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from tests.support.json_lines import lines_of
from tests.support.recorded import ACCOUNTS, NewPlace, Place, held, job_of, until

from ledgerbeam.batch.launch.leases import MACHINE_GONE_SECONDS
from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry.schema import attempt as attempt_table
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.reconcile import reconcile
from ledgerbeam.io.commit.attempts import Attempt, attempts, commits
from ledgerbeam.io.errors import FencedError
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_SIGNAL
from ledgerbeam.io.machine import HOST

pytestmark = pytest.mark.slow


@pytest.fixture
def served(new_place: NewPlace, new_schema: Callable[[], str]) -> Place:
    """A place whose registry outlives clients that stop within a transaction; SQLite's waits."""
    return new_place(url=new_schema())


@pytest.fixture
def charging(new_place: NewPlace) -> Place:
    return new_place("charging")


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

    from ledgerbeam.io.commit.records import ShardCommit

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
        launcher = place.launcher(run, "job: started")
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


def test_storage_that_is_gone_at_the_end_is_told(place: Place) -> None:
    held(place)
    output, away = place.folder / "output", place.folder / "away"
    output.rename(away)
    output.touch()
    place.unset("hold")
    assert place.until_rest().status is RunStatus.FAILURE
    output.unlink()
    away.rename(output)
    place.check_cleaned_up()
    events = place.runs.events(place.run().id)
    (warning,) = [event.why for event in events if event.type == "warning"]
    assert warning.startswith("cleanup was not called: attempt 1 is no longer found in /")


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

    @pytest.fixture
    def gone(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
        """A place whose run was executed on another machine, which is gone."""
        monkeypatch.setenv(HOST, "elsewhere")
        run, launcher = held(place)
        monkeypatch.delenv(HOST)
        launcher.kill()
        job_of(run).kill()
        launcher.wait()
        assert run.attempts[0].launcher.startswith("elsewhere:")
        place.unset("hold")
        return place

    def test_another_machine_is_left_alone_for_a_while(self, gone: Place) -> None:
        (action,) = until(gone.reconcile, "the end of the lease")
        assert action.startswith("its launcher is silent, and its job ran on elsewhere: reconcile")
        assert not gone.processes()
        later = datetime.now(UTC) + timedelta(seconds=MACHINE_GONE_SECONDS)
        (action,) = reconcile(gone.settings, gone.runs, later)
        assert action.what.endswith("another one takes over")
        assert gone.until_rest().status is RunStatus.SUCCESS, gone.told()
        outcomes = [a.outcome for a in gone.run().attempts]
        assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
        gone.check_story()

    def test_a_run_of_another_machine_is_canceled(self, gone: Place) -> None:
        gone.runs.cancel(gone.run().id, "a mistake")
        until(gone.reconcile, "the end of the lease")
        later = datetime.now(UTC) + timedelta(seconds=MACHINE_GONE_SECONDS + 10)
        assert reconcile(gone.settings, gone.runs, later)
        assert gone.until_status(RunStatus.CANCELED), gone.told()
        gone.check_story()

    def test_a_run_of_another_machine_is_restarted_by_force(
        self, gone: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = gone.run().id
        assert "say why" in gone.command("restart", name, "--force").stderr
        # There it is in sight.
        monkeypatch.setenv(HOST, "elsewhere")
        refused = gone.command("restart", name, "--force", "--why=it burns")
        assert refused.returncode == 1
        assert "isn't out of sight" in refused.stderr
        monkeypatch.delenv(HOST)
        done = gone.command("restart", name, "--force", "--why=it burns")
        assert done.returncode == 0, done.stderr
        assert gone.until_status(RunStatus.SUCCESS), gone.told()
        outcomes = [a.outcome for a in gone.run().attempts]
        assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
        whys = [e.why for e in gone.runs.events(name) if e.type == "attempt_taken_over"]
        assert whys == ["it burns", ""]
        gone.check_story()

    @pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(seconds=1)])
    def test_a_manifest_ends_its_run_whatever_the_clock_says(
        self, place: Place, ahead: timedelta, lease: float
    ) -> None:
        """The clock was set back after the lease was given, or the launcher died just now."""
        run = place.record()
        launcher = place.launcher(run, "launcher: job ended")
        assert launcher.wait() == -signal.SIGKILL, place.told()
        assert place.manifest()
        engine = sa.create_engine(place.url)
        with engine.begin() as connection:
            until_ = datetime.now(UTC) + ahead
            connection.execute(attempt_table.update().values(lease_until=until_))
        engine.dispose()
        (action,) = place.reconcile()
        assert action.endswith("another one takes over")
        assert place.until_status(RunStatus.SUCCESS), place.told()
        place.check_story()

    def test_of_ten_reconcilers_one_starts_the_launcher(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, lease: float
    ) -> None:
        run = place.record()
        monkeypatch.setenv(FAILPOINT, "launcher: begun")
        monkeypatch.setenv(FAILPOINT_SIGNAL, "SIGSTOP")  # a slow machine
        later = datetime.now(UTC) + timedelta(seconds=lease)

        def reconciled(at: datetime) -> int:
            """How many of ten who do so at once start a launcher."""
            barrier = threading.Barrier(10)

            def one() -> int:
                with Runs(place.settings) as runs:
                    barrier.wait()
                    return len(reconcile(place.settings, runs, at))

            with ThreadPoolExecutor(10) as pool:
                return sum(each.result() for each in [pool.submit(one) for _ in range(10)])

        assert reconciled(later) == 1
        (first,) = place.processes(run)
        # As long as it lives, none is started, whoever asks; where it dies, another one is.
        later += timedelta(seconds=lease)
        assert reconciled(later) == 0
        assert place.runs.submit(place.process, place.parameters()).id == run.id
        until(lambda: first.status() == psutil.STATUS_STOPPED, "the launcher's start")
        first.kill()
        until(lambda: not place.processes(run), "its end")
        monkeypatch.delenv(FAILPOINT)
        assert reconciled(later) == 1
        assert place.until_rest().status is RunStatus.SUCCESS, place.told()
        assert len(place.run().attempts) == 1

    def test_of_two_reconcilers_one_takes_over(self, place: Place) -> None:
        run, launcher = held(place)
        launcher.kill()
        launcher.wait()
        lease = run.attempts[0].lease_until
        until(lambda: datetime.now(UTC) > lease, "the end of the lease")
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
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
        assert "somebody else answers for attempt 1 now" in served.told()

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
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
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
    assert lines_of(expired.stdout) == [{"run": run.id, "name": run.name, "uri": run.uri}]
    assert place.command("expire", "--json").stdout == ""
    said = place.command("results", run.id)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert "its results have expired and were deleted" in said.stderr
    assert "results deleted" in place.command("get", run.id).stdout
    late = [o.component for o in place.runs.components(run.id) if o.tries > 1]
    assert late == ["A3"]
    assert place.manifest().counts["components"] == len(ACCOUNTS)
