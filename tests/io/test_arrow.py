"""How tables travel between the steps: encoded, or by way of the disk."""

import datetime
import os
import resource
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.harness import pipeline

from ledgerbeam.io.arrow import spill
from ledgerbeam.io.arrow.coder import ArrowTableCoder
from ledgerbeam.io.arrow.shared import (
    MAX_VALUES,
    ROWS_PER_VALUE,
    SharedDictionaries,
    shared_dictionaries,
)
from ledgerbeam.io.arrow.spill import SpillDirectory, SpilledBatch, load_batch, load_batches
from ledgerbeam.io.arrow.stream import compact, join
from ledgerbeam.io.errors import UserError

SECONDS = 30
"""How long to wait for what must happen, before the test fails."""


int64s = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("aé\0", max_size=10)


def encoded(values: Sequence[str], dictionary: Sequence[str]) -> pa.DictionaryArray:
    """The values over a dictionary that may hold more of them, in any order."""
    codes = pa.array([dictionary.index(value) for value in values], pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array(dictionary, pa.string()))


def table_of_all_types() -> pa.Table:
    day = datetime.date(2026, 11, 20)
    noon = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
    price = Decimal("12345678901234.5678")
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "int8": (pa.int8(), [-128, None, 127]),
        "int64": (pa.int64(), [-(2**63), None, 2**63 - 1]),
        "uint64": (pa.uint64(), [0, None, 2**64 - 1]),
        "float64": (pa.float64(), [0.1, None, float("inf")]),
        "bool": (pa.bool_(), [True, None, False]),
        "string": (pa.string(), ["", None, "株"]),
        "large_string": (pa.large_string(), ["", None, "x" * 100]),
        "binary": (pa.binary(), [b"", None, b"\0\xff"]),
        "decimal128": (pa.decimal128(18, 4), [price, None, -price]),
        "decimal256": (pa.decimal256(60, 4), [price, None, -price]),
        "date32": (pa.date32(), [day, None, datetime.date(1, 1, 1)]),
        "timestamp": (pa.timestamp("us", "UTC"), [noon, None, noon]),
        "time": (pa.time64("us"), [noon.time(), None, datetime.time.max]),
        "duration": (pa.duration("us"), [datetime.timedelta(1), None, datetime.timedelta(0)]),
        "list": (pa.list_(pa.int32()), [[1, None], None, []]),
        "struct": (pa.struct({"a": pa.int32()}), [{"a": 1}, None, {"a": None}]),
        "null": (pa.null(), [None, None, None]),
        "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["b", None, "a"]),
        "narrow": (pa.dictionary(pa.int8(), pa.string()), ["b", None, "a"]),
        "wide": (pa.dictionary(pa.int64(), pa.int64()), [7, None, 7]),
        "no values": (pa.dictionary(pa.int32(), pa.string()), [None, None, None]),
    }
    return pa.table({name: pa.array(values, type_) for name, (type_, values) in columns.items()})


def there_and_back(table: pa.Table) -> pa.Table:
    coder = ArrowTableCoder()
    return coder.decode(coder.encode(table))


