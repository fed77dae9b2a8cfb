"""What senders do, in their own transactions."""

import datetime

import pytest
import sqlalchemy as sa
from tests.messages.senders import NOON, Bank, Due

from ledgerbeam.io.errors import DatabaseError, ParameterError
from ledgerbeam.messages.model.message import bucket_of
from ledgerbeam.messages.store.send import Outgoing, cancel, reschedule, schedule, schedule_many

MINUTE = datetime.timedelta(minutes=1)


def test_a_message_exists_if_the_senders_transaction_commits(bank: Bank) -> None:
    with bank.sender() as connection:
        schedule(connection, bank.topic, Due(request="a", payer="P1"), due=NOON, key="a")
    with bank.engine.connect() as connection:
        schedule(connection, bank.topic, Due(request="b", payer="P1"), due=NOON, key="b")
        connection.rollback()
    assert bank.post() == 1
    assert bank.stream() == ["a"]


def test_messages_are_posted_when_they_are_due_and_once(bank: Bank) -> None:
    for number in range(8):
        bank.send(str(number), minutes=8 - number)
    assert bank.post(minutes=-1) == 0
    assert bank.post(minutes=5) == 5
    assert bank.post(minutes=5) == 0
    assert bank.post(minutes=60) == 3
    assert bank.stream() == ["7", "6", "5", "4", "3", "2", "1", "0"]


def test_many_messages_are_sent_at_once_whatever_is_in_them(bank: Bank) -> None:
    awkward = ["a\tb", "c\nd", "e\\N", "\\N", "f\r", "ü€ 漢", '"', "\\", "'; --"]
    with bank.engine.connect() as connection:
        count = schedule_many(
            connection,
            bank.topic,
            [
                (Due(request=text, payer="P1"), NOON + number * MINUTE, text)
                for number, text in enumerate(awkward)
            ],
        )
        # Nothing else has begun the transaction.
        connection.commit()
    assert count == len(awkward)
    bank.post(minutes=60)
    assert bank.stream() == awkward
    payloads = bank.rows(
        "SELECT payload, customer FROM ledgerbeam_stream WHERE topic = :topic ORDER BY position",
        topic=bank.topic_id,
    )
    assert [Due.model_validate_json(payload).request for payload, _ in payloads] == awkward
    assert {customer for _, customer in payloads} == {"P1"}


def test_nothing_is_sent_where_there_is_nothing(bank: Bank) -> None:
    with bank.sender() as connection:
        assert schedule_many(connection, bank.topic, []) == 0


def test_a_dictionary_is_a_message(bank: Bank) -> None:
    with bank.sender() as connection:
        schedule(connection, bank.topic, {"payer": 17, "day": datetime.date(2026, 1, 2)}, due=NOON)
        schedule_many(connection, bank.topic, [Outgoing({"payer": 18}, NOON)])
    assert bank.post() == 2
    rows = bank.rows(
        "SELECT customer, payload, key, version FROM ledgerbeam_stream WHERE topic = :topic",
        topic=bank.topic_id,
    )
    assert sorted(rows) == [
        ("17", '{"payer":17,"day":"2026-01-02"}', None, 1),
        ("18", '{"payer":18}', None, 1),
    ]


def test_the_bucket_of_a_customer_never_changes() -> None:
    assert [bucket_of(customer) for customer in ("P1", "P2", "ü")] == [17, 43, 21]


class TestMistakes:
    def test_a_topic_that_nobody_declared_is_refused(self, bank: Bank) -> None:
        with bank.sender() as connection, pytest.raises(ParameterError, match="no topic du-e"):
            schedule(connection, "du-e", {"payer": "P1"}, due=NOON)

    @pytest.mark.parametrize("fields", [{}, {"payer": ""}, {"payer": None}, {"payer": 1.5}])
    def test_a_message_without_its_customer_is_refused(
        self, bank: Bank, fields: dict[str, object]
    ) -> None:
        with bank.sender() as connection, pytest.raises(ParameterError, match="'payer'"):
            schedule(connection, bank.topic, fields, due=NOON)

    def test_a_time_without_a_zone_is_refused(self, bank: Bank) -> None:
        naive = NOON.replace(tzinfo=None)
        with bank.sender() as connection, pytest.raises(ParameterError, match="no time zone"):
            schedule(connection, bank.topic, {"payer": "P1"}, due=naive)


