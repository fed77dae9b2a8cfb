"""Batch workloads over loans and trades, as Apache Beam pipelines."""

import logging
from importlib.metadata import version

__version__ = version("ledgerbeam")

# Beam logs this at every import where the BigQuery client isn't installed, which nothing here uses.
logging.getLogger().addFilter(
    lambda record: not record.getMessage().startswith("apitools not found")
)
