"""Each currency with its own decimals: what is refused, what totals count, what people read."""

import datetime
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field
from tests.support.command import ledgerbeam
from tests.support.reading import instance_uri
from tests.support.recorded import workloads_installed

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.money import check_money
from ledgerbeam.batch.define.process import Record
from ledgerbeam.io.commit.amounts import (
    currency_of,
    decimal_text,
    label_of,
    read_totals,
    shown,
    totals_json,
)
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import Control, Manifest, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.investor_files import TOTALS_FILE, LineSums, _reconciled
from ledgerbeam.pipelines.investor_page import Header, render
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.rules.currency import format_money, minor_units, scaled
from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS, PoolTotal
from ledgerbeam.rules.remittance.remit import RemittanceType
from ledgerbeam.rules.remittance.report_line import MonthMoney
from ledgerbeam.transforms.columnar.totals import exact_sum, sums_by_currency

DAY = datetime.date(2026, 11, 20)
PLACES = {"JPY": 0, "KRW": 0, "USD": 2, "XTS": 2, "KWD": 3, "BHD": 3, "CLF": 4}

scales = st.integers(0, 5)
counts = st.integers(-(10**14), 10**14) | st.integers(-10, 10)


def amounts_of(units: list[int | None], scale: int) -> pa.Array:
    values = [None if n is None else scaled(n, scale) for n in units]
    return pa.array(values, pa.decimal128(30, scale))


class TestSums:
    @given(st.lists(st.tuples(st.sampled_from([*PLACES]), counts | st.none())), scales)
    @example([("JPY", 10**14), ("JPY", 10**14)], 5)
    @example([("CLF", 1)], 0)
    def test_they_count_minor_units_at_any_scale(
        self, rows: list[tuple[str, int | None]], scale: int
    ) -> None:
        # The finest amounts that both the currency and the column can hold.
        amounts = [None if n is None else scaled(n, min(PLACES[code], scale)) for code, n in rows]
        codes = pa.array([code for code, _ in rows], pa.string())
        column = pa.array(amounts, pa.decimal128(30, scale))
        plain: dict[str, Decimal] = defaultdict(Decimal)
        for (code, _), amount in zip(rows, amounts, strict=True):
            plain[code] += amount or 0
        expected = {f"paid_{code}": int(plain[code] * 10 ** PLACES[code]) for code in plain}
        for currency in (codes, codes.dictionary_encode()):
            table = pa.table({"paid": column, "currency": currency})
            assert sums_by_currency(table, "paid", "currency") == expected
        assert list(sums_by_currency(table, "paid", "currency")) == sorted(expected)

    def test_halves_of_a_unit_make_no_whole(self) -> None:
        halves = pa.table({"paid": amounts_of([5, 5], 1), "currency": ["KRW", "KRW"]})
        with pytest.raises(ValueError, match=r"paid 0\.5 has more than the 0 decimals of KRW"):
            sums_by_currency(halves, "paid", "currency")

    def test_without_a_currency_the_last_digit_counts(self) -> None:
        table = pa.table({"paid": amounts_of([980_00], 2)})
        assert sums_by_currency(table, "paid", "") == {"paid": 980_00}
        assert exact_sum(table.column("paid")) == 980_00

    def test_integers_are_minor_units(self) -> None:
        table = pa.table({"paid": pa.array([5, 7, None]), "currency": ["USD", "JPY", "JPY"]})
        assert sums_by_currency(table, "paid", "currency") == {"paid_USD": 5, "paid_JPY": 7}


