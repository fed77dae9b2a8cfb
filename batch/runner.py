"""Beam runners: the pinned local one and those that flags name, and their errors in one line."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker.statesampler import StateSampler

from ledgerbeam.batch.runner_jobs import (
    LOCAL_RUNNERS,
    RunnerJob,
    RunnerUnavailableError,
    error_of,
    runner_job,
    runner_of,
    told_in,
    without_step,
)
from ledgerbeam.batch.worker_watch import interrupted_by_lost_workers
from ledgerbeam.io.attempts import FencedError, LostError
from ledgerbeam.io.errors import UserError
from ledgerbeam.transforms.throttle import Canceled

_SAMPLING_MILLISECONDS = 10
_TOLD = (UserError, FencedError, Canceled)


def make_pipeline(beam_flags: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline on the runner that the flags name.

    Without a name, and as `DirectRunner`, that is the local Fn API runner: Beam's own
    `DirectRunner` may choose another one.

    Raises:
        UserError: there is no such runner, or its options are wrong.
    """
    options = PipelineOptions(list(beam_flags))
    name = runner_of(beam_flags)
    if options.view_as(GoogleCloudOptions).job_name:
        raise UserError("--job_name: jobs are named by their instance and attempt: leave it out")
    if name.lower() in LOCAL_RUNNERS:
        return beam.Pipeline(local_runner(options), options)
    # An engine that can't be asked is told in a line, before Beam tells it in many.
    runner_job(beam_flags, "")
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


def name_job(pipeline: beam.Pipeline, name: str, labels: Sequence[str]) -> None:
    """Have the runner call a pipeline's job so, and put labels to those that it has."""
    options = pipeline.options.view_as(GoogleCloudOptions)
    options.job_name = name
    options.labels = [*(options.labels or []), *labels]


def run_pipeline(
    pipeline: beam.Pipeline, name: str, batch: beam.PTransform, job: RunnerJob | None = None
) -> None:
    """Apply a transform to an empty pipeline, and run that to its end.

    Args:
        pipeline: that has nothing in it.
        name: of the transform.
        batch: the transform.
        job: by which an engine knows the pipeline that it runs. It is canceled if this process is
            interrupted.

    Raises:
        LostError: a worker process was killed, or the engine has failed.
        UserError: a worker raised one, or the runner could not run the job.
    """
    # Beam logs an error once a layer; it is told once, in the end, as one line.
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    result = None
    try:
        _ = pipeline | name >> batch
        with interrupted_by_lost_workers():
            result = pipeline.run()
            state = _wait(result) if job is None else _watch(result, job)
    except LostError:
        raise
    except KeyboardInterrupt:
        if job is not None:
            _cancel(job, result)
        raise
    except _TOLD as error:
        raise UserError(without_step(str(error))) from error
    except Exception as error:
        message = told_in(str(error))
        if message is None and not isinstance(pipeline.runner, FnApiRunner):
            message = f"{type(pipeline.runner).__name__} could not run the job: {error}"
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        beam_log.setLevel(level)
    if state != PipelineState.DONE:
        raise UserError(f"the runner ended the job as {state}: see its own log: nothing published")


def _wait(result: Any) -> str:
    """Wait for the end of a job that ends with this process; gives the state that it ended in."""
    try:
        return str(result.wait_until_finish())
    except grpc.RpcError as error:
        # Of a runner that is a process of its own, such as Prism.
        raise LostError(f"the runner is gone: {error.details()}") from error


def _watch(result: Any, job: RunnerJob) -> str:
    """Wait for the end of an engine's job; gives the state that it ended in."""
    try:
        # Beam's own way of waiting looks ever more rarely, at last once a minute.
        while not PipelineState.is_terminal(state := result.state):
            time.sleep(job.poll_seconds)
        failure = job.failure()
    except Exception as error:
        raise LostError(f"the runner doesn't tell how the job goes on: {error}") from error
    if failure:
        raise error_of(failure)
    return str(state)


def _cancel(job: RunnerJob, result: Any) -> None:
    try:
        job.cancel()
        if result is not None:
            _ = result.state  # Beam sees the end, and deletes what it has uploaded for the job
    except RunnerUnavailableError as error:
        raise UserError(f"interrupted, and the runner's job goes on: {error}") from error
