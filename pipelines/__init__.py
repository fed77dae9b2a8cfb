"""One module per workload: its parameters and its definition."""

import sys

from ledgerbeam.batch import interrupts

if sys.argv[:1] == ["-m"]:
    # One of the modules is about to be run as a program.
    interrupts.catch()

from ledgerbeam.batch import import_beam  # noqa: F401
