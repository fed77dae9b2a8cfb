"""What can be done with a run now: said in words, with the command that does the same."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from ledgerbeam.batch.model.run import RunRecord


class Action(NamedTuple):
    """What somebody may do with a run.

    Attributes:
        verb: as the command line has it.
        label: on the button.
        effect: what becomes of the run.
        confirmation: on the button that does it.
        command: that does the same.
        takes: what else is given; empty for nothing.
    """

    verb: str
    label: str
    effect: str
    confirmation: str
    command: str
    takes: str = ""


# In the order in which they are offered.
_WORDS = {
    "pause": ("Pause", "No more components begin. Those that are being executed go on.", ""),
    "resume": ("Resume", "Components begin again, by the limits that are set.", ""),
    "retry": (
        "Retry",
        "What has failed is tried again, as a new attempt with today's code. What is committed "
        "stays as it is.",
        "",
    ),
    "restart": (
        "Restart",
        "What no attempt has committed is done. What has failed stays failed.",
        "",
    ),
    "cancel": (
        "Cancel",
        "The run stops for good, and publishes nothing. What is committed is kept for a retry.",
        "",
    ),
    "set-rate": (
        "Limit the rate",
        "So many components a second begin at most, over the whole run; none for no limit.",
        "Components a second",
    ),
    "set-parallelism": (
        "Limit the parallelism",
        "So many components are in flight at most, over the whole run; none for no limit.",
        "Components in flight",
    ),
}


def actions(run: RunRecord, allowed: Sequence[str]) -> list[Action]:
    """What can be done with a run, in words.

    Args:
        run: the run.
        allowed: verbs that its status allows.
    """
    found = []
    for verb, (label, effect, takes) in _WORDS.items():
        if verb in allowed:
            value = ["none"] if takes else []
            confirmation = label if takes else f"{label} this run"
            found.append(
                Action(verb, label, effect, confirmation, command(verb, run.id, *value), takes)
            )
    return found


def command(verb: str, run_id: str, *arguments: str, why: bool = True) -> str:
    """The command line of a verb, to be copied; its reason is left to be written."""
    words = ["ledgerbeam", verb, run_id, *arguments]
    return f"{shlex.join(words)}{' --why=…' if why else ''}"
