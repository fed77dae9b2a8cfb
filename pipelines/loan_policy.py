"""How a book of loans is run, as parameters: the same for all workloads over it."""

from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeVar

from pydantic import Field

from ledgerbeam.batch.keyed_process import FileParameters
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.loan import (
    RATE_SCALE,
    Bucket,
    DelinquencyMethod,
    Partials,
    Policy,
    Step,
    in_minor_units,
)

_Choice = TypeVar("_Choice", bound=StrEnum)


class PolicyParameters(FileParameters):
    """Parameters of a workload over loans that says what becomes of money."""

    steps: str = Field(
        default=",".join(Step), description="business steps of a day, in their order"
    )
    waterfall: str = Field(
        default=",".join(Bucket), description="buckets that money is applied to, in their order"
    )
    partials: Partials = Field(
        default=Partials.HOLD, description="hold or apply: what becomes of less than an instalment"
    )
    grace_days: int = Field(default=15, ge=0, description="days until a late fee is charged")
    late_fee_percent: str = Field(default="5", description="late fee, in percent of an instalment")
    delinquency: DelinquencyMethod = Field(
        default=DelinquencyMethod.MBA, description="MBA or OTS: when a payment counts as missed"
    )

    def policy(self) -> Policy:
        """The policy that they describe.

        Raises:
            UserError: a step or bucket is unknown or named twice, or the late fee is no
                percentage.
        """
        try:
            percent = Decimal(self.late_fee_percent)
        except InvalidOperation:
            percent = Decimal("NaN")
        try:
            policy = Policy(
                waterfall=_choices(Bucket, "waterfall", self.waterfall),
                partials=self.partials,
                grace_days=self.grace_days,
                late_fee_rate=in_minor_units(percent, RATE_SCALE, "late_fee_percent"),
                delinquency=self.delinquency,
                steps=_choices(Step, "steps", self.steps),
            )
            policy.check()
        except ValueError as error:
            raise UserError(f"{error}: see --help") from error
        return policy


def _choices(kind: type[_Choice], name: str, text: str) -> tuple[_Choice, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in names if part not in [*kind]]
    if unknown:
        raise ValueError(f"{name}: {unknown[0]} is none of {', '.join(kind)}")
    return tuple(kind(part) for part in names)
