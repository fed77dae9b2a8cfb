"""The process that runs an attempt's pipeline, for the launcher that started it.

It is told what to do in a line on its standard input, and reports in lines of JSON on its standard
output. It begins to work only when the launcher has recorded it. It never sees the registry.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any, NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict

from ledgerbeam.batch import logs
from ledgerbeam.batch.workloads import load_workload
from ledgerbeam.io.attempts import Attempt, LostError
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.secrets import redact

GO = "go"


class Order(BaseModel):
    """What an attempt's process is told.

    Attributes:
        process: name of the workload.
        parameters: its parameters, as JSON has them.
        beam_flags: flags that go to Beam.
        run: id of the run.
        launch: number of the attempt in the registry.
        retry_failed: whether components that failed before are tried again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    process: str
    parameters: dict[str, Any]
    beam_flags: list[str]
    run: str
    launch: int
    retry_failed: bool


class Report(NamedTuple):
    """What an attempt's process tells its launcher.

    Attributes:
        attempt: number of the attempt that it has recorded, and now waits to be let work.
        job: what its job is going to be called on an engine; empty for the local runner.
        error: why it has failed; one line.
        lost: why it has ended without having failed: another attempt may do better.
    """

    attempt: int | None = None
    job: str = ""
    error: str = ""
    lost: str = ""


def main() -> int:
    """Carry out the order; 0 when the instance is published."""
    # What the workload's own code prints must not be taken for a report.
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _terminate)
    line = sys.stdin.readline()
    if not line:
        return 1  # the launcher ended before it gave an order
    order = Order.model_validate_json(line)
    logs.configure(order.run, order.launch)
    try:
        _run(order, reports)
    except LostError as error:
        _report(reports, Report(lost=redact(str(error))))
        return 1
    except UserError as error:
        _report(reports, Report(error=redact(str(error))))
        return 1
    except KeyboardInterrupt:
        _report(reports, Report(error="it was told to stop"))
        return 1
    except Exception as error:
        # A defect: its traceback goes to the log, where secrets are taken out of it.
        logging.getLogger(__name__).exception("the attempt failed by a defect")
        _report(reports, Report(error=redact(f"{type(error).__name__}: {error}")))
        return 1
    return 0


def _run(order: Order, reports: TextIO) -> None:
    from ledgerbeam.batch.launch import run

    process_type = load_workload(order.process).PROCESS
    process = process_type(process_type.parameters_type.model_validate(order.parameters))

    def started(attempt: Attempt, job: str) -> None:
        _report(reports, Report(attempt=attempt.record.number, job=job))
        failpoint("job: reported")
        if sys.stdin.readline().strip() != GO:
            raise LostError("the launcher ended before it had recorded the attempt")
        failpoint("job: let work")

    run(
        process,
        order.beam_flags,
        run_id=order.run,
        launch=order.launch,
        retry_failed=order.retry_failed,
        started=started,
    )


def _report(reports: TextIO, report: Report) -> None:
    # Where the launcher is gone, somebody else looks at what is in storage.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(report._asdict()), file=reports, flush=True)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    from ledgerbeam.batch.attempt_process import main as importable_main

    sys.exit(importable_main())