class TestCheck:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*PLACES, "ABC", "usd", None]),
                counts | st.none(),
                st.integers(0, 9),
            )
        ),
        scales,
    )
    def test_rows_as_one_by_one(
        self, rows: list[tuple[str | None, int | None, int]], scale: int
    ) -> None:
        codes = pa.array([code for code, _, _ in rows], pa.string()).dictionary_encode()
        table = pa.table(
            {
                "paid": amounts_of([n for _, n, _ in rows], scale),
                "fee": amounts_of([n for _, _, n in rows], 1),
                "currency": codes,
            }
        )
        expected: dict[int, list[str]] = {}
        for at, (code, paid, fee) in enumerate(rows):
            if code is None:
                continue
            if code not in PLACES:
                expected[at] = [f"currency {code!r}" if code == "usd" else f"currency {code} is"]
                continue
            for name, amount in (
                ("paid", None if paid is None else scaled(paid, scale)),
                ("fee", scaled(fee, 1)),
            ):
                if amount is not None and (amount * 10 ** PLACES[code]) % 1:
                    expected.setdefault(at, []).append(
                        f"{name} {amount:f} has more than the {PLACES[code]} decimals of {code}"
                    )
        refused = check_money(table, {"paid": "currency", "fee": "currency"})
        assert refused.keys() == expected.keys()
        for at, reasons in expected.items():
            assert len(refused[at]) == len(reasons)
            assert all(
                found.startswith(reason) for found, reason in zip(refused[at], reasons, strict=True)
            )

    def test_columns_that_are_not_there_need_none(self) -> None:
        table = pa.table({"currency": ["USD"], "paid": amounts_of([1], 2)})
        assert not check_money(table, {"paid": "currency", "fee": "currency", "tip": "of_tip"})


class TestShown:
    @given(counts, st.sampled_from([*PLACES]))
    def test_money_reads_as_what_it_is(self, units: int, code: str) -> None:
        number, _, currency = format_money(units, code).partition(" ")
        assert currency == code
        assert Decimal(number.replace(",", "")) == Decimal(units) / 10 ** PLACES[code]
        assert len(number.partition(".")[2]) == PLACES[code]

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("balance_EUR", 980_00, "980.00 EUR"),
            ("refused_transactions_amount_JPY", -1_234_567, "-1,234,567 JPY"),
            ("balance_KWD: in = out + rejected", 5, "0.005 KWD"),
            ("CLF: sent in = applied", 1_2345, "1.2345 CLF"),
            ("interest + principal = remittance, USD", 10**20, "1,000,000,000,000,000,000.00 USD"),
            ("price", 980_00, "980.00"),
            ("failed_price", -5, "-0.05"),
            ("price: in = out", 980_00, "980.00"),
            ("rows", 98_000, "98,000"),
            ("rows_ABC", 98_000, "98,000"),
            ("id_hash: in = out + rejected", 98_000, "98,000"),
        ],
    )
    def test_totals_and_controls(self, name: str, value: int, text: str) -> None:
        assert shown(name, value, {"price": 2}) == text

    def test_labels_leave_to_the_value_what_it_says(self) -> None:
        assert label_of("transactions_amount_USD") == "transactions amount"
        assert label_of("other_dates") == "other dates"
        assert label_of("rows_ABC") == "rows ABC"
        assert label_of("refused_amount_USD") == "rejected amount"
        assert currency_of("rows_ABC") == ""

    def test_programs_are_given_stored_names_and_standard_ones(self) -> None:
        totals = {"rows": 98_000, "amount_USD": 1, "refused_amount_JPY": 2, "=.refused_fee": 3}
        assert totals_json(totals | {"price": -980_00, "id_hash": 2**64}, {"price": 2}) == {
            "rows": 98_000,
            "amount_USD": {"amount": "0.01", "currency": "USD", "scale": 2},
            "refused_amount_JPY": {"amount": "2", "currency": "JPY", "scale": 0},
            "rejected_amount_JPY": {"amount": "2", "currency": "JPY", "scale": 0},
            "=.refused_fee": 3,
            "price": {"amount": "-980.00", "currency": None, "scale": 2},
            "id_hash": 2**64,
        }

    @given(
        st.dictionaries(
            st.sampled_from(["rows", "amount_USD", "refused_fee_KWD", "price", "failed_price"]),
            st.integers(-(10**60), 10**60),
        )
    )
    def test_what_programs_are_given_can_be_read_back(self, totals: dict[str, int]) -> None:
        read, decimals = read_totals(totals_json(totals, {"price": 2}))
        assert read == totals
        assert decimals == ({"price": 2} if totals.keys() & {"price", "failed_price"} else {})

    def test_no_decimal_has_an_exponent(self) -> None:
        assert str(Decimal("0E-8")) == "0E-8"
        assert decimal_text(Decimal("0E-8")) == "0.00000000"


