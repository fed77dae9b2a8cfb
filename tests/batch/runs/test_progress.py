"""How far a run is, read from storage."""

import dataclasses
import datetime
import json
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.racers import NOON

from ledgerbeam.batch.model.outcomes import Outcome, outcomes_table
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.io.commit.attempts import Attempt, find_manifest, start_attempt
from ledgerbeam.io.commit.records import AttemptRecord, Manifest, ShardCommit
from ledgerbeam.io.errors import DamagedFileError
from ledgerbeam.transforms.publish import Part, commit_part

SHARDS = 3
HOUR = datetime.timedelta(hours=1)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """The second one on the same input."""
    first = AttemptRecord(
        process="close", instance="2026-11-20", number=1, started_at=NOON, code_version="1",
        parameters={}, inputs=[], shards=SHARDS, fingerprint="f",
    )  # fmt: skip
    commit_part(start_attempt(str(tmp_path), first), 0, part_of(0))
    return start_attempt(str(tmp_path), first.model_copy(update={"number": 2}))


def part_of(shard: int) -> Part:
    """Two components, one of which has failed."""
    failed = Outcome(f"A{shard}", ComponentStatus.FAILURE, 2, "ValueError: no", "", "at", {})
    totals = {"components": 2, "failed": 1, "rows": shard, "retries": 1}
    return Part(pa.table({"id": ["B"]}), totals, ["id"], outcomes=outcomes_table([failed]))


def published(attempt: Attempt, commits: list[ShardCommit]) -> Manifest:
    """Publish these shards."""
    manifest = Manifest(
        attempt=attempt.record, published_at=NOON, shards=commits, rejects=[], columns={},
        read={}, totals={}, counts={}, controls=[],
    )  # fmt: skip
    attempt.publish(manifest, NOON)
    return manifest


def test_a_run_that_has_published_is_as_far_as_its_markers_were(
    attempt: Attempt, tmp_path: Path
) -> None:
    for shard in range(1, SHARDS):
        commit_part(attempt, shard, part_of(shard))
    reader = ProgressReader(str(tmp_path))
    before = reader.read(NOON, is_live=False)
    assert (before.shards_done, before.shards_before, before.shards_total) == (3, 1, 3)
    assert before.components == {ComponentStatus.SUCCESS: 3, ComponentStatus.FAILURE: 3}
    manifest = published(attempt, list(reader.seen.values()))
    assert reader.read(NOON, is_live=False) == before
    # The manifest has all of it: ten thousand markers needn't be read.
    for marker in tmp_path.glob("attempt-*/committed-*.json"):
        marker.unlink()
    again = ProgressReader(str(tmp_path))
    assert again.read(NOON, is_live=False) == before
    assert list(again.seen.values()) == manifest.shards


def test_a_manifest_that_was_changed_is_read_again(attempt: Attempt, tmp_path: Path) -> None:
    manifest = published(attempt, [])
    assert find_manifest(str(tmp_path)) == manifest
    path = tmp_path / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "counts": {"rows": 1}}))
    with pytest.raises(DamagedFileError, match="digest"):
        find_manifest(str(tmp_path))
    path.unlink()
    assert find_manifest(str(tmp_path)) is None


def test_a_folder_that_was_emptied_is_looked_at_anew(attempt: Attempt, tmp_path: Path) -> None:
    reader = ProgressReader(str(tmp_path))
    assert reader.read(NOON).shards_done == 1
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert reader.read(NOON).shards_done == 0
    assert not reader.seen
    later = attempt.record.model_copy(update={"number": 1, "started_at": NOON + HOUR})
    totals = {"components": 5, "failed": 0, "rows": 5, "retries": 0}
    commit_part(
        start_attempt(str(tmp_path), later), 0, dataclasses.replace(part_of(0), totals=totals)
    )
    assert reader.read(NOON).components == {ComponentStatus.SUCCESS: 5}
