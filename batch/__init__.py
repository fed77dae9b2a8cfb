"""The framework: what a batch process is, how it becomes a pipeline, how that is launched."""

import logging

# Beam logs this at every import where the BigQuery client isn't installed, which nothing here uses.
logging.getLogger().addFilter(
    lambda record: not record.getMessage().startswith("apitools not found")
)
