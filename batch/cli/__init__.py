"""The command `ledgerbeam`: verbs, arguments, and what people read on a terminal."""

import sys

from ledgerbeam.batch import interrupts


def verb_of(arguments: list[str]) -> str | None:
    """The verb of a command line; None where there is none."""
    # `--env NAME verb`, without `=`, has a value in front of the verb.
    names = [arg for flag, arg in zip(["", *arguments], arguments, strict=False) if flag != "--env"]
    return next((arg for arg in names if not arg.startswith("-")), None)


def main() -> int:
    """Entry point; signals are caught before anything is imported that takes time."""
    if verb_of(sys.argv[1:]) in {"run", "compare"}:
        interrupts.catch()
    from ledgerbeam.batch.cli.app import main as command

    return command()
