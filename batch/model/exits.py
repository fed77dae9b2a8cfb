"""Exit statuses of the command `ledgerbeam`, and of definitions that run as programs."""

from enum import IntEnum

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import (
    AmbiguousRunError,
    ApprovalNeededError,
    CanceledError,
    ComponentNotFoundError,
    ParameterError,
    RegistryUnavailableError,
    RunFailedError,
    RunNotFoundError,
    UserError,
    WaitTimeoutError,
    WorkloadNotFoundError,
)


class Exit(IntEnum):
    """How a command has ended, for scripts and schedulers.

    `INTERRUPTED` and `TERMINATED` are 128 and the number of the signal, as of any program.
    """

    OK = 0
    FAILURE = 1
    USAGE = 2
    CANCELED = 3
    TIMEOUT = 4
    DIFFERENT = 5
    NOT_FOUND = 6
    UNAVAILABLE = 7
    APPROVAL = 8
    INTERRUPTED = 130
    TERMINATED = 143


EXITS_OF_ERRORS: dict[type[UserError], Exit] = {
    ParameterError: Exit.USAGE,
    CanceledError: Exit.CANCELED,
    WaitTimeoutError: Exit.TIMEOUT,
    RunNotFoundError: Exit.NOT_FOUND,
    AmbiguousRunError: Exit.NOT_FOUND,
    ComponentNotFoundError: Exit.NOT_FOUND,
    WorkloadNotFoundError: Exit.NOT_FOUND,
    RegistryUnavailableError: Exit.UNAVAILABLE,
    ApprovalNeededError: Exit.APPROVAL,
}
"""Of each kind of error that doesn't end in `FAILURE`."""

EXITS_OF_RUNS = {
    RunStatus.SUCCESS: Exit.OK,
    RunStatus.FAILURE: Exit.FAILURE,
    RunStatus.CANCELED: Exit.CANCELED,
}
"""Of commands that wait for a run's end."""


def exit_of(error: UserError) -> Exit:
    """The exit status of a command that an error has ended."""
    if isinstance(error, RunFailedError) and error.status == RunStatus.CANCELED:
        return Exit.CANCELED
    return next(
        (status for kind, status in EXITS_OF_ERRORS.items() if isinstance(error, kind)),
        Exit.FAILURE,
    )
