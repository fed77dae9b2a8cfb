"""A pipeline module's run that is recorded, and launched from the same process."""

import subprocess
from collections.abc import Sequence
from typing import Any

from ledgerbeam.batch.alerts.configuration import check_configuration
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.launch.launcher import Launcher
from ledgerbeam.batch.model.run import AttemptKind
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.reading import RunView
from ledgerbeam.batch.runs.reconcile import see_to_launcher
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import LeaseLostError, RunFailedError


def run_recorded(
    process: BatchProcess[Any],
    beam_flags: Sequence[str],
    registry: str,
    driver: "subprocess.Popen[bytes] | None" = None,
) -> None:
    """Run a process as a recorded run, launched from here.

    An earlier run of the instance that didn't succeed is gone on with, its failed components
    included; one that is under way is waited for, and given another launcher should its own be
    dead.

    Args:
        process: the definition with its parameters.
        beam_flags: flags for Beam.
        registry: URL of the database of runs.
        driver: a process that was started ahead, for the first attempt that begins here.

    Raises:
        KeyboardInterrupt: it was interrupted here, and is canceled.
        RunFailedError: the run failed or was canceled.
    """
    settings = Settings.from_environment(registry)
    check_configuration()
    with Runs(settings) as runs:
        parameters = process.parameters.model_dump(mode="json")
        record, is_new = runs.record(process.name, parameters, beam_flags)
        if not is_new and record.status in (RunStatus.FAILURE, RunStatus.CANCELED):
            record = runs.reopen(record.id, AttemptKind.RETRY, "the workload was run again")
        launcher = Launcher(runs.registry, settings, record.id, driver=driver)
        try:
            status = launcher.launch()
        except LeaseLostError:
            status = RunStatus.EXECUTING
        if status is RunStatus.CANCELED and launcher.was_interrupted:
            raise KeyboardInterrupt

        def look_after(view: RunView) -> None:
            see_to_launcher(runs.registry, settings, view.run, utc_now())

        view = runs.wait(record.id, None, look_after, settings.lease_seconds)
        record = view.run
    if record.status is not RunStatus.SUCCESS:
        raise RunFailedError(
            f"run {record.id} is {record.status}: {record.error or 'canceled'}",
            run=record.id,
            status=record.status,
            cause=view.code,
        )
