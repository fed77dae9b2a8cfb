"""Counts, and lets its results expire at once."""

import datetime

from ledgerbeam.batch.launch import run_module
from recorded_workloads.counting import Counting


class Ephemeral(Counting):
    name = "ephemeral"
    results_expire_after = datetime.timedelta(0)


PROCESS = Ephemeral


def main(arguments: list[str] | None = None) -> int:
    return run_module(PROCESS, __doc__ or "", arguments)
