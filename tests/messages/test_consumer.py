"""Handling: each message once, in its customer's order, none held up by another customer's."""

import datetime
import json
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from tests.messages.senders import NOON, Bank, Due, Noting, note, noted

from ledgerbeam.io.errors import DefinitionError, ParameterError
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.dead_letters import dead_letters, redrive
from ledgerbeam.messages.consumer.progress import BucketLostError
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import BUCKETS, Message, bucket_of, to_microseconds
from ledgerbeam.messages.store.database import MessageDatabase

SAME_BUCKET = next(f"Q{n}" for n in range(10_000) if bucket_of(f"Q{n}") == bucket_of("P1"))
LATER = NOON + datetime.timedelta(hours=1)


def send_some(bank: Bank, requests: str, payer: str = "P1") -> None:
    for number, request in enumerate(requests):
        bank.send(request, payer, minutes=number / 1_000)
    bank.post(minutes=1)


def test_messages_of_a_customer_are_handled_in_order_and_once(bank: Bank) -> None:
    handler = bank.handler()()
    send_some(bank, "abcdefgh")
    assert bank.consume(handler, limit=3) == 8
    assert bank.consume(handler) == 0
    assert noted(bank, handler) == list("abcdefgh") == handler.calls


def test_many_are_handled_at_once_and_each_customer_s_in_order(bank: Bank) -> None:
    calls: list[list[str]] = []

    def handle_many(self: MessageHandler[Due], messages: Sequence[tuple[Due, Work]]) -> None:
        calls.append([message.request for message, _ in messages])
        for message, work in messages:
            note(work.connection, self.name, message.request)
            if message.request == "b1" and work.tries < 1:
                raise RuntimeError("not yet")
            if message.request == "a2":
                work.publish(bank.topic, message, due=LATER, key="again")

    handler = set_wise(bank, handle_many)()
    for number, request in enumerate(("a1", "a2", "b1", "a3", "b2")):
        payer = "P1" if request[0] == "a" else SAME_BUCKET
        bank.send(request, payer, minutes=number / 1_000)
    bank.post(minutes=1)
    assert bank.consume(handler) == 3
    assert calls == [["a1", "b1"], ["a1"], ["a2"], ["b1"], ["a3"]]
    calls.clear()
    assert bank.consume(handler, minutes=120) == 2
    assert calls == [["b1"], ["b2"]]
    assert noted(bank, handler) == ["a1", "a2", "a3", "b1", "b2"]
    assert bank.rows("SELECT count(*) FROM ledgerbeam_message WHERE key = 'again'") == [(1,)]


def test_one_message_is_given_to_a_handler_of_many_as_well(bank: Bank) -> None:
    given: list[Any] = []
    handler = set_wise(bank, lambda _, messages: given.append(messages))()
    message, work = Due(request="R1", payer="P1"), types.SimpleNamespace()
    handler.handle(message, work)  # type: ignore[arg-type]
    assert given == [[(message, work)]]


def set_wise(bank: Bank, handle_many: Callable[..., None]) -> type[MessageHandler[Due]]:
    members = {"topic": bank.topic, "customer": "payer", "handle_many": handle_many}
    members |= {"name": bank.handler().name, "message_type": Due, "retry": Noting.retry}
    return type("SetWise", (MessageHandler,), members)


def test_a_handler_has_one_way_to_handle(bank: Bank) -> None:
    with pytest.raises(DefinitionError, match="has handle and handle_many: write one of"):
        bank.handler(handle_many=lambda self, messages: None)


def test_statements_of_a_consumer_are_planned_for_all_of_its_steps(postgres_bank: Bank) -> None:
    bank = postgres_bank.for_a_test()
    handler = bank.handler()()
    consumer = bank.declare(type(handler))
    with MessageDatabase.open(bank.url, 1, keeps_plans=True) as database:
        buckets = Buckets(database, consumer, handler)
        for _ in range(20):
            buckets.step(0, 0, 0, 1)
        with database.begin("plans") as connection:
            # The driver prepares after five, and PostgreSQL keeps a plan after five of its own.
            plans = connection.exec_driver_sql(
                "SELECT custom_plans, generic_plans FROM pg_prepared_statements "
                "WHERE statement LIKE '%%FROM ledgerbeam_stream%%'"
            ).one()
    assert plans == (5, 10)


