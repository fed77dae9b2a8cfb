"""Delivery marking from files to published parts, held against plain Python over dictionaries."""

import csv
import datetime
import gzip
import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support.harness import started_by_hand
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.batch.keyed.pipeline import KeyedBatch
from ledgerbeam.batch.keyed.plan import Plan
from ledgerbeam.batch.runners.beam import local_runner
from ledgerbeam.io.arrow.shared import Shared
from ledgerbeam.io.arrow.spill import spill
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.errors import ShardTooLargeError, UserError
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking, DeliveryParameters

DAY = datetime.date(2026, 11, 20)
DAY_BEFORE = datetime.date(2026, 11, 19)
LARGEST = 2**63 - 1
FORMATS = ("csv", "csv.gz", "jsonl", "parquet", "avro")

Row = dict[str, Any]


class Expected(NamedTuple):
    """What a run must give."""

    marked: list[Row]
    rejected: int
    other_dates: int
    components: int


def expected_of(rows: Sequence[Row]) -> Expected:
    """The whole workload in plain Python."""
    good = [row for row in rows if is_good(row)]
    of_date = [row for row in good if row["trade_date"] == DAY]
    by_id: dict[Any, list[Row]] = defaultdict(list)
    for row in of_date:
        by_id[row["client_code"], row["symbol"], row["id"]].append(row)
    components: dict[Any, list[Row]] = defaultdict(list)
    for (client, symbol, _), same in by_id.items():
        if len(same) == 1:
            components[client, symbol] += same
    marked = []
    for trades in components.values():
        trades.sort(key=lambda row: sort_key(row["id"]))
        bought = sum(row["quantity"] for row in trades if row["side"] == "B")
        net = bought - sum(row["quantity"] for row in trades if row["side"] == "S")
        side, left = ("B", net) if net > 0 else ("S", -net)
        for row in trades:
            delivered = min(left, row["quantity"]) if row["side"] == side else 0
            left -= delivered
            marked.append(row | {"delivery_quantity": delivered})
    other_dates = len(good) - len(of_date)
    return Expected(marked, len(rows) - other_dates - len(marked), other_dates, len(components))


def is_good(row: Row) -> bool:
    has_keys = bool(row["client_code"]) and bool(row["symbol"])
    return has_keys and row["side"] in ("B", "S") and row["quantity"] >= 0


def sort_key(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def in_order(rows: Sequence[Row]) -> list[Row]:
    names = ("client_code", "symbol", "id")
    return sorted(rows, key=lambda row: [sort_key(row[name]) for name in names])


def write(path: Path, rows: Sequence[Row], *, group_rows: int = 1 << 20) -> None:
    """Write trades in the format that the file's name tells."""
    kind = path.name.split(".", 1)[1]
    id_type = pa.string() if rows and isinstance(rows[0]["id"], str) else pa.int64()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows), schema(id_type)), path, group_rows)
    elif kind == "avro":
        with path.open("wb") as avro_file:
            fastavro.writer(avro_file, avro_schema(id_type), rows)
    else:
        text = io.StringIO()
        if kind == "jsonl":
            text.writelines(json.dumps(row, default=str) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(text, schema(id_type).names)
            writer.writeheader()
            writer.writerows(rows)
        data = text.getvalue().encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)


def schema(id_type: pa.DataType) -> pa.Schema:
    return pa.schema(
        {
            "id": id_type,
            "client_code": pa.string(),
            "symbol": pa.string(),
            "side": pa.string(),
            "quantity": pa.int64(),
            "price": pa.decimal128(18, 4),
            "trade_date": pa.date32(),
        }
    )


def avro_schema(id_type: pa.DataType) -> dict[str, Any]:
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}
    types: dict[str, Any] = {name: ["null", "string"] for name in schema(id_type).names}
    types |= {"id": "string" if id_type == pa.string() else "long", "quantity": "long"}
    types |= {"price": ["null", decimal], "trade_date": {"type": "int", "logicalType": "date"}}
    fields = [{"name": name, "type": type_} for name, type_ in types.items()]
    return dict(fastavro.parse_schema({"type": "record", "name": "trade", "fields": fields}))


