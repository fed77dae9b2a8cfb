"""The errors that callers can tell apart: by their class, their code and their attributes.

    LedgerbeamError
    ├── UserError                         what a user can fix: shown as one line, no traceback
    │   ├── ParameterError
    │   ├── SecretError
    │   ├── WorkloadNotFoundError
    │   ├── DefinitionError
    │   ├── InputError
    │   │   ├── InputNotFoundError
    │   │   ├── InputChangedError
    │   │   ├── SchemaError
    │   │   └── MixedCurrenciesError
    │   ├── PageFetchError
    │   ├── ShardTooLargeError
    │   ├── TooManyRejectionsError
    │   ├── TooManyFailuresError
    │   ├── UnexpectedRowsError
    │   ├── StaleInputError
    │   ├── ControlTotalMismatchError
    │   ├── NotPublishedError
    │   ├── AlreadyPublishedError
    │   ├── OnRecordError
    │   ├── ResultsExpiredError
    │   ├── DamagedFileError
    │   ├── StorageError
    │   ├── DatabaseError
    │   ├── RegistryUnavailableError
    │   ├── AuditMismatchError
    │   ├── RunnerError
    │   │   └── RunnerUnavailableError
    │   ├── SubmissionConflictError
    │   ├── RunNotFoundError
    │   ├── AmbiguousRunError
    │   ├── IllegalMoveError
    │   ├── RunFailedError
    │   ├── WaitTimeoutError              is a TimeoutError as well
    │   ├── ComponentNotFoundError
    │   ├── AlreadyResolvedError
    │   ├── ApprovalNeededError
    │   ├── SamePersonError
    │   ├── CanceledError
    │   ├── FencedError
    │   ├── DeadlinePassedError
    │   ├── AttemptLostError
    │   │   └── OutOfMemoryError
    │   └── BugError
    ├── LeaseLostError
    ├── TimeLimitExceededError            these four end a single call of a component
    ├── OutcomeUnknownError
    ├── NoThreadFreeError
    └── OverdueError

`docs/errors.md` says for each code when the error occurs and what to do.

    try:
        runs.get("delivery-marking/2026-11-20")
    except RunNotFoundError as error:
        print(error.code, error.run)
"""

from dataclasses import InitVar, dataclass, fields
from typing import Any, ClassVar


@dataclass(eq=False, repr=False)
class LedgerbeamError(Exception):
    """Base of all errors that have a code.

    Its subclasses are dataclasses: their attributes are given by keyword, and are None where they
    aren't known. An error that came from a worker may have lost them: some runners pass on only
    its text.

    Attributes:
        code: stable, and unique among the classes of the tree; programs can branch on it.
    """

    message: InitVar[str]

    code: ClassVar[str]

    # Beam replaces an error that a DoFn raises by a new one of the same class with the step's name
    # in its message, which loses the attributes. An error with this attribute is left unchanged.
    _tagged_with_step: ClassVar[bool] = True

    def __post_init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that are known, by name."""
        known = {field.name: getattr(self, field.name, None) for field in fields(self)}
        return {name: value for name, value in known.items() if value is not None}


class UserError(LedgerbeamError):
    """Something that the user can fix: a file, a flag, a permission.

    The message is one line that says what happened, where, why and what to do. The command line
    prints it without a traceback; any other exception is a bug in ledgerbeam and keeps its
    traceback. A workload may raise it, or a class of its own that is derived from it.
    """

    code = "user-error"


@dataclass(eq=False, repr=False, kw_only=True)
class ParameterError(UserError):
    """A parameter, a flag or a setting is missing, unknown or has a wrong value.

    Attributes:
        parameter: its name as the user writes it, such as `--trade-date`.
        value: the value that was given.
    """

    code = "invalid-parameter"
    parameter: str | None = None
    value: object = None


@dataclass(eq=False, repr=False, kw_only=True)
class SecretError(UserError):
    """A secret is given literally, or its reference can't be resolved.

    Attributes:
        reference: the reference to the secret, `env:NAME` or `file:PATH`.
    """

    code = "secret-error"
    reference: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class WorkloadNotFoundError(UserError):
    """No workload of that name is installed.

    Attributes:
        workload: the name.
    """

    code = "workload-not-found"
    workload: str | None = None


class DefinitionError(UserError, TypeError):
    """The code of a workload breaks a rule of the framework."""

    code = "invalid-definition"


@dataclass(eq=False, repr=False, kw_only=True)
class InputError(UserError):
    """The input can't be read, or a value in it can't be used.

    Attributes:
        file: URI of the file, or the table's name.
        row: line (of a text file) or row (of any other) in the file, from 1.
        column: name of the column.
        value: the wrong value.
    """

    code = "invalid-input"
    file: str | None = None
    row: int | None = None
    column: str | None = None
    value: object = None


class InputNotFoundError(InputError):
    """There is no such file or table."""

    code = "input-not-found"


class InputChangedError(InputError):
    """The input isn't what it was when the run was started."""

    code = "input-changed"


