"""What is past its retention leaves for files; payloads are erased; the books always balance."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.messages.senders import NOON, Bank
from tests.messages.test_replay import on_beam, outcomes

from ledgerbeam.io.errors import DamagedFileError, InputNotFoundError, ParameterError, StorageError
from ledgerbeam.messages.archive import leave
from ledgerbeam.messages.archive.erase import erase, erasures
from ledgerbeam.messages.archive.files import find_manifest
from ledgerbeam.messages.archive.leave import Batch
from ledgerbeam.messages.books.verify import ConsumerBooks, TopicDay, verify
from ledgerbeam.messages.consumer.dead_letters import dead_letters, redrive
from ledgerbeam.messages.model.message import to_microseconds
from ledgerbeam.messages.store.partitions import STREAM_ROWS
from ledgerbeam.messages.store.send import cancel, reschedule
from ledgerbeam.messages.store.topics import set_retention

EVENING = NOON + datetime.timedelta(hours=6)


@pytest.fixture
def own(fresh: Bank) -> Bank:
    """A database without other tests' messages."""
    return fresh.for_a_test()


def send(bank: Bank, letters: str, payer: str = "P1") -> None:
    for number, letter in enumerate(letters):
        bank.send(letter, payer, minutes=number / 1_000)
    bank.post(minutes=1)


def leave_all(bank: Bank, folder: Path, before: datetime.datetime = EVENING) -> list[Batch]:
    return list(leave.archive(bank.database, to_microseconds(before), str(folder)))


def books(bank: Bank) -> tuple[list[TopicDay], list[ConsumerBooks]]:
    found = verify(bank.database)
    assert found.differences == []
    return found.days, found.consumers


def in_stream(bank: Bank) -> list[str]:
    return bank.stream()


def payloads(folder: Path) -> str:
    """All that files of messages say."""
    texts = []
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(file)
        if "payload" in table.column_names:
            texts += table.column("payload").to_pylist() + table.column("key").to_pylist()
    return " ".join(map(str, texts))


def test_what_is_handled_and_withdrawn_leaves_and_the_books_stay(own: Bank, tmp_path: Path) -> None:
    kind = own.handler()
    send(own, "ab")
    own.send("canceled", minutes=30)
    own.send("moved", minutes=30)
    own.send("later", minutes=60 * 24)
    with own.sender() as connection:
        cancel(connection, own.topic, "canceled")
        reschedule(connection, own.topic, "moved", to=NOON + datetime.timedelta(days=2))
    own.consume(kind())
    before = books(own)
    (batch,) = leave_all(own, tmp_path)
    assert batch == (1, str(tmp_path / "batch-00001"), 2, 2)
    assert in_stream(own) == []
    assert own.rows("SELECT key FROM ledgerbeam_message ORDER BY key") == [("later",), ("moved",)]
    assert own.rows("SELECT * FROM ledgerbeam_inbox") == []
    assert books(own) == before
    manifest = find_manifest(batch.uri)
    assert manifest is not None
    assert sorted((each.table, each.file.rows) for each in manifest.files) == [
        ("inbox", 2), ("stream", 2), ("withdrawn", 2),
    ]  # fmt: skip
    assert leave_all(own, tmp_path) == []
    send(own, "c")
    assert own.consume(kind()) == 1


def test_what_isnt_handled_or_was_posted_later_stays(own: Bank, tmp_path: Path) -> None:
    first, second = own.handler()(), own.handler()()
    send(own, "abc")
    first.fails["b"] = ValueError("no such account")
    own.consume(first)
    own.declare(type(second))
    assert leave_all(own, tmp_path) == []
    own.consume(second, limit=1)
    assert leave_all(own, tmp_path, NOON) == []
    leave_all(own, tmp_path)
    # The dead letter is still there for a person to decide about.
    assert in_stream(own) == ["b"]
    assert [letter.key for letter in dead_letters(own.database, first.name)] == ["b"]
    redrive(own.database, first.name)
    first.fails.clear()
    own.consume(first, minutes=60)
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [1]
    _, of_consumers = books(own)
    assert [row[1:] for row in of_consumers] == [(3, 3, 0, 0)] * 2


def test_a_topic_has_a_retention_of_its_own(own: Bank, tmp_path: Path) -> None:
    other = own.for_a_test()
    send(own, "a")
    send(other, "b")
    days = (datetime.datetime.now(datetime.UTC) - NOON).days
    with own.sender() as connection:
        set_retention(connection, other.topic, days + 10)
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [1]
    assert (in_stream(own), in_stream(other)) == ([], ["b"])
    with own.sender() as connection:
        set_retention(connection, other.topic, days - 1)
    leave_all(own, tmp_path)
    assert in_stream(other) == []


def test_rows_leave_in_bounded_batches(
    own: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "ROWS", 2)
    monkeypatch.setattr(leave, "ROWS_PER_FILE", 1)
    kind = own.handler()
    send(own, "abcde")
    own.consume(kind())
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [2, 2, 1]
    assert books(own)[1][0][1:] == (5, 5, 0, 0)


