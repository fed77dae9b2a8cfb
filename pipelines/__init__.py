"""One module per workload: its parameters and its definition."""

import gc
import sys

from ledgerbeam.batch import interrupts

if sys.argv[:1] == ["-m"]:
    # One of the modules is about to be run as a program.
    interrupts.catch()

# Importing Beam creates half a million objects that live as long as the process. Collecting garbage
# among them takes a quarter of a second during the import, and as much when the process ends.
gc.disable()
import apache_beam  # noqa: E402, F401

gc.freeze()
gc.enable()
