"""What happens to made-up loans: columns for `ledgerbeam.synthetic.loans`."""

import datetime
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ledgerbeam.synthetic.draws import Draws, Integers

Dates = npt.NDArray[np.datetime64]
Flags = npt.NDArray[np.bool_]

PAYMENT, CURTAILMENT, PAYOFF, REVERSAL, RATE_CHANGE = range(5)
MAX_PARTS = 4
IDS_PER_LOAN = 100_000

DAY_COUNTS = np.array(["30/360", "ACT/365F", "ACT/360", "ACT/ACT"], object)


@dataclass(frozen=True)
class Portfolio:
    """What all loans have in common.

    Attributes:
        investor_law: cumulative shares of the investors in all loans.
    """

    draws: Draws
    business_date: datetime.date
    months: int
    investor_law: npt.NDArray[np.float64]

    @property
    def first_month(self) -> np.datetime64:
        """The first month of the history."""
        return np.datetime64(self.business_date, "M") - (self.months - 1)


class _Loans(NamedTuple):
    """Columns of a block of loans; amounts in cents, rates in millionths of a percent."""

    numbers: Integers
    due_day: Integers
    rate: Integers
    term: Integers
    age: Integers
    balance: Integers
    payment: Integers
    escrow_payment: Integers
    day_count: Integers
    investor: Integers
    pool: Integers
    participation: Integers
    payoff_month: Integers
    rate_month: Integers
    due: Dates


class History(NamedTuple):
    """Transactions of a block of loans, in the order of posting.

    Attributes:
        numbers: numbers of the loans.
        columns: the loans' columns, for `loan_columns`.
        loan: index in the block of each transaction's loan.
        reverses: the transaction that is reversed; -1 for none, as in `rate` and `payment`.
    """

    numbers: Integers
    columns: dict[str, npt.NDArray[Any]]
    currency: npt.NDArray[np.object_]
    loan: Integers
    transaction_id: Integers
    kind: Integers
    effective_date: Dates
    posted_date: Dates
    amount: Integers
    reverses: Integers
    rate: Integers
    payment: Integers


class _Rows(NamedTuple):
    """Transactions before they have ids; `undoes` is the index of the reversed transaction."""

    loan: Integers
    kind: Integers
    effective: Dates
    posted: Dates
    amount: Integers
    undoes: Integers
    rate: Integers
    payment: Integers


def loan_columns(history: History) -> dict[str, npt.NDArray[Any]]:
    """The loans' columns by their names, with `number`, `investor` and `pool` as numbers."""
    return history.columns


def transactions(portfolio: Portfolio, numbers: Integers) -> History:
    """Make the loans of these numbers, and all that happens to them."""
    loans = _loans(portfolio, numbers)
    rows = _joined(_all_rows(portfolio, loans))
    last = np.datetime64(portfolio.business_date)
    first = portfolio.first_month.astype("datetime64[D]")
    is_in = (rows.posted <= last) & (rows.effective >= first)
    place = np.cumsum(is_in) - 1
    undoes = np.where(rows.undoes >= 0, place[rows.undoes], -1)
    rows = _Rows(*(column[is_in] for column in rows._replace(undoes=undoes)))
    # Ids ascend in the order of posting, and are unique over all loans.
    order = np.lexsort((np.arange(len(rows.loan)), rows.posted, rows.loan))
    sizes = np.bincount(rows.loan, minlength=len(numbers))
    within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    ids = np.empty(len(order), np.int64)
    ids[order] = (numbers[rows.loan[order]] + 1) * IDS_PER_LOAN + within
    reverses = np.where(rows.undoes >= 0, ids[rows.undoes], -1)
    by_posting = np.lexsort((ids, rows.posted))
    columns = _columns(portfolio, loans)
    return History(
        numbers, columns, columns["currency"], rows.loan[by_posting], ids[by_posting],
        rows.kind[by_posting], rows.effective[by_posting], rows.posted[by_posting],
        rows.amount[by_posting], reverses[by_posting], rows.rate[by_posting],
        rows.payment[by_posting],
    )  # fmt: skip


