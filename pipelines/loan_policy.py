"""The policy of a book of loans as parameters, the same for all workloads over it."""

from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeVar

from pydantic import Field

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.pipelines.parameters import CalendarParameters, MoneyParameters
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.loans.loan import (
    RATE_SCALE,
    AfterCurtailment,
    Bucket,
    DelinquencyMethod,
    Partials,
    PayoffInterest,
    Policy,
    Step,
    in_minor_units,
)

_Choice = TypeVar("_Choice", bound=StrEnum)


class PolicyParameters(MoneyParameters, CalendarParameters):
    """Parameters of a workload over loans, including how money is applied."""

    steps: str = Field(
        default=",".join(Step), description="business steps of a day, in their order"
    )
    waterfall: str = Field(
        default=",".join(Bucket), description="buckets that money is applied to, in their order"
    )
    partials: Partials = Field(
        default=Partials.HOLD, description="hold or apply: what becomes of less than an instalment"
    )
    after_curtailment: AfterCurtailment = Field(
        default=AfterCurtailment.SHORTER_TERM,
        description="shorter-term, new-instalment or next-due: what principal repaid on top of "
        "instalments changes",
    )
    payoff_interest: PayoffInterest = Field(
        default=PayoffInterest.DAY_COUNT,
        description="day-count or agency: whether a partial month of a payoff counts by the "
        "loan's day count, or by its days over 365",
    )
    grace_days: int = Field(default=15, ge=0, description="days until a late fee is charged")
    late_fee_percent: str = Field(default="5", description="late fee, in percent of an instalment")
    delinquency: DelinquencyMethod = Field(
        default=DelinquencyMethod.MBA, description="MBA or OTS: when a payment counts as missed"
    )
    grace_end: BusinessDayConvention = Field(
        default=BusinessDayConvention.NONE, description="as --due-dates, for the last day of grace"
    )

    def policy(self) -> Policy:
        """The policy that the parameters describe.

        Raises:
            ParameterError: a step or bucket is unknown or named twice, the late fee isn't
                a percentage, or a calendar is missing.
        """
        try:
            percent = Decimal(self.late_fee_percent)
        except InvalidOperation:
            percent = Decimal("NaN")
        self.check_calendar("grace_end")
        try:
            policy = Policy(
                waterfall=_choices(Bucket, "waterfall", self.waterfall),
                partials=self.partials,
                grace_days=self.grace_days,
                late_fee_rate=in_minor_units(percent, RATE_SCALE, "late_fee_percent"),
                delinquency=self.delinquency,
                steps=_choices(Step, "steps", self.steps),
                after_curtailment=self.after_curtailment,
                payoff_interest=self.payoff_interest,
                due_dates=self.due_dates,
                grace_end=self.grace_end,
            )
            policy.check()
        except ValueError as error:
            raise ParameterError(f"{error}: see --help") from error
        return policy


def _choices(kind: type[_Choice], name: str, text: str) -> tuple[_Choice, ...]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in names if part not in [*kind]]
    if unknown:
        raise ValueError(f"{name}: {unknown[0]} is none of {', '.join(kind)}")
    return tuple(kind(part) for part in names)
