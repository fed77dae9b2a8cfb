"""Beam runners: the local one and those that flags name, with errors of one line."""

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

from ledgerbeam.batch.interrupts import interruption_in
from ledgerbeam.batch.runners.engine import RunnerJob
from ledgerbeam.batch.runners.failures import error_of, user_error_in
from ledgerbeam.batch.runners.jobs import LOCAL_RUNNERS, runner_job, runner_of
from ledgerbeam.batch.runners.lost_workers import interrupted_by_lost_workers
from ledgerbeam.io.errors import (
    AttemptLostError,
    ParameterError,
    RunnerError,
    RunnerUnavailableError,
    UserError,
)

_SAMPLING_MILLISECONDS = 10


def make_pipeline(beam_flags: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline on the runner that the flags name.

    Without a name, and for `DirectRunner`, that is the local Fn API runner, since Beam's own
    `DirectRunner` may choose another one.

    Raises:
        ParameterError: there is no such runner, or its options are wrong.
    """
    options = PipelineOptions(list(beam_flags))
    name = runner_of(beam_flags)
    if options.view_as(GoogleCloudOptions).job_name:
        raise ParameterError(
            "--job_name: jobs are named by their instance and attempt: leave it out",
            parameter="--job_name",
        )
    if name.lower() in LOCAL_RUNNERS:
        return beam.Pipeline(local_runner(options), options)
    # Checked here, an engine that can't be reached is an error of one line; Beam prints many.
    runner_job(beam_flags, "")
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError) as error:
        raise ParameterError(
            f"--runner={name}: {error}", parameter="--runner", value=name
        ) from error


def local_runner(options: PipelineOptions) -> FnApiRunner:
    """The local Fn API runner, set up by the options.

    Raises:
        ParameterError: the options ask for the mode that loses elements.
    """
    mode = options.view_as(DirectOptions).direct_running_mode
    if mode == "multi_threading":
        raise ParameterError(
            "--direct_running_mode=multi_threading loses elements without an error in Beam 2.77: "
            "leave it out (work is done in threads anyway), or use multi_processing",
            parameter="--direct_running_mode",
            value=mode,
        )
    if mode != "multi_processing":
        # Beam's sampler of time spent wakes up more and more rarely, at last every 200 ms, and each
        # stage waits for it at its end, which adds a third of a second to a short run.
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
    # Otherwise worker processes are sent no options.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return FnApiRunner(provision_info=ExtendedProvisionInfo(info))


def works_in_process(pipeline: beam.Pipeline) -> bool:
    """Whether a pipeline's runner does all of its work in this process."""
    mode = pipeline.options.view_as(DirectOptions).direct_running_mode
    return isinstance(pipeline.runner, FnApiRunner) and mode != "multi_processing"


def name_job(pipeline: beam.Pipeline, name: str, labels: Sequence[str]) -> None:
    """Set the name of a pipeline's job, and add labels to those that it has."""
    options = pipeline.options.view_as(GoogleCloudOptions)
    options.job_name = name
    options.labels = [*(options.labels or []), *labels]


def run_pipeline(
    pipeline: beam.Pipeline, name: str, batch: beam.PTransform, job: RunnerJob | None = None
) -> None:
    """Apply a transform to an empty pipeline, and run that to its end.

    Args:
        pipeline: an empty pipeline.
        name: the name of the transform.
        batch: the transform.
        job: the pipeline's job on an engine; it is canceled if this process is interrupted. None
            if the job ends with this process.

    Raises:
        AttemptLostError: a worker process was killed, or the engine has failed.
        UserError: a worker raised it, or the runner could not run the job.
    """
    # Each layer of Beam logs an error; it is reported once, at the end, as one line.
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    result = None
    try:
        _ = pipeline | name >> batch
        with interrupted_by_lost_workers():
            result = pipeline.run()
            state = _wait(result) if job is None else _watch(result, job)
    except UserError:
        raise
    except KeyboardInterrupt:
        if job is not None:
            _cancel(job, result)
        raise
    except Exception as error:
        interruption = interruption_in(error)
        if interruption is not None:
            if job is not None:
                _cancel(job, result)
            raise interruption from None
        raised = user_error_in(str(error))
        if raised is None and not isinstance(pipeline.runner, FnApiRunner):
            runner = type(pipeline.runner).__name__
            raised = RunnerError(f"{runner} could not run the job: {error}", runner=runner)
        if raised is None:
            raise
        raise raised from error
    finally:
        beam_log.setLevel(level)
    if state != PipelineState.DONE:
        raise RunnerError(
            f"the runner ended the job as {state}: see its own log: nothing published",
            runner=type(pipeline.runner).__name__,
        )


def _wait(result: Any) -> str:
    """Wait for the end of a job that ends with this process, and return its final state."""
    try:
        return str(result.wait_until_finish())
    except grpc.RpcError as error:
        # The runner is a process of its own, such as Prism.
        raise AttemptLostError(f"the runner is gone: {error.details()}") from error


def _watch(result: Any, job: RunnerJob) -> str:
    """Wait for the end of an engine's job, and return its final state."""
    try:
        # Beam's own way of waiting polls more and more rarely, at last once a minute.
        while not PipelineState.is_terminal(state := result.state):
            time.sleep(job.poll_seconds)
        failure = job.failure()
    except Exception as error:
        raise AttemptLostError(f"the runner doesn't tell how the job goes on: {error}") from error
    if failure:
        raise error_of(failure)
    return str(state)


def _cancel(job: RunnerJob, result: Any) -> None:
    try:
        job.cancel()
        if result is not None:
            _ = result.state  # Beam sees the end, and deletes what it has uploaded for the job
    except RunnerUnavailableError as error:
        raise RunnerUnavailableError(
            f"interrupted, and the runner's job goes on: {error}"
        ) from error
