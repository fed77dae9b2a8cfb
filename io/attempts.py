"""The commit protocol: what an attempt writes, and how one attempt wins.

    INSTANCE/
      attempt-1/attempt.json                  who started it, on which input, with how many shards
      attempt-1/part-00007-of-00064.parquet   a shard's result
      attempt-1/NAME-00007-of-00064.parquet   a shard's part of a further table
      attempt-1/rejects-….parquet             refused rows, with file, row and reason
      attempt-1/outcomes-00007.parquet        components that did not just succeed
      attempt-1/committed-00007.json          the shard's marker
      attempt-1/ended.json                    published, failed, or fenced: decided once
      attempt-1/cleanup.json                  somebody has begun to clean up
      attempt-1/cleaned.json                  and has done so, where the definition has a hook
      claims/00007-….json                     calls that may be made once only: see `claims`
      pages/….json                            where pages of a table begin and end
      manifest.json                           the instance's result

Every object is made once, whole, and only if nothing of its name exists (`storage.create`); none
is ever changed. A bundle may run twice, late, or on a worker that was given up: whoever makes the
marker first has committed the shard, and only what a marker names counts. Publishing is the
creation of the manifest, which names the markers' files; readers follow nothing else. Files are
made durable once, in front of the manifest: to wait for the disk file by file costs a tenth.

An attempt is given up by taking the names that it would make (`fence`): its `ended.json`, and
the markers of the shards that it has not committed. Whatever of it is still running then can
neither commit nor publish. An attempt that made its `ended.json` first has won: the manifest is
in it, and whoever comes by can complete the publication.

A later attempt on the same input takes over what earlier ones have committed; where it commits a
shard again (to retry components that failed), its marker counts. On another input it starts
afresh.
"""

import base64
import datetime
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.io import storage
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import (
    AttemptRecord,
    Ending,
    Fence,
    FileRecord,
    Manifest,
    Record,
    ShardCommit,
    load_record,
    parse_record,
)

MANIFEST = "manifest.json"
REPORT = "report-"
WALK_WINDOW = 256
"""No walk is further ahead of its first uncommitted shard, so that this many names fence it."""

_THREADS = 16


class FencedError(UserError):
    """The attempt was given up by somebody else: nothing that it still does counts."""


class LostError(UserError):
    """The attempt ended by what befell its processes, not by its work: it hasn't failed."""


class PageCut(Record):
    """Where consecutive pages of a shard begin and end: recorded before they are worked on.

    Rows come and go between two attempts. Pages that were cut anew would then hold rows whose
    work was done under the name of another page.

    Attributes:
        pages: the range of each, as text.
        end: whether there are no more.
    """

    pages: list[str]
    end: bool


