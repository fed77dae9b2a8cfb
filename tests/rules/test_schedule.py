"""Repayment schedules: worked examples, what holds for every loan, and both forms held equal."""

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.loans_to_schedule import (
    BOTH,
    LOAN,
    SMALL,
    WITHOUT_CALENDAR,
    Rule,
    each_by_itself,
    loans,
    named,
    rows,
    table,
)

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import Rounding, round_money
from ledgerbeam.rules.schedules import schedule_many as schedule_tables
from ledgerbeam.rules.schedules.loan_columns import check_loan_many
from ledgerbeam.rules.schedules.schedule import (
    Loan,
    due_dates,
    period_factors,
    previous_balance,
    schedule,
)
from ledgerbeam.rules.schedules.schedule_many import (
    instalments_schema,
    previous_balance_many,
    schedule_many,
)
from ledgerbeam.rules.terms.accrual import loan_fraction
from ledgerbeam.rules.terms.day_count import DayCount, year_fraction
from ledgerbeam.rules.terms.repayment import FirstPeriod, interest_on, level_payment, parse_method

BRAZIL = business_calendar("BR", 1949, 2100)


class TestWorkedExamples:
    @BOTH
    def test_six_months_at_one_percent_a_month(self, rule: Rule) -> None:
        instalments = rule(SMALL)
        assert [str(i.payment.quantize(Decimal("0.01"))) for i in instalments] == [
            *["17.25"] * 5,
            "17.28",
        ]
        assert [i.interest for i in instalments] == [
            Decimal(amount) for amount in ("1.00", "0.84", "0.67", "0.51", "0.34", "0.17")
        ]
        assert [i.due_date for i in instalments] == [date(2024, month, 1) for month in range(2, 8)]
        assert [i.number for i in instalments] == [1, 2, 3, 4, 5, 6]

    @BOTH
    def test_thirty_years(self, rule: Rule) -> None:
        instalments = rule(LOAN)
        assert len(instalments) == 360
        assert {i.payment for i in instalments[:-1]} == {Decimal("841.96")}
        assert instalments[-1].due_date == date(2054, 1, 1)

    @pytest.mark.parametrize("rounding", Rounding)
    def test_a_month_after_a_curtailment_and_back(self, rounding: Rounding) -> None:
        balance, payment = Decimal("186500.00"), Decimal("841.96")
        factor = (
            Fraction("3.50")
            / 100
            * year_fraction(date(2024, 5, 1), date(2024, 6, 1), DayCount.THIRTY_360)
        )
        interest = interest_on(balance, factor, 2, rounding)
        assert interest == Decimal("543.96")
        assert payment - interest == Decimal("298.00")
        after = balance - (payment - interest)
        assert after == Decimal("186202.00")
        assert previous_balance(after, payment, factor, 2, rounding) == balance
        numbers = (int(after * 100), int(payment * 100), *factor.as_integer_ratio())
        balances, payments, numerators, denominators = np.array(numbers).reshape(4, 1)
        previous = previous_balance_many(balances, payments, numerators, denominators, rounding)
        assert previous.tolist() == [18650000]

    @BOTH
    def test_equal_principal(self, rule: Rule) -> None:
        instalments = rule(SMALL._replace(method="equal_principal"))
        assert [i.principal for i in instalments] == [*[Decimal("16.67")] * 5, Decimal("16.65")]
        assert [i.interest for i in instalments] == [
            Decimal(amount) for amount in ("1.00", "0.83", "0.67", "0.50", "0.33", "0.17")
        ]

    @BOTH
    def test_interest_only_then_level(self, rule: Rule) -> None:
        instalments = rule(SMALL._replace(term=8, method="interest_only:2"))
        assert [i.payment for i in instalments] == [
            Decimal(amount) for amount in ("1.00", "1.00", *["17.25"] * 5, "17.28")
        ]
        assert [i.balance for i in instalments[:2]] == [Decimal(100)] * 2

    @BOTH
    def test_one_instalment(self, rule: Rule) -> None:
        (instalment,) = rule(SMALL._replace(term=1))
        assert instalment[2:6] == (Decimal(100), Decimal(1), Decimal(101), Decimal(0))

    @BOTH
    @pytest.mark.parametrize("method", ["level", "equal_principal", "interest_only:0"])
    def test_no_interest(self, rule: Rule, method: str) -> None:
        instalments = rule(SMALL._replace(annual_rate_percent=Decimal(0), term=3, method=method))
        assert [i.payment for i in instalments] == list(map(Decimal, ("33.33", "33.33", "33.34")))

    @BOTH
    def test_without_decimals_and_with_three(self, rule: Rule) -> None:
        yen = rule(SMALL._replace(currency="JPY", principal=Decimal(100)))
        assert [i.payment for i in yen] == list(map(Decimal, (17, 17, 17, 17, 17, 19)))
        fils = rule(SMALL._replace(currency="KWD"))
        assert [i.payment for i in fils] == [*[Decimal("17.255")] * 5, Decimal("17.253")]

    @BOTH
    def test_small_loans_are_repaid_early(self, rule: Rule) -> None:
        """0.10 in twelve parts is 0.01 each, which is ten of them."""
        free = SMALL._replace(principal=Decimal("0.10"), annual_rate_percent=Decimal(0), term=12)
        payments = [i.payment for i in rule(free)]
        assert payments == [*[Decimal("0.01")] * 10, Decimal(0), Decimal(0)]

    @BOTH
    def test_whole_months_have_30_days(self, rule: Rule) -> None:
        """From January's end to February's, and from there to March's."""
        loan = LOAN._replace(
            principal=Decimal(100_000),
            annual_rate_percent=Decimal(15),
            disbursed_on=date(2023, 1, 31),
        )
        instalments = rule(loan)
        assert [str(i.due_date) for i in instalments[:2]] == ["2023-02-28", "2023-03-31"]
        assert [i.interest for i in instalments[:2]] == [Decimal(1250), Decimal("1249.82")]
        assert {i.payment for i in instalments[:-1]} == {Decimal("1264.44")}

    @BOTH
    def test_a_balance_may_grow_in_a_long_period(self, rule: Rule) -> None:
        """By ISDA's formula, from the end of February to that of March are 33 days."""
        loan = LOAN._replace(
            annual_rate_percent=Decimal("8.5"),
            disbursed_on=date(2023, 1, 31),
            day_count="30/360 ISDA",
        )
        instalments = rule(loan)
        assert [i.principal.is_signed() for i in instalments[:4]] == [False, True, False, False]
        assert {i.payment for i in instalments[:-1]} == {instalments[0].payment}
        assert sum(i.principal for i in instalments) == loan.principal

    @BOTH
    def test_forty_years_of_two_weeks(self, rule: Rule) -> None:
        instalments = rule(LOAN._replace(frequency="P2W", term=1040, day_count="ACT/365F"))
        assert instalments[-1].due_date == date(2024, 1, 1) + timedelta(1040 * 14)
        assert len({i.payment for i in instalments[:-1]}) == 1
        assert abs(instalments[-1].payment - instalments[0].payment) < 12

    def test_rounding_is_a_parameter(self) -> None:
        """Half a cent of interest, and a level payment that ends on half a cent."""
        loan = SMALL._replace(principal=Decimal("100.50"), annual_rate_percent=Decimal(12), term=1)
        assert [schedule(loan, mode)[0].interest for mode in Rounding] == [
            Decimal("1.00"),
            Decimal("1.01"),
        ]
        free = SMALL._replace(principal=Decimal("0.25"), annual_rate_percent=Decimal(0), term=2)
        for rounding, payments in ((Rounding.HALF_EVEN, "12 13"), (Rounding.HALF_UP, "13 12")):
            expected = [Decimal(cents).scaleb(-2) for cents in payments.split()]
            assert [i.payment for i in schedule(free, rounding)] == expected
            instalments = schedule_many(table([free]), rounding).instalments
            assert instalments.column("payment").to_pylist() == expected


