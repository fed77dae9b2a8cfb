"""The DAGs: what can be told of them without Airflow, and their commands for real."""

import ast
import asyncio
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.recorded import Place

from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.io.commit.attempts import attempts

DAGS = Path(__file__).parents[2] / "dags"
FILES = sorted(DAGS.glob("ledgerbeam_*.py"))


@pytest.fixture(scope="module")
def runs() -> Iterator[Any]:
    """The module that DAGs call, as Airflow finds it: in the DAGs' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DAGS)
        import ledgerbeam_runs

        yield ledgerbeam_runs
        del sys.modules["ledgerbeam_runs"]


def operators(file: Path) -> list[dict[str, Any]]:
    """The keyword arguments of each operator that runs a workload, where they are literal."""
    return [
        {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BatchProcessOperator"
    ]


TASKS = [(file, given) for file in FILES for given in operators(file)]


def test_there_are_tasks() -> None:
    assert {ast.literal_eval(given["workload"]) for _, given in TASKS} == {
        "delivery-marking",
        "investor-report",
        "loan-close-of-business",
        "price-migration",
    }


@pytest.mark.parametrize(
    ("file", "given"), TASKS, ids=[ast.literal_eval(given["task_id"]) for _, given in TASKS]
)
def test_a_task_gives_a_workload_what_it_needs(file: Path, given: dict[str, Any]) -> None:
    workload = load_workload(ast.literal_eval(given["workload"]))
    fields = workload.parameters_type.model_fields
    names = {ast.literal_eval(key) for key in given["parameters"].keys}
    assert names <= set(fields)
    assert {name for name, field in fields.items() if field.is_required()} <= names
    # The business date is in it, or a night would find the run of the night before.
    assert workload.date_parameter in names


def test_airflow_and_ledgerbeam_need_not_share_an_environment() -> None:
    for file in FILES:
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        assert not imported & {"ledgerbeam", "apache_beam", "pyarrow"}, file
    assert "airflow" not in (DAGS / "ledgerbeam_runs.py").read_text().split("import")[1:]


class TestCommands:
    """`ledgerbeam_runs`, with the real command and a real registry."""

    pytestmark = pytest.mark.slow

    @pytest.fixture
    def place(self, runs: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
        monkeypatch.setenv("LEDGERBEAM_REGISTRY", place.url)
        monkeypatch.setenv(runs.COMMAND, str(Path(sys.executable).with_name("ledgerbeam")))
        return place

    def test_what_has_failed_goes_on_and_what_has_succeeded_stays(
        self, runs: Any, place: Place
    ) -> None:
        name = f"counting/{place.day}"
        assert asyncio.run(runs.look(name)) is None
        place.set("fail-A7")
        first = runs.go("counting", place.parameters(), "the first try")
        assert (first["name"], first["status"]) == (name, "INITIATED")
        place.until_rest()
        failed = asyncio.run(runs.look(name))
        assert failed["status"] == "FAILURE"
        with pytest.raises(
            runs.CommandError, match=r"is FAILURE: .*1 of 12 components failed"
        ) as raised:
            runs.check(failed)
        assert raised.value.code == "too-many-failures"
        place.unset("fail-A7")
        calls = len(place.calls())
        assert runs.go("counting", place.parameters(), "dag run 7, try 2")["id"] == first["id"]
        place.until_rest()
        done = runs.go("counting", place.parameters(), "cleared")
        assert (done["id"], done["status"]) == (first["id"], "SUCCESS")
        assert runs.check(done) == place.run().uri
        assert [call.account for call in place.calls()[calls:]] == ["A7"]
        whys = [event.why for event in place.runs.events(first["id"]) if event.to_status]
        assert "dag run 7, try 2" in whys
        assert len(attempts(place.run().uri)) == 2

    def test_a_killed_task_cancels_its_run_and_the_next_try_goes_on(
        self, runs: Any, place: Place
    ) -> None:
        place.set("hold")
        run = runs.go("counting", place.parameters(), "the first try")
        asyncio.run(runs.cancel_soon(run["id"], "its task was killed"))
        assert place.until_rest().status == "CANCELED"
        place.unset("hold")
        runs.go("counting", place.parameters(), "try 2")
        assert place.until_rest().status == "SUCCESS"
        with pytest.raises(runs.CommandError, match="SUCCESS") as raised:
            runs.cancel(run["id"], "too late")
        assert raised.value.code == "illegal-move"

    def test_business_days_are_those_of_the_exchange(self, runs: Any, place: Place) -> None:
        sunday, thursday = datetime.date(2026, 2, 1), datetime.date(2026, 1, 15)
        assert runs.is_business_day("XNSE", sunday)
        assert not runs.is_business_day("XNSE", thursday)
        with pytest.raises(runs.CommandError, match="no calendar of business days 'NOWHERE'"):
            runs.is_business_day("NOWHERE", sunday)

    def test_a_mistake_is_the_line_of_the_command(self, runs: Any, place: Place) -> None:
        with pytest.raises(
            runs.CommandError, match=r"^ledgerbeam: no workload countin: did you mean counting\?"
        ) as raised:
            runs.go("countin", place.parameters(), "a slip")
        assert raised.value.code == "workload-not-found"
        with pytest.raises(
            runs.CommandError, match="--business-date=tomorrow: give a date as YYYY-MM-DD"
        ) as raised:
            runs.go("counting", place.parameters(business_date="tomorrow"), "a slip")
        assert raised.value.code == "invalid-parameter"
        assert runs.expire() == []