class Attempt:
    """One launch of an instance; the only one who writes below its own folder."""

    def __init__(self, instance_uri: str, record: AttemptRecord) -> None:
        """Hold an attempt that `start_attempt` has made."""
        self.instance_uri = instance_uri
        self.record = record

    @property
    def uri(self) -> str:
        """The attempt's folder."""
        return storage.join(self.instance_uri, f"attempt-{self.record.number}")

    def write_part(self, shard: int, table: pa.Table, name: str = "part") -> FileRecord:
        """Write a shard's result, or its part of a further table of that name.

        It counts only once `commit` has named it.
        """
        of_all = "" if self.record.shards is None else f"-of-{self.record.shards:05d}"
        part = self._write_parquet(f"{name}-{shard:05d}{of_all}", table)
        failpoint("part: written")
        return part

    def write_rejects(self, name: str, table: pa.Table) -> FileRecord:
        """Write refused rows, to `rejects-NAME.parquet`."""
        rejects = self._write_parquet(f"rejects-{name}", table)
        failpoint("rejects: written")
        return rejects

    def write_outcomes(self, shard: int, table: pa.Table) -> FileRecord:
        """Write what became of a shard's components, where that is more than plain success."""
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
        with storage.open_input(storage.join(self.instance_uri, file.name)) as source:
            table = read_parquet(source)
        return table.slice(0, rows).to_pylist()

    def columns_of(self, file: FileRecord) -> dict[str, str]:
        """Arrow type by name of each column of a Parquet file of the instance."""
        with storage.open_input(storage.join(self.instance_uri, file.name)) as source:
            schema = pq.read_schema(source)
        return {field.name: str(field.type) for field in schema}

    def commit(self, commit: ShardCommit) -> ShardCommit:
        """Make the shard's marker, or give the one that another worker has made before.

        Raises:
            FencedError: the attempt was given up.
        """
        failpoint("commit: files written")
        uri = self._marker(commit.shard)
        if storage.create(uri, commit.to_json()):
            failpoint("commit: marker made")
            return commit
        found = _load_marker(uri)
        if isinstance(found, Fence):
            raise self._fenced(found)
        return found

    def find_commit(self, shard: int) -> ShardCommit | None:
        """The shard's marker, if this attempt has made it."""
        uri = self._marker(shard)
        found = None if storage.stat_of(uri) is None else _load_marker(uri)
        return found if isinstance(found, ShardCommit) else None

    def cut_pages(self, shard: int, first: int, cut: PageCut) -> PageCut:
        """Record where pages begin and end, for all attempts on the same input.

        Args:
            shard: of the pages.
            first: number of the first of them within the shard.
            cut: to be recorded.

        Returns:
            The cut that holds: this one, unless one was recorded before.
        """
        uri = f"{self._cuts(shard)}{first:08d}.json"
        failpoint("pages: before")
        if not storage.create(uri, cut.to_json()):
            return load_record(PageCut, uri)
        # A page's own writes may outlive a loss of power: so must what they were made by.
        storage.persist([uri])
        failpoint("pages: cut")
        return cut

    def page_cuts(self, shard: int) -> list[PageCut]:
        """What `cut_pages` has recorded, in the order of the pages."""
        pattern = f"{storage.escape(self._cuts(shard))}*.json"
        return [load_record(PageCut, file.uri) for file in storage.find(pattern)]

    def claim_cleanup(self) -> bool:
        """Whether it falls to the caller to clean up behind the attempt: to one caller ever."""
        claimed = storage.create(storage.join(self.uri, "cleanup.json"), b"{}\n")
        failpoint("cleanup: claimed")
        return claimed

    def record_cleanup(self) -> None:
        """Record that whoever claimed the clean-up has done it."""
        failpoint("cleanup: done")
        storage.create(storage.join(self.uri, "cleaned.json"), b"{}\n")
        failpoint("cleanup: recorded")

    @property
    def is_cleaned(self) -> bool:
        """Whether the clean-up behind the attempt is known to be done."""
        return storage.stat_of(storage.join(self.uri, "cleaned.json")) is not None

    def publish(self, manifest: Manifest, at: datetime.datetime) -> None:
        """Make the manifest.

        Raises:
            FencedError: the attempt was given up.
            UserError: a control doesn't balance, or another attempt has published before.
        """
        broken = [control for control in manifest.controls if not control.balances]
        if broken:
            differences = "; ".join(
                f"{control.name}: {control.expected} in, {control.actual} out" for control in broken
            )
            raise UserError(
                f"{self.instance_uri}: nothing published, the control totals don't balance: "
                f"{differences}: this is a defect: keep {self.uri} for those who look into it"
            )
        if find_manifest(self.instance_uri) is None or ending_of(self.uri) is not None:
            named = [storage.join(self.instance_uri, file.name) for file in manifest.files]
            storage.persist(named)
            failpoint("publish: files durable")
            ending = self._end(Ending(outcome="published", at=at, manifest=manifest))
            failpoint("publish: ended")
            if ending.outcome == "failed":
                raise UserError(
                    f"{self.uri}: it has failed before: {ending.error}: run the instance again"
                )
            complete_publication(self.instance_uri, ending)
            failpoint("publish: manifest made")
        published = load_manifest(self.instance_uri)
        if published.attempt.number != self.record.number:
            raise UserError(
                f"{self.instance_uri}: attempt {published.attempt.number} has published in the "
                f"meantime; nothing of attempt {self.record.number} counts: read that one"
            )

    def fail(self, error: str, at: datetime.datetime) -> None:
        """Record that the attempt has failed, unless it has ended otherwise."""
        failpoint("fail: before")
        storage.create(ending_uri(self.uri), Ending(outcome="failed", at=at, error=error).to_json())
        failpoint("fail: recorded")

    def _end(self, ending: Ending) -> Ending:
        """Make the ending, or give the one that stands; one by a fence is an error."""
        uri = ending_uri(self.uri)
        if storage.create(uri, ending.to_json()):
            storage.persist([uri])
            return ending
        found = load_record(Ending, uri)
        if found.fence is not None:
            raise self._fenced(found.fence)
        return found

    def _fenced(self, fence: Fence) -> FencedError:
        return FencedError(
            f"{self.uri}: the attempt was given up by {fence.who}: {fence.why}: nothing that it "
            "still does counts: read what a later attempt has published, or start one"
        )

    def _marker(self, shard: int) -> str:
        return storage.join(self.uri, f"committed-{shard:05d}.json")

    def _cuts(self, shard: int) -> str:
        name = f"{self.record.fingerprint[:16]}-{shard:05d}-"
        return storage.join(self.instance_uri, "pages", name)

    def _write_parquet(self, name: str, table: pa.Table) -> FileRecord:
        sink = pa.BufferOutputStream()
        # Dictionaries pay only where values repeat. Statistics of strings take a third of the
        # time, and rows that are spread by a hash leave no range of them to skip by.
        few = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
        numbers = [field.name for field in table.schema if pa.types.is_primitive(field.type)]
        # Readers get strings for dictionaries, and every other type as it was: Arrow's schema is
        # what keeps durations, time zones and large types, which Parquet doesn't know.
        plain = pa.schema([(f.name, _plain_type(f.type)) for f in table.schema])
        arrow_schema = base64.b64encode(plain.serialize())
        with pq.ParquetWriter(
            sink,
            table.schema,
            use_dictionary=few,
            write_statistics=numbers,
            store_decimal_as_integer=True,
            store_schema=False,
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"ARROW:schema": arrow_schema})
        return self._write(name, ".parquet", sink.getvalue(), table.num_rows)

    def _write(self, name: str, suffix: str, data: bytes | pa.Buffer, rows: int) -> FileRecord:
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}{suffix}"
        if not storage.create(storage.join(self.uri, file), data) and (
            hashlib.sha256(storage.read_bytes(storage.join(self.uri, file))).hexdigest() != digest
        ):
            # An earlier try died between its file and its marker, and gave other bytes.
            file = f"{name}.{digest[:12]}{suffix}"
            storage.create(storage.join(self.uri, file), data)
        relative = f"attempt-{self.record.number}/{file}"
        return FileRecord(name=relative, rows=rows, size=len(data), sha256=digest)


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def start_attempt(instance_uri: str, draft: AttemptRecord) -> Attempt:
    """Make an attempt of the draft's number, or of the next one that no other launcher has."""
    attempt = Attempt(instance_uri, draft)
    failpoint("attempt: before")
    while not storage.create(storage.join(attempt.uri, "attempt.json"), attempt.record.to_json()):
        number = attempt.record.number + 1
        attempt = Attempt(instance_uri, draft.model_copy(update={"number": number}))
    failpoint("attempt: made")
    return attempt


