"""Bytes that changed after they were written never count, and damaged records say so in a line."""

import json
import logging
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.damage import follow, one_line, publish, written
from tests.support.launchers import instance_of, parameters_of, write_input
from tests.support.processes import OneClientFails

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.batch.runs.expire import expire_results
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import (
    attempts,
    commits,
    load_manifest,
)
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.errors import DamagedFileError, UserError
from ledgerbeam.io.storage import stores

SEEDS = range(120)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("published"))


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return instance_of(to)


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_a_part_that_changed_is_not_taken_over(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_input(tmp_path / "trades.csv")
    with pytest.raises(UserError):  # when its shards are committed
        run(OneClientFails(parameters_of(tmp_path, max_rejects=0)))
    instance = instance_of(tmp_path)
    part = instance / "attempt-1" / "part-00001-of-00003.parquet"
    flip(part)
    with caplog.at_level(logging.WARNING):
        manifest = run(OneClientFails(parameters_of(tmp_path)))
    assert f"{part}: not what was committed: shard 1 doesn't count" in caplog.text
    assert manifest.shards[1].attempt == 2
    assert manifest.shards[0].attempt == 1
    undisturbed = load_manifest(str(instance_of(published)))
    assert manifest.totals == undisturbed.totals
    of = [[shard.part.sha256 for shard in each.shards] for each in (manifest, undisturbed)]
    assert of[0] == of[1]
    verify(str(instance), OneClientFails(parameters_of(tmp_path)))


def test_a_published_instance_that_changed_is_no_input(published: Path, tmp_path: Path) -> None:
    instance = copy_of(published, tmp_path)
    contract = Contract((Column("id", pa.int64()),))
    plan_input(str(instance), contract, Reading())
    part = instance / load_manifest(str(instance)).shards[0].part.name
    flip(part)
    with pytest.raises(DamagedFileError, match=f"{part.name}: not what was published: sha256"):
        plan_input(str(instance), contract, Reading())


def test_reading_with_verification(published: Path, tmp_path: Path) -> None:
    instance = copy_of(published, tmp_path)
    rows = read_published(str(instance)).to_table()
    assert read_published(str(instance), verify=True).to_table() == rows
    part = instance / load_manifest(str(instance)).shards[0].part.name
    flip(part)
    with pytest.raises(DamagedFileError, match=f"{part.name}: not what was published: sha256"):
        read_published(str(instance), verify=True)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=f"{part.name}: not what was published: .* bytes"):
        read_published(str(instance), verify=True)
    part.unlink()
    with pytest.raises(DamagedFileError, match=f"{part.name}: .*, and it is gone"):
        read_published(str(instance), verify=True)


@pytest.mark.parametrize("name", ["attempt.json", "committed-00001.json", "ended.json"])
def test_a_record_that_lost_a_key(published: Path, tmp_path: Path, name: str) -> None:
    """Fields that may be left out, and totals, are missed by no schema."""
    path = copy_of(published, tmp_path) / "attempt-1" / name
    record = json.loads(path.read_bytes())
    places = {"attempt.json": "parameters", "committed-00001.json": "totals"}
    inner = record[places[name]] if name in places else record["manifest"]["totals"]
    inner.pop(next(iter(inner)))
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedFileError, match=f"{name}: damaged record: its content doesn't fit"):
        follow(tmp_path)


def test_a_record_keeps_the_order_of_its_fields(published: Path) -> None:
    """People read totals in the order in which they were made."""
    uri = str(instance_of(published))
    stored = json.loads(stores.read_bytes(f"{uri}/manifest.json"))
    assert list(load_manifest(uri).counts) == list(stored["counts"])
    assert list(stored["counts"])[:2] == ["rows_in", "rows_out"]


def test_a_record_that_stands_under_another_name(published: Path, tmp_path: Path) -> None:
    instance = copy_of(published, tmp_path)
    attempt = instance / "attempt-1"
    shutil.copy(attempt / "committed-00000.json", attempt / "committed-00001.json")
    with pytest.raises(DamagedFileError, match=r"00001\.json: .* says that it is of shard 0"):
        commits(str(instance), [1])
    shutil.copytree(attempt, instance / "attempt-2")
    with pytest.raises(DamagedFileError, match=r"attempt-2/attempt\.json: .* it is attempt 1"):
        attempts(str(instance))
    control = instance / "control"
    shutil.copy(control / "000001.json", control / "000002.json")
    with pytest.raises(DamagedFileError, match=r"000002\.json: .* it is entry 1"):
        control_log.latest(str(instance))


def test_a_record_without_a_digest_is_one_of_a_version_before(
    published: Path, tmp_path: Path
) -> None:
    instance = copy_of(published, tmp_path)
    for path in instance.rglob("*.json"):
        record = json.loads(path.read_bytes())
        record.pop("digest", None)
        path.write_text(json.dumps(record))
    verify(str(instance), OneClientFails(parameters_of(tmp_path)))


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_records_give_one_line(published: Path, tmp_path: Path, seed: int) -> None:
    """Whatever stands in a record, it is refused in a line that names it, or it does no harm."""
    source = random.Random(seed)
    instance = copy_of(published, tmp_path)
    paths = [path for path in instance.rglob("*.json") if path.stat().st_size > 5]
    path = source.choice(sorted(paths))
    written(path, source)
    for act in (
        lambda: follow(tmp_path),
        lambda: ProgressReader(str(instance)).read(utc_now()),
        lambda: run(OneClientFails(parameters_of(tmp_path))),
        lambda: expire_results(str(instance), utc_now()),
    ):
        one_line(act)


def test_files_that_nobody_made(published: Path, tmp_path: Path) -> None:
    """Names that don't fit are left alone."""
    instance = copy_of(published, tmp_path)
    for name in (
        "control/1x.json",
        "control/7.json",
        "attempt-1/workers/w-x.json",
        "attempt-1/workers/w-²³.json",
        "claims/x-y.decided.json",
        "claims/².decided.json",
    ):
        assert stores.create(f"{instance}/{name}", b"{}")
    follow(tmp_path)
