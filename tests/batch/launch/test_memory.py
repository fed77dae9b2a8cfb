"""Attempts that want more memory than there is: told as such, and not tried over and over."""

import resource
import subprocess
import sys

import pytest
from tests.support.control_groups import control_group, join
from tests.support.recorded import Place

from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.run import AttemptOutcome
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.settings import REGISTRY

pytestmark = pytest.mark.slow

GIB = 1 << 30
LOST, FAILURE = AttemptOutcome.LOST, AttemptOutcome.FAILURE
FLAGS: dict[str, list[str]] = {
    "in the attempt's process": [],
    "in a worker process": [
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    ],
}


@pytest.mark.parametrize("where", FLAGS)
def test_the_kernel_ends_it(place: Place, where: str) -> None:
    """It is tried once more, and then the run has failed for that reason.

    Where no control group can be made, the kernel would end others, too, and so a signal ends it
    that isn't the kernel's: nobody says that it is.
    """
    run, _ = place.runs.record(place.process, place.parameters(), FLAGS[where])
    with control_group(GIB) as group:
        place.set("kill-A1" if group is None else "grow-A1")
        launcher = subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launch.launcher", run.id],
            env=place.environment(),
            preexec_fn=lambda: join(group),
        )
        assert launcher.wait() == 0
    ended = place.run()
    if group is None:
        assert ended.attempts[0].outcome is LOST
        assert "by the kernel" not in str(ended.attempts[0].error)
        return
    assert ended.status is RunStatus.FAILURE, place.told()
    assert [attempt.outcome for attempt in ended.attempts] == [LOST, LOST], place.told()
    what = "its process" if where == "in the attempt's process" else "a worker process"
    for attempt in ended.attempts:
        assert f"{what} was ended by the kernel: out of memory: there are 1024 MiB (" in str(
            attempt.error
        )
    assert "give it more memory, more --shards" in str(ended.error)
    assert place.runs.get(run.id).code == "out-of-memory"
    place.check_story()


class TestNoMoreIsGiven:
    """A limit of the process; what isn't given ends nobody."""

    def limited(self) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * GIB, 4 * GIB))

    @pytest.mark.parametrize("where", FLAGS)
    def test_on_record(self, place: Place, where: str) -> None:
        place.set("grow-A1")
        run, _ = place.runs.record(place.process, place.parameters(), FLAGS[where])
        launcher = subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launch.launcher", run.id],
            env=place.environment(),
            preexec_fn=self.limited,
        )
        assert launcher.wait() == 0
        ended = place.run()
        assert [attempt.outcome for attempt in ended.attempts] == [FAILURE], place.told()
        assert str(ended.error).startswith("out of memory: there are 4096 MiB (RLIMIT_AS): ")
        assert "give it more memory, more --shards" in str(ended.error)
        assert place.runs.get(run.id).code == "out-of-memory"

    def test_of_a_module(self, place: Place) -> None:
        place.set("grow-A1")
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, "run", place.process, *place.flags()],
            env={**place.environment(), REGISTRY: ""},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=self.limited,
        )
        assert done.returncode == Exit.FAILURE
        (line,) = done.stderr.splitlines()
        assert line.startswith("counting: out of memory: there are 4096 MiB (RLIMIT_AS): ")
