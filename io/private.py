"""Files that are for this user alone: the registry, logs, the control log.

`LEDGERBEAM_UMASK` says, in octal digits as `umask` takes them, which permissions they don't get; by
default others get none (`077`). The process's own umask takes away what it takes away besides.
"""

import os
import re
import stat
from pathlib import Path

VARIABLE = "LEDGERBEAM_UMASK"
_DEFAULT = 0o077


def is_valid(text: str) -> bool:
    """Whether a text is a umask that leaves the user's own permissions."""
    return re.fullmatch("0?0?[0-7]{2}", text) is not None


def umask() -> int:
    """The permissions that private files don't get; the default where the variable isn't valid."""
    text = os.environ.get(VARIABLE, "")
    return int(text, 8) if is_valid(text) else _DEFAULT


def make_folder(path: Path) -> None:
    """Make a private folder unless it exists; folders above it are made as any others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o777 & ~umask(), exist_ok=True)


def open_file(path: str | Path, flags: int) -> int:
    """A file descriptor of a private file, as by `os.open`, which is made where flags say so."""
    return os.open(path, flags | os.O_CLOEXEC, 0o666 & ~umask())


def foreign_part(path: Path) -> Path | None:
    """The first part of a path that somebody else has made where everybody may make files.

    In a shared folder, such as the one for temporary files, a name that can be foreseen may be
    taken by another user, who then reads or changes what is written there.
    """
    own = (os.geteuid(), 0)
    for part in (*reversed(path.parents), path):
        try:
            is_shared = bool(part.parent.stat().st_mode & stat.S_IWOTH)
            owner = part.lstat().st_uid
        except OSError:
            return None  # from here on there is nothing yet
        if is_shared and owner not in own:
            return part
    return None
