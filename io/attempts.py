"""The commit protocol: what an attempt writes, and how one attempt wins.

    INSTANCE/
      attempt-1/attempt.json                  who started it, on which input, with how many shards
      attempt-1/part-00007-of-00064.parquet   a shard's result
      attempt-1/rejects-….parquet             refused rows, with file, row and reason
      attempt-1/committed-00007.json          the shard's marker
      manifest.json                           the instance's result

Every object is made once, whole, and only if nothing of its name exists (`storage.create`); none
is ever changed. A bundle may run twice, late, or on a worker that was given up: whoever makes the
marker first has committed the shard, and only what a marker names counts. Publishing is the
creation of the manifest, which names the markers' files; readers follow nothing else. Files are
made durable once, in front of the manifest: to wait for the disk file by file costs a tenth.

A later attempt on the same input takes over what earlier ones have committed. On another input
it starts afresh.
"""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ledgerbeam.io import storage
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import FileInfo

MANIFEST = "manifest.json"

Totals = dict[str, int]


class Record(BaseModel):
    """Base of everything that is stored as JSON; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> bytes:
        """The stored form."""
        return self.model_dump_json(indent=2).encode() + b"\n"


StoredRecord = TypeVar("StoredRecord", bound=Record)


class FileRecord(Record):
    """A file of the instance.

    Attributes:
        name: relative to the instance's URI.
        rows: in the file.
        size: bytes.
        sha256: of the content, in hexadecimal.
    """

    name: str
    rows: int
    size: int
    sha256: str


class ShardCommit(Record):
    """A shard's marker.

    Attributes:
        shard: its number, from 0.
        attempt: which attempt committed it.
        code_version: of the package that computed it.
        part: the result.
        rejects: rows refused while the shard was executed, if any.
        totals: of the shard, by name.
    """

    shard: int
    attempt: int
    code_version: str
    part: FileRecord
    rejects: FileRecord | None = None
    totals: Totals


class AttemptRecord(Record):
    """How an attempt was started.

    Attributes:
        process: the workload's name.
        instance: its name, unique within the process.
        number: of the attempt, from 1.
        started_at: time in UTC.
        code_version: of the package.
        parameters: as given, defaults included.
        inputs: the files, as they were then.
        shards: how many there are.
        fingerprint: of all that decides the result; attempts that share it share shards.
    """

    process: str
    instance: str
    number: int
    started_at: datetime.datetime
    code_version: str
    parameters: dict[str, Any]
    inputs: list[FileInfo]
    shards: int
    fingerprint: str


class Control(Record):
    """Two totals that must be equal, as decimal integers.

    Attributes:
        name: what is compared.
        expected: what went in.
        actual: what came out.
    """

    name: str
    expected: int
    actual: int

    @property
    def balances(self) -> bool:
        """Whether both are equal."""
        return self.expected == self.actual


class Manifest(Record):
    """The result of an instance: what readers follow.

    Attributes:
        attempt: the one that published.
        published_at: time in UTC.
        shards: the marker of each shard, by shard.
        rejects: files of rows refused while the input was read.
        columns: Arrow type of each column of the parts, in their order.
        read: totals over the input, by name.
        totals: over the shards, by name.
        counts: of rows and components, by name.
        controls: the comparisons that let it be published.
    """

    attempt: AttemptRecord
    published_at: datetime.datetime
    shards: list[ShardCommit]
    rejects: list[FileRecord]
    columns: dict[str, str]
    read: Totals
    totals: Totals
    counts: Totals
    controls: list[Control]

    @property
    def files(self) -> list[FileRecord]:
        """All files that the manifest names, parts first."""
        parts = [commit.part for commit in self.shards]
        rejects = [commit.rejects for commit in self.shards if commit.rejects is not None]
        return [*parts, *rejects, *self.rejects]


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

    def write_part(self, shard: int, table: pa.Table) -> FileRecord:
        """Write a shard's result. It counts only once `commit` has named it."""
        name = f"part-{shard:05d}-of-{self.record.shards:05d}"
        return self._write_parquet(name, table)

    def write_rejects(self, name: str, table: pa.Table) -> FileRecord:
        """Write refused rows, to `rejects-NAME.parquet`."""
        return self._write_parquet(f"rejects-{name}", table)

    def read_rows(self, file: FileRecord, rows: int) -> list[dict[str, Any]]:
        """The first rows of a Parquet file of the instance."""
        with storage.open_input(storage.join(self.instance_uri, file.name)) as source:
            table: pa.Table = pq.read_table(source)
        return table.slice(0, rows).to_pylist()

    def columns_of(self, file: FileRecord) -> dict[str, str]:
        """Arrow type by name of each column of a Parquet file of the instance."""
        with storage.open_input(storage.join(self.instance_uri, file.name)) as source:
            schema = pq.read_schema(source)
        return {field.name: str(field.type) for field in schema}

    def commit(self, commit: ShardCommit) -> ShardCommit:
        """Make the shard's marker, or give the one that another worker has made before."""
        uri = storage.join(self.uri, f"committed-{commit.shard:05d}.json")
        if storage.create(uri, commit.to_json()):
            return commit
        return _load(ShardCommit, uri)

    def publish(self, manifest: Manifest) -> None:
        """Make the manifest.

        Raises:
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
        named = [storage.join(self.instance_uri, file.name) for file in manifest.files]
        storage.persist(named)
        uri = storage.join(self.instance_uri, MANIFEST)
        if storage.create(uri, manifest.to_json()):
            storage.persist([uri])
            return
        published = load_manifest(self.instance_uri)
        if published.attempt.number != self.record.number:
            raise UserError(
                f"{self.instance_uri}: attempt {published.attempt.number} has published in the "
                f"meantime; nothing of attempt {self.record.number} counts: read that one"
            )

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
        data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}.parquet"
        if not storage.create(storage.join(self.uri, file), data) and (
            hashlib.sha256(storage.read_bytes(storage.join(self.uri, file))).hexdigest() != digest
        ):
            # An earlier try died between its file and its marker, and gave other bytes.
            file = f"{name}.{digest[:12]}.parquet"
            storage.create(storage.join(self.uri, file), data)
        relative = f"attempt-{self.record.number}/{file}"
        return FileRecord(name=relative, rows=table.num_rows, size=data.size, sha256=digest)


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def start_attempt(instance_uri: str, draft: AttemptRecord) -> Attempt:
    """Make an attempt of the draft's number, or of the next one that no other launcher has."""
    attempt = Attempt(instance_uri, draft)
    while not storage.create(storage.join(attempt.uri, "attempt.json"), attempt.record.to_json()):
        number = attempt.record.number + 1
        attempt = Attempt(instance_uri, draft.model_copy(update={"number": number}))
    return attempt


