"""Which handlers are installed: the entry points of the group `ledgerbeam.handlers`."""

import importlib
import os
import sys
from importlib.metadata import entry_points
from typing import Any

from ledgerbeam.io.errors import DefinitionError, ParameterError
from ledgerbeam.messages.define.handler import MessageHandler

GROUP = "ledgerbeam.handlers"


def load_handler(name: str) -> type[MessageHandler[Any]]:
    """A handler's class.

    Args:
        name: of an entry point, or MODULE:CLASS, which is also looked for in the current folder.

    Raises:
        ParameterError: there is none.
        DefinitionError: it is something else.
    """
    if ":" in name:
        loaded = import_named(name, "handler")
    else:
        found = entry_points(group=GROUP, name=name)
        if not found:
            known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
            raise ParameterError(
                f"there is no handler {name}: installed are {known}; or give MODULE:CLASS",
                parameter="handler",
                value=name,
            )
        loaded = next(iter(found)).load()
    if not (isinstance(loaded, type) and issubclass(loaded, MessageHandler)):
        raise DefinitionError(f"handler {name} is no MessageHandler: name the class")
    if not hasattr(loaded, "name"):
        raise DefinitionError(f"handler {name}: its name is missing: set it")
    return loaded


def import_named(name: str, what: str) -> object:
    """What MODULE:CLASS names; the module is also looked for in the current folder, last.

    Args:
        name: MODULE:CLASS.
        what: what it is to be, for messages.

    Raises:
        ParameterError: there is no such module, or it has no such class.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        reason = f"there is no module {module}"
    except AttributeError:
        reason = f"{module} has no {attribute}"
    raise ParameterError(f"{what} {name}: {reason}", parameter=what, value=name)
