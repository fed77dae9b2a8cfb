"""Datasets: contracts, readers, object storage, the commit protocol."""

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """Give what has moved, with a warning; until the version after the next one."""
    if name != "read_published":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ledgerbeam.io.commit.published import read_published

    warnings.warn(
        "ledgerbeam.io.read_published is called ledgerbeam.read_published now",
        PendingDeprecationWarning,
        stacklevel=2,
    )
    return read_published
