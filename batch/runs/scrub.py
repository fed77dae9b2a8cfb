"""Where storage isn't what the registry says: published files that changed, or were deleted."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.commit.attempts import find_manifest
from ledgerbeam.io.commit.published import EXPIRED, differing_files
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import stores, uris


class Difference(NamedTuple):
    """Something that storage and registry don't agree on.

    Attributes:
        run: which.
        what: in a line that names the file.
    """

    run: RunRecord
    what: str


def scrub(runs: Iterable[RunRecord]) -> Iterator[Difference]:
    """Compare each run's storage with the registry, and published files with their hashes.

    It reads every published file once. A run that goes on has nothing to be compared with yet.
    """
    for run in runs:
        if not run.status.is_final:
            continue
        try:
            for what in _differences(run):
                yield Difference(run, what)
        except UserError as error:
            yield Difference(run, str(error))


def _differences(run: RunRecord) -> Iterator[str]:
    manifest = find_manifest(run.uri)
    if run.status is not RunStatus.SUCCESS:
        if manifest is not None and manifest.attempt.run == run.id:
            yield f"{run.uri}: it has published, and the registry says {run.status}"
        return
    if manifest is None:
        yield f"{run.uri}: its manifest is gone: restore it from a copy"
        return
    has_note = stores.stat_of(uris.inside(run.uri, EXPIRED)) is not None
    if run.results_expired_at is None and has_note:
        yield f"{run.uri}: its results were deleted as expired, which the registry doesn't know"
    if run.results_expired_at is None and not has_note:
        yield from (str(error) for error in differing_files(run.uri, manifest.files))
