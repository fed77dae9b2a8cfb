"""A pipeline module's run that is recorded, and launched from the same process."""

from collections.abc import Sequence
from typing import Any

from ledgerbeam.batch.launcher import Launcher
from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.batch.records import AttemptKind
from ledgerbeam.batch.runs import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.batch.status import RunStatus
from ledgerbeam.io.errors import UserError


def run_recorded(process: BatchProcess[Any], beam_flags: Sequence[str], registry: str) -> None:
    """Run a process as a recorded run, launched from here.

    An earlier run of the instance that didn't succeed is gone on with, its failed components
    included; one that is under way is waited for.

    Raises:
        UserError: the run failed or was canceled.
    """
    settings = Settings.from_environment(registry)
    with Runs(settings) as runs:
        parameters = process.parameters.model_dump(mode="json")
        record, is_new = runs.record(process.name, parameters, beam_flags)
        if is_new:
            Launcher(runs.registry, settings, record.id).launch(AttemptKind.FIRST)
        elif record.status.is_final and record.status is not RunStatus.SUCCESS:
            runs.retry(record.id, "the workload was run again")
        record = runs.wait(record.id).run
    if record.status is not RunStatus.SUCCESS:
        raise UserError(f"run {record.id} is {record.status}: {record.error or 'canceled'}")
