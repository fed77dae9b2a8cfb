"""Hashing, partition, sorting, work in flight, and how tables travel between the steps."""

import datetime
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.batch.launch import local_runner
from ledgerbeam.io import spill
from ledgerbeam.io.arrow_stream import ArrowTableCoder, compact
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.spill import SpillDirectory, SpilledPiece, load_piece
from ledgerbeam.transforms.components import SortedRows, sort_components, without
from ledgerbeam.transforms.hashing import hash_array, hash_column, order_independent, shard_numbers
from ledgerbeam.transforms.in_flight import DoInFlight
from ledgerbeam.transforms.octets import sort_strings
from ledgerbeam.transforms.partition import split_by_shard

SECONDS = 30
"""How long to wait for what must happen, before the test fails."""

int64s = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("aé\0", max_size=10)


def pipeline(*flags: str) -> test_pipeline.TestPipeline:
    """A pipeline that runs here and nowhere else."""
    options = PipelineOptions(list(flags))
    return test_pipeline.TestPipeline(runner=local_runner(options), options=options)


def encoded(values: Sequence[str], dictionary: Sequence[str]) -> pa.DictionaryArray:
    """The values over a dictionary that may hold more of them, in any order."""
    codes = pa.array([dictionary.index(value) for value in values], pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array(dictionary, pa.string()))


class TestHashing:
    # A run that is restarted after an update finds its place only while these stay as they are.
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("", 0xE220A8397B1DCDAF),
            ("a", 0x5E025F9ADE9EAF3E),
            ("a\0", 0xEDE5342098BCF0D6),
            ("7 bytes", 0x207C49CB531BD7EB),
            ("8 bytes.", 0xC2DC54E52EB5CA9C),
            ("9 bytes..", 0x2890560CCC29CB12),
            ("twenty bytes exactly", 0x06CF7070500FEAD4),
            ("Zürich", 0xBB34B4AF91795C07),
            ("株式会社東京", 0x99749C367431F713),
            (0, 0xE220A8397B1DCDAF),
            (1, 0x910A2DEC89025CC1),
            (-1, 0xE4D971771B652C20),
            (42, 0xBDD732262FEB6E95),
            (2**63 - 1, 0x2A67D7552E039EA7),
            (-(2**63), 0x481EC0A212A9F3DB),
        ],
    )
    def test_hashes_never_change(self, value: str | int, expected: int) -> None:
        assert hash_array(pa.array([value])).tolist() == [expected]

    def test_shards_never_change(self) -> None:
        table = pa.table(
            {
                "client": ["AIGG45", "GRTT23", "", "株"],
                "symbol": ["INFOSYS", "UPL", "x", ""],
                "id": [1, -1, 0, 7],
            }
        )
        assert shard_numbers(table, ["client", "symbol"], 64).tolist() == [0, 4, 31, 16]
        assert shard_numbers(table, ["symbol", "client"], 64).tolist() == [55, 19, 38, 28]
        assert shard_numbers(table, ["client", "id"], 1000).tolist() == [47, 849, 649, 769]
        assert shard_numbers(table, ["id"], 65_536).tolist() == [37130, 58585, 57888, 25547]
        assert shard_numbers(table, ["id"], 1).tolist() == [0, 0, 0, 0]

    @given(st.lists(texts))
    @example([])
    @example([""])
    def test_strings_hash_as_the_documentation_says(self, values: list[str]) -> None:
        assert hash_array(pa.array(values, pa.string())).tolist() == list(map(written_out, values))

    @given(st.lists(texts, max_size=10), st.integers(0, 10), st.integers(0, 10))
    def test_equal_values_hash_alike(self, values: list[str], start: int, length: int) -> None:
        plain = pa.array(values, pa.string())
        expected = hash_array(plain)
        assert hash_array(plain.slice(start, length)).tolist() == expected.tolist()[start:][:length]
        for other in (
            plain.cast(pa.large_string()),
            plain.cast(pa.string_view()),
            plain.dictionary_encode(),
            encoded(values, ["unused", *reversed(values)]),
        ):
            assert hash_array(other).tolist() == expected.tolist()
            assert hash_array(other.slice(start)).tolist() == expected.tolist()[start:]
        chunks = pa.chunked_array([plain.slice(0, start), plain.slice(start)], pa.string())
        assert hash_column(chunks).tolist() == expected.tolist()

    @given(st.lists(st.integers(-128, 127)))
    def test_integers_hash_alike_in_any_width(self, values: list[int]) -> None:
        wide, narrow = (hash_array(pa.array(values, type_)) for type_ in (pa.int64(), pa.int8()))
        assert wide.tolist() == narrow.tolist()

    def test_no_chunks(self) -> None:
        assert hash_column(pa.chunked_array([], pa.string())).tolist() == []

    @pytest.mark.parametrize("shards", [2, 64, 1000])
    @pytest.mark.parametrize("prefix", ["", "CLIENT-WITH-A-LONG-NAME-", None])
    def test_keys_are_spread_evenly(self, shards: int, prefix: str | None) -> None:
        count = 200 * shards
        keys = pa.array(range(count) if prefix is None else [f"{prefix}{i}" for i in range(count)])
        table = pa.table({"key": keys, "symbol": pa.array(["one"] * count)})
        for key in (["key"], ["key", "symbol"], ["symbol", "key"]):
            rows = np.bincount(shard_numbers(table, key, shards), minlength=shards)
            # 200 a shard, with a standard deviation of 14.
            assert rows.min() > 200 - 6 * 14
            assert rows.max() < 200 + 6 * 14

    @given(st.lists(int64s).flatmap(lambda ids: st.tuples(st.just(ids), st.permutations(ids))))
    def test_a_hash_of_a_set(self, lists: tuple[list[int], list[int]]) -> None:
        one, other = (order_independent(hash_array(pa.array(ids, pa.int64()))) for ids in lists)
        assert one == other
        assert one < 2**64
        more = order_independent(hash_array(pa.array([*lists[0], 5], pa.int64())))
        assert more == (one + int(hash_array(pa.array([5]))[0])) % 2**64


