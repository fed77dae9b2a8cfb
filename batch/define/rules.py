"""Rule versions of a keyed process, and how customers come from one to the next."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.components import Component, Components


def executes_each_by(where: str, rules: Mapping[int, Callable[..., Any]]) -> bool:
    """Whether rules are called with one component each, as their annotations say.

    Args:
        where: the definition's class, for messages.
        rules: its rules by number.

    Raises:
        DefinitionError: an annotation is missing, or rules differ.
    """
    found = {number: _takes(rule) for number, rule in rules.items()}
    for number, kind in found.items():
        if kind is None:
            raise DefinitionError(
                f"{where}: rule {number} ({_name(rules[number])}) doesn't say what it takes: "
                "annotate its argument, as component: Component for one of them, or as "
                "components: Components for many"
            )
    if len(set(found.values())) > 1:
        raise DefinitionError(
            f"{where}: one of its rules takes a Component, and the other one Components: write "
            "both in one way"
        )
    return Component in found.values()


def _takes(rule: Callable[..., Any]) -> type | None:
    arguments = [*inspect.signature(rule).parameters.values()]
    annotation = arguments[1].annotation if len(arguments) == 2 else None
    # It is text in modules that import annotations from __future__.
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    kinds = {"Component": Component, "Components": Components}
    return kinds.get(name.rpartition(".")[2])


def _name(rule: Callable[..., Any]) -> str:
    return getattr(rule, "__name__", repr(rule))
