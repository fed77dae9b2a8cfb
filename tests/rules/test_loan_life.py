"""Loans from the day they are lent to the last instalment: schedule, book and investor agree."""

import datetime
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.loans_to_schedule import LOAN, loans
from tests.support.portfolios import CALENDAR

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.board import board
from ledgerbeam.rules.loans.contradictions import contradiction
from ledgerbeam.rules.loans.loan import (
    Entry,
    EntryKind,
    Partials,
    Policy,
    State,
    Step,
    Terms,
    Transaction,
    is_charge,
)
from ledgerbeam.rules.remittance.remit import Investor, RemittanceLine, RemittanceType
from ledgerbeam.rules.remittance.report_line import Holding, report_line
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.terms.day_count import DayCount

Date = datetime.date
MONEY = Policy(steps=(Step.APPLY_PAYMENTS, Step.FEES))
YEARS = (2020, 2030)
ONE_DAY = datetime.timedelta(1)
LONG_CALENDAR = business_calendar("US", 2004, 2036)


def units(loan: Loan, amount: object) -> int:
    return int(amount.scaleb(minor_units(loan.currency)))  # type: ignore[attr-defined]


@st.composite
def lent(draw: st.DrawFn, longest: int, day_counts: Sequence[str] = tuple(DayCount)) -> Loan:
    """Loans that can be scheduled, of a few years at the most, at a rate that pays for fees."""
    loan = draw(loans(longest=longest, day_counts=day_counts, years=YEARS))
    frequency = {"P1Y": "P3M", "semiannual": "P2M", "P6M": "P3M"}.get(loan.frequency)
    rate = max(loan.annual_rate_percent, Decimal(1))
    loan = loan._replace(frequency=frequency or loan.frequency, annual_rate_percent=rate)
    try:
        schedule(loan, calendar=CALENDAR)
    except ValueError:
        # Interest is more than the payment: equal parts of principal are always repaid.
        loan = loan._replace(method="equal_principal", payment=None, first_period="upfront")
    return loan


def scheduled(loan: Loan) -> list[ScheduledInstalment]:
    """Its instalments, less what is settled upfront."""
    return [each for each in schedule(loan, calendar=CALENDAR) if each.number]


def payments(loan: Loan, instalments: list[ScheduledInstalment]) -> list[Transaction]:
    """What the schedule asks for, when it asks for it."""
    return [
        Transaction(
            instalment.number, "payment", instalment.due_date, instalment.due_date,
            units(loan, instalment.payment), loan.currency,
        )
        for instalment in instalments
        if instalment.payment
    ]  # fmt: skip


@given(loan=lent(longest=9), partials=st.sampled_from(Partials))
@settings(max_examples=150)
def test_who_pays_by_the_schedule_is_current_and_paid_off_at_the_end(
    loan: Loan, partials: Partials
) -> None:
    instalments = scheduled(loan)
    terms, opening = board(loan, calendar=CALENDAR)
    paid = payments(loan, instalments)
    last = instalments[-1].due_date
    policy = MONEY._replace(partials=partials)
    state, entries = close(terms, opening, opening, paid, last + datetime.timedelta(40), policy)
    got = {
        entry.transaction_id: (entry.interest, entry.principal)
        for entry in entries
        if entry.kind is EntryKind.PAYMENT
    }
    assert got == {
        each.number: (units(loan, each.interest), units(loan, each.principal))
        for each in instalments
        if each.payment
    }
    assert len(entries) == len(got)
    assert (state.balance, state.suspense, state.fees, state.brought) == (0, 0, 0, 0)


