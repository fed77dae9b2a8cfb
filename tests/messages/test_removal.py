"""A consumer is removed with what it has recorded; what it had not handled is named for good."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.messages.senders import Bank, Due, noted
from tests.messages.test_archive import in_stream, leave_all, own, send
from tests.messages.test_commands import call, lines
from tests.messages.test_replay import on_beam
from tests.support.json_lines import lines_of

from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.consumer.consumers import declare_consumer, work_of
from ledgerbeam.messages.consumer.progress import BucketLostError
from ledgerbeam.messages.consumer.removal import Removal, removals, remove_consumer
from ledgerbeam.messages.define.handler import Work
from ledgerbeam.messages.store.leases import Leases
from ledgerbeam.messages.store.schema import ROLLOUT, metadata

__all__ = ["own"]  # a fixture

CONSUMER = """
from ledgerbeam import messages

class Due(messages.Message):
    request: str
    payer: str

class Idle(messages.MessageHandler[Due]):
    name, topic, customer = "idle", "{topic}", "payer"

    def handle(self, message, work):
        print("handled", flush=True)
"""


def removed(bank: Bank, name: str, force: bool = False, dry_run: bool = False) -> Removal:
    return remove_consumer(
        bank.database, name, who="ann", why="replaced", force=force, dry_run=dry_run
    )


def numbers_of(bank: Bank, keys: str) -> tuple[int, ...]:
    of_key = dict(bank.rows("SELECT key, message_id FROM ledgerbeam_stream"))
    return tuple(of_key[key] for key in keys)


def test_what_it_had_not_handled_is_named_and_holds_nothing_back(own: Bank, tmp_path: Path) -> None:
    kept, gone = own.handler()(), own.handler()()
    send(own, "ab")
    own.consume(kept)
    own.consume(gone)
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [2]
    gone.fails["d"] = UserError("no such account")
    send(own, "cd")
    own.consume(kept)
    for minutes in (0, 60, 120):
        own.consume(gone, minutes)
    send(own, "ef")
    own.consume(kept)
    expected = {"handled": 3, "dead": 1, "unhandled": 2, "examples": numbers_of(own, "def")}
    seen = removed(own, gone.name, dry_run=True)
    assert {name: getattr(seen, name) for name in expected} == expected
    assert removals(own.database) == []
    leave_all(own, tmp_path)
    assert in_stream(own) == ["d", "e", "f"]

    done = removed(own, gone.name)
    assert done._replace(at=seen.at) == seen
    assert (done.consumer, done.topic, done.who, done.why) == (
        (gone.name, own.topic, "ann", "replaced")
    )
    assert removals(own.database) == [done]
    books = verify(own.database)
    assert books.differences == []
    assert [row[:4] for row in books.consumers] == [(kept.name, 6, 6, 0)]
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [3]
    assert in_stream(own) == []
    assert verify(own.database).differences == []


def test_nothing_of_it_is_left_and_its_number_is_never_given_again(own: Bank) -> None:
    gone = own.handler()()
    send(own, "ab")
    gone.fails["b"] = ValueError("not yet")
    own.consume(gone)
    number = own.declare(type(gone)).id
    removed(own, gone.name)
    with own.engine.connect() as connection:
        for table in metadata.sorted_tables:
            if (
                "consumer" in table.c
                and table is not ROLLOUT
                and table.name != "ledgerbeam_removal"
            ):
                assert not connection.execute(table.select()).all(), table.name
    assert own.rows("SELECT * FROM ledgerbeam_lease WHERE work LIKE 'consume%'") == []
    assert own.declare(own.handler()).id == number + 1
    with pytest.raises(ParameterError, match=f"there is no consumer {gone.name}"):
        removed(own, gone.name)


def test_its_name_comes_back_only_with_a_beginning(own: Bank, tmp_path: Path) -> None:
    gone = own.handler()()
    send(own, "a")
    own.consume(gone)
    removed(own, gone.name)
    with pytest.raises(ParameterError, match=r"was removed at .* by ann, .* by --since"):
        own.declare(type(gone))
    with pytest.raises(ParameterError, match="was removed"):
        on_beam(own, type(gone), tmp_path)
    (posted,) = own.rows("SELECT max(posted_at) FROM ledgerbeam_stream")[0]
    with own.database.begin("the consumer") as connection:
        declare_consumer(connection, type(gone), since=posted + 1)
    own.send("b", minutes=10)
    own.post(minutes=10)
    assert own.consume(gone) == 1
    assert noted(own, gone) == ["a", "b"]
    assert verify(own.database).differences == []
    assert removed(own, gone.name).handled == 1
    assert len(removals(own.database)) == 2


def test_a_running_one_is_removed_only_by_force(own: Bank) -> None:
    handler = own.handler()
    own.declare(handler)
    leases = Leases(work_of(handler.name), "host-7:4711:abcdef12", 60)
    with own.database.begin("leases") as connection:
        leases.renew(connection, own.database.now(connection))
    with pytest.raises(ParameterError, match=r"is running, as host-7:4711: .* say --force"):
        removed(own, handler.name)
    assert not removed(own, handler.name, dry_run=True).handled
    assert removed(own, handler.name, force=True).forced
    assert [one.forced for one in removals(own.database)] == [True]


def test_one_whose_process_was_killed_is_removed_when_its_lease_has_run_out(own: Bank) -> None:
    handler = own.handler()
    own.declare(handler)
    leases = Leases(work_of(handler.name), "host-7:4711:abcdef12", 15)
    with own.database.begin("leases") as connection:
        leases.renew(connection, own.database.now(connection) - 16_000_000)
    assert not removed(own, handler.name).forced


def test_a_step_that_is_under_way_is_finished_first(fresh_postgres: Bank) -> None:
    bank = fresh_postgres.for_a_test()
    begun, may_end = threading.Event(), threading.Event()

    def then(_: object, message: Due, work: Work) -> None:
        begun.set()
        assert may_end.wait(60)

    handler = bank.handler(then=then)()
    send(bank, "a")

    def consume() -> None:
        with pytest.raises(BucketLostError):  # by its next step
            bank.consume(handler)

    step = threading.Thread(target=consume)
    step.start()
    assert begun.wait(60)
    found: list[Removal] = []
    removal = threading.Thread(target=lambda: found.append(removed(bank, handler.name)))
    removal.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while bank.rows(waiting) == [(0,)]:
        assert removal.is_alive()
    may_end.set()
    removal.join(60)
    step.join(60)
    assert (found[0].handled, found[0].unhandled) == (1, 0)
    assert noted(bank, handler) == ["a"]


def test_the_commands_say_what_is_lost(bank: Bank) -> None:
    handler = bank.handler()()
    url = f"--database={bank.url}"
    send(bank, "abcdefghijklm")
    bank.declare(type(handler))
    with pytest.raises(ParameterError, match="--why is empty"):
        call("messages", "remove-consumer", handler.name, "--why= ", url)
    command = ["messages", "remove-consumer", handler.name, "--why=replaced", url]
    shown = call(*command, "--dry-run")
    assert shown.startswith(
        f"{handler.name} would be removed: 0 messages handled, 0 dead, 13 not handled ("
    )
    assert shown.endswith(" and 3 more)\n")
    (told,) = lines_of(call(*command, "--json"))
    assert (told["unhandled"], len(told["examples"])) == (13, 13)
    assert told in lines(bank, "removals")
    assert handler.name in call("messages", "removals", url)


@pytest.mark.slow
def test_a_process_of_a_removed_consumer_ends_and_says_why(
    fresh_postgres: Bank, tmp_path: Path
) -> None:
    bank = fresh_postgres.for_a_test()
    (tmp_path / "idle_consumer.py").write_text(CONSUMER.format(topic=bank.topic))
    send(bank, "a")
    code = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "consume", "idle_consumer:Idle"],
        cwd=tmp_path,
        env=os.environ | {"LEDGERBEAM_MESSAGES": bank.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "handled\n"
        with pytest.raises(ParameterError, match=f":{process.pid}: end these processes"):
            removed(bank, "idle")
        removed(bank, "idle", force=True)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("ledgerbeam: consumer idle was removed: ")
    assert bank.rows("SELECT * FROM ledgerbeam_member") == []
