"""Named points at which a test can kill the process, as a crash or a loss of power would.

There is a point at every step at which a run must survive the death of a process. If
`LEDGERBEAM_FAILPOINT` isn't set in the environment, a point costs one comparison. With
`LEDGERBEAM_FAILPOINT_ONCE`, the name of a file that doesn't exist yet, only the first process that
reaches the point is killed: the one that creates the file. Of several points, with commas between
them, each kills by itself, and has a file of its own, `FILE.POINT`. `LEDGERBEAM_FAILPOINT_SIGNAL`
names another signal than SIGKILL: with SIGSTOP a process waits at the point until it is sent
SIGCONT.
Modelled on FreeBSD's fail(9).
"""

import os
import signal

FAILPOINT = "LEDGERBEAM_FAILPOINT"
FAILPOINT_ONCE = "LEDGERBEAM_FAILPOINT_ONCE"
FAILPOINT_SIGNAL = "LEDGERBEAM_FAILPOINT_SIGNAL"

_ARMED = tuple(filter(None, os.environ.get(FAILPOINT, "").split(",")))


def failpoint(name: str) -> None:
    """Kill (or stop) this process if `LEDGERBEAM_FAILPOINT` names this point."""
    if _ARMED and name in _ARMED and _is_first(name):
        os.kill(os.getpid(), signal.Signals[os.environ.get(FAILPOINT_SIGNAL, "SIGKILL")])


def _is_first(name: str) -> bool:
    file = os.environ.get(FAILPOINT_ONCE)
    if file is None:
        return True
    if len(_ARMED) > 1:
        file = f"{file}.{name}"
    try:
        with open(file, "x"):
            return True
    except FileExistsError:
        return False
