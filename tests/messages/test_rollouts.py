"""Rollouts of handlers: who is handled by which rule, how stages are moved, what is on record."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.messages.ruling import ANN, BOB, STAGES, Ruled, in_table, kind_of, to
from tests.messages.senders import Bank, noted
from tests.messages.test_consumer import send_some
from tests.support.json_lines import lines_of
from tests.support.pages import ROOT
from typer.testing import CliRunner

from ledgerbeam.io.errors import DefinitionError, IllegalMoveError, ParameterError
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.cli.rollout import app
from ledgerbeam.messages.consumer.dead_letters import redrive
from ledgerbeam.messages.consumer.rollout_moves import approve, promote, roll_back, rollout_of
from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
from ledgerbeam.messages.store.schema import HEAD
from ledgerbeam.rules.rollout import Rollout


@pytest.fixture
def kind(bank: Bank) -> type[Ruled]:
    return kind_of(bank)


def test_customers_come_to_the_new_rule_stage_by_stage(bank: Bank, kind: type[Ruled]) -> None:
    handler = kind()
    rollout = kind.rollout
    assert rollout is not None
    payers = [f"P{number}" for number in range(40)]
    expected = []
    for stage in ("none", *STAGES):
        if stage != "none":
            assert to(bank, kind, stage) == "promoted"
        for payer in payers:
            bank.send(f"{stage} {payer}", payer)
            rule = 2 if rollout.includes(stage, payer) else 1
            expected.append(f"{stage} {payer}/{rule}")
        bank.post()
        assert bank.consume(handler) == len(payers)
    assert sorted(noted(bank, handler)) == sorted(expected)
    assert {row[0]: row[1] for row in in_table(bank, "ledgerbeam_inbox")} == {
        name.rpartition("/")[0]: int(name.rpartition("/")[2]) for name in expected
    }
    assert verify(bank.database).differences == []


def test_a_message_can_choose_its_customer(bank: Bank) -> None:
    kind = kind_of(
        bank, stages=("where", "100%"), customers=(), where=lambda due: due.payer.startswith("V")
    )
    handler = kind()
    bank.declare(kind)
    to(bank, kind, "where")
    for payer in ("V1", "P1"):
        bank.send(payer, payer)
    bank.post()
    bank.consume(handler)
    assert sorted(noted(bank, handler)) == ["P1/1", "V1/2"]


def test_a_predicate_that_fails_fails_its_message_alone(bank: Bank) -> None:
    kind = kind_of(
        bank, stages=("where", "100%"), customers=(), where=lambda due: bool(1 / int(due.request))
    )
    handler = kind()
    bank.declare(kind)
    to(bank, kind, "where")
    bank.send("0", "P1")
    bank.send("1", "P2")
    bank.post()
    assert bank.consume(handler) == 1
    (parked,) = in_table(bank, "ledgerbeam_parked")
    assert parked == ("0", None, None)


def test_a_message_that_comes_again_keeps_its_rule(bank: Bank, kind: type[Ruled]) -> None:
    handler = kind()
    bank.declare(kind)
    to(bank, kind, "list")
    bank.send("a")
    bank.post()
    bank.consume(handler)
    roll_back(bank.database, kind.name, who=ANN, why="it was wrong")
    # The bucket begins again, as after a restored backup of its progress.
    bank.execute(
        "UPDATE ledgerbeam_progress SET position = 0 WHERE consumer = "
        "(SELECT id FROM ledgerbeam_consumer WHERE name = :name)",
        name=kind.name,
    )
    assert bank.consume(handler) == 0
    assert noted(bank, handler) == ["a/2"]
    assert in_table(bank, "ledgerbeam_inbox") == [("a", 2, 2)]


def test_a_roll_back_is_followed_by_what_begins_after_it(bank: Bank, kind: type[Ruled]) -> None:
    """Also by a try of a message that has failed by the new rule."""
    handler = kind()
    handler.fails = {"a"}
    bank.declare(kind)
    to(bank, kind, "list")
    send_some(bank, "ab")
    assert bank.consume(handler) == 0
    assert in_table(bank, "ledgerbeam_parked") == [("a", 2, 2), ("b", None, None)]
    roll_back(bank.database, kind.name, who=ANN, why="it can't")
    assert bank.consume(handler, minutes=3) == 2
    assert noted(bank, handler) == ["a/1", "b/1"]


def test_a_consumer_that_is_restarted_goes_on_at_the_stage(bank: Bank, kind: type[Ruled]) -> None:
    bank.declare(kind)
    to(bank, kind, "list")
    for request in "ab":
        bank.send(request)
        bank.post()
        bank.consume(kind())  # declares it, as a process does when it starts
    assert noted(bank, kind()) == ["a/2", "b/2"]
    _, entries = rollout_of(bank.database, kind.name)
    assert [entry.what for entry in entries] == ["declared", "promoted"]


def test_a_handler_with_one_rule_puts_it_on_record(bank: Bank) -> None:
    members = {"name": f"one-{bank.topic}", "topic": bank.topic, "rules": {7: Ruled.old}}
    handler = type("One", (Ruled,), members)()
    bank.send("a")
    bank.post()
    bank.consume(handler)
    assert in_table(bank, "ledgerbeam_inbox") == [("a", 7, None)]
    with pytest.raises(ParameterError, match="has no rollout on record"):
        rollout_of(bank.database, handler.name)


class TestGate:
    def test_failures_at_the_stage_refuse_the_next_one(self, bank: Bank, kind: type[Ruled]) -> None:
        handler = kind()
        handler.fails = {"b"}
        bank.declare(kind)
        to(bank, kind, "list")
        send_some(bank, "ab")
        bank.consume(handler)
        with pytest.raises(
            IllegalMoveError, match="rule 2 has handled 1 messages, and 1 have failed: 0 may"
        ) as raised:
            to(bank, kind, "50%")
        assert (raised.value.from_status, raised.value.to_status) == ("list", "50%")
        bank.consume(handler, minutes=5)  # now it is a dead letter
        with pytest.raises(IllegalMoveError, match="1 have failed"):
            to(bank, kind, "50%")
        handler.fails.clear()
        redrive(bank.database, kind.name)
        bank.consume(handler, minutes=6)
        to(bank, kind, "50%")
        _, entries = rollout_of(bank.database, kind.name)
        last = entries[-1]
        assert (last.stage, last.handled, last.failed, last.forced) == ("50%", 2, 0, False)

    def test_a_stage_that_nobody_was_handled_at_proves_nothing(
        self, bank: Bank, kind: type[Ruled]
    ) -> None:
        bank.declare(kind)
        to(bank, kind, "list")
        bank.send("a", "P2")  # by the old rule
        bank.post()
        bank.consume(kind())
        with pytest.raises(IllegalMoveError, match="rule 2 hasn't handled a message yet"):
            to(bank, kind, "50%")

    def test_a_reason_may_force_it_and_is_on_record(self, bank: Bank, kind: type[Ruled]) -> None:
        bank.declare(kind)
        to(bank, kind, "list")
        to(bank, kind, "50%", force=True)
        _, entries = rollout_of(bank.database, kind.name)
        assert [(e.stage, e.forced, e.who) for e in entries[1:]] == [
            ("list", False, ANN),
            ("50%", True, ANN),
        ]

    def test_as_many_as_the_definition_allows_may_fail(self, bank: Bank) -> None:
        kind = kind_of(bank, failures="50%")
        handler = kind()
        handler.fails = {"b"}
        bank.declare(kind)
        to(bank, kind, "list")
        send_some(bank, "ab")
        bank.consume(handler)
        assert to(bank, kind, "50%") == "promoted"

    def test_failures_of_earlier_stages_are_not_counted_again(
        self, bank: Bank, kind: type[Ruled]
    ) -> None:
        handler = kind()
        handler.fails = {"b"}
        bank.declare(kind)
        to(bank, kind, "list")
        send_some(bank, "ab")
        bank.consume(handler)
        bank.consume(handler, minutes=5)
        to(bank, kind, "50%", force=True)
        standing, _ = rollout_of(bank.database, kind.name)
        assert (standing.handled, standing.failed) == (0, 0)


class TestMoves:
    def test_stages_follow_each_other(self, bank: Bank, kind: type[Ruled]) -> None:
        bank.declare(kind)
        with pytest.raises(IllegalMoveError, match="stage none, not 50%: the next stage is list"):
            to(bank, kind, "50%")
        with pytest.raises(IllegalMoveError, match="can't be rolled back to none"):
            roll_back(bank.database, kind.name, who=ANN, why="no")
        for stage in STAGES:
            to(bank, kind, stage, force=True)
        with pytest.raises(IllegalMoveError, match="not 100%: it is the last stage"):
            to(bank, kind, "100%")
        roll_back(bank.database, kind.name, "list", who=BOB, why="too fast")
        standing, entries = rollout_of(bank.database, kind.name)
        assert (standing.stage, standing.next) == ("list", "50%")
        assert (entries[-1].what, entries[-1].who, entries[-1].why) == (
            "rolled back",
            BOB,
            "too fast",
        )

    def test_each_needs_a_reason(self, bank: Bank, kind: type[Ruled]) -> None:
        bank.declare(kind)
        with pytest.raises(ParameterError, match="--why is empty"):
            promote(bank.database, kind.name, "list", who=ANN, why=" ")
        with pytest.raises(ParameterError, match="--why is empty"):
            roll_back(bank.database, kind.name, who=ANN, why="")

    def test_another_person_approves(self, bank: Bank) -> None:
        kind = kind_of(bank, approval=True)
        bank.declare(kind)
        with pytest.raises(IllegalMoveError, match="nobody has asked for list, nothing waits"):
            approve(bank.database, kind.name, "list", who=BOB, why="fine")
        assert to(bank, kind, "list") == "asked"
        standing, _ = rollout_of(bank.database, kind.name)
        assert (standing.stage, standing.asked, standing.asked_by) == ("none", "list", ANN)
        with pytest.raises(IllegalMoveError, match="another user must approve it"):
            approve(bank.database, kind.name, "list", who="ann@another-machine", why="fine")
        with pytest.raises(IllegalMoveError, match="list waits for approval"):
            approve(bank.database, kind.name, "50%", who=BOB, why="fine")
        approve(bank.database, kind.name, "list", who=BOB, why="fine")
        standing, entries = rollout_of(bank.database, kind.name)
        assert (standing.stage, standing.asked) == ("list", None)
        assert [(e.what, e.who) for e in entries[1:]] == [("asked", ANN), ("promoted", BOB)]

    def test_failures_that_came_meanwhile_refuse_the_approval(self, bank: Bank) -> None:
        kind = kind_of(bank, approval=True)
        handler = kind()
        bank.declare(kind)
        to(bank, kind, "list")
        approve(bank.database, kind.name, "list", who=BOB, why="fine")
        send_some(bank, "a")
        bank.consume(handler)
        to(bank, kind, "50%")
        handler.fails = {"b"}
        send_some(bank, "b")
        bank.consume(handler)
        with pytest.raises(IllegalMoveError, match="1 have failed"):
            approve(bank.database, kind.name, "50%", who=BOB, why="fine")
        to(bank, kind, "50%", force=True)
        approve(bank.database, kind.name, "50%", who=BOB, why="I have looked at it")
        _, entries = rollout_of(bank.database, kind.name)
        assert (entries[-1].stage, entries[-1].forced) == ("50%", True)

    def test_a_roll_back_needs_no_approval_and_ends_what_waits(self, bank: Bank) -> None:
        kind = kind_of(bank, approval=True)
        bank.declare(kind)
        to(bank, kind, "list")
        approve(bank.database, kind.name, "list", who=BOB, why="fine")
        to(bank, kind, "50%", force=True)
        roll_back(bank.database, kind.name, who=ANN, why="no")
        with pytest.raises(IllegalMoveError, match="nothing waits"):
            approve(bank.database, kind.name, "50%", who=BOB, why="fine")


class TestDefinitions:
    def test_the_next_rollout_begins_when_everybody_has_the_rule(self, bank: Bank) -> None:
        second, third = kind_of(bank), kind_of(bank, 2, 3)
        bank.declare(second)
        with pytest.raises(DefinitionError, match="begin with 1, which everybody has"):
            bank.declare(third)
        to(bank, second, "list")
        with pytest.raises(DefinitionError, match="keep both, and bring it to 100%"):
            bank.declare(third)
        for stage in ("50%", "100%"):
            to(bank, second, stage, force=True)
        bank.declare(third)
        with pytest.raises(DefinitionError, match="begin with 2, which everybody has"):
            bank.declare(second)
        bank.send("a")
        bank.post()
        handler = third()
        bank.consume(handler)
        assert noted(bank, handler) == ["a/2"]

    def test_one_that_was_given_up_is_left_out(self, bank: Bank) -> None:
        second = kind_of(bank)
        from_before = bank.running(second())
        bank.declare(kind_of(bank, 1, 3))
        standing, _ = rollout_of(bank.database, second.name)
        assert (standing.rule, standing.old_rule, standing.stage) == (3, 1, "none")
        bank.send("a")
        bank.post()
        assert from_before() == 1
        assert noted(bank, second()) == ["a/1"]

    def test_the_old_rule_is_left_out_at_last(self, bank: Bank, kind: type[Ruled]) -> None:
        alone = type("Alone", (kind,), {"rules": {2: Ruled.new}, "rollout": None})
        bank.declare(kind)
        with pytest.raises(DefinitionError, match="begin with 1, which everybody has"):
            bank.declare(alone)
        for stage in STAGES:
            to(bank, kind, stage, force=True)
        bank.send("a")
        bank.post()
        handler = alone()
        bank.consume(handler)
        assert noted(bank, handler) == ["a/2"]

    def test_a_process_of_before_handles_nothing_by_a_wrong_rule(self, bank: Bank) -> None:
        second, third = kind_of(bank), kind_of(bank, 2, 3)
        bank.declare(second)
        for stage in STAGES:
            to(bank, second, stage, force=True)
        from_before = bank.running(second())
        bank.declare(third)
        bank.send("a")
        bank.post()
        assert from_before() == 1  # everybody has rule 2
        to(bank, third, "list")
        bank.send("b")
        bank.post()
        with pytest.raises(DefinitionError, match="start it with the present definition"):
            from_before()
        assert noted(bank, second()) == ["a/2"]

    def test_a_process_of_before_handles_nothing_at_a_stage_that_it_does_not_know(
        self, bank: Bank, kind: type[Ruled]
    ) -> None:
        from_before = bank.running(kind())
        bank.declare(kind_of(bank, stages=("list", "10%", "100%")))
        for stage in ("list", "10%"):
            to(bank, kind, stage, force=True)
        bank.send("a")
        bank.post()
        with pytest.raises(DefinitionError, match="at the stage 10%, which this process doesn't"):
            from_before()
        assert in_table(bank, "ledgerbeam_parked") == []

    def test_stages_and_limits_may_change_and_the_salt_may_not(
        self, bank: Bank, kind: type[Ruled]
    ) -> None:
        bank.declare(kind)
        to(bank, kind, "list")
        with pytest.raises(DefinitionError, match=r"the salt '.*/2' .* may not change"):
            bank.declare(kind_of(bank, salt="another"))
        with pytest.raises(DefinitionError, match="at the stage list, which its stages"):
            bank.declare(kind_of(bank, stages=("50%", "100%"), customers=()))
        bank.declare(kind_of(bank, stages=("list", "10%", "100%"), failures=5))
        standing, entries = rollout_of(bank.database, kind.name)
        assert (standing.stage, standing.next) == ("list", "10%")
        assert [entry.what for entry in entries] == ["declared", "promoted", "declared"]

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({}, "neither handle, handle_many nor rules"),
            ({"rules": {1: Ruled.old}, "handle": Ruled.old}, "has handle and rules"),
            ({"rules": {1: Ruled.old, 2: Ruled.new}}, "rollout is missing"),
        ],
    )
    def test_what_a_class_refuses(self, members: dict[str, Any], message: str) -> None:
        with pytest.raises(DefinitionError, match=message):
            type("Wrong", (Ruled,), {"name": "wrong", "topic": "due", **members})


def call(bank: Bank, *arguments: str) -> str:
    command = ["rollout", *arguments, f"--database={bank.url}"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(bank: Bank, kind: type[Ruled]) -> None:
    bank.declare(kind)
    shown = call(bank, "promote", kind.name, "list", "--why=we begin")
    assert "promoted" in shown
    assert "we begin" in shown
    standing, *entries = lines_of(call(bank, "show", kind.name, "--json"))
    assert (standing["stage"], standing["next"], len(entries)) == ("list", "50%", 2)
    call(bank, "promote", kind.name, "50%", "--why=again", "--force")
    standing, *_ = lines_of(call(bank, "roll-back", kind.name, "--to=list", "--why=no", "--json"))
    assert standing["stage"] == "list"
    with pytest.raises(IllegalMoveError, match="nobody has asked"):
        call(bank, "approve", kind.name, "50%", "--why=fine")
    with pytest.raises(ParameterError, match="there is no consumer nobody"):
        call(bank, "show", "nobody")


VERSION_1 = """
from alembic import command
from alembic.config import Config
import sys
import sqlalchemy as sa
from ledgerbeam.messages.store.database import _MIGRATIONS

