"""Whether a launcher still answers for its attempt, as far as that can be told from here."""

import datetime

from ledgerbeam.batch.model.run import RunAttempt, RunRecord
from ledgerbeam.io.machine import ProcessId

MACHINE_GONE_SECONDS = 30.0
"""How long after the end of a lease a job is left alone that can't be seen, at the least.

Workers that can't read what they are told begin nothing new after that time.
"""

_LENGTHS_GONE = 2
_LENGTHS_AHEAD = 4


def has_run_out(
    run: RunRecord, attempt: RunAttempt, now: datetime.datetime, lease_seconds: float
) -> bool:
    """Whether a live attempt may be taken over.

    Its lease has run out; or it lasts longer than any lease does, because a clock was set back; or
    its results are published, and its launcher is known to be dead.
    """
    length = datetime.timedelta(seconds=lease_seconds)
    if not now <= attempt.lease_until <= now + _LENGTHS_AHEAD * length:
        return True
    launcher = ProcessId.parse(attempt.launcher)
    if not launcher.is_here or launcher.is_alive():
        return False
    # Imports Arrow, which the verbs do without.
    from ledgerbeam.io.commit.attempts import find_manifest

    return find_manifest(run.uri) is not None


def gives_up_at(attempt: RunAttempt, lease_seconds: float) -> datetime.datetime:
    """When the machine of a silent launcher counts as gone, with the job that runs on it."""
    grace = max(MACHINE_GONE_SECONDS, _LENGTHS_GONE * lease_seconds)
    return min(attempt.lease_until + datetime.timedelta(seconds=grace), attempt.deadline)
