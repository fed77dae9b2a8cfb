"""URIs of objects: plain paths, `file://`, `gs://` and `s3://`, taken apart and put together."""

import glob as globbing
import os
from urllib.parse import unquote, urlsplit


def local_path(uri: str) -> str:
    """The path of a `file://` URI, or `uri` itself where it is a path already."""
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else uri


def is_local(uri: str) -> bool:
    """Whether `uri` names a file of this machine."""
    return scheme_of(uri) == "file"


def join(uri: str, *names: str) -> str:
    """`uri/name/…`, with single slashes."""
    return "/".join([uri.rstrip("/"), *names])


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