class TestEveryLoan:
    @given(loans(day_counts=tuple(DayCount), years=(1950, 2030)), st.sampled_from(Rounding))
    def test_amounts_hang_together(self, loan: Loan, rounding: Rounding) -> None:
        try:
            instalments = schedule(loan, rounding, BRAZIL)
        except ValueError as error:
            assume("negative amortisation" not in str(error))
            raise
        scale = minor_units(loan.currency)
        days, dues = due_dates(loan)
        if instalments[0].number == 0:
            upfront = instalments.pop(0)
            assert loan.first_period == FirstPeriod.UPFRONT
            assert upfront.due_date == loan.disbursed_on
            assert (upfront.principal, upfront.balance) == (Decimal(0), loan.principal)
            assert upfront.payment == upfront.interest
        assert [i.number for i in instalments] == list(range(1, loan.term + 1))
        assert [i.due_date for i in instalments] == dues
        dates = [days.before(dues[0]), *dues]
        balances = [loan.principal, *(i.balance for i in instalments)]
        assert dates == sorted(set(dates))
        assert sum(i.principal for i in instalments) == loan.principal
        assert balances[-1] == 0
        assert 0 <= min(balances) <= max(balances) == loan.principal
        rate = Fraction(loan.annual_rate_percent) / 100
        for k, instalment in enumerate(instalments):
            count = DayCount(loan.day_count)
            factor = rate * loan_fraction(days, count, dates[k], dates[k + 1], BRAZIL)
            exact = Fraction(balances[k]) * factor
            assert instalment.interest == round_money(exact, scale, rounding)
            assert instalment.payment == instalment.principal + instalment.interest
            assert instalment.principal == balances[k] - balances[k + 1]
            assert instalment.payment.as_tuple().exponent == -scale
        _, skipped = parse_method(loan.method)
        assert not any(i.principal for i in instalments[:skipped])
        # Level until the balance is repaid, but for what the first period has beside it.
        beside = skipped == 0 and loan.first_period == FirstPeriod.FIRST_INSTALMENT
        level = [i for i in instalments[skipped:-1] if i.balance][beside:]
        shares = "principal" if loan.method == "equal_principal" else "payment"
        amounts = {getattr(i, shares) for i in level}
        assert len(amounts) <= 1
        if loan.payment is not None:
            assert amounts <= {loan.payment}
        if loan.round_payment_to is not None:
            assert all(amount % loan.round_payment_to == 0 for amount in amounts)

    @given(loans(), st.sampled_from(Rounding))
    def test_the_level_payment_is_worth_the_principal(self, loan: Loan, rounding: Rounding) -> None:
        scale = minor_units(loan.currency)
        factors = period_factors(loan, *due_dates(loan)).periods
        payment = level_payment(loan.principal, factors, scale, rounding)
        worth, discount = Fraction(0), Fraction(1)
        for factor in factors:
            discount /= 1 + factor
            worth += discount
        assert payment == round_money(Fraction(loan.principal) / worth, scale, rounding)
        rounded = level_payment(loan.principal, factors, scale, rounding, Decimal(7))
        assert rounded % 7 == 0
        assert rounded - 7 < Fraction(loan.principal) / worth <= rounded

    @given(
        st.decimals("0.01", 10**9, places=2),
        st.decimals(0, 10**7, places=2),
        st.fractions(0, 2, max_denominator=10**6),
        st.sampled_from(Rounding),
    )
    def test_balances_can_be_traced_back(
        self, balance: Decimal, payment: Decimal, factor: Fraction, rounding: Rounding
    ) -> None:
        after = balance + interest_on(balance, factor, 2, rounding) - payment
        assert previous_balance(after, payment, factor, 2, rounding) == balance
        numbers = (int(after * 100), int(payment * 100), *factor.as_integer_ratio())
        balances, payments, numerators, denominators = np.array(numbers).reshape(4, 1)
        previous = previous_balance_many(balances, payments, numerators, denominators, rounding)
        assert previous.tolist() == [int(balance * 100)]


