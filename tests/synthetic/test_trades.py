"""The made-up day of trades: complete, repeatable, skewed, alike in all formats."""

import datetime
import gzip
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import fastavro
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
import pytest

from ledgerbeam.io.errors import UserError
from ledgerbeam.synthetic import trades as module
from ledgerbeam.synthetic.formats import TradeFormat
from ledgerbeam.synthetic.trades import schema, trades, write_trades

DATE = datetime.date(2026, 11, 20)
FORMATS: tuple[TradeFormat, ...] = get_args(TradeFormat)
AS_TEXT = pa.schema([(name, pa.string()) for name in schema().names])


def day(count: int, **options: Any) -> pa.Table:
    batches = trades(count, trade_date=DATE, **options)
    return pa.Table.from_batches(batches, schema(options.get("id_type", "integer")))


def read(path: Path) -> pa.Table:
    """A file's rows in the generator's types, by a reader other than the project's own."""
    name = path.name
    if name.endswith(".parquet"):
        return pq.read_table(path)
    if name.endswith(".avro"):
        with path.open("rb") as file:
            return pa.Table.from_pylist(list(fastavro.reader(file)), schema())
    if name.endswith((".csv", ".csv.gz")):
        types = {name: pa.string() for name in schema().names}
        return pa_csv.read_csv(
            path, convert_options=pa_csv.ConvertOptions(column_types=types)
        ).cast(schema())
    with pa.input_stream(str(path)) as file:
        options = pa_json.ParseOptions(
            explicit_schema=pa.schema(
                [
                    (field.name, field.type if field.type == pa.int64() else pa.string())
                    for field in schema()
                ]
            )
        )
        return pa_json.read_json(file, parse_options=options).cast(schema())


def read_all(uris: list[str]) -> pa.Table:
    return pa.concat_tables([read(Path(uri)) for uri in uris])


def test_has_as_many_trades_as_asked_for_in_the_types_of_the_schema() -> None:
    table = day(12_345)
    assert table.num_rows == 12_345
    assert table.schema == schema()
    assert all(column.null_count == 0 for column in table.columns)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_ids_are_one_to_count(count: int) -> None:
    assert sorted(day(count)["id"].to_pylist()) == list(range(1, count + 1))


def test_ids_are_in_no_order() -> None:
    ids = day(10_000)["id"].to_numpy()
    ascents = int((ids[1:] > ids[:-1]).sum())
    assert 4_800 < ascents < 5_200
    distances = Counter((ids[1:] - ids[:-1]).tolist())
    assert distances.most_common(1)[0][1] < 10


def test_ids_may_be_strings() -> None:
    numbers, strings = day(1_000), day(1_000, id_type="string")
    assert strings["id"].to_pylist() == [f"T{number}" for number in numbers["id"].to_pylist()]
    assert strings.drop("id").equals(numbers.drop("id"))


def test_a_seed_gives_the_same_day_and_another_seed_another_one() -> None:
    assert day(5_000).equals(day(5_000))
    other = day(5_000, seed=8)
    for name in ("id", "client_code", "symbol", "side", "quantity", "price"):
        assert not other[name].equals(day(5_000)[name]), name


def test_any_range_of_rows_can_be_made_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = day(3_000, bad_rows=17, other_dates=0.1)
    monkeypatch.setattr(module, "BATCH_ROWS", 100)
    part = day(3_000, bad_rows=17, other_dates=0.1, rows=range(1_234, 2_001))
    assert part.equals(whole.slice(1_234, 2_001 - 1_234).combine_chunks())


def test_one_client_holds_one_percent_and_the_others_follow_a_long_tail() -> None:
    table = day(400_000)
    shares = [
        n / table.num_rows for _, n in Counter(table["client_code"].to_pylist()).most_common()
    ]
    assert shares[0] == pytest.approx(0.01, rel=0.05)
    assert shares[1] < 0.006
    assert len(shares) > 3_900
    assert shares[1] > 20 * shares[-1]


def test_symbols_are_skewed_too() -> None:
    counts = Counter(day(100_000, symbols=50)["symbol"].to_pylist())
    assert len(counts) == 50
    assert 1.5 < counts["S000001"] / counts["S000050"] < 2.5


def test_clients_and_symbols_are_as_many_as_asked_for() -> None:
    table = day(20_000, clients=3, symbols=1)
    assert set(table["client_code"].to_pylist()) == {"C000001", "C000002", "C000003"}
    assert set(table["symbol"].to_pylist()) == {"S000001"}
    assert set(day(100, clients=1)["client_code"].to_pylist()) == {"C000001"}


def test_values_are_in_their_ranges() -> None:
    table = day(50_000)
    assert set(table["side"].to_pylist()) == {"B", "S"}
    assert pc.min_max(table["quantity"]).as_py() == {"min": 0, "max": 499}
    prices = table["price"].unique().to_pylist()
    assert min(prices) >= 10
    assert max(prices) <= Decimal("2020")
    assert all(price % Decimal("0.05") == 0 for price in prices)
    assert table["trade_date"].unique().to_pylist() == [DATE]


def test_some_trades_may_be_of_the_day_before() -> None:
    counts = Counter(day(20_000, other_dates=0.25)["trade_date"].to_pylist())
    assert counts.keys() == {DATE, DATE - datetime.timedelta(days=1)}
    assert counts[DATE] == pytest.approx(15_000, rel=0.03)


