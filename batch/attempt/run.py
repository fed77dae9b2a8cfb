"""Running a process as a pipeline, from a command line to an exit status."""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ledgerbeam import __version__
from ledgerbeam.batch import traces
from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.progress_bar import watch
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.keyed_process import FileParameters
from ledgerbeam.batch.define.process import (
    BatchProcess,
    Ramp,
    RetryMode,
    instance_uri,
    is_overridden,
)
from ledgerbeam.batch.execute.prepared import AttemptContext, Partitioning, Prepared
from ledgerbeam.batch.interrupts import interruption_in
from ledgerbeam.batch.model.outcomes import outcomes_of
from ledgerbeam.batch.rollouts.planning import declare_rollout, note_rollout, planned_rules
from ledgerbeam.batch.runners.beam import make_pipeline, name_job, run_pipeline, works_in_process
from ledgerbeam.batch.runners.failures import memory_refused
from ledgerbeam.batch.runners.jobs import runner_job
from ledgerbeam.batch.runners.names import labels_of_job, name_of_job
from ledgerbeam.io.arrow.spill import SpillDirectory
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import (
    Attempt,
    attempts,
    commits,
    complete_publication,
    ending_of,
    find_manifest,
    load_manifest,
    start_attempt,
)
from ledgerbeam.io.commit.claims import decided_shards
from ledgerbeam.io.commit.on_record import refuse_if_on_record
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import AttemptRecord, Manifest, ShardCommit
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    AttemptLostError,
    FencedError,
    InputChangedError,
    OutOfMemoryError,
    ParameterError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.memory import WHAT_HELPS, memory_limit
from ledgerbeam.io.secrets import redact, remember_all
from ledgerbeam.io.temporary import temporary_folder

# Parameters that don't change the result.
_EXCLUDED = {"output", "run_number", "reason", "min_rows", "max_change", "max_age"}


@temporary_folder()
@traces.of_process("attempt")
def run(
    process: BatchProcess[Any],
    beam_flags: Sequence[str] = (),
    *,
    run_id: str = "",
    launch: int = 0,
    retry_failed: bool = True,
    components: Sequence[str] = (),
    started: Callable[[Attempt, str], None] = lambda attempt, job: None,
) -> Manifest:
    """Run a process to its publication, on the runner that the flags name.

    An instance that is already published from the same input and parameters is left unchanged.
    Shards that earlier attempts on the same input have committed are kept.

    Args:
        process: the definition with its parameters.
        beam_flags: for Beam; without `--runner` the local runner is used.
        run_id: the run's id in the registry; empty if it isn't recorded.
        launch: the attempt's number in the registry; 0 if it isn't recorded.
        retry_failed: whether components that failed in earlier attempts are tried again.
        components: those of them that alone are tried again, by their keys; none for all.
        started: called when the attempt is recorded and before any element is processed, with the
            attempt and the name that its job will have on an engine, empty for a local runner.

    Returns:
        The manifest of the published instance.

    Raises:
        OnRecordError: the instance is on record, and this run isn't.
        UserError: something else that the user can fix; nothing is published.
    """
    traces.note(workload=process.name, run=run_id or None, attempt=launch or None)
    pipeline = make_pipeline(beam_flags)
    is_local = isinstance(pipeline.runner, FnApiRunner)
    parameters = process.parameters
    remember_all(parameters)
    if parameters.run_number > 1 and not parameters.reason:
        raise ParameterError(
            f"--run-number={parameters.run_number} needs a --reason", parameter="--reason"
        )
    uri = instance_uri(process)
    if not run_id:
        refuse_if_on_record(uri)
    earlier = attempts(uri)
    published = _published(process, earlier)
    if published is not None:
        return _published_before(
            uri, published, draft_attempt(process, kind_of(process).prepare(process), earlier)
        )
    for record in earlier:
        control_log.forget_workers(Attempt(uri, record).uri, utc_now(), only_silent=True)
    with traces.span("prepare"):
        prepared, attempt = _begin(process, earlier, run_id, launch)
    with _ending(process, attempt), ExitStack() as stack:
        if not run_id:
            refuse_if_on_record(uri)  # it may have been recorded since
        spills = _spills(process, is_local)
        spill = stack.enter_context(SpillDirectory()).path if spills else None
        fingerprint = attempt.record.fingerprint
        same_input = [r.number for r in earlier if r.fingerprint == fingerprint]
        committed = tuple(commits(uri, same_input, by_hash=True).values())
        chosen = frozenset(components) or None
        retried = shards_to_retry(uri, committed, chosen) if retry_failed else ()
        if process.retry.mode is RetryMode.AT_MOST_ONCE:
            _refuse_other_input(attempt)
        name = name_of_job(attempt)
        job = runner_job(beam_flags, name)
        started(attempt, "" if job is None else name)
        failpoint("run: started")
        stack.enter_context(watch(attempt, len(committed), spill))
        context = AttemptContext(
            attempt, committed, retried, spill, chosen, works_in_process(pipeline)
        )
        batch = prepared.build(context, stack)
        name_job(pipeline, name, labels_of_job(attempt))
        with traces.span("pipeline"):
            run_pipeline(pipeline, process.name, batch, job)
        failpoint("run: published")
        manifest = load_manifest(uri)
        for record in earlier:
            control_log.forget_workers(Attempt(uri, record).uri, utc_now())
        process.after(manifest)
    return manifest


