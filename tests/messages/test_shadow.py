"""Shadows of handlers: what two rules would do with a part of the stream, and nothing is done."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.messages.senders import NOON, Bank, Due, note, noted
from tests.support.json_lines import lines_of
from tests.support.pages import ROOT

from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.consumer.shadow import StreamRange, capture
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.rules.rollout import Rollout

ALL = StreamRange(0, 2**62)


class Charging(MessageHandler[Due]):
    """Charges by one of two rules; both see what they have written for messages before."""

    customer = "payer"

    def flat(self, message: Due, work: Work) -> None:
        self.charge(message, work, f"{message.request}=15")

    def counted(self, message: Due, work: Work) -> None:
        select = "SELECT count(*) FROM noted WHERE consumer = ?"
        if work.connection.dialect.name != "sqlite":
            select = select.replace("?", "%s")
        before = work.connection.exec_driver_sql(select, (self.name,)).scalar_one()
        if message.request == "bad":
            work.connection.exec_driver_sql("SELECT nothing FROM nowhere")
        self.charge(message, work, f"{message.request}={before}")

    def charge(self, message: Due, work: Work, charged: str) -> None:
        note(work.connection, self.name, charged)
        work.publish(work._topic, Due(request=charged, payer=message.payer), key=charged)
        if message.request == "again":
            work.reschedule(work.now)

    def ends(self, message: Due, work: Work) -> None:
        work.connection.commit()

    rules = {1: flat, 2: counted}  # noqa: RUF012 - as users write it
    rollout = Rollout(stages=("100%",))


def kind_of(bank: Bank, **members: Any) -> type[Charging]:
    name = f"charging-{bank.topic}"
    return type("OfTest", (Charging,), {"name": name, "topic": bank.topic, **members})


def captured(bank: Bank, kind: type[Charging], rule: int | None) -> list[dict[str, Any]]:
    with MessageDatabase.open(bank.url) as database:
        tables = [*capture(database, kind(), rule, ALL, NOON)]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def everything(bank: Bank) -> dict[str, list[tuple[Any, ...]]]:
    """What a handler or the framework could have written."""
    tables = ("noted", "ledgerbeam_message", "ledgerbeam_inbox", "ledgerbeam_consumer")
    return {name: bank.rows(f"SELECT * FROM {name} ORDER BY 1, 2") for name in tables}


def test_nothing_remains_of_what_is_captured(bank: Bank) -> None:
    kind = kind_of(bank)
    for request, payer in (("a", "P1"), ("again", "P1"), ("bad", "P1"), ("c", "P1"), ("d", "P2")):
        bank.send(request, payer)
    bank.post()
    before = everything(bank)
    rows = captured(bank, kind, 2)
    assert everything(bank) == before
    assert noted(bank, kind()) == []
    told = [(row["key"], row["number"], row["what"], row["to_key"]) for row in rows]
    assert sorted(told) == [
        ("a", 0, "handled", None),
        ("a", 1, "published", "a=0"),
        ("again", 0, "handled", None),
        ("again", 1, "published", "again=1"),
        ("again", 2, "rescheduled", "again"),
        ("bad", 0, "failed", None),
        ("c", 0, "handled", None),
        ("c", 1, "published", "c=2"),
        ("d", 0, "handled", None),
        ("d", 1, "published", "d=0"),
    ]
    (failed,) = [row["error"] for row in rows if row["error"]]
    assert "nowhere" in failed
    assert captured(bank, kind, 2) == rows


def test_a_handler_that_commits_is_refused(bank: Bank) -> None:
    kind = kind_of(bank, rules={1: Charging.ends}, rollout=None)
    bank.send("a")
    bank.post()
    (row,) = captured(bank, kind, 1)
    assert "which isn't its own to end" in row["error"]
    with pytest.raises(ParameterError, match="has no rule 7: it has 1"):
        captured(bank, kind, 7)


MODULE = """
from tests.messages.test_shadow import Charging

class OfTopic(Charging):
    name = topic = "{topic}"
"""


def test_the_command_compares_both_rules(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "charging.py").write_text(MODULE.format(topic=bank.topic))
    for request in "ab":
        bank.send(request, "P1")
    bank.post()
    program = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    flags = ["--from=2020-01-01", "--to=2100-01-01", f"--database={bank.url}", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def shadow(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "shadow", "charging:OfTopic", *flags, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = shadow("--output=shadows", "--baseline")
    assert done.returncode == Exit.DIFFERENT, done.stderr
    (line,) = lines_of(done.stdout)
    assert line["totals"]["keys_changed"] == 2
    assert line["totals"]["keys_same"] == 2
    differing = read_published(line["published"], "differences").to_table().to_pylist()
    assert ("a=15", "a=0") in [(row["before"], row["after"]) for row in differing]
    assert noted(bank, kind_of(bank)()) == []
    done = shadow("--output=same", "--rule=1")
    assert done.returncode == 0, done.stderr
    assert "--output is missing" in shadow().stderr