def attempts(instance_uri: str) -> list[AttemptRecord]:
    """All attempts of an instance, by number."""
    found = storage.find(storage.join(storage.escape(instance_uri), "attempt-*", "attempt.json"))
    return sorted(
        (load_record(AttemptRecord, file.uri) for file in found), key=lambda record: record.number
    )


def commits(
    instance_uri: str,
    numbers: Sequence[int],
    known: dict[str, ShardCommit | Fence] | None = None,
) -> dict[int, ShardCommit]:
    """The marker of each shard that one of the attempts has committed; the latest counts.

    Args:
        instance_uri: of the attempts.
        numbers: of the attempts.
        known: markers by their URI that were read before; those read now are added.
    """
    known = {} if known is None else known
    uris = []
    for number in sorted(numbers):
        folder = storage.join(storage.escape(instance_uri), f"attempt-{number}")
        uris += [file.uri for file in storage.find(storage.join(folder, "committed-*.json"))]

    def read(uri: str) -> None:
        marker = _load_marker(uri)
        if isinstance(marker, ShardCommit):
            # After a loss of power a marker may be there without its files.
            for file in marker.files:
                info = storage.stat_of(storage.join(instance_uri, file.name))
                if info is None or info.size != file.size:
                    return
        known[uri] = marker

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, [uri for uri in uris if uri not in known]))
    found = [known[uri] for uri in uris if uri in known]
    return {marker.shard: marker for marker in found if isinstance(marker, ShardCommit)}


