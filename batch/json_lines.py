"""Lines of JSON on standard output: each names its schema, which `ledgerbeam schema` prints."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ledgerbeam.io.commit.amounts import decimal_text

VERSIONS: Mapping[str, int] = {}
"""Of the schemas that have changed since their first version."""


def schema_name(kind: str) -> str:
    """The value of `schema` in lines of one kind, such as `ledgerbeam/run/1`."""
    return f"ledgerbeam/{kind}/{VERSIONS.get(kind, 1)}"


def print_record(kind: str, record: Mapping[str, Any]) -> None:
    """Print one record as a line of JSON.

    Args:
        kind: of the record, which says what its schema is.
        record: its fields, as the model of the kind has them.
    """
    line = {"schema": schema_name(kind), **record}
    print(json.dumps(line, default=text_of), flush=True)


def text_of(value: Any) -> str:
    """A value that JSON has no form for, as text: an amount with all its digits."""
    return decimal_text(value) if isinstance(value, Decimal) else str(value)
