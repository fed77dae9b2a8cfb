"""A file in a zip archive, which is read as a stream."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from ledgerbeam.io.errors import InputError
from ledgerbeam.io.storage import stores

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, pa.ArrowInvalid)
"""What Python's `zipfile` raises for an archive that it can't read to its end."""


@contextmanager
def open_member(uri: str, source: pa.NativeFile) -> Iterator[IO[bytes]]:
    """The one file of an archive, unpacked as it is read.

    Raises:
        InputError: it has no file, more than one, or one that is encrypted.
    """
    with zipfile.ZipFile(source) as archive:
        member = _member(uri, archive)
        if member.flag_bits & 1:
            raise InputError(f"{uri}: {member.filename} is encrypted: unpack it", file=uri)
        with archive.open(member) as file:
            yield file


def member_name(uri: str) -> str:
    """The name of the one file of an archive, which tells its format.

    Raises:
        InputError: it isn't a zip archive, or has no file, or more than one.
    """
    try:
        with (
            stores.open_input(uri) as source,
            zipfile.ZipFile(source) as archive,
        ):
            return _member(uri, archive).filename
    except ZIP_ERRORS as error:
        raise InputError(
            f"{uri}: damaged or truncated zip file: {error}: get the file again from its source",
            file=uri,
        ) from error


def _member(uri: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        member
        for member in archive.infolist()
        # Archives made on a Mac hold its notes on each file.
        if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]
    if len(members) != 1:
        names = ", ".join(member.filename for member in members[:3]) or "none"
        raise InputError(
            f"{uri}: it has {len(members)} files, and one is read: unpack it ({names})", file=uri
        )
    return members[0]
