"""Repayment schedules: worked examples, what holds for every loan, and both forms held equal."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ledgerbeam.rules import schedule_tables
from ledgerbeam.rules.day_count import DayCount, year_fraction
from ledgerbeam.rules.loan_terms import check_loans
from ledgerbeam.rules.money import Rounding, minor_units, round_money
from ledgerbeam.rules.schedule import (
    Frequency,
    Instalment,
    Loan,
    due_date,
    interest_on,
    level_payment,
    parse_frequency,
    parse_method,
    period_factors,
    previous_balance,
    schedule,
)
from ledgerbeam.rules.schedule_tables import (
    build_schedules,
    instalments_schema,
    previous_balances,
)

LOAN = Loan(
    loan_id="L1",
    currency="USD",
    principal=Decimal("187500.00"),
    annual_rate_percent=Decimal("3.50"),
    day_count="30/360",
    disbursed_on=date(2024, 1, 1),
    frequency="P1M",
    term=360,
    method="level",
)
SMALL = LOAN._replace(principal=Decimal("100.00"), annual_rate_percent=Decimal(12), term=6)


def table(loans: Sequence[Loan], scale: int = 4) -> pa.Table:
    """The loans with all strings but `loan_id` dictionary-encoded, as contracts have them."""
    few = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        {
            "loan_id": pa.string(),
            "currency": few,
            "principal": pa.decimal128(38, scale),
            "annual_rate_percent": pa.decimal128(12, 7),
            "day_count": few,
            "disbursed_on": pa.date32(),
            "frequency": few,
            "term": pa.int64(),
            "method": few,
        }
    )
    return pa.Table.from_pylist([loan._asdict() for loan in loans], schema)


def each_by_itself(
    loans: Sequence[Loan], rounding: Rounding
) -> tuple[list[tuple[object, ...]], dict[int, str]]:
    """What `build_schedules` must give, by the plain rule."""
    instalments: list[tuple[object, ...]] = []
    refused = {}
    for row, loan in enumerate(loans):
        try:
            instalments += [(loan.loan_id, *instalment) for instalment in schedule(loan, rounding)]
        except ValueError as error:
            refused[row] = str(error)
    return instalments, refused


def rows(instalments: pa.Table) -> list[tuple[object, ...]]:
    instalments.validate(full=True)
    return [tuple(row.values()) for row in instalments.to_pylist()]


def built(loan: Loan) -> list[Instalment]:
    schedules = build_schedules(table([loan]))
    assert not schedules.refused
    return [Instalment(*row[1:]) for row in rows(schedules.instalments)]  # type: ignore[arg-type]


Rule = Callable[[Loan], list[Instalment]]
BOTH = pytest.mark.parametrize("rule", [schedule, built])


@st.composite
def loans(draw: st.DrawFn, longest: int = 60) -> Loan:
    currency = draw(st.sampled_from(["USD", "JPY", "KWD"]))
    places = minor_units(currency)
    term = draw(st.integers(1, 4) | st.integers(1, longest))
    skipped = draw(st.integers(0, term - 1))
    return Loan(
        loan_id="",
        currency=currency,
        principal=Decimal(draw(st.integers(1, 10**4) | st.integers(1, 10**12))).scaleb(-places),
        annual_rate_percent=draw(
            st.just(Decimal(0)) | st.decimals(0, 30, places=3) | st.decimals(0, 1000, places=6)
        ),
        day_count=draw(st.sampled_from(DayCount)),
        disbursed_on=draw(st.dates(date(1950, 1, 1), date(2100, 1, 1))),
        frequency=draw(st.sampled_from(["P1M", "P2W", "P3M", "P1W", "P1Y", "P10D"])),
        term=term,
        method=draw(st.sampled_from(["level", "equal_principal", f"interest_only:{skipped}"])),
    )


def named(drawn: Sequence[Loan]) -> list[Loan]:
    return [loan._replace(loan_id=f"L{row}") for row, loan in enumerate(drawn)]


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
        units = (np.array([int(amount * 100)]) for amount in (after, payment))
        ratio = (np.array([number]) for number in factor.as_integer_ratio())
        assert previous_balances(*units, *ratio, rounding).tolist() == [18650000]

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
        assert instalment[2:] == (Decimal(100), Decimal(1), Decimal(101), Decimal(0))

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
    def test_a_balance_may_grow_in_a_long_period(self, rule: Rule) -> None:
        """From the end of February to that of March are 33 days of 30/360."""
        loan = LOAN._replace(annual_rate_percent=Decimal("8.5"), disbursed_on=date(2023, 1, 31))
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
            instalments = build_schedules(table([free]), rounding).instalments
            assert instalments.column("payment").to_pylist() == expected


class TestDueDates:
    def test_month_ends_follow_the_day_of_disbursement(self) -> None:
        monthly = [due_date(date(2023, 12, 31), Frequency(1, 0), k) for k in range(5)]
        assert [str(day) for day in monthly] == [
            "2023-12-31",
            "2024-01-31",
            "2024-02-29",
            "2024-03-31",
            "2024-04-30",
        ]

    @pytest.mark.parametrize(
        ("text", "frequency"),
        [("P1M", (1, 0)), ("P3M", (3, 0)), ("P1Y", (12, 0)), ("P2W", (0, 14)), ("P10D", (0, 10))],
    )
    def test_durations(self, text: str, frequency: tuple[int, int]) -> None:
        assert parse_frequency(text) == frequency

    @pytest.mark.parametrize(
        "text", ["", "1M", "P", "P0M", "P1M15D", "PT1M", "p1m", "P-1M", "P1.5M"]
    )
    def test_what_is_no_duration(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a duration such as P1M or P2W"):
            parse_frequency(text)


class TestEveryLoan:
    @given(loans(), st.sampled_from(Rounding))
    def test_amounts_hang_together(self, loan: Loan, rounding: Rounding) -> None:
        try:
            instalments = schedule(loan, rounding)
        except ValueError as error:
            assume("negative amortisation" not in str(error))
            raise
        scale = minor_units(loan.currency)
        dates = [loan.disbursed_on, *(i.due_date for i in instalments)]
        balances = [loan.principal, *(i.balance for i in instalments)]
        assert dates == sorted(set(dates))
        assert sum(i.principal for i in instalments) == loan.principal
        assert balances[-1] == 0
        assert max(balances) == loan.principal
        rate = Fraction(loan.annual_rate_percent) / 100
        for k, instalment in enumerate(instalments):
            factor = rate * year_fraction(dates[k], dates[k + 1], DayCount(loan.day_count))
            exact = Fraction(balances[k]) * factor
            assert instalment.interest == round_money(exact, scale, rounding)
            assert instalment.payment == instalment.principal + instalment.interest
            assert instalment.principal == balances[k] - balances[k + 1]
            assert instalment.payment.as_tuple().exponent == -scale
        _, skipped = parse_method(loan.method)
        assert not any(i.principal for i in instalments[:skipped])
        # Level until the balance is repaid.
        level = [i for i in instalments[skipped:-1] if i.balance]
        shares = "principal" if loan.method == "equal_principal" else "payment"
        assert len({getattr(i, shares) for i in level}) <= 1

    @given(loans(), st.sampled_from(Rounding))
    def test_the_level_payment_is_worth_the_principal(self, loan: Loan, rounding: Rounding) -> None:
        scale = minor_units(loan.currency)
        frequency = parse_frequency(loan.frequency)
        dates = [due_date(loan.disbursed_on, frequency, k) for k in range(loan.term + 1)]
        factors = period_factors(loan.annual_rate_percent, DayCount(loan.day_count), dates)
        payment = level_payment(loan.principal, factors, scale, rounding)
        worth, discount = Fraction(0), Fraction(1)
        for factor in factors:
            discount /= 1 + factor
            worth += discount
        assert payment == round_money(Fraction(loan.principal) / worth, scale, rounding)

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
        units = (np.array([int(amount * 100)]) for amount in (after, payment))
        ratio = (np.array([number]) for number in factor.as_integer_ratio())
        assert previous_balances(*units, *ratio, rounding).tolist() == [int(balance * 100)]


class TestTables:
    @settings(deadline=None)
    @given(
        st.lists(loans(), max_size=8).map(named),
        st.sampled_from(Rounding),
        st.sampled_from([1, 64, 1 << 20]),
    )
    def test_same_as_each_by_itself(
        self, drawn: list[Loan], rounding: Rounding, cells: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule_tables, "_CELLS", cells)
            schedules = build_schedules(table(drawn), rounding)
        assert (rows(schedules.instalments), schedules.refused) == each_by_itself(drawn, rounding)

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
                for day_count in DayCount
                for frequency, term in frequencies.items()
            ]
        )
        schedules = build_schedules(table(portfolio))
        expected = each_by_itself(portfolio, Rounding.HALF_EVEN)
        assert (rows(schedules.instalments), schedules.refused) == expected
        assert not schedules.refused

    def test_level_payments_on_half_a_cent(self) -> None:
        """Of two free instalments every odd number of cents is one, also of very many cents."""
        free = SMALL._replace(annual_rate_percent=Decimal(0), term=2)
        portfolio = named(
            [free._replace(principal=Decimal(cents).scaleb(-2)) for cents in range(1, 12)]
            + [free._replace(principal=Decimal(10**15 - cents).scaleb(-2)) for cents in (1, 3, 5)]
        )
        for rounding in Rounding:
            schedules = build_schedules(table(portfolio), rounding)
            assert rows(schedules.instalments) == each_by_itself(portfolio, rounding)[0]

    def test_schema(self) -> None:
        empty = build_schedules(table([], scale=2))
        assert empty.refused == {}
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
        some = build_schedules(table([LOAN, SMALL._replace(loan_id="L2")], scale=2))
        assert some.instalments.schema == empty.instalments.schema
        assert some.instalments.column("loan_id").to_pylist() == ["L1"] * 360 + ["L2"] * 6
        with pytest.raises(ValueError, match="principal has 19 decimals; the most are 18"):
            build_schedules(table([], scale=19))

    def test_plain_strings_and_several_chunks(self) -> None:
        portfolio = table(named([LOAN, SMALL, SMALL._replace(term=0)]))
        plain = portfolio.set_column(1, "currency", portfolio.column("currency").cast(pa.string()))
        parts = pa.concat_tables([plain[:1], plain[1:]])
        assert build_schedules(parts) == build_schedules(portfolio)
        ids = portfolio.column("loan_id").dictionary_encode()
        encoded = portfolio.set_column(0, "loan_id", ids)
        assert rows(build_schedules(encoded).instalments) == rows(
            build_schedules(portfolio).instalments
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
    ({"day_count": "30E/360"}, "day_count '30E/360' is not one of 30/360, ACT/360, ACT/365F, ACT/"),
    ({"disbursed_on": date(9900, 1, 1)}, "disbursed_on is not in the years 1 to 9899"),
    ({"frequency": "monthly"}, "frequency 'monthly' is not a duration such as P1M or P2W"),
    ({"term": 0}, "term 0 is not at least 1"),
    ({"term": 1201}, "term 1201 of P1M is more than 100 years"),
    ({"term": 2**62, "frequency": "P2W"}, "term 4611686018427387904 of P2W is more than 100 years"),
    ({"method": "bullet"}, "method 'bullet' is not level, equal_principal or interest_only:N"),
    ({"method": "interest_only:360"}, "method interest_only:360 leaves no instalment of a term of"),
]


class TestRefusals:
    @pytest.mark.parametrize(("change", "reason"), REFUSED)
    def test_neighbours_are_scheduled(self, change: dict[str, object], reason: str) -> None:
        bad = LOAN._replace(**{"loan_id": "bad", **change})
        portfolio = table([SMALL, bad, SMALL._replace(loan_id="L2")])
        schedules = build_schedules(portfolio)
        assert list(schedules.refused) == [1]
        assert schedules.refused[1].startswith(reason)
        assert check_loans(portfolio) == schedules.refused
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
        schedules = build_schedules(portfolio)
        assert schedules.refused == {1: reason}
        assert schedules.instalments.num_rows == 366
        assert check_loans(portfolio) == {}

    def test_ids_that_are_not_unique(self) -> None:
        portfolio = table([SMALL, LOAN, SMALL._replace(loan_id="L2")])
        schedules = build_schedules(portfolio)
        reason = "loan_id L1 is that of another loan, too"
        assert schedules.refused == {0: reason, 1: reason}
        assert schedules.instalments.column("loan_id").to_pylist() == ["L2"] * 6

    def test_what_the_columns_can_not_hold(self) -> None:
        dinars = SMALL._replace(currency="KWD", principal=Decimal(100))
        schedules = build_schedules(table([dinars], scale=2))
        assert schedules.refused == {0: "KWD has 3 decimals, principal only 2"}
        yen = SMALL._replace(currency="JPY", principal=Decimal(10**13))
        pounds = SMALL._replace(loan_id="L2")
        schedules = build_schedules(table([yen, pounds], scale=6))
        assert schedules.refused == {0: "an amount needs more than 18 digits, 6 of them decimals"}
        assert schedules.instalments.num_rows == 6
        # The principal fits, a year's interest with it doesn't.
        dear = yen._replace(
            principal=Decimal(5 * 10**11), annual_rate_percent=Decimal(1000), frequency="P1Y"
        )
        schedules = build_schedules(table([dear, pounds], scale=6))
        assert schedules.refused == {0: "an amount needs more than 18 digits, 6 of them decimals"}
        assert schedules.instalments.num_rows == 6

    @pytest.mark.parametrize("days", [-(2**31), -719163, 2900000, 2**31 - 1])
    def test_days_that_are_no_dates_in_python(self, days: int) -> None:
        portfolio = table([SMALL, LOAN._replace(loan_id="L2")])
        column = pa.array([days, 0], pa.int32()).cast(pa.date32())
        schedules = build_schedules(portfolio.set_column(5, "disbursed_on", column))
        assert schedules.refused == {0: "disbursed_on is not in the years 1 to 9899"}
        assert schedules.instalments.num_rows == 360
