"""One trial: a recorded run, its faults, its healing, and whether it ended as it has to."""

import contextlib
import shutil
import tempfile
import time
import traceback
import uuid
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from tests.nemesis.faults import FAULTS, OF_CLOCKS, PASSING, Fault, Plan
from tests.nemesis.scene import Scene
from tests.support.outcomes import PagedPlace, check_raised, check_same
from tests.support.postgres import PostgresServer
from tests.support.recorded import ACCOUNTS, Place, workloads_installed

from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.commit.attempts import find_manifest
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE, FAILPOINT_SIGNAL

LEASE = 2.0
"""Seconds for which a launcher may be silent."""

PATIENCE = 60.0
"""Seconds that a trial waits for the moment of a fault."""

DEADLINE = 600.0
"""Seconds after which a run that was healed and isn't at rest is stuck, on a busy machine."""

_LATER = timedelta(hours=1)
_POLL_SECONDS = 0.3


class Result(NamedTuple):
    """How a trial ended.

    Attributes:
        plan: what was drawn.
        hit: kinds of faults that took effect.
        end: SUCCESS, CANCELED, or WRONG.
        by_hand: how often somebody had to ask for a retry or a restart.
        seconds: that it took.
        told: what is wrong; empty where nothing is.
    """

    plan: Plan
    hit: list[str]
    end: str
    by_hand: int
    seconds: float
    told: str

    def line(self) -> str:
        """The trial in a line."""
        plan = self.plan
        left = Counter(self.hit)
        faults = []
        for kind in _kinds(plan):
            faults.append(kind if left[kind] else f"({kind})")
            left[kind] -= 1
        where = f"{plan.database} {plan.process}{' workers' if plan.flags else ''}"
        by_hand = f", {self.by_hand} by hand" if self.by_hand else ""
        told = f": {self.told.splitlines()[0]}" if self.told else ""
        what = "; ".join(faults)
        return (
            f"seed={plan.seed} {where} | {what} | {self.end}{by_hand} | {self.seconds:.1f} s{told}"
        )


def _kinds(plan: Plan) -> list[str]:
    of_point = [f"at a point: {plan.point_signal}"] if plan.point else []
    return [*of_point, *(fault.kind for fault in plan.faults)]


def undisturbed(folder: Path) -> Manifest:
    """What the run of each trial publishes where nothing goes wrong."""
    with workloads_installed(folder / "state", LEASE):
        place = Place(folder / "undisturbed", f"sqlite:///{folder}/undisturbed.db")
        place.launcher(place.record()).wait()
        return place.manifest()


def new_registry(server: PostgresServer) -> str:
    """The URL of an empty schema, which takes a hundredth of the time of a database."""
    name = f"trial_{uuid.uuid4().hex}"
    with psycopg.connect(server.url().replace("+psycopg", "")) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server.url()}?options=-csearch_path%3D{name}"


