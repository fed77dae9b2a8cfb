"""The present time, for whoever isn't given another clock."""

import datetime
from collections.abc import Callable

Clock = Callable[[], datetime.datetime]
"""Gives the present time in UTC."""


def utc_now() -> datetime.datetime:
    """The present time in UTC."""
    return datetime.datetime.now(datetime.UTC)
