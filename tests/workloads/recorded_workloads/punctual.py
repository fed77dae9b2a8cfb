"""Counts, and must be done within two days of midnight."""

import datetime

from recorded_workloads.counting import Counting

from ledgerbeam.batch.launch import run_module
from ledgerbeam.batch.sla import Sla


class Punctual(Counting):
    name = "punctual"
    sla = Sla(must_finish_by=datetime.timedelta(days=2), zone="UTC")


PROCESS = Punctual


def main(arguments: list[str] | None = None) -> int:
    return run_module(PROCESS, __doc__ or "", arguments)