class SchemaError(InputError):
    """The columns of an input aren't those that the contract asks for, or have other types."""

    code = "schema-mismatch"


@dataclass(eq=False, repr=False, kw_only=True)
class MixedCurrenciesError(InputError):
    """There are amounts in several currencies where only one is allowed.

    Attributes:
        currencies: their codes, in alphabetical order.
    """

    code = "mixed-currencies"
    currencies: tuple[str, ...] | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class PageFetchError(UserError):
    """The source of a page process doesn't give a page.

    Attributes:
        page: its number, from 0.
        cursor: the cursor that the page was requested with.
    """

    code = "page-fetch-failed"
    page: int | None = None
    cursor: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ShardTooLargeError(UserError):
    """A shard doesn't fit into a worker's memory.

    Attributes:
        shard: its number, from 0.
        size: size of the shard in bytes.
        limit: the largest size allowed, in bytes.
    """

    code = "shard-too-large"
    shard: int | None = None
    size: int | None = None
    limit: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TooManyRejectionsError(UserError):
    """More rows of the input were rejected than is allowed.

    Attributes:
        rejected: how many rows were rejected.
        limit: how many are allowed.
    """

    code = "too-many-rejections"
    rejected: int | None = None
    limit: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class TooManyFailuresError(UserError):
    """More components failed, or have an unknown outcome, than is allowed.

    Attributes:
        failed: how many there are; a lower bound if the run stopped before trying all components.
        limit: how many are allowed: a number, or a percentage such as `10%`.
    """

    code = "too-many-failures"
    failed: int | None = None
    limit: int | str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class UnexpectedRowsError(UserError):
    """The input has fewer rows than are expected of a day, or a very different number of them.

    Attributes:
        rows: how many were found.
        expected: the fewest that are expected, or how many there were the last time.
    """

    code = "unexpected-rows"
    rows: int | None = None
    expected: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class StaleInputError(UserError):
    """The newest row of the input is older than the business date allows.

    Attributes:
        newest: the date of that row, as YYYY-MM-DD.
        max_age: days that it may be before the business date.
    """

    code = "stale-input"
    newest: str | None = None
    max_age: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ControlTotalMismatchError(UserError):
    """Totals that must be equal before anything is published are different.

    Raised while components execute, it ends the run: the mismatch can't be put down to a single
    component, so the others can't be published without it.

    Attributes:
        name: name of the control total.
        expected: its value computed from the input, as people read it: `980.00 USD`.
        actual: its value computed from the results, in the same form.
    """

    code = "control-total-mismatch"
    name: str | None = None
    expected: int | str | None = None
    actual: int | str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class NotPublishedError(UserError):
    """Nothing is published there.

    Attributes:
        uri: the URI that was read.
    """

    code = "not-published"
    uri: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class AlreadyPublishedError(UserError):
    """The instance is published already, and can't be changed any more.

    Attributes:
        uri: URI of the instance.
    """

    code = "already-published"
    uri: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class OnRecordError(UserError):
    """The instance is on record, and only runs of its registry may publish it.

    Attributes:
        uri: URI of the instance.
        run: id of the run by which it was put on record.
    """

    code = "on-record"
    uri: str | None = None
    run: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ResultsExpiredError(UserError):
    """The results have expired and were deleted.

    Attributes:
        uri: URI of the instance.
    """

    code = "results-expired"
    uri: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class DamagedFileError(UserError):
    """A file that a run has stored is gone, damaged or changed.

    Attributes:
        uri: URI of the file.
    """

    code = "damaged-file"
    uri: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class StorageError(UserError):
    """The storage refuses an operation, or doesn't answer.

    Attributes:
        uri: the URI that was to be read or written.
    """

    code = "storage-error"
    uri: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class DatabaseError(UserError):
    """A database can't be reached, or refuses a statement.

    Attributes:
        database: where it is, without user and password.
        is_transient: whether a retry may succeed, because the connection or the server failed.
    """

    code = "database-error"
    database: str | None = None
    is_transient: bool | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RegistryUnavailableError(UserError):
    """The registry's database can't be reached, or the connection to it was lost.

    If a write was under way, it isn't known whether it was recorded: check before repeating it.

    Attributes:
        registry: where it is, without password.
    """

    code = "registry-unavailable"
    registry: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class AuditMismatchError(UserError):
    """The audit's entries and their hashes don't fit together: something was changed or removed.

    Attributes:
        source: table of the entry, where it is known: `event`, or the service's `audit`.
        sequence: its number there.
    """

    code = "audit-mismatch"
    source: str | None = None
    sequence: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RunnerError(UserError):
    """A Beam runner can't run the job, or has ended it without success.

    Attributes:
        runner: name of the runner.
    """

    code = "runner-error"
    runner: str | None = None