def ending_uri(attempt_uri: str) -> str:
    """Where an attempt's ending stands."""
    return storage.join(attempt_uri, "ended.json")


def ending_of(attempt_uri: str) -> Ending | None:
    """How an attempt has ended; None while it hasn't."""
    uri = ending_uri(attempt_uri)
    return None if storage.stat_of(uri) is None else load_record(Ending, uri)


def fence(instance_uri: str, record: AttemptRecord, by: Fence) -> Ending:
    """Give an attempt up: when this returns, it can neither commit a shard nor publish.

    Args:
        instance_uri: of the attempt.
        record: how it was started.
        by: who gives it up, and why.

    Returns:
        How the attempt has ended: `published` if it was faster, and then a manifest stands; its
        own, unless another attempt published at the same moment.
    """
    attempt = Attempt(instance_uri, record)
    uri = ending_uri(attempt.uri)
    ending = Ending(outcome="fenced", at=by.fenced_at, fence=by)
    failpoint("fence: before")
    if not storage.create(uri, ending.to_json()):
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
        list(pool.map(lambda shard: storage.create(attempt._marker(shard), data), shards))
    failpoint("fence: markers taken")
    return ending


def _reach_of_walk(
    attempt: Attempt, committed: Mapping[int, ShardCommit], by: Fence
) -> Iterator[int]:
    """Shards that a walk may still commit; one is fenced already, so that it gets no further."""
    same_input = [
        record.number
        for record in attempts(attempt.instance_uri)
        if record.fingerprint == attempt.record.fingerprint
        and record.number < attempt.record.number
    ]
    kept = commits(attempt.instance_uri, same_input)
    yield from (shard for shard, commit in kept.items() if commit.totals.get("failed"))
    behind = (n for n in itertools.count() if n not in kept and n not in committed)
    first = next(n for n in behind if storage.create(attempt._marker(n), by.to_json()))
    yield from range(first + 1, first + WALK_WINDOW)


def complete_publication(instance_uri: str, ending: Ending) -> None:
    """Make the manifest of an attempt that has ended by publishing, if it isn't there."""
    if ending.manifest is None:
        return
    uri = storage.join(instance_uri, MANIFEST)
    if storage.create(uri, ending.manifest.to_json()):
        storage.persist([uri])


def load_manifest(uri: str) -> Manifest:
    """The manifest of a published instance.

    Args:
        uri: the instance's, or the manifest's own.

    Raises:
        UserError: nothing is published there, or the manifest is damaged.
    """
    manifest = find_manifest(uri)
    if manifest is None:
        raise UserError(
            f"{uri}: nothing is published there: no {MANIFEST}: check the URI, or run the "
            "workload to its end"
        )
    return manifest


def find_manifest(uri: str) -> Manifest | None:
    """The manifest of an instance, or None where nothing is published yet."""
    uri = uri if storage.base_name(uri) == MANIFEST else storage.join(uri, MANIFEST)
    return None if storage.stat_of(uri) is None else load_record(Manifest, uri)


def read_parquet(source: pa.NativeFile) -> pa.Table:
    """A whole file of an instance, read in the caller's own thread.

    `pyarrow.parquet.read_table` reads in threads of Arrow. One that lets go of a source made of
    Python's bytes while the interpreter ends aborts the process (Python 3.11, pyarrow 25).
    """
    return pq.ParquetFile(source).read(use_threads=False)


def _load_marker(uri: str) -> ShardCommit | Fence:
    data = storage.read_bytes(uri)
    try:
        is_fence = "fenced_at" in json.loads(data)
    except ValueError:
        is_fence = False
    if is_fence:
        return parse_record(Fence, uri, data)
    return parse_record(ShardCommit, uri, data)
