"""Runs in which components fail: how many may, what is listed, what is kept."""

import datetime
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.support import processes
from tests.support.execution_bench import BOTH, FAILURE, SUCCESS, UNKNOWN
from tests.support.processes import (
    AFifthMayFail,
    AnyBalanceMayFail,
    AnyEachBalanceMayFail,
    BalanceOnce,
    Balances,
    OneBalanceMayFail,
    noted,
)
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_of
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import OutOfMemoryError, UserError


class TestRuns:
    """Whole runs, from files to what is published."""

    ACCOUNTS = tuple(f"A{number}" for number in range(10))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lines = ["account,number,amount"]
        for account in self.ACCOUNTS:
            lines += [f"{account},{n},{n}.25" for n in range(1, 4)]
        lines.append("NOTHING,1,0.00")
        (tmp_path / "payments.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    def process(self, definition: type[Any], folder: Path, output: str = "o", **more: Any) -> Any:
        parameters = {
            "payments": str(folder / "payments.csv"),
            "output": str(folder / output),
            "folder": str(folder),
            "shards": 2,
            **more,
        }
        return definition(processes.BalanceParameters.model_validate(parameters))

    def break_(self, folder: Path, **faults: str) -> None:
        (folder / "faults.json").write_text(json.dumps(faults))

    def outcomes(self, manifest: Manifest) -> dict[str, Outcome]:
        files = [commit.outcomes for commit in manifest.shards if commit.outcomes is not None]
        tables = [read_part(instance_uri(manifest), file) for file in files]
        return {o.component: o for table in tables for o in outcomes_of(table)}

    def balances(self, manifest: Manifest) -> dict[str, Any]:
        rows = read_published(instance_uri(manifest)).to_table().to_pylist()
        assert rows
        return {row["account"]: row["balance"] for row in rows}

    @BOTH
    def test_one_failure_is_one_too_many(self, folder: Path, definition: type[Any]) -> None:
        self.break_(folder, A3="ValueError")
        with pytest.raises(UserError, match="nothing published: 1 of 11 components failed, and 0 "):
            run(self.process(definition, folder))

        self.break_(folder)
        (folder / "calls").unlink()
        manifest = run(self.process(definition, folder))
        called = {name for line in noted(folder / "calls") for name in line.split()}
        assert called == {"A3"}
        assert self.balances(manifest)["A3"] == Decimal("6.75")
        assert self.outcomes(manifest)["A3"][1:3] == (SUCCESS, 2)
        assert manifest.counts["failed"] == 0
        verify(instance_uri(manifest), self.process(definition, folder))

        undisturbed = run(self.process(definition, folder, "undisturbed"))
        ours, theirs = ([c.part.sha256 for c in m.shards] for m in (manifest, undisturbed))
        assert ours == theirs

    def test_as_many_as_may(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError")
        manifest = run(self.process(OneBalanceMayFail, folder))
        assert manifest.counts["failed"] == 1
        assert set(self.balances(manifest)) == set(self.ACCOUNTS) - {"A3"}
        controls = {control.name: control.actual for control in manifest.controls}
        assert controls["rows: in = out + rejected + other dates + failed"] == 31
        assert controls["amount: in = out + rejected + failed"] == 6750
        verify(instance_uri(manifest), self.process(OneBalanceMayFail, folder))

    def test_one_more_than_may(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError", A4="ValueError")
        with pytest.raises(UserError, match="2 of 11 components failed, and 1 may: first A"):
            run(self.process(OneBalanceMayFail, folder))

    def test_a_share(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError", A4="ValueError")
        assert run(self.process(AFifthMayFail, folder)).counts["failed"] == 2
        self.break_(folder, A3="ValueError", A4="ValueError", A5="ValueError")
        with pytest.raises(UserError, match="3 of 11 components failed, and 20% may"):
            run(self.process(AFifthMayFail, folder, "other"))

    @pytest.mark.parametrize("definition", [AnyBalanceMayFail, AnyEachBalanceMayFail])
    def test_all_of_them(self, folder: Path, definition: type[Any]) -> None:
        self.break_(folder, **dict.fromkeys([*self.ACCOUNTS, "NOTHING"], "ValueError"))
        manifest = run(self.process(definition, folder))
        assert (manifest.counts["failed"], manifest.counts["rows_out"]) == (11, 0)
        assert set(read_published(instance_uri(manifest)).schema.names) == {
            "account",
            "number",
            "balance",
            "sign",
        }
        verify(instance_uri(manifest), self.process(definition, folder))

    @pytest.mark.parametrize("fault", ["float", "none", "column"])
    def test_results_that_are_not_what_was_said(self, folder: Path, fault: str) -> None:
        self.break_(folder, A3=fault)
        manifest = run(self.process(AnyEachBalanceMayFail, folder))
        assert manifest.counts["failed"] == 1
        outcomes = self.outcomes(manifest)
        assert outcomes["A3"].status is FAILURE
        assert outcomes["NOTHING"] == Outcome("NOTHING", SUCCESS)

    @BOTH
    def test_a_rate_changes_nothing_but_the_time(self, folder: Path, definition: type[Any]) -> None:
        at_once = run(self.process(definition, folder))
        calls = len(noted(folder / "calls"))
        slow = self.process(definition, folder, "slow")
        uri = f"{folder}/slow/balances/{slow.instance}"
        now = datetime.datetime.now(datetime.UTC)
        control_log.steer(uri, now, "a test", "to see slices", rate=4.0)
        manifest = run(slow)
        if definition is Balances:
            assert len(noted(folder / "calls")) - calls > calls
        ours, theirs = ([c.part.sha256 for c in m.shards] for m in (manifest, at_once))
        assert ours == theirs

    def test_what_may_be_called_once_is_not_called_for_other_input(self, folder: Path) -> None:
        self.break_(folder, A3="MemoryError")
        with pytest.raises(OutOfMemoryError):
            run(self.process(BalanceOnce, folder))
        called = noted(folder / "calls")
        with (folder / "payments.csv").open("a") as file:
            file.write("A9,9,1.00\n")
        with pytest.raises(UserError, match=r"attempt 1 was begun on other input .*--run-number=2"):
            run(self.process(BalanceOnce, folder))
        assert noted(folder / "calls") == called
        again = self.process(BalanceOnce, folder, run_number=2, reason="a payment was missing")
        self.break_(folder)
        assert self.balances(run(again))["A9"] == Decimal("7.75")

    def test_at_most_once_over_two_attempts(self, folder: Path) -> None:
        """The first is given up half-way: one call has ended with its worker."""
        self.break_(folder, A3="MemoryError")
        with pytest.raises(OutOfMemoryError):
            run(self.process(BalanceOnce, folder))
        manifest = run(self.process(BalanceOnce, folder))
        assert manifest.attempt.number == 2
        assert Counter(noted(folder / "calls")).most_common(1)[0][1] == 1
        assert self.outcomes(manifest)["A3"].status is UNKNOWN
        assert (manifest.counts["unknown"], manifest.counts["failed"]) == (1, 0)
        assert set(self.balances(manifest)) == set(self.ACCOUNTS) - {"A3"}
        verify(instance_uri(manifest), self.process(BalanceOnce, folder))
