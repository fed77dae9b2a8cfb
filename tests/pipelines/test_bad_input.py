"""Bad input end to end: one clear line, a status other than 0, nothing published, rejects named."""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.keyed.rejects import RejectionLimit
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets import lines as text_lines
from ledgerbeam.io.datasets import readers, text
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking

DAY = "2026-11-20"
HEADER = "id,client_code,symbol,side,quantity"
REAL_TRADES = Path(__file__).parents[3] / "shared" / "data" / "delivery_trades.csv"


class Outcome(NamedTuple):
    """What a run has left.

    Attributes:
        status: its exit status.
        error: what it wrote to standard error.
        json: the last line of standard output, if asked for and reached.
        instance: the folder of the instance.
    """

    status: int
    error: str
    json: dict[str, Any]
    instance: Path

    @property
    def published(self) -> bool:
        return (self.instance / "manifest.json").exists()

    @property
    def rejects(self) -> list[tuple[str, int, str, str]]:
        """File name, row, raw row and reason of all rejects, by file and row."""
        tables = [pq.read_table(file) for file in self.instance.glob("*/rejects-*.parquet")]
        rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
        return sorted((Path(file).name, row, raw, reason) for file, row, raw, reason in rows)


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the workload's `main` in the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, trades: str = "trades.csv", output: str = "out") -> Outcome:
        given = [f"--trades={trades}", f"--trade-date={DAY}", f"--output={output}", "--json"]
        names = {flag.partition("=")[0] for flag in flags}
        status = main(
            DeliveryMarking, [*(g for g in given if g.partition("=")[0] not in names), *flags]
        )
        streams = capsys.readouterr()
        last = streams.out.splitlines()[-1:]
        instance = tmp_path / output / "delivery-marking" / DAY
        return Outcome(status, streams.err, json.loads(last[0]) if last else {}, instance)

    return run


def assert_refused(outcome: Outcome, *words: str) -> None:
    """The run failed with one message that holds all the words, and published nothing."""
    assert outcome.status in {Exit.FAILURE, Exit.USAGE}
    assert len(outcome.error.splitlines()) == 1, outcome.error
    error = json.loads(outcome.error)["error"]
    assert error["code"]
    for word in words:
        assert word in error["message"]
    assert "Traceback" not in outcome.error
    assert "[while running" not in outcome.error
    assert not outcome.json
    assert not outcome.published


def write(name: str, *lines: str) -> Path:
    file = Path(name)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def marked(outcome: Outcome) -> dict[Any, int]:
    table = read_published(str(outcome.instance)).to_table()
    ids = table.column("id").to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table.column("delivery_quantity").to_pylist(), strict=True))


class Bad(NamedTuple):
    """A bad line and what is said of it."""

    line: str
    reason: str


BAD_LINES = [
    Bad("x,C,S,B,1", "id 'x' is not a number"),
    Bad("2,,S,B,1", "client_code is missing"),
    Bad("2,C,,B,1", "symbol is missing"),
    Bad("2,C,S,buy,1", "side 'buy' is none of B, S"),
    Bad("2,C,S,B,-1", "quantity -1 is below 0"),
    Bad("2,C,S,B,1.5", "quantity '1.5' is not a whole number"),
    Bad("2,C,S,B,1e3", "quantity '1e3' is not a number"),
    Bad("2,C,S,B", "4 columns instead of 5"),
    Bad("2,C,S,B,1,0", "6 columns instead of 5"),
    Bad('2,"C"D,S,B,1', "',' expected after '\"'"),
    Bad(",,,,", "; ".join(f"{name} is missing" for name in HEADER.split(","))),
]


