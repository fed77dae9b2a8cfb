"""Runs of the workloads in `support/workloads`: launchers and attempts in real processes."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil
import pytest

from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import MOVES, RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.reconcile import reconcile
from ledgerbeam.batch.settings import LEASE, REGISTRY, STATE, Settings
from ledgerbeam.io.commit.attempts import attempts, find_manifest
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE

WORKLOADS = Path(__file__).parent / "workloads"
TIMEOUT = 240.0
"""Seconds that a test waits for anything, on a machine that has much else to do."""

_POLL_SECONDS = 0.2

ACCOUNTS = ["EMPTY", *(f"A{number}" for number in range(11))]
SHARDS = 4
DAY = date(2026, 11, 20)


def until(condition: Callable[[], Any], what: str, seconds: float = TIMEOUT) -> Any:
    """Wait until something is so; gives what the condition gave."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@contextmanager
def workloads_installed(state: Path, lease: float) -> Iterator[None]:
    """This process and those that it starts find the workloads; all of them are gone afterwards."""
    path = os.pathsep.join([str(WORKLOADS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WORKLOADS)
        patch.setenv("PYTHONPATH", path)
        patch.setenv(STATE, str(state))
        patch.setenv(LEASE, str(lease))
        patch.delenv(REGISTRY, raising=False)
        try:
            yield
        finally:
            left = processes_of(str(state))
            gone_at = time.monotonic() + TIMEOUT
            while left and time.monotonic() < gone_at:
                time.sleep(0.1)
                left = processes_of(str(state))
            told = [process.cmdline() for process in left]
            for process in left:
                process.kill()
            assert not told


def processes_of(state: str) -> list[psutil.Process]:
    """Processes that go on and were started with that state folder, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get(STATE) == state:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Call(NamedTuple):
    """A line of the log of calls."""

    what: str
    pid: int
    account: str
    at: float


@dataclasses.dataclass
class Place:
    """A folder with an input, switches and logs, and a registry.

    Attributes:
        folder: where all is but the registry, if that is a server.
        url: of the registry.
        process: name of the workload.
    """

    folder: Path
    url: str
    process: str = "counting"
    day: date = DAY

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True, parents=True)
        lines = ["account,id,amount"]
        lines += [
            f"{ACCOUNTS[number % len(ACCOUNTS)]},{number},{number * number}"
            for number in range(4 * len(ACCOUNTS))
        ]
        lines += ["A1,not a number,1", "A2,900,1", "A2,900,2"]
        (self.folder / "amounts.csv").write_text("\n".join(lines) + "\n")

    @cached_property
    def settings(self) -> Settings:
        return Settings.from_environment(self.url)

    @cached_property
    def runs(self) -> Runs:
        return Runs(self.settings)

    def parameters(self, **others: Any) -> dict[str, Any]:
        return {
            "amounts": str(self.folder / "amounts.csv"),
            "business_date": self.day.isoformat(),
            "folder": str(self.folder),
            "output": str(self.folder / "output"),
            "shards": SHARDS,
            "max_rejects": 3,
            **others,
        }

    def flags(self, **others: Any) -> list[str]:
        given = self.parameters(**others).items()
        return [f"--{name.replace('_', '-')}={value}" for name, value in given]

    def set(self, *switches: str) -> None:
        for switch in switches:
            (self.folder / switch).touch()

    def unset(self, *switches: str) -> None:
        for switch in switches:
            (self.folder / switch).unlink(missing_ok=True)

    # Processes

    def environment(self, failpoint: str = "") -> dict[str, str]:
        armed = {FAILPOINT: failpoint, FAILPOINT_ONCE: str(self.folder / "once")}
        return {**os.environ, REGISTRY: self.url, **(armed if failpoint else {})}

    def reached(self) -> bool:
        """Whether a process has died at the failpoint that was armed."""
        return (self.folder / "once").exists()

    def launcher(self, run: RunRecord, failpoint: str = "") -> "subprocess.Popen[bytes]":
        with (self.folder / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ledgerbeam.batch.launch.launcher", run.id],
                env=self.environment(failpoint),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(
        self, *arguments: str, failpoint: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """`ledgerbeam …` as a process of its own."""
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**self.environment(failpoint), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )

    def resolve(self, account: str, failpoint: str = "") -> "subprocess.CompletedProcess[str]":
        """Settle an account as charged, with the rows that its call would have given."""
        name = f"{self.process}/{self.day}"
        (self.folder / f"{account}.resolved").touch()
        arguments = ["resolve", name, account, "SUCCESS", "--why=it is on the statement"]
        if account != "EMPTY":
            arguments.append(f"--results={self.results_of(account)}")
        return self.command(*arguments, failpoint=failpoint)

    def results_of(self, account: str) -> Path:
        """A file with the rows that the call of an account gives."""
        numbers = range(ACCOUNTS.index(account), 4 * len(ACCOUNTS), len(ACCOUNTS))
        file = self.folder / f"{account}.csv"
        file.write_text(f"total\n{sum(number * number for number in numbers)}\n")
        return file

    # Runs

    def record(self, **others: Any) -> RunRecord:
        """Submit, without a launcher."""
        return self.runs.record(self.process, self.parameters(**others))[0]

    def run(self) -> RunRecord:
        return self.runs.registry.find(f"{self.process}/{self.day}")

    def reconcile(self) -> list[str]:
        return [what for _, what in reconcile(self.settings, self.runs, datetime.now(UTC))]

    def until_status(self, *statuses: RunStatus) -> RunRecord:
        """Wait, without reconciling."""
        until(lambda: self.run().status in statuses, f"status {statuses} of {self.told()}")
        return self.run()

    def until_rest(self) -> RunRecord:
        """Reconcile as a cron would, until the run has ended and nobody works for it."""

        def state() -> Any:
            run = self.run()
            return run.status.is_final, [(a.launcher, a.outcome) for a in run.attempts]

        def has_moved_from(before: Any) -> bool:
            return bool(state() != before)

        deadline = time.monotonic() + TIMEOUT
        while not self.run().status.is_final:
            assert time.monotonic() < deadline, self.told()
            before = state()
            if self.reconcile():
                # A launcher takes its time to come up; a cron waits a minute.
                until(partial(has_moved_from, before), f"a launcher of {self.told()}")
            time.sleep(2 * _POLL_SECONDS)
        until(lambda: not self.processes(), f"the end of processes of {self.told()}")
        self.reconcile()
        return self.run()

    def processes(self, run: RunRecord | None = None) -> list[psutil.Process]:
        """Launchers of the run, and what they have started."""
        run = run or self.run()
        launchers = [p for p in psutil.process_iter() if run.id in _command_line(p)]
        attempts = [p for launcher in launchers for p in _children(launcher)]
        job_ids = [a.job_id for a in run.attempts if a.job_id]
        jobs = [p for job_id in job_ids if (p := _process(job_id)) is not None]
        return [p for p in {*launchers, *attempts, *jobs} if goes_on(p)]

    def told(self) -> str:
        """What is to be known where a test fails."""
        run = self.run()
        history = [
            (e.type, e.to_status, e.attempt, e.why) for e in self.runs.registry.events(run.id)
        ]
        logs = [self.settings.log_of(run.id), self.folder / "launcher.log"]
        text = "\n".join(log.read_text() for log in logs if log.exists())
        return f"{run.name} {run.status} {run.error} {history}\n{text}"

    def manifest(self) -> Manifest:
        manifest = find_manifest(self.run().uri)
        assert manifest is not None, self.told()
        return manifest

    def calls(self, what: str = "begin") -> list[Call]:
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        calls = [
            Call(w, int(pid), account, float(at)) for w, pid, account, at in map(str.split, lines)
        ]
        return [call for call in calls if call.what == what]

    def hooks(self) -> Counter[str]:
        log = self.folder / "hooks"
        lines = log.read_text().splitlines() if log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def markers(self) -> dict[str, str]:
        """Hash and time of each marker, of all attempts."""
        found = Path(self.run().uri).glob("attempt-*/committed-*.json")
        return {
            str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
            for path in found
        }

    def tree(self) -> dict[str, bytes]:
        root = Path(self.run().uri)
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    # Checks

    def check_story(self) -> None:
        """Every move is legal and follows the one before; every attempt has begun and ended."""
        run = self.run()
        events = self.runs.registry.events(run.id)
        status: RunStatus | None = None
        for event in events:
            if event.to_status is not None:
                assert event.from_status is status
                assert status is None or event.to_status in MOVES[status]
                status = event.to_status
        assert status is run.status
        for attempt in run.attempts:
            types = [event.type for event in events if event.attempt == attempt.number]
            assert types[0] == "attempt_started"
            assert types.count("attempt_started") == types.count("attempt_ended") == 1
        # Whoever has recorded the end delivers it a moment later.
        until(lambda: not self.runs.registry.undelivered(1), "the delivery of all events")

    def check_committed_once(self) -> None:
        """Of each shard that counts, the components were called by one process after all others.

        Nobody called them again once the shard was committed.
        """
        manifest = self.manifest()
        calls = self.calls()
        order = list(dict.fromkeys(call.pid for call in calls))
        by_attempt: dict[int, set[int]] = {}
        for commit in manifest.shards:
            of_shard = set(read_part(self.run().uri, commit.part).column("account").to_pylist())
            callers = [call.pid for call in calls if call.account in of_shard]
            assert callers or not of_shard
            if callers:
                last = max(callers, key=order.index)
                by_attempt.setdefault(commit.attempt, set()).add(last)
        # All shards of one attempt were executed last by its one process.
        assert all(len(pids) == 1 for pids in by_attempt.values()), by_attempt
        assert len({pid for pids in by_attempt.values() for pid in pids}) == len(by_attempt)

    def check_cleaned_up(self) -> None:
        """The hook was called once for each attempt; where that isn't known, it is told."""
        if not self.run().options.has_cleanup:
            return
        stored = attempts(self.run().uri)
        root = Path(self.run().uri)
        cleaned = [r for r in stored if (root / f"attempt-{r.number}/cleaned.json").exists()]
        events = self.runs.registry.events(self.run().id)
        warned = {event.attempt for event in events if event.type == "warning"}
        assert all(r in cleaned or r.launch in warned for r in stored), self.told()
        assert len(cleaned) <= self.hooks()["cleanup"] <= len(stored)

    def let_go(self) -> None:
        """Whatever a test left behind comes to its end."""
        for switch in self.folder.glob("hold*"):
            switch.unlink()
        for run in self.runs.list():
            for process in self.processes(run):
                with suppress(psutil.Error):
                    process.resume()
            until(partial(self._is_left, run), "the end of all processes")

    def _is_left(self, run: RunRecord) -> bool:
        return not self.processes(run)


class NewPlace(Protocol):
    """Makes the place of a test."""

    def __call__(self, process: str = "counting", url: str = "") -> Place:
        """Make it, with a registry in SQLite unless the URL of another one is given."""


def parts(manifest: Manifest) -> list[str]:
    return [commit.part.sha256 for commit in manifest.shards]


def sums(manifest: Manifest) -> Mapping[str, int]:
    return {**manifest.totals, **manifest.counts}


def goes_on(process: psutil.Process) -> bool:
    """Whether it hasn't ended; one that waits for its parent has."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _process(job_id: str) -> psutil.Process | None:
    from ledgerbeam.batch.launch.job import JobId

    process = JobId.parse(job_id).driver
    return psutil.Process(process.pid) if process.is_alive() else None


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
