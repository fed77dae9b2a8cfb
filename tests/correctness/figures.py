"""What comes out of an example: published figures, each beside the one that this project computes.

A function for each kind of table in the files of examples; the amounts there are text.
"""

import datetime
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from ledgerbeam.rules.calendar.business_days import ANBIMA, BusinessCalendar, business_calendar
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.payments import payoff_amount
from ledgerbeam.rules.loans.loan import (
    Bucket,
    EntryKind,
    Partials,
    PayoffInterest,
    Policy,
    State,
    Terms,
    Transaction,
    in_minor_units,
)
from ledgerbeam.rules.money import Rounding, round_money
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType
from ledgerbeam.rules.remittance.report_line import Holding, report_line
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.terms.accrual import loan_fraction
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import MONTHLY, DueDates, Frequency, parse_frequency
from ledgerbeam.rules.terms.repayment import interest_on

Data = dict[str, Any]


class Figure(NamedTuple):
    """A published figure beside ours; `tolerance` is half of its last digit, if any is allowed."""

    name: str
    published: Fraction
    ours: Fraction
    tolerance: Fraction = Fraction(0)

    @property
    def difference(self) -> Fraction:
        gap = abs(self.published - self.ours)
        return gap if gap > self.tolerance else Fraction(0)


def _day_counts(data: Data) -> Iterator[Figure]:
    expected = data["expected"]
    ours = loan_fraction(
        _due_dates(data), DayCount(data["day_count"]), data["start"], data["end"], _calendar(data)
    )
    published = _number(expected) / data.get("of", 1)
    yield Figure("year fraction", published, ours, _half_of_last_digit(expected))


def _due_dates(data: Data) -> DueDates:
    """Those of a bond or loan whose period from `reference` to `reference_end` is a regular one."""
    ends = [_date(data[name]) for name in ("reference", "reference_end") if name in data]
    frequency = MONTHLY
    if len(ends) == 2:
        months = 12 * (ends[1].year - ends[0].year) + ends[1].month - ends[0].month
        frequency = Frequency(months, 0)
    if "frequency" in data:
        frequency = parse_frequency(data["frequency"])
    # The later day of the month: the other one may be the last of a shorter month.
    due_day = int(data.get("due_day", max((end.day for end in ends), default=1)))
    maturity = _date(data["maturity"]) if "maturity" in data else None
    return DueDates(frequency, due_day, first_due=ends[-1] if ends else None, maturity=maturity)


def _date(value: str | datetime.date) -> datetime.date:
    return datetime.date.fromisoformat(value) if isinstance(value, str) else value


def _calendar(data: Data) -> BusinessCalendar | None:
    if data["day_count"] != DayCount.BUS_252:
        return None
    return business_calendar(ANBIMA, data["start"].year, data["end"].year)


def _number(text: str) -> Fraction:
    """A decimal, a fraction, or a sum of fractions."""
    return sum((Fraction(part) for part in text.split("+")), Fraction(0))


def _half_of_last_digit(text: str) -> Fraction:
    return Fraction(1, 2 * 10 ** len(text.partition(".")[2])) if "." in text else Fraction(0)


def loan_of(terms: Data) -> Loan:
    """The loan of a case; what it leaves out is a monthly level loan in dollars."""
    given: Data = {
        "loan_id": "",
        "currency": "USD",
        "day_count": "30/360",
        "disbursed_on": datetime.date(2024, 1, 1),
        "frequency": "P1M",
        "method": "level",
    } | terms
    for name in given.keys() & {"principal", "annual_rate_percent", "payment", "round_payment_to"}:
        given[name] = Decimal(given[name])
    return Loan(**given)


def _schedules(data: Data) -> Iterator[Figure]:
    loan = loan_of(data["loan"])
    calendar = None
    if loan.day_count == DayCount.BUS_252:
        calendar = business_calendar(ANBIMA, loan.disbursed_on.year - 1, 2078)
    rounding = Rounding(data.get("rounding", Rounding.HALF_UP))
    instalments = schedule(loan, rounding, calendar)

    def figure(name: str, published: str, ours: Decimal) -> Figure:
        return Figure(name, Fraction(published), _shown(ours, data))

    totals: dict[str, Callable[[Sequence[ScheduledInstalment]], Decimal]] = {
        "payment": lambda all_: all_[data.get("payment_at", 1) - 1].payment,
        "last_payment": lambda all_: all_[-1].payment,
        "total_interest": lambda all_: sum((each.interest for each in all_), Decimal(0)),
        "total_payment": lambda all_: sum((each.payment for each in all_), Decimal(0)),
    }
    for name, total in totals.items():
        if name in data:
            yield figure(name, data[name], total(instalments))
    for line in data.get("rows", "").strip().splitlines():
        number, *published = line.split()
        instalment = next(each for each in instalments if each.number == int(number))
        for name, value in zip(("interest", "principal", "balance"), published, strict=True):
            if value != "-":
                yield figure(f"{name} of {number}", value, getattr(instalment, name))


def _shown(ours: Decimal, data: Data) -> Fraction:
    """As precise as it was published: `shown_to` 1 is whole units of the currency."""
    step = Fraction(data.get("shown_to", "0.01"))
    return Fraction(round_money(Fraction(ours) / step, 0, Rounding.HALF_UP)) * step


def _interest(data: Data) -> Iterator[Figure]:
    start, end = data["dates"]
    due_dates = DueDates(MONTHLY, start.day)
    factor = Fraction(data["annual_rate_percent"]) / 100
    factor *= loan_fraction(due_dates, DayCount(data["day_count"]), start, end)
    ours = interest_on(Decimal(data["balance"]), factor, 2, Rounding.HALF_UP)
    yield Figure("interest", Fraction(data["expected"]), Fraction(ours))