class TestWithdrawing:
    def test_what_is_canceled_is_never_posted(self, bank: Bank) -> None:
        bank.send("a", minutes=1)
        bank.send("b", minutes=1)
        with bank.sender() as connection:
            assert cancel(connection, bank.topic, "a") == 1
            assert cancel(connection, bank.topic, "a") == 0
            assert cancel(connection, bank.topic, "c") == 0
        bank.post(minutes=5)
        assert bank.stream() == ["b"]

    def test_what_was_posted_is_not_canceled(self, bank: Bank) -> None:
        bank.send("a")
        bank.post()
        with bank.sender() as connection:
            assert cancel(connection, bank.topic, "a") == 0
            assert reschedule(connection, bank.topic, "a", to=NOON + MINUTE) == 0
        assert bank.post(minutes=5) == 0

    def test_what_is_canceled_in_the_transaction_that_sent_it_never_was(self, bank: Bank) -> None:
        with bank.sender() as connection:
            schedule(connection, bank.topic, {"payer": "P1"}, due=NOON, key="a")
            assert cancel(connection, bank.topic, "a", due=NOON) == 1
        assert bank.post() == 0

    def test_what_is_moved_is_posted_at_its_new_time(self, bank: Bank) -> None:
        bank.send("a", minutes=1)
        with bank.sender() as connection:
            to = NOON + 10 * MINUTE
            assert reschedule(connection, bank.topic, "a", to=to, due=NOON + MINUTE) == 1
        assert bank.post(minutes=5) == 0
        assert bank.post(minutes=10) == 1
        assert bank.stream() == ["a"]

    def test_a_roll_back_leaves_it_as_it_was(self, bank: Bank) -> None:
        bank.send("a", minutes=1)
        with bank.engine.connect() as connection:
            assert cancel(connection, bank.topic, "a") == 1
            connection.rollback()
        assert bank.post(minutes=5) == 1


class TestOnPostgreSQL:
    def test_a_message_that_is_being_canceled_is_held_and_holds_up_nobody(
        self, postgres_bank: Bank
    ) -> None:
        bank = postgres_bank.for_a_test()
        for request in ("a", "b", "c"):
            bank.send(request)
        with bank.engine.connect() as undecided, bank.engine.connect() as decided:
            assert cancel(undecided, bank.topic, "a") == 1
            assert cancel(decided, bank.topic, "b") == 1
            assert bank.post() == 1
            assert bank.stream() == ["c"]
            undecided.rollback()
            decided.commit()
        assert bank.post() == 1
        assert bank.stream() == ["c", "a"]
        held = "SELECT count(*) FROM ledgerbeam_held WHERE topic = :topic"
        assert bank.rows(held, topic=bank.topic_id) == [(0,)]

    def test_a_held_message_can_still_be_canceled(self, postgres_bank: Bank) -> None:
        bank = postgres_bank.for_a_test()
        bank.send("a")
        with bank.engine.connect() as first:
            assert cancel(first, bank.topic, "a") == 1
            assert bank.post() == 0
            first.rollback()
        with bank.sender() as second:
            assert cancel(second, bank.topic, "a") == 1
        assert bank.post() == 0
        assert bank.stream() == []

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_a_transaction_that_cannot_know_is_told_so(
        self, postgres_bank: Bank, level: str
    ) -> None:
        bank = postgres_bank.for_a_test()
        bank.send("a")
        engine = bank.engine.execution_options(isolation_level=level)
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
            bank.post()
            with pytest.raises(DatabaseError, match=f"this transaction is {level}"):
                cancel(connection, bank.topic, "a")

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_a_message_of_a_transaction_with_an_old_snapshot_is_posted(
        self, postgres_bank: Bank, level: str
    ) -> None:
        bank = postgres_bank.for_a_test()
        engine = bank.engine.execution_options(isolation_level=level)
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT count(*) FROM ledgerbeam_cursor"))
            bank.post(minutes=5)
            schedule(connection, bank.topic, {"payer": "P1"}, due=NOON, key="a")
            bank.post(minutes=6)
            connection.commit()
        assert bank.post(minutes=6) == 1

    def test_savepoints_and_prepared_transactions_are_their_transaction(
        self, postgres_bank: Bank
    ) -> None:
        bank = postgres_bank.for_a_test()
        with bank.sender() as connection:
            with connection.begin_nested():
                schedule(connection, bank.topic, {"payer": "P1"}, due=NOON, key="a")
            with connection.begin_nested() as undone:
                schedule(connection, bank.topic, {"payer": "P1"}, due=NOON, key="b")
                undone.rollback()
            assert bank.post(minutes=1) == 0
        assert bank.post(minutes=1) == 1
        assert bank.stream() == ["a"]

    def test_messages_far_ahead_lie_in_partitions_of_their_own(self, postgres_bank: Bank) -> None:
        bank = postgres_bank.for_a_test()
        now = datetime.datetime.now(datetime.UTC)
        with bank.sender() as connection:
            for days in (7, 300, 4_000):
                due = now + datetime.timedelta(days=days)
                schedule(connection, bank.topic, {"payer": "P1"}, due=due, key=str(days))
        tables = dict(
            bank.rows(
                "SELECT key, tableoid::regclass::text FROM ledgerbeam_message WHERE topic = :topic",
                topic=bank.topic_id,
            )
        )
        assert len(set(tables.values())) == 3
        assert [key for key, name in tables.items() if name.endswith("default")] == ["4000"]
        with bank.sender() as connection:
            assert cancel(connection, bank.topic, "4000") == 1
