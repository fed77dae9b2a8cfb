"""How trades settle by a table of rules, what is shipped, and times of a day."""

import csv
import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.pipelines.delivery_inputs import SHIPPED_RULES
from ledgerbeam.rules.calendar.time_of_day import UNREADABLE, time_of_day, time_of_day_many
from ledgerbeam.rules.delivery.settlement import (
    MARKET,
    UNKNOWN,
    Market,
    SettlementRule,
    market_of,
    settlement,
    settlement_many,
)


def shipped() -> list[SettlementRule]:
    rules = []
    for path in SHIPPED_RULES.values():
        with Path(path).open() as file:
            rules += [
                SettlementRule(**{name: row[name] for name in (*MARKET, "settles")})
                for row in csv.DictReader(file)
            ]
    return rules


class TestShipped:
    @pytest.mark.parametrize(
        ("exchange", "series", "settles"),
        [
            *(("NSE", series, "net") for series in ("EQ", "SM", "E1", "N5", "MF", "GB", "SG")),
            *(("NSE", series, "gross") for series in ("BE", "BZ", "ST", "SZ", "X1", "BL", "K2")),
            ("NSE", "T0", "net-t0"),
            *(("BSE", group, "net") for group in ("A", "B", "X", "M")),
            *(("BSE", group, "gross") for group in ("T", "XT", "Z", "ZP", "TS", "MT")),
            *((None, series, "gross") for series in ("BE", "T", "XT", "ZP", "MT")),
            *((None, series, "net") for series in ("EQ", "A", "X")),
        ],
    )
    def test_series(self, exchange: str | None, series: str, settles: str) -> None:
        assert settlement(shipped(), Market(exchange, "CM", series)) == settles

    @pytest.mark.parametrize(
        ("series", "type_", "settles"),
        [
            ("EQ", "A", "gross"),
            ("EQ", "Z", "gross"),
            ("EQ", "M", "net"),
            ("BE", "M", "gross"),
            ("", "M", "net"),
            ("EQ", "5", "net-t0"),
        ],
    )
    def test_settlement_types(self, series: str, type_: str, settles: str) -> None:
        assert settlement(shipped(), Market("NSE", "", series, type_)) == settles

    @pytest.mark.parametrize(
        ("market", "problem"),
        [
            (Market("MCX", "", "EQ"), "no settlement rule for exchange MCX, series EQ"),
            (Market("NSE", "", "SQ"), "no settlement rule for exchange NSE, series SQ"),
            (Market("BSE", "", "EQ"), "no settlement rule for exchange BSE, series EQ"),
            (Market("NSE", "", "EQ", auction="maybe"), "auction 'maybe' is neither true nor"),
        ],
    )
    def test_nothing_is_assumed(self, market: Market, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            settlement(shipped(), market)


class TestRanks:
    def test_what_is_named_goes_before_patterns(self) -> None:
        rules = [
            SettlementRule("*", "*", "*", "*", "any"),
            SettlementRule("*", "*", "E?", "*", "by pattern"),
            SettlementRule("*", "*", "EQ", "*", "by name"),
            SettlementRule("NSE", "*", "*", "*", "by exchange"),
            SettlementRule("*", "*", "*", "A", "by type"),
        ]
        for listed in (rules, rules[::-1]):
            assert settlement(listed, Market("NSE", "", "EQ")) == "by name"
            assert settlement(listed, Market("NSE", "", "E1")) == "by pattern"
            assert settlement(listed, Market("NSE", "", "BE")) == "by exchange"
            assert settlement(listed, Market("BSE", "", "BE")) == "any"
            assert settlement(listed, Market("BSE", "", "EQ", "A")) == "by type"

    def test_rules_that_disagree(self) -> None:
        rules = [
            SettlementRule("NSE", "*", "Q", "*", "net"),
            SettlementRule("BSE", "*", "Q", "*", "gross"),
        ]
        with pytest.raises(ValueError, match="about series Q: gross on BSE and net on NSE"):
            settlement(rules, Market(series="Q"))
        assert settlement(rules, Market("BSE", series="Q")) == "gross"

    def test_without_rules_all_but_auctions_net(self) -> None:
        assert settlement(None, Market("NSE", "", "BE")) == "net"
        assert settlement(None, Market(auction="TRUE")) == "gross"


_patterns = st.sampled_from(["*", "A", "B", "A?", "?", ""])
_values = st.sampled_from(["A", "B", "AB", ""])
_rules = st.builds(SettlementRule, *[_patterns] * 4, st.sampled_from(["net", "gross", "other"]))
_trades = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.lists(_values, min_size=9, max_size=9) for name in MARKET},
        "auction": st.lists(st.sampled_from(["true", "no", None, "?"]), min_size=9, max_size=9),
    },
)


@given(st.none() | st.lists(_rules, max_size=8), _trades, st.booleans(), st.integers(0, 9))
@example([], {}, False, 0)
def test_tables_settle_as_each_trade_does(
    rules: list[SettlementRule] | None, columns: dict[str, list[str]], encoded: bool, rows: int
) -> None:
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    table = pa.table({**arrays, "n": range(9)}).slice(0, rows)
    expected = []
    for row in table.to_pylist():
        try:
            expected.append(settlement(rules, market_of(row)))
        except ValueError:
            expected.append(UNKNOWN)
    if encoded:
        for index, name in enumerate(columns):
            table = table.set_column(index, name, table.column(name).dictionary_encode())
    assert settlement_many(rules, table).to_pylist() == expected


_texts = st.from_regex(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ])?[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,10})?\n?",
    fullmatch=True,
)


@given(st.lists(st.none() | _texts | st.text()))
@example(
    ["09:20:11\n", "\u0669\u0669:20:11", "2026-11-20T23:59:59.123456789", "24:00:00", "9:20:11"]
)
def test_times_of_text(texts: list[str | None]) -> None:
    expected = [UNREADABLE if text is None else time_of_day(text) for text in texts]
    assert time_of_day_many(pa.chunked_array([pa.array(texts, pa.string())])).tolist() == expected


@given(st.lists(st.times()))
def test_times_of_typed_columns(times: list[datetime.time]) -> None:
    expected = [time_of_day(time.isoformat()) for time in times]
    day = datetime.date(2026, 11, 20)
    moments = [datetime.datetime.combine(day, time) for time in times]
    assert (
        time_of_day_many(pa.chunked_array([pa.array(times, pa.time64("us"))])).tolist() == expected
    )
    plain = pa.chunked_array([pa.array(moments, pa.timestamp("us"))])
    assert time_of_day_many(plain).tolist() == expected
    india = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    zoned = pa.array([it.replace(tzinfo=india) for it in moments], pa.timestamp("us", "+05:30"))
    assert time_of_day_many(pa.chunked_array([zoned])).tolist() == expected