class TestTables:
    @settings(deadline=None)
    @given(
        st.lists(loans(day_counts=tuple(DayCount), years=(1950, 2030)), max_size=8).map(named),
        st.sampled_from(Rounding),
        st.sampled_from(BusinessDayConvention),
        st.sampled_from([1, 64, 1 << 20]),
    )
    def test_same_as_each_by_itself(
        self,
        drawn: list[Loan],
        rounding: Rounding,
        convention: BusinessDayConvention,
        cells: int,
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule_tables, "_CELLS", cells)
            schedules = schedule_many(table(drawn), rounding, BRAZIL, convention)
        expected = each_by_itself(drawn, rounding, BRAZIL, convention)
        assert (rows(schedules.instalments), schedules.rejected) == expected

    def test_long_loans_of_all_kinds(self) -> None:
        rates, methods = ("0", "0.125", "3.5", "7.25", "12"), ("level", "interest_only:60")
        frequencies = {"P1M": 480, "P2W": 1040}
        portfolio = named(
            [
                LOAN._replace(
                    annual_rate_percent=Decimal(rate),
                    day_count=day_count,
                    method=method,
                    frequency=frequency,
                    term=term,
                    disbursed_on=date(2023, 8, 31),
                )
                for rate, method in zip(rates, [*methods, *methods, "equal_principal"], strict=True)
                for day_count in WITHOUT_CALENDAR
                for frequency, term in frequencies.items()
                if frequency == "P1M" or day_count != DayCount.ACT_ACT_ICMA
            ]
        )
        schedules = schedule_many(table(portfolio))
        expected = each_by_itself(portfolio, Rounding.HALF_EVEN)
        assert (rows(schedules.instalments), schedules.rejected) == expected
        assert not schedules.rejected

    def test_level_payments_on_half_a_cent(self) -> None:
        """Of two free instalments every odd number of cents is one, also of very many cents."""
        free = SMALL._replace(annual_rate_percent=Decimal(0), term=2)
        portfolio = named(
            [free._replace(principal=Decimal(cents).scaleb(-2)) for cents in range(1, 12)]
            + [free._replace(principal=Decimal(10**15 - cents).scaleb(-2)) for cents in (1, 3, 5)]
        )
        for rounding in Rounding:
            schedules = schedule_many(table(portfolio), rounding)
            assert rows(schedules.instalments) == each_by_itself(portfolio, rounding)[0]

    def test_schema(self) -> None:
        empty = schedule_many(table([], scale=2))
        assert empty.rejected == {}
        amount = pa.decimal128(18, 2)
        assert empty.instalments.schema == instalments_schema(table([], scale=2).schema)
        assert empty.instalments.schema.types[1:] == [
            pa.int32(),
            pa.date32(),
            amount,
            amount,
            amount,
            amount,
        ]
        some = schedule_many(table([LOAN, SMALL._replace(loan_id="L2")], scale=2))
        assert some.instalments.schema == empty.instalments.schema
        moved = instalments_schema(table([], scale=2).schema, moved=True)
        assert moved.remove(7) == empty.instalments.schema
        assert moved.field(7) == pa.field("unadjusted_due_date", pa.date32())
        assert some.instalments.column("loan_id").to_pylist() == ["L1"] * 360 + ["L2"] * 6
        with pytest.raises(ValueError, match="principal has 19 decimals; the most are 18"):
            schedule_many(table([], scale=19))

    def test_plain_strings_and_several_chunks(self) -> None:
        portfolio = table(named([LOAN, SMALL, SMALL._replace(term=0)]))
        plain = portfolio.set_column(1, "currency", portfolio.column("currency").cast(pa.string()))
        parts = pa.concat_tables([plain[:1], plain[1:]])
        assert schedule_many(parts) == schedule_many(portfolio)
        ids = portfolio.column("loan_id").dictionary_encode()
        encoded = portfolio.set_column(0, "loan_id", ids)
        assert rows(schedule_many(encoded).instalments) == rows(
            schedule_many(portfolio).instalments
        )


