"""The files of an archived batch, and the manifests that name them.

    OUTPUT/batch-00001/stream-1-00000-v1.parquet    messages of one topic as they were posted
                       inbox-1-00000-v1.parquet     when one consumer has handled which
                       withdrawn-1-00000-v1.parquet messages that were canceled or moved
                       manifest-00001.json          names them; of several, the last one counts

Each is made once, whole, and only if nothing of its name exists. Where payloads are erased, files
are written again under other names, and a further manifest names those; then the old ones go.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from ledgerbeam.io.commit.parquet import to_parquet
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import FileRecord
from ledgerbeam.io.errors import DamagedFileError, InputNotFoundError, StorageError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import stores, uris

ROWS_PER_FILE = 100_000

STREAM, INBOX, WITHDRAWN = "stream", "inbox", "withdrawn"
"""What a file has: a part of which table."""


class ArchivedFile(BaseModel):
    """A file of a batch.

    Attributes:
        table: `STREAM`, `INBOX` or `WITHDRAWN`.
        of: the name of the topic, of an inbox that of the consumer.
        first: the lowest `posted_at` of a part of the stream, in microseconds; of others 0.
        last: the highest one.
        file: the file itself.
    """

    table: str
    of: str
    first: int
    last: int
    file: FileRecord


class ArchiveManifest(BaseModel):
    """What a batch consists of.

    Attributes:
        version: 1, and one more whenever payloads have been erased.
        files: its files.
    """

    version: int
    files: list[ArchivedFile]


def write_file(
    batch: str, table: str, number: int, chunk: int, version: int, rows: pa.Table
) -> FileRecord:
    """Write rows as a file of a batch.

    Args:
        batch: URI of the batch.
        table: which table they are of.
        number: of the topic or the consumer.
        chunk: number of the file among those of the table.
        version: of the manifest that will name it.
        rows: the rows.

    Raises:
        StorageError: there is a file of that name.
    """
    name = f"{table}-{number}-{chunk:05d}-v{version}.parquet"
    data = to_parquet(rows)
    place = uris.join(batch, name)
    if not stores.create(place, data, is_private=True):
        raise StorageError(
            f"{place} exists, and isn't of this database's archive: give another --output",
            uri=place,
        )
    failpoint("archive.file-written")
    digest = hashlib.sha256(data).hexdigest()
    return FileRecord(name=name, rows=rows.num_rows, size=data.size, sha256=digest)


def write_manifest(batch: str, manifest: ArchiveManifest) -> None:
    """Publish a manifest, whose files would survive a loss of power by then.

    Raises:
        StorageError: there is one of that version.
    """
    stores.persist([uris.join(batch, each.file.name) for each in manifest.files])
    place = uris.join(batch, f"manifest-{manifest.version:05d}.json")
    if not stores.create(place, manifest.model_dump_json(indent=1).encode(), is_private=True):
        raise StorageError(
            f"{place} exists, and isn't of this database's archive: give another --output",
            uri=place,
        )
    stores.persist([place])
    failpoint("archive.manifest-written")


def find_manifest(batch: str) -> ArchiveManifest | None:
    """The last manifest of a batch; None if there is none.

    Raises:
        DamagedFileError: it can't be read.
    """
    found = stores.find(uris.join(uris.escape(batch), "manifest-*.json"))
    if not found:
        return None
    try:
        return ArchiveManifest.model_validate_json(stores.read_bytes(found[-1].uri))
    except ValidationError as error:
        problem = str(error.errors()[0]["msg"])
        raise DamagedFileError(
            f"{found[-1].uri}: {problem}: restore it from a copy", uri=found[-1].uri
        ) from None


def read_rows(batch: str, archived: ArchivedFile) -> pa.Table:
    """The rows of a file, after checking that it is unchanged.

    Raises:
        DamagedFileError: it is gone, or differs from its record.
    """
    return read_part(batch, archived.file)


def delete_files(batch: str, kept: Sequence[str] = ()) -> None:
    """Delete a batch's files, less those of these names; its manifests only if none is kept."""
    for info in stores.find(uris.join(uris.escape(batch), "*")):
        name = uris.base_name(info.uri)
        if name not in kept and not (kept and name.startswith("manifest-")):
            stores.delete(info.uri)


def stream_files(archive: str, topic: str, first: int, end: int) -> str:
    """The files with messages of a topic that were posted in a range of time, by commas.

    Args:
        archive: URI of an archive, or of one batch of it.
        topic: name of the topic.
        first: from this moment on, in microseconds.
        end: up to this moment, excluded.

    Raises:
        InputNotFoundError: there is no archive, or nothing of the topic in that range.
    """
    folder = uris.absolute(archive)
    found = stores.find(uris.join(uris.escape(folder), "**", "manifest-*.json"))
    batches = sorted({info.uri.rpartition("/")[0] for info in found})
    files = [
        uris.join(batch, each.file.name)
        for batch in batches
        for manifest in [find_manifest(batch)]
        if manifest is not None
        for each in manifest.files
        if (each.table, each.of) == (STREAM, topic) and each.first < end and each.last >= first
    ]
    if not files:
        what = f"nothing of {topic} in that range of time" if batches else "no archive"
        raise InputNotFoundError(
            f"{archive}: {what}: check the URI that ledgerbeam messages archive was given",
            file=archive,
        )
    return ",".join(files)
