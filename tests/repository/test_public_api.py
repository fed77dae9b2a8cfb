"""What `import ledgerbeam` promises: names, that they cost little, and that pages keep to them."""

import ast
import re
import subprocess
import sys
from types import ModuleType

import pytest
from tests.support.pages import ROOT

import ledgerbeam
from ledgerbeam import messages, transforms

SECTIONS = (ROOT / "docs" / "public-api.md").read_text().split("\n## ")
MODULES = {"Transforms": transforms, "Messages": messages}
"""Modules of public names beside `ledgerbeam` itself, by the section of the page."""
PRIVATE = re.compile(r"(from|import) ledgerbeam\.(?!(?:transforms|messages) )")


def python(code: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def written(module: ModuleType) -> list[str]:
    """The names of a module in the tables of the page, each in the sections of its module."""
    sections = [s for s in SECTIONS if MODULES.get(s.partition("\n")[0], ledgerbeam) is module]
    rows = re.findall(r"^\| (`\w.*?) \|", "\n".join(sections), re.MULTILINE)
    return sorted(name for row in rows for name in re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("module", [ledgerbeam, *MODULES.values()])
def test_the_names_are_those_of_the_page(module: ModuleType) -> None:
    assert written(module) == sorted({*module.__all__} - {"__version__"})


@pytest.mark.parametrize("name", sorted(ledgerbeam.__all__))
def test_each_of_them_is_there_and_documented(name: str) -> None:
    value = getattr(ledgerbeam, name)
    assert name in dir(ledgerbeam)
    if callable(value) and not hasattr(value, "__origin__"):
        assert value.__doc__


def test_type_checkers_are_given_the_same_modules() -> None:
    tree = ast.parse((ROOT / "src" / "ledgerbeam" / "__init__.py").read_text())
    imported = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ledgerbeam.")
        for alias in node.names
    }
    assert imported == {n: f"ledgerbeam.{m}.{n}" for n, m in ledgerbeam._MODULES.items()}


def test_other_names_are_an_error() -> None:
    with pytest.raises(
        AttributeError, match="module 'ledgerbeam' has no attribute 'WorkerControl'"
    ):
        getattr(ledgerbeam, "WorkerControl")  # noqa: B009 - a type checker knows


def test_importing_it_costs_next_to_nothing() -> None:
    code = (
        "import sys, time; before = time.process_time(); import ledgerbeam; "
        "print(time.process_time() - before, *sys.modules)"
    )
    # The best of several: the machine may be at other work.
    seconds = []
    for _ in range(3):
        taken, *modules = python(code).split()
        seconds.append(float(taken))
        loaded = {name.partition(".")[0] for name in modules}
        assert not loaded & {"apache_beam", "pyarrow", "pydantic", "numpy", "sqlalchemy"}
    assert min(seconds) < 0.05


@pytest.mark.parametrize("name", ["Runs", "Settings", "RunStatus", "verify_signature", "UserError"])
def test_what_needs_no_beam_loads_none(name: str) -> None:
    code = f"import sys, ledgerbeam as lb; lb.{name}; print('apache_beam' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize("folder", ["docs", "examples", "dags", "."])
def test_what_users_read_imports_public_names_only(folder: str) -> None:
    pattern = "*.md" if folder == "." else "**/*"
    files = [f for f in (ROOT / folder).glob(pattern) if f.suffix in (".md", ".py")]
    assert files
    for file in files:
        if file.name == "CHANGELOG.md":
            continue  # names what was
        found = [line for line in file.read_text().splitlines() if PRIVATE.search(line)]
        assert found == [], file


def test_what_has_moved_is_there_until_it_goes() -> None:
    import ledgerbeam.io

    with pytest.warns(PendingDeprecationWarning, match="called ledgerbeam.read_published now"):
        assert ledgerbeam.io.read_published is ledgerbeam.read_published
