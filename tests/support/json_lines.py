"""Lines of JSON that commands print, held against their published schemas.

`python -m tests.support.json_lines` publishes the schemas of this tree's code.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from tests.support.pages import ROOT

from ledgerbeam.batch.cli.app import COMMANDS
from ledgerbeam.batch.cli.comparisons import COMPARISONS
from ledgerbeam.batch.cli.lines import all_lines
from ledgerbeam.batch.json_lines import schema_name
from ledgerbeam.batch.json_schemas import json_schema

SCHEMAS = ROOT / "docs" / "schemas"


def lines_of(text: str) -> list[Any]:
    """The records of lines that fit the schemas they name, without these names."""
    return [_checked(json.loads(line)) for line in text.splitlines()]


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    validator = _validator(line["schema"])
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(line)]
    assert not problems, (problems, line)
    return {name: value for name, value in line.items() if name != "schema"}


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(path_of(name).read_text()))


def path_of(name: str) -> Path:
    """The published schema of that name."""
    _, kind, version = name.split("/")
    return SCHEMAS / f"{kind}-{version}.json"


def schemas() -> dict[Path, str]:
    """What is to be published of this tree's code, by path."""
    return {
        path_of(schema_name(kind)): json.dumps(json_schema(kind, model), indent=2) + "\n"
        for kind, model in all_lines(COMMANDS, COMPARISONS).items()
    }


if __name__ == "__main__":
    SCHEMAS.mkdir(exist_ok=True)
    for path, text in schemas().items():
        path.write_text(text)
