"""Counts, and must be done so many seconds after midnight: `PUNCTUAL_SECONDS`."""

import datetime
import os

from ledgerbeam.batch.model.sla import Sla
from recorded_workloads.counting import Counting


class Punctual(Counting):
    name = "punctual"
    sla = Sla(
        must_finish_by=datetime.timedelta(seconds=float(os.environ.get("PUNCTUAL_SECONDS", "0"))),
        zone="UTC",
    )
