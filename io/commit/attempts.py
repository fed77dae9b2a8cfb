"""The commit protocol: what an attempt writes, and which attempt publishes.

    INSTANCE/
      attempt-1/attempt.json                  who started it, on which input, with how many shards
      attempt-1/part-00007-of-00064.parquet   a shard's result
      attempt-1/NAME-00007-of-00064.parquet   a shard's part of an extra table
      attempt-1/rejects-….parquet             rejected rows, with file, row and reason
      attempt-1/outcomes-00007.parquet        components that did not just succeed
      attempt-1/committed-00007.json          the shard's marker
      attempt-1/ended.json                    published, failed, or fenced: decided once
      attempt-1/cleanup.json                  some process has begun to clean up
      attempt-1/cleaned.json                  the clean-up is done, if the definition has a hook
      claims/00007-….json                     calls that may be made only once: see `claims`
      pages/….json                            where pages of a table begin and end
      on-record.json                          only recorded runs publish: see `on_record`
      manifest.json                           the instance's result

Every object is created once, whole, and only if no object of its name exists (`storage.create`);
none is ever changed. A bundle may run twice, late, or on a worker that was given up: the first one
to create the marker has committed the shard, and only the files that a marker names count.
Publishing is the creation of the manifest, which names the markers' files; readers follow nothing
else. Files are made durable all at once, before the manifest is created: waiting for the disk file
by file would cost a tenth.

An attempt is given up by creating the objects that it would create (`fence`): its `ended.json`, and
the markers of the shards that it has not committed. Workers of it that are still running can then
neither commit nor publish. If the attempt created its `ended.json` first, it has won: that file
holds the manifest, and any process can complete the publication.

A later attempt on the same input takes over what earlier ones have committed; if it commits a
shard again (to retry components that failed), its marker counts. On another input it starts from
the beginning.
"""

import datetime
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ledgerbeam.io.commit.amounts import shown
from ledgerbeam.io.commit.records import (
    AttemptRecord,
    Ending,
    Fence,
    FileRecord,
    Manifest,
    Record,
    ShardCommit,
    damaged_record,
    load_record,
    parse_record,
)
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    ControlTotalMismatchError,
    FencedError,
    NotPublishedError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.parsing import parse_json
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
REPORT = "report-"
WALK_WINDOW = 256
"""A walk is never more shards than this ahead of its first uncommitted one: fencing that many names
stops it."""

_THREADS = 16
_PIECE = 1 << 22
_log = logging.getLogger(__name__)


class PageCut(Record):
    """Where consecutive pages of a shard begin and end: recorded before they are worked on.

    Rows come and go between two attempts. If the pages were cut again, they would hold rows whose
    work was done under the name of another page.

    Attributes:
        pages: the range of each page, as text.
        end: whether there are no more pages.
    """

    pages: list[str]
    end: bool