class TestArrowTableCoder:
    @pytest.mark.parametrize("start", [0, 1, 3])
    @pytest.mark.parametrize("length", [0, 1, 3])
    @pytest.mark.parametrize("column", table_of_all_types().column_names)
    def test_all_types(self, column: str, start: int, length: int) -> None:
        table = table_of_all_types().select([column]).slice(start, length)
        back = there_and_back(table)
        assert back.schema == table.schema
        assert back.to_pylist() == table.to_pylist()
        back.validate(full=True)

    def test_chunks_with_dictionaries_of_their_own(self) -> None:
        texts = [pa.array(list(values), pa.string()) for values in ("ab", "ca", "", "zzz")]
        table = pa.table({"key": pa.chunked_array([text.dictionary_encode() for text in texts])})
        assert there_and_back(table).to_pylist() == table.to_pylist()

    def test_unused_values_stay_behind(self) -> None:
        values = [f"value {i}" for i in range(1000)]
        table = pa.table({"key": encoded([values[700], values[3]], values)})
        back = there_and_back(table)
        assert back.column("key").to_pylist() == ["value 700", "value 3"]
        assert sorted(back.column("key").chunk(0).dictionary.to_pylist()) == [
            "value 3",
            "value 700",
        ]

    def test_a_small_dictionary_is_not_worth_cutting(self) -> None:
        table = pa.table({"side": encoded(["B"] * 100, ["S", "B"])})
        assert compact(table).column("side").chunk(0).dictionary.to_pylist() == ["S", "B"]

    def test_a_slice_costs_its_own_rows(self) -> None:
        rows = 1_000_000
        client = np.arange(rows, dtype=np.int32) % 100_000
        clients = pa.array([f"client {i}" for i in range(100_000)])
        table = pa.table(
            {
                "id": np.arange(rows),
                "client": pa.DictionaryArray.from_arrays(pa.array(client), clients),
                "text": pa.array(np.arange(rows)).cast(pa.string()),
                "price": pa.array(np.arange(rows)).cast(pa.decimal128(38, 4)),
                "flag": pa.array(np.arange(rows) % 2 == 0),
            }
        )
        part = table.slice(500_001, 10)
        assert len(ArrowTableCoder().encode(part)) < 3000
        assert there_and_back(part).to_pylist() == part.to_pylist()

    @pytest.mark.parametrize("rows", [1, 999, 1000, 30_000])
    def test_many_rows_are_compressed(self, rows: int) -> None:
        numbers = np.arange(rows)
        table = pa.table({"id": numbers, "price": numbers % 7})
        data = ArrowTableCoder().encode(table)
        assert ArrowTableCoder().decode(data).equals(table)
        assert (len(data) < table.nbytes / 2) == (rows >= 1000)

    def test_beam_knows_it(self) -> None:
        assert isinstance(beam.coders.registry.get_coder(pa.Table), ArrowTableCoder)
        assert not ArrowTableCoder().is_deterministic()

    def test_tables_go_through_a_group_by_key(self) -> None:
        table = table_of_all_types()
        keyed = [(row % 2, table.slice(row, 1)) for row in range(3)]
        with pipeline() as p:
            grouped = (
                p
                | beam.Create(keyed).with_output_types(tuple[int, pa.Table])
                | beam.GroupByKey()
                | beam.MapTuple(rows_by_key)
            )
            rows = table.to_pylist()
            expected = [(0, str([rows[0], rows[2]])), (1, str([rows[1]]))]
            assert_that(grouped, equal_to(expected))


def rows_by_key(key: int, tables: Iterable[pa.Table]) -> tuple[int, str]:
    rows = [row for table in tables for row in table.to_pylist()]
    return key, str(sorted(rows, key=lambda row: (row["int8"] is None, row["int8"])))


def folders(parent: Path) -> list[str]:
    return [str(path) for path in parent.glob("spill-*")]


def owner_of(folder: str) -> str:
    return shared_dictionaries(folder).owner


def encode_text(table: pa.Table) -> pa.Table:
    return table.set_column(0, "text", table.column("text").dictionary_encode())


