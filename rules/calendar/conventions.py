"""Conventions for dates that are no business days."""

from enum import StrEnum


class BusinessDayConvention(StrEnum):
    """Where a date goes that isn't a business day: ISDA 2006, section 4.12, by numpy's names."""

    FOLLOWING = "following"
    """To the next business day."""
    MODIFIED_FOLLOWING = "modifiedfollowing"
    """To the next business day, unless that is in the next month: then to the one before."""
    PRECEDING = "preceding"
    """To the business day before."""
    NONE = "none"
    """Nowhere: dates stay as they are."""
