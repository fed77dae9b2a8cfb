"""Imports Beam, before the first module that needs it, without collecting garbage meanwhile.

That creates half a million objects that live as long as the process. Collecting garbage among them
takes a quarter of a second during the import, and as much when the process ends.
"""

import gc
import sys

if "apache_beam" not in sys.modules:
    _was_enabled = gc.isenabled()
    gc.disable()
    import apache_beam  # noqa: F401

    gc.freeze()
    if _was_enabled:
        gc.enable()
