"""Running a keyed process as a pipeline, from a command line to an exit status."""

import datetime
import hashlib
import json
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, WorkerOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker.statesampler import StateSampler

from ledgerbeam import __version__
from ledgerbeam.batch.arguments import LOCAL_RUNNERS, parse_arguments, runner_of
from ledgerbeam.batch.keyed import KeyedBatch
from ledgerbeam.batch.plan import Plan
from ledgerbeam.batch.process import KeyedProcess, Parameters
from ledgerbeam.batch.report import print_summary, watch
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import (
    AttemptRecord,
    Manifest,
    attempts,
    commits,
    find_manifest,
    load_manifest,
    start_attempt,
)
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import ColumnNames, Input, plan_input, shard_count
from ledgerbeam.io.spill import SpillDirectory

ROWS_A_SHARD = 320_000
_SAMPLING_MILLISECONDS = 10

# Parameters that change what is done with a result, but not the result.
_WITHOUT_EFFECT = {"output", "max_rejects", "run_number", "reason"}


def run_module(
    process_type: type[KeyedProcess[Any]], description: str, arguments: Sequence[str] | None
) -> int:
    """The `main` of a pipeline module: 0, or another exit status after one line on stderr."""
    started = time.monotonic()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        parsed = parse_arguments(
            process_type.parameters_type,
            process_type.name,
            description,
            sys.argv[1:] if arguments is None else arguments,
        )
        process = process_type(parsed.parameters)
        manifest = run(process, parsed.beam_flags)
    except UserError as error:
        print(f"{process_type.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "the same command again goes on from what is committed"
        print(f"{process_type.name}: interrupted: {again}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    if parsed.json:
        print(json.dumps(_result(manifest, instance_uri(process), seconds)), flush=True)
    else:
        print_summary(manifest, process.rows_are, instance_uri(process), seconds)
    return 0


def run(process: KeyedProcess[Any], beam_flags: Sequence[str] = ()) -> Manifest:
    """Run a process to its publication, on the runner that the flags name.

    An instance that is published already, from the same input and parameters, is left as it is.

    Args:
        process: the definition with its parameters.
        beam_flags: for Beam; without `--runner` the local runner is used.

    Returns:
        The manifest of the published instance.

    Raises:
        UserError: what the user can mend; nothing is published.
    """
    pipeline = make_pipeline(beam_flags)
    is_local = isinstance(pipeline.runner, FnApiRunner)
    parameters = process.parameters
    if parameters.run_number > 1 and not parameters.reason:
        raise UserError(f"--run-number={parameters.run_number} needs a --reason")
    planned = plan_input(
        process.input_pattern,
        process.contract,
        columns=ColumnNames.parse(parameters.columns),
        format=parameters.format,
    )
    uri = instance_uri(process)
    earlier = attempts(uri)
    draft = _draft(process, planned, number=max((r.number for r in earlier), default=0) + 1)
    published = find_manifest(uri)
    if published is not None:
        return _published_before(uri, published, draft)
    attempt = start_attempt(uri, draft)
    with ExitStack() as stack:
        spill = stack.enter_context(SpillDirectory()).path if is_local else None
        same_input = [r.number for r in earlier if r.fingerprint == draft.fingerprint]
        committed = tuple(commits(uri, same_input).values())
        plan = Plan(process, planned.splits, attempt, committed, spill)
        stack.enter_context(watch(plan))
        _run_pipeline(plan, pipeline)
    return load_manifest(uri)


def instance_uri(process: KeyedProcess[Any]) -> str:
    """Where the instance of a process is, and what readers are told to read."""
    return storage.join(
        storage.absolute(process.parameters.output), process.name, _instance_name(process)
    )


def _instance_name(process: KeyedProcess[Any]) -> str:
    number = process.parameters.run_number
    return process.business_date.isoformat() + (f"-run-{number}" if number > 1 else "")


def _draft(process: KeyedProcess[Any], planned: Input, number: int) -> AttemptRecord:
    parameters: Parameters = process.parameters
    shown = parameters.model_dump(mode="json")
    shards = parameters.shards or shard_count(planned.estimated_rows, ROWS_A_SHARD)
    # Of the input it is the files that decide, not how they were named.
    without_effect = {*_WITHOUT_EFFECT, process.input_parameter}
    decisive = {
        "process": process.name,
        "parameters": {k: v for k, v in shown.items() if k not in without_effect},
        "inputs": [astuple(file) for file in planned.files],
        "shards": shards,
    }
    return AttemptRecord(
        process=process.name,
        instance=_instance_name(process),
        number=number,
        started_at=datetime.datetime.now(datetime.UTC),
        code_version=__version__,
        parameters=shown,
        inputs=list(planned.files),
        shards=shards,
        fingerprint=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
    )


def _published_before(uri: str, published: Manifest, draft: AttemptRecord) -> Manifest:
    if published.attempt.fingerprint == draft.fingerprint:
        return published
    number = draft.parameters["run_number"] + 1
    raise UserError(
        f"{uri}: published already, from other input or with other parameters: read "
        f"that, or run again with --run-number={number} --reason=WHY"
    )


def make_pipeline(beam_flags: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline on the runner that the flags name.

    Without a name, and as `DirectRunner`, that is the local Fn API runner: Beam's own
    `DirectRunner` may choose another one.

    Raises:
        UserError: there is no such runner, or its options are wrong.
    """
    options = PipelineOptions(list(beam_flags))
    name = runner_of(beam_flags)
    if name.lower() in LOCAL_RUNNERS:
        return beam.Pipeline(local_runner(options), options)
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError) as error:
        raise UserError(f"--runner={name}: {error}") from error


def local_runner(options: PipelineOptions) -> FnApiRunner:
    """The local Fn API runner, for options that it runs well with.

    Raises:
        UserError: the options ask for its mode that loses elements.
    """
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode == "multi_threading":
        raise UserError(
            "--direct_running_mode=multi_threading loses elements without an error in Beam 2.77: "
            "leave it out (work is done in threads anyway), or use multi_processing"
        )
    if mode != "multi_processing":
        # Beam's sampler of time spent wakes up ever more rarely, down to every 200 ms, and each
        # stage waits for it at its end: a third of a second in a run of four.
        StateSampler.__init__.__defaults__ = (_SAMPLING_MILLISECONDS,)
        return FnApiRunner()
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    # Workers write their logs to the terminal: tens of lines each, unless something is wrong.
    worker_options = options.view_as(WorkerOptions)
    worker_options.default_sdk_harness_log_level = (
        worker_options.default_sdk_harness_log_level or "ERROR"
    )
    # Worker processes are sent no options otherwise.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return FnApiRunner(provision_info=ExtendedProvisionInfo(info))


def _run_pipeline(plan: Plan, pipeline: beam.Pipeline) -> None:
    # Beam logs an error once a layer; it is told once, in the end, as one line.
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    try:
        _ = pipeline | plan.process.name >> KeyedBatch(plan)
        state = pipeline.run().wait_until_finish()
    except UserError as error:
        raise UserError(_without_step(str(error))) from error
    except Exception as error:
        message = _user_error_in(error)
        if message is None and not isinstance(pipeline.runner, FnApiRunner):
            message = f"{type(pipeline.runner).__name__} could not run the job: {error}"
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        beam_log.setLevel(level)
    if state != PipelineState.DONE:
        raise UserError(f"the runner ended the job as {state}: see its own log: nothing published")


def _user_error_in(error: Exception) -> str | None:
    """The line of a `UserError` that a worker raised: runners hand on its text alone."""
    text = str(error)
    found = re.findall(rf"{UserError.__name__}: (.*)", text.replace("\\n", "\n"))
    return _without_step(found[-1]) if found else None


def _without_step(message: str) -> str:
    return re.sub(r" \[while running '[^']*'\]", "", message)


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _result(manifest: Manifest, published: str, seconds: float) -> dict[str, Any]:
    return {
        "published": published,
        "attempt": manifest.attempt.number,
        "counts": manifest.counts,
        "totals": manifest.totals,
        "seconds": round(seconds, 3),
    }