def written_out(value: str) -> int:
    """The hash of a string, in plain integers."""

    def mix(number: int) -> int:
        number = (number + 0x9E3779B97F4A7C15) % 2**64
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
        return number ^ (number >> 31)

    octets = value.encode()
    result = mix(len(octets))
    for start in range(0, len(octets), 8):
        result = mix(result ^ int.from_bytes(octets[start : start + 8], "little"))
    return result


class TestSplitByShard:
    @given(st.lists(st.tuples(texts, st.sampled_from("xyz"))), st.integers(1, 100), st.booleans())
    def test_each_row_is_in_one_piece(
        self, keys: list[tuple[str, str]], shards: int, as_dictionary: bool
    ) -> None:
        client = pa.array([key[0] for key in keys], pa.string())
        if as_dictionary:
            client = client.dictionary_encode()
        symbol = pa.array([key[1] for key in keys], pa.string())
        table = pa.table({"client": client, "symbol": symbol, "row": np.arange(len(keys))})
        pieces = list(split_by_shard(table, ["client", "symbol"], shards))
        assert [shard for shard, _ in pieces] == sorted({shard for shard, _ in pieces})
        numbers = shard_numbers(table, ["client", "symbol"], shards).tolist()
        rows: list[int] = []
        for shard, piece in pieces:
            own = piece.column("row").to_pylist()
            assert own == [row for row, number in enumerate(numbers) if number == shard]
            assert piece.equals(table.take(own)) or as_dictionary
            assert piece.to_pylist() == table.take(own).to_pylist()
            rows += own
        assert sorted(rows) == list(range(len(keys)))

    def test_pieces_do_not_depend_on_chunks(self) -> None:
        keys = [f"client {i % 17}" for i in range(100)]
        whole = pa.table({"key": pa.array(keys).dictionary_encode(), "row": range(100)})
        parts = [
            pa.table(
                {"key": pa.array(keys[i : i + 7]).dictionary_encode(), "row": range(100)[i:][:7]}
            )
            for i in range(0, 100, 7)
        ]
        for (shard, piece), (other_shard, other) in zip(
            split_by_shard(whole, ["key"], 5),
            split_by_shard(pa.concat_tables(parts), ["key"], 5),
            strict=True,
        ):
            assert shard == other_shard
            assert piece.to_pylist() == other.to_pylist()

    def test_rows_keep_their_order(self) -> None:
        rows = 10_000
        table = pa.table({"key": np.arange(rows) % 11, "row": np.arange(rows)})
        for _, piece in split_by_shard(table, ["key"], 3):
            own = piece.column("row").to_pylist()
            assert own == sorted(own)

    def test_no_rows(self) -> None:
        table = pa.table({"key": pa.array([], pa.string())})
        assert list(split_by_shard(table, ["key"], 5)) == []

    def test_the_most_shards_there_can_be(self) -> None:
        table = pa.table({"key": range(1000)})
        pieces = list(split_by_shard(table, ["key"], 65_536))
        assert sum(piece.num_rows for _, piece in pieces) == 1000
        assert pieces[-1][0] > 60_000


