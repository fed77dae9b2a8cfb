"""Charges each account, which may be done once only; see `counting` for what files do."""

from ledgerbeam.batch.launch import run_module
from ledgerbeam.batch.process import Retry, RetryMode
from recorded_workloads.counting import Counting


class Charging(Counting):
    name = "charging"
    retry = Retry(mode=RetryMode.AT_MOST_ONCE)
    parallelism = 3


PROCESS = Charging


def main(arguments: list[str] | None = None) -> int:
    return run_module(PROCESS, __doc__ or "", arguments)
