"""The graph of a keyed process: which steps engines must keep apart, and what stands between."""

import datetime
import random
from contextlib import ExitStack
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from hypothesis import given
from hypothesis import strategies as st
from tests.support.harness import pipeline, started_by_hand

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.batch.keyed.notes import CollectNotes, Note
from ledgerbeam.batch.keyed.plan import SplitSummary
from ledgerbeam.io.commit.records import FileRecord
from ledgerbeam.io.datasets.inputs import Split
from ledgerbeam.io.datasets.rejections import RowLocator, splits_to_count
from ledgerbeam.io.storage.base import FileInfo
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking, DeliveryParameters
from ledgerbeam.synthetic.trades import write_trades
from ledgerbeam.transforms.columnar.shard_totals import ReadTotals

DAY = datetime.date(2026, 11, 20)
READ = "Read/Read/ParDo(CallableWrapperDoFn)"


class Graph:
    """The steps of a keyed process as an engine gets them."""

    def __init__(self, trades: str, folder: Path) -> None:
        process = DeliveryMarking(
            DeliveryParameters(trades=trades, trade_date=DAY, output=str(folder), shards=2)
        )
        prepared = kind_of(process).prepare(process)
        attempt = started_by_hand(process, prepared.files, 2)
        made = beam.Pipeline(pipeline().runner)
        with ExitStack() as stack:
            _ = made | "process" >> prepared.build(AttemptContext(attempt), stack)
        self._steps = {
            step.unique_name.removeprefix("process/"): step
            for step in made.to_runner_api().components.transforms.values()
        }

    def inputs(self, name: str) -> list[str]:
        """The steps that made the inputs of a step, side inputs among them."""
        made_by = {
            output: name
            for name, step in self._steps.items()
            if not step.subtransforms
            for output in step.outputs.values()
        }
        return sorted(made_by[input_] for input_ in self._steps[name].inputs.values())

    def outputs(self, name: str) -> set[str]:
        return set(self._steps[name].outputs)

    def side_inputs(self, name: str) -> set[str]:
        payload = self._steps[name].spec.payload
        return set(beam_runner_api_pb2.ParDoPayload.FromString(payload).side_inputs)


def csv_of(folder: Path, size: int) -> str:
    """A file of trades of at least so many bytes, all of them the same."""
    row = f"1,C1,UPL,B,10,1.50,{DAY}\n"
    head = "id,client_code,symbol,side,quantity,price,trade_date\n"
    (folder / "trades.csv").write_text(head + row * (size // len(row) + 1))
    return f"{folder}/trades.csv"


def test_nothing_stands_between_reading_grouping_and_executing(tmp_path: Path) -> None:
    write_trades(f"{tmp_path}/trades", 1000, files=2, trade_date=DAY)
    graph = Graph(f"{tmp_path}/trades/*", tmp_path / "o")
    # On Flink, each further output would have the rows written once more.
    assert graph.outputs(READ) == {"None", "rejected", "notes"}
    assert graph.inputs("GroupByShard") == [READ]
    assert graph.inputs("ExecuteShards") == ["GroupByShard"]
    # What isn't rows can be one step with reading, up to where it is collected.
    for step in ("Read/Locate", "WriteRejections", "CountRead"):
        assert not graph.side_inputs(step)
    assert graph.inputs("AllNotes") == ["CountRead", "WriteRejections"]


def test_lines_are_counted_only_where_a_file_is_cut(tmp_path: Path) -> None:
    for name, size, inputs in (
        ("whole", 1000, ["GroupByShard"]),
        ("cut", 40 << 20, ["GroupByShard", READ]),
    ):
        (tmp_path / name).mkdir()
        trades = csv_of(tmp_path / name, size)
        graph = Graph(trades, tmp_path / name / "o")
        assert graph.inputs("ExecuteShards") == inputs
        assert ("line_counts" in graph.outputs(READ)) == (name == "cut")


@given(
    splits=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=12),
    known=st.sets(st.sampled_from("abc")),
)
def test_counts_of_some_splits_locate_the_rows_of_all(
    tmp_path_factory: pytest.TempPathFactory, splits: list[tuple[str, int]], known: set[str]
) -> None:
    splits = sorted(splits)
    firsts = [
        sum(lines for of_file, lines in splits[:at] if of_file == file)
        for at, (file, _) in enumerate(splits)
    ]
    made = [
        split_of(at, file, first if file in known else None)
        for at, ((file, _), first) in enumerate(zip(splits, firsts, strict=True))
    ]
    counted = splits_to_count(made)
    locator = RowLocator(made, [(at, splits[at][1]) for at in counted])
    found = [locator.locate(at, 3) for at in range(len(splits))]
    assert found == [(file, first + 4) for (file, _), first in zip(splits, firsts, strict=True)]
    last = {file: at for at, (file, _) in enumerate(splits)}
    assert counted == {
        at for at, (file, _) in enumerate(splits) if file not in known and at != last[file]
    }


def split_of(index: int, uri: str, first_row: int | None) -> Split:
    file = FileInfo(uri, 1, "v1")
    return Split(index, file, "csv", None, index, None, first_row, (), False, ())


@given(
    hashes=st.lists(st.lists(st.integers(0, 20)), max_size=8),
    splits=st.integers(0, 4),
    rejects=st.integers(0, 3),
    workers=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_notes_are_the_same_however_many_workers_collect_them(
    hashes: list[list[int]], splits: int, rejects: int, workers: int, order: random.Random
) -> None:
    summaries = [SplitSummary(number, 0, ReadTotals()) for number in range(splits)]
    files = [
        FileRecord(name=f"rejects-{number}", rows=1, size=1, sha256="") for number in range(rejects)
    ]
    notes: list[Note] = [*summaries, *files, *(np.array(some, np.uint64) for some in hashes)]
    order.shuffle(notes)
    collect = CollectNotes()
    collected = []
    for worker in range(workers):
        accumulator = collect.create_accumulator()
        for note in notes[worker::workers]:
            accumulator = collect.add_input(accumulator, note)
        collected.append(collect.compact(accumulator))
    found = collect.extract_output(collect.merge_accumulators(collected))
    assert sorted(found.summaries, key=lambda summary: summary.split) == summaries
    assert sorted(found.rejects, key=lambda file: file.name) == files
    assert found.distinct == len({value for some in hashes for value in some})
