"""The command `init`: a project with a workload, its test, its DAG and a day of data."""

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ledgerbeam.batch.cli.verbs import Json
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.io.errors import ParameterError, StorageError

_TEMPLATES = Path(__file__).parent / "project"
_FILES = {
    "README.md": "README.md",
    "pyproject.toml": "pyproject.toml",
    "ledgerbeam.toml": "ledgerbeam.toml",
    "workload.py": "$module.py",
    "test_workload.py": "test_$module.py",
    "dag.py": "dags/${module}_daily.py",
    "accounts.csv": "data/2026-11-20/accounts.csv",
    "movements.csv": "data/2026-11-20/movements.csv",
}
"""Where each template goes."""

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="of the project; its name is the workload's")],
    as_json: Json = False,
) -> None:
    """Make a project in FOLDER: a workload that runs, its test, its DAG and a day of data."""
    written = write_project(folder)
    if as_json:
        print_record("project", {"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        print_line(path)
    print_line(f"next: cd {folder}, and see README.md")


def write_project(folder: Path) -> list[Path]:
    """Write a project; the paths of its files.

    Raises:
        ParameterError: the folder's name is no name of a module, or there is something in it.
        StorageError: it can't be written.
    """
    name = folder.absolute().name
    module = name.replace("-", "_")
    if not re.fullmatch("[a-z][a-z0-9_-]*", name) or keyword.iskeyword(module):
        raise ParameterError(
            f"{name}: the workload and its module are called so: use small letters, digits and "
            "hyphens, and begin with a letter",
            parameter="FOLDER",
            value=name,
        )
    names = {
        "name": name,
        "module": module,
        "definition": "".join(part.capitalize() for part in re.split("[-_]", name)),
    }
    written = []
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ParameterError(
                f"{folder} is there and isn't an empty folder: name another one",
                parameter="FOLDER",
                value=str(folder),
            )
        for template, place in _FILES.items():
            text = (_TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
            path = folder / Template(place).substitute(names)
            path.parent.mkdir(parents=True, exist_ok=True)
            # What isn't one of these names is left as it is, such as references to secrets.
            path.write_text(Template(text).safe_substitute(names), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}", uri=str(folder)) from error
    return written
