"""Reading what was published, through its manifest and nothing else."""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from ledgerbeam.io import storage
from ledgerbeam.io.attempts import MANIFEST, FileRecord, Manifest, load_manifest
from ledgerbeam.io.errors import UserError


def read_published(uri: str) -> ds.Dataset:
    """The rows that an instance has published.

    Files that the manifest doesn't name (of attempts that died, or were overtaken) are not seen.

    Args:
        uri: what a run gives as `published`.

    Raises:
        UserError: nothing is published there.
    """
    manifest = load_manifest(uri)
    instance = instance_of(uri)
    names = [storage.join(instance, commit.part.name) for commit in manifest.shards]
    return ds.dataset(names, format="parquet", filesystem=pa_fs.PyFileSystem(_StorageHandler()))


def read_part(uri: str, file: FileRecord) -> pa.Table:
    """A file that a manifest names, after checking that it is the one that was published.

    Args:
        uri: of the instance.
        file: its record in the manifest.

    Raises:
        UserError: the file is gone, or differs from its record.
    """
    place = storage.join(instance_of(uri), file.name)
    advice = "restore it from a copy, or run the instance again under a new run number"
    if storage.stat_of(place) is None:
        raise UserError(f"{place}: the manifest names it, and it is gone: {advice}")
    data = storage.read_bytes(place)
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256 or len(data) != file.size:
        raise UserError(
            f"{place}: not what was published: sha256 {digest[:12]}… instead of "
            f"{file.sha256[:12]}…, {len(data):,} bytes instead of {file.size:,}: {advice}"
        )
    table: pa.Table = pq.read_table(pa.BufferReader(data))
    if table.num_rows != file.rows:
        raise UserError(f"{place}: {table.num_rows:,} rows instead of {file.rows:,}: {advice}")
    return table


def files_of(manifest: Manifest) -> list[FileRecord]:
    """All files that a manifest names, parts first."""
    parts = [commit.part for commit in manifest.shards]
    rejects = [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    return [*parts, *rejects, *manifest.rejects]


def instance_of(uri: str) -> str:
    """The instance's URI, from its own or that of its manifest."""
    return uri.removesuffix(f"/{MANIFEST}").rstrip("/")


class _StorageHandler(pa_fs.FileSystemHandler):
    """Lets Arrow's datasets read through `storage`, with the same clients and credentials."""

    def get_type_name(self) -> str:
        return "ledgerbeam"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StorageHandler)

    def __hash__(self) -> int:
        return hash(_StorageHandler)

    def get_file_info(self, paths: list[str]) -> list[pa_fs.FileInfo]:
        return [_file_info(path) for path in paths]

    def get_file_info_selector(self, selector: pa_fs.FileSelector) -> list[pa_fs.FileInfo]:
        raise NotImplementedError("only the files that a manifest names are read")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return storage.open_input(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return storage.open_input(path)

    def normalize_path(self, path: str) -> str:
        return path

    def create_dir(self, path: str, recursive: bool) -> None:
        raise NotImplementedError(_READ_ONLY)

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError(_READ_ONLY)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError(_READ_ONLY)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError(_READ_ONLY)

    def delete_file(self, path: str) -> None:
        raise NotImplementedError(_READ_ONLY)

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError(_READ_ONLY)

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError(_READ_ONLY)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(_READ_ONLY)

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(_READ_ONLY)


_READ_ONLY = "what is published is never changed"


def _file_info(path: str) -> pa_fs.FileInfo:
    info = storage.stat_of(path)
    if info is None:
        return pa_fs.FileInfo(path, pa_fs.FileType.NotFound)
    return pa_fs.FileInfo(path, pa_fs.FileType.File, size=info.size)
