"""Further terms of schedules: first due dates, frequencies, payments, business days."""

from datetime import date
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.loans_to_schedule import (
    BOTH,
    LOAN,
    SMALL,
    Rule,
    built,
    each_by_itself,
    loans,
    table,
)

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.money import Rounding
from ledgerbeam.rules.schedules.loan_columns import check_loan_many
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.schedules.schedule_many import schedule_many
from ledgerbeam.rules.terms.repayment import FirstPeriod, level_payment

TO_THE_DAY, FIRST_INSTALMENT, UPFRONT = FirstPeriod
FED = business_calendar("XFED", 2020, 2060)

# 1,200.00 at 12% over twelve months by 30/360: 1% a month, 106.62 each.
YEAR = SMALL._replace(principal=Decimal(1200), term=12, disbursed_on=date(2026, 1, 10))
LONG = YEAR._replace(first_due=date(2026, 3, 1))
SHORT = YEAR._replace(first_due=date(2026, 2, 1))


def amounts(*texts: str) -> list[Decimal]:
    return [Decimal(text) for text in texts]


class TestFirstPeriod:
    @BOTH
    def test_to_the_day(self, rule: Rule) -> None:
        """From 10 January to 1 March are 51 days of 30/360, whose interest is 20.40."""
        instalments = rule(LONG)
        factors = [Fraction(51, 3000), *[Fraction(1, 100)] * 11]
        payment = level_payment(LONG.principal, factors)
        assert instalments[0].interest == Decimal("20.40")
        assert {i.payment for i in instalments[:-1]} == {payment}
        assert [str(i.due_date) for i in instalments[:3]] == [
            "2026-03-01", "2026-04-01", "2026-05-01",
        ]  # fmt: skip
        assert instalments[-1].due_date == date(2027, 2, 1)

    @BOTH
    @pytest.mark.parametrize(
        ("loan", "interest", "payment"),
        # 51 days of 30/360, and 21 of them.
        [(LONG, "20.40", "115.02"), (SHORT, "8.40", "103.02")],
    )
    def test_first_instalment(self, rule: Rule, loan: Loan, interest: str, payment: str) -> None:
        instalments = rule(loan._replace(first_period=FIRST_INSTALMENT))
        assert instalments[0].interest == Decimal(interest)
        assert instalments[0].payment == Decimal(payment)
        assert {i.payment for i in instalments[1:-1]} == {Decimal("106.62")}
        assert instalments[0].balance == Decimal("1105.38")

    @BOTH
    @pytest.mark.parametrize(
        ("loan", "broken"),
        # 21 days more than a month, 9 days less.
        [(LONG, "8.40"), (SHORT, "-3.60")],
    )
    def test_upfront(self, rule: Rule, loan: Loan, broken: str) -> None:
        first, *instalments = rule(loan._replace(first_period=UPFRONT))
        interest = Decimal(broken)
        assert first[:6] == (0, date(2026, 1, 10), Decimal(0), interest, interest, Decimal(1200))
        ordinary = rule(YEAR)
        assert [i.payment for i in instalments] == [i.payment for i in ordinary]
        assert [i.interest for i in instalments] == [i.interest for i in ordinary]
        assert instalments[0].due_date == loan.first_due

    @BOTH
    @pytest.mark.parametrize("first_period", FirstPeriod)
    def test_a_first_period_that_is_whole(self, rule: Rule, first_period: FirstPeriod) -> None:
        whole = YEAR._replace(first_due=date(2026, 2, 10), first_period=first_period)
        assert rule(whole) == rule(YEAR)

    @BOTH
    def test_one_instalment(self, rule: Rule) -> None:
        """Whatever first periods are, the last instalment repays all."""
        for first_period, interest in ((TO_THE_DAY, "20.40"), (FIRST_INSTALMENT, "20.40")):
            (only,) = rule(LONG._replace(term=1, first_period=first_period))
            assert only[2:6] == (*amounts("1200", interest), Decimal(interest) + 1200, 0)

    @BOTH
    def test_equal_principal_and_interest_only(self, rule: Rule) -> None:
        for method in ("equal_principal", "interest_only:2"):
            to_the_day, beside = (
                rule(LONG._replace(method=method, first_period=first_period))
                for first_period in (TO_THE_DAY, FIRST_INSTALMENT)
            )
            assert to_the_day == beside
            assert to_the_day[0].interest == Decimal("20.40")

    @BOTH
    def test_interest_of_a_long_first_period_that_would_be_owed(self, rule: Rule) -> None:
        loan = LOAN._replace(first_due=date(2024, 3, 15), annual_rate_percent=Decimal(9))
        for first_period in (FIRST_INSTALMENT, UPFRONT):
            assert rule(loan._replace(first_period=first_period))[-1].balance == 0
        reason = (
            "negative amortisation: after instalment 1 more would be owed than was lent, as its "
            "interest of 3468.75 exceeds the level payment of 1525.14: first_period "
            "first-instalment or upfront lets the interest of a long first period be paid beside it"
        )
        with pytest.raises(ValueError, match=reason):
            schedule(loan)
        assert schedule_many(table([loan])).rejected == {0: reason}

    @pytest.mark.parametrize(
        ("day_count", "interest"),
        [
            # 50 days, of which 21 from 10 to 31 January; a period of February has 28 days.
            ("ACT/360", "20.00"),
            ("ACT/365F", "19.73"),
            ("NL/365", "19.73"),
            ("ACT/364", "19.78"),
            # 1/12 for February, 22 of 31 days of January.
            ("ACT/ACT ICMA", "20.52"),
        ],
    )
    @BOTH
    def test_day_counts(self, rule: Rule, day_count: str, interest: str) -> None:
        first = rule(LONG._replace(day_count=day_count))[0]
        assert first.interest == Decimal(interest)
        beside = rule(LONG._replace(day_count=day_count, first_period=FIRST_INSTALMENT))[0]
        assert beside.interest == Decimal(interest)