def test_consumers_are_each_at_their_own_pace(bank: Bank) -> None:
    first, second = bank.handler()(), bank.handler()()
    send_some(bank, "ab")
    assert bank.consume(first) == 2
    send_some(bank, "cd")
    assert bank.consume(second) == 4
    assert bank.consume(first) == 2
    assert noted(bank, first) == noted(bank, second) == list("abcd")


def test_a_new_consumer_begins_where_it_is_told_to(bank: Bank) -> None:
    send_some(bank, "ab")
    handler = bank.handler()
    with bank.database.begin("consumer") as connection:
        since = to_microseconds(NOON + datetime.timedelta(minutes=2))
        declare_consumer(connection, handler, since)
    bank.send("c")
    bank.post(minutes=3)
    consumer = handler()
    assert bank.consume(consumer) == 1
    assert noted(bank, consumer) == ["c"]


def test_a_handler_knows_what_it_works_on(bank: Bank) -> None:
    seen: list[Any] = []

    def then(self: Any, message: Due, work: Work) -> None:
        seen.append((work.message_id, work.customer, work.key, work.due, work.now, work.tries))

    number = bank.send("a", "P9")
    bank.post()
    bank.consume(bank.handler(then=then)(), minutes=60)
    assert seen == [(number, "P9", "a", NOON, LATER, 0)]


class TestFailing:
    def test_it_is_tried_again_with_growing_delays_and_what_it_wrote_is_undone(
        self, bank: Bank
    ) -> None:
        handler = bank.handler()()
        send_some(bank, "abc")
        handler.fails["b"] = OSError("the bank is closed")
        assert bank.consume(handler) == 1
        assert noted(bank, handler) == ["a"]
        # Delays are a minute, then two, shortened by up to a half.
        assert bank.consume(handler, minutes=0.4) == 0
        assert handler.calls.count("b") == 2  # in the batch, and alone
        assert bank.consume(handler, minutes=1.1) == 0
        assert handler.calls.count("b") == 3
        handler.fails.clear()
        assert bank.consume(handler, minutes=5) == 2
        assert noted(bank, handler) == list("abc")

    def test_later_messages_of_its_customer_wait_and_other_customers_do_not(
        self, bank: Bank
    ) -> None:
        handler = bank.handler()()
        handler.fails["a"] = OSError("no")
        for request, payer in (("a", "P1"), ("b", SAME_BUCKET), ("c", "P1"), ("d", SAME_BUCKET)):
            send_some(bank, request, payer)
        assert bank.consume(handler) == 2
        send_some(bank, "e")
        assert bank.consume(handler) == 0
        assert noted(bank, handler) == ["b", "d"]
        handler.fails.clear()
        bank.consume(handler, minutes=10)
        assert noted(bank, handler) == ["b", "d", "a", "c", "e"]

    def test_after_the_last_try_it_is_dead_and_the_others_go_on(self, bank: Bank) -> None:
        handler = bank.handler()()
        handler.fails["a"] = OSError("the bank is closed")
        send_some(bank, "ab")
        for minutes in (0, 10, 20, 30):
            bank.consume(handler, minutes=minutes)
        assert noted(bank, handler) == ["b"]
        (letter,) = dead_letters(bank.database, handler.name)
        assert (letter.key, letter.customer, letter.tries) == ("a", "P1", 3)
        assert letter.error.startswith("OSError: the bank is closed (senders.py:")
        assert json.loads(letter.payload) == {"request": "a", "payer": "P1"}

    @pytest.mark.parametrize("error", [ValueError("bad"), ParameterError("bad", parameter="x")])
    def test_a_mistake_is_not_tried_again(self, bank: Bank, error: Exception) -> None:
        handler = bank.handler()()
        handler.fails["a"] = error
        send_some(bank, "ab")
        assert bank.consume(handler) == 1
        assert [letter.tries for letter in dead_letters(bank.database, handler.name)] == [1]

    def test_a_message_that_does_not_fit_its_class_is_dead(self, bank: Bank) -> None:
        handler = bank.handler()()
        bank.execute(
            "UPDATE ledgerbeam_message SET payload = '{}' WHERE id = :id", id=bank.send("a")
        )
        send_some(bank, "b")
        assert bank.consume(handler) == 1
        (letter,) = dead_letters(bank.database, handler.name)
        assert "ValidationError" in letter.error

    def test_exactly_the_chosen_dead_letters_are_driven_again(self, bank: Bank) -> None:
        handler = bank.handler()()
        for request, payer in (("a", "P1"), ("b", "P2"), ("c", "P1"), ("d", "P3")):
            handler.fails[request] = ValueError(f"{request} is 100% wrong")
            send_some(bank, request, payer)
        bank.consume(handler)
        name, database = handler.name, bank.database
        letters = {letter.key: letter.message_id for letter in dead_letters(database, name)}
        assert set(letters) == set("abcd")
        handler.fails.clear()
        assert dead_letters(database, name, customer="P2", error="100% wrong")
        assert redrive(database, name, customer="P1", error="c is 100%") == [letters["c"]]
        assert redrive(database, name, message_id=letters["b"]) == [letters["b"]]
        assert redrive(database, name, error="0_% wrong") == []
        bank.consume(handler, minutes=10)
        assert sorted(noted(bank, handler)) == ["b", "c"]
        assert {letter.key for letter in dead_letters(database, name)} == {"a", "d"}

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_a_handler_that_ends_the_transaction_fails_and_loses_nothing(
        self, bank: Bank, end: str
    ) -> None:
        def then(self: Any, message: Due, work: Work) -> None:
            if message.request == "a":
                getattr(work.connection, end)()

        handler = bank.handler(then=then)()
        send_some(bank, "a")
        send_some(bank, "b", SAME_BUCKET)
        assert bank.consume(handler) == 1
        assert noted(bank, handler) == ["b"]
        assert bank.rows(
            "SELECT error FROM ledgerbeam_parked WHERE consumer = :id",
            id=bank.declare(type(handler)).id,
        )[0][0].startswith("RuntimeError: the handler ended the transaction")