few_ids = st.integers(-3, 3)
close_ids = st.integers(10**15, 10**15 + 50)
ids = st.sampled_from([few_ids, close_ids, int64s])
rows_of_integers = ids.flatmap(
    lambda id_: st.lists(st.tuples(texts | st.sampled_from("ab"), st.sampled_from("xyz"), id_))
)
rows_of_strings = st.lists(st.tuples(st.sampled_from("ab"), texts, texts | st.sampled_from("12")))


def sorted_rows(rows: Sequence[tuple[str, str, Any]], cuts: Sequence[int] = ()) -> SortedRows:
    """Sort rows that come in pieces, cut at these places."""
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    id_type = pa.string() if rows and isinstance(rows[0][2], str) else pa.int64()
    tables = []
    for start, end in pairwise(bounds):
        client, symbol, id_ = zip(*rows[start:end], strict=True) if start < end else ((), (), ())
        tables.append(
            pa.table(
                {
                    "client": pa.array(client, pa.string()).dictionary_encode(),
                    "symbol": pa.array(symbol, pa.string()),
                    "id": pa.array(id_, id_type),
                }
            )
        )
    return sort_components(pa.concat_tables(tables), ["client", "symbol"], "id")


def in_order(rows: Iterable[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    """The rows by Python's own sort, strings by their bytes."""

    def key(row: tuple[str, str, Any]) -> tuple[Any, ...]:
        return tuple(value.encode() if isinstance(value, str) else value for value in row)

    return sorted(rows, key=key)


def as_tuples(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


class TestSortComponents:
    @given(rows_of_integers | rows_of_strings, st.lists(st.integers(0, 20), max_size=4))
    @example([("a", "x", -(2**63)), ("a", "x", 2**63 - 1), ("a", "x", 0)], [])
    @example([("", "", 0)], [])
    def test_as_python_sorts(self, rows: list[tuple[str, str, Any]], cuts: list[int]) -> None:
        result = sorted_rows(rows, cuts)
        expected = in_order(rows)
        assert as_tuples(result.components.table) == expected
        starts, repeats, row = [], [], 0
        for _, component in groupby(expected, key=lambda row: row[:2]):
            starts.append(row)
            for _, same in groupby(component):
                count = len(list(same))
                repeats += [count > 1] * count
                row += count
        assert result.components.starts.tolist() == starts
        assert result.components.starts.dtype == np.int64
        assert result.repeats.tolist() == repeats

    @given(rows_of_integers | rows_of_strings, st.lists(st.integers(0, 20), max_size=4), st.data())
    def test_equal_rows_give_equal_bytes(
        self, rows: list[tuple[str, str, Any]], cuts: list[int], data: st.DataObject
    ) -> None:
        shuffled = data.draw(st.permutations(rows))
        one, other = sorted_rows(rows), sorted_rows(shuffled, cuts)
        assert as_bytes(one.components.table) == as_bytes(other.components.table)

    @given(rows_of_integers | rows_of_strings, st.data())
    def test_without_some_rows(self, rows: list[tuple[str, str, Any]], data: st.DataObject) -> None:
        result = sorted_rows(rows).components
        gone = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        kept = [
            row for row, is_gone in zip(as_tuples(result.table), gone, strict=True) if not is_gone
        ]
        less = without(result, np.array(gone, bool))
        expected = sorted_rows(kept).components if kept else less
        assert as_tuples(less.table) == kept
        assert less.starts.tolist() == expected.starts.tolist()
        assert len(less.starts) == len({row[:2] for row in kept})
        if kept:
            assert as_bytes(less.table) == as_bytes(expected.table)

    @pytest.mark.parametrize("dictionary", [["a", "a", "b"], ["b", "a", "a"]])
    def test_a_dictionary_that_holds_a_value_twice(self, dictionary: list[str]) -> None:
        codes = pa.array([0, 1, 2, 1, 0], pa.int32())
        key = pa.DictionaryArray.from_arrays(codes, pa.array(dictionary))
        values = key.to_pylist()
        result = sort_components(pa.table({"key": key, "id": range(5)}), ["key"], "id")
        assert as_tuples(result.components.table) == sorted(zip(values, range(5), strict=True))
        assert len(result.components.starts) == 2

    def test_further_columns_go_along(self) -> None:
        table = pa.table(
            {
                "key": ["b", "a", "a"],
                "id": [1, 2, 1],
                "price": pa.array([Decimal("1.5"), None, Decimal("2.5")], pa.decimal128(18, 4)),
                "side": pa.array(["S", None, "B"]).dictionary_encode(),
            }
        )
        assert as_tuples(sort_components(table, ["key"], "id").components.table) == [
            ("a", 1, Decimal("2.5"), "B"),
            ("a", 2, None, None),
            ("b", 1, Decimal("1.5"), "S"),
        ]

    @pytest.mark.parametrize("bits", [1, 60, 61, 62, 63, 64])
    def test_keys_that_just_fit_into_64_bits(self, bits: int) -> None:
        """Two bits for the client, none for the symbol, the rest for the id."""
        least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        rows = [
            (client, "x", id_)
            for id_ in (most, least, 0 if bits > 1 else most)
            for client in "bdac"
        ]
        result = sorted_rows(rows)
        assert as_tuples(result.components.table) == in_order(rows)
        assert result.components.starts.tolist() == [0, 3, 6, 9]
        assert result.repeats.any() == (bits == 1)

    def test_the_packed_key_and_the_others_agree(self) -> None:
        """The same rows, with ids that fit into one key, and with one that doesn't."""
        rows = [(f"client {i % 7}", "xyz"[i % 3], i * 37 % 1000) for i in range(500)]
        packed = as_tuples(sorted_rows(rows).components.table)
        far = ("zzz", "z", 2**63 - 1)
        farther = ("zzz", "z", -(2**63))
        assert as_tuples(sorted_rows([far, *rows, farther]).components.table) == [
            *packed,
            farther,
            far,
        ]


def as_bytes(table: pa.Table) -> bytes:
    """All of it, with its chunks and dictionaries as they are."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class TestSortStrings:
    @given(st.lists(texts, unique=True))
    @example([])
    @example(["a", "a\0"])
    @example(["prefix of more than eight", "prefix of more than eigh", "prefix of more"])
    def test_by_bytes_or_not_at_all(self, values: list[str]) -> None:
        order = sort_strings(pa.array(values, pa.string()))
        if order is not None:
            assert [values[i] for i in order] == sorted(values, key=str.encode)

    @pytest.mark.parametrize(
        "values",
        [
            [f"CLIENT-{i:06d}" for i in range(999, -1, -1)],
            ["b", "", "a", "ab"],
            ["a common prefix, then é", "a common prefix, then e", "a common prefix, then"],
            ["ü", "Cé"],  # their first bytes differ in the highest bit only
        ],
    )
    def test_what_differs_in_eight_bytes_is_sorted(self, values: list[str]) -> None:
        order = sort_strings(pa.array(values))
        assert order is not None
        assert [values[i] for i in order] == sorted(values, key=str.encode)

    @pytest.mark.parametrize("values", [["a", "a"], ["x", "a12345678b", "a12345678c"], ["", "\0"]])
    def test_what_does_not_is_left_to_others(self, values: list[str]) -> None:
        assert sort_strings(pa.array(values)) is None


# Beam pickles functions by the name of their module, and so finds the very same objects here.
class Calls:
    """What the calls of a test see of each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.ended: list[int] = []
        self.another_runs = threading.Event()
        self.failed = threading.Event()
        self.bundle_over = threading.Event()
        self.outlived: list[int] = []
        self.second_is_done = threading.Event()
        self.meeting = threading.Barrier(3)


calls = Calls()


@pytest.fixture(autouse=True)
def _new_calls() -> None:
    global calls
    calls = Calls()


def squares(number: int) -> list[int]:
    return [number * number]


def three_at_a_time(number: int) -> list[int]:
    with calls.lock:
        calls.running += 1
        calls.most = max(calls.most, calls.running)
    calls.meeting.wait(SECONDS)
    with calls.lock:
        calls.running -= 1
    return [number]


def second_first(number: int) -> list[int]:
    if number == 0:
        assert calls.second_is_done.wait(SECONDS)
    calls.second_is_done.set()
    return [number, -number]


def fails_at_one(number: int) -> list[int]:
    if number == 1:
        assert calls.another_runs.wait(SECONDS)
        calls.failed.set()
        raise ValueError("number one")
    calls.another_runs.set()
    assert calls.failed.wait(SECONDS)
    _look_for_the_end_of_the_bundle(number)
    return [number]


def lingers_after_zero(number: int) -> list[int]:
    if number == 0:
        assert calls.another_runs.wait(SECONDS)
    else:
        calls.another_runs.set()
        assert calls.failed.wait(SECONDS)
        _look_for_the_end_of_the_bundle(number)
    return [number]


def _look_for_the_end_of_the_bundle(number: int) -> None:
    # A bundle that doesn't wait for this call ends well within that time.
    if calls.bundle_over.wait(0.3):
        calls.outlived.append(number)
    calls.ended.append(number)


def fail(number: int) -> None:
    calls.failed.set()
    raise ValueError(f"after the step: {number}")


def even_and_odd(number: int) -> list[Any]:
    return [number] if number % 2 == 0 else [TaggedOutput("odd", number)]


def plus(number: int, others: list[int]) -> list[int]:
    return [number + sum(others)]


def by_hand(dofn: DoInFlight, bundles: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """The outputs of each bundle, in their order."""
    dofn.setup()
    try:
        outputs = []
        for bundle in bundles:
            dofn.start_bundle()
            given = [output for element in bundle for output in dofn.process(element)]
            given += [output.value for output in dofn.finish_bundle()]
            outputs.append(given)
        return outputs
    finally:
        dofn.teardown()


class TestDoInFlight:
    def test_in_a_pipeline(self) -> None:
        with pipeline() as p:
            numbers = p | beam.Create(range(100)) | beam.ParDo(DoInFlight(squares, 3))
            assert_that(numbers, equal_to([i * i for i in range(100)]))

    def test_bundles_that_run_twice(self) -> None:
        with pipeline("--direct_runner_bundle_repeat=1") as p:
            numbers = p | beam.Create(range(10)) | beam.ParDo(DoInFlight(squares, 3))
            assert_that(numbers, equal_to([i * i for i in range(10)]))

    def test_one_after_the_other(self) -> None:
        with pipeline() as p:
            numbers = (
                p
                | beam.Create(range(10))
                | "Once" >> beam.ParDo(DoInFlight(squares, 2))
                | "Twice" >> beam.ParDo(DoInFlight(squares, 4))
            )
            assert_that(numbers, equal_to([i**4 for i in range(10)]))

    def test_tagged_outputs(self) -> None:
        with pipeline() as p:
            even, odd = (
                p
                | beam.Create(range(7))
                | beam.ParDo(DoInFlight(even_and_odd, 2)).with_outputs("odd", main="even")
            )
            assert_that(even, equal_to([0, 2, 4, 6]), label="Even")
            assert_that(odd, equal_to([1, 3, 5]), label="Odd")

    def test_side_inputs(self) -> None:
        with pipeline() as p:
            others = beam.pvalue.AsList(p | "Others" >> beam.Create([10, 20]))
            numbers = p | beam.Create([1, 2, 3]) | beam.ParDo(DoInFlight(plus, 2), others)
            assert_that(numbers, equal_to([31, 32, 33]))

    def test_outputs_can_be_grouped(self) -> None:
        """What is emitted when the bundle ends is in the same window as the rest."""
        with pipeline() as p:
            sums = (
                p
                | beam.Create(range(10))
                | beam.ParDo(DoInFlight(squares, 2))
                | beam.combiners.Count.Globally()
            )
            assert_that(sums, equal_to([10]))

    def test_outputs_keep_the_order_of_the_elements(self) -> None:
        assert by_hand(DoInFlight(second_first, 2), [[0, 1, 2]]) == [[0, 0, 1, -1, 2, -2]]

    def test_as_many_at_a_time_as_told(self) -> None:
        # The meeting takes three: fewer in flight would never get through it.
        assert by_hand(DoInFlight(three_at_a_time, 3), [range(12)]) == [list(range(12))]
        assert calls.most == 3

    def test_bundles_do_not_mix(self) -> None:
        bundles = [[1, 2, 3], [], [4], range(10, 20)]
        given = by_hand(DoInFlight(squares, 3), bundles)
        assert given == [[i * i for i in bundle] for bundle in bundles]

    @pytest.mark.parametrize("numbers", [[1, 2], [1, 2, 3], [2, 1]])
    def test_an_error_fails_the_bundle_and_no_call_outlives_it(self, numbers: list[int]) -> None:
        with pytest.raises(ValueError, match="number one"):
            run_to_its_end(beam.ParDo(DoInFlight(fails_at_one, 2)), numbers)
        calls.bundle_over.set()
        assert 2 in calls.ended
        assert calls.outlived == []

    def test_no_call_outlives_a_bundle_that_fails_in_a_later_step(self) -> None:
        step = beam.ParDo(DoInFlight(lingers_after_zero, 2)) | beam.Map(fail)
        with pytest.raises(ValueError, match="after the step: 0"):
            run_to_its_end(step, [0, 1, 2])
        calls.bundle_over.set()
        assert 1 in calls.ended
        assert calls.outlived == []

    def test_after_a_failed_bundle_comes_another(self) -> None:
        dofn = DoInFlight(fails_at_one, 2)
        dofn.setup()
        dofn.start_bundle()
        list(dofn.process(1))
        list(dofn.process(2))
        with pytest.raises(ValueError, match="number one"):
            list(dofn.process(3))
        calls.bundle_over.set()
        assert calls.ended == [2]
        assert calls.outlived == []
        dofn.start_bundle()
        list(dofn.process(4))
        assert [output.value for output in dofn.finish_bundle()] == [4]
        dofn.teardown()

    def test_at_least_one_in_flight(self) -> None:
        with pytest.raises(ValueError, match="in_flight must be at least 1, not 0"):
            DoInFlight(squares, 0)


def run_to_its_end(step: Any, numbers: Sequence[int]) -> None:
    """Run a step on numbers in one bundle."""
    with pipeline() as p:
        _ = p | beam.Create(numbers, reshuffle=False) | step


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
    return [str(path) for path in parent.glob("ledgerbeam-spill-*")]


@contextmanager
def holder(parent: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a spill directory, and the folder's path."""
    script = (
        "import sys\n"
        "from ledgerbeam.io.spill import SpillDirectory\n"
        "with SpillDirectory(sys.argv[1]) as directory:\n"
        "    print(directory.path, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


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
                assert isinstance(piece, SpilledPiece)
                assert load_piece(piece).to_pylist() == expected.to_pylist()
            assert load_piece(table) is table

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

    def test_the_living_are_left_alone_and_the_dead_are_swept(self, tmp_path: Path) -> None:
        with holder(tmp_path) as (other, path):
            with SpillDirectory(str(tmp_path)) as own:
                assert sorted(folders(tmp_path)) == sorted([path, own.path])
            assert folders(tmp_path) == [path]
            other.send_signal(signal.SIGKILL)
            other.wait(SECONDS)
            assert folders(tmp_path) == [path]
            with SpillDirectory(str(tmp_path)) as own:
                assert folders(tmp_path) == [own.path]

    def test_a_folder_whose_process_died_before_it_locked_is_swept(self, tmp_path: Path) -> None:
        (tmp_path / "ledgerbeam-spill-x").mkdir()
        with SpillDirectory(str(tmp_path)) as own:
            assert folders(tmp_path) == [own.path]

    @pytest.mark.parametrize("name", ["open", "flock"])
    def test_a_sweep_just_before_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Another process may sweep between any two steps in which a folder is made."""
        module: Any = os if name == "open" else fcntl
        real: Callable[..., Any] = getattr(module, name)

        def sweep_first(*arguments: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            SpillDirectory(str(tmp_path))._sweep()
            return real(*arguments)

        monkeypatch.setattr(module, name, sweep_first)
        with SpillDirectory(str(tmp_path)) as directory:
            assert folders(tmp_path) == [directory.path]
            spill.spill(directory.path, [(0, table_of_all_types())])

    def test_many_at_once(self, tmp_path: Path) -> None:
        def spill_and_load(number: int) -> list[int]:
            with SpillDirectory(str(tmp_path)) as directory:
                table = pa.table({"number": [number]})
                [(_, piece)] = spill.spill(directory.path, [(0, table)])
                return load_piece(piece).column("number").to_pylist()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(spill_and_load, range(200))) == [[i] for i in range(200)]
        assert folders(tmp_path) == []

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        target = tmp_path / "somewhere else"
        target.mkdir()
        (tmp_path / "ledgerbeam-spill-file").write_text("")
        (tmp_path / "ledgerbeam-spill-link").symlink_to(target)
        with SpillDirectory(str(tmp_path)):
            pass
        assert target.exists()
        assert (tmp_path / "ledgerbeam-spill-file").exists()

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
