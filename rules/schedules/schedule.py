"""Repayment schedules: when a loan is repaid, and how much of each instalment is interest.

Instalment 1 falls due one frequency after the loan is disbursed, or on the day given as
`first_due`; each further one a frequency later: months later on the same day of the month (or its
last day, where the month is shorter), twice a month on two such days, or weeks later. Its interest
is the balance before it, times the annual rate, times the part of a year since the due date
before, by the loan's day count (`ledgerbeam.rules.terms.accrual.loan_fraction`); rounded to the
currency's minor unit. Its principal follows from the method:

- `level`: what is left of the level payment after interest. The level payment is the one whose
  present value is the principal, principal = Σ payment * Π 1 / (1 + period factor), rounded.
- `equal_principal`: the principal divided by the number of instalments, rounded.
- `interest_only:N`: nothing in the first N instalments, then as `level` over the others.

A loan may name its `payment` instead (of equal principal: that part of it), or a multiple that it
is rounded up to. The last instalment repays what is left, and none repays more than that. A
payment that is large enough repays a loan early; the instalments after that are zero. In a long
period the interest can exceed the level payment: the balance may grow then, but not beyond what
was lent.

Where the first period is longer or shorter than a whole one, `FirstPeriod` says what becomes of
that. The broken-period interest of `upfront` is a row of its own, number 0: due on the day of
disbursement, without principal, and negative (a credit) where the first period is short.

`schedule` computes one loan, exactly, with decimals and fractions; `schedule_many` many loans at
once.
"""

import datetime
from calendar import monthrange
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import Rounding, round_money
from ledgerbeam.rules.terms.accrual import loan_fraction
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import DueDates, Frequency, parse_frequency
from ledgerbeam.rules.terms.repayment import (
    FirstPeriod,
    equal_part,
    interest_on,
    level_payment,
    parse_first_period,
    parse_method,
)

MAX_PRINCIPAL_DIGITS = 15
"""Most digits of a principal, or of a payment, in minor units: ten trillion dollars."""
RATE_DECIMALS = 6
MAX_RATE = 1000
"""Highest annual rate, in percent."""
MAX_YEARS = 100
"""From the day a loan is disbursed, or its first due date, to its last instalment."""
FIRST_YEAR = datetime.MINYEAR + MAX_YEARS
LAST_YEAR = datetime.MAXYEAR - MAX_YEARS - 1
"""The last in which a loan may be disbursed or first fall due, so that all due dates are dates."""
CALENDAR_MARGIN = 31
"""How many days more than a loan's life its calendar must cover, as due dates are moved."""


class Loan(NamedTuple):
    """What a schedule depends on.

    Attributes:
        loan_id: identifies the loan.
        currency: ISO 4217 code; decides how many decimals the amounts have.
        principal: what is lent, positive.
        annual_rate_percent: 3.5 is 3.5% a year; not negative.
        day_count: how days become parts of a year; one of `DayCount`.
        disbursed_on: from when on interest accrues.
        frequency: between due dates, an ISO 8601 duration of one unit, such as `P1M` or `P2W`, or
            a name; see `parse_frequency`.
        term: the number of instalments, those of interest only included.
        method: `level`, `equal_principal` or `interest_only:N`.
        first_due: when instalment 1 falls due; None for one frequency after `disbursed_on`.
        due_day: the day of the month on which instalments fall due, where the first due date (or,
            without one, `disbursed_on`) is the last day of a shorter month. None for its day; or
            for that of `disbursed_on`, where this is a later day than a shorter month has.
        second_due_day: the other due day, for due dates twice a month; None for 15 days from the
            first one.
        first_period: what becomes of a first period of another length; one of `FirstPeriod`, None
            for `to-the-day`.
        payment: the level payment, or of `equal_principal` the part of principal; None for the one
            that repays the loan in its term. What it leaves, the last instalment repays.
        round_payment_to: the payment that repays the loan is rounded up to a multiple of this.
    """

    loan_id: str
    currency: str
    principal: Decimal
    annual_rate_percent: Decimal
    day_count: str
    disbursed_on: datetime.date
    frequency: str
    term: int
    method: str
    first_due: datetime.date | None = None
    due_day: int | None = None
    second_due_day: int | None = None
    first_period: str | None = None
    payment: Decimal | None = None
    round_payment_to: Decimal | None = None


class ScheduledInstalment(NamedTuple):
    """One instalment; `payment` is `principal + interest`, `balance` what is owed after it.

    `due_date` is a business day if those are asked for; then `unadjusted_due_date` is the day on
    which the period ends, and else None.
    """

    number: int
    due_date: datetime.date
    principal: Decimal
    interest: Decimal
    payment: Decimal
    balance: Decimal
    unadjusted_due_date: datetime.date | None = None


