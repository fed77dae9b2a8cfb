"""Named points at which a test can end the process, as a crash or a loss of power would.

Every step that a run must survive to die at has its point. Without `LEDGERBEAM_FAILPOINT` in the
environment a point costs a comparison. With `LEDGERBEAM_FAILPOINT_ONCE`, the name of a file that
isn't there yet, only the first process that gets to the point ends: whoever makes the file. After
FreeBSD's fail(9).
"""

import os
import signal

FAILPOINT = "LEDGERBEAM_FAILPOINT"
FAILPOINT_ONCE = "LEDGERBEAM_FAILPOINT_ONCE"

_ARMED = os.environ.get(FAILPOINT)


def failpoint(name: str) -> None:
    """End this process by SIGKILL if it is this point that was asked for."""
    if _ARMED is not None and name == _ARMED and _is_first():
        os.kill(os.getpid(), signal.SIGKILL)


def _is_first() -> bool:
    file = os.environ.get(FAILPOINT_ONCE)
    if file is None:
        return True
    try:
        with open(file, "x"):
            return True
    except FileExistsError:
        return False