def _begin(
    process: BatchProcess[Any], earlier: Sequence[AttemptRecord], run_id: str, launch: int
) -> tuple[Prepared, Attempt]:
    """Inspect the input and record an attempt; clean up if that fails."""
    try:
        process.before()
        prepared = kind_of(process).prepare(process)
        shadow = getattr(process, "shadow", None)
        if shadow is not None:
            shadow.check(prepared.files)
        if not earlier:
            declare_rollout(process)
        draft = draft_attempt(process, prepared, earlier)
        draft = draft.model_copy(update={"run": run_id, "launch": launch})
        note_rollout(process, draft)
        if not earlier:
            _limit(process)
        return prepared, start_attempt(instance_uri(process), draft)
    except BaseException as error:
        process.cleanup()
        refused = _out_of_memory(error)
        if refused is not None:
            raise refused from error
        raise


def _spills(process: BatchProcess[Any], is_local: bool) -> bool:
    """Whether rows reach their shards through files, and not through the runner."""
    parameters = process.parameters
    asked = parameters.shuffle if isinstance(parameters, FileParameters) else "auto"
    return is_local if asked == "auto" else asked == "spill"


def shards_to_retry(
    uri: str, committed: Sequence[ShardCommit], chosen: frozenset[str] | None
) -> tuple[ShardCommit, ...]:
    """Shards with components that failed, or about which somebody has decided since.

    If some are chosen, only the shards of those.
    """
    decided = decided_shards(uri) if any(c.totals.get("unknown") for c in committed) else set()
    return tuple(
        commit
        for commit in committed
        if (
            commit.totals.get("failed")
            or (commit.totals.get("unknown") and commit.shard in decided)
        )
        and (chosen is None or _has_any(uri, commit, chosen))
    )


def _has_any(uri: str, commit: ShardCommit, components: frozenset[str]) -> bool:
    if commit.outcomes is None:
        return False
    outcomes = outcomes_of(read_part(uri, commit.outcomes))
    return any(outcome.component in components for outcome in outcomes)


def _limit(process: BatchProcess[Any]) -> None:
    """Set the definition's limits, unless somebody set others before the run began."""
    uri = instance_uri(process)
    now = utc_now()
    steering = control_log.latest(uri)
    limits: control_log.Changes = {}
    if process.parallelism is not None and steering.parallelism is None:
        limits["parallelism"] = process.parallelism
    if process.rate is not None and (steering.rate, steering.ramp) == (None, None):
        if isinstance(process.rate, Ramp):
            limits["ramp"] = control_log.Ramp(**asdict(process.rate), started_at=now)
        else:
            limits["rate"] = process.rate
    if limits:
        control_log.steer(uri, now, process.name, "by definition", **limits)
    failpoint("run: limited")


