"""Running a process as a pipeline, from a command line to an exit status."""

import datetime
import hashlib
import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from ledgerbeam import __version__
from ledgerbeam.batch.arguments import parse_arguments
from ledgerbeam.batch.keyed_process import FileParameters
from ledgerbeam.batch.prepare import Cut, Prepared, Start, prepare
from ledgerbeam.batch.process import BatchProcess, RetryMode, is_overridden
from ledgerbeam.batch.report import print_summary, watch
from ledgerbeam.batch.runner import make_pipeline, name_job, run_pipeline
from ledgerbeam.batch.runner_jobs import labels_of_job, name_of_job, runner_job
from ledgerbeam.io import control, storage
from ledgerbeam.io.attempts import (
    Attempt,
    FencedError,
    LostError,
    attempts,
    commits,
    complete_publication,
    ending_of,
    find_manifest,
    load_manifest,
    start_attempt,
)
from ledgerbeam.io.claims import decided_shards
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import AttemptRecord, Manifest, ShardCommit
from ledgerbeam.io.secrets import redact
from ledgerbeam.io.spill import SpillDirectory

# Parameters that change what is done with a result, but not the result.
_WITHOUT_EFFECT = {"output", "run_number", "reason"}


def run_module(
    process_type: type[BatchProcess[Any]],
    description: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """The `main` of a pipeline module: 0, or another exit status after one line on stderr.

    Args:
        process_type: the definition.
        description: for `--help`; by default the docstring of the definition's module.
        arguments: the command line; by default this process's.
    """
    started = time.monotonic()
    process_type = _importable(process_type)
    if description is None:
        description = sys.modules[process_type.__module__].__doc__ or ""
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
        if parsed.registry is not None:
            # Imports a database's client, which a run without a registry does without.
            from ledgerbeam.batch.recorded import run_recorded

            run_recorded(process, parsed.beam_flags, parsed.registry)
            manifest = load_manifest(instance_uri(process))
        else:
            manifest = run(process, parsed.beam_flags)
    except UserError as error:
        print(f"{process_type.name}: {redact(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "the same command again goes on from what is committed"
        print(f"{process_type.name}: interrupted: {again}", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    if parsed.json:
        print(json.dumps(_result(manifest, instance_uri(process), seconds)), flush=True)
    else:
        print_summary(manifest, process, instance_uri(process), seconds)
    return 0


def run(
    process: BatchProcess[Any],
    beam_flags: Sequence[str] = (),
    *,
    run_id: str = "",
    launch: int = 0,
    retry_failed: bool = True,
    started: Callable[[Attempt, str], None] = lambda attempt, job: None,
) -> Manifest:
    """Run a process to its publication, on the runner that the flags name.

    An instance that is published already, from the same input and parameters, is left as it is.
    What earlier attempts on the same input have committed is taken over.

    Args:
        process: the definition with its parameters.
        beam_flags: for Beam; without `--runner` the local runner is used.
        run_id: of the run in the registry, if it is recorded.
        launch: number of the attempt in the registry.
        retry_failed: whether components that failed in earlier attempts are tried again.
        started: called when the attempt is recorded, before its first element is worked on, with
            what the attempt's job is going to be called on an engine; empty for a local runner.

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
    uri = instance_uri(process)
    earlier = attempts(uri)
    published = _published(process, earlier)
    if published is not None:
        return _published_before(uri, published, _draft(process, prepare(process), earlier))
    prepared, attempt = _begin(process, earlier, run_id, launch)
    with _ending(process, attempt), ExitStack() as stack:
        spills = _spills(process, is_local)
        spill = stack.enter_context(SpillDirectory()).path if spills else None
        fingerprint = attempt.record.fingerprint
        same_input = [r.number for r in earlier if r.fingerprint == fingerprint]
        committed = tuple(commits(uri, same_input).values())
        retried = _to_retry(uri, committed) if retry_failed else ()
        if process.retry.mode is RetryMode.AT_MOST_ONCE:
            _refuse_other_input(attempt)
        name = name_of_job(attempt)
        job = runner_job(beam_flags, name)
        started(attempt, "" if job is None else name)
        failpoint("run: started")
        stack.enter_context(watch(attempt, len(committed), spill))
        batch = prepared.build(Start(attempt, committed, retried, spill, stack))
        name_job(pipeline, name, labels_of_job(attempt))
        run_pipeline(pipeline, process.name, batch, job)
        failpoint("run: published")
        manifest = load_manifest(uri)
        process.after(manifest)
    return manifest


def instance_uri(process: BatchProcess[Any]) -> str:
    """Where the instance of a process is, and what readers are told to read."""
    return storage.join(storage.absolute(process.parameters.output), process.name, process.instance)


def _begin(
    process: BatchProcess[Any], earlier: Sequence[AttemptRecord], run_id: str, launch: int
) -> tuple[Prepared, Attempt]:
    """Look at the input and record an attempt, or clean up where that fails."""
    try:
        process.before()
        prepared = prepare(process)
        draft = _draft(process, prepared, earlier)
        draft = draft.model_copy(update={"run": run_id, "launch": launch})
        if not earlier:
            _limit(process)
        return prepared, start_attempt(instance_uri(process), draft)
    except BaseException:
        process.cleanup()
        raise


def _spills(process: BatchProcess[Any], is_local: bool) -> bool:
    """Whether rows get to their shards by files, and not through the runner."""
    parameters = process.parameters
    asked = parameters.shuffle if isinstance(parameters, FileParameters) else "auto"
    return is_local if asked == "auto" else asked == "spill"


def _to_retry(uri: str, committed: Sequence[ShardCommit]) -> tuple[ShardCommit, ...]:
    """Shards with components that failed, or that somebody has decided about since."""
    decided = decided_shards(uri) if any(c.totals.get("unknown") for c in committed) else set()
    return tuple(
        commit
        for commit in committed
        if commit.totals.get("failed") or (commit.totals.get("unknown") and commit.shard in decided)
    )


def _limit(process: BatchProcess[Any]) -> None:
    """Tell workers the definition's limit, unless somebody set another before the run began."""
    uri = instance_uri(process)
    if process.parallelism is not None and control.latest(uri).parallelism is None:
        by_definition = (uri, _now(), process.name, "by definition")
        control.steer(*by_definition, parallelism=process.parallelism)
    failpoint("run: limited")


def _refuse_other_input(attempt: Attempt) -> None:
    """Keep what may be called once from being called again, as a component of other input."""
    first = attempts(attempt.instance_uri)[0]
    if first.fingerprint != attempt.record.fingerprint:
        number = attempt.record.parameters["run_number"] + 1
        raise UserError(
            f"{attempt.instance_uri}: attempt {first.number} was begun on other input or with "
            "other parameters, and may have called components that may be called once only: give "
            f"all as it was, or run again with --run-number={number} --reason=WHY"
        )


@contextmanager
def _ending(process: BatchProcess[Any], attempt: Attempt) -> Iterator[None]:
    """Record how an attempt fails, and clean up behind it once, however it ends."""
    try:
        yield
    except (FencedError, LostError):
        raise
    except Exception as error:
        attempt.fail(redact(str(error)) or type(error).__name__, _now())
        raise
    finally:
        clean_up(process, attempt)


def clean_up(process: BatchProcess[Any], attempt: Attempt) -> bool:
    """Call the process's `cleanup`, unless it was called for this attempt; whether it was now."""
    if not attempt.claim_cleanup():
        return False
    process.cleanup()
    if is_overridden(type(process), BatchProcess, "cleanup"):
        attempt.record_cleanup()
    return True


def _published(process: BatchProcess[Any], earlier: Sequence[AttemptRecord]) -> Manifest | None:
    """The instance's manifest, after doing what attempts that have ended died before."""
    uri = instance_uri(process)
    for record in earlier:
        attempt = Attempt(uri, record)
        ending = ending_of(attempt.uri)
        if ending is not None:
            complete_publication(uri, ending)
            clean_up(process, attempt)
    return find_manifest(uri)


def _draft(
    process: BatchProcess[Any],
    prepared: Prepared,
    earlier: Sequence[AttemptRecord],
) -> AttemptRecord:
    shown = process.parameters.model_dump(mode="json")
    without_effect = {*_WITHOUT_EFFECT, *prepared.without_effect}
    decisive = {
        "process": process.name,
        "parameters": {k: v for k, v in shown.items() if k not in without_effect},
        "inputs": prepared.decisive,
    }
    fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    # The first attempt fixes how the work is cut; later ones would lose its shards otherwise.
    first = next((record for record in earlier if record.fingerprint == fingerprint), None)
    cut = prepared.cut() if first is None else Cut(first.shards, first.plan)
    return AttemptRecord(
        process=process.name,
        instance=process.instance,
        number=max((record.number for record in earlier), default=0) + 1,
        started_at=_now(),
        code_version=__version__,
        parameters=shown,
        inputs=prepared.files,
        shards=cut.shards,
        plan=cut.plan,
        fingerprint=fingerprint,
    )


def _published_before(uri: str, published: Manifest, draft: AttemptRecord) -> Manifest:
    if published.attempt.fingerprint == draft.fingerprint:
        return published
    number = draft.parameters["run_number"] + 1
    raise UserError(
        f"{uri}: published already, from other input or with other parameters: read "
        f"that, or run again with --run-number={number} --reason=WHY"
    )


def _importable(process_type: type[BatchProcess[Any]]) -> type[BatchProcess[Any]]:
    """The class as it is imported: workers find nothing in the `__main__` of `python -m`."""
    if process_type.__module__ != "__main__":
        return process_type
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        file = getattr(sys.modules["__main__"], "__file__", None) or "this"
        raise SystemExit(f"{file}: workers can't import it from there: run it by `python -m NAME`")
    module = importlib.import_module(spec.name.removesuffix(".__main__"))
    found: type[BatchProcess[Any]] = getattr(module, process_type.__qualname__)
    return found


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


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