def test_partitions_leave_as_a_whole(fresh_postgres: Bank, tmp_path: Path) -> None:
    own = fresh_postgres.for_a_test()
    handler = own.handler()()
    send(own, "abcd")
    handler.fails["b"] = ValueError("no such account")
    own.consume(handler)
    own.execute(f"SELECT setval('ledgerbeam_stream_position', {STREAM_ROWS})")
    send(own, "ef")
    own.consume(handler)
    first = datetime.datetime(2026, 11, 2, tzinfo=datetime.UTC)
    bounds = [to_microseconds(first + datetime.timedelta(weeks=number)) for number in (0, 1)]
    own.execute(
        "CREATE TABLE ledgerbeam_message_20261102 PARTITION OF ledgerbeam_message "
        f"FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})"
    )
    before = books(own)
    assert [batch.messages for batch in leave_all(own, tmp_path)] == [3, 2]
    # Those of other schemas are shown with their schema.
    partitions = own.rows("SELECT CAST(CAST(inhrelid AS regclass) AS text) FROM pg_inherits")
    tables = [row[0] for row in partitions]
    assert "ledgerbeam_stream_1" in tables
    assert "ledgerbeam_stream_0" not in tables
    assert "ledgerbeam_message_20261102" not in tables
    assert own.rows("SELECT key FROM ledgerbeam_stream_default") == [("b",)]
    assert books(own) == before


def test_an_archive_is_replayed(own: Bank, sqlite_fresh: Bank, tmp_path: Path) -> None:
    kind = own.handler()
    send(own, "abc")
    send(own, "d", "P2")
    own.consume(kind())
    folder = tmp_path / "archive"
    leave_all(own, folder)
    given = {"database": sqlite_fresh.url, "stream": str(folder)}
    for _ in range(2):
        manifest = on_beam(own, kind, tmp_path / "results", **given)
        assert outcomes(manifest) == {"P1": ["handled"] * 3, "P2": ["handled"]}
    # Its inbox entries have left with them.
    with pytest.raises(ParameterError, match="may have handled before"):
        on_beam(own, kind, tmp_path / "own", stream=str(folder))
    again = on_beam(own, kind, tmp_path / "own", stream=str(folder), consumer="once-more")
    assert outcomes(again) == {"P1": ["handled"] * 3, "P2": ["handled"]}
    books(own)
    early = NOON - datetime.timedelta(days=9)
    options = {**given, "from": early, "to": early + datetime.timedelta(days=1)}
    with pytest.raises(InputNotFoundError, match="nothing of"):
        on_beam(own, kind, tmp_path / "results", **options)
    with pytest.raises(InputNotFoundError, match="no archive"):
        on_beam(own, kind, tmp_path / "results", stream=str(tmp_path / "results"))


def test_somebody_elses_archive_isnt_written_into(own: Bank, tmp_path: Path) -> None:
    send(own, "a")
    name = f"stream-{own.topic_id}-00000-v1.parquet"
    (tmp_path / "batch-00001").mkdir()
    (tmp_path / "batch-00001" / name).write_text("of another database")
    with pytest.raises(StorageError, match="give another --output"):
        leave_all(own, tmp_path)
    assert in_stream(own) == ["a"]


class TestErasing:
    def test_payloads_are_gone_everywhere_and_the_books_stay(
        self, own: Bank, tmp_path: Path
    ) -> None:
        handler = own.handler()()
        send(own, "ab", "P1")
        send(own, "c", "P2")
        own.consume(handler)
        leave_all(own, tmp_path)
        send(own, "de", "P1")
        handler.fails["e"] = ValueError("no account 4711 of P1")
        own.consume(handler)
        before = books(own)
        done = erase(own.database, "P1", who="ann@laptop", why="asked for it")
        assert done[2:] == ("P1", "ann@laptop", "asked for it", 2, 0, 2)
        assert erasures(own.database) == [done]
        left = "SELECT key, payload FROM {} WHERE customer = 'P1' AND payload <> '{{}}'"
        for table in ("ledgerbeam_message", "ledgerbeam_stream"):
            assert own.rows(left.format(table).replace(":", "")) == []
        (letter,) = dead_letters(own.database, handler.name)
        assert (letter.error, letter.key, letter.payload) == ("erased", None, "{}")
        assert payloads(tmp_path) == '{} {} {"request":"c","payer":"P2"} None None c'
        assert books(own) == before
        again = erase(own.database, "P1", who="bob@laptop", why="once more")
        assert again[5:] == (0, 0, 2)

    def test_what_is_due_or_in_flight_is_refused_or_withdrawn(
        self, own: Bank, tmp_path: Path
    ) -> None:
        kind = own.handler()
        own.declare(kind)
        send(own, "a", "P1")
        own.send("later", "P1", minutes=600)
        asked: dict[str, Any] = {"who": "ann@laptop", "why": "asked for it"}
        with pytest.raises(ParameterError, match="has 1 messages that are due later and 1 that"):
            erase(own.database, "P1", **asked)
        assert '"later"' in str(own.rows("SELECT payload FROM ledgerbeam_message"))
        done = erase(own.database, "P1", **asked, cancel=True)
        assert (done.messages, done.canceled) == (2, 2)
        assert own.post(minutes=700) == 0
        assert own.consume(kind()) == 0
        assert books(own)[1][0][1:] == (1, 0, 1, 0)
        with pytest.raises(ParameterError, match="--why is empty"):
            erase(own.database, "P1", who="ann@laptop", why=" ")

    def test_a_damaged_archive_is_told(self, own: Bank, tmp_path: Path) -> None:
        send(own, "a", "P1")
        (batch,) = leave_all(own, tmp_path)
        (file,) = Path(batch.uri).glob("stream-*")
        file.unlink()
        with pytest.raises(DamagedFileError, match="gone"):
            erase(own.database, "P1", who="ann@laptop", why="asked for it")
        (entry,) = erasures(own.database)
        assert entry.archived is None