def _rates(data: Data) -> Iterator[Figure]:
    """Whether the published payment lies between ours at the rate's ends before it was rounded."""
    published, payment = Decimal(data["annual_rate_percent"]), Decimal(data["payment"])
    # Of a loan that is so much larger, cents are fine enough to tell rates apart.
    times = 10_000
    loan = data["loan"] | {"principal": str(times * int(data["loan"]["principal"]))}
    low, high = (
        schedule(loan_of(loan | {"annual_rate_percent": str(rate)}))[0].payment / times
        for rate in (published - Decimal("0.005"), published + Decimal("0.005"))
    )
    nearest = min(max(payment, low), high)
    yield Figure("payment", Fraction(payment), Fraction(nearest))


JUNE, JULY = datetime.date(2024, 6, 1), datetime.date(2024, 7, 1)


def _on_the_book(data: Data) -> tuple[Terms, State]:
    """A loan as the book has it: by default, June 2024 has begun and its instalment is due."""
    next_due = data.get("next_due", JUNE)
    terms = Terms(
        "L",
        "USD",
        DayCount(data.get("day_count", DayCount.THIRTY_360)),
        origination_date=data.get("originated_on", datetime.date(2020, 1, 1)),
        maturity_date=data.get("maturity", datetime.date(2050, 1, 1)),
        due_day=next_due.day,
        escrow_payment=0,
        first_due=data.get("first_due"),
    )
    before = terms.due_dates.before(next_due)
    state = State(
        closed_through=data.get("closed_through", next_due - datetime.timedelta(1)),
        balance=_cents(data["balance"]),
        rate=_rate(data.get("rate", "0")),
        payment=_cents(data["payment"]),
        next_due=next_due,
        accrued_from=data.get("accrued_from", before),
        late_fees_through=before,
    )
    return terms, state


def _received(data: Data) -> list[Transaction]:
    """What came in: payments on the first day of June 2024, if it isn't said otherwise."""
    return [
        Transaction(
            number, each.get("kind", "payment"), each.get("on", JUNE), each.get("on", JUNE),
            _cents(each["amount"]),
        )
        for number, each in enumerate(data.get("received", ()))
    ]  # fmt: skip


def _cents(amount: str) -> int:
    return in_minor_units(Decimal(amount), 2)


def _rate(percent: str) -> int:
    return in_minor_units(Decimal(percent), 6)


def _late_fees(data: Data) -> Iterator[Figure]:
    """The late fees charged up to a day, by what was received; July's instalment is the first."""
    given = {"balance": "1000000", "payment": data["instalment"], "next_due": JULY}
    terms, opening = _on_the_book(given | data)
    policy = Policy(
        waterfall=tuple(map(Bucket, data.get("waterfall", Bucket))),
        partials=Partials(data.get("partials", Partials.APPLY)),
        late_fee_rate=_rate(data["percent"]),
        grace_days=data["grace_days"],
    )
    closed = close(terms, opening, opening, _received(data), data["through"], policy)
    fees = sum(entry.amount for entry in closed.entries if entry.kind is EntryKind.LATE_FEE)
    yield Figure("late fees", Fraction(data["expected"]), Fraction(fees, 100))


def _payoffs(data: Data) -> Iterator[Figure]:
    """What pays the loan off on a day, after what was received before it."""
    policy = Policy(
        late_fee_rate=0,
        payoff_interest=PayoffInterest(data.get("payoff_interest", PayoffInterest.DAY_COUNT)),
    )
    terms, opening = _on_the_book({"closed_through": data["accrued_from"]} | data)
    day_before = data["on"] - datetime.timedelta(1)
    closed = close(terms, opening, opening, _received(data), day_before, policy)
    assert not any(entry.kind is EntryKind.REJECTED for entry in closed.entries)
    ours = payoff_amount(terms, closed.state, data["on"], policy)
    yield Figure("payoff", Fraction(data["expected"]), Fraction(ours, 100))


def _remittances(data: Data) -> Iterator[Figure]:
    """The investor's line of a month, June 2024 unless it is said otherwise."""
    terms, opening = _on_the_book(
        {"next_due": JUNE, "closed_through": JUNE - datetime.timedelta(1)} | data
    )
    investor = Investor(
        "I", RemittanceType(data["type"]), _rate(data["servicing"]), _rate(data["guaranty"])
    )
    scheduled = _cents(data["scheduled_balance" if "scheduled_balance" in data else "balance"])
    holding = Holding("I", "P", _rate("100"), scheduled)
    policy = Policy(
        late_fee_rate=0,
        payoff_interest=PayoffInterest(data.get("payoff_interest", PayoffInterest.DAY_COUNT)),
    )
    on = data.get("on", datetime.date(2024, 6, 30))
    line = report_line(terms, holding, investor, opening, _received(data), on, policy)
    assert line.rejections is None, line.rejections
    for name, published in data["expected"].items():
        ours = Decimal(getattr(line.remittance, name)).scaleb(-2)
        yield Figure(name, Fraction(published), _shown(ours, data))


KINDS: dict[str, Callable[[Data], Iterator[Figure]]] = {
    "day_counts": _day_counts,
    "schedules": _schedules,
    "interest": _interest,
    "rates": _rates,
    "late_fees": _late_fees,
    "payoffs": _payoffs,
    "remittances": _remittances,
}
