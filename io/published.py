"""Reading what was published, through its manifest and nothing else."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from ledgerbeam.io import storage
from ledgerbeam.io.attempts import MANIFEST, REPORT, load_manifest, read_parquet
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.records import FileRecord, Manifest

if TYPE_CHECKING:
    import pyarrow.dataset as ds

EXPIRED = "expired.json"
"""Stands in an instance whose results were deleted because they were due."""

_ADVICE = "restore it from a copy, or run the instance again under a new run number"


def read_published(uri: str, table: str | None = None) -> "ds.Dataset":
    """The rows that an instance has published.

    Files that the manifest doesn't name (of attempts that died, or were overtaken) are not seen.

    Args:
        uri: what a run gives as `published`.
        table: name of a further table, such as `entries`; by default the results.

    Raises:
        UserError: nothing is published there, or there is no such table.
    """
    import pyarrow.dataset as ds  # imports pandas, which is slow, where that is installed

    manifest = _load_unexpired(uri)
    instance = instance_of(uri)
    place = storage.local_path(instance).removeprefix("gs://").removeprefix("s3://")
    names = [storage.join(place, part.name) for part in published_parts(uri, manifest, table)]
    return ds.dataset(names, format="parquet", filesystem=_filesystem(instance))


def published_parts(uri: str, manifest: Manifest, table: str | None = None) -> list[FileRecord]:
    """The files of an instance's results, or of a further table, by shard.

    Raises:
        UserError: there is no such table.
    """
    if table is not None and table not in manifest.tables:
        known = ", ".join(manifest.tables) or "none"
        raise UserError(f"{uri}: there is no table {table} beside the results: there is {known}")
    return [commit.part if table is None else commit.tables[table] for commit in manifest.shards]


def published_reports(uri: str) -> dict[str, FileRecord]:
    """The reports that an instance has published, by the names that its `finish` gave them.

    `read_file` gives their content.

    Args:
        uri: what a run gives as `published`.

    Raises:
        UserError: nothing is published there, or the results have expired.
    """
    manifest = _load_unexpired(uri)
    return {file.name.partition(f"/{REPORT}")[2]: file for file in manifest.reports}


def copy_reports(uri: str, folder: Path) -> list[Path]:
    """Copy the reports that an instance has published, after checking that they are those.

    Args:
        uri: what a run gives as `published`.
        folder: where to; made if it isn't there.

    Returns:
        The copies.

    Raises:
        UserError: there are none, or one differs from its record, or can't be written.
    """
    copies = []
    for name, file in published_reports(uri).items():
        copy = folder / name
        data = read_file(uri, file)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        except OSError as error:
            raise UserError(f"cannot write {copy}: {error.strerror or error}") from error
        copies.append(copy)
    return copies


def read_part(uri: str, file: FileRecord) -> pa.Table:
    """A file that a manifest names, after checking that it is the one that was published.

    Args:
        uri: of the instance.
        file: its record in the manifest.

    Raises:
        UserError: the file is gone, or differs from its record.
    """
    place = storage.join(instance_of(uri), file.name)
    table = read_parquet(pa.BufferReader(read_file(uri, file)))
    if table.num_rows != file.rows:
        raise UserError(f"{place}: {table.num_rows:,} rows instead of {file.rows:,}: {_ADVICE}")
    return table


def read_file(uri: str, file: FileRecord) -> bytes:
    """The content of a file that a marker or manifest names, after checking that it is that.

    Args:
        uri: of the instance.
        file: its record.

    Raises:
        UserError: the file is gone, or differs from its record.
    """
    place = storage.join(instance_of(uri), file.name)
    if storage.stat_of(place) is None:
        raise UserError(f"{place}: the manifest names it, and it is gone: {_ADVICE}")
    data = storage.read_bytes(place)
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256 or len(data) != file.size:
        raise UserError(
            f"{place}: not what was published: sha256 {digest[:12]}… instead of "
            f"{file.sha256[:12]}…, {len(data):,} bytes instead of {file.size:,}: {_ADVICE}"
        )
    return data


def _load_unexpired(uri: str) -> Manifest:
    """The manifest of an instance whose results are still there."""
    manifest = load_manifest(uri)
    instance = instance_of(uri)
    if storage.stat_of(storage.join(instance, EXPIRED)) is not None:
        raise UserError(
            f"{instance}: its results have expired and were deleted: run the instance again "
            "under a new run number, and give a reason"
        )
    return manifest


def instance_of(uri: str) -> str:
    """The instance's URI, from its own or that of its manifest."""
    return uri.removesuffix(f"/{MANIFEST}").rstrip("/")


def _filesystem(uri: str) -> fs.FileSystem:
    """Arrow's own file system for a URI, set up like the clients in `storage`.

    Python's file objects would do too, but Arrow's threads may still hold one when the
    interpreter ends, and then abort the process.
    """
    if uri.startswith("gs://"):
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator is None:
            return fs.GcsFileSystem()
        url = urlsplit(emulator)
        return fs.GcsFileSystem(anonymous=True, scheme=url.scheme, endpoint_override=url.netloc)
    if uri.startswith("s3://"):
        return fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL"))
    return fs.LocalFileSystem()