def test_refused_rows_are_written_with_file_row_raw_row_and_reason(run: Run) -> None:
    write("trades.csv", HEADER, "1,C,S,B,5", *(bad.line for bad in BAD_LINES), "3,C,S,S,2")
    outcome = run()
    count = len(BAD_LINES)
    assert_refused(
        outcome,
        f"{count} rows rejected, and --max-rejects is 0",
        "trades.csv row 3 (id 'x' is not a number",
        f"{outcome.instance}/attempt-1/rejects-*.parquet",
    )
    expected = [("trades.csv", row, *bad) for row, bad in enumerate(BAD_LINES, 3)]
    assert outcome.rejects == expected
    (file,) = outcome.instance.glob("*/rejects-*.parquet")
    assert pq.read_schema(file) == pa.schema(
        [("file", pa.string()), ("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())]
    )
    assert pq.read_table(file).column("file")[0].as_py() == str(Path("trades.csv").absolute())
    assert_refused(run(f"--max-rejects={count - 1}"), f"{count} rows rejected")
    outcome = run(f"--max-rejects={count}")
    assert (outcome.status, outcome.error) == (0, "")
    assert outcome.json["counts"]["rejected"] == count
    assert marked(outcome) == {1: 3, 3: 0}


@pytest.mark.parametrize("name", ["trades.csv", "trades.csv.gz", "trades.jsonl"])
def test_reading_ends_soon_after_too_many_rows_are_rejected(
    run: Run, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_RECORDS_AT_A_TIME", 100)
    monkeypatch.setattr(readers, "ROWS_PER_SPLIT", 200)
    monkeypatch.setattr(RejectionLimit, "MARGIN", 500)
    first, last = HEADER, "1,C,S,B,5"
    if name.endswith(".jsonl"):
        first, last = (
            json.dumps({"id": id_, "client_code": "C", "symbol": "S", "side": "B", "quantity": 5})
            for id_ in (1, 2)
        )
    content = "".join(f"{line}\n" for line in (first, *["x"] * 5_000, last)).encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    outcome = run("--max-rejects=50", trades=name)
    assert_refused(
        outcome,
        "nothing published: more than 550 rows rejected, and --max-rejects is 50",
        f"{name} row 2 (",
        f"{outcome.instance}/attempt-1/rejects-split-00000-00000.parquet",
    )
    # The rest of the file isn't read, and no component is executed on a part of its rows.
    assert [row for _, row, _, _ in outcome.rejects] == list(range(2, len(outcome.rejects) + 2))
    assert 550 < len(outcome.rejects) < 1_500
    assert not list(outcome.instance.glob("*/part-*"))
    assert f"the first {len(outcome.rejects):,} are in" in outcome.error
    assert run("--max-rejects=5000", trades=name).json["counts"]["rejected"] == 5_000


def test_rejects_of_many_files_formats_and_shards(run: Run) -> None:
    clients = [f"C{number}" for number in range(8)]
    write("1.csv", HEADER, "", "1,C0,S,B,x", *(f"{n},{c},S,B,1" for n, c in enumerate(clients, 10)))
    Path("2.csv.gz").write_bytes(gzip.compress(f"{HEADER}\n20,C0,S,B,\n".encode()))
    record = {"id": 30, "client_code": "C1", "symbol": "S", "side": "B", "quantity": 1}
    write("3.jsonl", json.dumps(record), json.dumps(record | {"side": "X"}))
    negative = record | {"id": 40, "quantity": -1}
    pq.write_table(pa.Table.from_pylist([negative]), "4.parquet")
    # Trade 17 comes twice, in another file and so in another split, but in the same shard.
    write("5.csv", HEADER, "17,C7,S,S,4")
    trades = "*.csv,*.csv.gz,3.jsonl,4.parquet"
    assert_refused(run("--shards=5", "--max-rejects=5", trades=trades), "6 rows rejected")
    outcome = run("--shards=5", "--max-rejects=6", trades=trades)
    assert outcome.status == 0
    twice = "id 17 comes 2 times for client_code C7, symbol S: 1.csv row 11, 5.csv row 2"
    raw = '{"id": 17, "client_code": "C7", "symbol": "S", "side": "%s", "quantity": %d}'
    refused_again = set(outcome.rejects)  # the first attempt has left the same
    assert {rejected for rejected in refused_again if rejected[3] != twice} == {
        ("1.csv", 3, "1,C0,S,B,x", "quantity 'x' is not a number"),
        ("2.csv.gz", 2, "20,C0,S,B,", "quantity is missing"),
        ("3.jsonl", 2, json.dumps(record | {"side": "X"}), "side 'X' is none of B, S"),
        ("4.parquet", 1, json.dumps(negative), "quantity -1 is below 0"),
    }
    assert {rejected for rejected in refused_again if rejected[3] == twice} == {
        ("1.csv", 11, raw % ("B", 1), twice),
        ("5.csv", 2, raw % ("S", 4), twice),
    }
    assert marked(outcome) == {**dict.fromkeys(range(10, 17), 1), 30: 1}


def test_rejects_of_one_long_file_are_named_by_their_lines(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n},C{n % 7},S,B,{'?' if n % 10 == 0 else 1}" for n in range(100)]
    lines[50:50] = ["", lines[51]]  # and trade 51 twice
    Path("trades.csv.gz").write_bytes(gzip.compress("\n".join([HEADER, *lines]).encode()))
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 100)
    monkeypatch.setattr(readers, "BYTES_PER_SPLIT", 300)
    outcome = run("--max-rejects=12", trades="trades.csv.gz")
    assert outcome.status == 0
    places = [2 + n + 2 * (n >= 50) for n in range(0, 100, 10)]
    assert [(row, why) for _, row, _, why in outcome.rejects if "comes" not in why] == [
        (place, "quantity '?' is not a number") for place in places
    ]
    twice = "id 51 comes 2 times for client_code C2, symbol S: "
    twice += "trades.csv.gz row 53, trades.csv.gz row 55"
    assert [(row, why) for _, row, _, why in outcome.rejects if "comes" in why] == [
        (53, twice),
        (55, twice),
    ]


def test_rejects_with_times_that_python_has_not(run: Run) -> None:
    columns = {"id": [1, 1, 2, 3], "quantity": [1, 2, -1, 4]}
    times = {
        "at": pa.array([2**60 + 1] * 4, pa.timestamp("ns")),
        "until": pa.array([10**8] * 4, pa.date32()),
    }
    same = {"client_code": ["C"] * 4, "symbol": ["S"] * 4, "side": ["B"] * 4}
    Path("t.parquet").write_bytes(parquet_bytes(**columns, **same, **times))
    outcome = run("--max-rejects=3", trades="t.parquet")
    assert [row for _, row, _, _ in outcome.rejects] == [1, 2, 3]
    for _, _, raw, _ in outcome.rejects:
        assert json.loads(raw)["at"] == "2006-07-14 23:58:24.606846977"
        assert json.loads(raw)["until"] == "<value out of range: 100000000>"
    assert marked(outcome) == {3: 4}


def test_trades_that_share_an_id_are_all_refused_and_all_named(run: Run) -> None:
    write(
        "trades.csv",
        HEADER,
        *["7,C,S,B,1", "7,C,S,S,9", "7,C,S,B,1"],
        *["7,C,T,B,1", "7,D,S,B,2"],  # another symbol, another client
        "8,C,S,B,5",
    )
    outcome = run("--max-rejects=3")
    reason = (
        "id 7 comes 3 times for client_code C, symbol S: "
        "trades.csv row 2, trades.csv row 3, trades.csv row 4"
    )
    assert [(row, why) for _, row, _, why in outcome.rejects] == [(n, reason) for n in (2, 3, 4)]
    table = read_published(str(outcome.instance)).to_table()
    assert sorted(
        (row["id"], row["client_code"], row["symbol"], row["delivery_quantity"])
        for row in table.to_pylist()
    ) == [(7, "C", "T", 1), (7, "D", "S", 2), (8, "C", "S", 5)]


def test_string_ids_that_are_alike_are_not_the_same(run: Run) -> None:
    write("trades.csv", HEADER, "7,C,S,B,1", "07,C,S,B,2", "x,C,S,S,2", "7 ,C,S,B,4")
    assert_refused(run(), "4 rows rejected", "row 4 (id 'x' is not a number")
    outcome = run("--id-type=string", "--max-rejects=1", output="strings")
    assert marked(outcome) == {"07": 1, "7": 0, "x": 0}
    refused = [reject[3] for reject in outcome.rejects]
    assert refused == ["id '7 ' has white space around it: correct it, or say --trim=true"]
    write("trades.csv", HEADER, "7,C,S,B,1", "07,C,S,B,2")
    assert_refused(run(output="integers"), "id 7 comes 2 times")


def test_trades_of_other_dates_are_counted_and_left_out(run: Run) -> None:
    header = f"{HEADER},trade_date"
    write(
        "trades.csv",
        header,
        f"1,C,S,B,5,{DAY}",
        "1,C,S,B,7,2026-11-19",  # the same id: it is left out before
        "2,C,S,S,7,2026-11-21",
    )
    outcome = run()
    counts = {"rows_in": 3, "rows_out": 1, "rejected": 0, "other_dates": 2}
    assert outcome.json["counts"].items() >= counts.items()
    assert marked(outcome) == {1: 5}
    write("trades.csv", header, f"1,C,S,B,5,{DAY}", "2,C,S,B,5,", "3,C,S,B,5,20261120")
    assert_refused(run(output="other"), "2 rows rejected", "row 3 (trade_date is missing")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("trades.csv", []),
        ("nothing.csv", [f"--columns={HEADER}"]),
        ("nothing.jsonl", []),
        ("empty.parquet", []),
        ("empty.csv.gz", [f"--columns={HEADER}"]),
    ],
)
def test_an_empty_input_is_published_only_if_asked(run: Run, name: str, flags: list[str]) -> None:
    write("trades.csv", HEADER)
    for empty in ("nothing.csv", "nothing.jsonl"):
        Path(empty).touch()
    Path("empty.csv.gz").write_bytes(gzip.compress(b""))
    pq.write_table(pa.table({name: pa.nulls(0) for name in HEADER.split(",")}), "empty.parquet")
    assert_refused(run(*flags, trades=name), "no trades of 2026-11-20 were found", "--min-rows=0")
    outcome = run(*flags, "--min-rows=0", trades=name)
    assert (outcome.status, outcome.error) == (0, "")
    assert outcome.json["counts"]["rows_in"] == 0
    table = read_published(str(outcome.instance)).to_table()
    names = [*HEADER.split(","), "delivery_quantity"]
    types = [pa.int64(), *[pa.string()] * 3, pa.int64(), pa.int64()]
    assert table.schema == pa.schema(list(zip(names, types, strict=True)))
    assert table.num_rows == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trades=none.csv"], ["none.csv: no such file"]),
        (["--trades=none/*.csv"], ["none/*.csv: no such file"]),
        (["--trades=."], ["no such file"]),
        (["--trades=ftp://host/t.csv"], ["no storage is known for ftp://"]),
        (["--trade-date=2026-11-31"], ["--trade-date=2026-11-31: "]),
        (["--trade-date=20.11.2026"], ["--trade-date=20.11.2026: "]),
        (["--max-rejects=-1"], ["--max-rejects=-1: "]),
        (["--max-rejects=few"], ["--max-rejects=few: "]),
        (["--shards=0"], ["--shards=0: "]),
        (["--format=xml"], ["--format=xml: "]),
        (["--id-type=number"], ["--id-type=number: "]),
        (["--columns=id,id"], ["--columns=id,id: "]),
        (["--columns=id=no"], ["trades.csv: there is no column 'no' to rename"]),
        (["--colums=id"], ["unknown flag --colums: did you mean --columns?"]),
        (["--frobnicate"], ["unknown flag or value --frobnicate"]),
        (["trades.csv"], ["unknown flag or value trades.csv"]),
        (["--direct_running_mode=multi_threading"], ["multi_threading loses elements"]),
        (["--direct_running_mode=turbo"], ["turbo"]),
        (["--run-number=2"], ["--run-number=2 needs a --reason"]),
        (["--output=trades.csv/out"], ["cannot write", "a part of the path is a file"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_flags_that_can_not_be_followed(run: Run, flags: list[str], words: list[str]) -> None:
    write("trades.csv", HEADER, "1,C,S,B,5")
    assert_refused(run(*flags), *words)
    assert os.listdir() == ["trades.csv"]


@pytest.mark.parametrize("missing", ["trades", "trade-date", "output"])
def test_required_flags(capsys: pytest.CaptureFixture[str], missing: str) -> None:
    flags = {"trades": "t.csv", "trade-date": DAY, "output": "out"}
    assert (
        main(
            DeliveryMarking,
            [f"--{name}={value}" for name, value in flags.items() if name != missing],
        )
        == 2
    )
    streams = capsys.readouterr()
    assert streams.err == f"delivery-marking: --{missing} is required: see --help\n"
    assert streams.out == ""


def truncated_gzip() -> bytes:
    rows = "".join(f"{n},C{n},S,B,{n * 7919 % 1000}\n" for n in range(20_000))
    return gzip.compress(f"{HEADER}\n{rows}".encode())[:-20]


def parquet_bytes(**columns: Sequence[Any] | pa.Array) -> bytes:
    base = {"id": [1], "client_code": ["C"], "symbol": ["S"], "side": ["B"], "quantity": [5]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(base | columns), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.csv.gz", truncated_gzip(), ["damaged or truncated gzip file"]),
        ("t.csv.gz", b"", ["damaged or truncated gzip file"]),
        ("t.csv.gz", f"{HEADER}\n".encode(), ["damaged or truncated gzip file"]),
        ("t.csv.zst", b"\x28\xb5\x2f\xfd", ["damaged or truncated zstd file"]),
        ("t.parquet", parquet_bytes()[:-9], ["damaged or truncated Parquet file"]),
        ("t.parquet", b"", ["damaged or truncated Parquet file"]),
        ("t.parquet", parquet_bytes(quantity=[5.0]), ["quantity is double", "floats are refused"]),
        ("t.parquet", parquet_bytes(id=["1"], price=[1.5]), ["price is double"]),
        (
            "t.parquet",
            parquet_bytes(trade_date=pa.array([0], pa.timestamp("us"))),
            ["trade_date is timestamp[us], and must be date32"],
        ),
        ("t.parquet", parquet_bytes(delivery_quantity=[0]), ["a column 'delivery_quantity'"]),
        ("t.avro", b"Obj\x01", ["damaged or truncated Avro file"]),
        ("t.csv", b"", ["no header line"]),
        ("t.csv", b"1,C,S,B,5\n", ["wrong schema: no column id", "--columns"]),
        ("t.csv", f"{HEADER},id\n".encode(), ["a column name comes twice"]),
        ("t.csv", f"{HEADER},delivery_quantity\n".encode(), ["a column 'delivery_quantity'"]),
        ("t.csv", HEADER.encode("utf-16"), ["line 1: not UTF-8"]),
        ("t.jsonl", b"[]\n", ["line 1: not a JSON object"]),
        ("t.jsonl", b'{"id": 1}\n', ["wrong schema: no column client_code"]),
        ("t.xlsx", b"PK", ["its name doesn't tell its format"]),
        (
            "t.csv",
            f"{HEADER}\n".encode() + b"\xff\xfe\x00" * 9 + b"\n",
            ["1 row rejected", "row 2 (not UTF-8"],
        ),
    ],
)
def test_files_that_can_not_be_read(run: Run, name: str, data: bytes, words: list[str]) -> None:
    Path(name).write_bytes(data)
    assert_refused(run(trades=name), f"{name}", *words)


def test_one_damaged_file_among_good_ones_stops_the_run(run: Run) -> None:
    Path("1.csv.gz").write_bytes(gzip.compress(f"{HEADER}\n1,C,S,B,5\n".encode()))
    Path("2.csv.gz").write_bytes(truncated_gzip())
    assert_refused(run("--max-rejects=100000", trades="*.csv.gz"), "2.csv.gz: damaged or truncated")


@pytest.mark.skipif(not REAL_TRADES.exists(), reason="the day of real trades is not there")
@pytest.mark.parametrize("rule", ["vectorised", "per-component"])
def test_a_real_day_is_marked_as_plain_python_marks_it(run: Run, rule: str) -> None:
    outcome = run(
        f"--rule={rule}",
        "--shards=3",
        "--columns=id,client_code,symbol,side,quantity,_",
        trades=str(REAL_TRADES),
    )
    trades = []
    for line in REAL_TRADES.read_text().splitlines():
        number, client, symbol, side, quantity, _ = line.split(",")
        trades.append((int(number), client, symbol, side, int(quantity)))
    left: dict[tuple[str, str], int] = defaultdict(int)
    for _, client, symbol, side, traded in trades:
        left[client, symbol] += traded if side == "B" else -traded
    net_total = sum(map(abs, left.values()))
    expected = []
    for trade in sorted(trades):
        _, client, symbol, side, traded = trade
        sign = 1 if side == "B" else -1
        delivered = min(traded, max(sign * left[client, symbol], 0))
        left[client, symbol] -= sign * delivered
        expected.append((*trade, delivered))
    table = read_published(str(outcome.instance)).to_table()
    assert sorted(tuple(row.values()) for row in table.to_pylist()) == expected
    assert len(expected) == 10_000
    assert outcome.json["counts"] == {
        "rows_in": 10_000,
        "rows_out": 10_000,
        "rejected": 0,
        "other_dates": 0,
        "components": len(left),
        "failed": 0,
        "unknown": 0,
        "clients": len({client for client, _ in left}),
    }
    assert outcome.json["totals"]["delivery_quantity"] == net_total
    assert date.fromisoformat(outcome.instance.name) == date(2026, 11, 20)