class Factors(NamedTuple):
    """Interest on a balance of 1, exactly.

    Attributes:
        periods: of each period, the first one to the day.
        regular: of the first period if it were a whole one.
        broken: of the days by which the first period is longer than a whole one; negative if it
            is shorter, None if it is whole.
    """

    periods: list[Fraction]
    regular: Fraction
    broken: Fraction | None


def schedule(
    loan: Loan,
    rounding: Rounding = Rounding.HALF_EVEN,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> list[ScheduledInstalment]:
    """All instalments of a loan.

    Args:
        loan: as lent.
        rounding: of the level payment, of equal parts of principal and of interest.
        calendar: of business days, for `BUS/252` and for `convention`.
        convention: where due dates go that aren't business days; periods stay as they are.

    Raises:
        ValueError: if the loan can't be scheduled (see `check_loan`), or a payment doesn't cover
            interest, so that more would be owed than was lent.
    """
    check_loan(loan, calendar, convention)
    scale = minor_units(loan.currency)
    method, first_period = parse_method(loan.method), parse_first_period(loan.first_period)
    days, dues = due_dates(loan)
    periods, regular, broken = period_factors(loan, days, dues, calendar)
    solved = periods if first_period is FirstPeriod.TO_THE_DAY else [regular, *periods[1:]]
    balance = round_money(loan.principal, scale)
    payment = _payment(loan, solved, rounding)

    instalments = []
    if first_period is FirstPeriod.UPFRONT and broken is not None:
        nothing, interest = (
            round_money(Decimal(0), scale),
            interest_on(balance, broken, scale, rounding),
        )
        instalments.append(
            ScheduledInstalment(0, loan.disbursed_on, nothing, interest, interest, balance)
        )
        periods = solved
    for number, (due, factor, payable) in enumerate(zip(dues, periods, solved, strict=True), 1):
        interest = interest_on(balance, factor, scale, rounding)
        # The interest that the payment covers: that of a whole first period where the first
        # instalment has broken-period interest on top of the payment.
        covered = interest
        if payable != factor:
            covered = interest_on(balance, payable, scale, rounding)
        if number == loan.term:
            principal = balance
        elif number <= method.interest_only:
            principal = round_money(Decimal(0), scale)
        elif not method.level:
            principal = min(payment, balance)
        else:
            principal = min(payment - covered, balance)
        if balance - principal > loan.principal:
            is_long = number == 1 and factor == payable != regular
            raise ValueError(negative_amortisation(number, covered, payment, is_long))
        balance -= principal
        instalments.append(
            ScheduledInstalment(number, due, principal, interest, principal + interest, balance)
        )
    if calendar is None or convention is BusinessDayConvention.NONE:
        return instalments
    return [_moved(instalment, calendar, convention) for instalment in instalments]


def payment_of(
    loan: Loan,
    rounding: Rounding = Rounding.HALF_EVEN,
    calendar: BusinessCalendar | None = None,
) -> Decimal:
    """The level payment of a loan, or the equal part of principal: given, or what repays it.

    Args:
        loan: as lent; see `check_loan`.
        rounding: of the payment.
        calendar: of business days, for `BUS/252`.
    """
    periods, regular, _ = period_factors(loan, *due_dates(loan), calendar)
    first_period = parse_first_period(loan.first_period)
    solved = periods if first_period is FirstPeriod.TO_THE_DAY else [regular, *periods[1:]]
    return _payment(loan, solved, rounding)


def _payment(loan: Loan, periods: Sequence[Fraction], rounding: Rounding) -> Decimal:
    """`payment_of` a loan, for the interest of its periods on a balance of 1."""
    scale, method = minor_units(loan.currency), parse_method(loan.method)
    principal = round_money(loan.principal, scale)
    if loan.payment is not None:
        return round_money(loan.payment, scale)
    if method.level:
        repaying = periods[method.interest_only :]
        return level_payment(principal, repaying, scale, rounding, loan.round_payment_to)
    return equal_part(principal, loan.term, scale, rounding, loan.round_payment_to)


def due_dates(loan: Loan) -> tuple[DueDates, list[datetime.date]]:
    """The due dates of a loan: how they go on, and those of its instalments.

    Interest begins on `disbursed_on`; where it is settled `upfront`, the first period is whole.
    """
    frequency, due_day = parse_frequency(loan.frequency), _due_day(loan)
    second = loan.second_due_day or 0
    first_due = loan.first_due
    if first_due is None:
        at = loan.disbursed_on
        first_due = DueDates(frequency, due_day, second, first_due=at).regular_after(at)
    upfront = parse_first_period(loan.first_period) is FirstPeriod.UPFRONT
    interest_from = None if upfront else loan.disbursed_on
    days = DueDates(frequency, due_day, second, first_due, interest_from)
    dues = [first_due]
    while len(dues) < loan.term:
        dues.append(days.regular_after(dues[-1]))
    return days._replace(maturity=dues[-1]), dues


def period_factors(
    loan: Loan, days: DueDates, dues: list[datetime.date], calendar: BusinessCalendar | None = None
) -> Factors:
    """Interest of each period of a loan on a balance of 1, exactly.

    Args:
        loan: as lent.
        days: its due dates, as `due_dates` has them.
        dues: those of its instalments.
        calendar: for `BUS/252`.
    """
    rate, day_count = Fraction(loan.annual_rate_percent) / 100, parse_day_count(loan.day_count)
    whole = days._replace(interest_from=None)
    begin = whole.regular_before(dues[0])

    def factor(days: DueDates, start: datetime.date, end: datetime.date) -> Fraction:
        if end < start:
            return -factor(days, end, start)
        return rate * loan_fraction(days, day_count, start, end, calendar)

    starts = pairwise([days.before(dues[0]), *dues])
    return Factors(
        periods=[factor(days, start, end) for start, end in starts],
        regular=factor(whole, begin, dues[0]),
        broken=None if begin == loan.disbursed_on else factor(whole, loan.disbursed_on, begin),
    )


def _due_day(loan: Loan) -> int:
    """The day of the month on which instalments fall due."""
    first = loan.first_due or loan.disbursed_on
    if loan.due_day is not None:
        return loan.due_day
    # The month of the first due date may have been too short for the day of disbursement.
    return max(first.day, loan.disbursed_on.day) if _is_last_of_month(first) else first.day


def _is_last_of_month(day: datetime.date) -> bool:
    return day.day == monthrange(day.year, day.month)[1]


def _moved(
    instalment: ScheduledInstalment, calendar: BusinessCalendar, convention: BusinessDayConvention
) -> ScheduledInstalment:
    """An instalment due on a business day; what is settled on disbursement is not moved."""
    moved = due = instalment.due_date
    if instalment.number:
        moved = calendar.adjust(np.array([due], "datetime64[D]"), convention).tolist()[0]
    return instalment._replace(due_date=moved, unadjusted_due_date=due)


def previous_balance(
    balance: Decimal,
    payment: Decimal,
    factor: Fraction,
    scale: int = 2,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Decimal:
    """The balance one period earlier: what, with its interest and less `payment`, is `balance`.

    Rounding here undoes the rounding of interest: that moved the sum by half a minor unit at
    most, so the balance is off by 1/2 / (1 + factor) and is the nearest. Where no balance leads
    to exactly this one, the result is the one that comes nearest to it.
    """
    return round_money(Fraction(balance + payment) / (1 + factor), scale, rounding)


def negative_amortisation(
    number: int, interest: Decimal, payment: Decimal, is_long: bool = False
) -> str:
    """Why a loan is rejected that would come to more than was lent.

    Args:
        number: of the instalment.
        interest: that the payment doesn't cover.
        payment: of the loan.
        is_long: whether a first period of another length is what makes it grow.
    """
    reason = (
        f"negative amortisation: after instalment {number} more would be owed than was lent, as "
        f"its interest of {interest} exceeds the level payment of {payment}"
    )
    if is_long:
        reason += (
            f": first_period {FirstPeriod.FIRST_INSTALMENT} or {FirstPeriod.UPFRONT} lets the "
            "interest of a long first period be paid beside it"
        )
    return reason


def check_loan(
    loan: Loan,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> None:
    """Reject a loan whose terms can't be scheduled.

    Args:
        loan: as lent.
        calendar: as for `schedule`.
        convention: as for `schedule`.

    Raises:
        ValueError: with the first thing that is wrong, in one line.
    """
    for name, value in loan._asdict().items():
        if value is None and name not in Loan._field_defaults:
            raise ValueError(f"{name} is empty")
    decimals = minor_units(loan.currency)
    day_count = parse_day_count(loan.day_count)
    frequency = parse_frequency(loan.frequency)
    method = parse_method(loan.method)
    parse_first_period(loan.first_period)
    _check_amount("principal", loan.principal, loan.currency, decimals)
    _check_rate(loan.annual_rate_percent)
    _check_year("disbursed_on", loan.disbursed_on)
    _check_first_due(loan)
    _check_due_days(loan, frequency)
    if loan.term < 1:
        raise ValueError(f"term {loan.term} is not at least 1")
    if loan.term > max_term(frequency):
        raise ValueError(f"term {loan.term} of {loan.frequency} is more than {MAX_YEARS} years")
    if method.interest_only >= loan.term:
        raise ValueError(
            f"method {loan.method} leaves no instalment of a term of {loan.term} to repay principal"
        )
    _check_payment(loan, decimals)
    if day_count is DayCount.ACT_ACT_ICMA and frequency.days:
        raise ValueError(
            f"day_count {day_count} needs due dates that are counted in months, and "
            f"{loan.frequency} counts days"
        )
    if day_count is DayCount.BUS_252 and calendar is None:
        raise ValueError(
            f"day_count {day_count} needs a calendar of business days: name it by --calendar"
        )
    if calendar is not None and (
        convention is not BusinessDayConvention.NONE or day_count is DayCount.BUS_252
    ):
        _check_calendar(loan, calendar)


def _check_amount(name: str, amount: Decimal, currency: str, decimals: int) -> None:
    if amount <= 0:
        raise ValueError(f"{name} {amount} is not positive")
    units = Fraction(amount) * 10**decimals
    if units.denominator != 1:
        raise ValueError(f"{name} {amount} has more than the {decimals} decimals of {currency}")
    if units >= 10**MAX_PRINCIPAL_DIGITS:
        raise ValueError(f"{name} {amount} has more than {MAX_PRINCIPAL_DIGITS} digits")


def _check_rate(rate: Decimal) -> None:
    if not 0 <= rate <= MAX_RATE:
        raise ValueError(f"annual_rate_percent {rate} is not from 0 to {MAX_RATE}")
    if (Fraction(rate) * 10**RATE_DECIMALS).denominator != 1:
        raise ValueError(f"annual_rate_percent {rate} has more than {RATE_DECIMALS} decimals")


def _check_year(name: str, day: datetime.date) -> None:
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise ValueError(f"{name} is not in the years {FIRST_YEAR} to {LAST_YEAR}")


def _check_first_due(loan: Loan) -> None:
    first_due, disbursed_on = loan.first_due, loan.disbursed_on
    if first_due is None:
        return
    _check_year("first_due", first_due)
    if first_due <= disbursed_on:
        raise ValueError(f"first_due {first_due} is not after disbursed_on {disbursed_on}")
    if first_due.year > disbursed_on.year + MAX_YEARS:
        raise ValueError(
            f"first_due {first_due} is more than {MAX_YEARS} years after disbursed_on "
            f"{disbursed_on}"
        )


def _check_due_days(loan: Loan, frequency: Frequency) -> None:
    if loan.due_day is not None and frequency.days:
        raise ValueError(f"due_day {loan.due_day} means nothing where {loan.frequency} counts days")
    if loan.second_due_day is not None and not frequency.twice_a_month:
        raise ValueError(
            f"second_due_day {loan.second_due_day} needs a frequency of P0.5M, not {loan.frequency}"
        )
    for name in ("due_day", "second_due_day"):
        day = getattr(loan, name)
        if day is not None and not 1 <= day <= 31:
            raise ValueError(f"{name} {day} is not from 1 to 31")
    due_day, second = _due_day(loan), loan.second_due_day
    name = "disbursed_on" if loan.first_due is None else "first_due"
    first = loan.first_due or loan.disbursed_on
    if first.day != due_day and not (first.day < due_day and _is_last_of_month(first)):
        raise ValueError(f"due_day {due_day} is not the day of {name} {first}")
    if second is not None and len({min(day, 28) for day in (due_day, second)}) == 1:
        raise ValueError(
            f"second_due_day {second} and the due day {due_day} are one day, at least in February"
        )


def _check_payment(loan: Loan, decimals: int) -> None:
    payment, multiple = loan.payment, loan.round_payment_to
    if payment is not None:
        _check_amount("payment", payment, loan.currency, decimals)
    if multiple is not None:
        _check_amount("round_payment_to", multiple, loan.currency, decimals)
        if payment is not None and payment % multiple:
            raise ValueError(f"payment {payment} is no multiple of round_payment_to {multiple}")


def _check_calendar(loan: Loan, calendar: BusinessCalendar) -> None:
    first, last = np.array([loan.disbursed_on, due_dates(loan)[1][-1]], "datetime64[D]")
    if first - CALENDAR_MARGIN < calendar.first or last + CALENDAR_MARGIN > calendar.last:
        raise ValueError(
            f"the calendar {calendar.code} knows {calendar.first} to {calendar.last}, which must "
            f"hold {first} to {last} and {CALENDAR_MARGIN} days around them"
        )


def max_term(frequency: Frequency) -> int:
    """The most instalments a loan may have."""
    if frequency.days:
        return MAX_YEARS * 365 // frequency.days
    return MAX_YEARS * 12 // frequency.months if frequency.months else MAX_YEARS * 24


def parse_day_count(text: str) -> DayCount:
    """The day count of a name.

    Raises:
        ValueError: if there is none.
    """
    try:
        return DayCount(text)
    except ValueError:
        raise ValueError(f"day_count {text!r} is not one of {', '.join(DayCount)}") from None
