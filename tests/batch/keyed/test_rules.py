"""Rules of keyed processes: who is executed by which, what is on record, how stages are moved."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import new_class
from typing import Any

import pyarrow as pa
import pytest
from tests.support.fee_rules import FeeParameters, FeesEach, FeesTable, fees, late_rows, write_late
from tests.support.json_lines import lines_of
from tests.support.reading import instance_uri
from typer.testing import CliRunner

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import Record
from ledgerbeam.batch.model.rules import PlannedRules
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.rollouts.moves import approve, promote, roll_back, rollout_of
from ledgerbeam.batch.rollouts.planning import log_of
from ledgerbeam.batch.testing import run_components
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.commit.rollout_log import RolloutLog
from ledgerbeam.io.errors import (
    DefinitionError,
    IllegalMoveError,
    ParameterError,
    TooManyFailuresError,
)
from ledgerbeam.io.failpoints import FAILPOINT
from ledgerbeam.messages.cli.rollout import app
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.rules.rollout import Rollout

ANN, BOB = "ann@laptop", "bob@laptop"
KINDS: tuple[Any, ...] = (FeesEach, FeesTable)


@pytest.fixture
def late(tmp_path: Path) -> str:
    return write_late(tmp_path)


def log(definition: Any) -> RolloutLog:
    return log_of(definition)


def rows_of(manifest: Manifest) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return rows


def expected(has_new: set[str]) -> list[tuple[Any, ...]]:
    """Plain Python: what each row must be, and by which rule."""
    return sorted(
        (row["client"], row["loan"], row["number"], row["overdue"] / 20, 2)
        if row["client"] in has_new
        else (row["client"], row["loan"], row["number"], Decimal("15.00"), 1)
        for row in late_rows()
    )


def included(kind: Any, stage: str) -> set[str]:
    return {row["client"] for row in late_rows() if kind.rollout.includes(stage, row["client"])}


def to(definition: Any, *stages: str) -> None:
    for stage in stages:
        promote(log(definition), stage, who=ANN, why="so far good", force=True)


@pytest.mark.parametrize("kind", KINDS)
def test_clients_come_to_the_new_rule_stage_by_stage(kind: Any, late: str) -> None:
    days = dict(zip(("none", *kind.rollout.stages), range(20, 25), strict=True))
    had: set[str] = set()
    for stage, day in days.items():
        definition = fees(kind, late, day)
        if stage != "none":
            to(definition, stage)
        manifest = run(definition)
        has_new = included(kind, stage)
        found = sorted(tuple(row.values()) for row in rows_of(manifest))
        assert found == expected(has_new)
        assert had <= has_new
        had = has_new
        count = 2 * len(has_new)
        assert manifest.totals.get("rule_2_components", 0) == count
        assert manifest.totals.get("rule_1_components", 0) == 600 - count
        charged = sum(row["fee"] for row in rows_of(manifest) if row["rule"] == 2)
        assert manifest.totals.get("rule_2_fee", 0) == charged * 100
        overdue = sum(r["overdue"] for r in late_rows() if r["client"] in has_new)
        assert manifest.totals.get("rule_2_overdue", 0) == overdue * 100
        verify(instance_uri(manifest), definition)
    assert len(included(kind, "1%")) < len(included(kind, "30%")) < 300


@pytest.mark.parametrize("kind", KINDS)
def test_later_attempts_keep_the_stage_of_the_first_one(kind: Any, late: str) -> None:
    first = fees(kind, late, 19)
    run(first)
    to(first, "list", "1%")
    definition = fees(kind, late)
    new = included(kind, "1%")
    assert 1 < len(new) < 20
    definition.failure_limit = 0
    faults = Path(late).parent / "faults.json"
    faults.write_text(json.dumps(sorted(new)[:1]))
    with pytest.raises(TooManyFailuresError):
        run(definition)
    to(definition, "30%")
    roll_back(log(definition), "none", who=ANN, why="it was wrong")
    faults.write_text("[]")
    manifest = run(fees(kind, late))
    assert manifest.attempt.number == 2
    assert sorted(tuple(row.values()) for row in rows_of(manifest)) == expected(new)
    planned = PlannedRules.of(manifest.attempt)
    assert planned is not None
    assert planned.stage == "1%"
    outcomes = {o.component: o.rule for o in components_of(instance_uri(manifest))}
    assert outcomes == {
        f"{row['client']}/{row['loan']}": 2 if row["client"] in new else 1 for row in late_rows()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_failed_components_have_a_rule_on_record_and_refuse_the_next_stage(
    kind: Any, late: str
) -> None:
    first = fees(kind, late, 19)
    run(first)
    to(first, "list", "1%")
    new = sorted(included(kind, "1%"))
    Path(late).with_name("faults.json").write_text(json.dumps(new[:2]))
    definition = fees(kind, late)
    manifest = run(definition)
    failed = list(components_of(instance_uri(manifest), ComponentStatus.FAILURE))
    assert {(outcome.component.partition("/")[0], outcome.rule) for outcome in failed} == {
        (client, 2) for client in new[:2]
    }
    assert manifest.totals["rule_2_failed"] == 4
    standing, _ = rollout_of(log(definition))
    assert (standing.handled, standing.failed) == (2 * len(new) - 4, 4)
    with pytest.raises(IllegalMoveError, match="4 have failed: 2 may"):
        promote(log(definition), "30%", who=ANN, why="in a hurry")


def test_runs_that_have_not_published_count_at_the_gate(late: str) -> None:
    first = fees(FeesEach, late, 19)
    run(first)
    to(first, "list", "1%")
    new = sorted(included(FeesEach, "1%"))
    Path(late).with_name("faults.json").write_text(json.dumps(new))
    definition = fees(FeesEach, late)
    definition.failure_limit = 0
    with pytest.raises(TooManyFailuresError):
        run(definition)
    standing, _ = rollout_of(log(definition))
    assert (standing.handled, standing.failed) == (0, 2 * len(new))


def test_the_next_stage_waits_until_something_was_executed(late: str) -> None:
    first = fees(FeesEach, late, 19)
    run(first)
    to(first, "list")
    with pytest.raises(IllegalMoveError, match="hasn't handled a component yet"):
        promote(log(first), "1%", who=ANN, why="in a hurry")
    run(fees(FeesEach, late))
    assert promote(log(first), "1%", who=ANN, why="one day of C7") == "promoted"
    with pytest.raises(IllegalMoveError, match="not 100%: the next stage is 30%"):
        promote(log(first), "100%", who=ANN, why="in a hurry", force=True)
    with pytest.raises(ParameterError, match="--why is empty"):
        roll_back(log(first), who=ANN, why=" ")


def of(base: Any, **members: Any) -> Any:
    """A definition with other members; not for several worker processes."""
    return type("Other", (base,), {"name": base.name, **members})


def test_a_component_can_choose_its_customer(late: str) -> None:
    def where(component: Component) -> bool:
        if component.key == ("C5", "B"):
            raise ValueError("nobody knows")
        return bool(component.key[0].startswith("C9"))

    rollout = Rollout(stages=("where", "100%"), where=where, salt="s")
    kinds = [of(base, rollout=rollout, failure_limit=1) for base in KINDS]
    for kind in kinds:
        first = fees(kind, late, 19)
        run(first)
        to(first, "where")
        manifest = run(fees(kind, late))
        new = {row["client"] for row in late_rows() if row["client"].startswith("C9")}
        found = sorted(tuple(row.values()) for row in rows_of(manifest))
        assert found == [row for row in expected(new) if row[:2] != ("C5", "B")]
        (failed,) = components_of(instance_uri(manifest), ComponentStatus.FAILURE)
        assert (failed.component, failed.rule) == ("C5/B", None)
        assert "nobody knows" in failed.error


def test_a_second_person_approves_and_looks_at_the_same_comparison(late: str) -> None:
    kind = of(FeesEach, rollout=replace(FeesEach.rollout, approval=True))
    first = fees(kind, late, 19)
    run(first)
    why = "looked at (comparison sha256 abc123 there)"
    assert promote(log(first), "list", who=ANN, why=why) == "asked"
    with pytest.raises(IllegalMoveError, match="another user"):
        approve(log(first), "list", who="ann@other", why="fine", comparison="abc123")
    with pytest.raises(IllegalMoveError, match="on the comparison abc123 there"):
        approve(log(first), "list", who=BOB, why="fine")
    approve(log(first), "list", who=BOB, why="fine", comparison="abc123")
    standing, entries = rollout_of(log(first))
    assert (standing.stage, standing.asked) == ("list", None)
    assert [entry.what for entry in entries] == ["declared", "asked", "promoted"]


def test_a_definition_goes_on_with_what_is_on_record(late: str) -> None:
    first = fees(FeesEach, late, 19)
    run(first)
    to(first, "list")
    only_new = of(FeesEach, rules={2: FeesEach.by_amount}, rollout=None)
    with pytest.raises(DefinitionError, match="keep both, and bring it to 100% or back to none"):
        run(fees(only_new, late))
    with pytest.raises(DefinitionError, match="on record with the salt 'fees'"):
        run(fees(of(FeesEach, rollout=replace(FeesEach.rollout, salt="other")), late))
    to(first, "1%", "30%", "100%")
    manifest = run(fees(only_new, late))
    assert {row["rule"] for row in rows_of(manifest)} == {2}


def test_an_instance_that_was_begun_with_both_rules_needs_both(late: str) -> None:
    first = fees(FeesEach, late, 19)
    run(first)
    to(first, "list")
    definition = fees(FeesEach, late)
    definition.failure_limit = 0
    Path(late).with_name("faults.json").write_text('["C7"]')
    with pytest.raises(TooManyFailuresError):
        run(definition)
    roll_back(log(first), who=ANN, why="it was wrong")
    only_old = of(FeesEach, rules={1: FeesEach.flat}, rollout=None)
    with pytest.raises(Exception, match="its instance was begun with rule 2 at the stage list"):
        run(fees(only_old, late))


def test_tests_can_choose_the_rule(late: str) -> None:
    rows = [{"client": "C1", "loan": "A", "number": 1, "overdue": "40.00"}]
    for kind in KINDS:
        definition = fees(kind, late)
        (old,) = run_components(definition, late=rows).results
        (new,) = run_components(definition, 2, late=rows).results
        assert (old["fee"], new["fee"]) == (Decimal("15.00"), Decimal("2.00"))


def test_the_commands(late: str) -> None:
    definition = fees(FeesEach, late)
    run(definition)

    def call(*arguments: str) -> str:
        command = ["rollout", *arguments, f"--output={definition.parameters.output}"]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "we begin" in call("promote", "fees-each", "list", "--why=we begin")
    standing, *entries = lines_of(call("show", "fees-each", "--json"))
    assert (standing["stage"], standing["name"], len(entries)) == ("list", "fees-each", 2)
    standing, *_ = lines_of(call("roll-back", "fees-each", "--why=no", "--json"))
    assert standing["stage"] == "none"
    with pytest.raises(ParameterError, match="process nobody has no rollout on record"):
        call("show", "nobody")
    published = f"{definition.parameters.output}/fees-each/2026-11-20"
    with pytest.raises(ParameterError, match="is no comparison but what fees-each has published"):
        call("promote", "fees-each", "list", "--why=again", f"--comparison={published}")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["rollout.before-entry", "rollout.committed"])
def test_a_move_that_is_killed_is_made_once(late: str, point: str) -> None:
    definition = fees(FeesEach, late)
    run(definition)
    command = Path(sys.executable).with_name("ledgerbeam")
    arguments = ["promote", "fees-each", "list", f"--output={definition.parameters.output}"]
    killed = subprocess.run(
        [command, "rollout", *arguments, "--why=we begin"],
        env=dict(os.environ) | {FAILPOINT: point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    is_made = point == "rollout.committed"
    assert rollout_of(log(definition))[0].stage == ("list" if is_made else "none")
    if is_made:
        with pytest.raises(IllegalMoveError):
            to(definition, "list")
    else:
        to(definition, "list")
    _, entries = rollout_of(log(definition))
    assert [entry.what for entry in entries] == ["declared", "promoted"]


class TestDefinitions:
    def refused(self, message: str, **members: Any) -> None:
        members = {"name": "test", "key": ("client",), **members}
        with pytest.raises(TypeError, match=message):
            new_class(
                "Wrong",
                (KeyedProcess[FeeParameters],),
                exec_body=lambda namespace: namespace.update(members),
            )

    def each(self, component: Component) -> Iterable[Record]:
        return []

    def table(self, components: Components) -> pa.Table:
        return components.table

    def anything(self, rows: Any) -> Any:
        return rows

    def test_what_a_class_refuses(self) -> None:
        kind = type(self)
        both = Rollout(stages=("100%",))
        self.refused("both execute and rules", execute=kind.each, rules={1: kind.each})
        self.refused("doesn't say what it takes", rules={1: kind.anything})
        two = {1: kind.each, 2: kind.table}
        self.refused("write both in one way", rules=two, rollout=both)
        self.refused("rollout is missing", rules={1: kind.table, 2: kind.table})
        self.refused("results is missing", rules={1: kind.each})

    def test_a_customer_outside_of_the_key(self, late: str) -> None:
        with pytest.raises(DefinitionError, match="customer is 'owner', and the key has client"):
            fees(of(FeesEach, customer="owner"), late)
