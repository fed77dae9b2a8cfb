"""Object storage by URI: local paths, `gs://` and `s3://`.

The commit protocol and the readers need six operations: `find`, `stat_of`, `open_input`, `create`,
`persist` and `delete`. All else depends on `create`: it makes the whole object or nothing, and only
if no object has that name yet. Each store ensures that in its own way:

- a local file is written under a temporary name and linked to its own name (`link(2)` fails where
  the name exists);
- Google Cloud Storage refuses the upload by the precondition `ifGenerationMatch=0`;
- Amazon S3 refuses it by `If-None-Match: *`.

The clients of the object stores are imported only when a URI of theirs is used.
"""

import functools
import glob as globbing
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ledgerbeam.io.errors import StorageError
from ledgerbeam.io.storage.base import FileInfo, Store
from ledgerbeam.io.storage.local import LocalStore
from ledgerbeam.io.storage.uris import scheme_of

if TYPE_CHECKING:
    import pyarrow as pa


def find(pattern: str) -> list[FileInfo]:
    """Objects that match `pattern`, ordered by URI; see `Store.find`.

    A pattern without wildcards is the object of that name, or no object.
    """
    if globbing.has_magic(pattern):
        return _store(scheme_of(pattern)).find(pattern)
    info = stat_of(pattern)
    return [] if info is None else [info]


def stat_of(uri: str) -> FileInfo | None:
    """The object of exactly that name, or None; see `Store.stat`."""
    return _store(scheme_of(uri)).stat(uri)


def open_input(uri: str) -> "pa.NativeFile":
    """A seekable reader of the object; see `Store.open_input`."""
    return _store(scheme_of(uri)).open_input(uri)


def read_bytes(uri: str) -> bytes:
    """The whole object; see `Store.read_bytes`."""
    return _store(scheme_of(uri)).read_bytes(uri)


def create(uri: str, data: "bytes | pa.Buffer", is_private: bool = False) -> bool:
    """Create the object unless one exists; see `Store.create`."""
    return _store(scheme_of(uri)).create(uri, data, is_private)


def persist(uris: Sequence[str]) -> None:
    """Return when these objects of one store would survive a loss of power; see `Store.persist`."""
    if uris:
        _store(scheme_of(uris[0])).persist(uris)


def delete(uri: str) -> None:
    """Remove the object; see `Store.delete`."""
    _store(scheme_of(uri)).delete(uri)


@functools.cache
def _store(scheme: str) -> Store:
    try:
        if scheme == "file":
            return LocalStore()
        if scheme == "gs":
            from ledgerbeam.io.storage.gcs import GoogleCloudStore

            return GoogleCloudStore()
        if scheme == "s3":
            from ledgerbeam.io.storage.s3 import S3Store

            return S3Store()
    except ModuleNotFoundError as error:
        extra = {"gs": "gcp", "s3": "aws"}[scheme]
        raise StorageError(
            f"{scheme}:// needs the package {error.name}, which is not installed: "
            f"pip install 'ledgerbeam[{extra}]'",
            uri=f"{scheme}://",
        ) from error
    raise StorageError(
        f"no storage is known for {scheme}://: use a local path, file://, gs:// or s3://",
        uri=f"{scheme}://",
    )


# A forked process must not use its parent's connections.
os.register_at_fork(after_in_child=_store.cache_clear)
