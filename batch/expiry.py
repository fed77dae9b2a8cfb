"""Results are ephemeral; what tells of them is not."""

import datetime

from ledgerbeam.io import storage
from ledgerbeam.io.attempts import attempts, commits, find_manifest
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.published import EXPIRED
from ledgerbeam.io.records import FileRecord, ShardCommit


def expire_results(uri: str, now: datetime.datetime) -> int:
    """Delete an instance's parts and reports, and say so where readers look.

    The manifest, attempts, markers, outcomes and refused rows stay: they are the record.

    Args:
        uri: of the instance.
        now: the present time.

    Returns:
        How many files were deleted. Done again, it goes on where it was interrupted.
    """
    note = f'{{"expired_at": "{now.isoformat()}"}}\n'
    storage.create(storage.join(uri, EXPIRED), note.encode())
    failpoint("expire: noted")
    names = set()
    manifest = find_manifest(uri)
    if manifest is not None:
        names |= {file.name for file in manifest.reports}
        names |= {file.name for commit in manifest.shards for file in _results_of(commit)}
    found = commits(uri, [record.number for record in attempts(uri)])
    names |= {file.name for commit in found.values() for file in _results_of(commit)}
    for name in sorted(names):
        storage.delete(storage.join(uri, name))
    return len(names)


def _results_of(commit: ShardCommit) -> list[FileRecord]:
    """A shard's files of results."""
    return [commit.part, *commit.tables.values()]
