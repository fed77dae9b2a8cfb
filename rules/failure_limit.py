"""Limits of failures: a count, or a share."""

import re
from fractions import Fraction


class FailureLimit:
    """How many components of a run may fail while its results are published all the same.

    `FailureLimit("0.5%")` allows 5 failed components of 1,000.
    """

    def __init__(self, limit: int | str) -> None:
        """Read the limit.

        Args:
            limit: a count, or a share of all components such as `"0.5%"`.

        Raises:
            ValueError: `limit` is neither.
        """
        self.text = f"{limit:,}" if isinstance(limit, int) else limit
        self._count = limit if isinstance(limit, int) else None
        share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(limit))
        self._share = Fraction(share[1]) / 100 if share else None
        if (self._count is None) == (self._share is None) or (self._count or 0) < 0:
            raise ValueError(f"failure_limit must be a count or a share like '0.5%', not {limit!r}")

    def allows(self, failed: int, components: int) -> bool:
        """Whether a run of so many components may publish if `failed` of them have failed."""
        return failed <= self.most(components)

    def most(self, components: int) -> int:
        """The largest number of failed components that is allowed among `components`."""
        if self._count is not None:
            return self._count
        return int(components * (self._share or 0) // 1)
