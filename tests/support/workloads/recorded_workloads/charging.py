"""Charges each account, which may be done once only; see `counting` for what files do."""

from ledgerbeam.batch.define.process import Retry, RetryMode
from recorded_workloads.counting import Counting


class Charging(Counting):
    name = "charging"
    retry = Retry(mode=RetryMode.AT_MOST_ONCE)
    parallelism = 3
