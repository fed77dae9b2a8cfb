"""The conventions by which published figures and ours differ, and where each is documented."""

from typing import NamedTuple


class Convention(NamedTuple):
    """What ours does where others do something else.

    Attributes:
        title: of its section on the page.
        text: what it is, in a sentence or two.
        documented: paths from the folder of the page, some with a section.
    """

    title: str
    text: str
    documented: tuple[str, ...]


_SCHEDULES = "repayment-schedules.md"

CONVENTIONS = {
    "whole-cents": Convention(
        "Balances are amounts of money",
        "Ours rounds payment, interest and balance to the minor unit in every instalment, as they "
        "are paid. Spreadsheets round what they show, and carry the rest along.",
        (f"{_SCHEDULES}#the-rule", "../rules/schedules/schedule.py"),
    ),
    "last-instalment": Convention(
        "The last instalment repays what is left",
        "Its interest is what is due, and its principal the balance, so it is some cents more or "
        "less than the others.",
        (f"{_SCHEDULES}#the-rule", "../rules/schedules/schedule.py"),
    ),
    "level-payment": Convention(
        "The level payment is the annuity, rounded",
        "Ours solves it exactly, rounds it once to the nearest minor unit, and leaves it at that.",
        (f"{_SCHEDULES}#the-rule", "../rules/terms/repayment.py"),
    ),
    "nearest": Convention(
        "Amounts are rounded to the nearest minor unit",
        "Ours rounds half to even (here half up, as published tables do). Banks in Japan cut off "
        "what is less than a yen.",
        (f"{_SCHEDULES}#the-rule", "../rules/money.py"),
    ),
    "rounded-once": Convention(
        "Interest is rounded once a period",
        "Ours takes the exact part of a year. Sources round the interest of a day, the rate of a "
        "day, or the part of a year first.",
        (f"{_SCHEDULES}#day-counts", "../rules/closing/interest.py"),
    ),
    "first-day": Convention(
        "The first day of a period counts, the last doesn't",
        "So it is in ISDA's definitions of day counts. Where the last day counts instead, a day "
        "falls into another year at the new year, of 366 days or 365.",
        (f"{_SCHEDULES}#day-counts", "../rules/terms/day_count.py"),
    ),
    "parts-add-up": Convention(
        "Parts of a period add up to it",
        "A date is one number of days, whether a period begins or ends on it.",
        ("../rules/terms/accrual.py",),
    ),
    "first-period": Convention(
        "A first period of another length bears simple interest",
        "It is counted by the loan's day count, like any other period, from the day of "
        "disbursement on.",
        (f"{_SCHEDULES}#a-first-period-of-another-length", "../rules/terms/accrual.py"),
    ),
    "late-fee": Convention(
        "A late fee is of the whole instalment",
        "It is a part of the principal and interest of the instalment that is late, whether or not "
        "some of it came in time.",
        ("../rules/closing/late_fees.py",),
    ),
    "fees-add-up": Convention(
        "Interest and fees add up to the interest at the note rate",
        "What is passed through and the guaranty fee are rounded; the servicing fee is what is "
        "left, so that nothing gets lost.",
        ("investor-report.md#the-rule", "../rules/remittance/remit.py"),
    ),
    "slip": Convention(
        "Slips of the source",
        "The figure doesn't follow from the source's own formula, which ours agrees with.",
        (f"{_SCHEDULES}#the-rule",),
    ),
}
