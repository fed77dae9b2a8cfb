"""Objects of a store, read by ranges as files are."""

import io
import random

from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.io.storage import object_store


class Fetches:
    """Bytes by ranges, with a record of what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sizes: list[int] = []

    def __call__(self, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.data)
        self.sizes.append(end - start)
        return self.data[start:end]


class TestRangeReader:
    DATA = random.Random(5).randbytes(1 << 21)

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("read"), st.integers(-1, 1 << 20)),
                st.tuples(st.just("seek"), st.integers(0, 3 << 20)),
            )
        )
    )
    def test_it_reads_as_any_file_does(self, steps: list[tuple[str, int]]) -> None:
        reader = object_store.RangeReader(Fetches(self.DATA), len(self.DATA))
        plain = io.BytesIO(self.DATA)
        for method, argument in steps:
            assert getattr(reader, method)(argument) == getattr(plain, method)(argument)
            assert reader.tell() == plain.tell()

    def test_a_range_costs_about_that_range(self) -> None:
        fetches = Fetches(self.DATA)
        reader = object_store.RangeReader(fetches, len(self.DATA))
        reader.seek(-1_000, io.SEEK_END)
        reader.read(1_000)
        reader.seek(500_000)
        reader.read(10)
        reader.read(10)
        reader.seek(1_000_000)
        reader.read(1_000_000)
        assert fetches.sizes == [1_000, 1 << 18, 1_000_000]

    def test_a_scan_takes_few_round_trips(self) -> None:
        size = 100 << 20
        fetches = Fetches(bytes(size))
        reader = object_store.RangeReader(fetches, size)
        while reader.read(1 << 16):
            pass
        assert sum(fetches.sizes) == size
        assert len(fetches.sizes) < 15
