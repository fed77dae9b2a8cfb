"""Where storage isn't what the registry says: what changed, was deleted, or nobody has recorded."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.queries import RegistryReader
from ledgerbeam.io.commit.attempts import Attempt, attempts, ending_of, find_manifest
from ledgerbeam.io.commit.published import EXPIRED, differing_files
from ledgerbeam.io.commit.records import AttemptRecord, Manifest
from ledgerbeam.io.errors import RunNotFoundError, UserError
from ledgerbeam.io.storage import stores, uris


class Difference(NamedTuple):
    """Something that storage and registry don't agree on.

    Attributes:
        run: which.
        what: in a line that names the file.
    """

    run: RunRecord
    what: str


def scrub(registry: RegistryReader, runs: Iterable[RunRecord]) -> Iterator[Difference]:
    """Compare each run's storage with the registry, and published files with their hashes.

    It reads every published file once. A run that goes on has nothing to be compared with yet, and
    of one that was replaced the folder is that of its successor.
    """
    for run in runs:
        if not run.status.is_final:
            continue
        try:
            if run.status is not RunStatus.SUCCESS and registry.successor(run.id) is not None:
                continue
            for what in _differences(registry, run):
                yield Difference(run, what)
        except UserError as error:
            yield Difference(run, str(error))


def _differences(registry: RegistryReader, run: RunRecord) -> Iterator[str]:
    yield from _strange_attempts(registry, run, attempts(run.uri))
    manifest = find_manifest(run.uri)
    if run.status is not RunStatus.SUCCESS:
        if manifest is not None:
            by = _publisher(run, manifest)
            yield f"{run.uri}: {by} has published, and the registry says {run.status}"
        return
    if manifest is None:
        yield f"{run.uri}: its manifest is gone: restore it from a copy"
        return
    if not _is_its_own(run, manifest):
        yield (
            f"{run.uri}: its manifest is of {_publisher(run, manifest)}, which isn't what the "
            "registry says to have published: find out who has written it"
        )
    has_note = stores.stat_of(uris.inside(run.uri, EXPIRED)) is not None
    if run.results_expired_at is None and has_note:
        yield f"{run.uri}: its results were deleted as expired, which the registry doesn't know"
    if run.results_expired_at is None and not has_note:
        yield from (str(error) for error in differing_files(run.uri, manifest.files))


def _strange_attempts(
    registry: RegistryReader, run: RunRecord, stored: Sequence[AttemptRecord]
) -> Iterator[str]:
    """Attempts that no run of the registry answers for; those from before the record are known."""
    launched = {attempt.number for attempt in run.attempts}
    for record in stored:
        attempt = Attempt(run.uri, record)
        if not record.run:
            if ending_of(attempt.uri) is None:
                yield f"{attempt.uri}: it goes on without a record"
        elif record.run == run.id:
            if record.launch not in launched:
                yield f"{attempt.uri}: the registry knows no attempt {record.launch} of the run"
        elif not _is_known(registry, record.run):
            yield f"{attempt.uri}: it is of run {record.run}, which the registry doesn't know"


def _is_known(registry: RegistryReader, run_id: str) -> bool:
    try:
        registry.get(run_id)
    except RunNotFoundError:
        return False
    return True


def _is_its_own(run: RunRecord, manifest: Manifest) -> bool:
    """Whether a run that has succeeded did so by this manifest."""
    record = manifest.attempt
    if record.run == run.id:
        succeeded = {a.number for a in run.attempts if a.outcome is AttemptOutcome.SUCCESS}
        return record.launch in succeeded
    # It has found it published: by a run without a record, or by one that it has replaced.
    ended_at = run.attempts[-1].ended_at if run.attempts else None
    return ended_at is not None and manifest.published_at <= ended_at


def _publisher(run: RunRecord, manifest: Manifest) -> str:
    record = manifest.attempt
    who = f"attempt {record.number} without a record"
    if record.run:
        who = f"attempt {record.number} of {'this run' if record.run == run.id else record.run}"
    return f"{who} ({manifest.published_at:%Y-%m-%d %H:%M:%S} UTC)"