INVOICES = Contract(
    (
        Column("invoice", pa.string()),
        Column("currency", pa.string(), dictionary_encoded=True),
        Column("amount", pa.decimal128(18, 2)),
        Column("fee", pa.decimal128(18, 2), nullable=True, currency="currency"),
    )
)


class SettleParameters(FileParameters):
    """Whose fees are settled."""

    business_date: datetime.date = Field(default=DAY, description="the day")
    invoices: Annotated[
        str, RowInput(INVOICES, order="invoice", amounts=("amount",), currency="currency")
    ] = Field(description="URI or glob of the invoices")


class Settle(KeyedProcess[SettleParameters]):
    """Gives invoices back; its fees are money that isn't added up."""

    name = "settle"
    key = ("invoice",)
    results = pa.schema([("currency", pa.string()), ("amount", pa.decimal128(18, 2))])

    def execute(self, component: Component) -> Iterator[Record]:
        for row in component.records():
            yield {"currency": row["currency"], "amount": row["amount"]}

    def result_totals(self, results: Components) -> Totals:
        sums = sums_by_currency(results.table, "amount", "currency")
        return {f"settled_{name}": value for name, value in sums.items()}


class Careless(Settle):
    """Says that something came out that didn't come in."""

    def controls(self, totals: Totals) -> list[Control]:
        total = totals["amount_JPY"]
        return [Control(name="came in = came out, JPY", expected=total, actual=total - 1000)]


def settled(kind: type[Settle], folder: Path, lines: list[str], **others: Any) -> Manifest:
    (folder / "invoices.csv").write_text("\n".join(["invoice,currency,amount,fee", *lines, ""]))
    values = {"invoices": f"{folder}/invoices.csv", "output": f"{folder}/out", **others}
    process = kind(SettleParameters.model_validate(values))
    manifest = run(process)
    verify(instance_uri(manifest), process)
    return manifest


class TestRefusedRows:
    LINES = (
        "A,JPY,1234.00,",
        "B,JPY,1234.50,1.00",
        "C,USD,1234.56,0.01",
        "D,JPY,7,0.10",
        "E,KRW,0.01,0.01",
        "F,DEM,1.00,",
        "G,KWD,1.25,",
    )

    def test_are_named_with_all_that_is_wrong(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"4 rows rejected.* row 3 \(amount 1234\.50 has more "):
            settled(Settle, tmp_path, [*self.LINES])
        manifest = settled(Settle, tmp_path, [*self.LINES], max_rejects=4)
        (file,) = manifest.rejects
        rows = read_part(instance_uri(manifest), file).to_pylist()
        assert {row["row"]: row["reason"] for row in rows} == {
            3: "amount 1234.50 has more than the 0 decimals of JPY",
            5: "fee 0.10 has more than the 0 decimals of JPY",
            6: "amount 0.01 has more than the 0 decimals of KRW; "
            "fee 0.01 has more than the 0 decimals of KRW",
            7: "currency DEM is not in the list of ISO 4217",
        }
        assert [row["raw"] for row in rows] == [self.LINES[n] for n in (1, 3, 4, 5)]
        sums = {n: v for n, v in manifest.totals.items() if not n.endswith("_hash")}
        assert sums == {
            f"{start}amount_{code}": value
            for start in ("", "settled_")
            for code, value in (("JPY", 1234), ("USD", 1234_56), ("KWD", 1250))
        }

    def test_no_such_currency_column(self) -> None:
        with pytest.raises(ValueError, match="its currency of_fee is not a column of strings"):
            Contract((Column("fee", pa.decimal128(18, 2), currency="of_fee"),))
        with pytest.raises(ValueError, match="currency needs decimal128, not int64"):
            Column("fee", pa.int64(), currency="currency")

    def test_other_decimals_for_all_money(self) -> None:
        types = {column.name: column.type for column in INVOICES.with_decimals(3).columns}
        assert types["fee"] == pa.decimal128(18, 3)
        assert types["amount"] == pa.decimal128(18, 2)  # it doesn't say its currency


