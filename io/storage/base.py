"""What every kind of storage offers: objects by URI."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, order=True)
class FileInfo:
    """An object as it was when its information was read.

    Attributes:
        uri: the object's URI.
        size: size in bytes.
        version: a text that changes whenever the content does: generation, ETag, or for a local
            file its modification time in nanoseconds and its inode.
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

    def open_input(self, uri: str) -> "pa.NativeFile":
        """A seekable reader. Reading a range costs about that range, not the whole object."""

    def read_bytes(self, uri: str) -> bytes:
        """The whole object."""

    def create(self, uri: str, data: "bytes | pa.Buffer", is_private: bool = False) -> bool:
        """Create the whole object unless one exists. False if one existed: it is unchanged.

        Where objects have permissions of their own, a private one is for this user alone.

        A store that failed to answer may have created the object all the same. A second try then
        gives False, and the caller compares what exists with what it wanted to write.
        """

    def persist(self, uris: Sequence[str]) -> None:
        """Return when these objects would survive a loss of power."""

    def delete(self, uri: str) -> None:
        """Remove the object. No error where there is none."""
