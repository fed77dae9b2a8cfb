"""One module a workload: its parameters, its definition, its `main`."""

import gc

# Importing Beam makes half a million objects that live as long as the process. To look for
# garbage among them takes a quarter of a second while they are made, and as much at the end.
gc.disable()
import apache_beam  # noqa: E402, F401

gc.freeze()
gc.enable()
