"""A recorded run, killed with -9 at every point that the code names, then brought to the truth.

Whatever died: the run ends as an undisturbed one, its parts are the same byte for byte, no shard
that was committed is executed again, and what may be called once only is called once only.
"""

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import psycopg
import pytest
from tests.support.outcomes import (
    PagedPlace,
    check_charged,
    check_raised,
    check_same,
    failpoints,
)
from tests.support.recorded import ACCOUNTS, Place, parts, until

from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.records import Manifest

pytestmark = pytest.mark.slow

AT_ONCE = 3
"""Scenarios side by side: each waits for leases and processes most of the time."""


POINTS = failpoints()
Scenario = Callable[[Place, str], None]


def launched(place: Place, point: str) -> None:
    """The launcher or the attempt's process dies in an ordinary run."""
    launcher = place.launcher(place.record(), point)
    until(lambda: place.reached() or launcher.poll() is not None, point)
    if point.startswith("launcher"):
        assert launcher.wait() == -signal.SIGKILL, place.told()


def lost(place: Place, point: str) -> None:
    """A component kills the attempt's process; then the launcher dies, which answers for it."""
    place.set("kill-A7")
    launched(place, point)


def failed(place: Place, point: str) -> None:
    """The attempt's process dies where it would record that it has failed."""
    place.set("fail-A7")
    launched(place, point)
    run = place.until_rest()
    assert run.status is RunStatus.FAILURE
    assert "A7 can't be counted" in (run.error or "")
    place.unset("fail-A7")
    place.runs.retry(run.id, "mended")


def canceled(place: Place, point: str) -> None:
    """The launcher dies while it stops a run that is to be canceled."""
    place.set("hold")
    launcher = place.launcher(place.record(), point)
    until(place.calls, "the first call")
    place.runs.cancel(place.run().id, "a mistake")
    assert launcher.wait() == -signal.SIGKILL, place.told()
    _confirm_cancel(place)


def asked_to_cancel(place: Place, point: str) -> None:
    """Who cancels dies; the launcher lives, or has died before."""
    place.set("hold")
    launcher = place.launcher(place.record())
    until(place.calls, "the first call")
    assert place.command("cancel", place.run().id, failpoint=point).returncode == -signal.SIGKILL
    if place.run().status is RunStatus.EXECUTING:
        place.runs.cancel(place.run().id)
    launcher.wait()
    _confirm_cancel(place)


def _confirm_cancel(place: Place) -> None:
    run = place.until_rest()
    assert run.status is RunStatus.CANCELED, place.told()
    place.unset("hold")
    before = place.tree()
    place.runs.restart(run.id, "it was none")
    until(lambda: place.tree() != before, "a restart")


def asked_to_pause(place: Place, point: str) -> None:
    """Who pauses dies."""
    place.set("hold")
    place.launcher(place.record())
    until(place.calls, "the first call")
    assert place.command("pause", place.run().id, failpoint=point).returncode == -signal.SIGKILL
    place.unset("hold")
    if place.run().status is RunStatus.PAUSED:
        place.runs.resume(place.run().id)


def asked_to_resume(place: Place, point: str) -> None:
    """Who resumes dies, with a run that was paused before it began."""
    run = place.record()
    place.runs.pause(run.id)
    place.launcher(run)
    until(lambda: place.run().live_attempt, "an attempt")
    assert place.command("resume", run.id, failpoint=point).returncode == -signal.SIGKILL


def submitted(place: Place, point: str) -> None:
    """Who submits dies."""
    done = place.command("submit", place.process, *place.flags(), failpoint=point)
    assert done.returncode == -signal.SIGKILL, done.stderr


def asked_again(place: Place, point: str) -> None:
    """Who asks for a retry dies."""
    place.set("fail-A7")
    place.launcher(place.record())
    assert place.until_rest().status is RunStatus.FAILURE
    place.unset("fail-A7")
    assert place.command("retry", place.run().id, failpoint=point).returncode == -signal.SIGKILL
    place.until_rest()
    assert [a.kind for a in place.run().attempts] == [AttemptKind.FIRST, AttemptKind.RETRY]