with sa.create_engine(sys.argv[1]).begin() as connection:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS))
    command.upgrade(config, "1")
"""


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_tables_of_before_are_brought_up_to_date(
    dialect: str, new_schema: Callable[[], str], tmp_path: Path
) -> None:
    url = new_schema() if dialect == "postgresql" else f"sqlite:///{tmp_path}/bank.db"
    create_sqlite_file(url)
    subprocess.run([sys.executable, "-c", VERSION_1, url], cwd=ROOT, check=True)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO ledgerbeam_inbox VALUES (1, 5, 0)"))
    with MessageDatabase(url) as database:
        database.migrate()
    with MessageDatabase.open(url), engine.connect() as connection:
        row = connection.execute(sa.text("SELECT * FROM ledgerbeam_inbox")).one()
        assert tuple(row) == (1, 5, 0, None, None, None)
        version = sa.text("SELECT version_num FROM ledgerbeam_messages_version")
        assert connection.execute(version).scalar() == HEAD
    engine.dispose()


def test_the_plan_on_record_says_whom_a_stage_includes(bank: Bank, kind: type[Ruled]) -> None:
    bank.declare(kind)
    (plan,) = bank.rows(
        "SELECT r.plan FROM ledgerbeam_rollout r JOIN ledgerbeam_consumer c ON c.id = r.consumer "
        "WHERE c.name = :name",
        name=kind.name,
    )
    again = Rollout(**json.loads(plan[0]))
    assert kind.rollout is not None
    customers = [f"P{number}" for number in range(500)]
    assert [again.includes("50%", c) for c in customers] == [
        kind.rollout.includes("50%", c) for c in customers
    ]