class RunnerUnavailableError(RunnerError):
    """An engine doesn't answer, or refuses the request."""

    code = "runner-unavailable"


@dataclass(eq=False, repr=False, kw_only=True)
class SubmissionConflictError(UserError):
    """The registry's record of an instance doesn't allow this submission.

    Attributes:
        instance: `process/instance`.
        run: id of the run that prevents it.
    """

    code = "submission-conflict"
    instance: str | None = None
    run: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RunNotFoundError(UserError):
    """There is no such run.

    Attributes:
        run: the id or name that was given.
    """

    code = "run-not-found"
    run: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class AmbiguousRunError(UserError):
    """The beginning of an id matches several runs.

    Attributes:
        run: the text that was given.
        candidates: ids of two of the runs that match.
    """

    code = "ambiguous-run"
    run: str | None = None
    candidates: tuple[str, ...] | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ApprovalNeededError(UserError):
    """It is on record, and is done when another person approves it.

    Attributes:
        run: id of the run.
        approval: number of the event by which it was asked for.
    """

    code = "approval-needed"
    run: str | None = None
    approval: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class SamePersonError(UserError):
    """Who has asked for something can't approve it.

    Attributes:
        run: id of the run.
        approval: number of the event by which it was asked for.
    """

    code = "same-person"
    run: str | None = None
    approval: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class IllegalMoveError(UserError):
    """A run or a rollout can't move from where it is to where it was asked to.

    Attributes:
        run: the run's id; None for a rollout.
        from_status: its present status, or stage.
        to_status: the requested one; None if the operation wouldn't change the status.
    """

    code = "illegal-move"
    run: str | None = None
    from_status: str | None = None
    to_status: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RunFailedError(UserError):
    """A run that was waited for has ended without success.

    Attributes:
        run: its id.
        status: the status that it ended in.
        cause: code of the error that made it fail, if known.
    """

    code = "run-failed"
    run: str | None = None
    status: str | None = None
    cause: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class WaitTimeoutError(UserError, TimeoutError):
    """A run hasn't ended within the time that was given; it continues.

    Attributes:
        run: its id.
        status: its present status.
    """

    code = "wait-timeout"
    run: str | None = None
    status: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ComponentNotFoundError(UserError):
    """A run has no such component, or it has another status.

    Attributes:
        component: its key, as text.
    """

    code = "component-not-found"
    component: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class AlreadyResolvedError(UserError):
    """Somebody else has already resolved a component in another way, which stays in force.

    Attributes:
        component: its key, as text.
        status: the status that it was resolved as.
    """

    code = "already-resolved"
    component: str | None = None
    status: str | None = None


class CanceledError(UserError):
    """The run is canceled: no component may begin any more."""

    code = "canceled"


@dataclass(eq=False, repr=False, kw_only=True)
class FencedError(UserError):
    """The attempt was given up, or has failed: nothing that it still does counts.

    Attributes:
        attempt: URI of the attempt.
    """

    code = "fenced"
    attempt: str | None = None


class DeadlinePassedError(UserError):
    """The attempt was ended because its time limit had passed."""

    code = "deadline-passed"


class AttemptLostError(UserError):
    """The attempt ended because its processes or the engine failed; another one may succeed."""

    code = "attempt-lost"


class OutOfMemoryError(AttemptLostError):
    """The kernel has ended a process of the attempt because memory ran out, or gave it no more."""

    code = "out-of-memory"


class BugError(UserError):
    """A worker raised an error that isn't for users; its traceback is in the worker's log."""

    code = "bug"


class LeaseLostError(LedgerbeamError):
    """Somebody else has taken the attempt over, or ended it."""

    code = "lease-lost"


class TimeLimitExceededError(LedgerbeamError):
    """The call took too long and was given up; it hasn't begun a commit, and can't any more."""

    code = "time-limit-exceeded"


class OutcomeUnknownError(LedgerbeamError):
    """It is unknown whether the call took effect: it began its commit and didn't return.

    A component that may be executed at most once raises it if its own request is interrupted.
    """

    code = "outcome-unknown"


class NoThreadFreeError(LedgerbeamError):
    """The call was never begun: every thread of the pool is busy or hangs."""

    code = "no-thread-free"


class OverdueError(LedgerbeamError):
    """Raised in the called code: the call was given up, and must not take effect any more."""

    code = "overdue"
