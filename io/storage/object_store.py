"""What the object stores have in common: names, patterns, reading by ranges, and errors."""

import fnmatch
import glob as globbing
import io
import re
from collections.abc import Callable

from ledgerbeam.io.errors import StorageError, UserError

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0

# The metadata field in which an object carries the token of the call that created it.
CREATED_BY = "ledgerbeam-created-by"

# A read at a new position fetches little more than was asked for; each following sequential read
# fetches twice as much ahead, so that a scan doesn't wait for round trips.
_MIN_AHEAD = 1 << 18
_MAX_AHEAD = 1 << 24


def split(uri: str) -> tuple[str, str]:
    """The bucket and the name of the object in it (or a pattern of names).

    Raises:
        StorageError: one of the two is missing, or the bucket is a pattern or no valid name.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    if not name or not (bucket[:1].isalnum() and bucket[-1:].isalnum()):
        raise StorageError(
            f"{uri} names no object: write {scheme}://BUCKET/NAME, the bucket in full", uri=uri
        )
    return bucket, name


def literal_prefix(pattern: str) -> str:
    """The literal text that every name that matches `pattern` begins with."""
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def matches(name: str, pattern: str) -> bool:
    """Whether the name of an object matches, by the rules of `glob.glob(recursive=True)`.

    `*`, `?` and `[…]` stay within one part of the path, `**` is any number of parts, and none of
    them stands for a part that begins with a dot, or for the empty name of a folder's placeholder.
    """
    return _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(names: list[str], patterns: list[str]) -> bool:
    if not names or not patterns:
        return not names and not patterns
    name, pattern = names[0], patterns[0]
    if not globbing.has_magic(pattern):
        return name == pattern and _parts_match(names[1:], patterns[1:])
    if pattern == "**":
        if patterns[1:] and _parts_match(names, patterns[1:]):
            return True
        return _is_visible(name) and (
            names[1:] == patterns[1:] == [] or _parts_match(names[1:], patterns)
        )
    return (
        (_is_visible(name) or pattern.startswith("."))
        and fnmatch.fnmatchcase(name, pattern)
        and _parts_match(names[1:], patterns[1:])
    )


def _is_visible(name: str) -> bool:
    return name != "" and not name.startswith(".")


def access_error(verb: str, uri: str, reason: object, advice: str) -> UserError:
    """The error for an operation that a store refused or never answered."""
    return StorageError(f"cannot {verb} {uri}: {str(reason).rstrip('.')}: {advice}", uri=uri)


def missing_error(uri: str) -> UserError:
    """The error for opening an object that doesn't exist."""
    return access_error("read", uri, "no such object", "check the names of bucket and object")


def changed_error(uri: str, version: str) -> UserError:
    """The error for reading an object that has changed since it was opened."""
    return access_error(
        "read",
        uri,
        f"it was replaced or deleted while it was read (opened as version {version})",
        "leave inputs alone while a run reads them, then run again",
    )


class RangeReader(io.RawIOBase):
    """A seekable reader over `fetch(start, end)`, which returns exactly those bytes.

    One `read` costs at most one fetch, and none if an earlier fetch has its bytes. Not to be shared
    by threads (`pyarrow.PythonFile` takes a lock around seek and read).
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._ahead = _MIN_AHEAD
        self._held = b""
        self._held_from = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a position, which may lie beyond the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes; fewer only at the end of the object, or all that is left."""
        start = min(self._position, self._size)
        wanted = self._size - start if size is None or size < 0 else size
        end = min(start + wanted, self._size)
        if start == end:
            return b""
        held_to = self._held_from + len(self._held)
        if start < self._held_from or end > held_to:
            kept = b""
            if self._held_from <= start <= held_to and held_to > 0:
                self._ahead = min(2 * self._ahead, _MAX_AHEAD)
                kept = self._held[start - self._held_from :]
            else:
                self._ahead = _MIN_AHEAD
            fetch_from = start + len(kept)
            fetch_to = min(max(end, fetch_from + self._ahead), self._size)
            self._held = kept + self._fetch(fetch_from, fetch_to)
            self._held_from = start
        first = start - self._held_from
        self._position = end
        return self._held[first : first + end - start]
