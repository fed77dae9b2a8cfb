"""Reading in tests."""

import pyarrow as pa

from ledgerbeam.io import storage
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import SplitRows, read_split
from ledgerbeam.io.records import Manifest


def read_whole(split: Split) -> SplitRows:
    """All batches of a split as one."""
    batches = list(read_split(split))
    return SplitRows(
        pa.concat_tables([batch.table for batch in batches]),
        [refusal for batch in batches for refusal in batch.refusals],
        sum(batch.line_count for batch in batches),
    )


def instance_uri(manifest: Manifest) -> str:
    """Where the instance of a manifest is, for outputs that are given as absolute paths."""
    attempt = manifest.attempt
    return storage.join(attempt.parameters["output"], attempt.process, attempt.instance)
