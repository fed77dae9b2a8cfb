"""Hashing, partition and sorting."""

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.transforms.columnar.components import SortedRows, sort_components, tidy, without
from ledgerbeam.transforms.columnar.hashing import (
    hash_array,
    hash_column,
    order_independent,
    shard_numbers,
)
from ledgerbeam.transforms.columnar.partition import split_by_shard
from ledgerbeam.transforms.columnar.utf8_words import sort_strings

int64s = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.text("aé\0", max_size=10)


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

    utf8_words = value.encode()
    result = mix(len(utf8_words))
    for start in range(0, len(utf8_words), 8):
        result = mix(result ^ int.from_bytes(utf8_words[start : start + 8], "little"))
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

    @given(
        st.lists(st.fixed_dictionaries(dict.fromkeys("kabn", st.integers(0, 2)))),
        st.lists(st.sampled_from(["a", "-a", "b", "-b"]), max_size=2, unique_by=lambda n: n[-1]),
        st.lists(st.sampled_from("kabn"), min_size=1, unique=True),
        st.sampled_from([1, 2**40]),
        st.booleans(),
    )
    def test_orders_and_ids_of_several_columns(
        self,
        rows: list[dict[str, int]],
        order: list[str],
        ids: list[str],
        factor: int,
        narrow: bool,
    ) -> None:
        """With the larger factor, keys don't fit into 64 bits."""
        rows = [
            {name: value * factor for name, value in row.items()} | {"row": at}
            for at, row in enumerate(rows)
        ]
        names = ["k", "a", "b", "n", "row"]
        table = pa.table({name: pa.array([r[name] for r in rows], pa.int64()) for name in names})
        type_ = pa.decimal64(18, 0) if narrow else pa.decimal128(19, 0)
        table = table.set_column(1, "a", table.column("a").cast(pa.decimal128(19, 0)).cast(type_))
        found = sort_components(table, ["k"], order, ids)

        def sort_key(row: dict[str, Any]) -> list[int]:
            values = [int(row[n[-1]]) * (-1 if n[0] == "-" else 1) for n in order]
            return [row["k"], *values, *(int(row[n]) for n in ids)]

        given_back = found.components.table.to_pylist()
        keys = [sort_key(row) for row in given_back]
        assert keys == sorted(sort_key(row) for row in rows)
        assert sorted(row["row"] for row in given_back) == list(range(len(rows)))
        same = Counter((row["k"], *(row[n] for n in ids)) for row in given_back)
        repeats = [same[row["k"], *(row[n] for n in ids)] > 1 for row in given_back]
        assert found.repeats.tolist() == repeats
        starts = [at for at, key in enumerate(keys) if not at or key[0] != keys[at - 1][0]]
        assert found.components.starts.tolist() == starts

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


class TestTidy:
    @pytest.mark.parametrize("lengths", [[3], [3, 0, 2], [0, 0], [1, 1, 1]])
    def test_chunks_of_one_dictionary_and_of_several_come_out_alike(
        self, lengths: list[int]
    ) -> None:
        dictionary = pa.array(["b", "unused", "a"])
        codes = [pa.array([0, None, 2][:length], pa.int32()) for length in lengths]
        one = [pa.DictionaryArray.from_arrays(each, dictionary) for each in codes]
        several = [
            pa.DictionaryArray.from_arrays(each, pa.array(dictionary.to_pylist())) for each in codes
        ]
        (tidied,), (expected,) = (
            tidy(pa.table({"text": pa.chunked_array(chunks)})).column("text").chunks
            for chunks in (one, several)
        )
        assert tidied.equals(expected)
        assert tidied.dictionary.to_pylist() == sorted({*tidied.to_pylist()} - {None})
        assert tidied.to_pylist() == [value for each in one for value in each.to_pylist()]

    def test_slices_of_a_dictionary_are_different_ones(self) -> None:
        dictionary = pa.array(["a", "b", "c"])
        chunks = [
            pa.DictionaryArray.from_arrays(pa.array([1], pa.int32()), dictionary.slice(start, 2))
            for start in (0, 1)
        ]
        (tidied,) = tidy(pa.table({"text": pa.chunked_array(chunks)})).column("text").chunks
        assert tidied.to_pylist() == ["b", "c"]


# Beam pickles functions by the name of their module, and so finds the very same objects here.
