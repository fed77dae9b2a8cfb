"""The command `ledgerbeam`: verbs, arguments, and what people read on a terminal."""

import sys

from ledgerbeam.batch import interrupts


def main() -> int:
    """Entry point; signals are caught before anything is imported that takes time."""
    if "run" in sys.argv[1:4]:
        interrupts.catch()
    from ledgerbeam.batch.cli.app import main as command

    return command()