REFUSED = [
    ({"loan_id": None}, "loan_id is empty"),
    ({"principal": None}, "principal is empty"),
    ({"disbursed_on": None}, "disbursed_on is empty"),
    ({"method": None}, "method is empty"),
    ({"currency": "usd"}, "currency 'usd' is not three capital letters, such as USD"),
    ({"principal": Decimal(0)}, "principal 0.0000 is not positive"),
    ({"principal": Decimal("-1.00")}, "principal -1.0000 is not positive"),
    ({"principal": Decimal("1.005")}, "principal 1.0050 has more than the 2 decimals of USD"),
    ({"principal": Decimal(10**13)}, "principal 10000000000000.0000 has more than 15 digits"),
    (
        {"annual_rate_percent": Decimal("-0.5")},
        "annual_rate_percent -0.5000000 is not from 0 to 1000",
    ),
    ({"annual_rate_percent": Decimal("1000.5")}, "annual_rate_percent 1000.5000000 is not from 0"),
    ({"annual_rate_percent": Decimal("0.0000001")}, "annual_rate_percent 1E-7 has more than 6 dec"),
    ({"day_count": "30/365"}, "day_count '30/365' is not one of 30/360, ACT/360, ACT/365F, ACT/"),
    ({"disbursed_on": date(9899, 1, 1)}, "disbursed_on is not in the years 101 to 9898"),
    ({"frequency": "daily"}, "frequency 'daily' is not a duration such as P1M or P2W"),
    ({"term": 0}, "term 0 is not at least 1"),
    ({"term": 1201}, "term 1201 of P1M is more than 100 years"),
    ({"term": 2**62, "frequency": "P2W"}, "term 4611686018427387904 of P2W is more than 100 years"),
    ({"method": "bullet"}, "method 'bullet' is not level, equal_principal or interest_only:N"),
    ({"method": "interest_only:360"}, "method interest_only:360 leaves no instalment of a term of"),
]


