"""The tree of errors: told apart by class, code and attributes, wherever they come from."""

import dataclasses
import inspect
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from ledgerbeam.io import errors
from ledgerbeam.io.datasets.reading import load_profile
from ledgerbeam.io.errors import InputError, LedgerbeamError, ParameterError, UserError

VALUES = {
    object: "value",
    bool | None: True,
    int | None: 7,
    int | str | None: "10%",
    str | None: "text",
    tuple[str, ...] | None: ("a", "b"),
}


def tree(kind: type[LedgerbeamError] = LedgerbeamError) -> Iterator[type[LedgerbeamError]]:
    """The classes of the module, from the top down; those that tests derive are left out."""
    if kind.__module__ == errors.__name__:
        yield kind
        for derived in kind.__subclasses__():
            yield from tree(derived)


CLASSES = list(dict.fromkeys(tree()))
CONCRETE = [kind for kind in CLASSES if kind is not LedgerbeamError]


def filled(kind: type[LedgerbeamError]) -> LedgerbeamError:
    """An error with a value for each attribute."""
    given = {field.name: VALUES[field.type] for field in dataclasses.fields(kind)}
    return kind("one line", **given)


def test_the_picture_shows_the_tree() -> None:
    parents = {kind.__name__: kind.__mro__[1].__name__ for kind in CONCRETE}
    shown: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"    ([│├└─ ]*)(\w+Error)\b.*", line)
        if found and not line.startswith("    except"):
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            if depth:
                shown[found[2]] = above[depth - 1]
    assert shown == parents


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [vars(kind)["code"] for kind in CONCRETE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_all_names_end_alike() -> None:
    defined = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    names = [k.__name__ for k in defined if issubclass(k, Exception)]
    assert len(names) == len(CLASSES)
    assert all(name.endswith("Error") for name in names)


@pytest.mark.parametrize("kind", CONCRETE)
def test_an_error_survives_pickling(kind: type[LedgerbeamError]) -> None:
    error = filled(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.code, copy.attributes) == ("one line", kind.code, error.attributes)
    assert len(copy.attributes) == len(dataclasses.fields(kind))


def test_a_worker_process_raises_it_as_it_is() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        raised = pool.submit(load_profile, "unheard-of").exception(60)
    assert isinstance(raised, ParameterError)
    assert raised.attributes == {"parameter": "--profile", "value": "unheard-of"}


@pytest.mark.parametrize("kind", CONCRETE)
def test_attributes_are_optional_and_none_is_called_like_what_stands_beside_them(
    kind: type[LedgerbeamError],
) -> None:
    assert kind("a line").attributes == {}
    assert not {field.name for field in dataclasses.fields(kind)} & {"code", "message", "args"}


def test_a_message_is_one_line() -> None:
    assert str(InputError("a  line\n and another ", row=3)) == "a line and another"


def test_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(TypeError, match="line"):
        InputError("wrong", line=3)  # type: ignore[call-arg]


def test_a_workloads_own_error_has_the_code_of_its_base() -> None:
    class RateError(InputError):
        """Made from something else than a message."""

        def __init__(self, loan: str, rate: int) -> None:
            super().__init__(f"loan {loan}: a rate of {rate}", column="rate", value=rate)
            self.loan = loan

    error = RateError("A1", -2)
    assert isinstance(error, UserError)
    assert (error.code, str(error)) == ("invalid-input", "loan A1: a rate of -2")
    assert (error.attributes, error.loan) == ({"column": "rate", "value": -2}, "A1")
