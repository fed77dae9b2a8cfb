"""Named points at which a test can end the process, as a crash or a loss of power would.

Every step that a run must survive to die at has its point. Without `LEDGERBEAM_FAILPOINT` in the
environment a point costs a comparison. After FreeBSD's fail(9).
"""

import os
import signal

_ARMED = os.environ.get("LEDGERBEAM_FAILPOINT")


def failpoint(name: str) -> None:
    """End this process by SIGKILL if it is this point that was asked for."""
    if _ARMED is not None and name == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