def test_totals_that_do_not_balance_are_told_as_money(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="came in = came out, JPY: 98,000 JPY in, 97,000 JPY out: this is a bug"
    ):
        settled(Careless, tmp_path, ["A,JPY,98000.00,"])


LOANS = """\
loan_id,currency,principal,annual_rate_percent,day_count,disbursed_on,frequency,term,method
D,USD,980.00,12,30/360,2024-01-01,P1M,6,level
Y,JPY,98000,5,ACT/365F,2024-01-31,P1M,12,level
W,KRW,1234567,5,30/360,2024-01-31,P1M,24,equal_principal
K,KWD,1234.567,4.5,ACT/360,2024-01-31,P2W,26,level
B,BHD,0.001,4.5,ACT/360,2024-01-31,P1M,2,level
C,CLF,12.3456,3,ACT/ACT,2024-01-31,P3M,8,interest_only:2
"""
PRINCIPALS = {
    "BHD": "0.001 BHD", "CLF": "12.3456 CLF", "JPY": "98,000 JPY", "KRW": "1,234,567 KRW",
    "KWD": "1,234.567 KWD", "USD": "980.00 USD",
}  # fmt: skip


class TestCommands:
    FLAGS = ("repayment-schedules", "--loans=loans.csv", f"--business-date={DAY}", "--output=out")

    def test_schedules_of_currencies_of_any_decimals(self, tmp_path: Path) -> None:
        (tmp_path / "loans.csv").write_text(LOANS)
        summary = ledgerbeam("run", *self.FLAGS, "--decimals=4", folder=tmp_path).splitlines()
        for label in ("principal", "instalment principal"):
            lines = [line for line in summary if line.startswith(f"{label}\t")]
            assert [" ".join(line.split()) for line in lines] == [
                f"{label} {text}" for text in PRINCIPALS.values()
            ]
        again = ledgerbeam("run", *self.FLAGS, "--decimals=4", "--json", folder=tmp_path)
        told = json.loads(again)
        sums = {
            name[-3:]: (money["amount"], money["currency"], money["scale"])
            for name, money in told["totals"].items()
            if name[:5] == "princ"
        }
        assert sums == {
            "BHD": ("0.001", "BHD", 3),
            "CLF": ("12.3456", "CLF", 4),
            "JPY": ("98000", "JPY", 0),
            "KRW": ("1234567", "KRW", 0),
            "KWD": ("1234.567", "KWD", 3),
            "USD": ("980.00", "USD", 2),
        }
        verified = ledgerbeam("verify", told["published"], folder=tmp_path)
        for code, text in PRINCIPALS.items():
            assert f"ok  principal_{code}: in = out + rejected: {text}\n" in verified
            line = f"ok  principal of instalments = principal of loans, {code}: {text}\n"
            assert line in verified
        assert "ok  rows: in = out + rejected + other dates: 6\n" in verified

    def test_a_run_on_record(self, tmp_path: Path) -> None:
        loans = LOANS.splitlines(keepends=True)
        (tmp_path / "loans.csv").write_text("".join(loans[:3]))
        with workloads_installed(tmp_path / "state", 30.0):
            ledgerbeam("submit", *self.FLAGS, folder=tmp_path)
            instance = f"repayment-schedules/{DAY}"
            ledgerbeam("wait", instance, folder=tmp_path)
            text = ledgerbeam("get", instance, folder=tmp_path)
            told = json.loads(ledgerbeam("get", instance, "--json", folder=tmp_path))
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert "principal 980.00 USD" in lines
        assert "instalment principal 98,000 JPY" in lines
        assert told["progress"]["totals"]["principal_USD"] == {
            "amount": "980.00", "currency": "USD", "scale": 2,
        }  # fmt: skip
        assert "total_decimals" not in told["progress"]

    def test_what_was_published_before_decimals_were_recorded(self, tmp_path: Path) -> None:
        (tmp_path / "loans.csv").write_text("".join(LOANS.splitlines(keepends=True)[:2]))
        ledgerbeam("run", *self.FLAGS, folder=tmp_path)
        uri = tmp_path / "out" / "repayment-schedules" / str(DAY)
        for file in (uri / "manifest.json", *uri.glob("attempt-1/*.json")):
            record = json.loads(file.read_text())
            record.pop("digest", None)
            for holder in (record, record.get("attempt")):
                if isinstance(holder, dict):
                    holder.pop("total_decimals", None)
            file.write_text(json.dumps(record))
        assert "total_decimals" not in (uri / "manifest.json").read_text()
        assert "principal_USD: in = out + rejected: 980.00 USD" in ledgerbeam("verify", str(uri))


