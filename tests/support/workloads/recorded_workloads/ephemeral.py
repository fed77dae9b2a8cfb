"""Counts, and lets its results expire at once."""

import datetime

from recorded_workloads.counting import Counting


class Ephemeral(Counting):
    name = "ephemeral"
    results_expire_after = datetime.timedelta(microseconds=1)
