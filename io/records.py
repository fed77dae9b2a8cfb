"""What the commit protocol stores as JSON; `ledgerbeam.io.attempts` says when."""

import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ledgerbeam.io import storage
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import FileInfo

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
        rows: in the file; 0 where it isn't one of rows.
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
        tables: the parts of further tables, by their names.
        rejects: rows refused while the shard was executed, if any.
        outcomes: of components that did not just succeed, if any.
        key: columns of the part that name the component of a row.
        totals: of the shard, by name.
        position: of a walk, where it goes on behind this shard.
    """

    shard: int
    attempt: int
    code_version: str
    part: FileRecord
    tables: dict[str, FileRecord] = {}
    rejects: FileRecord | None = None
    outcomes: FileRecord | None = None
    key: list[str] = []
    totals: Totals
    position: dict[str, Any] | None = None

    @property
    def files(self) -> list[FileRecord]:
        """All files that the marker names, the part first."""
        files = (self.part, *self.tables.values(), self.rejects, self.outcomes)
        return [file for file in files if file is not None]


class AttemptRecord(Record):
    """How an attempt was started.

    Attributes:
        process: the workload's name.
        instance: its name, unique within the process.
        number: of the attempt, from 1.
        run: correlation id of the run in the registry; empty for a run without one.
        launch: number of the attempt in the registry; 0 for a run without one.
        started_at: time in UTC.
        code_version: of the package.
        parameters: as given, defaults included.
        inputs: the files, as they were then.
        shards: how many there are; None where only a walk's end will tell.
        plan: further facts that later attempts must keep to, such as the bounds of partitions.
        fingerprint: of all that decides the result; attempts that share it share shards.
    """

    process: str
    instance: str
    number: int
    run: str = ""
    launch: int = 0
    started_at: datetime.datetime
    code_version: str
    parameters: dict[str, Any]
    inputs: list[FileInfo]
    shards: int | None
    plan: dict[str, Any] = {}
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
        reports: files of the reduce step.
        columns: Arrow type of each column of the parts, in their order.
        tables: likewise of further tables, by their names.
        read: totals over the input, by name.
        totals: over the shards, by name.
        counts: of rows and components, by name.
        controls: the comparisons that let it be published.
    """

    attempt: AttemptRecord
    published_at: datetime.datetime
    shards: list[ShardCommit]
    rejects: list[FileRecord]
    reports: list[FileRecord] = []
    columns: dict[str, str]
    tables: dict[str, dict[str, str]] = {}
    read: Totals
    totals: Totals
    counts: Totals
    controls: list[Control]

    @property
    def files(self) -> list[FileRecord]:
        """All files that the manifest names, parts first."""
        parts = [commit.part for commit in self.shards]
        others = [file for commit in self.shards for file in commit.files[1:]]
        return [*parts, *others, *self.rejects, *self.reports]


class Fence(Record):
    """Stands where a marker would be made, so that an attempt that was given up can't make it.

    Attributes:
        fenced_at: time in UTC.
        who: fenced the attempt.
        why: for people.
    """

    fenced_at: datetime.datetime
    who: str
    why: str


class Ending(Record):
    """How an attempt ended: made once, by the attempt itself or by who gave it up.

    Attributes:
        outcome: `published`, `failed`, or `fenced` by somebody else.
        at: time in UTC.
        manifest: what it publishes; makes the instance's manifest even if its maker dies here.
        fence: who gave it up, and why.
        error: the line that it failed with.
    """

    outcome: Literal["published", "failed", "fenced"]
    at: datetime.datetime
    manifest: Manifest | None = None
    fence: Fence | None = None
    error: str = ""


def load_record(kind: type[StoredRecord], uri: str) -> StoredRecord:
    """Read a record.

    Raises:
        UserError: it is damaged, or isn't there.
    """
    return parse_record(kind, uri, storage.read_bytes(uri))


def parse_record(kind: type[StoredRecord], uri: str, data: bytes) -> StoredRecord:
    """The record that `data`, read from `uri`, holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        raise UserError(
            f"{uri}: damaged record: {problem['msg']} in {place}: restore it from a copy"
        ) from error