@pytest.mark.parametrize("format_", FORMATS)
def test_all_formats_hold_the_same_day(tmp_path: Path, format_: TradeFormat) -> None:
    written = write_trades(
        str(tmp_path), 1_001, files=3, format=format_, trade_date=DATE, other_dates=0.1
    )
    assert written.rows == 1_001
    assert [Path(uri).name for uri in written.uris] == [
        f"trades-0000{number}-of-00003.{format_}" for number in range(3)
    ]
    assert sorted(map(str, tmp_path.iterdir())) == written.uris
    assert written.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert read_all(written.uris).combine_chunks().equals(day(1_001, other_dates=0.1))


@pytest.mark.parametrize("format_", FORMATS)
def test_files_are_the_same_byte_for_byte(tmp_path: Path, format_: TradeFormat) -> None:
    first, second = (
        write_trades(str(tmp_path / name), 300, files=1, format=format_, trade_date=DATE)
        for name in ("first", "second")
    )
    assert Path(first.uris[0]).read_bytes() == Path(second.uris[0]).read_bytes()


def test_the_number_of_files_changes_nothing_but_their_number(tmp_path: Path) -> None:
    one, seven = (
        write_trades(str(tmp_path / str(files)), 500, files=files, trade_date=DATE).uris
        for files in (1, 7)
    )
    assert read_all(one).equals(read_all(seven).combine_chunks())


def test_parquet_is_snappy_in_groups_of_batch_rows(tmp_path: Path) -> None:
    written = write_trades(str(tmp_path), 300_000, files=1, trade_date=DATE)
    metadata = pq.read_metadata(written.uris[0])
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [250_000, 50_000]
    assert groups[0].column(0).compression == "SNAPPY"


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("format_", FORMATS)
def test_files_may_be_empty(tmp_path: Path, format_: TradeFormat, count: int) -> None:
    written = write_trades(str(tmp_path), count, files=3, format=format_, trade_date=DATE)
    assert len(written.uris) == 3
    sizes = [
        0 if "jsonl" in format_ and not _unpacked(Path(uri)) else read(Path(uri)).num_rows
        for uri in written.uris
    ]
    assert sum(sizes) == count


def _unpacked(path: Path) -> bytes:
    with pa.input_stream(str(path)) as file:
        return bytes(file.read())


@pytest.mark.parametrize("bad_rows", [0, 1, 4, 5, 9, 23, 500])
def test_plants_bad_rows(bad_rows: int) -> None:
    assert len(refused(day(500, bad_rows=bad_rows))) == bad_rows


def test_bad_rows_are_of_every_kind_and_of_the_date_asked_for() -> None:
    table = day(1_000, bad_rows=20, other_dates=1.0)
    reasons = refused(table)
    assert Counter(reasons.values()) == {"side": 4, "quantity": 4, "client": 4, "twin": 8}
    assert {table["trade_date"][row].as_py() for row in reasons} == {DATE}


def test_bad_rows_leave_the_others_alone() -> None:
    good, bad = day(1_000), day(1_000, bad_rows=10)
    untouched = sorted(set(range(1_000)) - refused(bad).keys())
    assert bad.take(untouched).equals(good.take(untouched))


@pytest.mark.parametrize("format_", ["csv.gz", "jsonl"])
def test_text_has_quantities_that_are_no_numbers(tmp_path: Path, format_: TradeFormat) -> None:
    uri = write_trades(
        str(tmp_path), 100, files=1, format=format_, trade_date=DATE, bad_rows=20
    ).uris[0]
    data = Path(uri).read_bytes()
    text = (gzip.decompress(data) if format_.endswith("gz") else data).decode()
    assert text.count("many") == 2
    assert len(text.splitlines()) == 100 + format_.startswith("csv")


def refused(table: pa.Table) -> dict[int, str]:
    """What is wrong with which row."""
    records = table.to_pylist()
    components = Counter((r["id"], r["client_code"], r["symbol"]) for r in records)
    reasons = {}
    for row, record in enumerate(records):
        faults = [
            *(["side"] if record["side"] not in ("B", "S") else []),
            *(["quantity"] if record["quantity"] < 0 else []),
            *(["client"] if record["client_code"] is None else []),
            *(["twin"] if components[tuple(record.values())[:3]] > 1 else []),
        ]
        assert len(faults) <= 1
        if faults:
            reasons[row] = faults[0]
    return reasons


def test_tells_its_progress(tmp_path: Path) -> None:
    calls: list[int] = []
    write_trades(str(tmp_path), 1_000, files=4, trade_date=DATE, progress=calls.append)
    assert calls == [250] * 4


def test_refuses_a_folder_that_holds_trades(tmp_path: Path) -> None:
    first = write_trades(str(tmp_path), 10, files=2, trade_date=DATE)
    before = Path(first.uris[0]).read_bytes()
    with pytest.raises(UserError, match=r"exists already.*choose another folder, or delete"):
        write_trades(str(tmp_path), 20, files=5, format="csv", trade_date=DATE)
    assert Path(first.uris[0]).read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"bad_rows": 11},
        {"bad_rows": -1},
        {"other_dates": 1.5},
        {"clients": 0},
        {"symbols": 0},
    ],
)
def test_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        trades(10, trade_date=DATE, **options)


def test_refuses_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files=0"):
        write_trades(str(tmp_path), 10, files=0, trade_date=DATE)


def test_writes_to_any_kind_of_storage(root: str) -> None:
    uris = write_trades(f"{root}/day", 100, files=2, format="csv", trade_date=DATE).uris
    assert [uri.rsplit("/", 1)[0] for uri in uris] == [f"{root}/day"] * 2
    with pytest.raises(UserError, match="exists already"):
        write_trades(f"{root}/day", 100, files=2, format="csv", trade_date=DATE)
