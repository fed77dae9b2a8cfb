"""Names in records are not trusted: none of them leads out of its instance."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.launchers import instance_of, parameters_of, write_input
from tests.support.processes import OneClientFails

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.runs.expire import expire_results
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import attempts, commits, start_attempt
from ledgerbeam.io.commit.published import copy_reports, published_reports, read_published
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.errors import DefinitionError, UserError
from ledgerbeam.io.storage import uris

OUTSIDE = ["../kept", "attempt-1/../../kept", "{folder}/kept", "", ".", "..", "a//b", "a/", "a\nb"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_input(folder / "trades.csv")
    run(OneClientFails(parameters_of(folder)))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A published instance, and a file of the user beside it."""
    shutil.copytree(instance_of(published), instance_of(tmp_path))
    kept(tmp_path).write_text("mine")
    return tmp_path


def kept(folder: Path) -> Path:
    return instance_of(folder).parent / "kept"


def change(file: Path, how: Callable[[Any], None]) -> None:
    record = json.loads(file.read_bytes())
    how(record)
    del record["digest"]  # whoever writes a record can write its digest, too
    file.write_text(json.dumps(record))


def one_line(function: Callable[[], object], about: str | None = None) -> None:
    with pytest.raises(UserError, match=about) as raised:
        function()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_names_files_elsewhere(folder: Path, name: str) -> None:
    """Whoever follows it, nothing outside is deleted, read or written."""
    instance = str(instance_of(folder))
    name = name.format(folder=instance_of(folder).parent)

    def lead_out(manifest: Any) -> None:
        manifest["shards"][0]["part"]["name"] = name
        manifest["reports"] = [manifest["shards"][0]["part"]]

    change(instance_of(folder) / "manifest.json", lead_out)
    contract = Contract((Column("id", pa.int64()),))
    for follow in (
        lambda: expire_results(instance, utc_now()),
        lambda: copy_reports(instance, folder / "copies"),
        lambda: published_reports(instance),
        lambda: read_published(instance),
        lambda: verify(instance, OneClientFails(parameters_of(folder))),
        lambda: list(components_of(instance)),
        lambda: plan_input(instance, contract, Reading()),
    ):
        one_line(follow, "manifest.json: damaged record: .*shards.0.part.name")
    assert kept(folder).read_text() == "mine"
    assert not (folder / "copies").exists()
    assert not (instance_of(folder) / "expired.json").exists()


def test_a_marker_that_names_files_elsewhere(folder: Path) -> None:
    instance = str(instance_of(folder))
    (instance_of(folder) / "manifest.json").unlink()

    def lead_out(marker: Any) -> None:
        marker["part"]["name"] = "../kept"

    change(instance_of(folder) / "attempt-1" / "committed-00000.json", lead_out)
    one_line(lambda: expire_results(instance, utc_now()), "committed-00000.json: damaged record")
    one_line(lambda: commits(instance, [1]), "committed-00000.json: damaged record")
    assert kept(folder).read_text() == "mine"


