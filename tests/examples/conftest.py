"""The modules of the examples, found by their bare names as if they were installed."""

import sys

from tests.support.pages import ROOT

EXAMPLE = ROOT / "examples" / "payment_requests"
sys.path.insert(0, str(EXAMPLE))
