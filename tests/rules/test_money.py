"""Money: rounding by its names, exact in both forms, at the edges of what int64 holds."""

from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.rules.currency import minor_units, scaled
from ledgerbeam.rules.money import (
    Rounding,
    decimals,
    divide_rounded,
    divide_rounded_many,
    has_more_decimals,
    more_decimals,
    multiply_divide_many,
    round_money,
    units,
    unscaled,
)

roundings = st.sampled_from(Rounding)
anything = st.integers(-(2**63) + 1, 2**63 - 1)


class TestRoundMoney:
    @pytest.mark.parametrize(
        ("value", "half_even", "half_up"),
        [
            ("2.344", "2.34", "2.34"),
            ("2.345", "2.34", "2.35"),
            ("2.355", "2.36", "2.36"),
            ("2.3450000000000000000000000000000000001", "2.35", "2.35"),
            ("-2.345", "-2.34", "-2.35"),
            ("-2.355", "-2.36", "-2.36"),
            ("0", "0.00", "0.00"),
            ("0.005", "0.00", "0.01"),
            ("-0.005", "0.00", "-0.01"),
        ],
    )
    def test_by_name(self, value: str, half_even: str, half_up: str) -> None:
        for number in (Decimal(value), Fraction(value)):
            assert str(round_money(number)) == half_even
            assert str(round_money(number, mode=Rounding.HALF_UP)) == half_up

    def test_as_many_decimals_as_asked_for(self) -> None:
        assert str(round_money(Fraction(1000, 3), 0)) == "333"
        assert str(round_money(Decimal("1.23456"), 3)) == "1.235"

    def test_more_digits_than_the_default_context_has(self) -> None:
        long = Decimal("123456789012345678901234567890123456.785")
        assert str(round_money(long)) == "123456789012345678901234567890123456.78"
        assert str(round_money(Fraction(long))) == "123456789012345678901234567890123456.78"

    @given(st.decimals(allow_nan=False, allow_infinity=False, places=9), st.integers(0, 9))
    def test_fractions_round_like_decimals(self, value: Decimal, scale: int) -> None:
        for mode, name in zip(Rounding, (ROUND_HALF_EVEN, ROUND_HALF_UP), strict=True):
            expected = value.quantize(Decimal(1).scaleb(-scale), name, Context(prec=76))
            assert round_money(Fraction(value), scale, mode) == expected
            assert round_money(value, scale, mode) == expected