@pytest.mark.parametrize("day_count", DayCount)
@pytest.mark.parametrize("due_day", [1, 15, 28, 29, 30, 31])
def test_thirty_years_on_any_day_of_the_month(day_count: DayCount, due_day: int) -> None:
    disbursed_on = Date(2005, 1, due_day)
    loan = LOAN._replace(
        disbursed_on=disbursed_on, term=348, day_count=str(day_count),
        annual_rate_percent=LOAN.annual_rate_percent * 2,
    )  # fmt: skip
    if day_count is DayCount.THIRTY_360_ISDA and due_day > 28:
        # Strictly counted, 28 February to 31 March has 33 days: more interest than payment.
        loan = loan._replace(method="equal_principal")
    instalments = schedule(loan, calendar=LONG_CALENDAR)
    terms, state = board(loan, calendar=LONG_CALENDAR)
    assert contradiction(terms, state) is None
    balance = units(loan, loan.principal)
    begin = disbursed_on
    for instalment in instalments:
        paid = Transaction(
            instalment.number, "payment", instalment.due_date, instalment.due_date,
            units(loan, instalment.payment),
        )  # fmt: skip
        state.closed_through = begin if begin == disbursed_on else instalment.due_date - ONE_DAY
        state, entries = close(terms, state, state, [paid], instalment.due_date, MONEY)
        (entry,) = entries
        assert entry.interest == units(loan, instalment.interest)
        balance -= entry.principal
        assert state.balance == balance == units(loan, instalment.balance)
        begin = instalment.due_date
    assert state.balance == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["payment", "payment", "payment", "curtailment", "payoff", "reversal"]),
        st.integers(0, 700),
        st.integers(1, 10),
    ),
    max_size=14,
)


def events_of(loan: Loan, drawn: list[tuple[str, int, int]], payment: int) -> list[Transaction]:
    """Events on days since the loan was lent; amounts in halves of a payment."""
    made = []
    for number, (kind, day, halves) in enumerate(sorted(drawn, key=lambda each: each[1]), 1):
        on = loan.disbursed_on + datetime.timedelta(1 + day)
        amount = payment * halves // 2 + 1
        if kind == "payoff":
            amount = 2 * units(loan, loan.principal)
        if kind == "reversal":
            made.append(
                Transaction(number, kind, on, on, 0, loan.currency, max(1, number - halves))
            )
        else:
            made.append(Transaction(number, kind, on, on, amount, loan.currency))
    return made


def lines_of(
    terms: Terms, opening: State, type_: RemittanceType, events: list[Transaction], through: Date
) -> tuple[list[RemittanceLine], list[Entry]]:
    """The lines of every month, each by a report from the opening; and the whole ledger."""
    holding = Holding("I1", "P1", 100_000_000, opening.balance)
    investor = Investor("I1", type_, 250_000, 0)
    ends = []
    day = opening.closed_through
    while day < through:
        day = (day + ONE_DAY).replace(day=28) + datetime.timedelta(4)
        day -= datetime.timedelta(day.day)
        ends.append(min(day, through))
    lines = [
        report_line(terms, holding, investor, opening, events, end, Policy()).remittance
        for end in ends
    ]
    _, entries = close(terms, opening, opening, events, ends[-1], MONEY)
    return lines, entries


@given(
    loan=lent(longest=7),
    drawn=EVENTS,
    type_=st.sampled_from(RemittanceType),
)
@settings(max_examples=80)
def test_an_investor_gets_back_what_was_lent_and_what_was_collected(
    loan: Loan, drawn: list[tuple[str, int, int]], type_: RemittanceType
) -> None:
    instalments = scheduled(loan)
    last = instalments[-1].due_date
    terms, opening = board(loan, calendar=CALENDAR)
    payment = units(loan, instalments[0].payment)
    events = events_of(loan, drawn, payment)
    is_scheduled = type_ is RemittanceType.SCHEDULED_SCHEDULED
    if is_scheduled and sum(each.amount for each in events) >= opening.balance:
        # What paid off the loan and is taken back later is refused: see test_remittance.
        events = [each for each in events if each.kind != "reversal"]
    lines, entries = lines_of(terms, opening, type_, events, last + datetime.timedelta(40))
    for before, after in pairwise(lines):
        assert after.beginning_balance == before.ending_balance
    repaid = sum(line.scheduled_principal + line.curtailment + line.payoff for line in lines)
    left = lines[-1].ending_balance
    assert repaid + left == opening.balance
    if is_scheduled:
        # Whatever the borrower does, the investor has all of it by the maturity date.
        assert left == 0
    if type_ is RemittanceType.ACTUAL_ACTUAL:
        collected = sum(entry.interest for entry in entries if not is_charge(entry))
        assert sum(line.interest + line.servicing_fee for line in lines) == collected
        assert sum(line.collected_interest for line in lines) == collected
