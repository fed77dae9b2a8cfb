"""Who may read what is written beside the results, and names that somebody else has taken."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import STATE, Settings
from ledgerbeam.io import private
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.io.storage import stores

SOMEBODY_ELSE = 12_345


@pytest.fixture(autouse=True)
def open_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that would let everybody write what it makes."""
    monkeypatch.delenv(private.VARIABLE, raising=False)
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Registry, log, control log and heartbeat, with their folders."""
    monkeypatch.setenv(STATE, str(folder / "state"))
    monkeypatch.delenv("LEDGERBEAM_REGISTRY", raising=False)
    settings = Settings.from_environment()
    registry = Registry.open(settings.registry_url)
    with settings.open_log("run") as log:
        log.write(b"a line\n")
    run = str(folder / "output" / "run")
    now = utc_now()
    control_log.steer(run, now, "somebody", "for the test", state="pause")
    control_log.beat(f"{run}/attempt-1", control_log.Heartbeat(worker="w", at=now))
    files = [path for path in folder.rglob("*") if path.is_file()]
    registry.close()
    names = {path.name for path in files}
    assert {"registry.db", "registry.db-wal", "run.log", "000001.json"} <= names
    private_folders = [folder / "state", folder / "state" / "logs"]
    private_folders += [Path(run, "control"), Path(run, "attempt-1", "workers")]
    assert all(path.parent in private_folders for path in files)
    return files + private_folders


def modes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[bool, set[int]]:
    found: dict[bool, set[int]] = {True: set(), False: set()}
    registry_open = Registry.open

    # While it is open SQLite keeps a log beside it, which is looked at, too.
    def looked_at(url: str) -> Registry:
        registry = registry_open(url)
        for path in (folder / "state").iterdir():
            found[path.is_dir()].add(mode(path))
        return registry

    monkeypatch.setattr(Registry, "open", looked_at)
    for path in write_all(folder, monkeypatch):
        if path.exists():
            found[path.is_dir()].add(mode(path))
    return found


def test_they_are_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert modes(tmp_path, monkeypatch) == {True: {0o700}, False: {0o600}}


def test_a_umask_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(private.VARIABLE, "027")
    assert modes(tmp_path, monkeypatch) == {True: {0o750}, False: {0o640}}


def test_results_have_the_umask_of_the_process(tmp_path: Path) -> None:
    os.umask(0o022)
    stores.create(str(tmp_path / "results" / "part"), b"")
    assert mode(tmp_path / "results" / "part") == 0o644
    assert mode(tmp_path / "results") == 0o755


@pytest.mark.parametrize("text", ["77x", "-1", "999", "0o77", "700"])
def test_a_umask_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(private.VARIABLE, text)
    with pytest.raises(ParameterError, match="give it in octal digits"):
        Settings.from_environment()
    assert private.umask() == 0o077


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
class TestTakenNames:
    @pytest.fixture
    def shared(self, tmp_path: Path) -> Path:
        """A folder like the one for temporary files."""
        folder = tmp_path / "tmp"
        folder.mkdir()
        folder.chmod(0o1777)
        return folder

    @pytest.mark.parametrize("is_link", [False, True])
    def test_a_state_folder_that_somebody_else_has_made(
        self, shared: Path, monkeypatch: pytest.MonkeyPatch, is_link: bool
    ) -> None:
        taken = shared / "state"
        if is_link:
            (shared.parent / "target").mkdir()
            taken.symlink_to(shared.parent / "target")
        else:
            taken.mkdir()
        os.chown(taken, SOMEBODY_ELSE, SOMEBODY_ELSE, follow_symlinks=False)
        monkeypatch.setenv(STATE, str(taken / "mine"))
        with pytest.raises(UserError, match=f"^{taken} belongs to somebody else") as raised:
            Settings.from_environment()
        assert "\n" not in str(raised.value)

    def test_a_registry_that_somebody_else_has_made(self, shared: Path) -> None:
        taken = shared / "registry.db"
        taken.touch()
        os.chown(taken, SOMEBODY_ELSE, SOMEBODY_ELSE)
        with pytest.raises(UserError, match=f"{taken} belongs to somebody else"):
            Registry.open(f"sqlite:///{taken}")
        assert taken.read_bytes() == b""

    def test_own_names_there_are_taken(self, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(STATE, str(shared / "state"))
        monkeypatch.delenv("LEDGERBEAM_REGISTRY", raising=False)
        Registry.open(Settings.from_environment().registry_url).close()
        Registry.open(Settings.from_environment().registry_url).close()

    def test_folders_of_others_elsewhere_are_their_owners_affair(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A volume that is mounted belongs to whomever it belongs to."""
        volume = tmp_path / "volume"
        volume.mkdir()
        os.chown(volume, SOMEBODY_ELSE, SOMEBODY_ELSE)
        monkeypatch.setenv(STATE, str(volume))
        assert Settings.from_environment().state == volume


def test_a_command_makes_them_so(tmp_path: Path) -> None:
    environment = {**os.environ, STATE: str(tmp_path / "state")}
    environment.pop("LEDGERBEAM_REGISTRY", None)
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "list"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    assert mode(tmp_path / "state") == 0o700
    assert mode(tmp_path / "state" / "registry.db") == 0o600
