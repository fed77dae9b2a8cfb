"""Which room may import which: data flows one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "rules": set(),
    "io": set(),
    "transforms": {"rules"},
    "synthetic": {"io"},
    "batch": {"io", "transforms", "rules", "synthetic"},
    "pipelines": {"batch", "io", "transforms", "rules"},
}
# Rules are plain computation: what they import can be counted on one hand.
RULES_LIBRARIES = {"collections", "typing", "numpy", "pyarrow", "decimal", "datetime"} | {
    "bisect",
    "calendar",
    "dataclasses",
    "enum",
    "fractions",
    "holidays",
    "itertools",
    "re",
}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        rooms = {name.split(".")[1] for name in imports(file) if name.startswith("ledgerbeam.")}
        assert rooms <= MAY_IMPORT[room] | {room}, file


def test_every_room_has_its_rule_and_its_link() -> None:
    links = {path.name for path in (ROOT / "src" / "ledgerbeam").iterdir() if path.is_symlink()}
    assert links == MAY_IMPORT.keys()
    for link in links:
        assert (ROOT / "src" / "ledgerbeam" / link).resolve() == ROOT / link


def test_rules_know_neither_beam_nor_files_nor_clocks() -> None:
    for file in (ROOT / "rules").rglob("*.py"):
        libraries = {name.partition(".")[0] for name in imports(file)} - {"ledgerbeam"}
        assert libraries <= RULES_LIBRARIES, file


def test_business_code_never_asks_for_the_time() -> None:
    for room in ("rules", "transforms", "pipelines"):
        for file in (ROOT / room).rglob("*.py"):
            calls = {
                node.attr
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Attribute)
            }
            assert not calls & {"now", "today", "utcnow"}, file
