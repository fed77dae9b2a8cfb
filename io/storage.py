"""Object storage by URI: local paths, `gs://` and `s3://`.

Six verbs are all that the commit protocol and the readers need: `find`, `stat_of`, `open_input`,
`create`, `persist` and `delete`. `create` is the one that everything rests on: it makes the whole
object or nothing, and only if nothing has that name yet. Each store has its own way to promise
that:

- a local file is written under a temporary name and linked to its own name (`link(2)` fails where
  the name exists);
- Google Cloud Storage refuses the upload by the precondition `ifGenerationMatch=0`;
- Amazon S3 refuses it by `If-None-Match: *`.

The clients of the object stores are imported only when a URI of theirs is used.
"""

import errno
import functools
import glob as globbing
import os
import stat
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from ledgerbeam.io.errors import UserError

_SYNCING_THREADS = 8


@dataclass(frozen=True, order=True)
class FileInfo:
    """An object as it stood when it was looked at.

    Attributes:
        uri: where it is.
        size: bytes.
        version: changes whenever the content does: generation, ETag, or for a local file its
            modification time in nanoseconds and its inode.
    """

    uri: str
    size: int
    version: str


class Store(Protocol):
    """What a kind of storage has to offer. All methods raise `UserError` where access fails."""

    def find(self, pattern: str) -> list[FileInfo]:
        """Objects whose URI matches `pattern` (`*`, `?`, `[…]`, and `**` for any depth), by URI.

        A wildcard doesn't match the dot at the beginning of a hidden name.
        """

    def stat(self, uri: str) -> FileInfo | None:
        """The object of exactly that name, or None."""

    def open_input(self, uri: str) -> pa.NativeFile:
        """A seekable reader. Reading a range costs about that range, not the whole object."""

    def create(self, uri: str, data: bytes | pa.Buffer) -> bool:
        """Make the object, whole, unless one exists. False where one existed: it is untouched.

        A store that failed to answer may have made the object all the same. A second try then
        gives False, and the caller compares what is there with what it wanted.
        """

    def persist(self, uris: Sequence[str]) -> None:
        """Return when these objects would survive a loss of power."""

    def delete(self, uri: str) -> None:
        """Remove the object. No error where there is none."""


class LocalStore:
    """Files of this machine, as plain paths or `file://` URIs."""

    def find(self, pattern: str) -> list[FileInfo]:
        """See `Store.find`."""
        pattern = local_path(pattern)
        paths = globbing.glob(pattern, recursive=True)
        return [info for path in sorted(paths) if (info := self.stat(path)) is not None]

    def stat(self, uri: str) -> FileInfo | None:
        """See `Store.stat`."""
        path = local_path(uri)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _local_error("read", path, error) from error
        if stat.S_ISDIR(status.st_mode):
            return None
        return FileInfo(path, status.st_size, f"{status.st_mtime_ns}-{status.st_ino}")

    def open_input(self, uri: str) -> pa.NativeFile:
        """See `Store.open_input`."""
        path = local_path(uri)
        try:
            return pa.OSFile(path, "rb")
        except OSError as error:
            raise _local_error("read", path, error) from error

    def create(self, uri: str, data: bytes | pa.Buffer) -> bool:
        """See `Store.create`. Relies on `link(2)` being atomic."""
        path = Path(local_path(uri))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _local_error("write", str(path), error) from error
        return True

    def persist(self, uris: Sequence[str]) -> None:
        """See `Store.persist`. Syncs the files, then the folders that hold their names."""
        paths = [Path(local_path(uri)) for uri in uris]
        # Side by side: a file system's journal then takes many in one go, a thousand small files
        # in a quarter of a second and not in five.
        with ThreadPoolExecutor(min(len(paths), _SYNCING_THREADS)) as pool:
            list(pool.map(_sync, paths))
        for folder in sorted({path.parent for path in paths}):
            _sync(folder)

    def delete(self, uri: str) -> None:
        """See `Store.delete`."""
        try:
            Path(local_path(uri)).unlink(missing_ok=True)
        except OSError as error:
            raise _local_error("delete", uri, error) from error


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _local_error("write", str(path), error) from error