def attempts(instance_uri: str) -> list[AttemptRecord]:
    """All attempts of an instance, by number."""
    found = storage.find(storage.join(storage.escape(instance_uri), "attempt-*", "attempt.json"))
    return sorted(
        (_load(AttemptRecord, file.uri) for file in found), key=lambda record: record.number
    )


def commits(instance_uri: str, numbers: Sequence[int]) -> dict[int, ShardCommit]:
    """The marker of each shard that one of the attempts has committed; the earliest counts."""
    found: dict[int, ShardCommit] = {}
    for number in sorted(numbers, reverse=True):
        folder = storage.join(storage.escape(instance_uri), f"attempt-{number}")
        for file in storage.find(storage.join(folder, "committed-*.json")):
            commit = _load(ShardCommit, file.uri)
            # After a loss of power a marker may be there without its part.
            part = storage.stat_of(storage.join(instance_uri, commit.part.name))
            if part is not None and part.size == commit.part.size:
                found[commit.shard] = commit
    return found


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
    return None if storage.stat_of(uri) is None else _load(Manifest, uri)


def _load(kind: type[StoredRecord], uri: str) -> StoredRecord:
    try:
        return kind.model_validate_json(storage.read_bytes(uri))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise UserError(
            f"{uri}: damaged record: {problem['msg']} in {place}: restore it from a copy"
        ) from error
