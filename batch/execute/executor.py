"""Executing the components of a shard for an attempt.

Calls, retries and failures are handled by `transforms/concurrency/executor.py`. This module adds
the outcomes of earlier attempts, and claims for calls that may be made only once.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import pyarrow as pa

from ledgerbeam.batch.define.process import BatchProcess, RetryMode
from ledgerbeam.batch.execute.executions import ShardControl
from ledgerbeam.batch.execute.rows import rows_of_text, text_of
from ledgerbeam.batch.model.outcomes import Outcome, decisions, grouped, outcomes_of
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.claims import Call, Decision, Resolution
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.errors import OutcomeUnknownError, TimeLimitExceededError
from ledgerbeam.transforms.concurrency.executor import (
    NOT_OF_A_COMPONENT,
    EachExecuted,
    Executor,
    Names,
    OnceCalled,
    TablesExecuted,
)
from ledgerbeam.transforms.concurrency.retry import Failure, RetryAfter
from ledgerbeam.transforms.concurrency.rows import CheckedRows, ended, rows_table

_log = logging.getLogger(__name__)


class EarlierOutcomes(NamedTuple):
    """The outcomes of a shard's components in earlier attempts.

    Attributes:
        outcomes: outcomes by component's name, without those of plain successes.
        decided: what people have decided about unknown components, by component's name.
        chosen: names of the components that alone are tried again; None for all.
    """

    outcomes: Mapping[str, Outcome]
    decided: Mapping[str, Decision]
    chosen: frozenset[str] | None = None

    @classmethod
    def read(
        cls,
        attempt: Attempt,
        shard: int,
        commit: ShardCommit | None,
        chosen: frozenset[str] | None = None,
    ) -> Self:
        """Read the outcomes that a shard's marker names; empty if there is no marker.

        Args:
            attempt: the attempt that executes the shard.
            shard: its number.
            commit: its marker.
            chosen: names of the components that alone are tried again; None for all.
        """
        if commit is None or commit.outcomes is None:
            return cls({}, {})
        found = outcomes_of(read_part(attempt.instance_uri, commit.outcomes))
        decided = decisions(attempt.instance_uri, shard, found)
        return cls({outcome.component: outcome for outcome in found}, decided, chosen)

    @property
    def retried(self) -> set[str]:
        """Names of the components that are to be tried again."""
        failed = {
            o.component for o in self.outcomes.values() if o.status is ComponentStatus.FAILURE
        }
        retried = failed | self.decided.keys()
        return retried if self.chosen is None else retried & self.chosen

    def tries(self, name: str) -> int:
        """How often a component was called in earlier attempts."""
        outcome = self.outcomes.get(name)
        return 0 if outcome is None else outcome.tries

    def outcome(self, name: str, status: ComponentStatus, failure: Failure) -> Outcome:
        """The outcome of a component now, which counts the tries of earlier attempts too."""
        tries = self.tries(name) + failure.tries
        return Outcome(
            name, status, tries, failure.error, failure.code, failure.traceback, failure.record
        )

    def outcomes_now(
        self, executed: TablesExecuted[Any] | EachExecuted, names: Names
    ) -> dict[int, Outcome]:
        """The outcomes of this attempt without plain successes, by component's number.

        Failures are logged, those of one kind once.
        """
        now = {
            number: self.outcome(names[number], ComponentStatus.SUCCESS, failure)
            for number, failure in executed.recovered.items()
        }
        for number, failure in executed.failed.items():
            now[number] = self.outcome(names[number], _status_of(failure), failure)
        for group in grouped(now[number] for number in executed.failed):
            _log.info("%s", group.text)
        return now


def _status_of(failure: Failure) -> ComponentStatus:
    return ComponentStatus.UNKNOWN if failure.is_unknown else ComponentStatus.FAILURE


def shard_executor(
    process: BatchProcess[Any],
    attempt: Attempt,
    worker_control: ShardControl,
    shard: int,
    earlier: EarlierOutcomes,
    max_failures: int,
    pooled: bool = False,
) -> Executor:
    """The executor of a shard's components.

    Args:
        process: the definition.
        attempt: the attempt that executes the shard.
        worker_control: the control of this worker process.
        shard: the number of the shard.
        earlier: the outcomes of earlier attempts.
        max_failures: how many components may fail before the shard is given up.
        pooled: whether each call always has a thread of its own.
    """
    once = None
    if process.retry.mode is RetryMode.AT_MOST_ONCE:
        assert process.results is not None
        once = ClaimedCalls(attempt, shard, process.results, earlier, worker_control.hold)
    return Executor(
        process.retry,
        shard,
        worker_control,
        max_failures,
        own_threads=worker_control.own_threads(),
        pooled=pooled,
        once=once,
    )


@dataclass(frozen=True)
class ClaimedCalls:
    """Makes calls that may be made only once; a call made earlier gives its recorded result.

    Attributes:
        attempt: the attempt that makes the calls.
        shard: the number of the components' shard.
        results: the columns that a call returns.
        earlier: the outcomes of earlier attempts.
        hold: called when a component asks that nothing begins for so many seconds.
    """

    attempt: Attempt
    shard: int
    results: pa.Schema
    earlier: EarlierOutcomes
    hold: Callable[[float], None] = lambda seconds: None

    def __call__(self, name: str, call: Callable[[], CheckedRows]) -> OnceCalled:
        """Make a component's call, or find how an earlier call ended.

        Raises:
            UserError: the claim or the result of the call can't be recorded.
        """
        decision = self.earlier.decided.get(name)
        if decision is not None and decision.resolution.status == ComponentStatus.SUCCESS:
            found_out = f"resolved by {decision.who}: {decision.why}"
            return OnceCalled(rows_of_text(decision.resolution.results), Failure(0, found_out))
        claimed = Call(self.attempt.instance_uri, self.shard, name, self.earlier.tries(name))
        if not claimed.claim(self.attempt.record.number):
            resolved = claimed.resolution() or Resolution(
                status=ComponentStatus.UNKNOWN,
                error="its one call was begun, and ended with its worker: look whether it has "
                "taken effect",
                code=OutcomeUnknownError.code,
            )
            return _called(resolved)
        try:
            rows = rows_table(call(), self.results)
            resolved = Resolution(status=ComponentStatus.SUCCESS, results=text_of(rows))
        except NOT_OF_A_COMPONENT:
            raise
        except (Exception, SystemExit) as raised:
            error = ended(raised) if isinstance(raised, SystemExit) else raised
            if isinstance(error, RetryAfter):
                self.hold(error.seconds)
            is_unknown = isinstance(error, (TimeLimitExceededError, OutcomeUnknownError))
            failure = Failure.of(error, 1, is_unknown)
            status = _status_of(failure)
            resolved = Resolution(
                status=status,
                error=failure.error,
                code=failure.code,
                traceback=failure.traceback,
            )
        claimed.resolve(resolved)
        return _called(resolved)


def _called(resolved: Resolution) -> OnceCalled:
    if resolved.status == ComponentStatus.SUCCESS:
        return OnceCalled(rows_of_text(resolved.results), None)
    is_unknown = resolved.status == ComponentStatus.UNKNOWN
    failure = Failure(1, resolved.error, resolved.code, is_unknown, resolved.traceback)
    return OnceCalled(None, failure)