def replaced(place: Place, point: str) -> None:
    """Who submits in the place of a run that goes on dies when that is canceled."""
    place.set("hold")
    launcher = place.launcher(place.record(max_rejects=0))
    until(place.calls, "the first call")
    command = ["submit", place.process, "--replace", "--why=mended", *place.flags()]
    assert place.command(*command, failpoint=point).returncode == -signal.SIGKILL
    assert launcher.wait() == 0, place.told()
    place.unset("hold")
    done = place.command(*command)
    assert done.returncode == 0, done.stderr


def resolved(place: Place, point: str) -> None:
    """Who settles a component dies, and does it again."""
    place.set("kill-A7")
    place.launcher(place.record())
    run = place.until_rest()
    unknown = [o.component for o in place.runs.components(run.id, ComponentStatus.UNKNOWN)]
    assert "A7" in unknown, place.told()
    assert place.resolve(unknown[0], failpoint=point).returncode == -signal.SIGKILL
    for account in unknown:
        done = place.resolve(account)
        assert done.returncode == 0, done.stderr
    place.runs.retry(run.id, "resolved")


def limited(place: Place, point: str) -> None:
    """Who sets a limit dies."""
    run = place.record()
    done = place.command("set-rate", run.id, "1000", failpoint=point)
    assert done.returncode == -signal.SIGKILL


def reconciled(place: Place, point: str) -> None:
    """Who reconciles dies."""
    run = place.record()
    assert place.command("reconcile", failpoint=point).returncode == -signal.SIGKILL
    assert place.run().id == run.id


def taken_over(place: Place, point: str) -> None:
    """The launcher dies, and then the one that takes over."""
    launcher = place.launcher(place.record(), "launcher: job recorded")
    assert launcher.wait() == -signal.SIGKILL, place.told()
    place.unset("once")
    until(lambda: place.command("reconcile", failpoint=point).stdout, "the end of a lease")
    until(place.reached, point)


def expired(place: Place, point: str) -> None:
    """Who deletes what is due dies; checked apart from all others, as nothing is left to read."""
    place.launcher(place.record())
    until(lambda: place.run().status.is_final, "the end")
    assert place.command("expire", failpoint=point).returncode == -signal.SIGKILL


SCENARIOS: dict[str, Scenario] = {
    **dict.fromkeys(
        [
            "watcher: notified",
            "attempt: before",
            "attempt: made",
            "claim: before",
            "claim: made",
            "cleanup: claimed",
            "cleanup: done",
            "cleanup: recorded",
            "commit: files written",
            "commit: marker made",
            "job: started",
            "job: reported",
            "launcher: begun",
            "launcher: claimed",
            "launcher: end recorded",
            "launcher: concluded",
            "launcher: job ended",
            "launcher: job recorded",
            "launcher: job started",
            "launcher: workers steered",
            "outcomes: written",
            "pages: before",
            "pages: cut",
            "part: written",
            "publish: ended",
            "publish: files durable",
            "publish: manifest made",
            "rejects: written",
            "report: written",
            "run: limited",
            "run: published",
            "run: started",
            "resolve: before",
            "resolve: made",
        ],
        launched,
    ),
    **dict.fromkeys(
        ["fence: before", "fence: ended", "fence: markers taken", "launcher: fenced"], lost
    ),
    **dict.fromkeys(["fail: before", "fail: recorded"], failed),
    **dict.fromkeys(["launcher: stopping", "launcher: stopped"], canceled),
    "cancel: recorded": asked_to_cancel,
    "steer: before": asked_to_cancel,
    "steer: made": asked_to_pause,
    "pause: recorded": asked_to_pause,
    "resume: recorded": asked_to_resume,
    **dict.fromkeys(
        ["submit: recorded", "record: marked", "spawn: recorded", "spawn: started"], submitted
    ),
    "again: recorded": asked_again,
    "replace: canceled": replaced,
    "limits: told": limited,
    "resolve: decided": resolved,
    "reconcile: run seen to": reconciled,
    "launcher: taken over": taken_over,
    "expire: noted": expired,
    "expire: deleted": expired,
}