def spilled(
    folder: str, shared: SharedDictionaries, values: Sequence[str | None]
) -> list[SpilledBatch]:
    """A batch with each of the values in as many rows as a shared dictionary needs."""
    rows = [*values] * ROWS_PER_VALUE
    table = pa.table({"text": pa.array(rows, pa.string()), "number": range(len(rows))})
    table, columns = shared.encode(encode_text(table))
    return [piece for _, piece in spill.spill(folder, [(0, table)], columns)]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Let no file in the folder grow beyond 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.getuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        # Nobody else can mount, but anyone can keep his own files small.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestSpill:
    def test_what_is_spilled_is_loaded(self, tmp_path: Path) -> None:
        table = table_of_all_types()
        pieces = [(shard, table.slice(shard % 3, 2)) for shard in (5, 0, 7)]
        with SpillDirectory(str(tmp_path)) as directory:
            spilled = spill.spill(directory.path, iter(pieces))
            assert [shard for shard, _ in spilled] == [5, 0, 7]
            assert len({piece.path for _, piece in spilled}) == 1
            for (_, piece), (_, expected) in zip(spilled, pieces, strict=True):
                assert isinstance(piece, SpilledBatch)
                assert load_batch(piece).to_pylist() == expected.to_pylist()
            assert load_batch(table) is table

    @given(st.lists(st.lists(texts | st.none(), max_size=40), min_size=1, max_size=6))
    @settings(max_examples=60, deadline=None)
    def test_values_in_shared_dictionaries_are_loaded(self, files: list[list[str | None]]) -> None:
        with SpillDirectory() as directory:
            shared = SharedDictionaries()
            loaded = load_batches(
                [piece for values in files for piece in spilled(directory.path, shared, values)]
            )
            for table, values in zip(loaded, files, strict=True):
                # Each value in several rows: a dictionary that saves nothing is not shared.
                assert table.column("text").to_pylist() == values * ROWS_PER_VALUE
                assert table.column("number").to_pylist() == [*range(len(table))]

    def test_batches_of_a_process_have_the_very_same_dictionary(self, tmp_path: Path) -> None:
        one, other = SharedDictionaries(), SharedDictionaries()
        batches = [
            *spilled(str(tmp_path), one, ["a", "b", "c"]),
            *spilled(str(tmp_path), other, ["b", "d"]),
            *spilled(str(tmp_path), one, ["c", "b", "d"]),
        ]
        tables = load_batches(batches)
        dictionaries = [table.column("text").chunk(0).dictionary for table in tables]
        assert dictionaries[0].to_pylist() == ["a", "b", "c", "d"]
        assert dictionaries[1].to_pylist() == ["b", "d"]
        addresses = [each.buffers()[-1].address for each in dictionaries]
        assert addresses[0] == addresses[2] != addresses[1]
        assert join(tables).column("text").to_pylist() == [
            *["a", "b", "c"] * ROWS_PER_VALUE,
            *["b", "d"] * ROWS_PER_VALUE,
            *["c", "b", "d"] * ROWS_PER_VALUE,
        ]

    def test_values_that_no_other_file_has_are_not_shared(self) -> None:
        shared = SharedDictionaries()
        kept = []
        for first in ("a", "b", "a"):
            table = pa.table({"text": [f"{first}{n % 9}" for n in range(90)]})
            rows, found = shared.encode(encode_text(table))
            assert rows.column("text").to_pylist() == table.column("text").to_pylist()
            kept.append(found.columns)
        assert kept == [("text",), (), ()]

    def test_a_forked_process_has_dictionaries_of_its_own(self) -> None:
        ours = shared_dictionaries("folder")
        assert shared_dictionaries("folder") is ours
        assert shared_dictionaries("other") is not ours
        with get_context("fork").Pool(1) as pool:
            theirs = pool.apply(owner_of, ("folder",))
        assert theirs != ours.owner

    def test_too_many_values_are_not_shared(self) -> None:
        values = [f"{number:06}" for number in range(MAX_VALUES + 1)]
        table = pa.table({"text": values * ROWS_PER_VALUE})
        rows, found = SharedDictionaries().encode(encode_text(table))
        assert found.columns == ()
        assert rows.column("text").chunk(0).dictionary.to_pylist() == values

    def test_nothing_to_spill(self, tmp_path: Path) -> None:
        assert spill.spill(str(tmp_path), []) == []

    def test_it_is_removed_at_the_end(self, tmp_path: Path) -> None:
        with SpillDirectory(str(tmp_path)) as directory:
            spill.spill(directory.path, [(0, table_of_all_types())])
            assert folders(tmp_path) == [directory.path]
        assert folders(tmp_path) == []

    def test_it_is_removed_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), SpillDirectory(str(tmp_path)):
            raise KeyboardInterrupt
        assert folders(tmp_path) == []

    def test_many_at_once(self, tmp_path: Path) -> None:
        def spill_and_load(number: int) -> list[int]:
            with SpillDirectory(str(tmp_path)) as directory:
                table = pa.table({"number": [number]})
                [(_, piece)] = spill.spill(directory.path, [(0, table)])
                numbers: list[int] = load_batch(piece).column("number").to_pylist()
                return numbers

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(spill_and_load, range(200))) == [[i] for i in range(200)]
        assert folders(tmp_path) == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        numbers = np.random.default_rng(7).integers(0, 2**63, 20_000)
        with small_disk(tmp_path), SpillDirectory(str(tmp_path)) as directory:
            with pytest.raises(UserError) as raised:
                spill.spill(directory.path, [(0, pa.table({"number": numbers}))])
            message = str(raised.value)
            assert message.startswith(f"cannot spill to {directory.path}: ")
            assert message.endswith(": free some space, or name another folder by TMPDIR")
            assert "\n" not in message

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No such file or directory: name another folder"):
            SpillDirectory(str(tmp_path / "missing")).__enter__()
        with pytest.raises(UserError, match="No such file or directory: name another folder"):
            spill.spill(str(tmp_path / "missing"), [(0, table_of_all_types())])
