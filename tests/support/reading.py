"""Reading in tests."""

from pathlib import Path

import pyarrow as pa

from ledgerbeam.io.commit.records import AttemptRecord, Manifest
from ledgerbeam.io.datasets.inputs import Split
from ledgerbeam.io.datasets.readers import SplitRows, read_split
from ledgerbeam.io.storage import uris


def read_whole(split: Split) -> SplitRows:
    """All batches of a split as one."""
    batches = list(read_split(split))
    return SplitRows(
        pa.concat_tables([batch.table for batch in batches]),
        pa.concat_tables([batch.rejected for batch in batches]),
        sum(batch.line_count for batch in batches),
    )


def instance_uri(manifest: Manifest) -> str:
    """Where the instance of a manifest is, for outputs that are given as absolute paths."""
    attempt = manifest.attempt
    return uris.join(attempt.parameters["output"], attempt.process, attempt.instance)


def tree(folder: Path) -> dict[str, bytes]:
    """All files, less the workers' signs of life, which come and go."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "workers" not in p.parts}


def record_of(shards: int) -> AttemptRecord:
    return AttemptRecord.model_validate(
        {
            "process": "test",
            "instance": "2026-11-20",
            "number": 1,
            "started_at": "2026-11-20T18:00:00Z",
            "code_version": "1",
            "parameters": {},
            "inputs": [],
            "shards": shards,
            "fingerprint": "",
        }
    )
