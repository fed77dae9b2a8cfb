"""Datasets: contracts, readers, object storage, the commit protocol."""

from ledgerbeam.io.published import read_published

__all__ = ["read_published"]
