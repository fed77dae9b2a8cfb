"""A batch process as a program of its own: a script or a module, wherever it stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.io.commit.published import read_published

PROCESS = '''\
"""Doubles numbers."""

import datetime
import sys
from collections.abc import Iterator
from typing import Annotated

import pyarrow as pa

import ledgerbeam as lb

IN_WORKER = any("sdk_worker_main" in argument for argument in sys.orig_argv)
NUMBERS = lb.Contract((lb.Column("number", pa.int64()),))


class DoublesParameters(lb.FileParameters):
    business_date: datetime.date = datetime.date(2026, 11, 20)
    numbers: Annotated[str, lb.RowInput(NUMBERS, order="number")] = ""


class Doubles(lb.KeyedProcess[DoublesParameters]):
    name = "doubles"
    key = ("number",)
    results = pa.schema([("double", pa.int64()), ("in_worker", pa.bool_())])

    def execute(self, component: lb.Component) -> Iterator[lb.Record]:
        yield {"double": 2 * component.key[0], "in_worker": IN_WORKER}


if __name__ == "__main__":
    sys.exit(lb.main(Doubles))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs" / "package").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("doubles.py", "double-it.py", "time.py", "package/__main__.py"):
        (tmp_path / "jobs" / name).write_text(PROCESS)
    (tmp_path / "jobs" / "package" / "__init__.py").touch()
    (tmp_path / "numbers.csv").write_text("number\n1\n2\n")
    return tmp_path


def python(
    folder: Path, *arguments: str, at: str = "elsewhere", text: str = ""
) -> "subprocess.CompletedProcess[str]":
    """A program that is run in a folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LEDGERBEAM_")}
    if "-m" in arguments and at != "jobs":
        environment["PYTHONPATH"] = str(folder / "jobs")
    flags = [f"--numbers={folder}/numbers.csv", f"--output={folder}/results"]
    return subprocess.run(
        [sys.executable, *arguments, *flags],
        cwd=folder / at,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("at", ["jobs", "elsewhere"])
@pytest.mark.parametrize(
    "arguments", [("../jobs/doubles.py",), ("-m", "doubles"), ("-m", "package")], ids=" ".join
)
def test_it_runs_from_any_folder(folder: Path, arguments: tuple[str, ...], at: str) -> None:
    program = python(folder, *arguments, "--json", at=at)
    assert program.returncode == 0, program.stderr
    published = json.loads(program.stdout.splitlines()[-1])["published"]
    assert doubles(published) == {1: (2, False), 2: (4, False)}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("../jobs/doubles.py",), ("-m", "doubles")], ids=" ".join)
def test_worker_processes_find_it(folder: Path, arguments: tuple[str, ...]) -> None:
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2", "--shards=2"]
    program = python(folder, *arguments, *flags, "--json")
    assert program.returncode == 0, program.stderr
    published = json.loads(program.stdout.splitlines()[-1])["published"]
    assert doubles(published) == {1: (2, True), 2: (4, True)}


def test_help_is_the_docstring_of_its_file(folder: Path) -> None:
    program = python(folder, "../jobs/doubles.py", "--help")
    assert program.returncode == 0
    assert "Doubles numbers." in program.stdout


@pytest.mark.parametrize("arguments", [("../jobs/doubles.py",), ("-m", "package")], ids=" ".join)
def test_a_run_on_record_needs_an_installed_name(folder: Path, arguments: tuple[str, ...]) -> None:
    program = python(folder, *arguments, f"--registry=sqlite:///{folder}/runs.db")
    assert program.returncode == Exit.NOT_FOUND
    module = "doubles" if len(arguments) == 1 else "package.__main__"
    assert program.stderr == (
        "doubles: recorded runs are launched by the name of an installed workload, and doubles is "
        f'none: add the entry point doubles = "{module}:Doubles" of the group '
        "ledgerbeam.pipelines to a package, or run it without --registry\n"
    )
    assert not (folder / "runs.db").exists()


def test_the_installed_name_must_be_of_the_same_definition(folder: Path) -> None:
    text = PROCESS.replace('name = "doubles"', 'name = "price-migration"')
    (folder / "jobs" / "doubles.py").write_text(text)
    program = python(folder, "../jobs/doubles.py", f"--registry=sqlite:///{folder}/runs.db")
    assert program.returncode == 1
    assert program.stderr.startswith(
        "price-migration: recorded runs are launched by the name of an installed workload, and "
        "price-migration is ledgerbeam.pipelines.price_migration:PriceMigration, not "
        "doubles:Doubles: "
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("../jobs/double-it.py",), "double-it is no name of a module: rename it"),
        (("../jobs/time.py",), "workers import Doubles from the module time, which is "),
        (("-",), "workers can't import a class that is in no file: write it to a module"),
    ],
)
def test_what_workers_could_not_import(
    folder: Path, arguments: tuple[str, ...], problem: str
) -> None:
    program = python(folder, *arguments, text=PROCESS)
    assert program.returncode == 1
    assert program.stderr.startswith("doubles: ")
    assert problem in program.stderr
    assert program.stderr.count("\n") == 1


def doubles(published: str) -> dict[int, tuple[int, bool]]:
    """What was published, by number: its double, and whether a worker process executed it."""
    rows = read_published(published).to_table().to_pylist()
    return {row["number"]: (row["double"], row["in_worker"]) for row in rows}