def _refuse_other_input(attempt: Attempt) -> None:
    """Prevent second calls of components that may be called only once, on changed input.

    Raises:
        InputChangedError: the first attempt had other input or parameters.
    """
    first = attempts(attempt.instance_uri)[0]
    if first.fingerprint != attempt.record.fingerprint:
        number = attempt.record.parameters["run_number"] + 1
        raise InputChangedError(
            f"{attempt.instance_uri}: attempt {first.number} was begun on other input or with "
            "other parameters, and may have called components that may be called once only: give "
            f"all as it was, or run again with --run-number={number} --reason=WHY"
        )


@contextmanager
def _ending(process: BatchProcess[Any], attempt: Attempt) -> Iterator[None]:
    """Record the failure of an attempt, and clean up once, however it ends."""
    try:
        yield
    except (FencedError, AttemptLostError):
        raise
    except Exception as error:
        interruption = interruption_in(error)
        if interruption is not None:
            raise interruption from None
        refused = _out_of_memory(error)
        attempt.fail(redact(str(refused or error)) or type(error).__name__, utc_now())
        if refused is not None:
            raise refused from error
        raise
    finally:
        clean_up(process, attempt)


def _out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """The error for one that was raised for want of memory; None for all others."""
    refused = memory_refused(error)
    if refused is None:
        return None
    return OutOfMemoryError(f"out of memory: there are {memory_limit()}: {refused}: {WHAT_HELPS}")


def clean_up(process: BatchProcess[Any], attempt: Attempt) -> bool:
    """Call the process's `cleanup`, unless that was done for this attempt.

    Returns:
        Whether it was called now.
    """
    if not attempt.claim_cleanup():
        return False
    process.cleanup()
    if is_overridden(type(process), BatchProcess, "cleanup"):
        attempt.record_cleanup()
    return True


def _published(process: BatchProcess[Any], earlier: Sequence[AttemptRecord]) -> Manifest | None:
    """The instance's manifest, after completing publications and cleanups left undone."""
    uri = instance_uri(process)
    for record in earlier:
        attempt = Attempt(uri, record)
        ending = ending_of(attempt.uri)
        if ending is not None:
            complete_publication(uri, ending)
            clean_up(process, attempt)
    return find_manifest(uri)


def draft_attempt(
    process: BatchProcess[Any],
    prepared: Prepared,
    earlier: Sequence[AttemptRecord],
) -> AttemptRecord:
    """The next attempt on an inspected input, not recorded yet."""
    shown = process.parameters.model_dump(mode="json")
    excluded = {*_EXCLUDED, *prepared.excluded}
    if not shown.get("only_key"):
        excluded.add("only_key")  # which says nothing, and which attempts of old versions lack
    fingerprinted = {
        "process": process.name,
        "parameters": {k: v for k, v in shown.items() if k not in excluded},
        "inputs": prepared.fingerprinted,
    }
    fingerprint = hashlib.sha256(json.dumps(fingerprinted, sort_keys=True).encode()).hexdigest()
    # The first attempt fixes how the work is cut, or later ones couldn't use its shards.
    first = next((record for record in earlier if record.fingerprint == fingerprint), None)
    cut = prepared.partition() if first is None else Partitioning(first.shards, first.plan)
    rules = planned_rules(process, earlier)
    plan = cut.plan if rules is None else cut.plan | {"rules": rules._asdict()}
    shadow = getattr(process, "shadow", None)
    if shadow is not None:
        plan = plan | {"shadow": shadow.record()}
    return AttemptRecord(
        process=process.name,
        instance=process.instance,
        number=max((record.number for record in earlier), default=0) + 1,
        started_at=utc_now(),
        code_version=__version__,
        parameters=shown,
        inputs=prepared.files,
        shards=cut.shards,
        plan=plan,
        fingerprint=fingerprint,
        total_decimals=dict(process.total_decimals),
    )


def _published_before(uri: str, published: Manifest, draft: AttemptRecord) -> Manifest:
    if published.attempt.fingerprint == draft.fingerprint:
        return published
    number = draft.parameters["run_number"] + 1
    raise AlreadyPublishedError(
        f"{uri}: published already, from other input or with other parameters: read "
        f"that, or run again with --run-number={number} --reason=WHY",
        uri=uri,
    )
