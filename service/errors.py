"""What can go wrong between a caller and the service, besides what can with runs.

They belong to the tree of `io/errors.py`; `docs/running-the-service.md` lists their codes.
"""

from dataclasses import dataclass

from ledgerbeam.io.errors import RegistryUnavailableError, UserError


@dataclass(eq=False, repr=False, kw_only=True)
class RequestNotFoundError(UserError):
    """There is no such request.

    Attributes:
        request: the id that was given.
    """

    code = "request-not-found"
    request: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class BulkNotFoundError(UserError):
    """There is no such action on many.

    Attributes:
        bulk: the id that was given.
    """

    code = "bulk-not-found"
    bulk: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class KindNotFoundError(UserError):
    """No router has published such a kind.

    Attributes:
        kind: the name that was given.
    """

    code = "kind-not-found"
    kind: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RequestStateError(UserError):
    """A request can't be treated so in the state that it is in.

    Attributes:
        request: its id.
        state: where it stands.
    """

    code = "request-state"
    request: str | None = None
    state: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class RequestRejectedError(UserError):
    """The router has refused a request that was waited for.

    Attributes:
        request: its id.
        state: where it stands.
        cause: code of the error by which it has ended.
    """

    code = "request-rejected"
    request: str | None = None
    state: str | None = None
    cause: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class IdempotencyConflictError(UserError):
    """The same idempotency key was used for another request.

    Attributes:
        request: id of the request that it stands for.
    """

    code = "idempotency-conflict"
    request: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ChangedMeanwhileError(UserError):
    """What was to be changed isn't any more what the caller had seen.

    Attributes:
        etag: what it is now.
    """

    code = "changed-meanwhile"
    etag: str | None = None


class UnauthenticatedError(UserError):
    """The call has no key, or one that isn't valid."""

    code = "unauthenticated"


@dataclass(eq=False, repr=False, kw_only=True)
class AccessDeniedError(UserError):
    """Who calls may not do that.

    Attributes:
        role: that it takes.
        kind: of what it was to be done to.
    """

    code = "access-denied"
    role: str | None = None
    kind: str | None = None


class AnswerTimeoutError(UserError):
    """What was to be answered at once has taken longer than the caller waits."""

    code = "answer-timeout"


class BadRequestError(UserError):
    """The call isn't one that the service understands."""

    code = "bad-request"


class BodyTooLargeError(UserError):
    """The body of the call is larger than the service takes."""

    code = "body-too-large"


@dataclass(eq=False, repr=False, kw_only=True)
class ServiceUnavailableError(RegistryUnavailableError):
    """The service can't be reached, or fails.

    Attributes:
        server: its URL.
    """

    code = "service-unavailable"
    server: str | None = None
