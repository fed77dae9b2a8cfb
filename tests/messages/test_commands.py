"""The commands: what they print, what they refuse, and how their processes end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.messages.senders import Bank, noted
from tests.messages.test_consumer import send_some
from tests.support.json_lines import lines_of
from typer.testing import CliRunner

from ledgerbeam.io.errors import ControlTotalMismatchError, DatabaseError, ParameterError
from ledgerbeam.messages.cli.commands import app

CONSUMER = """
import sqlalchemy as sa
from ledgerbeam import messages

class Due(messages.Message):
    request: str
    payer: str

class Slow(messages.MessageHandler[Due]):
    name, topic, customer = "slow", "{topic}", "payer"

    def handle(self, message, work):
        print("begun", flush=True)
        work.connection.execute(sa.text("SELECT pg_sleep(2)"))
"""


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def lines(bank: Bank, *arguments: str) -> list[dict[str, object]]:
    """Lines of JSON that a command prints, which fit their schemas."""
    text = call("messages", *arguments, "--json", f"--database={bank.url}")
    return lines_of(text)


def test_tables_are_made_and_topics_declared_once(tmp_path: Path) -> None:
    url = f"--database=sqlite:///{tmp_path}/bank.db"
    with pytest.raises(DatabaseError, match="no such file"):
        call("messages", "status", url)
    (tmp_path / "bank.db").touch()
    with pytest.raises(DatabaseError, match="run ledgerbeam messages init"):
        call("messages", "status", url)
    for _ in range(2):
        shown = call("messages", "init", url, "--topic=due:payer")
        assert shown == "topic due, customer in payer\n"
    (told,) = lines_of(call("messages", "init", url, "--json"))
    assert told == {"topic": "due", "customer": "payer"}
    (told,) = lines_of(call("messages", "set-posting-rate", "due", "none", url, "--json"))
    assert told == {"topic": "due", "rate": None}
    with pytest.raises(ParameterError, match="'payer', not 'payee'"):
        call("messages", "init", url, "--topic=due:payee")
    with pytest.raises(ParameterError, match="give TOPIC:FIELD"):
        call("messages", "init", url, "--topic=due")


def test_a_consumer_is_shown_and_steered(bank: Bank) -> None:
    handler = bank.handler()()
    name, url = handler.name, f"--database={bank.url}"
    send_some(bank, "abc")
    bank.declare(type(handler))

    def own() -> dict[str, object]:
        (found,) = (row for row in lines(bank, "status") if row["consumer"] == name)
        return found

    assert (own()["lag"], own()["paused"], own()["rate"]) == (3, False, None)
    assert lines(bank, "pause", name) == [{"consumer": name, "paused": True}]
    assert lines(bank, "set-rate", name, "12.5") == [{"consumer": name, "rate": 12.5}]
    assert (own()["paused"], own()["rate"]) == (True, 12.5)
    assert lines(bank, "resume", name) == [{"consumer": name, "paused": False}]
    call("messages", "set-rate", name, "none", url)
    assert (own()["paused"], own()["rate"]) == (False, None)
    bank.consume(handler)
    assert (own()["lag"], own()["age"]) == (0, None)
    assert name in call("messages", "status", url)


def test_dead_letters_are_listed_and_driven_again(bank: Bank) -> None:
    handler = bank.handler()()
    handler.fails["a"] = ValueError("it is wrong")
    send_some(bank, "a")
    bank.consume(handler)
    (letter,) = lines(bank, "dead", handler.name)
    assert (letter["key"], letter["customer"]) == ("a", "P1")
    assert lines(bank, "redrive", handler.name, "--dry-run") == [letter]
    assert lines(bank, "redrive", handler.name, "--error=wrong") == [
        {"redriven": [letter["message_id"]]}
    ]
    handler.fails.clear()
    bank.consume(handler)
    assert noted(bank, handler) == ["a"]


def test_dead_letters_are_shown_as_they_are(bank: Bank) -> None:
    handler = bank.handler()()
    error = "[red]no[/x] \x1b[2J\u202e"
    handler.fails["a\n[b]"] = ValueError(error)
    bank.send("a\n[b]")
    bank.post()
    bank.consume(handler)
    heads, letter = call("messages", "dead", handler.name, f"--database={bank.url}").splitlines()
    assert heads.startswith("message\tcustomer\t")
    assert "\ta\\n[b]\t" in letter
    assert r"[red]no[/x] \x1b[2J\u202e" in letter


def test_the_forecast_counts_what_is_pending(bank: Bank) -> None:
    for minutes in (-30, 10, 50, 70, 3_000):
        bank.send(str(minutes), minutes=minutes)
    bank.post()
    period = ["--from=2026-11-20T12:00+00:00", "--to=2026-11-21T12:00+00:00"]
    hours = [row for row in lines(bank, "forecast", *period) if row["topic"] == bank.topic]
    assert [(str(row["begins_at"])[:13], row["messages"]) for row in hours] == [
        ("2026-11-20 12", 2),
        ("2026-11-20 13", 1),
    ]


def test_books_that_do_not_balance_are_an_error(bank: Bank) -> None:
    send_some(bank, "a")
    bank.execute(
        "INSERT INTO ledgerbeam_stream (message_id, topic, bucket, version, due, posted_at, "
        "customer, payload) VALUES (-1, :topic, 0, 1, 0, 0, 'P1', '{}')",
        topic=bank.topic_id,
    )
    try:
        with pytest.raises(
            ControlTotalMismatchError,
            match=rf"topic {bank.topic}: 1 in the stream, and never scheduled \(-1\)",
        ):
            call("messages", "verify", f"--database={bank.url}")
    finally:
        bank.execute("DELETE FROM ledgerbeam_stream WHERE message_id = -1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["messages", "pause", "nobody"], "there is no consumer nobody"),
        (["messages", "set-rate", "nobody", "0"], "more than 0, or none"),
        (["messages", "set-rate", "nobody", "fast"], "more than 0, or none"),
        (["messages", "set-posting-rate", "nothing", "5"], "there is no topic nothing"),
        (["messages", "forecast", "--from=tomorrow"], "--from=tomorrow: give a time with its zone"),
        (["messages", "forecast", "--to=2026-11-20"], "--to=2026-11-20: give a time with its zone"),
        (["consume", "unheard-of"], "there is no handler unheard-of"),
        (["consume", "no.such.module:Handler"], "there is no module no.such.module"),
        (["consume", "json:Handler"], "json has no Handler"),
    ],
)
def test_mistakes_are_one_line(sqlite_bank: Bank, arguments: list[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        call(*arguments, f"--database={sqlite_bank.url}")


@pytest.mark.slow
def test_a_consumer_that_is_told_to_end_finishes_what_it_has_begun(
    postgres_bank: Bank, tmp_path: Path
) -> None:
    bank = postgres_bank.for_a_test()
    (tmp_path / "slow_consumer.py").write_text(CONSUMER.format(topic=bank.topic))
    send_some(bank, "a")
    code = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "consume", "slow_consumer:Slow"]
    environment = os.environ | {"LEDGERBEAM_MESSAGES": bank.url}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(60) == 0
    assert rest == "slow: 1 messages handled, 0 tries failed\n"
    leases = "SELECT count(owner) FROM ledgerbeam_lease WHERE work = 'consume slow'"
    assert bank.rows(leases) == [(0,)]


def test_archives_and_erasures(sqlite_fresh: Bank, tmp_path: Path) -> None:
    bank = sqlite_fresh.for_a_test()
    assert lines(bank, "set-retention", bank.topic, "3") == [{"topic": bank.topic, "days": 3}]
    with pytest.raises(ParameterError, match="give whole days, or none"):
        call("messages", "set-retention", bank.topic, "3.5", f"--database={bank.url}")
    send_some(bank, "ab")
    bank.consume(bank.handler()())
    archive = ["archive", "--before=2026-11-21T00:00Z", f"--output={tmp_path}/archive"]
    (batch,) = lines(bank, *archive)
    assert (batch["number"], batch["messages"], batch["withdrawn"]) == (1, 2, 0)
    shown = call("messages", *archive, f"--database={bank.url}")
    assert shown == "nothing to archive\n"
    (erased,) = lines(bank, "erase", "--customer=P1", "--why=asked for it")
    assert (erased["customer"], erased["archived"]) == ("P1", 2)
    assert lines(bank, "erasures") == [erased]
    assert "asked for it" in call("messages", "erasures", f"--database={bank.url}")