UNREACHABLE = dict.fromkeys(
    ("rollout.before-entry", "rollout.committed"),
    "no run moves a rollout: tests/batch/keyed/test_rules.py kills who does",
)
"""Points that no scenario gets to, with the reason."""

# Calls that may be made once only are claimed and resolved; only their definition has a limit.
OF_CHARGING = {p for p in POINTS if p.startswith(("claim:", "resolve:"))} | {"run: limited"}
CHARGED = (
    *sorted(OF_CHARGING),
    "commit: files written",
    "commit: marker made",
    "fence: markers taken",
    "launcher: job recorded",
    "part: written",
    "publish: ended",
)
PAGED = ("commit: files written", "commit: marker made", "launcher: job recorded", "part: written")
ON_POSTGRESQL = (
    "again: recorded",
    "cancel: recorded",
    "launcher: claimed",
    "launcher: concluded",
    "launcher: job recorded",
    "launcher: taken over",
    "publish: ended",
)


def process_of(point: str) -> str:
    if point.startswith("pages:"):
        return "raising"
    if SCENARIOS[point] is expired:
        return "ephemeral"
    return "charging" if point in OF_CHARGING else "counting"


CASES = [
    *(("sqlite", process_of(point), point) for point in POINTS if point in SCENARIOS),
    *(("sqlite", "charging", point) for point in CHARGED if point not in OF_CHARGING),
    *(("sqlite", "raising", point) for point in PAGED),
    *(("postgresql", "counting", point) for point in ON_POSTGRESQL),
]
covered: set[str] = set()


def test_every_point_has_its_scenario() -> None:
    assert set(SCENARIOS) | set(UNREACHABLE) == set(POINTS)
    assert not set(SCENARIOS) & set(UNREACHABLE)
    assert len(POINTS) >= 50


@pytest.fixture(scope="module")
def undisturbed(base: Path) -> Manifest:
    place = Place(base / "undisturbed", f"sqlite:///{base}/undisturbed.db")
    place.launcher(place.record()).wait()
    manifest = place.manifest()
    assert manifest.counts["rows_in"] == 4 * len(ACCOUNTS) + 3
    assert manifest.counts["rejected"] == 3
    return manifest