def process(trades: str | Path, output: Path, **others: Any) -> DeliveryMarking:
    """The workload with these parameters."""
    return DeliveryMarking(
        DeliveryParameters.model_validate(
            {"trades": str(trades), "trade_date": DAY, "output": str(output), **others}
        )
    )


def run_by_hand(
    definition: DeliveryMarking,
    *,
    flags: Sequence[str] = (),
    spill_directory: Path | None = None,
    memory_limit: int | None = None,
    **splitting: Any,
) -> Manifest:
    """Run with a plan that no flag gives."""
    parameters = definition.parameters
    planned = plan_input(parameters.trades, definition.inputs[0].contract, **splitting)
    attempt = started_by_hand(definition, planned.files, parameters.shards or 1)
    spill = None if spill_directory is None else str(spill_directory)
    plan = Plan(
        definition,
        (planned.splits,),
        AttemptContext(attempt, spill_directory=spill),
        memory_limit,
    )
    options = PipelineOptions(list(flags))
    with beam.Pipeline(local_runner(options), options) as pipeline:
        _ = pipeline | KeyedBatch(plan)
    return load_manifest(attempt.instance_uri)


def rows_of(manifest: Manifest) -> list[Row]:
    """All that is published."""
    rows: list[Row] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return rows


def parts_of(manifest: Manifest) -> list[bytes]:
    """The bytes of each part, and of the rejects of each shard."""
    files = [commit.part for commit in manifest.shards]
    files += [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    return [Path(instance_uri(manifest), file.name).read_bytes() for file in files]


def check(manifest: Manifest, rows: Sequence[Row]) -> None:
    """Compare all that a run gives with plain Python."""
    expected = expected_of(rows)
    assert in_order(rows_of(manifest)) == in_order(expected.marked)
    counts, totals = manifest.counts, manifest.totals
    assert counts["rows_in"] == len(rows)
    assert counts["rows_out"] == len(expected.marked)
    assert counts["rejected"] == expected.rejected
    assert counts["other_dates"] == expected.other_dates
    assert counts["components"] == expected.components
    assert totals["quantity"] == sum(row["quantity"] for row in expected.marked)
    delivered = sum(row["delivery_quantity"] for row in expected.marked)
    assert totals["delivery_quantity"] == totals["net_quantity"] == delivered
    uri = instance_uri(manifest)
    rejects = [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    rejected = [read_part(uri, file).num_rows for file in [*rejects, *manifest.rejects]]
    assert sum(rejected) == expected.rejected
    for commit in manifest.shards:
        part = read_part(uri, commit.part).to_pylist()
        assert part == in_order(part)
    verify(uri, DeliveryMarking(DeliveryParameters.model_validate(manifest.attempt.parameters)))


def random_trades(count: int, seed: int = 7, **fixed: Any) -> list[Row]:
    """Trades of a day with distinct ids, among them a few of the day before."""
    source = random.Random(seed)
    return [
        {
            "id": id_,
            "client_code": f"C{int(source.expovariate(0.1)):04d}",
            "symbol": source.choice(["INFOSYS", "TATASTEEL", "UPL", "M&M"]),
            "side": source.choice("BS"),
            "quantity": source.randrange(100),
            "price": source.choice([None, Decimal(source.randrange(10**8)).scaleb(-4)]),
            "trade_date": DAY if source.random() < 0.95 else DAY_BEFORE,
            **fixed,
        }
        for id_ in source.sample(range(-count, 9 * count), count)
    ]


def with_repeats(rows: list[Row], count: int) -> list[Row]:
    """The rows, the last few of which repeat the identity of the first ones."""
    names = ("id", "client_code", "symbol", "trade_date")
    same = [{name: row[name] for name in names} for row in rows[:count]]
    return rows[:-count] + [
        row | identity for row, identity in zip(rows[-count:], same, strict=True)
    ]


@st.composite
def trades(draw: st.DrawFn) -> list[Row]:
    ids = draw(st.sampled_from([st.integers(-5, 40), st.text("aé1\U0001f600", min_size=1)]))
    quantities = draw(st.sampled_from([st.integers(0, 20), st.integers(LARGEST - 9, LARGEST)]))
    bad = draw(st.booleans())
    row = st.fixed_dictionaries(
        {
            "id": ids,
            "client_code": st.sampled_from(["A", "B", "é", "a client with a long name"])
            | (st.just(None) if bad else st.nothing()),
            "symbol": st.sampled_from(["X", "Y"]),
            "side": st.sampled_from("BSX" if bad else "BS"),
            "quantity": quantities | (st.just(-1) if bad else st.nothing()),
            "price": st.none() | st.decimals(-(10**9), 10**9, places=4),
            "trade_date": st.sampled_from([DAY, DAY, DAY, DAY_BEFORE]),
        }
    )
    return draw(st.lists(row, max_size=60))


class TestAgainstPlainPython:
    @settings(
        max_examples=15,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run is too slow to shrink by
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(trades(), st.data())
    def test_any_trades_in_any_files(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("any")
        cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3).map(sorted))
        bounds = [0, *cuts, len(rows)]
        id_type = "string" if rows and isinstance(rows[0]["id"], str) else "integer"
        for index, start in enumerate(bounds[:-1]):
            part = rows[start : bounds[index + 1]]
            # A file of no rows has columns only where its format can say so.
            kinds = (
                FORMATS
                if part
                else ("csv", "csv.gz") + (() if id_type == "string" else ("parquet", "avro"))
            )
            write(folder / f"{index}.{data.draw(st.sampled_from(kinds))}", part)
        manifest = run(
            process(
                folder / "*",
                folder / "output",
                max_rejects=1000,
                min_rows=0,
                id_type=id_type,
                shards=data.draw(st.integers(1, 4)),
                rule=data.draw(st.sampled_from(["vectorised", "per-component"])),
            )
        )
        check(manifest, rows)

    @pytest.mark.parametrize("rule", ["vectorised", "per-component"])
    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "avro", "csv.gz"])
    def test_no_trades(self, tmp_path: Path, kind: str, rule: str) -> None:
        write(tmp_path / f"trades.{kind}", [])
        given = {"shards": 2, "rule": rule, "min_rows": 0}
        manifest = run(process(tmp_path / f"trades.{kind}", tmp_path / "o", **given))
        check(manifest, [])
        columns = read_published(instance_uri(manifest)).schema
        assert {"id", "quantity", "delivery_quantity"} <= set(columns.names)

    @pytest.mark.parametrize("shards", [1, 3, 64])
    @pytest.mark.parametrize(
        "rows",
        [
            pytest.param(
                random_trades(900, client_code="HUGE") + random_trades(100),
                id="one client has nine trades of ten",
            ),
            pytest.param(random_trades(500, client_code="ONE", symbol="X"), id="a single key"),
            pytest.param(random_trades(5), id="fewer trades than shards"),
            pytest.param(random_trades(1), id="a single trade"),
            pytest.param(with_repeats(random_trades(200), 20), id="trades that come twice"),
            pytest.param(random_trades(200, quantity=LARGEST), id="sums beyond 64 bits"),
            pytest.param(random_trades(200, trade_date=DAY_BEFORE), id="nothing of the day"),
        ],
    )
    def test_shapes_of_input(self, tmp_path: Path, rows: list[Row], shards: int) -> None:
        write(tmp_path / "trades.parquet", rows)
        definition = process(
            tmp_path / "trades.parquet", tmp_path, shards=shards, max_rejects=99, min_rows=0
        )
        check(run(definition), rows)

    def test_ids_that_are_strings_sort_as_strings(self, tmp_path: Path) -> None:
        rows = [row | {"id": f"T{row['id']}", "symbol": "X"} for row in random_trades(300)]
        write(tmp_path / "trades.csv", rows)
        definition = process(tmp_path / "trades.csv", tmp_path, shards=3, id_type="string")
        check(run(definition), rows)

    def test_columns_that_the_workload_does_not_know_are_carried_through(
        self, tmp_path: Path
    ) -> None:
        rows = [row | {"note": f"n{row['id']}"} for row in random_trades(50)]
        table = pa.Table.from_pylist(rows)
        types = {
            "lot": pa.int16(),
            "fee": pa.decimal64(9, 2),
            "tax": pa.decimal128(9, 2),
            "held": pa.duration("us"),
            "seen": pa.timestamp("us", "Asia/Kolkata"),
            "memo": pa.large_string(),
        }
        for name, type_ in types.items():
            numbers = pa.array(range(50), pa.int64())
            column = numbers.cast(pa.decimal128(21, 2)) if "decimal" in str(type_) else numbers
            table = table.append_column(name, column.cast(type_))
        pq.write_table(table, tmp_path / "trades.parquet")
        manifest = run(process(tmp_path / "trades.parquet", tmp_path, shards=2))
        marked = rows_of(manifest)
        schema = read_published(instance_uri(manifest)).schema
        assert {name: schema.field(name).type for name in types} == types
        by_id = {row["id"]: row for row in table.to_pylist()}
        assert marked
        for row in marked:
            del row["delivery_quantity"]
            assert row == by_id[row["id"]]