class TestRefusals:
    @pytest.mark.parametrize(("change", "reason"), REFUSED)
    def test_neighbours_are_scheduled(self, change: dict[str, Any], reason: str) -> None:
        bad = LOAN._replace(**{"loan_id": "bad", **change})
        portfolio = table([SMALL, bad, SMALL._replace(loan_id="L2")])
        schedules = schedule_many(portfolio)
        assert list(schedules.rejected) == [1]
        assert schedules.rejected[1].startswith(reason)
        assert check_loan_many(portfolio) == schedules.rejected
        assert schedules.instalments.column("loan_id").to_pylist() == ["L1"] * 6 + ["L2"] * 6
        with pytest.raises(ValueError, match="^" + reason.split(" ")[0]):
            schedule(bad)

    def test_negative_amortisation(self) -> None:
        """At 30% a year the payment covers the interest of 30 days, but not that of 31."""
        growing = LOAN._replace(
            annual_rate_percent=Decimal(30), day_count="ACT/365F", term=480, loan_id="bad"
        )
        reason = (
            "negative amortisation: after instalment 1 more would be owed than was lent, as its "
            "interest of 4777.40 exceeds the level payment of 4689.72"
        )
        with pytest.raises(ValueError, match=reason):
            schedule(growing)
        portfolio = table([SMALL, growing, LOAN._replace(loan_id="L2")])
        schedules = schedule_many(portfolio)
        assert schedules.rejected == {1: reason}
        assert schedules.instalments.num_rows == 366
        assert check_loan_many(portfolio) == {}

    def test_ids_that_are_not_unique(self) -> None:
        portfolio = table([SMALL, LOAN, SMALL._replace(loan_id="L2")])
        schedules = schedule_many(portfolio)
        reason = "loan_id L1 is that of another loan, too"
        assert schedules.rejected == {0: reason, 1: reason}
        assert schedules.instalments.column("loan_id").to_pylist() == ["L2"] * 6

    def test_what_the_columns_can_not_hold(self) -> None:
        dinars = SMALL._replace(currency="KWD", principal=Decimal(100))
        schedules = schedule_many(table([dinars], scale=2))
        assert schedules.rejected == {0: "KWD has 3 decimals, principal only 2"}
        yen = SMALL._replace(currency="JPY", principal=Decimal(10**13))
        pounds = SMALL._replace(loan_id="L2")
        schedules = schedule_many(table([yen, pounds], scale=6))
        assert schedules.rejected == {0: "an amount needs more than 18 digits, 6 of them decimals"}
        assert schedules.instalments.num_rows == 6
        # The principal fits, a year's interest with it doesn't.
        dear = yen._replace(
            principal=Decimal(5 * 10**11), annual_rate_percent=Decimal(1000), frequency="P1Y"
        )
        schedules = schedule_many(table([dear, pounds], scale=6))
        assert schedules.rejected == {0: "an amount needs more than 18 digits, 6 of them decimals"}
        assert schedules.instalments.num_rows == 6

    @pytest.mark.parametrize("days", [-(2**31), -719163, 2900000, 2**31 - 1])
    def test_days_that_are_no_dates_in_python(self, days: int) -> None:
        portfolio = table([SMALL, LOAN._replace(loan_id="L2")])
        column = pa.array([days, 19_740], pa.int32()).cast(pa.date32())
        for name in ("disbursed_on", "first_due"):
            at = portfolio.column_names.index(name)
            schedules = schedule_many(portfolio.set_column(at, name, column))
            assert schedules.rejected == {0: f"{name} is not in the years 101 to 9898"}
            assert schedules.instalments.num_rows == 360