class Attempt:
    """One launch of an instance; nothing else writes below its folder, except to fence it."""

    def __init__(self, instance_uri: str, record: AttemptRecord) -> None:
        self.instance_uri = instance_uri
        self.record = record

    @property
    def uri(self) -> str:
        """The attempt's folder."""
        return uris.inside(self.instance_uri, f"attempt-{self.record.number}")

    def write_part(self, shard: int, table: "pa.Table", name: str = "part") -> FileRecord:
        """Write a shard's result, or its part of an extra table of that name.

        It counts only once `commit` has named it.
        """
        of_all = "" if self.record.shards is None else f"-of-{self.record.shards:05d}"
        part = self._write_parquet(f"{name}-{shard:05d}{of_all}", table)
        failpoint("part: written")
        return part

    def write_rejects(self, name: str, table: "pa.Table") -> FileRecord:
        """Write rejected rows, to `rejects-NAME.parquet`."""
        rejects = self._write_parquet(f"rejects-{name}", table)
        failpoint("rejects: written")
        return rejects

    def write_outcomes(self, shard: int, table: "pa.Table") -> FileRecord:
        """Write the outcomes of a shard's components that did not just succeed."""
        outcomes = self._write_parquet(f"outcomes-{shard:05d}", table)
        failpoint("outcomes: written")
        return outcomes

    def write_report(self, name: str, data: bytes) -> FileRecord:
        """Write a file of the reduce step."""
        report = self._write(f"{REPORT}{name}", "", data, rows=0)
        failpoint("report: written")
        return report

    def read_rows(self, file: FileRecord, rows: int) -> list[dict[str, Any]]:
        """The first rows of a Parquet file of the instance."""
        from ledgerbeam.io.commit.parquet import read_parquet

        with stores.open_input(uris.inside(self.instance_uri, file.name)) as source:
            table = read_parquet(source)
        return table.slice(0, rows).to_pylist()

    def columns_of(self, file: FileRecord) -> dict[str, str]:
        """Arrow type by name of each column of a Parquet file of the instance."""
        import pyarrow.parquet as pq

        with stores.open_input(uris.inside(self.instance_uri, file.name)) as source:
            schema = pq.read_schema(source)
        return {field.name: str(field.type) for field in schema}

    def commit(self, commit: ShardCommit) -> ShardCommit:
        """Create the shard's marker, or return the one that another worker created before.

        Raises:
            FencedError: the attempt was given up.
        """
        failpoint("commit: files written")
        uri = self._marker(commit.shard)
        if stores.create(uri, commit.to_json()):
            failpoint("commit: marker made")
            return commit
        found = _load_marker(uri)
        if isinstance(found, Fence):
            raise self._fenced(found)
        return found

    def find_commit(self, shard: int) -> ShardCommit | None:
        """The shard's marker, if this attempt has committed the shard; else None."""
        uri = self._marker(shard)
        found = None if stores.stat_of(uri) is None else _load_marker(uri)
        return found if isinstance(found, ShardCommit) else None

    def cut_pages(self, shard: int, first: int, cut: PageCut) -> PageCut:
        """Record where pages begin and end, for all attempts on the same input.

        Args:
            shard: number of the pages' shard.
            first: number of the first page within the shard.
            cut: the cut to record.

        Returns:
            The cut that is in force: this one, unless one was recorded before.
        """
        uri = f"{self._cuts(shard)}{first:08d}.json"
        failpoint("pages: before")
        if not stores.create(uri, cut.to_json()):
            return load_record(PageCut, uri)
        # A page's own writes may survive a loss of power, so its cut must survive it too.
        stores.persist([uri])
        failpoint("pages: cut")
        return cut

    def page_cuts(self, shard: int) -> list[PageCut]:
        """The cuts that `cut_pages` has recorded, in the order of the pages."""
        pattern = f"{uris.escape(self._cuts(shard))}*.json"
        return [load_record(PageCut, file.uri) for file in stores.find(pattern)]

    def claim_cleanup(self) -> bool:
        """Claim the clean-up after the attempt; true for the first caller only."""
        claimed = stores.create(uris.inside(self.uri, "cleanup.json"), b"{}\n")
        failpoint("cleanup: claimed")
        return claimed

    def record_cleanup(self) -> None:
        """Record that the caller that claimed the clean-up has done it."""
        failpoint("cleanup: done")
        stores.create(uris.inside(self.uri, "cleaned.json"), b"{}\n")
        failpoint("cleanup: recorded")

    @property
    def is_cleaned(self) -> bool:
        """Whether the clean-up after the attempt is recorded as done."""
        return stores.stat_of(uris.inside(self.uri, "cleaned.json")) is not None

    def publish(self, manifest: Manifest, at: datetime.datetime) -> None:
        """Create the manifest.

        Args:
            manifest: the manifest, with everything that is published.
            at: the present time in UTC.

        Raises:
            FencedError: the attempt was given up.
            ControlTotalMismatchError: a control doesn't balance.
            AlreadyPublishedError: another attempt has published before.
        """
        broken = [control for control in manifest.controls if not control.balances]
        if broken:
            sides = [
                [
                    shown(control.name, value, self.record.total_decimals)
                    for value in (control.expected, control.actual)
                ]
                for control in broken
            ]
            differences = "; ".join(
                f"{control.name}: {went_in} in, {came_out} out"
                for control, (went_in, came_out) in zip(broken, sides, strict=True)
            )
            raise ControlTotalMismatchError(
                f"{self.instance_uri}: nothing published, the control totals don't balance: "
                f"{differences}: this is a bug: keep {self.uri} for those who look into it",
                name=broken[0].name,
                expected=sides[0][0],
                actual=sides[0][1],
            )
        if find_manifest(self.instance_uri) is None or ending_of(self.uri) is not None:
            named = [uris.inside(self.instance_uri, file.name) for file in manifest.files]
            stores.persist(named)
            failpoint("publish: files durable")
            ending = self._end(Ending(outcome="published", at=at, manifest=manifest))
            failpoint("publish: ended")
            if ending.outcome == "failed":
                raise FencedError(
                    f"{self.uri}: it has failed before: {ending.error}: run the instance again",
                    attempt=self.uri,
                )
            complete_publication(self.instance_uri, ending)
            failpoint("publish: manifest made")
        published = load_manifest(self.instance_uri)
        if published.attempt.number != self.record.number:
            raise AlreadyPublishedError(
                f"{self.instance_uri}: attempt {published.attempt.number} has published in the "
                f"meantime; nothing of attempt {self.record.number} counts: read that one",
                uri=self.instance_uri,
            )

    def fail(self, error: str, at: datetime.datetime) -> None:
        """Record that the attempt has failed, unless it has ended otherwise."""
        failpoint("fail: before")
        stores.create(ending_uri(self.uri), Ending(outcome="failed", at=at, error=error).to_json())
        failpoint("fail: recorded")

    def _end(self, ending: Ending) -> Ending:
        """Create the ending, or return the one that exists; an ending by a fence is an error."""
        uri = ending_uri(self.uri)
        if stores.create(uri, ending.to_json()):
            stores.persist([uri])
            return ending
        found = load_record(Ending, uri)
        if found.fence is not None:
            raise self._fenced(found.fence)
        return found

    def _fenced(self, fence: Fence) -> FencedError:
        return FencedError(
            f"{self.uri}: the attempt was given up by {fence.who}: {fence.why}: nothing that it "
            "still does counts: read what a later attempt has published, or start one",
            attempt=self.uri,
        )

    def _marker(self, shard: int) -> str:
        return uris.inside(self.uri, _marker_name(shard))

    def _cuts(self, shard: int) -> str:
        name = f"{self.record.fingerprint[:16]}-{shard:05d}-"
        return uris.inside(self.instance_uri, f"pages/{name}")

    def _write_parquet(self, name: str, table: "pa.Table") -> FileRecord:
        from ledgerbeam.io.commit.parquet import to_parquet

        return self._write(name, ".parquet", to_parquet(table), table.num_rows)

    def _write(self, name: str, suffix: str, data: "bytes | pa.Buffer", rows: int) -> FileRecord:
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}{suffix}"
        place = uris.inside(self.uri, file)
        if not stores.create(place, data) and (
            hashlib.sha256(stores.read_bytes(place)).hexdigest() != digest
        ):
            # An earlier try wrote other bytes, and died before it created the marker.
            file = f"{name}.{digest[:12]}{suffix}"
            stores.create(uris.inside(self.uri, file), data)
        relative = f"attempt-{self.record.number}/{file}"
        return FileRecord(name=relative, rows=rows, size=len(data), sha256=digest)


