"""Whether the class of a definition is one: its attributes are known, and are what they must be.

A misspelt option would else be ignored, and a wrong one fail a run that has begun.
"""

import datetime
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from ledgerbeam.io.errors import DefinitionError

_FRAMEWORK = "ledgerbeam.batch.define"
_SIMILAR = 0.85
_EXECUTING = ("execute", "execute_components", "execute_item")
_POSITIVE = (
    "attempt_deadline",
    "lost_attempts",
    "parallelism",
    "rate",
    "results_expire_after",
    "rows_per_shard",
)
"""Attributes that are numbers or times above 0."""


def check_class(cls: type) -> None:
    """Check what a class of a definition itself says.

    Raises:
        DefinitionError: an attribute seems to be misspelt, or has another type or form than it
            must have.
    """
    bases = [base for base in cls.__mro__[1:] if base.__module__.startswith(_FRAMEWORK)]
    if cls.__module__.startswith(_FRAMEWORK) or not bases:
        return
    base = bases[0]
    known = [name for name in dir(base) if not name.startswith("_")] + list(_types_of(base))
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if name in known:
            _check_attribute(cls, base, name, value)
        elif similar := difflib.get_close_matches(name, known, 1, _SIMILAR):
            raise DefinitionError(
                f"{cls.__name__} has {name}, which nothing reads: did you mean {similar[0]}? If it "
                "is your own, give it a name that differs more"
            )


def guard_hooks(cls: type) -> None:
    """Have a `sys.exit` in one of the class's own hooks raise an error.

    It would end a worker, or end a program with success that has published nothing. Methods that
    execute components are left as they are: there it fails the component.
    """
    for name, value in list(vars(cls).items()):
        of_framework = [
            vars(base)[name]
            for base in cls.__mro__[1:]
            if base.__module__.startswith(_FRAMEWORK) and name in vars(base)
        ]
        is_hook = isinstance(value, FunctionType) and any(
            isinstance(base, FunctionType) for base in of_framework
        )
        if is_hook and not name.startswith("_") and name not in _EXECUTING:
            setattr(cls, name, _guarded(value, f"{cls.__name__}.{name}"))


def _guarded(hook: Callable[..., Any], where: str) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return hook(*args, **kwargs)
        except SystemExit as end:
            raise DefinitionError(
                f"{where} has called sys.exit({end.code!r}): raise an error in its place"
            ) from end

    return call


def _check_attribute(cls: type, base: type, name: str, value: Any) -> None:
    where = f"{cls.__name__}.{name}"
    ours = getattr(base, name, None)
    if isinstance(ours, FunctionType):
        if isinstance(value, FunctionType):
            _check_signature(where, ours, value)
        elif not callable(value) and not hasattr(value, "__get__"):
            raise DefinitionError(f"{where} is {value!r}: write it as a method")
        return
    if hasattr(value, "__get__"):  # a property, which depends on parameters
        return
    expected = _types_of(base).get(name, Any)
    if not _fits(value, expected):
        advice = ""
        if isinstance(value, str) and any(get_origin(each) is tuple for each in _kinds(expected)):
            advice = f": write {name} = ({value!r},)"
        raise DefinitionError(
            f"{where} is {value!r}, and must be of the type {_shown(expected)}{advice}"
        )
    seconds = value.total_seconds() if isinstance(value, datetime.timedelta) else value
    if name in _POSITIVE and isinstance(seconds, int | float) and not seconds > 0:
        raise DefinitionError(f"{where} is {value}: give more than 0")


def _check_signature(where: str, ours: Callable[..., Any], own: Callable[..., Any]) -> None:
    given = list(inspect.signature(ours).parameters)
    try:
        inspect.signature(own).bind(*given)
    except TypeError:
        method = where.rpartition(".")[2]
        raise DefinitionError(
            f"{where} takes other arguments than it is given: write def {method}"
            f"({', '.join(given)})"
        ) from None


@functools.cache
def _types_of(base: type) -> Mapping[str, Any]:
    """The types of a class's attributes, properties included, by name."""
    types = get_type_hints(base)
    for cls in base.__mro__:
        for name, value in vars(cls).items():
            if isinstance(value, property) and value.fget is not None:
                types.setdefault(name, get_type_hints(value.fget).get("return", Any))
    return types


def _fits(value: Any, expected: Any) -> bool:
    return any(_is_of(value, kind) for kind in _kinds(expected))


def _kinds(expected: Any) -> Iterator[Any]:
    """The alternatives that a type allows."""
    origin = get_origin(expected)
    if origin in (Union, UnionType, ClassVar):
        for kind in get_args(expected):
            yield from _kinds(kind)
    else:
        yield expected


def _is_of(value: Any, kind: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[1:] == (...,):
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if origin is type:
        return isinstance(value, type)
    if kind is Any or isinstance(kind, TypeVar):
        return True
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or kind)


def _shown(expected: Any) -> str:
    names = [
        "None"
        if kind is type(None)
        else getattr(kind, "__name__", str(kind))
        if get_origin(kind) is None
        else str(kind)
        for kind in _kinds(expected)
    ]
    return " or ".join(names)
