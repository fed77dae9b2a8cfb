"""Rows returned by a component's call, encoded as the text that a `Resolution` holds."""

import base64
from typing import Any

import pyarrow as pa

from ledgerbeam.io.arrow.stream import read_stream, write_stream


def text_of(rows: pa.Table) -> str:
    """Rows of results as text: an Arrow stream in base64."""
    sink = pa.BufferOutputStream()
    write_stream(sink, rows)
    return base64.b64encode(sink.getvalue()).decode()


def rows_of_text(text: str) -> list[dict[str, Any]]:
    """The rows that `text_of` encoded."""
    return read_stream(base64.b64decode(text)).to_pylist()
