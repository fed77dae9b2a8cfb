"""Parameters that were wrong: corrected before anything is published, and seen before it is run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.batch.runs.test_runs import mistake, verb
from tests.support.recorded import ACCOUNTS, DAY, SHARDS, Place, held

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(tmp_path: Path, base: Path) -> Place:
    """A registry without runs."""
    return Place(tmp_path / "fresh", f"sqlite:///{tmp_path}/registry.db")


def failed(place: Place, **parameters: Any) -> RunRecord:
    """A run that has failed by its parameters."""
    run = place.record(**parameters)
    assert place.launcher(run).wait() == 0
    assert place.run().status is RunStatus.FAILURE, place.told()
    return place.run()


def mended(place: Place) -> list[Any]:
    return [event.detail for event in place.runs.events(place.run().id) if event.why == "mended"]


class TestRetriedWithOtherParameters:
    def test_what_is_committed_stays(self, fresh: Place) -> None:
        run = failed(fresh, max_rejects=0)
        calls = len(fresh.calls())
        again = verb(fresh, "retry", run.id, "--set=--max-rejects=3", "--why=mended", "--json")
        assert again.lines[0]["parameters"]["max_rejects"] == 3
        assert verb(fresh, "wait", run.id).code == 0, fresh.told()
        assert len(fresh.calls()) == calls
        changed = {"max_rejects": {"before": 0, "now": 3}}
        assert mended(fresh) == [{"kind": "retry", "parameters": changed}]
        assert "max_rejects: 0 → 3" in verb(fresh, "audit", run.id).out
        fresh.check_story()
        published = mistake(fresh, "retry", run.id, "--set=max_rejects=9", "--why=mended")
        assert "has published, which stays as it is" in published

    def test_a_misspelt_path(self, fresh: Place) -> None:
        run = failed(fresh, amounts=str(fresh.folder / "amuonts.csv"))
        right = f"--set=amounts={fresh.folder}/amounts.csv"
        assert verb(fresh, "retry", run.id, right, "--why=mended").code == 0
        assert verb(fresh, "wait", run.id).code == 0, fresh.told()
        assert len({call.account for call in fresh.calls()}) == len(ACCOUNTS)

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["--set=max_rejects=3"], "say why its parameters are changed (--why)"),
            (["--set=max_rejects", "--why=mended"], "give NAME=VALUE"),
            (["--set=max_rejects=some", "--why=mended"], "--max-rejects=some: "),
            (["--set=none=3", "--why=mended"], "no parameter --none: see --help"),
            (["--set=max_reject=3", "--why=x"], "--max-reject: did you mean --max-rejects?"),
            (["--set=max_rejects=few", "--why=x"], "--max-rejects=few: give a whole number"),
            (["--set=max_rejects=0", "--why=mended"], "has these values already"),
            (["--set=business_date=2026-11-21", "--why=mended"], "says which instance"),
            (["--set=output=elsewhere", "--why=mended"], "says which instance"),
            (["--set=run_number=2", "--why=mended"], "says which instance"),
        ],
    )
    def test_what_cannot_be_changed(self, fresh: Place, arguments: list[str], line: str) -> None:
        run = fresh.record(max_rejects=0)
        assert verb(fresh, "cancel", run.id).code == 0
        before = fresh.run(), fresh.runs.events(run.id)
        assert line in mistake(fresh, "retry", run.id, *arguments)
        assert (fresh.run(), fresh.runs.events(run.id)) == before

    def test_a_run_that_goes_on(self, fresh: Place) -> None:
        run = fresh.record(max_rejects=0)
        line = mistake(fresh, "retry", run.id, "--set=max_rejects=3", "--why=mended")
        assert "is INITIATED: wait for its end" in line
        assert fresh.run().parameters["max_rejects"] == 0


class TestReplaced:
    def submit(self, place: Place, *others: str, **parameters: Any) -> Any:
        return verb(place, "submit", place.process, "--json", *others, *place.flags(**parameters))

    def test_the_new_run_has_its_place(self, fresh: Place) -> None:
        old = failed(fresh, amounts=str(fresh.folder / "amuonts.csv"))
        assert "with other parameters: amounts" in mistake(
            fresh, "submit", fresh.process, *fresh.flags()
        )
        new = self.submit(fresh, "--replace", "--why=mended").lines[0]
        assert (new["name"], new["id"] != old.id) == (f"counting/{DAY}", True)
        assert verb(fresh, "wait", new["id"]).code == 0, fresh.told()
        assert fresh.run().id == new["id"]
        assert fresh.manifest().attempt.run == new["id"]
        begun = {"before": f"{fresh.folder}/amuonts.csv", "now": f"{fresh.folder}/amounts.csv"}
        assert mended(fresh) == [{"replaces": old.id, "parameters": {"amounts": begun}}]
        fresh.check_story()
        # The old run is on record, with what became of it, and can't be gone on with.
        assert [run.id for run in fresh.runs.list()] == [new["id"], old.id]
        (shown,) = verb(fresh, "get", old.id, "--json").lines
        assert (shown["status"], shown["progress"]["components"]) == ("FAILURE", {})
        assert shown["name"] == f"counting/{DAY} (replaced {old.id[:8]})"
        last = fresh.runs.events(old.id)[-1]
        assert (last.type, last.why, last.detail) == ("replaced", "mended", {"by": new["id"]})
        for name in ("retry", "restart"):
            assert f"run {new['id']} was submitted in its place" in mistake(fresh, name, old.id)
        for name in ("components", "rejects", "results", "reports"):
            assert f"was replaced by run {new['id']}" in mistake(fresh, name, old.id)
        assert verb(fresh, "reconcile", "--scrub", "--json") == (0, "", "")

    def test_what_was_to_be_deleted_is_kept(self, fresh: Place) -> None:
        old = failed(Place(fresh.folder, fresh.url, "ephemeral"), max_rejects=0)
        assert old.results_expire_at is not None
        place = Place(fresh.folder, fresh.url, "ephemeral")
        parameters = place.parameters()
        place.runs.submit("ephemeral", parameters, replace=True, why="mended")
        assert place.runs.registry.get(old.id).results_expire_at is None
        place.until_status(RunStatus.SUCCESS)

    def test_a_run_that_goes_on_is_canceled_first(self, fresh: Place) -> None:
        old, launcher = held(fresh, max_rejects=0)
        new = self.submit(fresh, "--replace", "--why=mended").lines[0]
        assert launcher.wait() == 0
        assert fresh.runs.registry.get(old.id).status is RunStatus.CANCELED
        fresh.unset("hold")
        assert verb(fresh, "wait", new["id"]).code == 0, fresh.told()
        fresh.check_story()

    def test_what_has_published_stays(self, fresh: Place) -> None:
        run = fresh.record()
        assert fresh.launcher(run).wait() == 0
        flags = fresh.flags(shards=5)
        line = mistake(fresh, "submit", "counting", "--replace", "--why=mended", *flags)
        assert "has published, which stays as it is" in line
        assert [each.id for each in fresh.runs.list()] == [run.id]

    def test_a_reason_and_a_run_are_needed(self, fresh: Place) -> None:
        line = mistake(fresh, "submit", "counting", "--replace", "--why=mended", *fresh.flags())
        assert f"there is no run counting/{DAY} to be replaced" in line
        fresh.record()
        line = mistake(fresh, "submit", "counting", "--replace", *fresh.flags(shards=5))
        assert "is to be replaced: say why" in line


class TestBeforeItIsRun:
    TRADES = "id,client_code,symbol,side,quantity,price,trade_date"

    def flags(self, place: Place, trades: str) -> list[str]:
        return [
            f"--trades={place.folder}/{trades}",
            "--trade-date=2026-11-20",
            f"--output={place.folder}/output",
        ]

    def test_input_is_checked_before_a_run_is_recorded(self, fresh: Place) -> None:
        (fresh.folder / "other.csv").write_text("id,client_code\n1,A\n")
        for trades, part in (("none-*.csv", "none-*.csv"), ("other.csv", "symbol")):
            for more in ([], ["--plan"]):
                arguments = ["delivery-marking", *more, *self.flags(fresh, trades)]
                assert part in mistake(fresh, "submit", *arguments)
        assert fresh.runs.list() == []
        with pytest.raises(UserError, match="none"):
            fresh.runs.submit(
                "delivery-marking",
                {
                    "trades": "none.csv",
                    "trade_date": "2026-11-20",
                    "output": str(fresh.folder / "output"),
                },
            )

    def test_a_plan_runs_nothing(self, fresh: Place) -> None:
        done = verb(fresh, "submit", "counting", "--plan", "--json", *fresh.flags())
        (plan,) = done.lines
        (file,) = plan["inputs"]
        info = (fresh.folder / "amounts.csv").stat()
        assert (file["uri"], file["size"]) == (str(fresh.folder / "amounts.csv"), info.st_size)
        assert str(info.st_mtime_ns) in file["version"]
        assert (plan["shards"], plan["kept"], plan["is_same"]) == (SHARDS, 0, None)
        assert plan["rows"] > 0
        assert fresh.runs.list() == []
        assert not (fresh.folder / "output").exists()
        assert not fresh.calls()

    def test_a_plan_says_what_would_be_redone(self, fresh: Place) -> None:
        fresh.set("fail-A1")
        failed(fresh)
        flags = fresh.flags()
        (plan,) = verb(fresh, "submit", "counting", "--plan", "--json", *flags).lines
        assert (plan["attempt"], plan["kept"], plan["retried"], plan["failed"]) == (
            2, SHARDS - 1, 1, 1,
        )  # fmt: skip
        done = fresh.command("run", "counting", "--plan", *flags)
        assert done.returncode == 0, done.stderr
        for line in (
            "done again\t1 failed component of 1 shard",
            f"committed before\t{SHARDS} shards",
        ):
            assert re.search(rf"^{line} *$", done.stdout, re.MULTILINE)
        other = verb(fresh, "submit", "counting", "--plan", *fresh.flags(shards=5)).out
        assert "nothing on this input and with these parameters" in other
        fresh.unset("fail-A1")
        fresh.runs.retry(fresh.run().id)
        fresh.until_status(RunStatus.SUCCESS)
        last = fresh.command("run", "counting", "--plan", "--json", *flags)
        assert json.loads(last.stdout)["published"] is True
