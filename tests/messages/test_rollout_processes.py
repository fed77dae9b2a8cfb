"""Rollouts among processes: who move at once, and who are killed between two moves."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.messages.ruling import ANN, BOB, STAGES, Ruled, in_table, kind_of
from tests.messages.senders import Bank, noted
from tests.support.pages import ROOT
from tests.support.recorded import until

from ledgerbeam.io.failpoints import FAILPOINT
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.consumer.rollout_moves import promote, rollout_of
from ledgerbeam.rules.rollout import Rollout

pytestmark = pytest.mark.slow


@pytest.fixture
def kind(bank: Bank) -> type[Ruled]:
    return kind_of(bank)


MOVE = """
import sys
from ledgerbeam.io.errors import IllegalMoveError
from ledgerbeam.messages.consumer.rollout_moves import promote
from ledgerbeam.messages.store.database import MessageDatabase

url, consumer, stage, who = sys.argv[1:]
with MessageDatabase.open(url) as database:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(promote(database, consumer, stage, who=who, why="a race", force=True))
    except IllegalMoveError as error:
        print("refused:", error)
"""


def mover(bank: Bank, kind: type[Ruled], stage: str, who: str, point: str = "") -> Any:
    """A process that promotes when it is given a line."""
    environment = dict(os.environ) | ({FAILPOINT: point} if point else {})
    command = [sys.executable, "-c", MOVE, bank.url, kind.name, stage, who]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_two_who_promote_at_once_one_does(bank: Bank, kind: type[Ruled]) -> None:
    bank.declare(kind)
    for stage in STAGES:
        movers = [mover(bank, kind, stage, who) for who in (ANN, BOB)]
        for process in movers:
            process.stdin.write("\n")
            process.stdin.flush()
        said = sorted(process.communicate(timeout=60)[0] for process in movers)
        assert said[0] == "promoted\n"
        assert said[1].startswith("refused:")
    standing, entries = rollout_of(bank.database, kind.name)
    assert standing.stage == "100%"
    assert [entry.number for entry in entries] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("point", "is_there"),
    [("before-entry", False), ("before-commit", False), ("committed", True)],
)
def test_a_move_and_its_entry_are_there_both_or_not_at_all(
    bank: Bank, kind: type[Ruled], point: str, is_there: bool
) -> None:
    handler = kind()
    bank.declare(kind)
    process = mover(bank, kind, "list", ANN, f"rollout.{point}")
    process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    _, entries = rollout_of(bank.database, kind.name)
    assert [entry.what for entry in entries[1:]] == (["promoted"] if is_there else [])
    bank.send("a")
    bank.post()
    bank.consume(handler)
    assert noted(bank, handler) == ["a/2" if is_there else "a/1"]


CONSUMER = """
from tests.messages.ruling import Ruled
from ledgerbeam.rules.rollout import Rollout

class Killed(Ruled):
    name = topic = "{topic}"
    batch = 5
    rules = {{1: Ruled.old, 2: Ruled.new}}
    rollout = Rollout(stages=("50%", "100%"))
"""


def test_consumers_that_are_killed_between_moves_leave_each_message_one_rule(
    bank: Bank, tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(CONSUMER.format(topic=bank.topic))
    code = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "consume", "killed:Killed", "--until-idle"]
    environment = os.environ | {"LEDGERBEAM_MESSAGES": bank.url, "PYTHONPATH": str(ROOT)}
    payers = [f"P{number}" for number in range(30)]
    for payer in payers:
        bank.send(payer, payer)
    bank.post()

    def consume(point: str = "") -> int:
        until(lambda: leased(bank) == 0, "the leases of those who were killed have ended")
        options = {FAILPOINT: point} if point else {}
        arguments = [*command, "--lease-seconds=1", "--slots=1"]
        done = subprocess.run(
            arguments, cwd=tmp_path, env=environment | options, check=False, timeout=120
        )
        return done.returncode

    def by_rule() -> dict[str, int]:
        select = "SELECT request FROM noted WHERE consumer = :name"
        found = [row[0].split("/") for row in bank.rows(select, name=bank.topic)]
        assert len({request for request, _ in found}) == len(found)
        return {request: int(rule) for request, rule in found}

    def move(stage: str) -> None:
        promote(bank.database, bank.topic, stage, who=ANN, why="good", force=True)

    assert consume("messages.before-handled-commit") == -signal.SIGKILL
    assert by_rule() == {}
    move("50%")
    assert consume("messages.handled-commit") == -signal.SIGKILL
    rollout = Rollout(stages=("50%", "100%"), salt=f"{bank.topic}/2")
    first = by_rule()
    assert first == {payer: 1 + rollout.includes("50%", payer) for payer in first}
    move("100%")
    assert consume() == 0
    assert by_rule() == dict.fromkeys(payers, 2) | first
    assert {row[0]: row[1] for row in in_table(bank, "ledgerbeam_inbox")} == by_rule()
    assert verify(bank.database).differences == []


def leased(bank: Bank) -> int:
    """How many leases of the topic's consumer somebody has."""
    select = (
        "SELECT count(*) FROM ledgerbeam_lease WHERE work = :work AND owner IS NOT NULL "
        f"AND expires_at > {bank.database.clock}"
    )
    return int(bank.rows(select, work=f"consume {bank.topic}")[0][0])
