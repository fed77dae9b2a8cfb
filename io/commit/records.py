"""The records that the commit protocol stores as JSON; see `ledgerbeam.io.commit.attempts`.

Each carries a digest of itself: of its other fields as JSON with sorted keys and no blanks. So a
record that lost a key or whose number changed on the disk is never taken for a whole one. It is no
signature: whoever may write the record may write its digest.
"""

import datetime
import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ledgerbeam.io.errors import DamagedFileError
from ledgerbeam.io.parsing import parse_json
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo

Totals = dict[str, Annotated[int, Field(ge=-(10**60), le=10**60)]]
"""Totals by name: counts, sums of amounts in their smallest unit, and hashes."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of rows or bytes."""

MAX_SHARDS = 1_000_000
"""More than any input needs; a bound on what a damaged record can have others loop over."""

_DIGEST = "digest"


class Record(BaseModel):
    """Base of everything that is stored as JSON; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    later_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out while they are None: programs of before read the record then."""

    def to_json(self) -> bytes:
        """The stored form, with its digest."""
        fields = json.loads(self.model_dump_json())
        for name in self.later_fields:
            if fields[name] is None:
                del fields[name]
        fields[_DIGEST] = hashlib.sha256(_canonical(fields)).hexdigest()
        return json.dumps(fields, indent=2, ensure_ascii=False).encode() + b"\n"


StoredRecord = TypeVar("StoredRecord", bound=Record)


class FileRecord(Record):
    """A file of the instance.

    Attributes:
        name: its path relative to the instance's URI.
        rows: number of rows; 0 if the file has no rows.
        size: size in bytes.
        sha256: hash of the content, in hexadecimal.
    """

    name: Annotated[str, AfterValidator(uris.relative)]
    rows: Count
    size: Count
    sha256: str