class TestFrequencies:
    def dates(self, **terms: object) -> list[str]:
        loan = SMALL._replace(annual_rate_percent=Decimal(0), **terms)  # type: ignore[arg-type]
        plain, many = ([str(i.due_date) for i in rule(loan)] for rule in (schedule, built))
        assert plain == many
        return plain

    def test_twice_a_month(self) -> None:
        assert self.dates(frequency="P0.5M", disbursed_on=date(2026, 1, 15), term=5) == [
            "2026-01-30", "2026-02-15", "2026-02-28", "2026-03-15", "2026-03-30",
        ]  # fmt: skip
        assert self.dates(
            frequency="semimonthly", disbursed_on=date(2026, 1, 20), first_due=date(2026, 2, 1),
            second_due_day=15, term=4,
        ) == ["2026-02-01", "2026-02-15", "2026-03-01", "2026-03-15"]  # fmt: skip

    def test_names(self) -> None:
        for name, last in (
            ("weekly", "2024-01-22"), ("biweekly", "2024-02-12"), ("semimonthly", "2024-02-16"),
            ("monthly", "2024-04-01"), ("quarterly", "2024-10-01"), ("semiannual", "2025-07-01"),
            ("annual", "2027-01-01"),
        ):  # fmt: skip
            assert self.dates(frequency=name, term=3)[-1] == last

    def test_the_day_of_a_month_that_is_too_short(self) -> None:
        """The day of disbursement, or what is said, is the due day from the next month on."""
        short = {"first_due": date(2026, 2, 28), "term": 2}
        assert self.dates(disbursed_on=date(2026, 1, 31), **short)[1] == "2026-03-31"
        assert self.dates(disbursed_on=date(2026, 1, 30), **short)[1] == "2026-03-30"
        assert self.dates(disbursed_on=date(2026, 1, 10), **short)[1] == "2026-03-28"
        assert self.dates(disbursed_on=date(2026, 1, 10), due_day=31, **short)[1] == "2026-03-31"
        assert self.dates(disbursed_on=date(2026, 2, 28), due_day=31, term=1) == ["2026-03-31"]

    @BOTH
    def test_weeks_begin_on_the_first_due_date(self, rule: Rule) -> None:
        loan = SMALL._replace(
            frequency="P2W", first_due=date(2024, 1, 5), day_count="ACT/365F", first_period=UPFRONT
        )
        upfront, first, second, *_ = rule(loan)
        # Ten days less than two weeks.
        assert upfront.interest == Decimal("-0.33")
        assert [first.due_date, second.due_date] == [date(2024, 1, 5), date(2024, 1, 19)]


