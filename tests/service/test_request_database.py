"""The request database, on SQLite and on PostgreSQL: who gets what, in which order, once."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.registry.database import Database
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.service.errors import (
    BadRequestError,
    ChangedMeanwhileError,
    IdempotencyConflictError,
    KindNotFoundError,
    RequestNotFoundError,
    RequestStateError,
    UnauthenticatedError,
)
from ledgerbeam.service.model import (
    KindRecord,
    Problem,
    RequestRecord,
    RequestState,
    Role,
    Submission,
)
from ledgerbeam.service.store import tables
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.intake import Intake
from ledgerbeam.service.store.keys import Keys, read_roles
from ledgerbeam.service.store.wake import Bell, Waiter

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=30)


class Desk:
    """Callers, a router and nodes of one request database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.intake = Intake(database)
        self.dispatch = Dispatch(database)

    def publish(self, *names: str, limit: int | None = None) -> None:
        policy = QueuePolicy(limit=limit)
        self.dispatch.publish(
            KindRecord(
                name=name,
                description="",
                parameters_schema={"type": "object"},
                code_version="1",
                policy=policy,
                seen_at=NOON,
            )
            for name in names
        )

    def ask(self, who: str = "ada", key: str | None = None, **given: Any) -> RequestRecord:
        submission = Submission(**{"kind": "close", **given})
        return self.intake.accept(submission, who=who, at=NOON, key=key)[0]

    def queue(self, who: str = "ada", **given: Any) -> str:
        asked = self.ask(who, **given)
        assert self.dispatch.admit([asked.id], "router", NOON)
        return asked.id

    def take(
        self,
        slots: int = 1,
        node: str = "n1",
        now: datetime = NOON,
        kinds: tuple[str, ...] = ("close",),
    ) -> list[RequestRecord]:
        until = now + timedelta(seconds=10)
        return self.dispatch.take(kinds, slots, node=node, now=now, lease_until=until)

    def finish(self, request: RequestRecord, node: str = "n1") -> bool:
        end = RequestState.SUCCESS
        return self.dispatch.finish(request.id, request.epoch, node, end, NOON)

    def state(self, request: str) -> RequestState:
        return self.intake.get(request).state

    def actions(self, subject: str) -> list[str]:
        return [entry.action for entry in reversed(self.intake.audit(subject=subject).items)]


@pytest.fixture
def desk(registry: Registry) -> Desk:
    return Desk(registry.database)


def at_once(count: int, call: Any) -> list[Any]:
    """Call something in several threads that begin together; gives what came of each."""
    barrier = threading.Barrier(count)
    found: list[Any] = [None] * count

    def go(number: int) -> None:
        barrier.wait()
        try:
            found[number] = call(number)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=go, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_migration_makes_the_tables_that_the_code_uses(
    desk: Desk, engine: sa.Engine, other: sa.Engine
) -> None:
    Database(other.url.render_as_string(hide_password=False)).close()
    with other.begin() as connection:
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
    for name in tables.metadata.tables:
        assert described(engine, name) == described(other, name)


def described(engine: sa.Engine, table: str) -> Any:
    found = sa.inspect(engine)
    columns = [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)]
    unique = [(c["name"], c["column_names"]) for c in found.get_unique_constraints(table)]
    indexes = [(i["name"], i["column_names"]) for i in found.get_indexes(table)]
    checks = sorted((str(c["name"]), c["sqltext"]) for c in found.get_check_constraints(table))
    keys = [(k["constrained_columns"], k["referred_table"]) for k in found.get_foreign_keys(table)]
    return columns, found.get_pk_constraint(table), unique, sorted(indexes), checks, keys