class TestOutbox:
    def test_what_is_published_is_sent_if_the_message_is_handled(self, bank: Bank) -> None:
        def then(self: Any, message: Due, work: Work) -> None:
            if not message.request.startswith("after"):
                after = Due(request=f"after {message.request}", payer=message.payer)
                work.publish(bank.topic, after, key=after.request)
                if message.request == "b":
                    raise OSError("too late")

        handler = bank.handler(then=then)()
        send_some(bank, "ab")
        bank.consume(handler)
        bank.post(minutes=1)
        assert bank.stream() == ["a", "b", "after a"]

    def test_a_message_can_be_sent_to_a_later_moment(self, bank: Bank) -> None:
        def then(self: Any, message: Due, work: Work) -> None:
            if work.due < LATER:
                work.reschedule(LATER)

        handler = bank.handler(then=then)()
        send_some(bank, "a")
        bank.consume(handler)
        assert bank.post(minutes=59) == 0
        assert bank.post(minutes=60) == 1
        bank.consume(handler, minutes=60)
        assert noted(bank, handler) == ["a", "a"]
        assert bank.stream() == ["a", "a"]


class TestLeases:
    def test_who_has_lost_a_bucket_changes_nothing(self, bank: Bank) -> None:
        handler = bank.handler()()
        send_some(bank, "a")
        buckets = Buckets(bank.database, bank.declare(type(handler)), handler)
        bucket = bucket_of("P1")
        with bank.database.begin("bucket") as connection:
            buckets.take(connection, bucket, epoch=2)
        with pytest.raises(BucketLostError):
            buckets.step(bucket, 1, 0, 10)
        assert noted(bank, handler) == []
        assert buckets.step(bucket, 2, 0, 10).handled == 1

    def test_replaying_what_the_inbox_has_changes_nothing(self, bank: Bank) -> None:
        handler = bank.handler()()
        send_some(bank, "ab")
        bank.consume(handler)
        bank.execute(
            "UPDATE ledgerbeam_progress SET position = 0 WHERE consumer = :id",
            id=bank.declare(type(handler)).id,
        )
        assert bank.consume(handler) == 0
        assert noted(bank, handler) == ["a", "b"]


