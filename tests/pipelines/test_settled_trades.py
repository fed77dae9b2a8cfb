"""Delivery marking within settlements: what joins the key, what is gross, in which order."""

import csv
import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.attempts import attempts
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking, DeliveryParameters

DAY = datetime.date(2026, 11, 20)

Row = dict[str, Any]


def process(folder: Path, **others: Any) -> DeliveryMarking:
    given_all = {"trades": str(folder / "trades.*"), "trade_date": DAY, "output": str(folder)}
    return DeliveryMarking(DeliveryParameters.model_validate({**given_all, **others}))


def write(path: Path, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def trades(lines: str) -> list[Row]:
    """Trades of client C1 from a table of text; a column of `-` is left out."""
    header, *rows = [line.split() for line in lines.strip().splitlines()]
    return [
        {"client_code": "C1", "symbol": "XYZ"} | dict(zip(header, row, strict=True)) for row in rows
    ]


def marked(folder: Path, lines: str, **parameters: Any) -> dict[str, int]:
    """Delivery quantity by `exchange id` or id."""
    write(folder / "trades.csv", trades(lines))
    definition = process(folder, **parameters)
    manifest = run(definition)
    verify(instance_uri(manifest), process(folder, **parameters))
    return {
        " ".join(str(row[name]) for name in ("exchange", "id") if name in row): row[
            "delivery_quantity"
        ]
        for row in rows_of(manifest)
    }


def rows_of(manifest: Manifest) -> list[Row]:
    rows: list[Row] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return rows


class TestGross:
    def test_trade_for_trade_series(self, tmp_path: Path) -> None:
        lines = """
            id series side quantity
            1  BE     B    10
            2  BE     S    4
            3  EQ     B    5
            4  EQ     S    7
        """
        assert marked(tmp_path, lines) == {"1": 10, "2": 4, "3": 0, "4": 2}
        manifest = run(process(tmp_path))
        assert manifest.attempt.plan == {"columns": ["series"]}
        assert manifest.totals["net_quantity"] == manifest.totals["delivery_quantity"] == 16
        assert {row["id"]: row["settles"] for row in rows_of(manifest)} == {
            1: "gross",
            2: "gross",
            3: "net",
            4: "net",
        }
        assert manifest.shards[0].key == ["client_code", "symbol", "series", "settles"]

    def test_auctions(self, tmp_path: Path) -> None:
        lines = """
            id auction side quantity
            1  false   B    10
            2  true    B    3
            3  no      S    4
        """
        assert marked(tmp_path, lines) == {"1": 6, "2": 3, "3": 0}

    def test_auctions_of_typed_files(self, tmp_path: Path) -> None:
        columns = {
            "id": [1, 2, 3],
            "client_code": ["C"] * 3,
            "symbol": ["X"] * 3,
            "side": ["B", "B", "S"],
            "quantity": [10, 3, 4],
            "auction": [False, True, None],
        }
        pq.write_table(pa.table(columns), tmp_path / "trades.parquet")
        rows = rows_of(run(process(tmp_path)))
        assert {row["id"]: row["delivery_quantity"] for row in rows} == {1: 6, 2: 3, 3: 0}

    def test_settlement_types(self, tmp_path: Path) -> None:
        lines = """
            id exchange settlement_type series side quantity
            1  NSE      M               EQ     B    10
            2  NSE      A               EQ     B    3
            3  NSE      M               EQ     S    4
            4  NSE      5               EQ     S    2
        """
        expected = {"NSE 1": 6, "NSE 2": 3, "NSE 3": 0, "NSE 4": 2}
        assert marked(tmp_path, lines) == expected

    def test_a_file_of_rules(self, tmp_path: Path) -> None:
        rules = write(
            tmp_path / "rules.csv",
            [
                {"exchange": "LSE", "series": "*", "settles": "net"},
                {"exchange": "LSE", "series": "Q?", "settles": "gross"},
            ],
        )
        lines = """
            id exchange series side quantity
            1  LSE      Q1     B    10
            2  LSE      Q1     S    4
            3  LSE      A      B    10
            4  LSE      A      S    4
        """
        found = marked(tmp_path, lines, settlement_rules=rules)
        assert found == {"LSE 1": 10, "LSE 2": 4, "LSE 3": 6, "LSE 4": 0}

    def test_a_series_without_a_rule_is_refused(self, tmp_path: Path) -> None:
        lines = "id exchange series side quantity\n1 NSE EQ B 1\n2 NSE ?? B 1"
        with pytest.raises(UserError) as raised:
            marked(tmp_path, lines)
        assert (
            "row 3 (there is no settlement rule for exchange NSE, series ??: see "
            "--settlement-rules" in str(raised.value)
        )
        assert marked(tmp_path, lines, max_rejects=1) == {"NSE 1": 1}

    def test_a_rule_that_is_there_twice(self, tmp_path: Path) -> None:
        rule = {"exchange": "NSE", "series": "EQ", "settles": "net"}
        rules = write(tmp_path / "rules.csv", [rule, rule])
        with pytest.raises(UserError, match=r"exchange NSE, series EQ comes 2 times: .*once"):
            marked(tmp_path, "id series side quantity\n1 EQ B 1", settlement_rules=rules)

    def test_shipped_rules_count_by_their_content_and_not_their_place(self, tmp_path: Path) -> None:
        write(tmp_path / "trades.csv", trades("id series side quantity\n1 EQ B 1"))
        marking = process(tmp_path)
        shipped = kind_of(marking).prepare(marking).fingerprinted[-1]
        assert [name for name, _ in shipped] == ["bse.csv", "nse.csv"]
        assert all(len(sha256) == 64 for _, sha256 in shipped)


class TestKey:
    LINES = """
        id exchange segment settlement_number side quantity
        7  NSE      CM      2026221           B    10
        7  BSE      CM      2026221           S    4
        8  NSE      CM      2026221           S    1
        9  NSE      CM      2026222           S    2
    """

    def test_each_exchange_and_settlement_by_itself(self, tmp_path: Path) -> None:
        found = marked(tmp_path, self.LINES)
        assert found == {"NSE 7": 9, "BSE 7": 4, "NSE 8": 0, "NSE 9": 2}
        key = ["client_code", "symbol", "exchange", "segment", "settlement_number"]
        assert run(process(tmp_path)).shards[0].key == key

    def test_a_key_that_is_asked_for(self, tmp_path: Path) -> None:
        """Trade numbers are told apart by exchange though it isn't in the key."""
        found = marked(tmp_path, self.LINES, group_by="client_code,symbol")
        assert found == {"NSE 7": 3, "BSE 7": 0, "NSE 8": 0, "NSE 9": 0}

    def test_a_column_of_the_users(self, tmp_path: Path) -> None:
        lines = "id branch side quantity\n1 north B 10\n2 south S 4"
        assert marked(tmp_path, lines, group_by="client_code,symbol,branch") == {"1": 10, "2": 4}

    def test_a_trade_number_that_comes_twice_on_an_exchange(self, tmp_path: Path) -> None:
        lines = "id exchange side quantity\n7 NSE B 1\n7 BSE B 1\n7 NSE S 1"
        with pytest.raises(UserError) as raised:
            marked(tmp_path, lines, group_by="client_code,symbol")
        assert "2 rows rejected" in str(raised.value)
        assert "id 7 comes 2 times for client_code C1, symbol XYZ, exchange NSE" in str(
            raised.value
        )

    def test_isins_net_over_exchanges(self, tmp_path: Path) -> None:
        isins = write(
            tmp_path / "isins.csv",
            [
                {"exchange": "NSE", "symbol": "INFY", "isin": "INE009A01021"},
                {"exchange": "BSE", "symbol": "500209", "isin": "INE009A01021"},
            ],
        )
        lines = """
            id exchange symbol series side quantity
            7  NSE      INFY   EQ     B    10
            7  BSE      500209 A      S    4
            8  NSE      INFY   BE     S    2
            9  NSE      OTHER  EQ     S    2
        """
        found = marked(tmp_path, lines, instruments=isins, max_rejects=1)
        assert found == {"NSE 7": 6, "BSE 7": 0, "NSE 8": 2}
        with pytest.raises(UserError, match="symbol OTHER of exchange NSE is not in --instruments"):
            run(process(tmp_path, instruments=isins, output=str(tmp_path / "other")))

    def test_isins_that_the_trades_have(self, tmp_path: Path) -> None:
        lines = """
            id exchange symbol isin         side quantity
            7  NSE      INFY   INE009A01021 B    10
            7  BSE      500209 INE009A01021 S    4
        """
        found = marked(tmp_path, lines, group_by="client_code,isin")
        assert found == {"NSE 7": 6, "BSE 7": 0}
        isins = write(tmp_path / "isins.csv", [{"symbol": "INFY", "isin": "I"}])
        with pytest.raises(UserError, match="the input has a column 'isin', which this workload"):
            run(process(tmp_path, instruments=isins))

    def test_nothing_is_recorded_of_trades_without_such_columns(self, tmp_path: Path) -> None:
        assert marked(tmp_path, "id side quantity note\n1 B 3 x\n2 S 1 y") == {"1": 2, "2": 0}
        manifest = run(process(tmp_path))
        assert manifest.attempt.plan == {}
        assert list(manifest.columns)[-2:] == ["note", "delivery_quantity"]

    def test_a_later_attempt_keeps_to_what_the_first_one_found(self, tmp_path: Path) -> None:
        lines = "id exchange side quantity\n1 NSE B 3\n1 BSE S 1\n2 NSE S ?"
        with pytest.raises(UserError, match="1 row rejected"):
            marked(tmp_path, lines)
        definition = process(tmp_path, max_rejects=1)
        manifest = run(definition)
        assert [record.plan for record in attempts(instance_uri(manifest))] == [
            {"columns": ["exchange"]}
        ] * 2
        assert {commit.attempt for commit in manifest.shards} == {1}


class TestAllocation:
    LINES = """
        id trade_time   price side quantity product
        1  10:00:00.5   12.5  B    5        MIS
        2  10:00:00     9.25  B    5        CNC
        3  09:15:59     100   B    5        MIS
        4  11:00:00     1     S    8        MIS
    """

    @pytest.mark.parametrize(
        ("order", "expected"),
        [
            ("id", [5, 2, 0]),
            ("-id", [0, 2, 5]),
            ("time", [0, 2, 5]),
            ("-time", [5, 2, 0]),
            ("price", [2, 5, 0]),
            ("-price,id", [2, 0, 5]),
        ],
    )
    def test_the_order_that_is_asked_for(
        self, tmp_path: Path, order: str, expected: list[int]
    ) -> None:
        found = marked(tmp_path, self.LINES, allocate_by=order)
        assert found == dict(zip("1234", [*expected, 0], strict=True))
        manifest = run(process(tmp_path, allocate_by=order))
        assert manifest.attempt.parameters["allocate_by"] == order
        assert not any(name.startswith("__") for name in manifest.columns)

    def test_products_that_are_delivered_first(self, tmp_path: Path) -> None:
        products = write(
            tmp_path / "products.csv",
            [
                {"product": "CNC", "product_type": "delivery"},
                {"product": "MIS", "product_type": "intraday"},
            ],
        )
        found = marked(tmp_path, self.LINES, products=products)
        assert found == {"1": 2, "2": 5, "3": 0, "4": 0}
        types = {
            row["id"]: row["product_type"]
            for row in rows_of(run(process(tmp_path, products=products)))
        }
        assert types == {1: "both", 2: "delivery", 3: "intraday", 4: "intraday"}

    def test_products_by_what_is_net(self, tmp_path: Path) -> None:
        marked(tmp_path, self.LINES, products="net")
        rows = rows_of(run(process(tmp_path, products="net")))
        types = {row["id"]: row["product_type"] for row in rows}
        assert types == {1: "delivery", 2: "both", 3: "intraday", 4: "intraday"}

    def test_what_is_not_understood_is_refused(self, tmp_path: Path) -> None:
        products = write(
            tmp_path / "products.csv", [{"product": "CNC", "product_type": "delivery"}]
        )
        lines = """
            id trade_time price side quantity product
            1  10:00:00   1     B    5        CNC
            2  10:00      1     B    5        CNC
            3  10:00:00   1     B    5        MIS
        """
        with pytest.raises(UserError) as raised:
            marked(tmp_path, lines, products=products, allocate_by="time")
        assert "2 rows rejected" in str(raised.value)
        reasons = rejects(tmp_path)
        assert reasons == [
            "trade_time '10:00' is not a time ([YYYY-MM-DD ]HH:MM:SS)",
            "product 'MIS' is not in --products",
        ]


def rejects(folder: Path) -> list[str]:
    files = sorted(folder.rglob("rejects-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert not any(name.startswith("__") for row in rows for name in json.loads(row["raw"]))
    return [row["reason"] for row in sorted(rows, key=lambda row: row["row"])]


class TestMistakes:
    @pytest.mark.parametrize(
        ("parameters", "line"),
        [
            (
                {"allocate_by": "time"},
                "--allocate-by=time: the trades have no column trade_time: name one that they have "
                "by --columns=trade_time=NAME_IN_THE_FILE, or leave --allocate-by out",
            ),
            (
                {"allocate_by": "id,-price"},
                "--allocate-by=id,-price: the trades have no column price",
            ),
            (
                {"group_by": "client_code,isin"},
                "--group-by=client_code,isin: the trades have no col",
            ),
            (
                {"products": "products.csv"},
                "--products=products.csv: the trades have no column prod",
            ),
            (
                {"settlement_rules": "nse"},
                "the trades have neither of the columns series, settleme",
            ),
        ],
    )
    def test_a_column_that_is_not_there(
        self, tmp_path: Path, parameters: dict[str, str], line: str
    ) -> None:
        write(tmp_path / "trades.csv", trades("id side quantity\n1 B 1"))
        with pytest.raises(UserError) as raised:
            run(process(tmp_path, **parameters))
        assert line in str(raised.value)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("parameters", "line"),
        [
            ({"allocate_by": "size"}, "'size' is none of id, time, price"),
            ({"allocate_by": "id,-id"}, "'id' is none of id, time, price, or is there twice"),
            ({"group_by": "client_code,side"}, "side can't be in the key"),
            ({"group_by": "client_code,,symbol"}, "an empty name can't be in the key"),
            ({"group_by": "symbol,symbol"}, "symbol can't be in the key, or is there twice"),
        ],
    )
    def test_parameters(self, tmp_path: Path, parameters: dict[str, str], line: str) -> None:
        with pytest.raises(ValidationError, match=line):
            process(tmp_path, **parameters)

    def test_an_empty_series(self, tmp_path: Path) -> None:
        rows = [{"id": 1, "client_code": "C", "symbol": "X", "series": "", "side": "B"}]
        write(tmp_path / "trades.csv", [row | {"quantity": 1} for row in rows])
        with pytest.raises(UserError, match=r"row 2 \(series is missing"):
            run(process(tmp_path))


class Options(NamedTuple):
    """How a day is marked, and which columns its trades have."""

    columns: frozenset[str]
    by_isin: bool
    has_products: bool
    order: tuple[str, ...]


SERIES = {
    "NSE": {"EQ": "net", "BE": "gross", "T0": "net-t0", "??": None},
    "BSE": {"A": "net", "XT": "gross", "??": None},
}
ISINS = {("NSE", "S1"): "I1", ("BSE", "S1"): "I1", ("NSE", "S2"): "I2", ("BSE", "S2"): "I1"}
PRODUCTS = {"CNC": 0, "MIS": 1}
TEXT_ORDERS = {"id": "id", "time": "trade_time", "price": "price"}


def expected_of(rows: Sequence[Row], options: Options) -> tuple[list[Row], int]:
    """The marked trades in plain Python, and how many are refused."""
    has = options.columns
    settles = bool({"series", "auction"} & has)
    key = ["client_code", "symbol"]
    key += [n for n in ("exchange", "segment", "series", "settlement_number") if n in has]
    if options.by_isin:
        key = ["client_code", "isin", *(["segment"] if "segment" in has else [])]
    ids = [*key, *(n for n in ("exchange", "segment") if n in has), "id"]
    known = []
    for row in rows:
        row = dict(row)
        if settles:
            row["settles"] = "net"
            if "series" in has:
                row["settles"] = SERIES[row["exchange"]][row["series"]]
            if row.get("auction") == "true":
                row["settles"] = "gross"
        if options.by_isin:
            row["isin"] = ISINS.get((row["exchange"], row["symbol"]))
        known.append(row)
    names = [*ids, *(["settles"] if settles else [])]
    # Two that share all that tells them apart are refused, also where they are wrong otherwise.
    count = Counter(tuple(row[name] for name in names) for row in known)
    components = defaultdict(list)
    for row in known:
        is_known = None not in (row.get("settles", ""), row.get("isin", ""))
        is_known &= not options.has_products or row["product"] in PRODUCTS
        if is_known and count[tuple(row[name] for name in names)] == 1:
            components[tuple(row[n] for n in (*key, *(["settles"] if settles else [])))].append(row)

    def place(row: Row) -> list[Any]:
        first = [PRODUCTS[row["product"]]] if options.has_products else []
        for name in options.order:
            value = row[TEXT_ORDERS[name.removeprefix("-")]]
            if name.endswith("time"):
                seconds = datetime.time.fromisoformat(value)
                value = seconds.hour * 3600 + seconds.minute * 60 + seconds.second
            first.append(-value if name.startswith("-") else value)
        return [*first, *(row[name] for name in ids if name not in key)]

    marked = []
    for component in components.values():
        component.sort(key=place)
        signed = [row["quantity"] * (1 if row["side"] == "B" else -1) for row in component]
        side, left = ("B", sum(signed)) if sum(signed) > 0 else ("S", -sum(signed))
        for row in component:
            delivered = min(left, row["quantity"]) if row["side"] == side else 0
            left -= delivered
            if row.get("settles") == "gross":
                delivered = row["quantity"]
            marked.append(row | {"delivery_quantity": delivered})
    return marked, len(rows) - len(marked)


@st.composite
def days(draw: st.DrawFn) -> tuple[list[Row], Options]:
    optional = ["segment", "settlement_number", "auction"]
    by_isin = draw(st.booleans())
    columns = set(draw(st.lists(st.sampled_from(optional), unique=True)))
    columns |= draw(st.sampled_from([set(), {"exchange"}, {"exchange", "series"}]))
    columns |= {"exchange"} if by_isin else set()
    has_products = draw(st.booleans())
    words = st.sampled_from(["id", "time", "price"])
    order = draw(st.lists(words, min_size=1, max_size=2, unique=True))
    order = [draw(st.sampled_from(["", "-"])) + name for name in order]
    rows = []
    for _ in range(draw(st.integers(0, 50))):
        exchange = draw(st.sampled_from(["NSE", "BSE"]))
        row = {
            "id": draw(st.integers(1, 12)),
            "client_code": draw(st.sampled_from(["C1", "C2"])),
            "symbol": draw(st.sampled_from(["S1", "S2", "S1", "S2", "S3"])),
            "side": draw(st.sampled_from("BS")),
            "quantity": draw(st.integers(0, 9)),
            "price": draw(st.decimals(1, 9, places=1)),
            "trade_time": f"{draw(st.integers(9, 11)):02}:00:{draw(st.integers(0, 9)):02}",
            "product": draw(st.sampled_from(["CNC", "MIS", "CNC", "MIS", "BO"])),
            "exchange": exchange,
            "segment": draw(st.sampled_from(["CM", "SLB"])),
            "series": draw(st.sampled_from([*SERIES[exchange], *SERIES[exchange]])),
            "settlement_number": draw(st.sampled_from(["221", "222"])),
            "auction": draw(st.sampled_from(["false", "false", "true"])),
        }
        left_out = {"exchange", "series", *optional} - columns
        rows.append({name: value for name, value in row.items() if name not in left_out})
    return rows, Options(frozenset(columns), by_isin, has_products, tuple(order))


def comparable(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def plain(row: Mapping[str, Any]) -> Row:
        return {n: str(Decimal(v).normalize()) if n == "price" else v for n, v in row.items()}

    return sorted(json.dumps(plain(row), sort_keys=True) for row in rows)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run is too slow to shrink by
    suppress_health_check=[HealthCheck.too_slow],
)
@given(days(), st.sampled_from(["vectorised", "per-component"]), st.integers(1, 3))
def test_any_day_against_plain_python(
    tmp_path_factory: pytest.TempPathFactory, day: tuple[list[Row], Options], rule: str, shards: int
) -> None:
    rows, options = day
    folder = tmp_path_factory.mktemp("day")
    parameters: dict[str, Any] = {"rule": rule, "shards": shards, "max_rejects": 100, "min_rows": 0}
    parameters["allocate_by"] = ",".join(options.order)
    if options.by_isin:
        isins = [{"exchange": e, "symbol": s, "isin": isin} for (e, s), isin in ISINS.items()]
        parameters["instruments"] = write(folder / "isins.csv", isins)
    if options.has_products:
        names = {0: "delivery", 1: "intraday"}
        table = [{"product": p, "product_type": names[rank]} for p, rank in PRODUCTS.items()]
        parameters["products"] = write(folder / "products.csv", table)
    if not rows:
        names_of_none = ["id", "client_code", "symbol", "side", "quantity", "price", "trade_time"]
        names_of_none += ["product", *sorted(options.columns)]
        (folder / "trades.csv").write_text(",".join(names_of_none) + "\n")
    else:
        write(folder / "trades.csv", rows)
    manifest = run(process(folder, **parameters))
    expected, rejected = expected_of(rows, options)
    found = rows_of(manifest)
    if options.has_products:
        for row in found:
            kind = row.pop("product_type")
            part = row["delivery_quantity"]
            assert (
                kind == ("delivery" if part == row["quantity"] else "both") if part else "intraday"
            )
    assert comparable(found) == comparable(expected)
    assert manifest.counts["rejected"] == rejected
    verify(instance_uri(manifest), process(folder, **parameters))