def _loans(portfolio: Portfolio, numbers: Integers) -> _Loans:
    draws = portfolio.draws
    rate = 2_000_000 + 125_000 * draws.integers("rate", 49, numbers)
    term = np.where(draws.uniform("term", numbers) < 0.7, 360, 180)
    age = draws.integers("age", 120, numbers)
    principal = (50_000_00 + 950_000_00 * draws.uniform("principal", numbers) ** 3).astype(np.int64)
    monthly = rate / 1.2e9
    growth = (1 + monthly) ** term
    payment = np.rint(principal * monthly * growth / (growth - 1)).astype(np.int64)
    so_far = (1 + monthly) ** age
    balance = np.rint(principal * so_far - payment * (so_far - 1) / monthly).astype(np.int64)
    escrow = (payment * 0.5 * draws.uniform("escrow", numbers)).astype(np.int64)
    escrow[draws.uniform("has escrow", numbers) < 0.2] = 0
    due_day = np.where(draws.uniform("due day", numbers) < 0.8, 1, 15)
    investor = draws.choice("investor", portfolio.investor_law, numbers)
    # One in 120 loans is paid off each month; such loans pay on time until then.
    payoff = np.floor(-120 * np.log1p(-draws.uniform("payoff", numbers))).astype(np.int64)
    has_change = draws.uniform("has rate change", numbers) < 0.05
    change = 1 + draws.integers("rate month", max(1, portfolio.months - 1), numbers)
    never = 10**6
    months = portfolio.first_month + np.arange(portfolio.months)
    return _Loans(
        numbers=numbers,
        due_day=due_day,
        rate=rate,
        term=term,
        age=age,
        balance=balance,
        payment=payment,
        escrow_payment=escrow,
        day_count=np.searchsorted([0.85, 0.90, 0.95], draws.uniform("day count", numbers)),
        investor=investor,
        pool=draws.integers("pool", 5, numbers),
        participation=np.where(
            draws.uniform("participation", numbers) < 0.05, 90_000_000, 100_000_000
        ),
        payoff_month=np.where(payoff < portfolio.months, payoff, never),
        rate_month=np.where(has_change & (payoff >= portfolio.months), change, never),
        due=months.astype("datetime64[D]")[None, :] + (due_day - 1)[:, None],
    )


def _columns(portfolio: Portfolio, loans: _Loans) -> dict[str, npt.NDArray[Any]]:
    first = portfolio.first_month
    offset = loans.due_day - 1
    paid = (first - 1).astype("datetime64[D]") + offset
    rows = len(loans.numbers)
    # An investor's fifth pool is in another currency than the others.
    currency = np.where(loans.pool == 4, "CAD", "USD").astype(object)
    # A payoff includes interest to the day; its amount is computed here by 30/360.
    codes = np.where(loans.payoff_month < portfolio.months, 0, loans.day_count)
    return {
        "number": loans.numbers,
        "investor": loans.investor,
        "pool": loans.pool,
        "currency": currency,
        "participation": loans.participation,
        "day_count": DAY_COUNTS[codes],
        "origination_date": (first - (loans.age + 2)).astype("datetime64[D]") + offset,
        "maturity_date": (first + (loans.term - loans.age - 1)).astype("datetime64[D]") + offset,
        "due_day": loans.due_day,
        "escrow_payment": loans.escrow_payment,
        "closed_through": np.full(rows, first.astype("datetime64[D]") - 1),
        "balance": loans.balance,
        "scheduled_balance": loans.balance,
        "rate": loans.rate,
        "payment": loans.payment,
        "next_due": loans.due[:, 0],
        "accrued_from": paid,
        "late_fees_through": paid,
    }


def _all_rows(portfolio: Portfolio, loans: _Loans) -> list[_Rows]:
    payments = _payments(portfolio, loans)
    curtailments = _curtailments(portfolio, loans)
    return [
        payments,
        *_bounced(portfolio, loans, payments),
        curtailments,
        _payoffs(portfolio, loans),
        _rate_changes(portfolio, loans),
    ]


def _cells(portfolio: Portfolio, loans: _Loans) -> Integers:
    """A unique number for each loan and month, of shape `(loans, months)`."""
    return loans.numbers[:, None] * 1_000 + np.arange(portfolio.months)


def _payments(portfolio: Portfolio, loans: _Loans) -> _Rows:
    """An instalment for each loan and month, in one, two or four parts, mostly on time."""
    draws, cells = portfolio.draws, _cells(portfolio, loans)
    month = np.arange(portfolio.months)
    style = draws.uniform("parts", loans.numbers)
    parts = np.where(style < 0.40, 1, np.where(style < 0.75, 2, 4))
    punctual = draws.uniform("late", cells)
    days = draws.integers("days", 14, cells)
    # Each borrower has a usual day, up to 9 days early or within the days of grace, and pays within
    # a day of it.
    habit = draws.integers("habit", 24, loans.numbers)
    habit = np.where(habit < 15, -(habit % 10), habit - 13)
    offset = habit[:, None] + days % 3 - 1
    # After the days of grace; a month or more; never.
    offset = np.where(punctual > 0.955, 17 + days, offset)
    offset = np.where(punctual > 0.975, 31 + 6 * days, offset)
    will_pay_off = loans.payoff_month < portfolio.months
    parts[will_pay_off] = 1
    offset = np.where(will_pay_off[:, None], np.minimum(offset, 0), offset)
    is_paid = (punctual <= 0.997) | will_pay_off[:, None]
    is_paid &= month[None, :] <= loans.payoff_month[:, None]
    is_paid &= month[None, :] <= (loans.term - loans.age - 1)[:, None]
    _, payment = _after_change(portfolio, loans)
    is_changed = month[None, :] > loans.rate_month[:, None]
    total = np.where(is_changed, payment[:, None], loans.payment[:, None])
    total = total + loans.escrow_payment[:, None]
    number = np.arange(MAX_PARTS)
    is_part = is_paid[:, :, None] & (number < parts[:, None])[:, None, :]
    loan, at_month, part = np.nonzero(is_part)
    of = parts[loan]
    each = total[loan, at_month] // of
    is_last = part == of - 1
    amount = np.where(is_last, total[loan, at_month] - each * (of - 1), each)
    # Parts are paid one or two weeks apart, the last one on the borrower's day.
    gap = 28 // of * (of - 1 - part)
    effective = loans.due[loan, at_month] + (offset[loan, at_month] - gap)
    first = portfolio.first_month.astype("datetime64[D]")
    effective = np.maximum(effective, first + part)
    pieces = cells[loan, at_month] * MAX_PARTS + part
    lag = np.where(draws.uniform("back-dated", pieces) < 0.01, 1 + pieces % 5, 0)
    lag[will_pay_off[loan]] = 0
    return _rows(loan, PAYMENT, effective, effective + lag, amount)