class TestDefinitions:
    def test_what_is_missing_is_said_when_the_class_is_made(self) -> None:
        with pytest.raises(DefinitionError, match="topic is missing"):
            types.new_class(
                "A", (MessageHandler[Due],), exec_body=lambda body: body.update(name="a")
            )
        with pytest.raises(DefinitionError, match="its message is missing"):
            type("B", (MessageHandler,), {"name": "b", "topic": "t", "customer": "c"})
        with pytest.raises(DefinitionError, match="Due has no such field"):

            class Wrong(MessageHandler[Due]):
                name = "c"
                topic = "t"
                customer = "payee"

                def handle(self, message: Due, work: Work) -> None:
                    raise NotImplementedError

    def test_old_messages_are_brought_up_to_date(self) -> None:
        class Renamed(Message):
            schema_version = 2
            amount: int

            @classmethod
            def upgrade(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
                return {"amount": fields["sum"]}

        assert Renamed.from_stored('{"sum": 3}', 1).amount == 3
        assert Renamed.from_stored('{"amount": 4}', 2).amount == 4
        with pytest.raises(ValueError, match="write upgrade"):
            Due.from_stored("{}", 7)


class TestBooks:
    def test_they_balance_whatever_has_happened(self, bank: Bank) -> None:
        handler = bank.handler()()
        handler.fails |= {"a": OSError("no"), "d": ValueError("no")}
        send_some(bank, "abc")
        send_some(bank, "de", "P2")
        bank.send("f", minutes=500)
        bank.consume(handler)
        books = verify(bank.database)
        assert books.differences == []
        (day,) = (day for day in books.days if day.topic == bank.topic)
        assert day[2:] == (6, 5, 0, 0, 1)
        (own,) = (one for one in books.consumers if one.consumer == handler.name)
        assert own[1:] == (5, 1, 1, 3)

    @pytest.mark.parametrize(
        ("damage", "what"),
        [
            (
                "DELETE FROM ledgerbeam_stream WHERE topic = :topic AND key = 'a'",
                "not in the stream",
            ),
            (
                "DELETE FROM ledgerbeam_message WHERE topic = :topic AND key = 'a'",
                "never scheduled",
            ),
            (
                "UPDATE ledgerbeam_message SET state = 1 WHERE topic = :topic AND key = 'a'",
                "posted all the same",
            ),
            (
                "INSERT INTO ledgerbeam_stream (message_id, topic, bucket, version, due, "
                "posted_at, customer, key, payload) SELECT message_id, topic, bucket, version, "
                "due, posted_at, customer, key, payload FROM ledgerbeam_stream "
                "WHERE topic = :topic AND key = 'a'",
                "posted twice",
            ),
            (
                "DELETE FROM ledgerbeam_inbox WHERE message_id IN "
                "(SELECT id FROM ledgerbeam_message WHERE topic = :topic AND key = 'a')",
                "neither handled nor parked",
            ),
        ],
    )
    def test_what_does_not_balance_is_found(self, bank: Bank, damage: str, what: str) -> None:
        handler = bank.handler()()
        send_some(bank, "ab")
        bank.consume(handler)
        with bank.engine.connect() as connection:
            saved = verify(bank.database).differences
            assert saved == []
            connection.execute(sa.text(damage), {"topic": bank.topic_id})
            connection.commit()
        try:
            found = verify(bank.database).differences
            assert [one for one in found if what in one.what and one.messages == 1]
        finally:
            for table in ("message", "stream"):
                bank.execute(
                    f"DELETE FROM ledgerbeam_{table} WHERE topic = :topic", topic=bank.topic_id
                )
            bank.execute(
                "DELETE FROM ledgerbeam_inbox WHERE consumer = :id",
                id=bank.declare(type(handler)).id,
            )


def test_all_buckets_are_there() -> None:
    assert {bucket_of(f"P{number}") for number in range(2_000)} == set(range(BUCKETS))