@pytest.mark.parametrize("name", ["report-/{folder}/new", "report-../../new", "elsewhere"])
def test_a_report_whose_copy_would_be_written_elsewhere(folder: Path, name: str) -> None:
    """The name in the manifest may lie inside the instance, and the one of the copy outside."""
    instance = instance_of(folder)
    name = f"attempt-1/{name.format(folder=str(folder).strip('/'))}"

    def add(manifest: Any) -> None:
        report = manifest["shards"][0]["part"] | {"name": name}
        manifest["reports"] = [report]

    part = json.loads((instance / "manifest.json").read_bytes())["shards"][0]["part"]["name"]
    if ".." not in name:
        (instance / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(instance / part, instance / name)
    change(instance / "manifest.json", add)
    one_line(lambda: copy_reports(str(instance), folder / "copies"), "no name below a folder")
    assert not (folder / "new").exists()


def test_a_link_out_of_an_instance_is_not_followed(folder: Path) -> None:
    instance = instance_of(folder)
    elsewhere = folder / "elsewhere"
    (instance / "attempt-1").rename(elsewhere)
    before = {file.name: file.read_bytes() for file in elsewhere.iterdir() if file.is_file()}
    (instance / "attempt-1").symlink_to(elsewhere)
    for follow in (
        lambda: expire_results(str(instance), utc_now()),
        lambda: read_published(str(instance)),
        lambda: attempts(str(instance)),
        lambda: commits(str(instance), [1]),
        lambda: list(components_of(str(instance))),
        lambda: run(OneClientFails(parameters_of(folder))),
    ):
        one_line(follow, "a link leads out of")
    assert before == {f.name: f.read_bytes() for f in elsewhere.iterdir() if f.is_file()}


def test_a_link_to_a_place_for_writing_is_not_followed(folder: Path) -> None:
    instance = instance_of(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (instance / "control").symlink_to(elsewhere)
    (instance / "attempt-2").symlink_to(elsewhere)
    now = utc_now()
    one_line(lambda: control_log.steer(str(instance), now, "a", "b", state="pause"), "a link")
    record = json.loads((instance / "attempt-1" / "attempt.json").read_bytes())
    del record["digest"]
    second = AttemptRecord.model_validate(record | {"number": 2})
    one_line(lambda: start_attempt(str(instance), second), "a link leads out of")
    assert list(elsewhere.iterdir()) == []


def test_a_link_within_an_instance_is_followed(folder: Path) -> None:
    instance = instance_of(folder)
    (instance / "attempt-1").rename(instance / "moved")
    (instance / "attempt-1").symlink_to(instance / "moved")
    verify(str(instance), OneClientFails(parameters_of(folder)))


@pytest.mark.parametrize("folder_uri", ["/a/b", "file:///a/b", "gs://bucket/a", "s3://bucket/a"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_inside(folder_uri: str, name: str) -> None:
    one_line(lambda: uris.inside(folder_uri, name.format(folder="/etc")))


def test_an_encoded_name_is_taken_as_it_is() -> None:
    """The path of a `file://` URI is decoded; a name that is joined to it must not be."""
    place = uris.inside("file:///a%20b", "%2e%2e/%2e%2e/x")
    assert uris.local_path(place) == "/a b/%2e%2e/%2e%2e/x"


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "", ".", "a b"])
def test_names_of_definitions(name: str) -> None:
    with pytest.raises(DefinitionError, match="no name of a folder"):
        type("Evil", (OneClientFails,), {"name": name})


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b"])
def test_instances_of_definitions(tmp_path: Path, name: str) -> None:
    evil = type("Evil", (OneClientFails,), {"instance_name": name})
    one_line(lambda: instance_uri(evil(parameters_of(tmp_path))), "no name of a folder")


PICKLES = """
import os, pickle, sys

class Evil:
    def __reduce__(self):
        return os.mkdir, (sys.argv[1],)

sys.stdout.buffer.write(pickle.dumps(Evil()))
"""
FOLLOW = """
import sys

seen = []
instance, folder = sys.argv[1:]
from pathlib import Path
from tests.support.launchers import parameters_of
from tests.support.processes import OneClientFails
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.batch.runs.expire import expire_results
from ledgerbeam.io.commit.published import copy_reports, read_published

process = OneClientFails(parameters_of(Path(folder)))
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("pickle.") else None)
verify(instance, process)
read_published(instance).to_table()
list(components_of(instance))
ProgressReader(instance).read(utc_now(), is_live=False)
copy_reports(instance, Path(folder, "copies"))
expire_results(instance, utc_now())
assert not seen, seen
"""


def test_nothing_that_is_read_from_storage_is_unpickled(folder: Path) -> None:
    """The interpreter itself reports what is unpickled; Beam unpickles what it has sent itself."""
    command = [sys.executable, "-c", FOLLOW, str(instance_of(folder)), str(folder)]
    subprocess.run(command, check=True, timeout=120)


def test_a_pickle_in_the_metadata_of_a_file_is_not_loaded(tmp_path: Path) -> None:
    """Arrow once had an extension type that unpickled what its metadata held."""
    made = tmp_path / "made"
    pickled = subprocess.run(
        [sys.executable, "-c", PICKLES, str(made)], capture_output=True, check=True
    ).stdout
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickled,
    }
    field = pa.field("id", pa.int64(), metadata=metadata)
    table = pa.table([pa.array([1])], schema=pa.schema([field]))
    pq.write_table(table, tmp_path / "part.parquet")
    contract = Contract((Column("id", pa.int64()),))
    plan_input(str(tmp_path / "part.parquet"), contract, Reading())
    pq.read_table(tmp_path / "part.parquet")
    assert not made.exists()