def start_attempt(instance_uri: str, draft: AttemptRecord) -> Attempt:
    """Create an attempt with the draft's number, or with the next number that is free."""
    attempt = Attempt(instance_uri, draft)
    failpoint("attempt: before")
    while not stores.create(uris.inside(attempt.uri, "attempt.json"), attempt.record.to_json()):
        number = attempt.record.number + 1
        attempt = Attempt(instance_uri, draft.model_copy(update={"number": number}))
    failpoint("attempt: made")
    return attempt


def attempts(instance_uri: str) -> list[AttemptRecord]:
    """All attempts of an instance, by number."""
    found = stores.find(uris.join(uris.escape(instance_uri), "attempt-*", "attempt.json"))
    folders = [uris.base_name(file.uri.removesuffix("/attempt.json")) for file in found]
    records = [_load_attempt(instance_uri, folder) for folder in folders]
    return sorted(records, key=lambda record: record.number)


def _load_attempt(instance_uri: str, folder: str) -> AttemptRecord:
    uri = uris.inside(instance_uri, f"{folder}/attempt.json")
    record = load_record(AttemptRecord, uri)
    if folder != f"attempt-{record.number}":
        raise damaged_record(uri, f"it says that it is attempt {record.number}")
    return record


def commits(
    instance_uri: str,
    numbers: Sequence[int],
    known: dict[str, ShardCommit | Fence] | None = None,
    by_hash: bool = False,
) -> dict[int, ShardCommit]:
    """The marker of each shard that one of the attempts has committed; the latest counts.

    Args:
        instance_uri: URI of the instance.
        numbers: numbers of the attempts.
        known: markers that were read before, by their URI; those read now are added.
        by_hash: read the files, too: a shard whose files aren't what was committed doesn't count,
            and is logged.
    """
    known = {} if known is None else known
    markers: list[str] = []
    for number in sorted(numbers):
        folder = uris.inside(instance_uri, f"attempt-{number}")
        found = stores.find(uris.join(uris.escape(folder), "committed-*.json"))
        markers += [uris.join(folder, uris.base_name(file.uri)) for file in found]

    def read(uri: str) -> None:
        uris.inside(*uri.rsplit("/", 1))
        marker = _load_marker(uri)
        if isinstance(marker, ShardCommit):
            # After a loss of power a marker may exist without its files.
            for file in marker.files:
                info = stores.stat_of(uris.inside(instance_uri, file.name))
                if info is None or info.size != file.size:
                    return
                if by_hash and digest_of(info.uri) != file.sha256:
                    _log.warning(
                        "%s: not what was committed: shard %d doesn't count, and is executed again",
                        info.uri,
                        marker.shard,
                    )
                    return
        known[uri] = marker

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, [uri for uri in markers if uri not in known]))
    counting = [known[uri] for uri in markers if uri in known]
    return {marker.shard: marker for marker in counting if isinstance(marker, ShardCommit)}


