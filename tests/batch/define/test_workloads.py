"""Workloads by the names of their entry points."""

from pathlib import Path

import pytest

from ledgerbeam.batch.define.workloads import load_workload, workload_names
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose entry points name something else than definitions."""
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ledgerbeam.pipelines]\na-module = json\na-class = json:JSONDecoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_name_gives_the_definition() -> None:
    assert "delivery-marking" in workload_names()
    assert load_workload("delivery-marking") is DeliveryMarking


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(UserError, match=r"no workload nightly: there are .*delivery-marking"):
        load_workload("nightly")


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(("name", "value"), [("a-module", "json"), ("a-class", "json:JSONDecoder")])
def test_a_name_of_something_else(name: str, value: str) -> None:
    wrong = f"workload {name}: its entry point {value} is no definition .*: name the class"
    with pytest.raises(UserError, match=wrong):
        load_workload(name)
