"""Bringing every run to the truth: what a cron calls every minute.

| what is found | what is done |
| --- | --- |
| submitted or asked for again, and no launcher came | a launcher, unless one is on its way |
| the launcher's lease ran out, its job goes on | another launcher takes the job over |
| the launcher's lease ran out, its job is gone | the same: it finds how the attempt ended |
| the lease ran out, the job's machine stays silent | the attempt is fenced off, and another begun |
| a lease lasts longer than leases do (a clock was set back) | it counts as run out |
| a manifest, and the launcher is dead | the run ends |
| cancel, pause or resume recorded, workers not steered | whoever launches the run steers them |
| the last attempt got lost, no launcher came after it | a launcher |
| results due to expire | deleted |
| events that listeners weren't notified of | notified |
| entries that aren't sealed by the audit's hash chain | sealed |
| temporary files of this user's processes on this machine that were killed | deleted |
"""

import datetime
import logging
from typing import NamedTuple

from ledgerbeam.batch.alerts.watcher import AlertWatcher, known_listeners, notify
from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.launch.leases import gives_up_at, has_run_out
from ledgerbeam.batch.launch.spawn import start_launcher
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.temporary import remove_left_behind

_log = logging.getLogger(__name__)


class Action(NamedTuple):
    """What was done about a run.

    Attributes:
        run: which.
        what: in a few words.
    """

    run: RunRecord
    what: str


def reconcile(settings: Settings, runs: Runs, now: datetime.datetime) -> list[Action]:
    """Check every run that isn't at rest, and do what is to be done.

    Several may do so at once: a launcher that is started is on record, so that there is one.

    Args:
        settings: for the launchers that are started.
        runs: the registry's runs.
        now: the present time.
    """
    actions = []
    remove_left_behind()
    for run in runs.registry.open_runs():
        # One run whose records or storage fail is no reason to leave the others alone.
        try:
            started = see_to_launcher(runs.registry, settings, run, now)
            if started:
                actions.append(Action(run, started))
        except UserError as error:
            _log.error("run %s: nothing can be done for it: %s", run.id, error)
        except Exception:
            _log.exception("run %s: nothing can be done for it", run.id)
        try:
            AlertWatcher(runs.registry, run.id, whoami("reconcile"), lambda: now).watch()
        except UserError as error:
            _log.error("run %s: its service level can't be checked: %s", run.id, error)
        except Exception:
            _log.exception("run %s: its service level can't be checked", run.id)
        failpoint("reconcile: run seen to")
    actions += [Action(run, "results deleted, they were due") for run in runs.expire()]
    notify(runs.registry, known_listeners(), set())
    runs.registry.seal_audit()
    return actions


def see_to_launcher(
    registry: Registry, settings: Settings, run: RunRecord, now: datetime.datetime
) -> str:
    """Start a launcher for a run that has none; what was done in a few words, or nothing.

    Nothing is done where one was started before, and may still come.
    """
    attempt = run.live_attempt
    patience = datetime.timedelta(seconds=settings.lease_seconds)
    if run.status.is_final:
        return ""
    if attempt is None:
        last = run.attempts[-1] if run.attempts else None
        since = run.submitted_at if last is None else last.ended_at or last.started_at
        if now - since < patience:
            return ""  # its launcher may be about to begin
        started = start_launcher(registry, settings, run, now)
        return "a launcher was started, as none came" if started is not None else ""
    if not has_run_out(run, attempt, now, settings.lease_seconds):
        return ""
    job = JobId.parse(attempt.job_id) if attempt.job_id else None
    # Then it is given up, and fenced: what it may still do doesn't count.
    given_up_at = gives_up_at(attempt, settings.lease_seconds)
    if job is not None and not job.can_be_seen and attempt.lease_until <= now < given_up_at:
        return (
            f"its launcher is silent, and its job ran on {job.driver.host}: reconcile there, or "
            f"here after {given_up_at:%H:%M:%S} UTC"
        )
    if start_launcher(registry, settings, run, now) is None:
        return ""
    return f"its launcher {attempt.launcher} is silent: another one takes over"
