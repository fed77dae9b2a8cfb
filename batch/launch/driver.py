"""The process that runs an attempt's pipeline, for the launcher that started it.

A line on its standard input says what to do, and it answers with messages, lines of JSON, on its
standard output. It starts only when the launcher has recorded it. It never sees the registry.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
from typing import Any, NamedTuple, TextIO

from pydantic import BaseModel, ConfigDict

from ledgerbeam.batch import interrupts, logs, traces
from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.errors import AttemptLostError, BugError, UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.secrets import redact

START = "start"
_TOLD_TO_END = "its process was told to end"
AHEAD = "--ahead"
"""Given to a driver that is to import Beam before it has a request."""


class AttemptRequest(BaseModel):
    """What an attempt's process is to do.

    Attributes:
        process: name of the workload.
        parameters: its parameters, as JSON has them.
        beam_flags: flags that go to Beam.
        run: id of the run.
        launch: number of the attempt in the registry.
        retry_failed: whether components that failed before are tried again.
        components: those of them that alone are tried again, by their keys; none for all.
        folder: that parameters name files relative to, if that is there.
        log: file that it writes its log to; empty for its standard error.
        traceparent: the trace that it belongs to; empty for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    process: str
    parameters: dict[str, Any]
    beam_flags: list[str]
    run: str
    launch: int
    retry_failed: bool
    components: list[str] = []
    folder: str = ""
    log: str = ""
    traceparent: str = ""


class AttemptMessage(NamedTuple):
    """What an attempt's process sends to its launcher.

    Attributes:
        attempt: number of the attempt that it has recorded, and is now ready to start.
        job: what its job is going to be called on an engine; empty for the local runner.
        error: why it has failed; one line.
        lost: why it has ended without having failed: another attempt may do better.
        code: of the error by which it has failed or was lost, where it has one.
        has_begun: whether it has only read its request, and has yet to do anything.
    """

    attempt: int | None = None
    job: str = ""
    error: str = ""
    lost: str = ""
    code: str = ""
    has_begun: bool = False


@logs.redacted_output(stdout_is_log=True)
def main() -> int:
    """Carry out the request; 0 when the instance is published."""
    # What the workload's own code prints must not be taken for a message.
    interrupts.catch()
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if AHEAD in sys.argv[1:]:
        importlib.import_module("ledgerbeam.batch.attempt.run")  # it takes a second, so now
    line = sys.stdin.readline()
    if not line:
        return 1  # the launcher ended before it sent a request
    request = AttemptRequest.model_validate_json(line)
    _send(messages, AttemptMessage(has_begun=True))
    if request.log:
        with open(request.log, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    logs.configure(request.run, request.launch)
    if request.traceparent:
        os.environ[traces.TRACEPARENT] = request.traceparent
    if AHEAD in sys.argv[1:] and os.path.isdir(request.folder):
        # It wasn't known before; modules are found there, as by `python -m`.
        os.chdir(request.folder)
        if not sys.flags.safe_path:
            sys.path[0] = request.folder
    interrupts.begin(f"attempt {request.launch}: {_TOLD_TO_END}")
    return interrupts.end(_carry_out(request, messages))


def _carry_out(request: AttemptRequest, messages: TextIO) -> int:
    try:
        _run(request, messages)
    except AttemptLostError as error:
        _send(messages, AttemptMessage(lost=redact(str(error)), code=error.code))
        return 1
    except UserError as error:
        _send(messages, AttemptMessage(error=redact(str(error)), code=error.code))
        return 1
    except KeyboardInterrupt:
        # By a launcher, which knows why; or by whoever shuts the machine down.
        _send(messages, AttemptMessage(lost=_TOLD_TO_END, code=AttemptLostError.code))
        return 1
    except Exception as error:
        # A bug: its traceback goes to the log, where secrets are taken out of it.
        logging.getLogger(__name__).exception("the attempt failed by a bug")
        line = redact(f"{type(error).__name__}: {error}")
        _send(messages, AttemptMessage(error=line, code=BugError.code))
        return 1
    return 0


def _run(request: AttemptRequest, messages: TextIO) -> None:
    from ledgerbeam.batch.attempt.run import run

    process_type = load_workload(request.process)
    process = process_type(process_type.parameters_type.model_validate(request.parameters))

    def started(attempt: Attempt, job: str) -> None:
        _send(messages, AttemptMessage(attempt=attempt.record.number, job=job))
        failpoint("job: reported")
        if sys.stdin.readline().strip() != START:
            raise AttemptLostError("the launcher ended before it had recorded the attempt")
        failpoint("job: started")

    run(
        process,
        request.beam_flags,
        run_id=request.run,
        launch=request.launch,
        retry_failed=request.retry_failed,
        components=request.components,
        started=started,
    )


def _send(messages: TextIO, message: AttemptMessage) -> None:
    # Where the launcher is gone, somebody else reads what is in storage.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message._asdict()), file=messages, flush=True)


if __name__ == "__main__":
    from ledgerbeam.batch.launch.driver import main as importable_main

    sys.exit(importable_main())
