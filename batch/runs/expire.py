"""Results expire; the record of them stays."""

import datetime

from ledgerbeam.io.commit.attempts import attempts, commits, find_manifest
from ledgerbeam.io.commit.published import EXPIRED
from ledgerbeam.io.commit.records import FileRecord, ShardCommit
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import stores, uris


def expire_results(uri: str, now: datetime.datetime) -> int:
    """Delete an instance's parts and reports, and leave a note for readers.

    The manifest, attempts, markers, outcomes and rejected rows stay: they are the record.

    Args:
        uri: of the instance.
        now: the present time.

    Returns:
        How many files were deleted. Done again, it goes on where it was interrupted.
    """
    names = set()
    manifest = find_manifest(uri)
    if manifest is not None:
        names |= {file.name for file in manifest.reports}
        names |= {file.name for commit in manifest.shards for file in _results_of(commit)}
    found = commits(uri, [record.number for record in attempts(uri)])
    names |= {file.name for commit in found.values() for file in _results_of(commit)}
    # Before anything is done: records that name other files are refused as a whole.
    places = [uris.inside(uri, name) for name in sorted(names)]
    note = f'{{"expired_at": "{now.isoformat()}"}}\n'
    stores.create(uris.inside(uri, EXPIRED), note.encode())
    failpoint("expire: noted")
    for place in places:
        stores.delete(place)
    return len(places)


def _results_of(commit: ShardCommit) -> list[FileRecord]:
    """A shard's files of results."""
    return [commit.part, *commit.tables.values()]
