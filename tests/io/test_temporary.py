"""Temporary files are in one folder of their process, and are gone when it is, however it ended."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ledgerbeam.io.errors import StorageError
from ledgerbeam.io.machine import HOST
from ledgerbeam.io.temporary import remove_left_behind, temporary_folder

SECONDS = 60


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, also by processes that a test starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv(HOST, "node/7")
    return folder


def left(parent: Path) -> list[str]:
    return sorted(str(path) for path in parent.iterdir())


@contextmanager
def holder() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another process with such a folder, and the folder's path."""
    script = (
        "import sys, tempfile\n"
        "from ledgerbeam.io.temporary import temporary_folder\n"
        "with temporary_folder() as path:\n"
        "    tempfile.mkdtemp(prefix='beam-temp')\n"
        "    print(path, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_all_temporary_files_are_in_it(parent: Path) -> None:
    """Those of this process and of one that it starts."""
    with temporary_folder() as path:
        assert Path(path).name.startswith(f"ledgerbeam-node_7-{os.getpid()}-")
        code = "import tempfile; print(tempfile.mkdtemp())"
        made = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
        for each in (tempfile.mkdtemp(), made):
            assert Path(each).parent == Path(path)
        assert left(parent) == [path]
    assert left(parent) == []
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(parent)


def test_it_is_removed_after_an_error(parent: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder():
        raise KeyboardInterrupt
    assert left(parent) == []


def test_several_at_once_have_the_same(parent: Path) -> None:
    """It is there until the last one has left."""

    def make(_: int) -> str:
        with temporary_folder() as path:
            file = Path(tempfile.mkdtemp(), "file")
            file.write_text("something")
            assert file.read_text() == "something"
            assert left(parent) == [path]
            return path

    with temporary_folder() as path, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(make, range(40))) == {path}
        assert left(parent) == [path]
    assert left(parent) == []


def test_the_living_are_left_alone_and_the_dead_are_swept(parent: Path) -> None:
    with holder() as (other, path):
        with temporary_folder() as own:
            assert left(parent) == sorted([path, own])
        assert remove_left_behind() == 0
        assert left(parent) == [path]
        other.send_signal(signal.SIGKILL)
        other.wait(SECONDS)
        assert left(parent) == [path]
        with temporary_folder() as own:
            assert left(parent) == [own]


def test_those_of_another_host_are_left_alone(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may be shared with machines whose locks can't be seen."""
    (parent / "ledgerbeam-node_8-1-x").mkdir()
    assert remove_left_behind() == 0
    monkeypatch.setenv(HOST, "node/8")
    assert remove_left_behind() == 1


def test_one_whose_process_died_before_it_locked_is_swept(parent: Path) -> None:
    (parent / "ledgerbeam-node_7-1-x").mkdir()
    with temporary_folder() as own:
        assert left(parent) == [own]


@pytest.mark.parametrize("name", ["open", "flock"])
def test_a_sweep_just_before_the_lock(
    parent: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another process may sweep between any two steps in which a folder is made."""
    module: Any = os if name == "open" else fcntl
    real: Callable[..., Any] = getattr(module, name)

    def sweep_first(*arguments: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        assert remove_left_behind() == 1
        return real(*arguments)

    monkeypatch.setattr(module, name, sweep_first)
    with temporary_folder() as path:
        assert left(parent) == [path]
        Path(path, "file").write_text("")


def test_what_is_not_ours_is_left_alone(parent: Path) -> None:
    target = parent / "somewhere else"
    target.mkdir()
    (parent / "ledgerbeam-node_7-1-file").write_text("")
    (parent / "ledgerbeam-node_7-1-link").symlink_to(target)
    if os.getuid() == 0:
        of_another = parent / "ledgerbeam-node_7-1-other"
        of_another.mkdir()
        os.chown(of_another, 12345, 12345)
    before = left(parent)
    assert remove_left_behind() == 0
    assert left(parent) == before


def test_no_such_folder(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(parent / "missing")
    monkeypatch.setattr(tempfile, "tempdir", missing)
    told = f"cannot make temporary files in {missing}: No such file or directory: name another"
    with pytest.raises(StorageError, match=told), temporary_folder():
        pass
