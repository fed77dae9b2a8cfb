"""What a run would do: its input, its shards, and what of them is done already. Nothing is run."""

from typing import Any, NamedTuple

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.run import draft_attempt, shards_to_retry
from ledgerbeam.batch.define.process import BatchProcess, instance_uri, is_overridden
from ledgerbeam.io.commit.attempts import attempts, commits, find_manifest
from ledgerbeam.io.secrets import remember_all
from ledgerbeam.io.storage.base import FileInfo


class RunPlan(NamedTuple):
    """What a run of an instance would do now.

    Attributes:
        uri: of the instance.
        attempt: number that the attempt would have.
        inputs: files that would be read, as they are now.
        rows: about how many rows they have; None where that isn't known.
        shards: how many shards there are; None if only the end of a walk will show it.
        kept: shards that earlier attempts on the same input have committed, and that stay.
        retried: of the others, those that are committed, and executed again for their failures.
        failed: components that would be tried again.
        published: whether the instance is published; then nothing would be done.
        is_same: whether that, or what the last attempt has left, is of the same input and
            parameters; None where there is nothing.
    """

    uri: str
    attempt: int
    inputs: tuple[FileInfo, ...]
    rows: int | None
    shards: int | None
    kept: int
    retried: int
    failed: int
    published: bool
    is_same: bool | None


def plan_run(process: BatchProcess[Any]) -> RunPlan:
    """Find out what a run would do.

    Raises:
        UserError: the input can't be read, or breaks its contract.
    """
    remember_all(process.parameters)
    uri = instance_uri(process)
    prepared = kind_of(process).prepare(process)
    earlier = attempts(uri)
    draft = draft_attempt(process, prepared, earlier)
    same = [record.number for record in earlier if record.fingerprint == draft.fingerprint]
    committed = tuple(commits(uri, same).values())
    retried = shards_to_retry(uri, committed, None)
    manifest = find_manifest(uri)
    last = manifest.attempt if manifest is not None else (earlier[-1] if earlier else None)
    return RunPlan(
        uri,
        draft.number,
        tuple(prepared.files),
        prepared.rows,
        draft.shards,
        len(committed) - len(retried),
        len(retried),
        sum(commit.totals.get("failed", 0) for commit in retried),
        manifest is not None,
        None if last is None else last.fingerprint == draft.fingerprint,
    )


def check_input(process: BatchProcess[Any]) -> None:
    """Check that the input is there, can be read, and has its columns.

    A definition whose `before` may make its input is checked only when it runs.

    Raises:
        UserError: it isn't so.
    """
    if not is_overridden(type(process), BatchProcess, "before"):
        remember_all(process.parameters)
        kind_of(process).prepare(process)
