"""Errors as problem details (RFC 9457), one to one: of each there is the other.

    {"type": "/v1/problems/run-not-found", "title": "There is no such run", "status": 404,
     "detail": "no run 8f3a: …", "code": "run-not-found", "run": "8f3a"}

`detail` is the error's message, and its attributes are members beside it.
"""

import inspect
from dataclasses import fields
from functools import cache
from typing import Any

from ledgerbeam.io import errors
from ledgerbeam.io.errors import LedgerbeamError, UserError
from ledgerbeam.service import errors as own

MEDIA_TYPE = "application/problem+json"

_STATUS = {
    "bad-request": 400,
    "unauthenticated": 401,
    "access-denied": 403,
    "run-not-found": 404,
    "request-not-found": 404,
    "kind-not-found": 404,
    "bulk-not-found": 404,
    "workload-not-found": 404,
    "component-not-found": 404,
    "not-published": 404,
    "same-person": 403,
    "ambiguous-run": 409,
    "approval-needed": 409,
    "already-published": 409,
    "audit-mismatch": 409,
    "already-resolved": 409,
    "illegal-move": 409,
    "submission-conflict": 409,
    "request-state": 409,
    "results-expired": 410,
    "changed-meanwhile": 412,
    "body-too-large": 413,
    "damaged-file": 500,
    "bug": 500,
    "database-error": 502,
    "storage-error": 502,
    "registry-unavailable": 503,
    "answer-timeout": 504,
    "service-unavailable": 503,
}
_RESERVED = {"type", "title", "status", "detail", "instance"}


@cache
def classes() -> dict[str, type[UserError]]:
    """The class of each code."""
    found = [*vars(errors).values(), *vars(own).values()]
    return {
        kind.code: kind for kind in found if isinstance(kind, type) and issubclass(kind, UserError)
    }


def status_of(code: str) -> int:
    """The HTTP status of an error; 422 for what is wrong in itself, whoever asks for it."""
    return _STATUS.get(code, 422)


def problem_of(error: LedgerbeamError) -> dict[str, Any]:
    """An error as problem details."""
    attributes = {
        # `status` is HTTP's here, and a run's there.
        f"{name}_" if name in _RESERVED else name: value
        for name, value in error.attributes.items()
    }
    return {
        "type": type_of(error.code),
        "title": title_of(error.code),
        "status": status_of(error.code),
        "detail": str(error),
        "code": error.code,
        **attributes,
    }


def type_of(code: str) -> str:
    """The type of a problem, which is where it is explained."""
    return f"/v1/problems/{code}"


def title_of(code: str) -> str:
    """What a problem is called: the first line of its class's documentation."""
    kind = classes().get(code, UserError)
    return (inspect.getdoc(kind) or code).partition("\n")[0].rstrip(".")


def error_of(problem: dict[str, Any]) -> UserError:
    """The error that problem details stand for; of an unknown code, a plain `UserError`."""
    kind = classes().get(str(problem.get("code")), UserError)
    given = {
        field.name: problem[name]
        for field in fields(kind)
        if (name := f"{field.name}_" if field.name in _RESERVED else field.name) in problem
    }
    message = str(problem.get("detail") or problem.get("title") or "the service failed")
    return kind(message, **{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})
