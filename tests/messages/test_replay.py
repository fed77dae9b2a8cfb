"""Handlers on Beam: each message once, in its customer's order, beside the consumer's processes."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.messages.senders import NOON, Bank, Due, Noting, noted
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.consumer.dead_letters import redrive
from ledgerbeam.messages.consumer.progress import select_progress
from ledgerbeam.messages.define.handler import Work
from ledgerbeam.messages.replay.customers import Customers
from ledgerbeam.messages.replay.process import RangeParameters, process_of
from ledgerbeam.transforms.concurrency.retry import Retry

FROM, TO = NOON - datetime.timedelta(hours=1), NOON + datetime.timedelta(hours=1)


def on_beam(bank: Bank, kind: type[Noting], folder: Path, **options: Any) -> Manifest:
    process = process_of(kind)
    given = {"from": FROM, "to": TO, "database": bank.url, "output": str(folder)}
    return run(process(RangeParameters(**{**given, **options})))


def outcomes(manifest: Manifest) -> dict[str, list[str]]:
    """Outcomes by customer, in the order of the stream."""
    found: dict[str, list[str]] = {}
    for row in sorted(rows(manifest), key=lambda row: row["position"]):
        found.setdefault(row["customer"], []).append(row["outcome"])
    return found


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return found


def send(bank: Bank, **requests: str) -> None:
    """Send, for each customer, a message for each letter, and post all."""
    for customer, letters in requests.items():
        for number, letter in enumerate(letters):
            bank.send(f"{customer}{letter}", customer, minutes=number / 1_000)
    bank.post(minutes=1)


def test_each_message_is_handled_once_and_in_its_customers_order(
    bank: Bank, tmp_path: Path
) -> None:
    kind = bank.handler()
    send(bank, P="abc", Q="ab", R="a")
    manifest = on_beam(bank, kind, tmp_path)
    assert outcomes(manifest) == {"P": ["handled"] * 3, "Q": ["handled"] * 2, "R": ["handled"]}
    of_customers = {c: [n for n in noted(bank, kind()) if n[0] == c] for c in "PQR"}
    assert of_customers == {"P": ["Pa", "Pb", "Pc"], "Q": ["Qa", "Qb"], "R": ["Ra"]}
    (control,) = (c for c in manifest.controls if c.name.startswith("messages: in range"))
    assert (control.expected, control.actual) == (6, 6)
    assert verify(bank.database).differences == []


def test_what_a_process_has_handled_is_a_duplicate_and_the_other_way_round(
    bank: Bank, tmp_path: Path
) -> None:
    kind = bank.handler()
    send(bank, P="ab")
    assert bank.consume(kind()) == 2
    send(bank, P="cd", Q="a")
    manifest = on_beam(bank, kind, tmp_path)
    assert outcomes(manifest) == {"P": ["duplicate"] * 2 + ["handled"] * 2, "Q": ["handled"]}
    assert bank.consume(kind()) == 0
    assert sorted(noted(bank, kind())) == ["Pa", "Pb", "Pc", "Pd", "Qa"]
    assert verify(bank.database).differences == []
    again = on_beam(bank, kind, tmp_path, run_number=2, reason="to see")
    assert {o for of_one in outcomes(again).values() for o in of_one} == {"duplicate"}
    assert len(noted(bank, kind())) == 5


def test_a_failing_message_is_tried_again_and_its_customer_waits_for_it(
    bank: Bank, tmp_path: Path
) -> None:
    def then(self: Any, message: Due, work: Work) -> None:
        if message.request == "Pb" and work.tries < 2:
            raise OSError("the bank is closed")
        work.publish(self.topic, message, due=NOON + datetime.timedelta(days=400))

    kind = bank.handler(then=then, retry=Retry(tries=3, first_delay=0.01), batch=4)
    send(bank, P="abc", Q="abc")
    assert set(map(tuple, outcomes(on_beam(bank, kind, tmp_path)).values())) == {("handled",) * 3}
    assert [n for n in noted(bank, kind()) if n[0] == "P"] == ["Pa", "Pb", "Pc"]
    sent = "SELECT count(*) FROM ledgerbeam_message WHERE topic = :topic AND due > :due"
    assert bank.rows(sent, topic=bank.topic_id, due=1_800_000_000_000_000) == [(6,)]


def test_a_message_that_fails_for_good_is_a_dead_letter_and_can_be_redriven(
    bank: Bank, tmp_path: Path
) -> None:
    def then(self: Any, message: Due, work: Work) -> None:
        if message.request == "Pb" and not (tmp_path / "open").exists():
            raise ValueError("no such account")

    kind = bank.handler(then=then)
    send(bank, P="abc", Q="a")
    manifest = on_beam(bank, kind, tmp_path / "one")
    assert outcomes(manifest) == {"P": ["handled", "dead", "handled"], "Q": ["handled"]}
    (error,) = (row["error"] for row in rows(manifest) if row["outcome"] == "dead")
    assert error.startswith("ValueError: no such account")
    (tmp_path / "open").touch()
    # Passing it, a process leaves it what it is.
    assert bank.consume(kind()) == 0
    assert verify(bank.database).differences == []
    assert len(redrive(bank.database, kind.name)) == 1
    again = on_beam(bank, kind, tmp_path / "two")
    assert outcomes(again)["P"] == ["duplicate", "handled", "duplicate"]
    assert noted(bank, kind())[-1] == "Pb"


def test_a_customers_earlier_message_isnt_passed(bank: Bank, tmp_path: Path) -> None:
    kind = bank.handler()
    bank.send("early", "P", minutes=-600)
    bank.post(minutes=-500)
    bank.declare(kind)
    send(bank, P="a")
    with pytest.raises(ParameterError, match="before --from, isn't handled by consumer"):
        on_beam(bank, kind, tmp_path)
    handler = kind()
    handler.fails["early"] = OSError("the bank is closed")
    bank.consume(handler, limit=1)
    with pytest.raises(UserError, match="isn't among those of this run"):
        on_beam(bank, kind, tmp_path)
    assert noted(bank, handler) == []
    bank.consume(kind(), minutes=60)
    assert outcomes(on_beam(bank, kind, tmp_path)) == {"P": ["duplicate"]}


def test_a_replay_is_another_consumer_that_ends_with_its_range(bank: Bank, tmp_path: Path) -> None:
    kind = bank.handler()
    send(bank, P="ab")
    bank.consume(kind())
    name = f"again-{bank.topic}"
    for _ in range(2):
        manifest = on_beam(bank, kind, tmp_path, consumer=name)
        assert outcomes(manifest) == {"P": ["handled"] * 2}
    select = "SELECT request FROM noted WHERE consumer = :consumer ORDER BY number"
    assert bank.rows(select, consumer=name) == [("Pa",), ("Pb",)]
    bank.send("later", "P", minutes=90)
    bank.post(minutes=100)
    (books,) = (found for found in verify(bank.database).consumers if found.consumer == name)
    assert books == (name, 2, 2, 0, 0)


def test_a_replay_into_a_fresh_database(bank: Bank, sqlite_fresh: Bank, tmp_path: Path) -> None:
    kind = bank.handler()
    send(bank, P="ab", Q="a")
    bank.consume(kind())
    given = {"database": sqlite_fresh.url, "stream": bank.url}
    manifest = on_beam(bank, kind, tmp_path, **given)
    assert outcomes(manifest) == {"P": ["handled"] * 2, "Q": ["handled"]}
    assert len(noted(sqlite_fresh, kind())) == 3 == len(noted(bank, kind()))
    assert verify(sqlite_fresh.database).differences == []
    with pytest.raises(ParameterError, match="has handled messages from elsewhere"):
        on_beam(bank, kind, tmp_path / "own", database=sqlite_fresh.url)
    with pytest.raises(ParameterError, match="may have handled before"):
        on_beam(bank, kind, tmp_path / "other", stream=sqlite_fresh.url)


def test_what_cant_be_a_range_is_refused(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="isn't before --to"):
        on_beam(bank, bank.handler(), tmp_path, to=FROM)
    with pytest.raises(UserError, match="--min-rows"):
        on_beam(bank, bank.handler(), tmp_path)
    with pytest.raises(ParameterError, match="lies ahead"):
        on_beam(bank, bank.handler(), tmp_path, to=NOON.replace(year=2099))


def test_a_run_that_waits_for_a_bucket_handles_at_the_time_after_the_wait(
    postgres_bank: Bank,
) -> None:
    bank = postgres_bank.for_a_test()
    handler = bank.handler()()
    consumer = bank.declare(type(handler))
    customers = Customers(bank.database, consumer, handler, run=1)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid <> :own"

    def now_when_held() -> int:
        with customers._held(3) as (_, progress):
            return int(progress.now)

    with ThreadPoolExecutor(1) as pool, bank.database.begin("held") as holder:
        holder.execute(select_progress(consumer), {"in_bucket": 3})
        held = pool.submit(now_when_held)
        own = holder.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        while bank.rows(waits, own=own) == [(0,)]:
            assert not held.done()
        before = bank.database.now(holder)
        holder.commit()
        assert held.result() >= before