BASE = with_repeats(random_trades(2000), 3)
SHARDS = 5


def variant(folder: Path, rows: Sequence[Row], files: int = 1, kind: str = "parquet") -> str:
    """Write the rows into several files, and give their pattern."""
    for index in range(files):
        write(folder / f"{index}.{kind}", rows[index::files], group_rows=100)
    return str(folder / f"*.{kind}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The run that all others must equal."""
    folder = tmp_path_factory.mktemp("base")
    manifest = run(process(variant(folder, BASE), folder, shards=SHARDS, max_rejects=6))
    check(manifest, BASE)
    assert manifest.counts["rejected"] == 6
    return manifest


def assert_same_parts(manifest: Manifest, base: Manifest) -> None:
    assert [len(part) for part in parts_of(manifest)[:SHARDS]] == [
        commit.part.size for commit in base.shards
    ]
    assert parts_of(manifest)[:SHARDS] == parts_of(base)[:SHARDS]
    assert (manifest.counts, manifest.totals) == (base.counts, base.totals)


class TestSameBytes:
    @pytest.mark.parametrize("files", [1, 7])
    @pytest.mark.parametrize("kind", FORMATS)
    def test_shuffled_rows_in_other_files(
        self, tmp_path: Path, base: Manifest, kind: str, files: int
    ) -> None:
        rows = random.Random(files).sample(BASE, len(BASE))
        trades = variant(tmp_path, rows, files, kind)
        manifest = run(process(trades, tmp_path / "o", shards=SHARDS, max_rejects=6))
        assert_same_parts(manifest, base)

    @pytest.mark.parametrize(
        "flags",
        [
            ["--direct_runner_bundle_repeat=1"],
            ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
        ],
    )
    def test_other_ways_to_run(self, tmp_path: Path, base: Manifest, flags: list[str]) -> None:
        trades = variant(tmp_path, BASE, 4)
        manifest = run(process(trades, tmp_path / "o", shards=SHARDS, max_rejects=6), flags)
        assert_same_parts(manifest, base)
        names = {path.name for path in Path(instance_uri(manifest), "attempt-1").iterdir()}
        assert sum(name.startswith("part-") for name in names) == SHARDS

    def test_rows_get_to_their_shards_as_asked_for(
        self, tmp_path: Path, base: Manifest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders: list[str] = []

        def noted(folder: str, pieces: Any, shared: Shared) -> Any:
            folders.append(folder)
            return spill(folder, pieces, shared)

        monkeypatch.setattr("ledgerbeam.transforms.shuffle.spill", noted)
        trades = variant(tmp_path, BASE, 4)
        given_all = {"shards": SHARDS, "max_rejects": 6}
        grouped = run(process(trades, tmp_path / "o", shuffle="group", **given_all))
        assert not folders
        spilled = run(process(trades, tmp_path / "p", shuffle="spill", **given_all))
        assert folders
        assert_same_parts(grouped, base)
        assert_same_parts(spilled, base)
        # It decides nothing about a result: the instance is the same, and published.
        assert run(process(trades, tmp_path / "o", shuffle="spill", **given_all)) == grouped

    def test_the_rule_for_each_component(self, tmp_path: Path, base: Manifest) -> None:
        trades = variant(tmp_path, BASE)
        definition = process(
            trades, tmp_path / "o", shards=SHARDS, max_rejects=6, rule="per-component"
        )
        assert_same_parts(run(definition), base)

    @pytest.mark.parametrize(
        ("kind", "splitting"),
        [
            ("csv", {"bytes_per_split": 5000}),
            ("jsonl", {"bytes_per_split": 7777}),
            ("parquet", {"rows_per_split": 250}),
        ],
    )
    @pytest.mark.parametrize("spills", [True, False])
    def test_many_splits(
        self, tmp_path: Path, base: Manifest, kind: str, splitting: dict[str, Any], spills: bool
    ) -> None:
        trades = variant(tmp_path, BASE, 2, kind)
        contract = process(trades, tmp_path).inputs[0].contract
        assert len(plan_input(trades, contract, **splitting).splits) > 7
        folder = tmp_path / "spill"
        folder.mkdir()
        definition = process(trades, tmp_path / "o", shards=SHARDS, max_rejects=6)
        manifest = run_by_hand(definition, spill_directory=folder if spills else None, **splitting)
        assert_same_parts(manifest, base)
        assert bool(list(folder.iterdir())) == spills

    def test_pieces_go_between_processes(self, tmp_path: Path, base: Manifest) -> None:
        flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
        trades = variant(tmp_path, BASE, 4)
        definition = process(trades, tmp_path / "o", shards=SHARDS, max_rejects=6)
        assert_same_parts(run_by_hand(definition, flags=flags), base)


class TestMemory:
    @pytest.mark.parametrize("spills", [True, False])
    def test_a_shard_larger_than_memory(self, tmp_path: Path, spills: bool) -> None:
        definition = process(variant(tmp_path, BASE), tmp_path / "o", shards=2)
        told = r"shard [01] of 2 has 0 MiB, and 0 MiB fit into memory, .*: give more --shards, such"
        with pytest.raises(ShardTooLargeError, match=told) as raised:
            run_by_hand(definition, spill_directory=tmp_path if spills else None, memory_limit=5000)
        assert raised.value.code == "shard-too-large"
        assert not list(tmp_path.glob("o/**/manifest.json"))

    @pytest.mark.parametrize("spills", [True, False])
    def test_a_component_larger_than_memory(self, tmp_path: Path, spills: bool) -> None:
        """It is named, with its rows, since more shards would change nothing."""
        huge = {**BASE[0], "client_code": "HUGE"}
        rows = [{**huge, "id": 10_000 + number} for number in range(3000)]
        definition = process(variant(tmp_path, BASE + rows), tmp_path / "o", shards=2)
        told = (
            r"its component \S*HUGE\S* alone has (\d+) rows and about 0 MiB, so that more --shards"
        )
        with pytest.raises(ShardTooLargeError, match=told) as raised:
            run_by_hand(definition, spill_directory=tmp_path if spills else None, memory_limit=9000)
        found = re.search(told, str(raised.value))
        assert found is not None
        assert found[1] == "3000"

    def test_a_component_larger_than_any_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More memory would change nothing either."""
        monkeypatch.setattr("ledgerbeam.batch.keyed.assemble._MAX_BYTES", 9000)
        huge = {**BASE[0], "client_code": "HUGE"}
        rows = [{**huge, "id": 10_000 + number} for number in range(3000)]
        definition = process(variant(tmp_path, BASE + rows), tmp_path / "o", shards=2)
        told = (
            r"HUGE\S* alone has 3000 rows .* don't help: no component may have more than 0 MiB: add"
        )
        with pytest.raises(ShardTooLargeError, match=told):
            run_by_hand(definition, spill_directory=tmp_path)


class TestRejects:
    def test_both_of_two_equal_ids_are_named(self, tmp_path: Path, base: Manifest) -> None:
        uri = instance_uri(base)
        rejects = [read_part(uri, c.rejects) for c in base.shards if c.rejects is not None]
        found = {(row["file"], row["row"]) for table in rejects for row in table.to_pylist()}
        file = base.attempt.inputs[0].uri
        rows = {(file, row + 1) for row in (0, 1, 2, 1997, 1998, 1999)}
        of_day = [row for row in BASE[:3] if row["trade_date"] == DAY]
        assert len(of_day) == 3
        assert found == rows

    def test_too_many(self, tmp_path: Path) -> None:
        definition = process(variant(tmp_path, BASE), tmp_path / "o", shards=SHARDS, max_rejects=5)
        with pytest.raises(
            UserError, match="nothing published: 6 rows rejected, and --max-rejects"
        ):
            run(definition)
        assert not list(tmp_path.glob("o/**/manifest.json"))


class TestInstances:
    @pytest.fixture
    def published(self, tmp_path: Path) -> Manifest:
        trades = variant(tmp_path, random_trades(100))
        return run(process(trades, tmp_path / "o", shards=2))

    def again(self, manifest: Manifest, **others: Any) -> Manifest:
        parameters: Mapping[str, Any] = manifest.attempt.parameters
        return run(DeliveryMarking(DeliveryParameters.model_validate({**parameters, **others})))

    def tree(self, manifest: Manifest) -> dict[str, bytes]:
        root = Path(instance_uri(manifest))
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): path.read_bytes() for path in files}

    def test_a_published_one_is_left_as_it_is(self, published: Manifest) -> None:
        before = self.tree(published)
        assert self.again(published) == published
        assert self.again(published, max_rejects=3) == published
        assert self.tree(published) == before

    @pytest.mark.parametrize("change", ["input", "file", "rule"])
    def test_other_input_is_refused(self, tmp_path: Path, published: Manifest, change: str) -> None:
        before = self.tree(published)
        if change == "input":
            write(tmp_path / "0.parquet", random_trades(100, seed=1))
        elif change == "file":
            write(tmp_path / "1.parquet", random_trades(1))
        rule = "per-component" if change == "rule" else "vectorised"
        with pytest.raises(UserError, match="run again with --run-number=2 --reason=WHY"):
            self.again(published, rule=rule)
        assert self.tree(published) == before

    def test_a_second_run_needs_a_reason(self, published: Manifest) -> None:
        with pytest.raises(UserError, match="--run-number=2 needs a --reason"):
            self.again(published, run_number=2)

    def test_a_second_run(self, tmp_path: Path, published: Manifest) -> None:
        before = self.tree(published)
        rows = random_trades(100, seed=1)
        write(tmp_path / "0.parquet", rows)
        second = self.again(published, run_number=2, reason="the first file was wrong")
        check(second, rows)
        assert instance_uri(second) == instance_uri(published) + "-run-2"
        assert second.attempt.parameters["reason"] == "the first file was wrong"
        assert self.tree(published) == before
        with pytest.raises(UserError, match="run again with --run-number=3"):
            self.again(published, run_number=2, reason="other", rule="per-component")

    def test_readers_follow_only_the_manifest(self, published: Manifest) -> None:
        root = Path(instance_uri(published))
        rows = rows_of(published)
        part = (root / published.shards[0].part.name).read_bytes()
        for stray in (
            "part-00000-of-00002.parquet",
            "attempt-1/part-00002-of-00003.parquet",
            "attempt-1/part-00000-of-00002.0123456789ab.parquet",
            "attempt-2/part-00000-of-00002.parquet",
            "attempt-2/part-00001-of-00002.parquet",
        ):
            (root / stray).parent.mkdir(exist_ok=True)
            (root / stray).write_bytes(part)
        assert rows_of(published) == rows
        assert read_published(f"{root}/manifest.json").to_table().to_pylist() == rows
        assert read_published(f"{root}/").count_rows() == len(rows)

    def test_nothing_is_published_before_the_manifest_is(self, published: Manifest) -> None:
        manifest = Path(instance_uri(published), "manifest.json")
        manifest.rename(manifest.with_name("manifest.json.tmp"))
        with pytest.raises(UserError, match="nothing is published there"):
            read_published(instance_uri(published))
