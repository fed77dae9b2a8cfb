"""Reading published results, only through their manifest."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from ledgerbeam.io.commit.attempts import MANIFEST, REPORT, digest_of, load_manifest
from ledgerbeam.io.commit.parquet import read_parquet
from ledgerbeam.io.commit.records import FileRecord, Manifest
from ledgerbeam.io.errors import (
    DamagedFileError,
    ParameterError,
    ResultsExpiredError,
    StorageError,
    UserError,
)
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo

if TYPE_CHECKING:
    import pyarrow.dataset as ds

EXPIRED = "expired.json"
"""Name of the object that marks an instance whose results have expired and were deleted."""

_THREADS = 8
_ADVICE = "restore it from a copy, or run the instance again under a new run number"


def read_published(uri: str, table: str | None = None, verify: bool = False) -> "ds.Dataset":
    """The rows that an instance has published, as a dataset of pyarrow.

        read_published("results/delivery-marking/2026-11-20").to_table(columns=["id"])

    It reads the files that the manifest names, and no others: what attempts that failed have left
    isn't part of the dataset.

    Args:
        uri: the instance's URI, as `instance_uri` gives it.
        table: name of an extra table, such as `entries`; by default the results.
        verify: whether to read each file once in front, and compare it with what was published by
            its hash.

    Raises:
        UserError: nothing is published there, or there is no such table.
        DamagedFileError: a file is gone, or isn't what was published.
    """
    import pyarrow.dataset as ds  # imports pandas if it is installed, which is slow

    manifest = _load_unexpired(uri)
    instance = instance_of(uri)
    parts = published_parts(uri, manifest, table)
    if verify:
        check_files(instance, parts)
    places = [uris.inside(instance, part.name) for part in parts]
    names = [place.removeprefix("gs://").removeprefix("s3://") for place in places]
    return ds.dataset(names, format="parquet", filesystem=_filesystem(instance))


def published_parts(uri: str, manifest: Manifest, table: str | None = None) -> list[FileRecord]:
    """The files of an instance's results, or of an extra table, by shard.

    Raises:
        ParameterError: there is no such table.
    """
    if table is not None and table not in manifest.tables:
        known = ", ".join(manifest.tables) or "none"
        raise ParameterError(
            f"{uri}: there is no table {table} beside the results: there is {known}",
            parameter="table",
            value=table,
        )
    return [commit.part if table is None else commit.tables[table] for commit in manifest.shards]


def published_reports(uri: str) -> dict[str, FileRecord]:
    """The reports that an instance has published, by the names that its `finish` gave them.

    Args:
        uri: the instance's URI, as `instance_uri` gives it.

    Raises:
        NotPublishedError: nothing is published there.
        ResultsExpiredError: the results have expired.
    """
    manifest = _load_unexpired(uri)
    return {file.name.partition(f"/{REPORT}")[2]: file for file in manifest.reports}


def copy_reports(uri: str, folder: Path) -> list[Path]:
    """Copy the reports that an instance has published, after checking that they are unchanged.

    Args:
        uri: the URI that a run has as `published`.
        folder: the folder to copy to; created if it doesn't exist.

    Returns:
        Paths of the copies.

    Raises:
        UserError: there are no reports, one differs from its record, its name leads out of the
            folder, or a copy can't be written.
    """
    copies = []
    for name, file in published_reports(uri).items():
        copy = Path(uris.inside(str(folder), name))
        data = read_file(uri, file)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        except OSError as error:
            raise StorageError(
                f"cannot write {copy}: {error.strerror or error}", uri=str(copy)
            ) from error
        copies.append(copy)
    return copies


def read_part(uri: str, file: FileRecord, keeps_dictionaries: bool = False) -> pa.Table:
    """The rows of a file that a manifest names, after checking that the file is unchanged.

    Args:
        uri: URI of the instance.
        file: the file's record in the manifest.
        keeps_dictionaries: whether texts whose values repeat come dictionary-encoded.

    Raises:
        DamagedFileError: the file is gone, or differs from its record.
    """
    place = uris.inside(instance_of(uri), file.name)
    table = read_parquet(pa.BufferReader(read_file(uri, file)), keeps_dictionaries)
    if table.num_rows != file.rows:
        raise DamagedFileError(
            f"{place}: {table.num_rows:,} rows instead of {file.rows:,}: {_ADVICE}", uri=place
        )
    return table


def read_file(uri: str, file: FileRecord) -> bytes:
    """The content of a file that a marker or manifest names, after checking it by its hash.

    Args:
        uri: URI of the instance.
        file: the file's record.

    Raises:
        DamagedFileError: the file is gone, or differs from its record.
    """
    place = uris.inside(instance_of(uri), file.name)
    if stores.stat_of(place) is None:
        raise _gone(place)
    data = stores.read_bytes(place)
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256 or len(data) != file.size:
        raise _changed(place, file, len(data), digest)
    return data


def check_files(uri: str, files: Sequence[FileRecord], by_hash: bool = True) -> list[FileInfo]:
    """Compare files with their records, several at a time.

    Args:
        uri: URI of the instance.
        files: their records.
        by_hash: whether they are read for that; else only their sizes are compared.

    Returns:
        The files, as they were before they were compared.

    Raises:
        DamagedFileError: the first one that is gone, or differs from its record.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda file: _check_file(uri, file, by_hash), files))


def differing_files(uri: str, files: Sequence[FileRecord]) -> list[UserError]:
    """What `check_files` would say of each file that is gone, can't be read, or has changed."""

    def difference(file: FileRecord) -> UserError | None:
        try:
            _check_file(uri, file)
        except UserError as error:
            return error
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return [error for error in pool.map(difference, files) if error is not None]


def _check_file(uri: str, file: FileRecord, by_hash: bool = True) -> FileInfo:
    place = uris.inside(instance_of(uri), file.name)
    info = stores.stat_of(place)
    if info is None:
        raise _gone(place)
    digest = digest_of(place) if by_hash and info.size == file.size else ""
    if info.size != file.size or (by_hash and digest != file.sha256):
        raise _changed(place, file, info.size, digest)
    return info


def _gone(place: str) -> DamagedFileError:
    return DamagedFileError(f"{place}: the manifest names it, and it is gone: {_ADVICE}", uri=place)


def _changed(place: str, file: FileRecord, size: int, digest: str) -> DamagedFileError:
    found = f"sha256 {digest[:12]}… instead of {file.sha256[:12]}…, " if digest else ""
    return DamagedFileError(
        f"{place}: not what was published: {found}{size:,} bytes instead of {file.size:,}: "
        f"{_ADVICE}",
        uri=place,
    )


def _load_unexpired(uri: str) -> Manifest:
    """The manifest of an instance whose results haven't expired."""
    manifest = load_manifest(uri)
    instance = instance_of(uri)
    if stores.stat_of(uris.join(instance, EXPIRED)) is not None:
        raise ResultsExpiredError(
            f"{instance}: its results have expired and were deleted: run the instance again "
            "under a new run number, and give a reason",
            uri=instance,
        )
    return manifest


def instance_of(uri: str) -> str:
    """The instance's URI, given that URI or its manifest's."""
    return uri.removesuffix(f"/{MANIFEST}").rstrip("/")


def _filesystem(uri: str) -> fs.FileSystem:
    """Arrow's own file system for a URI, set up like the clients in `storage`.

    Python's file objects would work too, but if one of Arrow's threads still holds one when the
    interpreter ends, the process aborts.
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
