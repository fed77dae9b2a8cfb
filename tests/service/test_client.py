"""The client of a service, beside `Runs`, whose methods it has."""

import inspect

import pytest

from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.service.client import Client

OF_THE_REGISTRY = {
    *("audit_of", "begin_replacing", "check_retry", "expire", "record", "reopen"),
    *("replace_approved", "signed_by", "to_be_approved", "view"),
}
"""What those who run a registry do with it."""

METHODS = sorted(
    name
    for name, _ in inspect.getmembers(Runs, inspect.isfunction)
    if not name.startswith("_") and name not in OF_THE_REGISTRY
)


def parameters(function: object) -> list[inspect.Parameter]:
    assert callable(function)
    return [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_it_takes_what_runs_take(method: str) -> None:
    ours, theirs = parameters(getattr(Client, method)), parameters(getattr(Runs, method))
    assert ours[: len(theirs)] == theirs
    # What it takes besides has a name and a default.
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])