def ending_uri(attempt_uri: str) -> str:
    """URI of the record of how an attempt ended."""
    return uris.inside(attempt_uri, "ended.json")


def ending_of(attempt_uri: str) -> Ending | None:
    """How an attempt has ended; None while it hasn't."""
    uri = ending_uri(attempt_uri)
    return None if stores.stat_of(uri) is None else load_record(Ending, uri)


def fence(instance_uri: str, record: AttemptRecord, by: Fence) -> Ending:
    """Give an attempt up: when this returns, it can neither commit a shard nor publish.

    Args:
        instance_uri: URI of the attempt's instance.
        record: how the attempt was started.
        by: who gives it up, and why.

    Returns:
        How the attempt has ended: `published` if it was faster. Then a manifest exists: this
        attempt's, unless another attempt published at the same moment.
    """
    attempt = Attempt(instance_uri, record)
    uri = ending_uri(attempt.uri)
    ending = Ending(outcome="fenced", at=by.fenced_at, fence=by)
    failpoint("fence: before")
    if not stores.create(uri, ending.to_json()):
        ending = load_record(Ending, uri)
        if ending.outcome == "published":
            complete_publication(instance_uri, ending)
            return ending
    failpoint("fence: ended")
    committed = commits(instance_uri, [record.number])
    if record.shards is not None:
        shards = [shard for shard in range(record.shards) if shard not in committed]
    else:
        shards = [n for n in _reach_of_walk(attempt, committed, by) if n not in committed]
    data = by.to_json()
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda shard: stores.create(attempt._marker(shard), data), shards))
    failpoint("fence: markers taken")
    return ending


def _reach_of_walk(
    attempt: Attempt, committed: Mapping[int, ShardCommit], by: Fence
) -> Iterator[int]:
    """Fence the first shard that a walk may still commit; give the others."""
    same_input = [
        record.number
        for record in attempts(attempt.instance_uri)
        if record.fingerprint == attempt.record.fingerprint
        and record.number < attempt.record.number
    ]
    kept = commits(attempt.instance_uri, same_input)
    yield from (shard for shard, commit in kept.items() if commit.totals.get("failed"))
    behind = (n for n in itertools.count() if n not in kept and n not in committed)
    first = next(n for n in behind if stores.create(attempt._marker(n), by.to_json()))
    yield from range(first + 1, first + WALK_WINDOW)


def complete_publication(instance_uri: str, ending: Ending) -> None:
    """Create the manifest of an attempt that ended by publishing, if it doesn't exist yet."""
    if ending.manifest is None:
        return
    uri = uris.inside(instance_uri, MANIFEST)
    if stores.create(uri, ending.manifest.to_json()):
        stores.persist([uri])


def load_manifest(uri: str) -> Manifest:
    """The manifest of a published instance.

    Args:
        uri: URI of the instance or of the manifest.

    Raises:
        NotPublishedError: nothing is published there.
        DamagedFileError: the manifest is damaged.
    """
    manifest = find_manifest(uri)
    if manifest is None:
        raise NotPublishedError(
            f"{uri}: nothing is published there: no {MANIFEST}: check the URI, or run the "
            "workload to its end",
            uri=uri,
        )
    return manifest


def digest_of(uri: str) -> str:
    """SHA-256 of an object, in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with stores.open_input(uri) as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def find_manifest(uri: str) -> Manifest | None:
    """The manifest of an instance, or None if nothing is published yet."""
    info = stores.stat_of(uris.inside(uri.removesuffix(f"/{MANIFEST}"), MANIFEST))
    return None if info is None else _load_manifest(info)


# A page asks for one several times, and those of ten thousand shards take a tenth of a second.
@functools.lru_cache(maxsize=4)
def _load_manifest(version: FileInfo) -> Manifest:
    return load_record(Manifest, version.uri)


def _load_marker(uri: str) -> ShardCommit | Fence:
    data = stores.read_bytes(uri)
    try:
        fields = parse_json(data)
    except ValueError:
        fields = None
    is_fence = isinstance(fields, dict) and "fenced_at" in fields
    if is_fence:
        return parse_record(Fence, uri, data)
    marker = parse_record(ShardCommit, uri, data)
    if uris.base_name(uri) != _marker_name(marker.shard):
        raise damaged_record(uri, f"it says that it is of shard {marker.shard}")
    return marker


def _marker_name(shard: int) -> str:
    return f"committed-{shard:05d}.json"
