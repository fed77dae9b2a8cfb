"""Batch workloads over loans and trades, as Apache Beam pipelines."""

from importlib.metadata import version

__version__ = version("ledgerbeam")