class TestInvestorsPage:
    @staticmethod
    def pool(code: str) -> PoolTotal:
        amounts = dict.fromkeys(LINE_TOTALS, 0) | {
            "beginning_balance": 1_300_005,
            "scheduled_principal": 65_438,
            "ending_balance": 1_234_567,
        }
        return PoolTotal(
            "I1", "P1", code, RemittanceType.SCHEDULED_ACTUAL, 1, amounts, (1, 0, 0, 0, 0),
            (1_234_567, 0, 0, 0, 0),
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("code", "balance", "repaid", "received", "in_plot"),
        [
            ("JPY", "1,234,567", "65,438", "70,001", "1,234,567"),
            ("USD", "12,345.67", "654.38", "700.01", "12,346"),
            ("KWD", "1,234.567", "65.438", "70.001", "1,235"),
        ],
    )
    def test_amounts_have_their_currencys_decimals(
        self, code: str, balance: str, repaid: str, received: str, in_plot: str
    ) -> None:
        header = Header("I1", "One", "S/S", Decimal("0.25"), Decimal(0), DAY)
        money = {name: {f"{name}_{code}": 0} for name in MonthMoney._fields}
        money["received"] = {f"received_{code}": 70_001}
        page = render(header, [self.pool(code)], money, [], "lines.csv").decode()
        cells = re.findall(r"<(?:td|b)>([\d,.]+)</(?:td|b)>", page)
        assert {balance, repaid, received} <= {*cells}
        assert f">{in_plot}<" in page

    def test_the_file_of_totals_holds_the_finest_of_them(self) -> None:
        pools = [self.pool("JPY"), self.pool("KWD")._replace(pool_id="P2")]
        both = {f"{n}_{p.currency}": v for p in pools for n, v in p.amounts.items()}
        name, data = _reconciled(None, pools, [LineSums(2, both)])
        assert name == TOTALS_FILE
        column = pq.read_table(io.BytesIO(data)).column("ending_balance")
        assert column.type == pa.decimal128(38, 3)
        assert column.to_pylist() == [Decimal(1_234_567), Decimal("1234.567")]


def test_codes_without_minor_units_have_two_decimals() -> None:
    assert {code: minor_units(code) for code in (*PLACES, "XAU", "XDR")} == {
        **PLACES,
        "XAU": 2,
        "XDR": 2,
    }