@pytest.fixture(scope="module")
def at_rest(
    request: pytest.FixtureRequest, base: Path, undisturbed: Manifest
) -> Iterator[Callable[[tuple[str, str, str]], Place]]:
    """Gives a case's place when its run has come to rest. Cases run side by side."""
    selected = [
        cast("tuple[str, str, str]", item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "case" in item.fixturenames
    ]
    urls = {
        case: request.getfixturevalue("new_schema")()
        for case in selected
        if case[0] == "postgresql"
    }

    def run(case: tuple[str, str, str]) -> Place:
        _, process, point = case
        name = "-".join(case).replace(": ", "-").replace(" ", "-")
        (base / name).mkdir()
        url = urls.get(case) or f"sqlite:///{base}/{name}/registry.db"
        place = (PagedPlace if process == "raising" else Place)(base / name, url, process)
        SCENARIOS[point](place, point)
        assert place.reached(), f"{point} isn't reached: {place.told()}"
        markers = place.markers()
        place.until_rest()
        assert place.markers().items() >= markers.items()
        return place

    with ThreadPoolExecutor(AT_ONCE) as pool:
        on_demand = "PYTEST_XDIST_WORKER" in os.environ
        running: dict[tuple[str, str, str], Future[Place]] = {}
        if not on_demand:
            running = {case: pool.submit(run, case) for case in selected}
        yield lambda case: running[case].result() if case in running else run(case)
        for future in running.values():
            future.cancel()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(
            f"\ncrash matrix: {len(covered)} of {len(POINTS)} points covered, "
            f"{len(UNREACHABLE)} unreachable, in {len(selected)} cases"
        )


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_killed_at(
    case: tuple[str, str, str],
    at_rest: Callable[[tuple[str, str, str]], Place],
    undisturbed: Manifest,
) -> None:
    _, process, point = case
    place = at_rest(case)
    covered.add(point)
    place.check_story()
    place.check_cleaned_up()
    run = place.run()
    if process == "charging":
        check_charged(place, undisturbed)
    elif isinstance(place, PagedPlace):
        check_raised(place)
    elif process == "ephemeral":
        place.command("expire")
        check_expired(place)
    else:
        assert run.status is RunStatus.SUCCESS, place.told()
        check_same(place, undisturbed)
        place.check_committed_once()
    if point == "limits: told":
        assert place.runs.get(run.id).progress.steering.rate == 1000


def check_expired(place: Place) -> None:
    assert place.run().status is RunStatus.SUCCESS, place.told()
    types = [event.type for event in place.runs.registry.events(place.run().id)]
    assert types.count("results_expired") == 1
    left = place.tree()
    assert not [name for name in left if "part-" in name or "report-" in name]
    assert {"manifest.json", "expired.json", "attempt-1/committed-00000.json"} <= left.keys()


class TestWorkerProcesses:
    """Beam's worker processes, which it waits for though they are dead."""

    FLAGS = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")

    def test_killed_in_a_recorded_run(self, base: Path, undisturbed: Manifest) -> None:
        place = Place(base / "worker", f"sqlite:///{base}/worker.db")
        place.set("kill-A7")
        run, _ = place.runs.record(place.process, place.parameters(), self.FLAGS)
        assert place.launcher(run).wait() == 0, place.told()
        run = place.run()
        assert run.status is RunStatus.SUCCESS, place.told()
        assert [a.outcome for a in run.attempts] == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
        why = run.attempts[0].error or ""
        assert "a worker process was killed (signal 9, SIGKILL)" in why
        check_same(place, undisturbed)
        place.check_story()
        place.check_cleaned_up()

    @pytest.mark.parametrize("place_of_run", ["terminal", "background"])
    def test_killed_in_a_module_run(
        self, base: Path, undisturbed: Manifest, place_of_run: str
    ) -> None:
        place = Place(base / f"module-{place_of_run}", "none")
        place.set("kill-A7")
        if place_of_run == "background":
            # What a script starts with `&` is deaf to Ctrl-C, and so are the processes of that.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                self.check_module_run(place, undisturbed)
            finally:
                signal.signal(signal.SIGINT, before)
        else:
            self.check_module_run(place, undisturbed)

    def check_module_run(self, place: Place, undisturbed: Manifest) -> None:
        command = ("run", place.process, *place.flags(), *self.FLAGS)
        environment = {"LEDGERBEAM_REGISTRY": ""}
        done = place.command(*command, **environment)
        assert done.returncode == 1, done.stderr
        assert (place.folder / "calls").exists()
        lines = [line for line in done.stderr.splitlines() if line.startswith("counting:")]
        assert len(lines) == 1, done.stderr
        assert "a worker process was killed (signal 9, SIGKILL)" in lines[0]
        assert "Traceback" not in done.stderr
        again = place.command(*command, **environment)
        assert again.returncode == 0, again.stderr
        manifest = load_manifest(str(place.folder / "output" / "counting" / "2026-11-20"))
        assert parts(manifest) == parts(undisturbed)


def test_connections_are_cut_all_the_time(
    base: Path, undisturbed: Manifest, new_schema: Callable[[], str]
) -> None:
    """The registry breaks off while a run is launched: it is launched, executed once, recorded."""
    name = f"launcher-{uuid.uuid4().hex[:8]}"
    place = Place(base / "cut", new_schema())
    place.set("slow")
    run = place.record()
    launchers = Place(base / "cut", f"{place.url}&application_name={name}")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    cuts = 0
    done = threading.Event()

    def work() -> None:
        nonlocal cuts
        admin = place.url.replace("+psycopg", "").partition("?")[0]
        with psycopg.connect(admin, autocommit=True) as connection:
            while not done.wait(0.15):
                cuts += len(connection.execute(cut, [name]).fetchall())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        launcher: subprocess.Popen[bytes] = launchers.launcher(run)
        assert launcher.wait() == 0, place.told()
    finally:
        done.set()
        thread.join()
    assert cuts > 3
    assert place.run().status is RunStatus.SUCCESS, place.told()
    check_same(place, undisturbed)
    place.check_committed_once()
    place.reconcile()
    place.check_story()