@pytest.fixture
def other(engine: sa.Engine, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    url = f"sqlite:///{request.getfixturevalue('tmp_path')}/other.db"
    if engine.dialect.name == "postgresql":
        url = request.getfixturevalue("new_schema")()
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


class TestAccepting:
    def test_a_request_is_stored_with_its_audit_entry(self, desk: Desk) -> None:
        asked = desk.ask(parameters={"day": "2026-11-30"}, why="month's end", priority=3)
        assert desk.intake.get(asked.id) == asked
        assert (asked.state, asked.requester, asked.version) == (RequestState.RECEIVED, "ada", 1)
        (entry,) = desk.intake.audit(subject=asked.id).items
        assert (entry.who, entry.action, entry.why) == ("ada", "request.received", "month's end")

    def test_the_same_key_and_body_is_the_same_request(self, desk: Desk) -> None:
        first = desk.ask(key="k", parameters={"a": 1})
        assert desk.ask(key="k", parameters={"a": 1}) == first
        assert len(desk.intake.search().items) == 1

    def test_a_key_stands_for_one_body_of_one_caller(self, desk: Desk) -> None:
        first = desk.ask(key="k", parameters={"a": 1})
        with pytest.raises(IdempotencyConflictError, match=first.id):
            desk.ask(key="k", parameters={"a": 2})
        assert desk.ask("bob", key="k", parameters={"a": 2}).id != first.id

    def test_a_key_is_forgotten_in_time(self, desk: Desk) -> None:
        first = desk.ask(key="k")
        submission = Submission(kind="close")
        tomorrow = NOON + timedelta(days=1)
        again, is_new = desk.intake.accept(submission, who="ada", at=tomorrow, key="k")
        assert is_new
        assert again.id != first.id
        desk.dispatch.forget(tomorrow + timedelta(days=1))
        with desk.database.reading() as connection:
            assert connection.execute(sa.select(tables.idempotency)).all() == []

    def test_of_several_at_once_with_one_key_one_is_stored(self, desk: Desk) -> None:
        found = at_once(6, lambda _: desk.ask(key="k").id)
        assert len(set(found)) == 1, found
        assert len(desk.intake.search().items) == 1

    def test_what_no_database_takes_as_text_is_stored_all_the_same(self, desk: Desk) -> None:
        asked = desk.ask("ada\0", why="\0", key="\0", parameters={"a": "\0"})
        assert desk.intake.get(asked.id).requester == "ada\\x00"


class TestRouting:
    def test_a_router_sees_its_kinds_and_those_of_nobody(self, desk: Desk) -> None:
        desk.publish("close", "other")
        mine, nobodys, _ = desk.ask(), desk.ask(kind="no"), desk.ask(kind="other")
        assert [r.id for r in desk.dispatch.received(["close"])] == [mine.id, nobodys.id]

    def test_a_request_is_decided_on_once(self, desk: Desk) -> None:
        desk.publish("close")
        asked = desk.ask()
        found = at_once(4, lambda _: desk.dispatch.admit([asked.id], "router", NOON))
        assert sorted(found) == [0, 0, 0, 1]
        reject = RequestState.REJECTED
        assert not desk.dispatch.settle(asked.id, reject, "router", NOON)
        assert desk.actions(asked.id) == ["request.received", "request.queued"]

    def test_a_rejection_has_every_problem(self, desk: Desk) -> None:
        asked = desk.ask()
        problems = [
            Problem(parameter="a", message="is missing"),
            Problem(parameter="b", message="?"),
        ]
        desk.dispatch.settle(
            asked.id, RequestState.REJECTED, "router", NOON, "invalid-parameter", "two", problems
        )
        found = desk.intake.get(asked.id)
        assert (found.problems, found.code, found.ended_at) == (
            tuple(problems),
            "invalid-parameter",
            NOON,
        )

    def test_a_secret_that_was_sent_is_forgotten(self, desk: Desk) -> None:
        asked = desk.ask(parameters={"password": "hunter2", "day": "2026-11-30"})
        desk.dispatch.settle(
            asked.id, RequestState.REJECTED, "router", NOON, "secret-error", hide_parameters=True
        )
        assert desk.intake.get(asked.id).parameters == {"password": "***", "day": "***"}

    def test_kinds_are_published_again_without_undoing_what_people_changed(
        self, desk: Desk
    ) -> None:
        desk.publish("close", limit=1)
        desk.intake.change_queue("close", {"limit": 4}, who="ada", at=NOON, why="")
        desk.publish("close", limit=2)
        assert desk.intake.queue("close").policy == QueuePolicy(limit=4)
        assert desk.intake.kind("close").policy == QueuePolicy(limit=2)


class TestTaking:
    def test_each_request_is_taken_by_one_node(self, desk: Desk) -> None:
        desk.publish("close")
        asked = [desk.queue() for _ in range(12)]
        found = at_once(4, lambda number: desk.take(5, node=f"n{number}"))
        taken = [request.id for mine in found for request in mine]
        assert len(taken) == len(set(taken))
        taken += [request.id for request in desk.take(12, node="last")]
        assert sorted(taken) == sorted(asked)

    def test_a_serialised_queue_has_one_at_a_time_in_order(self, desk: Desk) -> None:
        desk.publish("close", limit=1)
        asked = [desk.queue(priority=number) for number in range(3)]
        for expected in asked:
            found = at_once(3, lambda number: desk.take(2, node=f"n{number}"))
            (taken,) = [request for mine in found for request in mine]
            assert taken.id == expected
            assert desk.take(node="n9") == []
            assert desk.finish(taken, str(taken.node))

    def test_a_limit_holds_over_all_nodes(self, desk: Desk) -> None:
        desk.publish("close", limit=3)
        for _ in range(6):
            desk.queue()
        found = at_once(4, lambda number: desk.take(2, node=f"n{number}"))
        assert sum(map(len, found)) == 3
        assert desk.intake.queue("close").running == 3

    def test_priority_comes_first(self, desk: Desk) -> None:
        desk.publish("close")
        low, high = desk.queue(priority=-1), desk.queue(priority=5)
        middle = desk.queue()
        assert [r.id for r in desk.take(3)] == [high, middle, low]

    def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(self, desk: Desk) -> None:
        desk.publish("close")
        many = [desk.queue("ada") for _ in range(6)]
        assert [r.id for r in desk.take(2)] == many[:2]
        few = [desk.queue("bob") for _ in range(2)]
        waiting = [r.id for r in desk.intake.waiting("close")]
        order = [r.id for r in desk.take(6)]
        assert order == waiting == [few[0], many[2], few[1], *many[3:]]

    def test_who_was_away_has_no_turns_saved_up(self, desk: Desk) -> None:
        desk.publish("close")
        for _ in range(4):
            desk.queue("ada")
        desk.take(4)
        first = [desk.queue("bob") for _ in range(3)]
        ada = desk.queue("ada")
        assert [r.id for r in desk.take(4)] == [first[0], first[1], ada, first[2]]

    def test_many_are_admitted_together_as_if_one_by_one(self, desk: Desk) -> None:
        desk.publish("close", "other")
        asked = [
            desk.ask(who, kind=kind).id
            for kind, who in zip(
                ("close", "close", "other", "close", "close", "other", "close"),
                ("ada", "bob", "ada", "ada", "eve", "ada", "ada"),
                strict=True,
            )
        ]
        canceled = desk.ask("bob").id
        desk.intake.cancel(canceled, who="bob", at=NOON, why="")
        desk.queue("bob")
        assert desk.dispatch.admit([*asked, canceled, "nothing"], "router", LATER) == len(asked)
        found = [desk.intake.get(request) for request in asked]
        assert [each.turn for each in found] == [0, 1, 0, 1, 0, 1, 2]
        assert {(each.state, each.queued_at, each.version) for each in found} == {
            (RequestState.QUEUED, LATER, 2)
        }
        for request in asked:
            assert desk.actions(request) == ["request.received", "request.queued"]
        assert desk.actions(canceled) == ["request.received", "request.canceled"]
        # The turns go on where they were.
        assert desk.intake.get(desk.queue("ada")).turn == 3

    def test_nothing_is_taken_from_a_queue_that_is_held(self, desk: Desk) -> None:
        desk.publish("close", "other")
        held, free = desk.queue(), desk.queue(kind="other")
        desk.intake.change_queue("close", {"held": True}, who="ada", at=NOON, why="audit")
        assert [r.id for r in desk.take(5, kinds=("close", "other"))] == [free]
        assert desk.intake.queue("close").held_why == "audit"
        desk.intake.change_queue("close", {"held": False}, who="ada", at=NOON, why="")
        assert [r.id for r in desk.take(5)] == [held]

    def test_what_is_too_late_expires_instead(self, desk: Desk) -> None:
        desk.publish("close")
        late = desk.queue(start_by=NOON + timedelta(seconds=5))
        early = desk.queue(start_by=NOON + timedelta(hours=1))
        assert [r.id for r in desk.take(5, now=LATER)] == [early]
        assert desk.state(late) is RequestState.EXPIRED
        assert desk.intake.redrive(late, who="ada", at=NOON, why="").start_by is None


class TestLeases:
    def test_a_lost_request_is_taken_over_and_the_first_node_has_no_say(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        (first,) = desk.take()
        assert desk.take(node="n2") == []
        (second,) = desk.take(node="n2", now=LATER)
        assert (second.id, second.epoch, second.lost, second.node) == (first.id, 2, 1, "n2")
        assert not desk.finish(first)
        assert desk.dispatch.link(first.id, first.epoch, "n1", "run") is None
        assert desk.dispatch.renew({first.id: 1}, "n1", LATER) == []
        assert not desk.dispatch.hand_over(first.id, 1, "n1", NOON)
        assert desk.finish(second, "n2")

    def test_a_node_that_takes_over_from_itself_is_another_epoch(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        (first,) = desk.take()
        (second,) = desk.take(now=LATER)
        assert not desk.finish(first)
        assert desk.finish(second)

    def test_of_several_nodes_one_takes_over(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        desk.take()
        found = at_once(4, lambda number: desk.take(node=f"n{number + 2}", now=LATER))
        assert sum(map(len, found)) == 1

    def test_a_lost_request_keeps_the_place_in_a_serialised_queue(self, desk: Desk) -> None:
        desk.publish("close", limit=1)
        first, second = desk.queue(), desk.queue()
        desk.take()
        (again,) = desk.take(5, node="n2", now=LATER)
        assert again.id == first
        assert desk.finish(again, "n2")
        assert [r.id for r in desk.take(node="n2")] == [second]

    def test_a_lease_that_is_renewed_is_kept(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        (mine,) = desk.take()
        kept = desk.dispatch.renew({mine.id: 1}, "n1", LATER + timedelta(seconds=10))
        assert [r.id for r in kept] == [mine.id]
        assert desk.take(node="n2", now=LATER) == []

    def test_what_is_handed_over_is_taken_at_once_and_no_node_was_lost(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        (mine,) = desk.take()
        assert desk.dispatch.hand_over(mine.id, 1, "n1", NOON)
        (again,) = desk.take(node="n2", now=NOON + timedelta(milliseconds=1))
        assert (again.epoch, again.lost) == (2, 0)

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE request SET state = 'RUNNING'",
            "UPDATE request SET state = 'SUCCESS'",
            "UPDATE request SET ended_at = received_at",
            "UPDATE request SET run_id = 'none'",
        ],
    )
    def test_the_database_itself_refuses(
        self, desk: Desk, engine: sa.Engine, statement: str
    ) -> None:
        asked = desk.ask()
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(sa.text(statement))
        assert desk.intake.get(asked.id) == asked


class TestPeople:
    def test_a_request_that_waits_is_canceled_at_once(self, desk: Desk) -> None:
        desk.publish("close")
        for asked in (desk.ask().id, desk.queue()):
            desk.intake.cancel(asked, who="bob", at=NOON, why="a mistake")
            assert desk.state(asked) is RequestState.CANCELED
            with pytest.raises(RequestStateError, match="CANCELED: it has ended"):
                desk.intake.cancel(asked, who="bob", at=NOON, why="")
        assert desk.take(5) == []

    def test_one_that_runs_is_told(self, desk: Desk) -> None:
        desk.publish("close")
        desk.queue()
        (mine,) = desk.take()
        told = desk.intake.cancel(mine.id, who="bob", at=NOON, why="a mistake")
        assert (told.state, told.cancel_why) == (RequestState.RUNNING, "a mistake")

    def test_two_people_do_not_undo_each_other(self, desk: Desk) -> None:
        desk.publish("close")
        desk.intake.change_queue("close", {"held": True}, who="ada", at=NOON, why="", etag=1)
        with pytest.raises(ChangedMeanwhileError) as caught:
            desk.intake.change_queue("close", {"limit": 2}, who="bob", at=NOON, why="", etag=1)
        assert caught.value.etag == "2"
        asked = desk.ask()
        with pytest.raises(ChangedMeanwhileError):
            desk.intake.cancel(asked.id, who="bob", at=NOON, why="", etag=7)
        assert desk.state(asked.id) is RequestState.RECEIVED

    def test_only_what_was_put_aside_is_redriven(self, desk: Desk) -> None:
        desk.publish("close")
        asked = desk.queue()
        with pytest.raises(RequestStateError, match="DEAD or EXPIRED"):
            desk.intake.redrive(asked, who="ada", at=NOON, why="")
        (mine,) = desk.take()
        desk.dispatch.finish(mine.id, 1, "n1", RequestState.DEAD, NOON, "attempt-lost", "lost")
        desk.intake.redrive(asked, who="ada", at=NOON, why="memory was doubled")
        assert desk.dispatch.admit([asked], "router", NOON)
        (again,) = desk.take()
        assert (again.epoch, again.lost, again.error) == (2, 0, None)

    def test_what_is_not_there_is_said(self, desk: Desk) -> None:
        with pytest.raises(RequestNotFoundError):
            desk.intake.get("x")
        for call in (desk.intake.kind, desk.intake.queue, desk.intake.waiting):
            with pytest.raises(KindNotFoundError):
                call("x")
        with pytest.raises(KindNotFoundError):
            desk.intake.change_queue("x", {}, who="ada", at=NOON, why="")

    def test_a_limit_of_nothing_is_refused(self, desk: Desk) -> None:
        desk.publish("close")
        with pytest.raises(ParameterError, match="limit"):
            desk.intake.change_queue("close", {"limit": 0}, who="ada", at=NOON, why="")


class TestLists:
    def test_pages_follow_each_other_while_requests_come(self, desk: Desk) -> None:
        asked = [desk.ask().id for _ in range(5)]
        seen, cursor = [], None
        while True:
            page = desk.intake.search(limit=2, cursor=cursor)
            seen += [r.id for r in page.items]
            desk.ask("late")
            cursor = page.next
            if cursor is None:
                break
        assert seen == asked[::-1]

    def test_filters(self, desk: Desk) -> None:
        desk.publish("close")
        mine = desk.ask("ada")
        other = desk.ask("bob", kind="other")
        desk.dispatch.settle(mine.id, RequestState.REJECTED, "r", NOON, None, "100% of_it")
        for given, expected in (
            ({"kind": "close"}, mine),
            ({"requester": "bob"}, other),
            ({"state": RequestState.REJECTED}, mine),
            ({"error": "0% of_"}, mine),
            ({"kinds": ["other"]}, other),
        ):
            assert [r.id for r in desk.intake.search(**given).items] == [expected.id]
        assert desk.intake.search(error="0_ of").items == []
        assert desk.intake.search(kinds=[]).items == []

    @pytest.mark.parametrize("looked_at", [1, 2, 5_000])
    def test_errors_are_searched_page_by_page(
        self, desk: Desk, looked_at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ledgerbeam.service.store.reading.LOOKED_AT", looked_at)
        desk.publish("close")
        asked = [desk.ask("ada", kind=("close", "other")[number // 3 % 2]) for number in range(9)]
        for number, each in enumerate(asked[:8]):
            error = "100% of_it" if number % 3 else "Disk full"
            desk.dispatch.settle(each.id, RequestState.REJECTED, "r", NOON, None, error)
        for text, kinds, numbers in (
            ("% of_", None, (7, 5, 4, 2, 1)),
            ("Disk", ["close", "other"], (6, 3, 0)),
            ("Disk", ["other"], (3,)),
            ("disk", None, ()),
        ):
            found, cursor = [], None
            while True:
                page = desk.intake.search(error=text, kinds=kinds, cursor=cursor, limit=2)
                found += [request.id for request in page.items]
                cursor = page.next
                if cursor is None:
                    break
                assert (page.looked_back_to is None) == (len(page.items) == 2)
            assert found == [asked[number].id for number in numbers]

    @pytest.mark.parametrize("cursor", ["x", "", "W10", "WyJhIl0", "\u00e4", "W3RydWVd"])
    def test_a_cursor_of_ones_own_making_is_refused(self, desk: Desk, cursor: str) -> None:
        with pytest.raises(BadRequestError, match="cursor"):
            desk.intake.search(cursor=cursor)


class TestKeys:
    def test_a_key_is_checked_by_its_hash(self, desk: Desk, engine: sa.Engine) -> None:
        keys = Keys(desk.database)
        key = keys.create("ada", {"*": Role.VIEWER}, who="root", at=NOON)
        assert keys.check(key, NOON).name == "ada"
        with engine.connect() as connection:
            stored = str(connection.execute(sa.select(tables.api_key)).all())
        assert key.split("_", 2)[2] not in stored
        for wrong in (key[:-1], key + "x", "", "lb_", "lb__", key.upper(), key.removeprefix("lb_")):
            with pytest.raises(UnauthenticatedError):
                keys.check(wrong, NOON)

    def test_it_ends_when_it_expires_or_is_revoked_with_its_browsers(self, desk: Desk) -> None:
        keys = Keys(desk.database)
        soon = keys.create("ada", {}, who="root", at=NOON, expires_at=LATER)
        with pytest.raises(UnauthenticatedError, match="expired"):
            keys.check(soon, LATER)
        key = keys.create("bob", {}, who="root", at=NOON)
        browser = keys.sign_in(key, NOON)
        assert keys.check(browser, NOON).name == "bob"
        (id_,) = [found.id for found in keys.list() if found.name == "bob"]
        keys.revoke(id_, who="root", at=NOON, why="it was in a mail")
        for each in (key, browser):
            with pytest.raises(UnauthenticatedError, match="revoked"):
                keys.check(each, NOON)
        with pytest.raises(ParameterError):
            keys.revoke(id_, who="root", at=NOON, why="")

    def test_roles_are_read_by_kind(self) -> None:
        roles = read_roles(["viewer", "close=operator"])
        assert roles == {"*": Role.VIEWER, "close": Role.OPERATOR}
        with pytest.raises(ParameterError, match="role boss"):
            read_roles(["boss"])


def test_whoever_waits_is_woken(desk: Desk) -> None:
    bell = Bell(desk.database)
    listens, woken, stopping = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        # It looks again by itself only when the test has given up.
        with Waiter(desk.database, stopping, shortest=300) as waiter:
            waiter.wait()
            listens.set()
            while not desk.intake.search().items:
                waiter.wait()
            woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert listens.wait(60)
    desk.ask()
    bell.ring()
    assert woken.wait(60)
    thread.join()
    # Nor does it wait where it is told to stop.
    with Waiter(desk.database, stopping, shortest=300) as waiter:
        waiter.wait()
        threading.Timer(0.1, stopping.set).start()
        before = time.monotonic()
        waiter.wait()
        waiter.wait()
        assert time.monotonic() - before < 200
    bell.close()