class TestPayments:
    @BOTH
    def test_a_payment_that_repays_early(self, rule: Rule) -> None:
        payments = [i.payment for i in rule(SMALL._replace(payment=Decimal(50)))]
        assert payments == amounts("50", "50", "1.53", "0", "0", "0")

    @BOTH
    def test_a_payment_that_leaves_a_balloon(self, rule: Rule) -> None:
        """Of interest alone, too."""
        payments = [i.payment for i in rule(SMALL._replace(payment=Decimal(10)))]
        assert payments == amounts("10", "10", "10", "10", "10", "54.63")
        payments = [i.payment for i in rule(SMALL._replace(payment=Decimal(1)))]
        assert payments == amounts("1", "1", "1", "1", "1", "101")

    @BOTH
    def test_a_part_of_principal(self, rule: Rule) -> None:
        instalments = rule(SMALL._replace(payment=Decimal(15), method="equal_principal"))
        assert [i.principal for i in instalments] == amounts("15", "15", "15", "15", "15", "25")

    @BOTH
    def test_after_interest_only(self, rule: Rule) -> None:
        loan = SMALL._replace(term=4, method="interest_only:1", payment=Decimal(40))
        assert [i.payment for i in rule(loan)] == amounts("1", "40", "40", "21.83")

    @BOTH
    def test_beside_the_first_period(self, rule: Rule) -> None:
        loan = LONG._replace(payment=Decimal(200), first_period=FIRST_INSTALMENT)
        assert [i.payment for i in rule(loan)][:2] == amounts("208.40", "200")

    @BOTH
    @pytest.mark.parametrize(
        ("multiple", "first", "last"),
        [
            ("0.01", "17.26", "17.23"),
            ("0.05", "17.30", "17.01"),
            ("1", "18", "13.29"),
            ("25", "25", "3"),
        ],
    )
    def test_rounded_up(self, rule: Rule, multiple: str, first: str, last: str) -> None:
        """100.00 over six months is 17.2548… a month."""
        instalments = rule(SMALL._replace(round_payment_to=Decimal(multiple)))
        assert instalments[0].payment == Decimal(first)
        paid = [i.payment for i in instalments if i.payment]
        assert set(paid[:-1]) == {Decimal(first)}
        assert sum(i.principal for i in instalments) == 100
        assert paid[-1] <= Decimal(first)

    @BOTH
    def test_parts_of_principal_rounded_up(self, rule: Rule) -> None:
        loan = SMALL._replace(round_payment_to=Decimal(5), method="equal_principal")
        assert [i.principal for i in rule(loan)] == amounts("20", "20", "20", "20", "20", "0")

    @BOTH
    def test_a_multiple_already(self, rule: Rule) -> None:
        """A quarter of 100.00 needs no rounding, though a float may be a bit more."""
        free = SMALL._replace(
            annual_rate_percent=Decimal(0), term=4, round_payment_to=Decimal("0.25")
        )
        assert [i.payment for i in rule(free)] == [Decimal(25)] * 4

    def test_less_than_interest(self) -> None:
        loan = SMALL._replace(payment=Decimal("0.99"))
        reason = (
            "negative amortisation: after instalment 1 more would be owed than was lent, as its "
            "interest of 1.00 exceeds the level payment of 0.99"
        )
        with pytest.raises(ValueError, match=reason):
            schedule(loan)
        assert schedule_many(table([loan])).rejected == {0: reason}


