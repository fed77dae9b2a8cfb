"""What was published is checked against its manifest: every damage is found."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.launchers import instance_of, parameters_of, write_input
from tests.support.processes import OneClientFails

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.errors import UserError


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input, and with what was published from it."""
    folder = tmp_path_factory.mktemp("published")
    write_input(folder / "trades.csv")
    run(OneClientFails(parameters_of(folder)))
    return folder


Damage = Callable[[Any], None]


class TestDamage:
    @pytest.fixture
    def copy(self, published: Path, tmp_path: Path) -> Path:
        """A published instance, to be damaged."""
        shutil.copytree(instance_of(published), instance_of(tmp_path))
        return tmp_path

    def verify(self, folder: Path) -> None:
        verify(str(instance_of(folder)), OneClientFails(parameters_of(folder)))

    def assert_found(self, folder: Path, message: str = ": restore ") -> None:
        with pytest.raises(UserError, match=message) as raised:
            self.verify(folder)
        assert "\n" not in str(raised.value)

    def test_no_damage(self, copy: Path) -> None:
        self.verify(copy)

    @pytest.mark.parametrize("index", range(6))
    def test_a_flipped_bit(self, copy: Path, index: int) -> None:
        """In each file that the manifest names: three parts, outcomes, and two rejects."""
        files = load_manifest(str(instance_of(copy))).files
        assert len(files) == 6
        path = instance_of(copy) / files[index].name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.assert_found(copy, f"{files[index].name}: not what was published: sha256")

    @pytest.mark.parametrize("index", range(6))
    def test_a_missing_file(self, copy: Path, index: int) -> None:
        file = load_manifest(str(instance_of(copy))).files[index]
        (instance_of(copy) / file.name).unlink()
        self.assert_found(copy, f"{file.name}: the manifest names it, and it is gone")

    @pytest.mark.parametrize("index", range(6))
    def test_a_truncated_file(self, copy: Path, index: int) -> None:
        file = load_manifest(str(instance_of(copy))).files[index]
        os.truncate(instance_of(copy) / file.name, file.size - 1)
        self.assert_found(copy, f"{file.name}: not what was published")

    def test_parts_that_change_places(self, copy: Path) -> None:
        def exchange(manifest: Any) -> None:
            one, other = manifest["shards"][:2]
            one["part"], other["part"] = other["part"], one["part"]

        self.damage(copy, exchange)
        self.assert_found(copy, "shard 0: .* is .*, not ")

    @pytest.mark.parametrize(
        "path",
        [
            ("totals", "quantity"),
            ("totals", "id_hash"),
            ("totals", "delivery_quantity"),
            ("totals", "net_quantity"),
            ("totals", "refused_quantity"),
            ("counts", "rows_out"),
            ("counts", "components"),
            ("counts", "failed"),
            ("counts", "unknown"),
            ("counts", "rows_in"),
            ("counts", "rejected"),
            ("counts", "other_dates"),
            ("volume", "rows"),
            ("controls", 0, "expected"),
            ("controls", 1, "actual"),
            ("shards", 1, "totals", "quantity"),
            ("shards", 1, "totals", "rows"),
            ("shards", 1, "totals", "refused_quantity"),
            ("shards", 1, "totals", "delivery_quantity"),
            ("shards", 1, "totals", "refused_rows"),
            ("shards", 1, "totals", "refused_id_hash"),
            ("shards", 1, "totals", "components"),
            ("shards", 1, "totals", "failed"),
            ("shards", 1, "totals", "unknown"),
            ("shards", 1, "totals", "result_rows"),
            ("shards", 1, "totals", "result_components"),
            ("shards", 2, "totals", "failed"),
            ("shards", 2, "totals", "failed_rows"),
            ("shards", 2, "totals", "failed_quantity"),
            ("shards", 2, "outcomes", "rows"),
            ("shards", 1, "shard"),
            ("shards", 1, "part", "rows"),
            ("shards", 1, "rejects", "rows"),
            ("rejects", 0, "rows"),
        ],
        ids=str,
    )
    def test_an_edited_number(self, copy: Path, path: tuple[str | int, ...]) -> None:
        def add_one(manifest: Any) -> None:
            for step in path[:-1]:
                manifest = manifest[step]
            manifest[path[-1]] += 1

        self.damage(copy, add_one)
        self.assert_found(copy)

    @pytest.mark.parametrize(
        ("field", "index"),
        [
            ("shards", 0),
            ("shards", -1),
            ("rejects", 0),
            ("controls", 0),
            ("columns", "id"),
        ],
    )
    def test_a_manifest_with_something_left_out(
        self, copy: Path, field: str, index: int | str
    ) -> None:
        self.damage(copy, lambda manifest: manifest[field].pop(index))
        self.assert_found(copy)

    def damage(self, folder: Path, damage: Damage) -> None:
        path = instance_of(folder) / "manifest.json"
        manifest = json.loads(path.read_text())
        damage(manifest)
        # Else that would be found first; manifests of versions before have none.
        del manifest["digest"]
        path.write_text(json.dumps(manifest))

    @pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
    def test_a_truncated_manifest(self, copy: Path, keep: float) -> None:
        path = instance_of(copy) / "manifest.json"
        os.truncate(path, int(path.stat().st_size * keep))
        self.assert_found(copy, "manifest.json: damaged record: .* restore it from a copy")

    def test_a_field_that_nobody_knows(self, copy: Path) -> None:
        self.damage(copy, lambda manifest: manifest.update(surprise=1))
        self.assert_found(copy, "manifest.json: damaged record: .* in surprise")

    @pytest.mark.parametrize("name", ["attempt.json", "committed-00001.json"])
    def test_a_damaged_record_stops_the_next_attempt(self, tmp_path: Path, name: str) -> None:
        write_input(tmp_path / "trades.csv")
        with pytest.raises(UserError):
            run(OneClientFails(parameters_of(tmp_path, max_rejects=0)))
        path = instance_of(tmp_path) / "attempt-1" / name
        os.truncate(path, 20)
        with pytest.raises(UserError, match=f"{name}: damaged record: "):
            run(OneClientFails(parameters_of(tmp_path)))