def _bounced(portfolio: Portfolio, loans: _Loans, payments: _Rows) -> list[_Rows]:
    """Reversals of payments, and the payments that replace them."""
    numbers = loans.numbers[payments.loan] * 100_000 + payments.effective.astype(np.int64)
    draws = portfolio.draws
    is_back = draws.uniform("bounced", numbers) < 1 / 150
    is_back &= loans.payoff_month[payments.loan] >= portfolio.months
    at = np.flatnonzero(is_back)
    loan = payments.loan[at]
    back = payments.posted[at] + (3 + draws.integers("bounces after", 4, numbers[at]))
    reversal = _rows(loan, REVERSAL, back, back, np.zeros(len(at), np.int64))
    again = _rows(loan, PAYMENT, back + 5, back + 5, payments.amount[at])
    return [reversal._replace(undoes=at), again]


def _curtailments(portfolio: Portfolio, loans: _Loans) -> _Rows:
    draws, cells = portfolio.draws, _cells(portfolio, loans)
    is_extra = draws.uniform("curtailed", cells) < 0.02
    is_extra &= (loans.payoff_month >= portfolio.months)[:, None]
    # Not near the end of a loan, where it would exceed the remaining balance.
    is_extra &= (loans.balance > 50_000_00)[:, None]
    loan, month = np.nonzero(is_extra)
    on = loans.due[loan, month] + draws.integers("curtailed on", 25, cells[loan, month])
    hundreds = 1 + draws.integers("curtailed by", 10, cells[loan, month])
    return _rows(loan, CURTAILMENT, on, on, hundreds * 100_00)


def _payoffs(portfolio: Portfolio, loans: _Loans) -> _Rows:
    """Payoffs to the cent: every instalment was on time, and interest is by 30/360."""
    at = np.flatnonzero(loans.payoff_month < portfolio.months)
    balance, count = loans.balance[at], loans.payoff_month[at] + 1
    for month in range(portfolio.months):
        interest = _half_even(balance * loans.rate[at], 1_200_000_000)
        repaid = np.minimum(balance, loans.payment[at] - interest)
        balance = balance - np.where(month < count, repaid, 0)
    at, balance, count = at[balance > 0], balance[balance > 0], count[balance > 0]
    days = 3 + portfolio.draws.integers("paid off after", 10, loans.numbers[at])
    on = loans.due[at, count - 1] + days
    amount = balance + _half_even(balance * loans.rate[at] * days, 36_000_000_000)
    return _rows(at, PAYOFF, on, on, amount)


def _rate_changes(portfolio: Portfolio, loans: _Loans) -> _Rows:
    at = np.flatnonzero(loans.rate_month < portfolio.months)
    rate, payment = _after_change(portfolio, loans)
    on = loans.due[at, loans.rate_month[at]]
    rows = _rows(at, RATE_CHANGE, on, on - 30, np.zeros(len(at), np.int64))
    return rows._replace(rate=rate[at], payment=payment[at])


def _after_change(portfolio: Portfolio, loans: _Loans) -> tuple[Integers, Integers]:
    """Rate and payment of each loan after its change, if it has one: up to 1% up or down."""
    step = portfolio.draws.integers("rate step", 17, loans.numbers) - 8
    rate = np.maximum(1_000_000, loans.rate + 125_000 * step)
    left = loans.term - loans.age
    monthly = rate / 1.2e9
    growth = (1 + monthly) ** left
    payment = np.rint(loans.balance * monthly * growth / (growth - 1)).astype(np.int64)
    return rate, payment


def _half_even(numerator: Integers, denominator: int) -> Integers:
    whole, rest = np.divmod(numerator, denominator)
    up = (2 * rest > denominator) | ((2 * rest == denominator) & (whole % 2 == 1))
    return np.asarray(whole + up)


def _rows(loan: Integers, kind: int, effective: Dates, posted: Dates, amount: Integers) -> _Rows:
    none = np.full(len(loan), -1)
    return _Rows(loan, np.full(len(loan), kind), effective, posted, amount, none, none, none)


def _joined(parts: list[_Rows]) -> _Rows:
    """All rows; reversals undo rows of the first part, whose indices stay the same."""
    return _Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
