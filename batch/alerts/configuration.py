"""Whether what launchers are configured by is right, for commands that start them."""

import shutil

from ledgerbeam.batch import logs, traces
from ledgerbeam.batch.alerts.listeners import (
    CONFIG_VARIABLE,
    CommandListener,
    WebhookListener,
    load_listeners,
)
from ledgerbeam.io.errors import ParameterError, UserError


def check_configuration() -> None:
    """Read the configuration of logs, traces and listeners, as a launcher will.

    A launcher is told of a mistake in its log only, where nobody looks until an alert is missed.

    Raises:
        ParameterError: something in it isn't right, a secret can't be resolved, or there is no
            such command.
    """
    logs.configured_style()
    traces.check()
    for listener in load_listeners():
        if isinstance(listener, CommandListener) and shutil.which(listener.command[0]) is None:
            raise _wrong(listener.name, f"there is no command {listener.command[0]}")
        if isinstance(listener, WebhookListener):
            try:
                listener.resolve()
            except UserError as error:
                raise _wrong(listener.name, str(error)) from None


def _wrong(listener: str, problem: str) -> ParameterError:
    return ParameterError(
        f"{CONFIG_VARIABLE}: listener {listener}: {problem}", parameter=CONFIG_VARIABLE
    )
