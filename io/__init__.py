"""Datasets: contracts, readers, object storage, the commit protocol."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerbeam.io.published import read_published

__all__ = ["read_published"]


def __getattr__(name: str) -> Any:
    """Import what readers of results need when it is asked for: most processes never do.

    Arrow's datasets import pandas where that is installed, which takes half a second.
    """
    if name == "read_published":
        from ledgerbeam.io.published import read_published

        return read_published
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
