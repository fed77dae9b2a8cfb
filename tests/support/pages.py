"""Pages of documentation, carried out as they stand: files written, commands run, outputs compared.

| block | what becomes of it |
| --- | --- |
| console | what follows `$ ` runs in a shell; the lines below are its output |
| any language, `title="NAME"` | is written to the file NAME |
| diff, `title="NAME"` | is applied to the file NAME |
| python without a title | runs |
| others | are left alone |

A page starts in an empty folder, and its blocks follow each other. If a command names something in
`examples/`, the folder has these, as a clone does. Commands print to a terminal, as
a reader's do, but one so wide that no line is folded: where, would depend on names of this machine.
`python -m tests.support.pages PAGE…` puts the outputs of this machine into pages, under the names
of `home`, `you@laptop`.
"""

import contextlib
import getpass
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import tty
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
HOME = "/home/you"
WHO = "you@laptop"
SECONDS = 300
"""How long a command may take."""
TERMINAL = {"TERM": "dumb", "COLUMNS": "1000", "LINES": "50", "PAGER": "cat"}
"""Of the terminal that commands print to: wide, and without colors and moving parts."""

_END = b"\0end\0"
"""Is written to the terminal behind what a command has printed."""

_BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# What differs from run to run: times, speeds, ids, processes.
_VARIABLE = [
    (_UUID, "RUN"),
    (r"^ *[0-9a-f]{8}(?= +[\w-]+/)", "RUN"),
    (r"(ledgerbeam approve RUN) \d+", r"\1 …"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?: UTC|Z|\+00:00)", "TIME"),
    (r"\d{4}-\d\d-\d\dT\d{6}\.\d+Z", "TIME"),
    (r'"seconds": [\d.]+', '"seconds": …'),
    (r"^(seconds|.* a second)[ \t]+[\d.,]+$", r"\1 …"),
    (r"^(rate)[ \t]+[\d,.]+", r"\1 …"),
    (r"^(entries as they were recorded)[ \t]+[\d,]+", r"\1 …"),
    (r"\b[\d,]+\.\d+ ?s\b(?: \(\d+:\d\d:\d\d\))?", "… s"),
    (r"laptop:\d+:[\d.]+", "laptop:PID"),
    (r"(version|fingerprint|sha256|hash)([\"=:\s]+)[0-9a-f]{8,}", r"\1\2…"),
]
# How far a run had got when it was looked at, or stopped.
_UNFINISHED = re.compile(r"^status[ \t]+(EXECUTING|PAUSED|CANCELED)[ \t]*$", re.MULTILINE)
_AS_FAR_AS_IT_GOT = [
    (r"^(rate|estimated end|workers)[ \t].*\n", ""),
    (r"\b[\d,]+\b", "N"),
    (r" [━╸]+ *$", ""),
    (r"N [A-Z]+, (?=N SUCCESS)|, N EXECUTING", ""),
]


class Step(NamedTuple):
    """A command of a page.

    Attributes:
        command: what the shell, or `python`, is given.
        expected: the output that stands in the page; empty where none does.
        actual: what came.
        status: exit status.
    """

    command: str
    expected: str
    actual: str
    status: int


def user_environment(folder: Path) -> dict[str, str]:
    """The environment of somebody who has installed ledgerbeam, in a home of their own.

    What they install on top of it goes to the folder, and needs no network.
    """
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    scheme = {"base": str(environment), "platbase": str(environment)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    ours = sysconfig.get_path("purelib")
    (site_packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, main in {
        "ledgerbeam": "from ledgerbeam.batch.cli import main",
        "pip": "from pip._internal.cli.main import main",
        "pytest": "from pytest import main",
    }.items():
        script = environment / "bin" / name
        script.write_text(f"#!{environment}/bin/python\n{main}\nraise SystemExit(main())\n")
        script.chmod(0o755)
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LEDGERBEAM_", "PYTEST_", "XDG_"))
    }
    return variables | {
        "HOME": str(folder),
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(environment),
        # setuptools is here already.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_DEPS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def carry_out(text: str, folder: Path) -> Iterator[Step]:
    """Do what a page says, in `home` under an empty folder."""
    folder = folder.resolve()
    environment = user_environment(folder)
    home = folder / "home"
    home.mkdir()
    environment["HOME"] = str(home)
    if re.search(r"^\$ .*\bexamples/", text, re.MULTILINE):
        shutil.copytree(ROOT / "examples", home / "examples")

    def run(command: str | list[str], expected: str) -> Step:
        shown = command if isinstance(command, str) else command[-1]
        status, output = on_terminal(command, home, environment)
        return Step(shown, expected, _anonymous(output, home), status)

    for language, title, content in _BLOCK.findall(text):
        if language == "diff":
            _apply(content, home / title)
        elif title:
            file = home / title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        elif language == "console":
            for step in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
                command, _, expected = step.partition("\n")
                yield run(command, expected)
        elif language == "python":
            yield run(["python", "-c", content], "")


def on_terminal(
    command: str | list[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command that prints to a terminal; its exit status, and all that it prints.

    Raises:
        TimeoutExpired: it took longer than `SECONDS`; it and what it has started are killed.
    """
    ours, terminal = pty.openpty()
    tty.setraw(terminal)  # Lines end as they were printed.
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        cwd=folder,
        env={**environment, **TERMINAL},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    printed = bytearray()
    has_end = threading.Event()

    def read() -> None:
        # What runs on in the background may print for as long as it likes. Linux tells by an error
        # that nobody has the terminal open any more.
        with open(ours, "rb", buffering=0) as stream, contextlib.suppress(OSError):
            while data := stream.read(65_536):
                printed.extend(data)
                if _END in printed:
                    has_end.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        os.write(terminal, _END)
        os.close(terminal)
    assert has_end.wait(SECONDS)
    return process.returncode, bytes(printed).partition(_END)[0].decode()


def _apply(diff: str, file: Path) -> None:
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++", "@@"))]
    old = "\n".join(line[1:] for line in lines if line[:1] != "+")
    new = "\n".join(line[1:] for line in lines if line[:1] != "-")
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name}: the change fits {text.count(old)} places"
    file.write_text(text.replace(old, new))


def _anonymous(text: str, home: Path) -> str:
    who = re.escape(getpass.getuser())
    host = re.escape(socket.gethostname())
    text = text.replace(str(home), HOME)
    text = re.sub(rf"\b{who}@{host}\b", WHO, text)
    return re.sub(rf"\b{host}\b", WHO.partition("@")[2], text)


def normal(text: str) -> list[str]:
    """Lines without what differs from run to run, and without the widths of tables."""
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    for pattern, name in _VARIABLE:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    if _UNFINISHED.search(text):
        for pattern, name in _AS_FAR_AS_IT_GOT:
            text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return [re.sub(r" {2,}", "  ", line).strip() for line in text.strip().splitlines()]


def with_outputs(text: str, folder: Path) -> str:
    """The page with the outputs of this machine."""
    at = 0
    for step in carry_out(text, folder):
        if not step.expected:
            assert step.status == 0, step
            continue
        at = text.index(f"$ {step.command}\n{step.expected}", at)
        start = at + len(step.command) + 3
        actual = "".join(f"{line.rstrip()}\n" for line in step.actual.splitlines())
        if normal(actual) != normal(step.expected):
            text = text[:start] + actual + text[start + len(step.expected) :]
            at = start + len(actual)
    return text


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as place:
            page.write_text(with_outputs(page.read_text(), Path(place)))
