"""URIs of objects: plain paths, `file://`, `gs://` and `s3://`, taken apart and put together."""

import glob as globbing
import os
import re
from urllib.parse import unquote, urlsplit

from ledgerbeam.io.errors import StorageError

_PART = r"(?!\.\.?(?:/|\Z))[^\x00-\x1f\x7f/]+"
_RELATIVE = re.compile(f"{_PART}(?:/{_PART})*")


def local_path(uri: str) -> str:
    """The path of a `file://` URI, or `uri` itself where it is a path already.

    Raises:
        StorageError: a NUL character is in it, which no file's name can hold.
    """
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
    if "\0" in path:
        raise StorageError(f"{path!r}: no file's name holds the character NUL: correct it", uri=uri)
    return path


def is_local(uri: str) -> bool:
    """Whether `uri` names a file of this machine."""
    return scheme_of(uri) == "file"


def join(uri: str, *names: str) -> str:
    """`uri/name/…`, with single slashes."""
    return "/".join([uri.rstrip("/"), *names])


def relative(name: str) -> str:
    """`name` itself, if it is a path that leads downwards: `attempt-1/part.parquet`.

    Raises:
        ValueError: it is absolute, has a part `..`, or holds control characters.
    """
    if not _RELATIVE.fullmatch(name):
        raise ValueError(f"{name!r} is no name below a folder")
    return name


def inside(folder: str, name: str) -> str:
    """URI of what `name` names below `folder`: for every name that was read or that users give.

    A name in a file can be written by whoever may write that file. It must not lead to other files
    of the user who reads it: neither by `..`, nor as an absolute path, nor percent-encoded in a
    `file://` URI, nor over a link in the folder.

    Raises:
        StorageError: it leads out of the folder.
    """
    root = local_path(folder)
    try:
        place = join(root, relative(name))
    except ValueError as error:
        raise StorageError(
            f"{folder}: {error}: nothing is read, written or deleted there: restore what names it "
            "from a copy, or give another name",
            uri=folder,
        ) from None
    if is_local(root):
        parts = name.split("/")
        steps = (join(root, *parts[: depth + 1]) for depth in range(len(parts)))
        if any(map(os.path.islink, steps)):
            real, real_root = os.path.realpath(place), os.path.realpath(root)
            if os.path.commonpath([real, real_root]) != real_root:
                raise StorageError(
                    f"{place}: a link leads out of {root}, and is not followed: remove the link",
                    uri=place,
                )
    return place


def escape(uri: str) -> str:
    """A pattern that matches only `uri`, to which more can be joined."""
    return globbing.escape(uri)


def absolute(uri: str) -> str:
    """`uri` itself, or the absolute path of a local one: workers may run in other folders."""
    return os.path.abspath(local_path(uri)) if is_local(uri) else uri.rstrip("/")


def base_name(uri: str) -> str:
    """What follows the last slash."""
    return uri.rsplit("/", 1)[-1]


def scheme_of(uri: str) -> str:
    """What stands before `://`; `file` for a plain path."""
    return uri.split("://", 1)[0] if "://" in uri else "file"
