"""Beam runners: the pinned local one and those that flags name, and their errors in one line."""

import logging
import re
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, WorkerOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker.statesampler import StateSampler

from ledgerbeam.batch.arguments import LOCAL_RUNNERS, runner_of
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


def run_pipeline(pipeline: beam.Pipeline, name: str, batch: beam.PTransform) -> None:
    """Apply a transform to an empty pipeline, and run that to its end.

    Raises:
        LostError: a worker process was killed.
        UserError: a worker raised one, or the runner could not run the job.
    """
    # Beam logs an error once a layer; it is told once, in the end, as one line.
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    try:
        _ = pipeline | name >> batch
        with interrupted_by_lost_workers():
            state = pipeline.run().wait_until_finish()
    except LostError:
        raise
    except _TOLD as error:
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
    names = "|".join(kind.__name__ for kind in _TOLD)
    found = re.findall(rf"(?:{names}): (.*)", text.replace("\\n", "\n"))
    return _without_step(found[-1]) if found else None


def _without_step(message: str) -> str:
    return re.sub(r" \[while running '[^']*'\]", "", message)
