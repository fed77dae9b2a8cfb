"""Names under which totals are stored, in a module that imports no Arrow."""

import re

ESCAPED = re.compile(r"=(\d*)\.")
"""Matches the prefix of a stored name that could be taken for another total; see `shard_totals`."""


def display_name(name: str) -> str:
    """A stored name as the workload wrote it."""
    return ESCAPED.sub("", name, count=1)
