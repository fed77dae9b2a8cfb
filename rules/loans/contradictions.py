"""Loans whose terms and state contradict each other: rejected with their reason, not closed."""

import datetime
from fractions import Fraction

import numpy as np

from ledgerbeam.rules.arrays import Flags
from ledgerbeam.rules.currency import format_money, scaled
from ledgerbeam.rules.loans.book import States
from ledgerbeam.rules.loans.loan import RATE_SCALE, RATE_UNITS, State, Terms
from ledgerbeam.rules.loans.terms_columns import TermsColumns
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import half_month_days

_NOT_NEGATIVE = ("balance", "rate", "suspense", "fees", "instalment_paid", "escrow_paid")


def contradiction(terms: Terms, state: State) -> str | None:
    """What contradicts itself in a loan's terms and state, in words; None if nothing does."""
    return _of_terms(terms) or _of_state(terms, state)


def check_consistent(terms: TermsColumns, states: States) -> None:
    """Reject loans of which one contradicts itself.

    Raises:
        ValueError: the `contradiction` of the first such loan.
    """
    for at in np.flatnonzero(_may_contradict(terms, states)).tolist():
        reason = contradiction(terms.row(at), states.row(at))
        if reason is not None:
            raise ValueError(reason)


def check_closed_through(states: States, business_date: datetime.date) -> None:
    """Reject loans of which one is closed beyond a business date.

    Raises:
        ValueError: one is.
    """
    if not len(states):
        return
    latest = states.closed_through.max()
    if latest > np.datetime64(business_date):
        raise ValueError(f"closed_through {latest} is after the business date {business_date}")


def _of_terms(terms: Terms) -> str | None:
    if terms.escrow_payment < 0:
        shown = format_money(terms.escrow_payment, terms.currency)
        return f"escrow_payment {shown} is negative"
    originated, matures, first_due = terms.origination_date, terms.maturity_date, terms.first_due
    if matures <= originated:
        return f"maturity_date {matures} is not after the loan's origination {originated}"
    if first_due is None:
        if terms.frequency.months != 1:
            return f"first_due is empty: it is needed with a frequency of {terms.frequency}"
        if terms.method.interest_only:
            return "first_due is empty: it is needed to count instalments without principal"
    elif first_due > matures:
        return f"maturity_date {matures} is before first_due {first_due}"
    elif first_due <= originated:
        return f"first_due {first_due} is not after the loan's origination {originated}"
    elif not terms.frequency.days and not _is_regular(terms, first_due):
        return f"first_due {first_due} is not on {_due_days(terms)}"
    if terms.frequency.twice_a_month and not 0 <= terms.second_due_day <= 31:
        return (
            f"second_due_day {terms.second_due_day} is not a day of the month of instalments that "
            "fall due twice a month"
        )
    if terms.day_count is DayCount.ACT_ACT_ICMA and terms.frequency.days:
        return f"day_count {terms.day_count} needs instalments by the month, not {terms.frequency}"
    if terms.day_count is DayCount.BUS_252 and terms.calendar is None:
        return f"day_count {terms.day_count} needs a calendar of business days: say --calendar"
    return None


def _of_state(terms: Terms, state: State) -> str | None:
    originated = terms.origination_date
    for name in ("closed_through", "next_due"):
        if getattr(state, name) < originated:
            return f"{name} {getattr(state, name)} is before the loan's origination {originated}"
    for name in _NOT_NEGATIVE:
        amount = getattr(state, name)
        if amount < 0:
            is_rate = name == "rate"
            shown = scaled(amount, RATE_SCALE) if is_rate else format_money(amount, terms.currency)
            return f"{name} {shown} is negative"
    if not state.balance:
        return None
    due_dates, due = terms.due_dates, state.next_due
    regular = due_dates.regular_before(due)
    if regular >= terms.maturity_date:
        return (
            f"next_due {due} is after the maturity_date {terms.maturity_date}, and balance is left"
        )
    if due != due_dates.after(due - datetime.timedelta(1)) and not _is_regular(terms, due):
        return (
            f"next_due {due} is no due date of the loan: instalments fall due on {_due_days(terms)}"
        )
    if terms.first_due is not None and due < terms.first_due:
        return f"next_due {due} is before first_due {terms.first_due}"
    paid = max(due_dates.before(due), state.closed_through)
    if state.accrued_from > paid:
        return (
            f"accrued_from {state.accrued_from} is after {paid}: interest can't be paid up to then "
            f"while the instalment of {due} isn't"
        )
    if due < terms.maturity_date and terms.method.level and terms.pays_principal(due):
        interest = Fraction(state.balance * state.rate, RATE_UNITS) * _period(terms)
        if state.payment < interest:
            return (
                f"payment {format_money(state.payment, terms.currency)} never repays the loan: a "
                f"period's interest is {format_money(round(interest), terms.currency)}"
            )
    return None


def _is_regular(terms: Terms, due: datetime.date) -> bool:
    return terms.due_dates.regular_after(due - datetime.timedelta(1)) == due


def _due_days(terms: Terms) -> str:
    if terms.frequency.days:
        return f"{terms.first_due}, and every {terms.frequency.days} days from then on"
    if terms.frequency.twice_a_month:
        days = half_month_days(terms.due_day, terms.second_due_day)
        return f"days {days[0]} and {days[1]} of the month"
    return f"day {terms.due_day} of the month"


def _period(terms: Terms) -> Fraction:
    """A period's part of a year, about."""
    months, days, _ = terms.frequency
    if days:
        return Fraction(days, 365)
    return Fraction(months, 12) if months else Fraction(1, 24)


def _may_contradict(terms: TermsColumns, states: States) -> Flags:
    """Loans to check one by one: all that contradict themselves, and few others."""
    is_wrong = ~terms.is_usual | (terms.months != 1) | ~np.isnat(terms.first_due)
    is_wrong |= terms.maturity_date <= terms.origination_date
    is_wrong |= terms.escrow_payment < 0
    for name in ("closed_through", "next_due"):
        is_wrong |= getattr(states, name) < terms.origination_date
    for name in _NOT_NEGATIVE:
        is_wrong |= getattr(states, name) < 0
    every = np.arange(len(terms))
    at = every[~is_wrong & (states.balance > 0)]
    if len(at):
        due = states.next_due[at]
        before = terms.before(at, due)
        is_odd = terms.after(at, before) != due
        is_odd |= due > terms.maturity_date[at]
        is_odd |= states.accrued_from[at] > np.maximum(before, states.closed_through[at])
        # A thousandth more than the interest: floats are not exact, and the plain rule decides.
        interest = states.balance[at] / RATE_UNITS * states.rate[at] / 12
        is_odd |= states.payment[at] < interest * 1.001
        is_wrong[at[is_odd]] = True
    return np.asarray(is_wrong)
