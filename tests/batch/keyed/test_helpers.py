"""Shards of plain Python in several processes: the same results, and what becomes of losses."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.recorded import until
from tests.support.spread import ACCOUNTS, OneByOne, Spread, spread_at

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.batch.execute import worker_control
from ledgerbeam.batch.keyed import beside
from ledgerbeam.batch.model.outcomes import outcomes_of
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import commits
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import AttemptLostError, BugError, CanceledError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any input is large enough, and there are two cores."""
    monkeypatch.setattr(beside, "ROWS_AT_ONCE", 0)
    monkeypatch.setattr(beside, "available_cores", lambda: 2)
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process outlives the run that has started it."""
    yield
    assert helpers_below(os.getpid()) == []


def helpers_below(pid: int) -> list[psutil.Process]:
    """The helpers that a process has started and that go on."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any("execute.helper" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def published(process: Spread, manifest: Manifest) -> list[Any]:
    """Everything by which one publication differs from another: files, totals, outcomes."""
    uri = instance_uri(process)
    found = commits(uri, [1], by_hash=True)
    outcomes = [
        sorted(outcomes_of(read_part(uri, commit.outcomes)))
        for _, commit in sorted(found.items())
        if commit.outcomes is not None
    ]
    files = [(f.name, f.sha256, f.rows) for f in manifest.files]
    return [files, manifest.totals, manifest.counts, outcomes]


def test_same_as_in_one_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes, totals, dead letters with tracebacks and records, logs and prints."""
    seen = []
    for mode, kind in (("", Spread), ("alone", OneByOne)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "tests.spread"):
            process = spread_at(tmp_path / (mode or "several"), mode, kind)
            manifest = run(process)
        assert len(process.pids()) == (1 if mode else 2)
        logged = sorted(
            (record.getMessage(), str(record.__dict__["ledgerbeam_correlation"].component))
            for record in caplog.records
            if record.name == "tests.spread"
        )
        printed = sorted(line for line in capsys.readouterr().out.splitlines())
        seen.append([*published(process, manifest), sorted(process.calls()), logged, printed])
    several, alone = seen
    assert several == alone
    (bad,) = (o for of_shard in several[3] for o in of_shard if o.component == "A7")
    assert "ValueError: A7 is bad (spread.py:" in bad.error
    assert "raise ValueError(f\"{row['account']} is bad\")" in bad.traceback
    assert bad.record is not None
    assert bad.record["account"] == "A7"
    assert ("logged by A9", "A9") in several[5]
    assert "printed by A9" in several[6]


def test_killed(tmp_path: Path) -> None:
    """A helper that is killed ends the attempt as lost; the next one goes on from what is there."""
    process = spread_at(tmp_path, "hang")
    killer = threading.Thread(target=_kill_when_called, args=[process])
    killer.start()
    with pytest.raises(AttemptLostError, match=r"was killed \(signal 9, SIGKILL\).*run again"):
        run(process)
    killer.join()
    assert not Path(instance_uri(process), "attempt-1", "ended.json").exists()
    uri = instance_uri(process)
    done = {shard: commit.part for shard, commit in commits(uri, [1], by_hash=True).items()}
    assert done
    again = spread_at(tmp_path, "alone")
    assert run(again, retry_failed=False).counts["components"] == ACCOUNTS
    parts = {shard: c.part for shard, c in commits(uri, [1, 2], by_hash=True).items()}
    assert done.items() <= parts.items()


def _kill_when_called(process: Spread) -> None:
    until(lambda: len(process.pids()) > 1, "a call in another process")
    (helper,) = helpers_below(os.getpid())
    assert helper.pid in process.pids()
    helper.kill()


def test_canceled(tmp_path: Path) -> None:
    """A cancellation reaches components in all processes."""
    process = spread_at(tmp_path, "hang")

    def cancel() -> None:
        until(lambda: len(process.pids()) > 1, "a call in another process")
        uri = instance_uri(process)
        control_log.steer(uri, utc_now(), "a test", "enough", state="cancel")
        control = worker_control.acquire(uri, 1)
        until(lambda: control.canceled, "the cancellation")
        worker_control.release(control)
        (tmp_path / "free").touch()

    canceler = threading.Thread(target=cancel)
    canceler.start()
    with pytest.raises(CanceledError):
        run(process)
    canceler.join()


def test_error_that_cannot_be_sent(tmp_path: Path) -> None:
    """It ends the attempt with its text, and the helper's traceback as its cause."""
    process = spread_at(tmp_path, "unsendable")
    with pytest.raises(BugError, match=r"UnsendableError: .*no totals today") as raised:
        run(process)
    assert "in result_totals" in str(raised.value.__cause__)


def test_task_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then this process executes all shards, and says why."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(ROOT)])
    process = spread_at(tmp_path, "alone, once told")

    def tell() -> None:
        until(lambda: "one process less" in caplog.text, "the warning")
        (tmp_path / "free").touch()

    teller = threading.Thread(target=tell)
    teller.start()
    assert run(process).counts["components"] == ACCOUNTS
    teller.join()
    assert process.pids() == {os.getpid()}
    assert "No module named 'tests'" in caplog.text


SCRIPT = '''\
import logging
import sys
import ledgerbeam as lb
from tests.support.spread import Spread
from ledgerbeam.batch.keyed import beside

beside.ROWS_AT_ONCE = 0
beside.available_cores = lambda: 2

class InAScript(Spread):
    """A definition in a script."""
    name = "in-a-script"

if __name__ == "__main__":
    sys.exit(lb.main(InAScript))
'''


def start(tmp_path: Path, process: Spread) -> "subprocess.Popen[str]":
    script = tmp_path / "script_of_a_user.py"
    script.write_text(SCRIPT)
    parameters = process.parameters
    flags = [
        f"--{name}={getattr(parameters, name)}"
        for name in ("payments", "output", "folder", "shards")
    ]
    return subprocess.Popen(
        [sys.executable, str(script), *flags, "--business-date=2026-11-20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_definition_in_a_script(tmp_path: Path) -> None:
    process = spread_at(tmp_path)
    program = start(tmp_path, process)
    out, err = program.communicate()
    assert program.returncode == 0, err
    assert len(process.pids()) == 2
    assert out.count("printed by A9") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(tmp_path: Path, number: int) -> None:
    """No process is left, whatever the helper does at that moment."""
    process = spread_at(tmp_path, "hang")
    program = start(tmp_path, process)
    until(lambda: len(process.pids()) > 1, "a call in another process")
    (helper,) = helpers_below(program.pid)
    program.send_signal(number)
    _, err = program.communicate()
    assert program.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    if number != signal.SIGKILL:
        assert err.splitlines()[-1].startswith("in-a-script: interrupted: the same command again")
    until(lambda: not helper.is_running() or helper.status() == "zombie", "the helper's end")
