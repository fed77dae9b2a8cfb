"""SIGINT and SIGTERM at named and random moments: one line, 130 or 143, the next start goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.support.recorded import TIMEOUT, Place, held, job_of, parts, until

from ledgerbeam.batch.model.run import AttemptOutcome
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE, FAILPOINT_SIGNAL

pytestmark = pytest.mark.slow

INT, TERM = signal.SIGINT, signal.SIGTERM
LINE = "counting: interrupted: the same command again goes on from what is committed\n"
AT_THE_BEGINNING = "interrupted, before anything was begun\n"
RANDOM_MOMENTS = int(os.environ.get("LEDGERBEAM_RANDOM_MOMENTS", "3"))
"""How many are tried; `make signals` tries more."""

SECONDS = 60.0
"""Within which a process ends that is to end within ten, on a machine that has much else to do."""

MOMENTS = (
    "attempt: before",
    "attempt: made",
    "run: started",
    "part: written",
    "commit: files written",
    "commit: marker made",
    "publish: ended",
    "publish: files durable",
    "publish: manifest made",
    "run: published",
    "cleanup: claimed",
    "cleanup: done",
)

STUBBORN = '''\
"""Workloads that make it hard to stop them."""

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import ledgerbeam as lb
from recorded_workloads.counting import Counting


class Deaf(Counting):
    """Its call can't be interrupted, as one of a library's C code."""

    def execute(self, component: lb.Component) -> Iterable[lb.Record]:
        self.log("calls", f"begin 1 {component.key[0]} 0")
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                pass


class Lingering(Counting):
    """A thread of it never ends."""

    def before(self) -> None:
        threading.Thread(target=time.sleep, args=[1000]).start()


if __name__ == "__main__":
    sys.exit(lb.main({"deaf": Deaf, "lingering": Lingering}[sys.argv[1]], sys.argv[2:]))
'''


@pytest.fixture(scope="module")
def undisturbed(base: Path) -> Manifest:
    place = Place(base / "undisturbed", "none")
    assert start(place).wait() == 0
    return published(place)


@pytest.fixture(scope="module")
def seconds_alone(base: Path, undisturbed: Manifest) -> float:
    """How long a run takes that nobody disturbs."""
    began = time.monotonic()
    assert start(Place(base / "timed", "none")).wait() == 0
    return time.monotonic() - began


@pytest.fixture
def alone(tmp_path: Path, base: Path) -> Place:
    """A place of module runs, which are on no record."""
    return Place(tmp_path, "none")


def start(place: Place, *command: str, **environment: str) -> "subprocess.Popen[str]":
    """Begin a module run; by default of the place's workload."""
    code = "import sys; from ledgerbeam.batch.cli import main; sys.exit(main())"
    command = command or ("-c", code, "run", place.process)
    return subprocess.Popen(
        [sys.executable, *command, *place.flags()],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def published(place: Place) -> Manifest:
    return load_manifest(str(place.folder / "output" / "counting" / "2026-11-20"))


def interrupted(running: "subprocess.Popen[str]", *numbers: signal.Signals) -> str:
    """Send signals, and give what the process has told when it has ended by the first of them."""
    for number in numbers:
        running.send_signal(number)
    running.send_signal(signal.SIGCONT)
    _, told = running.communicate(timeout=SECONDS)
    # Of two that come at once, either may be seen first.
    assert running.returncode in {128 + number for number in numbers}, told
    return told


def is_stopped(running: "subprocess.Popen[str]") -> bool:
    assert running.poll() is None
    return bool(psutil.Process(running.pid).status() == psutil.STATUS_STOPPED)


def goes_on(place: Place, undisturbed: Manifest) -> None:
    again = start(place)
    _, told = again.communicate(timeout=TIMEOUT)
    assert again.returncode == 0, told
    assert parts(published(place)) == parts(undisturbed)


@pytest.mark.parametrize(
    ("moment", "number"), [(moment, (INT, TERM)[n % 2]) for n, moment in enumerate(MOMENTS)]
)
def test_at_any_moment(
    alone: Place, undisturbed: Manifest, moment: str, number: signal.Signals
) -> None:
    once = str(alone.folder / "once")
    stop = {FAILPOINT: moment, FAILPOINT_SIGNAL: "SIGSTOP", FAILPOINT_ONCE: once}
    running = start(alone, **stop)
    until(lambda: is_stopped(running), moment)
    assert interrupted(running, number) == LINE
    goes_on(alone, undisturbed)


@pytest.mark.parametrize("seed", range(RANDOM_MOMENTS))
def test_at_a_random_moment(
    alone: Place, undisturbed: Manifest, seconds_alone: float, seed: int
) -> None:
    chance = random.Random(seed)
    number = chance.choice([INT, TERM])
    running = start(alone)
    time.sleep(chance.uniform(0.1, 1.1) * seconds_alone)  # The moment isn't to be a known one.
    running.send_signal(number)
    _, told = running.communicate(timeout=SECONDS)
    if running.returncode == 0:
        assert told == ""
        assert parts(published(alone)) == parts(undisturbed)
    else:
        assert running.returncode == 128 + number
        assert told in (LINE, AT_THE_BEGINNING)
    goes_on(alone, undisturbed)


@pytest.mark.parametrize("number", [INT, TERM])
@pytest.mark.parametrize(
    "command", [("run", "counting"), ("-m", "ledgerbeam.pipelines.delivery_marking")]
)
def test_while_it_imports(alone: Place, number: signal.Signals, command: tuple[str, str]) -> None:
    running = start(alone, *(command if command[0] == "-m" else ()))
    maps = Path(f"/proc/{running.pid}/maps")
    until(lambda: "apache_beam" in maps.read_text(), "the import of Beam")
    told = interrupted(running, number)
    assert told in (LINE, AT_THE_BEGINNING)


def test_while_it_waits_for_a_pipe(alone: Place, undisturbed: Manifest) -> None:
    amounts = (alone.folder / "amounts.csv").read_bytes()
    (alone.folder / "amounts.csv").unlink()
    os.mkfifo(alone.folder / "amounts.csv")
    running = start(alone)
    # The end for writing can be opened without waiting once somebody waits at the other one.
    writer = until(lambda: _writer_of(alone.folder / "amounts.csv"), "a reader")
    assert interrupted(running, INT) == LINE
    os.close(writer)
    (alone.folder / "amounts.csv").unlink()
    (alone.folder / "amounts.csv").write_bytes(amounts)
    goes_on(alone, undisturbed)


def _writer_of(pipe: Path) -> int | None:
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


@pytest.mark.parametrize("number", [INT, TERM])
def test_in_a_call(alone: Place, undisturbed: Manifest, number: signal.Signals) -> None:
    alone.set("hold")
    running = start(alone)
    until(alone.calls, "the first call")
    assert interrupted(running, number) == LINE
    alone.unset("hold")
    goes_on(alone, undisturbed)


@pytest.fixture
def stubborn(alone: Place) -> Callable[..., "subprocess.Popen[str]"]:
    (alone.folder / "stubborn.py").write_text(STUBBORN)

    def begin(name: str) -> "subprocess.Popen[str]":
        return start(alone, str(alone.folder / "stubborn.py"), name)

    return begin


def test_in_a_call_that_cannot_be_interrupted(
    alone: Place, undisturbed: Manifest, stubborn: Callable[..., "subprocess.Popen[str]"]
) -> None:
    running = stubborn("deaf")
    until(alone.calls, "the first call")
    assert interrupted(running, TERM) == LINE
    goes_on(alone, undisturbed)


def test_the_second_ends_at_once(
    alone: Place, stubborn: Callable[..., "subprocess.Popen[str]"]
) -> None:
    running = stubborn("deaf")
    until(alone.calls, "the first call")
    assert interrupted(running, INT, TERM) == LINE


def test_a_thread_that_is_left_does_not_keep_it(
    alone: Place, undisturbed: Manifest, stubborn: Callable[..., "subprocess.Popen[str]"]
) -> None:
    alone.set("hold")
    running = stubborn("lingering")
    until(alone.calls, "the first call")
    assert interrupted(running, INT) == LINE
    alone.unset("hold")
    assert stubborn("lingering").wait(TIMEOUT) == 0
    assert parts(published(alone)) == parts(undisturbed)


def test_workers_of_a_terminal_are_silent(alone: Place, undisturbed: Manifest) -> None:
    alone.set("hold")
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    running = start(alone, "-c", code, "run", "counting", *flags)
    until(alone.calls, "the first call")
    children = psutil.Process(running.pid).children(recursive=True)
    for child in children:
        child.send_signal(INT)  # as Ctrl-C does
    told = interrupted(running, INT)
    # Beam's workers log to the terminal when they start.
    assert told.endswith(LINE), told
    assert "Traceback" not in told
    _, alive = psutil.wait_procs(children, SECONDS)
    assert not alive
    alone.unset("hold")
    goes_on(alone, undisturbed)


@pytest.mark.parametrize("whom", ["both", "attempt"])
def test_a_recorded_run_is_tried_again(place: Place, undisturbed: Manifest, whom: str) -> None:
    run, launcher = held(place)
    if whom == "both":
        launcher.terminate()
    job_of(run).terminate()
    place.unset("hold")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    outcomes = [attempt.outcome for attempt in place.run().attempts]
    assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
    assert parts(place.manifest()) == parts(undisturbed)
    place.check_story()
    place.check_cleaned_up()


def test_a_recorded_module_run_is_tried_again(place: Place, undisturbed: Manifest) -> None:
    place.set("hold")
    running = start(place, LEDGERBEAM_REGISTRY=place.url)
    until(place.calls, "the first call")
    assert LINE in interrupted(running, TERM)
    (attempt,) = place.run().attempts
    assert attempt.outcome is AttemptOutcome.LOST
    assert place.run().status is RunStatus.EXECUTING
    place.unset("hold")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    assert parts(place.manifest()) == parts(undisturbed)
