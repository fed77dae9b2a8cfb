"""Where things live, and what may import what: imports run downward only."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Each folder may import those of the levels above its own in this list.
LEVELS = [
    level.split()
    for level in (
        "rules/arrays rules/currency rules/failure_limit io/errors io/failpoints io/machine "
        "io/memory io/parsing io/private io/shared batch/plain_text",
        "rules/money rules/components rules/rollout io/storage io/arrow io/secrets io/temporary "
        "batch/clock batch/import_beam batch/interrupts",
        "rules/prices rules/calendar rules/delivery io/commit io/sql batch/logs batch/environments "
        "batch/traces "
        "synthetic",
        "rules/terms io/datasets batch/settings batch/json_lines",
        "rules/schedules",
        "rules/loans",
        "rules/closing",
        "rules/remittance",
        "transforms/columnar transforms/concurrency",
        "transforms/read transforms/execute",
        "transforms/shuffle",
        "transforms/publish transforms/rules",
        "batch/model batch/runners batch/json_schemas messages/model",
        "batch/define batch/observe batch/registry messages/store",
        "batch/registry/migrations batch/registry/migrations/versions batch/execute batch/alerts "
        "batch/rollouts "
        "messages/store/migrations messages/store/migrations/versions messages/define "
        "messages/scheduler",
        "batch/keyed batch/pages messages/consumer",
        "batch/attempt messages/books messages/archive messages/sinks",
        "batch/launch batch/testing messages/replay",
        "batch/runs",
        "batch/cli messages/cli",
        "pipelines pipelines/comparison",
        "service/errors service/model service/ahead",
        "service/bulk",
        "service/problems service/store service/page",
        "service/access service/at_once service/calls service/document service/lines "
        "service/router",
        "service/web",
        "service/client service/node",
        "service/verbs service/commands",
        "batch io rules transforms messages service",
    )
]
MAX_FILES = 13
"""Modules in a folder, its `__init__` left out."""

# Rules are plain computation: what they import can be counted on one hand.
RULES_LIBRARIES = {"collections", "typing", "numpy", "pyarrow", "decimal", "datetime"} | {
    "bisect",
    "calendar",
    "dataclasses",
    "enum",
    "fnmatch",
    "fractions",
    "functools",
    "hashlib",
    "holidays",
    "iso4217",
    "itertools",
    "re",
}
ROOMS = ("rules", "io", "transforms", "batch", "messages", "synthetic", "pipelines", "service")
"""Folders at the root that are imported as parts of `ledgerbeam`."""
DIVIDED = ("rules", "io", "transforms", "batch", "messages", "service")
"""Rooms whose files stand on levels of their own, beside the rooms' folders."""


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports, also inside of functions; of `from a import b` a and a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, Path]:
    """The project's modules, as `batch/keyed/plan`, and their files."""
    files = (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return {str(file.relative_to(ROOT).with_suffix("")): file for file in files}


def graph() -> dict[str, set[str]]:
    """Of each module, which others of the project it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        own = (i.removeprefix("ledgerbeam.").replace(".", "/") for i in imports(file))
        found[name] = {module for module in own if module in known} - {name}
    return found


def place_of(module: str) -> str:
    """The folder that a module counts to; one that stands beside folders counts by itself.

    `batch/keyed/plan` counts to `batch/keyed`, `batch/logs` to `batch/logs`.
    """
    folder, _, name = module.rpartition("/")
    return module if folder in DIVIDED and name != "__init__" else folder


def circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """A circle in a graph; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(graph()) == []


def test_a_folder_imports_only_folders_below_it() -> None:
    level = {place: number for number, places in enumerate(LEVELS) for place in places}
    edges = {(place_of(a), place_of(b), a, b) for a, others in graph().items() for b in others}
    assert {place for edge in edges for place in edge[:2]} <= level.keys()
    upward = [
        f"{a} imports {b}" for above, below, a, b in edges if above != below
        if level[above] <= level[below]
    ]  # fmt: skip
    assert upward == []


def test_folders_are_small_and_say_what_they_are_for() -> None:
    folders = {file.parent for file in modules().values()}
    for folder in folders:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MAX_FILES, f"{folder}: {len(files)} files"
        purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert purpose, f"{folder} doesn't say what it is for"


def test_every_room_has_its_link() -> None:
    links = {path.name for path in (ROOT / "src" / "ledgerbeam").iterdir() if path.is_symlink()}
    assert links == set(ROOMS)
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


def test_what_git_ignores_is_kept_out_of_the_image_too() -> None:
    ignored, kept_out = (
        {line.rstrip("/").removeprefix("**/") for line in (ROOT / name).read_text().splitlines()}
        for name in (".gitignore", ".dockerignore")
    )
    assert ignored | {".git"} <= kept_out