class TestBusinessDays:
    @pytest.mark.parametrize(
        ("convention", "expected"),
        [
            # A Saturday in the middle of a month, and a Sunday at its end.
            ("following", ["2026-02-02", "2026-03-02", "2026-03-31", "2026-04-30", "2026-06-01"]),
            (
                "modifiedfollowing",
                ["2026-01-30", "2026-02-27", "2026-03-31", "2026-04-30", "2026-05-29"],
            ),
            ("preceding", ["2026-01-30", "2026-02-27", "2026-03-31", "2026-04-30", "2026-05-29"]),
        ],
    )
    def test_due_dates_move_and_interest_does_not(
        self, convention: str, expected: list[str]
    ) -> None:
        loan = SMALL._replace(disbursed_on=date(2025, 12, 31), term=5, day_count="ACT/360")
        moved = schedule(loan, Rounding.HALF_EVEN, FED, BusinessDayConvention(convention))
        assert [str(i.due_date) for i in moved] == expected
        still = schedule(loan)
        assert [i.unadjusted_due_date for i in moved] == [i.due_date for i in still]
        assert [i[2:6] for i in moved] == [i[2:6] for i in still]

    def test_what_is_settled_upfront_is_not_moved(self) -> None:
        """10 January 2026 is a Saturday, and 1 March a Sunday."""
        loan = LONG._replace(first_period=UPFRONT)
        moved = schedule(loan, calendar=FED, convention=BusinessDayConvention.FOLLOWING)
        assert [str(i.due_date) for i in moved[:2]] == ["2026-01-10", "2026-03-02"]

    @BOTH
    def test_business_days_by_252(self, rule: Rule) -> None:
        """January 2024 has 21 business days at the Federal Reserve, February 20."""
        loan = SMALL._replace(day_count="BUS/252", principal=Decimal(25_200))
        reason = "day_count BUS/252 needs a calendar of business days: name it by --calendar"
        assert check_loan_many(table([loan])) == {0: reason}
        with pytest.raises(ValueError, match=reason):
            rule(loan) if rule is schedule else schedule(loan)
        for instalments in (
            schedule(loan, calendar=FED),
            schedule_many(table([loan]), calendar=FED).instalments.to_pylist(),
        ):
            first = instalments[0]
            got = first.interest if isinstance(first, ScheduledInstalment) else first["interest"]
            assert got == Decimal(252)

    def test_years_that_a_calendar_does_not_know(self) -> None:
        late = SMALL._replace(loan_id="late", disbursed_on=date(2060, 6, 1))
        early = SMALL._replace(loan_id="early", disbursed_on=date(2020, 1, 15))
        portfolio = [SMALL, late, early]
        convention = BusinessDayConvention.FOLLOWING
        refused = check_loan_many(table(portfolio), FED, convention)
        known = "the calendar XFED knows 2020-01-01 to 2060-12-31, which must hold"
        assert refused == {
            1: f"{known} 2060-06-01 to 2060-12-01 and 31 days around them",
            2: f"{known} 2020-01-15 to 2020-07-15 and 31 days around them",
        }
        assert each_by_itself(portfolio, Rounding.HALF_EVEN, FED, convention)[1] == refused
        # Who needs no calendar isn't asked.
        assert check_loan_many(table(portfolio), FED) == {}

    def test_a_convention_needs_a_calendar(self) -> None:
        with pytest.raises(ValueError, match="the convention following needs a calendar"):
            schedule_many(table([SMALL]), convention=BusinessDayConvention.FOLLOWING)


REFUSED = [
    ({"first_due": date(2024, 1, 1)}, "first_due 2024-01-01 is not after disbursed_on 2024-01-01"),
    ({"first_due": date(2023, 1, 1)}, "first_due 2023-01-01 is not after disbursed_on 2024-01-01"),
    (
        {"first_due": date(2125, 1, 1)},
        "first_due 2125-01-01 is more than 100 years after disbursed",
    ),
    ({"first_period": "odd"}, "first_period 'odd' is not one of to-the-day, first-instalment, upf"),
    ({"due_day": 0}, "due_day 0 is not from 1 to 31"),
    ({"due_day": 32}, "due_day 32 is not from 1 to 31"),
    ({"due_day": 5}, "due_day 5 is not the day of disbursed_on 2024-01-01"),
    (
        {"due_day": 5, "first_due": date(2024, 3, 1)},
        "due_day 5 is not the day of first_due 2024-03-01",
    ),
    ({"due_day": 1, "frequency": "P2W"}, "due_day 1 means nothing where P2W counts days"),
    ({"second_due_day": 15}, "second_due_day 15 needs a frequency of P0.5M, not P1M"),
    (
        {"second_due_day": 1, "frequency": "P0.5M"},
        "second_due_day 1 and the due day 1 are one day, at least in February",
    ),
    (
        {"second_due_day": 30, "frequency": "P0.5M", "disbursed_on": date(2024, 1, 28)},
        "second_due_day 30 and the due day 28 are one day, at least in February",
    ),
    ({"second_due_day": 32, "frequency": "P0.5M"}, "second_due_day 32 is not from 1 to 31"),
    ({"frequency": "P0.5M", "term": 2401}, "term 2401 of P0.5M is more than 100 years"),
    ({"payment": Decimal(0)}, "payment 0.0000 is not positive"),
    ({"payment": Decimal("-1")}, "payment -1.0000 is not positive"),
    ({"payment": Decimal("1.005")}, "payment 1.0050 has more than the 2 decimals of USD"),
    ({"payment": Decimal(10**13)}, "payment 10000000000000.0000 has more than 15 digits"),
    ({"round_payment_to": Decimal(0)}, "round_payment_to 0.0000 is not positive"),
    (
        {"round_payment_to": Decimal("0.001")},
        "round_payment_to 0.0010 has more than the 2 decimals",
    ),
    (
        {"round_payment_to": Decimal(1), "payment": Decimal("900.50")},
        "payment 900.5000 is no multiple of round_payment_to 1.0000",
    ),
    (
        {"day_count": "ACT/ACT ICMA", "frequency": "P2W"},
        "day_count ACT/ACT ICMA needs due dates that are counted in months, and P2W counts days",
    ),
    ({"day_count": "BUS/252"}, "day_count BUS/252 needs a calendar of business days: name it by"),
]


