"""Kinds of faults, and what a seed draws of them."""

import dataclasses
import random
import signal
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.nemesis.scene import Scene
from tests.support.outcomes import failpoints

from ledgerbeam.io.errors import UserError

WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
POINTS = sorted(failpoints())


class Fault(NamedTuple):
    """One thing that goes wrong, or that somebody asks for.

    Attributes:
        kind: a name in `FAULTS`.
        after: of how many components or pages must have begun before.
        delay: seconds after that.
        size: between 0 and 1: how much, how long, which one.
    """

    kind: str
    after: int
    delay: float
    size: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed stands for.

    Attributes:
        seed: that it was drawn by.
        database: of the registry: sqlite or postgresql.
        process: the workload.
        flags: of Beam.
        point: the failpoint at which the first process to reach it dies or stops; or empty.
        point_signal: what it is sent there.
        faults: in their order.
        goes_on: whether a run that was canceled is restarted.
    """

    seed: int
    database: str
    process: str
    flags: list[str]
    point: str
    point_signal: str
    faults: list[Fault]
    goes_on: bool


def _killed(role: str, number: int = signal.SIGKILL) -> Callable[[Scene, float], bool]:
    return lambda scene, size: scene.signal(role, number, int(100 * size))


def _stopped(role: str) -> Callable[[Scene, float], bool]:
    def stop(scene: Scene, size: float) -> bool:
        seconds = (1.2 + size) * scene.place.settings.lease_seconds
        return scene.stop(role, seconds, int(100 * size))

    return stop


def _asked(verb: str) -> Callable[[Scene, float], bool]:
    def ask(scene: Scene, size: float) -> bool:
        name = f"{scene.place.process}/{scene.place.day}"
        try:
            with scene.on_host():
                if verb == "limit":
                    scene.runs.set_rate(name, 5 + 100 * size, why="a fault")
                else:
                    getattr(scene.runs, verb)(name, "a fault")
        except UserError:
            return False
        return True

    return ask


def _clock(sign: int) -> Callable[[Scene, float], bool]:
    def step(scene: Scene, size: float) -> bool:
        scene.step_clock(sign * round(10 ** (1 + 3 * size)))  # 10 s to almost 3 h
        return bool(scene.processes())

    return step


def _power(scene: Scene, size: float) -> bool:
    return scene.kill_all() > 0


def _machine(scene: Scene, size: float) -> bool:
    return scene.lose_machine() > 0


def _reconcile(scene: Scene, size: float) -> bool:
    return scene.kill_reconcile(0.5 + 2 * size)


def _full(scene: Scene, size: float) -> bool:
    return scene.fill_storage()


def _gone(scene: Scene, size: float) -> bool:
    return scene.exchange_storage()


def _registry(scene: Scene, size: float) -> bool:
    scene.hold_registry(0.5 + 2 * size)
    return True


FAULTS: Mapping[str, Callable[[Scene, float], bool]] = {
    "launcher: SIGKILL": _killed("launcher"),
    "launcher: SIGTERM": _killed("launcher", signal.SIGTERM),
    "launcher: stopped longer than its lease": _stopped("launcher"),
    "attempt: SIGKILL": _killed("attempt"),
    "attempt: SIGTERM": _killed("attempt", signal.SIGTERM),
    "attempt: stopped longer than its lease": _stopped("attempt"),
    "worker: SIGKILL": _killed("worker"),
    "worker: stopped longer than its lease": _stopped("worker"),
    "`reconcile`: SIGKILL": _reconcile,
    "machine: power lost, comes back": _power,
    "machine: lost, another takes over": _machine,
    "clock: set forward": _clock(1),
    "clock: set back": _clock(-1),
    "storage: full": _full,
    "storage: out of reach": _gone,
    "registry: cut off": _registry,
    "`cancel`": _asked("cancel"),
    "`pause`": _asked("pause"),
    "`resume`": _asked("resume"),
    "`retry`": _asked("retry"),
    "`restart`": _asked("restart"),
    "`set-rate`": _asked("limit"),
}
"""What each kind does to a trial; whether it could be done."""

OF_WORKERS = {kind for kind in FAULTS if kind.startswith("worker:")}
OF_CLOCKS = {kind for kind in FAULTS if kind.startswith("clock:")}
PASSING = {"storage: full", "storage: out of reach"}
"""These end by themselves after a while, as they would if somebody saw to them."""


def draw(seed: int, databases: list[str], has_clock: bool) -> Plan:
    """What a seed stands for, where these databases are there and a clock can be set or not."""
    source = random.Random(seed)
    process = source.choice(["counting", "counting", "charging", "raising"])
    # Worker processes are slow to start.
    flags = WORKERS if process == "counting" and source.random() < 0.25 else []
    kinds = [
        kind
        for kind in FAULTS
        if (flags or kind not in OF_WORKERS) and (has_clock or kind not in OF_CLOCKS)
    ]
    most = 12 if process != "raising" else 8
    faults = [
        Fault(
            source.choice(kinds),
            source.randrange(most),
            round(source.uniform(0, 0.5), 2),
            round(source.random(), 2),
        )
        for _ in range(source.randrange(1, 5))
    ]
    if flags and not OF_WORKERS & {fault.kind for fault in faults}:
        faults[0] = faults[0]._replace(kind=source.choice(sorted(OF_WORKERS)))
    faults.sort(key=lambda fault: fault.after)
    has_point = source.random() < 0.4
    return Plan(
        seed,
        source.choice(databases),
        process,
        flags,
        source.choice(POINTS) if has_point else "",
        source.choice(["SIGKILL", "SIGSTOP"]),
        faults,
        source.random() < 0.5,
    )
