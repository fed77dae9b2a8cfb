"""Reading in tests."""

import pyarrow as pa

from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import SplitRows, read_split


def read_whole(split: Split) -> SplitRows:
    """All batches of a split as one."""
    batches = list(read_split(split))
    return SplitRows(
        pa.concat_tables([batch.table for batch in batches]),
        [refusal for batch in batches for refusal in batch.refusals],
        sum(batch.line_count for batch in batches),
    )
