"""Hundreds of small files are read as one large file is, and their bad rows are located."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.test_delivery_marking import (
    check,
    parts_of,
    process,
    random_trades,
    with_repeats,
    write,
)
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.datasets.inputs import Splits, plan_input
from ledgerbeam.pipelines.delivery_inputs import TRADES
from ledgerbeam.transforms.read import BYTES_PER_GROUP, groups_of

ROWS = with_repeats(random_trades(1_200), 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The rows in 300 files; each fiftieth has a row that breaks the contract, in line 3."""
    for number in range(300):
        file = tmp_path / f"{number:03}.csv"
        write(file, ROWS[4 * number : 4 * number + 4])
        if number % 50 == 0:
            lines = file.read_text().splitlines()
            lines.insert(2, "x" + lines[1])
            file.write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("shuffle", ["spill", "group"])
def test_they_give_what_one_file_gives(folder: Path, tmp_path: Path, shuffle: str) -> None:
    write(tmp_path / "all.csv", ROWS)
    asked: dict[str, Any] = {"max_rejects": 50, "shards": 5, "shuffle": shuffle}
    one = run(process(tmp_path / "all.csv", tmp_path / "one", **asked))
    many = run(process(f"{folder}/[0-9]*.csv", tmp_path / "many", **asked))
    check(one, ROWS)
    assert parts_of(many)[:5] == parts_of(one)[:5]
    assert many.counts["rejected"] == one.counts["rejected"] + 6
    assert many.totals["quantity"] == one.totals["quantity"]
    uri = instance_uri(many)
    rejected = [row for file in many.rejects for row in read_part(uri, file).to_pylist()]
    broken = {Path(row["file"]).name: row["row"] for row in rejected if row["raw"].startswith("x")}
    assert broken == {f"{number:03}.csv": 3 for number in range(0, 300, 50)}


def test_they_are_read_in_groups(folder: Path) -> None:
    splits = plan_input(f"{folder}/*.csv", TRADES).splits
    groups = list(groups_of(splits))
    assert [position for group in groups for position in group] == list(range(300))
    sizes = [sum(splits[position].file.size for position in group) for group in groups]
    assert max(sizes) <= BYTES_PER_GROUP
    assert len(groups) == 1


def test_large_files_are_no_part_of_a_group(tmp_path: Path) -> None:
    for number, rows in enumerate((4, 40_000, 4, 4)):
        write(tmp_path / f"{number}.csv", random_trades(rows))
    splits = plan_input(f"{tmp_path}/*.csv", TRADES, bytes_per_split=1 << 19).splits
    large = sum(split.file.uri.endswith("1.csv") for split in splits)
    assert large > 1
    alone = [(1 + number,) for number in range(large)]
    assert list(groups_of(splits)) == [(0,), *alone, (1 + large, 2 + large)]


def test_splits_are_unpacked_once_for_all_that_hold_them(folder: Path) -> None:
    splits = plan_input(f"{folder}/*.csv", TRADES).splits
    packed = pickle.dumps([splits, {"again": splits}])
    first, held = pickle.loads(packed)
    assert first == splits
    assert isinstance(first, Splits)
    assert held["again"] is first
    assert pickle.loads(pickle.dumps(splits)) is first
    assert len(packed) < 60 * len(splits)
