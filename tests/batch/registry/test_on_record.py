"""An instance that is on record is published by runs of its registry, and by nobody else."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.recorded import DAY, NewPlace, Place, held, until

from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.scrub import scrub
from ledgerbeam.batch.settings import REGISTRY, Settings
from ledgerbeam.io.commit.attempts import attempts, ending_of, find_manifest
from ledgerbeam.io.commit.on_record import MARK, find_mark
from ledgerbeam.io.errors import OnRecordError
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_SIGNAL

pytestmark = pytest.mark.slow

NOWHERE = {REGISTRY: ""}
"""Environment of a module's run without a registry."""


def differences(place: Place) -> list[str]:
    return [what for _, what in scrub(place.runs.registry, place.runs.list())]


def module_run(place: Place, **environment: str) -> "subprocess.Popen[str]":
    """The workload as a program, which goes on without a registry."""
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", place.process, *place.flags()],
        env={**place.environment(), **NOWHERE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestBehindTheRegistry:
    def test_a_module_is_refused(self, place: Place) -> None:
        """Before the run has begun, once it has failed, and when it has published."""
        run = place.record()
        for status in (RunStatus.INITIATED, RunStatus.FAILURE, RunStatus.SUCCESS):
            before = place.tree()
            assert place.run().status is status
            refused = place.command("run", place.process, *place.flags(), **NOWHERE)
            assert refused.returncode == Exit.FAILURE
            (line,) = refused.stderr.splitlines()
            assert f"on record as counting/{DAY} (run {run.id}, " in line
            assert f"`ledgerbeam retry counting/{DAY}`" in line
            assert place.tree() == before
            place.set(*(["fail-A1"] if status is RunStatus.INITIATED else []))
            if status is RunStatus.FAILURE:
                place.unset("fail-A1")
                place.runs.retry(run.id)
                place.until_status(RunStatus.SUCCESS)
            elif status is RunStatus.INITIATED:
                place.launcher(run).wait()
        assert differences(place) == []

    def test_a_module_with_the_registry_is_taken_up(self, place: Place) -> None:
        place.set("fail-A1")
        run = place.record()
        place.launcher(run).wait()
        place.unset("fail-A1")
        taken_up = place.command("run", place.process, *place.flags())
        assert taken_up.returncode == Exit.OK, taken_up.stderr
        again = place.run()
        assert (again.id, again.status) == (run.id, RunStatus.SUCCESS)
        assert [attempt.kind for attempt in again.attempts] == ["first", "retry"]
        assert differences(place) == []

    def test_another_registry_is_refused(self, place: Place, tmp_path: Path) -> None:
        run = place.record()
        with Runs(Settings.from_environment(f"sqlite:///{tmp_path}/other.db")) as others:
            for verb in (others.record, others.submit):
                with pytest.raises(OnRecordError, match=f"in another registry, as run {run.id}"):
                    verb(place.process, place.parameters())
            assert others.list() == []
            # Where that registry is lost for good.
            Path(run.uri, MARK).unlink()
            new, is_new = others.record(place.process, place.parameters())
            mark = find_mark(new.uri)
            assert mark is not None
            assert (is_new, mark.run) == (True, new.id)

    def test_a_module_under_way_is_given_up_when_the_instance_is_recorded(
        self, place: Place
    ) -> None:
        place.set("hold")
        unrecorded = module_run(place)
        until(place.calls, "the first call")
        run = place.record()
        (record,) = attempts(run.uri)
        ending = ending_of(f"{run.uri}/attempt-{record.number}")
        assert ending is not None
        assert ending.outcome == "fenced"
        place.unset("hold")
        _, told = unrecorded.communicate()
        assert unrecorded.returncode == Exit.FAILURE
        (line,) = told.splitlines()
        assert f"the instance is on record as counting/{DAY} (run {run.id})" in line
        assert find_manifest(run.uri) is None
        assert place.launcher(run).wait() == 0
        assert place.run().status is RunStatus.SUCCESS, place.told()
        assert differences(place) == []

    def test_an_instance_that_is_recorded_while_a_module_begins(self, place: Place) -> None:
        """It has looked for the mark, which comes before its attempt is there."""
        unrecorded = module_run(
            place, **{FAILPOINT: "attempt: before", FAILPOINT_SIGNAL: "SIGSTOP"}
        )
        os.waitpid(unrecorded.pid, os.WUNTRACED)
        run = place.record()
        unrecorded.send_signal(signal.SIGCONT)
        _, told = unrecorded.communicate()
        assert unrecorded.returncode == Exit.FAILURE
        assert f"on record as counting/{DAY}" in told
        assert not place.calls()
        assert place.launcher(run).wait() == 0
        assert place.run().status is RunStatus.SUCCESS, place.told()
        assert differences(place) == []

    def test_a_submitter_who_dies_before_the_mark(self, place: Place) -> None:
        died = place.command("submit", place.process, *place.flags(), failpoint="submit: recorded")
        assert died.returncode == -signal.SIGKILL
        assert find_mark(place.run().uri) is None
        run = place.until_rest()
        assert run.status is RunStatus.SUCCESS
        assert find_mark(run.uri) is not None


class TestPublishedBefore:
    def test_it_is_what_the_run_has_published(self, place: Place) -> None:
        unrecorded = place.command("run", place.process, *place.flags(), **NOWHERE)
        assert unrecorded.returncode == Exit.OK, unrecorded.stderr
        run = place.record()
        before = find_manifest(run.uri)
        assert place.launcher(run).wait() == 0
        assert place.run().status is RunStatus.SUCCESS, place.told()
        assert find_manifest(run.uri) == before
        assert differences(place) == []

    def test_from_other_input_it_is_told(self, place: Place) -> None:
        place.command("run", place.process, *place.flags(), **NOWHERE)
        with (place.folder / "amounts.csv").open("a") as file:
            file.write("A1,5000,1\n")
        run = place.record()
        place.launcher(run).wait()
        assert place.run().status is RunStatus.FAILURE
        (line,) = differences(place)
        assert f"{run.uri}: attempt 1 without a record (" in line
        assert line.endswith("has published, and the registry says FAILURE")


class TestDifferences:
    @pytest.fixture
    def done(self, place: Place) -> Place:
        assert place.launcher(place.record()).wait() == 0
        assert differences(place) == []
        return place

    @pytest.fixture
    def other(self, new_place: NewPlace, tmp_path: Path, done: Place) -> Path:
        """The folder of the same instance, as another registry's run has published it."""
        place = Place(tmp_path / "other", f"sqlite:///{tmp_path}/other.db")
        run = place.record(amounts=str(done.folder / "amounts.csv"))
        assert place.launcher(run).wait() == 0
        return Path(run.uri)

    def test_a_manifest_of_somebody_else(self, done: Place, other: Path) -> None:
        shutil.copy(other / "manifest.json", Path(done.run().uri, "manifest.json"))
        strange = find_manifest(str(other))
        assert strange is not None
        # Files of this name with these bytes are there, by the rule that outputs are deterministic.
        (line,) = differences(done)
        assert f"its manifest is of attempt 1 of {strange.attempt.run} (" in line

    def test_an_attempt_that_nobody_knows(self, done: Place, other: Path) -> None:
        run = done.run()
        record = attempts(str(other))[0]
        text = record.model_copy(update={"number": 7}).to_json()
        folder = Path(run.uri, "attempt-7")
        folder.mkdir()
        (folder / "attempt.json").write_bytes(text)
        assert differences(done) == [
            f"{folder}: it is of run {record.run}, which the registry doesn't know"
        ]
        for changes, told in (
            ({"run": run.id, "launch": 9}, "the registry knows no attempt 9 of the run"),
            ({"run": "", "launch": 0}, "it goes on without a record"),
        ):
            changed = record.model_copy(update={"number": 7, **changes})
            (folder / "attempt.json").write_bytes(changed.to_json())
            assert differences(done) == [f"{folder}: {told}"]

    def test_a_run_that_was_canceled_and_published(self, done: Place, new_place: NewPlace) -> None:
        """As after the registry was restored from a copy of the day before."""
        run, launcher = held(Place(done.folder / "second", done.url, day=DAY.replace(day=21)))
        done.runs.cancel(run.id)
        launcher.wait()
        done.unset("second/hold")
        assert differences(done) == []
        shutil.copy(Path(done.run().uri, "manifest.json"), Path(run.uri, "manifest.json"))
        (line,) = differences(done)
        assert line.endswith("has published, and the registry says CANCELED")

    def test_the_folder_of_a_run_that_was_replaced_is_its_successors(self, place: Place) -> None:
        place.set("fail-A1")
        place.launcher(place.record()).wait()
        place.unset("fail-A1")
        replaced = place.run()
        new = place.command(
            "submit", place.process, "--replace", "--why=too few", *place.flags(max_rejects=9)
        )
        assert new.returncode == 0, new.stderr
        run = place.until_status(RunStatus.SUCCESS)
        assert run.id != replaced.id
        until(lambda: not place.processes(), "the launcher's end")
        assert differences(place) == []