def local_path(uri: str) -> str:
    """The path of a `file://` URI, or `uri` itself where it is a path already."""
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else uri


def is_local(uri: str) -> bool:
    """Whether `uri` names a file of this machine."""
    return _scheme(uri) == "file"


def join(uri: str, *names: str) -> str:
    """`uri/name/…`, with single slashes."""
    return "/".join([uri.rstrip("/"), *names])


def escape(uri: str) -> str:
    """A pattern that matches just `uri`, to which more can be joined."""
    return globbing.escape(uri)


def absolute(uri: str) -> str:
    """`uri` itself, or the absolute path of a local one: workers may run in other folders."""
    return os.path.abspath(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def base_name(uri: str) -> str:
    """What follows the last slash."""
    return uri.rsplit("/", 1)[-1]


def find(pattern: str) -> list[FileInfo]:
    """Objects that match `pattern`, ordered by URI; see `Store.find`.

    A pattern without wildcards is the object of that name, or no object.
    """
    if globbing.has_magic(pattern):
        return _store(_scheme(pattern)).find(pattern)
    info = stat_of(pattern)
    return [] if info is None else [info]


def stat_of(uri: str) -> FileInfo | None:
    """The object of exactly that name, or None; see `Store.stat`."""
    return _store(_scheme(uri)).stat(uri)


def open_input(uri: str) -> pa.NativeFile:
    """A seekable reader of the object; see `Store.open_input`."""
    return _store(_scheme(uri)).open_input(uri)


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    with open_input(uri) as file:
        return bytes(file.read())


def create(uri: str, data: bytes | pa.Buffer) -> bool:
    """Make the object unless one exists; see `Store.create`."""
    return _store(_scheme(uri)).create(uri, data)


def persist(uris: Sequence[str]) -> None:
    """Return when these objects of one store would survive a loss of power; see `Store.persist`."""
    if uris:
        _store(_scheme(uris[0])).persist(uris)


def delete(uri: str) -> None:
    """Remove the object; see `Store.delete`."""
    _store(_scheme(uri)).delete(uri)


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else "file"


@functools.cache
def _store(scheme: str) -> Store:
    try:
        if scheme == "file":
            return LocalStore()
        if scheme == "gs":
            from ledgerbeam.io.gcs import GoogleCloudStore

            return GoogleCloudStore()
        if scheme == "s3":
            from ledgerbeam.io.s3 import S3Store

            return S3Store()
    except ModuleNotFoundError as error:
        extra = {"gs": "gcp", "s3": "aws"}[scheme]
        raise UserError(
            f"{scheme}:// needs the package {error.name}, which is not installed: "
            f"pip install 'ledgerbeam[{extra}]'"
        ) from error
    raise UserError(
        f"no storage is known for {scheme}://: use a local path, file://, gs:// or s3://"
    )


# A forked process would write into the same connections as its parent.
os.register_at_fork(after_in_child=_store.cache_clear)


def _local_error(verb: str, path: str, error: OSError) -> UserError:
    advice = {
        errno.ENOENT: "check the path",
        errno.EACCES: "check the permissions",
        errno.EROFS: "the file system is read-only, choose another place",
        errno.ENOSPC: "free some space on that disk, then run again",
        errno.EDQUOT: "the quota is used up, free some space, then run again",
        errno.EEXIST: "a part of the path is a file, choose another place",
        errno.ENOTDIR: "a part of the path is a file, choose another place",
        errno.EISDIR: "it is a folder, name a file",
    }.get(error.errno or 0, "see the reason")
    return UserError(f"cannot {verb} {path}: {error.strerror or error}: {advice}")
