"""Files of this machine as objects."""

import errno
import glob as globbing
import os
import stat
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ledgerbeam.io import private
from ledgerbeam.io.errors import StorageError, UserError
from ledgerbeam.io.storage.base import FileInfo
from ledgerbeam.io.storage.uris import local_path

if TYPE_CHECKING:
    import pyarrow as pa

_SYNCING_THREADS = 8


class LocalStore:
    """Files of this machine, as plain paths or `file://` URIs."""

    def find(self, pattern: str) -> list[FileInfo]:
        """See `Store.find`."""
        pattern = _with_folders(local_path(pattern))
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

    def open_input(self, uri: str) -> "pa.NativeFile":
        """See `Store.open_input`."""
        import pyarrow as pa  # not needed by programs that read no tables

        path = local_path(uri)
        try:
            return pa.OSFile(path, "rb")
        except OSError as error:
            raise _local_error("read", path, error) from error

    def read_bytes(self, uri: str) -> bytes:
        """See `Store.read_bytes`."""
        path = local_path(uri)
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise _local_error("read", path, error) from error

    def create(self, uri: str, data: "bytes | pa.Buffer", is_private: bool = False) -> bool:
        """See `Store.create`. Relies on `link(2)` being atomic."""
        path = Path(local_path(uri))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            if is_private:
                private.make_folder(path.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                mode = 0o666 & ~private.umask() if is_private else 0o666
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
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
        # In parallel: the file system's journal then takes many files at once. A thousand small
        # files take a quarter of a second instead of five.
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
    return StorageError(f"cannot {verb} {path}: {error.strerror or error}: {advice}", uri=path)


def _with_folders(pattern: str) -> str:
    """The pattern, in which a folder that exists by its name is meant by it: `day[1]/*.csv`."""
    parts = pattern.split("/")
    known = 0
    while known < len(parts) - 1 and os.path.isdir("/".join(parts[: known + 1]) or "/"):
        known += 1
    return "/".join([*map(globbing.escape, parts[:known]), *parts[known:]])