def run_trial(
    plan: Plan,
    expected: Manifest,
    url: str = "",
    library: Path | None = None,
) -> Result:
    """Run a trial to its end.

    Args:
        plan: what goes wrong.
        expected: what the run publishes where nothing does.
        url: of an empty registry; of one in the trial's folder, if there is none.
        library: `clock.c`, for plans that set clocks.

    Returns:
        How it ended; the folder of one that ended wrong is left where it is.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"nemesis-{plan.seed}-"))
    began = time.monotonic()
    hit: list[str] = []
    by_hand, end, told = 0, "WRONG", ""
    scene = None
    try:
        with workloads_installed(folder / "state", LEASE), contextlib.ExitStack() as stack:
            url = url or f"sqlite:///{folder}/registry.db"
            scene = Scene(folder, url, plan.process, plan.flags)
            stack.callback(scene.close)
            is_clocked = any(fault.kind in OF_CLOCKS for fault in plan.faults)
            stack.enter_context(scene.preloaded(library if is_clocked else None))
            _disturb(scene, plan, hit)
            scene.heal()
            status, by_hand = _bring_to_rest(scene, plan)
            _check(scene, status, expected)
            end = status
    except (AssertionError, Exception):
        told = traceback.format_exc().strip().splitlines()[-1]
        log = [f"{plan}", traceback.format_exc()]
        with contextlib.suppress(Exception):
            assert scene is not None
            log += [*scene.notes, scene.place.told()]
        (folder / "told.txt").write_text("\n".join(log))
        told = f"{told[:300]} ({folder}/told.txt)"
    if not told:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(plan, hit, end, by_hand, time.monotonic() - began, told)


def _disturb(scene: Scene, plan: Plan, hit: list[str]) -> None:
    """Start the run, and let each fault come in its time; a cron reconciles all the while."""
    place = scene.place
    place.set("slow")
    scene.record()
    with pytest.MonkeyPatch.context() as patch:
        if plan.point:
            patch.setenv(FAILPOINT, plan.point)
            patch.setenv(FAILPOINT_ONCE, str(place.folder / "once"))
            patch.setenv(FAILPOINT_SIGNAL, plan.point_signal)
        place.launcher(place.run())
        for fault in plan.faults:
            if not _wait_for(scene, fault):
                break
            if FAULTS[fault.kind](scene, fault.size):
                hit.append(fault.kind)
                if fault.kind in PASSING:
                    _pass(scene, 0.5 + 2 * fault.size)
                    scene.heal_storage()
    if place.reached():
        hit.append(f"at a point: {plan.point_signal}")


def _wait_for(scene: Scene, fault: Fault) -> bool:
    """Wait for the moment of a fault; False where the run is at rest for good before."""
    give_up_at = time.monotonic() + PATIENCE
    while scene.progress <= fault.after and time.monotonic() < give_up_at:
        status = scene.status()
        if status is RunStatus.SUCCESS:
            return False
        is_final = status is not None and status.is_final
        if status is RunStatus.PAUSED or (is_final and fault.kind.startswith("`")):
            return True  # a verb may move it on
        if is_final:
            scene.until_quiet(PATIENCE)
            with contextlib.suppress(UserError):
                _do_again(scene)
        _pass(scene, _POLL_SECONDS)
    _pass(scene, fault.delay)
    return True


def _pass(scene: Scene, seconds: float) -> None:
    """Let time pass, with a cron."""
    until = time.monotonic() + seconds
    while True:
        scene.let_go_on()
        scene.reconcile()
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _POLL_SECONDS))


def _bring_to_rest(scene: Scene, plan: Plan) -> tuple[RunStatus, int]:
    """What a cron and an operator do until the run is at rest; how often it took the operator."""
    name = f"{scene.place.process}/{scene.place.day}"
    by_hand = 0
    give_up_at = time.monotonic() + DEADLINE
    while time.monotonic() < give_up_at:
        _pass(scene, _POLL_SECONDS)
        run = scene.place.run()
        if run.status is RunStatus.PAUSED:
            with contextlib.suppress(UserError), scene.on_host():
                scene.runs.resume(name)
        if not run.status.is_final:
            continue
        before = scene.progress
        scene.until_quiet(max(1.0, give_up_at - time.monotonic()))
        if run.status is RunStatus.CANCELED:
            assert scene.progress == before, "components were begun after CANCELED"
        if run.status is RunStatus.SUCCESS or (
            run.status is RunStatus.CANCELED and not plan.goes_on
        ):
            return run.status, by_hand
        by_hand += 1
        assert by_hand < 8, f"it fails again and again: {run.error}"
        with scene.on_host():
            _resolve(scene)
            again = scene.runs.retry if run.status is RunStatus.FAILURE else scene.runs.restart
            again(name, "it was a fault")
    raise AssertionError(f"not at rest {DEADLINE:g} s after it was healed")


def _do_again(scene: Scene) -> None:
    """What an operator does with a run that has ended without success."""
    with scene.on_host():
        _resolve(scene)
        run = scene.place.run()
        again = scene.runs.retry if run.status is RunStatus.FAILURE else scene.runs.restart
        again(run.id, "it was a fault")


def _resolve(scene: Scene) -> None:
    """Settle components that are unknown by the log of calls, as by a bank's statement."""
    place = scene.place
    if place.process != "charging":
        return
    run = place.run()
    called = {call.account for call in place.calls()}
    for outcome in list(scene.runs.components(run.id, ComponentStatus.UNKNOWN)):
        account = outcome.component
        if account not in called:
            scene.runs.resolve(run.id, account, ComponentStatus.FAILURE, "not on the statement")
            continue
        results = None if account == "EMPTY" else str(place.results_of(account))
        scene.runs.resolve(
            run.id, account, ComponentStatus.SUCCESS, "it is on the statement", results
        )


def _check(scene: Scene, status: RunStatus, expected: Manifest) -> None:
    place = scene.place
    run = place.run()
    assert run.status is status, f"it was {status}, and is {run.status}"
    before = place.tree() if Path(run.uri).exists() else {}
    calls = scene.progress
    for later in (timedelta(), _LATER):
        assert not scene.reconcile(later), "reconcile has something to do"
    place.check_story()
    if place.process == "counting":
        place.check_cleaned_up()
    if place.process == "charging":
        twice = [a for a, n in Counter(c.account for c in place.calls()).items() if n > 1]
        assert not twice, f"called twice: {twice}"
    if status is RunStatus.CANCELED:
        assert find_manifest(run.uri) is None, "CANCELED, and published"
    else:
        if isinstance(place, PagedPlace):
            check_raised(place)
        else:
            check_same(place, expected)
            assert {call.account for call in place.calls()} == set(ACCOUNTS)
        kind = load_workload(place.process)
        verify(run.uri, kind(kind.parameters_type.model_validate(run.all_parameters)))
    assert not scene.processes(), "processes are left"
    assert scene.progress == calls, "components were begun at rest"
    after = place.tree() if Path(run.uri).exists() else {}
    assert after == before, "files changed at rest"