class TestRefusals:
    @pytest.mark.parametrize(("change", "reason"), REFUSED)
    def test_contradictions(self, change: dict[str, object], reason: str) -> None:
        bad = LOAN._replace(**{"loan_id": "bad", **change})  # type: ignore[arg-type]
        portfolio = table([SMALL, bad, SMALL._replace(loan_id="L2")])
        schedules = schedule_many(portfolio)
        assert list(schedules.rejected) == [1]
        assert schedules.rejected[1].startswith(reason)
        assert check_loan_many(portfolio) == schedules.rejected
        assert schedules.instalments.column("loan_id").to_pylist() == ["L1"] * 6 + ["L2"] * 6
        with pytest.raises(ValueError, match="^" + reason.split(" ")[0]):
            schedule(bad)

    @given(
        loans(longest=4),
        st.fixed_dictionaries(
            {},
            optional={
                "first_due": st.dates(date(1900, 1, 1), date(2200, 1, 1)),
                "due_day": st.integers(-1, 33),
                "second_due_day": st.integers(-1, 33),
                "first_period": st.sampled_from(["", "upfront", "Upfront"]),
                "payment": st.decimals(-1, 1000, places=3),
                "round_payment_to": st.decimals(-1, 100, places=3),
                "frequency": st.sampled_from(["P0.5M", "P1M", "P1Y", "P1W", "P1D", "often"]),
                "day_count": st.sampled_from(["ACT/ACT ICMA", "BUS/252", "30/360", "30/365"]),
            },
        ),
    )
    def test_both_forms_refuse_the_same(self, loan: Loan, changes: dict[str, object]) -> None:
        changed = [loan._replace(loan_id="L1", **changes)]  # type: ignore[arg-type]
        schedules = schedule_many(table(changed))
        instalments, refused = each_by_itself(changed, Rounding.HALF_EVEN)
        # Amounts have the decimals of their columns in a reason.
        assert list(schedules.rejected) == list(refused)
        assert [tuple(row.values()) for row in schedules.instalments.to_pylist()] == instalments


def test_columns_that_are_missing_or_empty_mean_nothing() -> None:
    portfolio = table([LOAN, SMALL._replace(loan_id="L2")])
    fewer = portfolio.select(portfolio.column_names[:9])
    assert schedule_many(fewer) == schedule_many(portfolio)
    blank = portfolio.set_column(12, "first_period", pa.array(["", ""]).dictionary_encode())
    assert schedule_many(blank) == schedule_many(portfolio)


def test_periods_of_many_kinds_in_one_block() -> None:
    """Every day count with every first period, held against each loan by itself."""
    days = np.array(["2024-01-31", "2024-02-28", "2024-02-29", "2024-03-15"], "datetime64[D]")
    portfolio = [
        LOAN._replace(
            loan_id=f"{frequency} {day} {first_period} {day_count}",
            annual_rate_percent=Decimal(5),
            term=24,
            frequency=frequency,
            disbursed_on=day,
            first_due=date(2024, 5, 31),
            first_period=first_period,
            day_count=day_count,
        )
        for frequency in ("P1M", "P6M", "P1Y", "P0.5M", "P2W")
        for day in days.tolist()
        for first_period in FirstPeriod
        for day_count in (
            "30/360",
            "30E/360 ISDA",
            "ACT/365L",
            "ACT/ACT ICMA",
            "BUS/252",
            "ACT/ACT",
        )
        if (frequency, day_count) != ("P2W", "ACT/ACT ICMA")
    ]
    schedules = schedule_many(table(portfolio), calendar=FED)
    expected, refused = each_by_itself(portfolio, Rounding.HALF_EVEN, FED)
    assert (refused, schedules.rejected) == ({}, {})
    assert [tuple(row.values()) for row in schedules.instalments.to_pylist()] == expected
