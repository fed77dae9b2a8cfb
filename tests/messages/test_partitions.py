"""Partitions on PostgreSQL: made ahead, without a row lost on its way out of the default one."""

import datetime
from collections.abc import Callable

import pytest
from tests.messages.senders import Bank

from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.model.message import to_microseconds
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.partitions import STREAM_ROWS, WEEKS, make_partitions
from ledgerbeam.messages.store.send import cancel, schedule

WEEK = datetime.timedelta(weeks=1)


@pytest.mark.slow
def test_messages_leave_the_default_partition_when_theirs_is_made(
    new_schema: Callable[[], str],
) -> None:
    url = new_schema()
    now = datetime.datetime.now(datetime.UTC)
    with MessageDatabase(url) as database:
        database.migrate()
        bank = Bank(url, database).for_a_test()
        dues = {"near": 1, "far": WEEKS + 1, "farther": WEEKS + 500}
        with bank.sender() as connection:
            for key, weeks in dues.items():
                due = now + weeks * WEEK
                schedule(connection, bank.topic, {"payer": "P1"}, due=due, key=key)

        def tables() -> dict[str, str]:
            select = "SELECT key, tableoid::regclass::text FROM ledgerbeam_message"
            return dict(bank.rows(select))

        before = tables()
        assert before["far"] == before["farther"] == "ledgerbeam_message_default"
        with database.begin("partitions") as connection:
            assert make_partitions(connection, to_microseconds(now)) == []
            made = make_partitions(connection, to_microseconds(now + 3 * WEEK))
        assert len(made) == 3
        after = tables()
        assert after["far"] in made
        assert {key: after[key] for key in ("near", "farther")} == {
            key: before[key] for key in ("near", "farther")
        }
        # It is found where it lies now, by whoever wants to withdraw it and by the scheduler.
        with bank.engine.connect() as connection:
            assert cancel(connection, bank.topic, "far") == 1
            connection.rollback()
        minutes = (
            now + (WEEKS + 2) * WEEK - datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
        )
        assert bank.post(minutes=minutes.total_seconds() / 60) == 2
        assert verify(database).differences == []


@pytest.mark.slow
def test_the_stream_has_partitions_ahead_of_its_end(new_schema: Callable[[], str]) -> None:
    url = new_schema()
    with MessageDatabase(url) as database:
        database.migrate()
        bank = Bank(url, database).for_a_test()
        bank.execute(f"SELECT setval('ledgerbeam_stream_position', {STREAM_ROWS - 2})")
        for number in range(3):
            bank.send(str(number))
        assert bank.post() == 3
        select = "SELECT DISTINCT tableoid::regclass::text FROM ledgerbeam_stream ORDER BY 1"
        assert bank.rows(select) == [("ledgerbeam_stream_0",), ("ledgerbeam_stream_1",)]
        with database.begin("partitions") as connection:
            assert make_partitions(connection, database.now(connection)) == ["ledgerbeam_stream_2"]