class ShardCommit(Record):
    """A shard's marker, which commits it.

    Attributes:
        shard: its number, from 0.
        attempt: which attempt committed it.
        code_version: of the package that computed it.
        part: the result.
        tables: the parts of extra tables, by their names.
        rejects: rows rejected while the shard was executed, if any.
        outcomes: of components that did not just succeed, if any.
        key: columns of the part that name the component of a row.
        totals: of the shard, by name.
        position: of a walk, where it goes on behind this shard.
    """

    shard: Count
    attempt: Count
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
        instance: the instance's name, unique within the process.
        number: the attempt's number, from 1.
        run: correlation id of the run in the registry; empty for a run without a registry.
        launch: number of the attempt in the registry; 0 for a run without a registry.
        started_at: time in UTC.
        code_version: version of the package.
        parameters: the parameters as given, defaults included.
        inputs: the input files, as they were at the start.
        shards: number of shards; None if only the end of a walk will show it.
        plan: other facts that later attempts must adopt, such as the bounds of partitions.
        fingerprint: hash of all that determines the result; attempts with the same fingerprint
            share shards.
        total_decimals: number of decimals of each total of money without a currency, by the total's
            name; for showing it to people.
    """

    process: str
    instance: str
    number: int = Field(ge=1, lt=2**31)
    run: str = ""
    launch: int = Field(default=0, ge=0, lt=2**31)
    started_at: AwareDatetime
    code_version: str
    parameters: dict[str, Any]
    inputs: list[FileInfo]
    shards: Annotated[int, Field(ge=0, le=MAX_SHARDS)] | None
    plan: dict[str, Any] = {}
    fingerprint: str
    total_decimals: dict[str, Annotated[int, Field(ge=0, le=76)]] = {}


class Control(Record):
    """Two totals that must be equal.

    Attributes:
        name: name of the comparison.
        expected: the total of what went in.
        actual: the total of what came out.
    """

    name: str
    expected: int
    actual: int

    @property
    def balances(self) -> bool:
        """Whether both are equal."""
        return self.expected == self.actual


class Volume(Record):
    """How many rows were found, and how many were expected.

    Attributes:
        rows: those of the run's date that fit the contract.
        min_rows: the fewest that let it be published.
        change: the largest change that did, as a share such as `50%`; None for no limit.
        compared_with: name of the instance that the change is from; None if there was none.
        rows_before: how many rows that one has.
        newest: the last date in the columns that inputs are dated by; None if there is none.
        max_age_days: how long before the business date it could be, in days; None for no limit.
    """

    rows: int
    min_rows: int
    change: str | None = None
    compared_with: str | None = None
    rows_before: int | None = None
    newest: datetime.date | None = None
    max_age_days: int | None = None


class Manifest(Record):
    """The published result of an instance, from which readers find all its files.

    Attributes:
        attempt: number of the attempt that published.
        published_at: time in UTC.
        shards: the markers of all shards, in the order of their numbers.
        rejects: files of rows that were rejected while the input was read.
        reports: files of the reduce step.
        columns: Arrow type of each column of the parts, in their order.
        tables: the same of the extra tables, by the table's name.
        read: totals over the input, by name.
        totals: totals over the shards, by name.
        counts: numbers of rows and components, by name.
        controls: the comparisons that let it be published.
        volume: how many rows were found and expected; None if nothing was expected.
    """

    attempt: AttemptRecord
    published_at: AwareDatetime
    shards: list[ShardCommit]
    rejects: list[FileRecord]
    reports: list[FileRecord] = []
    columns: dict[str, str]
    tables: dict[str, dict[str, str]] = {}
    read: Totals
    totals: Totals
    counts: Totals
    controls: list[Control]
    volume: Volume | None = None

    @property
    def files(self) -> list[FileRecord]:
        """All files that the manifest names, parts first."""
        parts = [commit.part for commit in self.shards]
        others = [file for commit in self.shards for file in commit.files[1:]]
        return [*parts, *others, *self.rejects, *self.reports]


class Fence(Record):
    """Takes the place of a marker, so that an attempt that was given up can't create it.

    Attributes:
        fenced_at: time in UTC.
        who: who fenced the attempt.
        why: the reason, for people.
    """

    fenced_at: AwareDatetime
    who: str
    why: str


class Ending(Record):
    """How an attempt ended: created once, by the attempt itself or by the process that fenced it.

    Attributes:
        outcome: `published`, `failed`, or `fenced` by another process.
        at: time in UTC.
        manifest: the manifest to publish; if the attempt dies before it has created the instance's
            manifest, another process creates it from this one.
        fence: who gave the attempt up, and why.
        error: the error message that it failed with, in one line.
    """

    outcome: Literal["published", "failed", "fenced"]
    at: AwareDatetime
    manifest: Manifest | None = None
    fence: Fence | None = None
    error: str = ""


def load_record(kind: type[StoredRecord], uri: str) -> StoredRecord:
    """Read a record.

    Raises:
        DamagedFileError: it is damaged.
        StorageError: it doesn't exist, or can't be read.
    """
    return parse_record(kind, uri, stores.read_bytes(uri))


def parse_record(kind: type[StoredRecord], uri: str, data: bytes) -> StoredRecord:
    """The record that `data`, read from `uri`, holds.

    Raises:
        DamagedFileError: it is damaged.
    """
    try:
        fields = parse_json(data)
        if isinstance(fields, dict) and _DIGEST in fields:  # those of versions before have none
            digest = fields.pop(_DIGEST)
            if digest != hashlib.sha256(_canonical(fields)).hexdigest():
                raise damaged_record(uri, "its content doesn't fit its digest")
            return kind.model_validate(fields)
    except ValidationError as error:
        raise _misfit(uri, error) from error
    except ValueError:
        pass  # what is wrong with it is said below
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _misfit(uri, error) from error


def _misfit(uri: str, error: ValidationError) -> DamagedFileError:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the whole"
    return damaged_record(uri, f"{problem['msg']} in {place}")


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def damaged_record(uri: str, how: str) -> DamagedFileError:
    """The error for a record that isn't what was written, in one line."""
    how = " ".join(how.split())
    return DamagedFileError(f"{uri}: damaged record: {how}: restore it from a copy", uri=uri)