class TestIntegers:
    @given(anything, st.integers(1, 2**63 - 1) | st.integers(1, 12), roundings)
    @example(5, 10, Rounding.HALF_EVEN)
    @example(-5, 10, Rounding.HALF_UP)
    @example(2**63 - 1, 2**63 - 1, Rounding.HALF_EVEN)
    @example(2**62, 2**63 - 1, Rounding.HALF_EVEN)
    def test_division(self, numerator: int, denominator: int, mode: Rounding) -> None:
        expected = int(Decimal(round_money(Fraction(numerator, denominator), 0, mode)))
        assert divide_rounded(numerator, denominator, mode) == expected
        divided = divide_rounded_many(np.array([numerator]), np.array([denominator]), mode)
        assert divided.dtype == np.int64
        assert divided.tolist() == [expected]

    @given(
        st.lists(
            st.tuples(st.integers(-(2**55), 2**55), st.integers(-(2**56), 2**56)).flatmap(
                lambda ab: st.tuples(
                    st.just(ab[0]),
                    st.just(ab[1]),
                    st.integers(abs(ab[0] * ab[1]) // 2**61 + 1, 2**61 - 1),
                )
            ),
            min_size=1,
        ),
        roundings,
    )
    @example([(2**55, 2**56, 2**50)], Rounding.HALF_EVEN)
    @example([(2**55 - 1, 2**56 - 1, 2**61 - 1)], Rounding.HALF_UP)
    @example([(1, 1, 2), (3, 1, 2), (-1, 1, 2), (-3, 1, 2)], Rounding.HALF_EVEN)
    @example([(1, 1, 2), (3, 1, 2), (-1, 1, 2), (-3, 1, 2)], Rounding.HALF_UP)
    def test_products_that_do_not_fit_in_64_bits(
        self, cases: list[tuple[int, int, int]], mode: Rounding
    ) -> None:
        amount, numerator, denominator = np.array(cases, np.int64).T
        exact = [divide_rounded(a * n, d, mode) for a, n, d in cases]
        assert multiply_divide_many(amount, numerator, denominator, mode).tolist() == exact

    @given(st.integers(-(10**15), 10**15), st.integers(0, 1000), st.integers(1, 10**9), roundings)
    def test_exact_halves_between_large_numbers(
        self, amount: int, half: int, denominator: int, mode: Rounding
    ) -> None:
        # amount * (2 * half + 1) / 2 is in the middle wherever the amount is odd.
        exact = divide_rounded(amount * (2 * half + 1), 2, mode)
        assert multiply_divide_many(np.array([amount]), 2 * half + 1, 2, mode).tolist() == [exact]
        doubled = (2 * half + 1) * denominator
        assert multiply_divide_many(
            np.array([amount]), doubled, 2 * denominator, mode
        ).tolist() == [exact]

    def test_shapes_broadcast(self) -> None:
        amounts = np.arange(6).reshape(2, 3)
        assert multiply_divide_many(amounts, 5, np.array([2, 2, 10])).tolist() == [
            [0, 2, 1],
            [8, 10, 2],
        ]
        assert multiply_divide_many(np.array([], np.int64), 5, 2).tolist() == []

    @pytest.mark.parametrize(
        ("amount", "numerator", "denominator"),
        [
            (2**62, 2**62, 2**60),
            (2**62, 4, 2),
            (1, 1, 2**62),
            # The smallest of which each is too large.
            (2**56, 2**56, 2**60),
            (2**62, 1, 1),
            (1, 1, 2**61),
        ],
    )
    def test_what_can_not_be_exact_is_refused(
        self, amount: int, numerator: int, denominator: int
    ) -> None:
        with pytest.raises(OverflowError, match="too large to be exact"):
            multiply_divide_many(np.array([amount]), numerator, denominator)


class TestCurrencies:
    def test_decimals_by_iso_4217(self) -> None:
        assert [minor_units(code) for code in ("USD", "EUR", "JPY", "KWD", "CLF")] == [
            2,
            2,
            0,
            3,
            4,
        ]

    @pytest.mark.parametrize("code", ["", "usd", "US", "USDT", "ÜSD", "U$D"])
    def test_what_is_no_code(self, code: str) -> None:
        with pytest.raises(ValueError, match="not three capital letters"):
            minor_units(code)


class TestArrow:
    @given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1)))
    def test_there_and_back(self, values: list[int]) -> None:
        kind = pa.decimal128(18, 3)
        amounts = decimals(np.array(values, np.int64), kind)
        amounts.validate(full=True)
        assert amounts.type == kind
        assert amounts.to_pylist() == [Decimal(value).scaleb(-3) for value in values]
        assert units(amounts, 3).tolist() == values

    def test_slices_and_chunks(self) -> None:
        amounts = pa.array([Decimal("1.00"), Decimal("-2.50"), Decimal("3.25")])
        assert units(amounts[1:], 3).tolist() == [-2500, 3250]
        assert units(pa.chunked_array([amounts[:1], amounts[2:]]), 2).tolist() == [100, 325]
        assert units(pa.chunked_array([], pa.decimal128(5, 2)), 2).tolist() == []

    def test_what_does_not_fit(self) -> None:
        wide = pa.array([Decimal(10**19), Decimal(1), None], pa.decimal128(38, 0))
        whole, held = unscaled(wide)
        assert held.tolist() == [False, True, False]
        assert whole[1] == 1
        with pytest.raises(OverflowError, match="more than 18 digits"):
            units(wide[:2], 0)
        with pytest.raises(ValueError, match="1 of 2 amounts are null"):
            units(wide[1:], 0)
        with pytest.raises(ValueError, match="would cause data loss"):
            units(pa.array([Decimal("0.005")]), 2)
        with pytest.raises(OverflowError, match="more digits than decimal128"):
            decimals(np.array([1000]), pa.decimal128(3, 2))
        with pytest.raises(OverflowError, match="more digits than decimal128"):
            decimals(np.array([-1000]), pa.decimal128(3, 2))

    @given(
        st.lists(st.integers(-(10**14), 10**14) | st.integers(-10, 10) | st.none()),
        st.integers(0, 5),
        st.integers(0, 5),
    )
    def test_more_decimals_than_allowed_are_found(
        self, values: list[int | None], scale: int, allowed: int
    ) -> None:
        amounts = [None if n is None else scaled(n, scale) for n in values]
        found = has_more_decimals(pa.array(amounts, pa.decimal128(30, scale)), allowed).to_pylist()
        assert found == [
            None if amount is None else (amount * 10**allowed) % 1 != 0 for amount in amounts
        ]

    def test_more_decimals_of_the_largest_amount_of_a_type(self) -> None:
        largest = pa.array([Decimal("9.9")], pa.decimal128(2, 1))
        assert has_more_decimals(largest, 0).to_pylist() == [True]

    def test_why_more_decimals_are_refused(self) -> None:
        reason = more_decimals("paid", Decimal("0.001"), "USD")
        assert reason == "paid 0.001 has more than the 2 decimals of USD"
