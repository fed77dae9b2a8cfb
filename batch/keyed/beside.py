"""Whether the shards of a keyed process are executed by several processes, and by how many."""

import os
import sys

from ledgerbeam.batch.define.process import RetryMode
from ledgerbeam.batch.execute.helpers import Helpers
from ledgerbeam.batch.keyed.assemble import bytes_in_flight
from ledgerbeam.batch.keyed.pipeline import CommitShard
from ledgerbeam.batch.keyed.plan import Plan
from ledgerbeam.io.machine import available_cores
from ledgerbeam.io.memory import memory_limit

ROWS_AT_ONCE = 2_000_000
"""Rows from which on helpers are started before any row is read.

Of a million, cheap functions gain nothing by a helper, which takes a second to start.
"""

HELPER_BYTES = 512 << 20
"""Memory that a helper takes, with a shard of plain Python objects."""


def helpers_for(plan: Plan, rows: int) -> Helpers | None:
    """Helpers for a plan, not yet open; None where this process alone executes all shards.

    That is so for functions over many components, which release the interpreter's lock; for calls
    that may be made once only, and where a definition limits its parallelism or its rate, since
    such components wait for others more than they compute; and on runners with workers of their
    own.

    Args:
        plan: what is run.
        rows: about how many rows will be read.
    """
    process, context = plan.process, plan.context
    is_limited = process.parallelism is not None or process.rate is not None
    if (
        os.name != "posix"
        or not sys.executable
        or not context.in_process
        or context.spill_directory is None
        or not process.holds_interpreter
        or is_limited
        or process.retry.mode is RetryMode.AT_MOST_ONCE
    ):
        return None
    memory = memory_limit()
    by_memory = max(memory.size - memory.taken, 0) // HELPER_BYTES - 1
    count = min(available_cores(), plan.shards - len(plan.done), by_memory) - 1
    if count < 1:
        return None
    room = bytes_in_flight(memory)
    return Helpers(CommitShard(plan), count, room, at_once=rows >= ROWS_AT_ONCE)
