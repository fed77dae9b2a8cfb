"""What people do to a rollout: look at it, promote it, approve that, roll it back."""

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import sqlalchemy as sa

from ledgerbeam.io.errors import IllegalMoveError, ParameterError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import find_consumer
from ledgerbeam.messages.consumer.rollouts import lock_rollout, write_entry
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import INBOX, PARKED, ROLLOUT
from ledgerbeam.rules.failure_limit import FailureLimit
from ledgerbeam.rules.rollout import NOBODY

ASKED, PROMOTED, ROLLED_BACK = "asked", "promoted", "rolled back"


class RolloutEntry(NamedTuple):
    """Something that was done to a rollout.

    Attributes:
        number: counts the entries of the consumer.
        at: when it was done.
        what: `declared` by the definition, `asked`, `promoted` or `rolled back`.
        rule: the number of the new rule.
        old_rule: the number of the other rule.
        stage: the stage from then on.
        asked: the stage for which a second person's approval was asked; None if none was.
        who: user and machine.
        why: the reason.
        handled: messages that the new rule had handled at the stage of before; None if that wasn't
            asked.
        failed: those that had failed by it.
        forced: whether it was to be done in spite of failures.
    """

    number: int
    at: datetime.datetime
    what: str
    rule: int
    old_rule: int
    stage: str
    asked: str | None
    who: str
    why: str
    handled: int | None
    failed: int | None
    forced: bool


class RolloutStanding(NamedTuple):
    """How a rollout stands.

    Attributes:
        consumer: its name.
        rule: the number of the new rule.
        old_rule: the number of the other rule.
        stage: the present stage.
        since: when it began.
        handled: messages that the new rule has handled since then.
        failed: those that have failed by it since then: dead letters, and those that will be tried
            again.
        next: the stage that follows; None at the last one.
        asked: the stage that waits for a second person's approval; None if none does.
        asked_by: who has asked for it.
    """

    consumer: str
    rule: int
    old_rule: int
    stage: str
    since: datetime.datetime
    handled: int
    failed: int
    next: str | None
    asked: str | None
    asked_by: str | None


class _Record(NamedTuple):
    """A rollout that was found: its consumer, and all entries of the consumer in their order."""

    consumer: str
    id: int
    entries: Sequence[sa.Row[Any]]

    @property
    def last(self) -> sa.Row[Any]:
        return self.entries[-1]

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(self.last.plan)
        return plan

    @property
    def begun(self) -> sa.Row[Any]:
        """The entry with which the present stage has begun."""
        begun = self.last
        for entry in reversed(self.entries):
            if (entry.rule, entry.stage) != (begun.rule, begun.stage):
                break
            begun = entry
        return begun

    @property
    def stages(self) -> list[str]:
        return [NOBODY, *self.plan["stages"]]

    @property
    def next(self) -> str | None:
        later = self.stages[self.stages.index(self.last.stage) + 1 :]
        return later[0] if later else None


def rollout_of(
    database: MessageDatabase, consumer: str
) -> tuple[RolloutStanding, list[RolloutEntry]]:
    """How the rollout of a consumer stands, and what was done to its rollouts so far.

    Raises:
        ParameterError: there is no such consumer, or it has none.
    """
    with database.begin("the rollout") as connection:
        record = _found(connection, consumer)
        handled, failed = _counts(connection, record)
    last = record.last
    standing = RolloutStanding(
        consumer,
        last.rule,
        last.old_rule,
        last.stage,
        to_datetime(record.begun.at),
        handled,
        failed,
        record.next,
        last.asked,
        last.who if last.asked else None,
    )
    return standing, [
        RolloutEntry(
            row.number,
            to_datetime(row.at),
            row.what,
            row.rule,
            row.old_rule,
            row.stage,
            row.asked,
            row.who,
            row.why,
            row.handled,
            row.failed,
            bool(row.forced),
        )
        for row in record.entries
    ]


def promote(
    database: MessageDatabase,
    consumer: str,
    stage: str,
    *,
    who: str,
    why: str,
    force: bool = False,
) -> str:
    """Bring a rollout to its next stage; or ask for that, if the definition wants approval.

    Args:
        database: of the messages.
        consumer: its name.
        stage: the next one. It is named so that of two people who promote at once only one does.
        who: user and machine.
        why: the reason.
        force: in spite of failures, or though nothing was handled by the new rule.

    Returns:
        What was done: `promoted` or `asked`.

    Raises:
        IllegalMoveError: it isn't the next stage, or too many have failed.
        ParameterError: there is no such consumer, it has no rollout, or there is no reason.
    """
    _check_reason(why)
    with _held(database, consumer) as (connection, record):
        counts = _check_promotion(connection, record, stage, force)
        values = {"who": who, "why": why, "forced": force, **counts}
        if record.plan["approval"]:
            values |= {"what": ASKED, "asked": stage}
        else:
            values |= {"what": PROMOTED, "stage": stage}
        _write(connection, record, values)
    return str(values["what"])


def approve(database: MessageDatabase, consumer: str, stage: str, *, who: str, why: str) -> None:
    """Bring a rollout to the stage that another person has asked for.

    Args:
        database: of the messages.
        consumer: its name.
        stage: the one that was asked for.
        who: user and machine; the user isn't the one who has asked.
        why: the reason.

    Raises:
        IllegalMoveError: nobody has asked for it, or the same user has; or too many have failed,
            and it wasn't asked for in spite of that.
        ParameterError: there is no such consumer, it has no rollout, or there is no reason.
    """
    _check_reason(why)
    with _held(database, consumer) as (connection, record):
        last = record.last
        if last.asked != stage:
            waits = f"{last.asked} waits for approval" if last.asked else "nothing waits"
            _refuse(record, stage, f"nobody has asked for {stage}, {waits}: ask by promote")
        if _user(who) == _user(last.who):
            _refuse(record, stage, f"{last.who} has asked for it: another user must approve it")
        counts = _check_promotion(connection, record, stage, bool(last.forced))
        done = {"what": PROMOTED, "stage": stage, "forced": bool(last.forced)}
        _write(connection, record, {**done, "who": who, "why": why, **counts})


def roll_back(
    database: MessageDatabase, consumer: str, stage: str = NOBODY, *, who: str, why: str
) -> None:
    """Bring a rollout back to an earlier stage; that needs nobody's approval.

    Args:
        database: of the messages.
        consumer: its name.
        stage: an earlier one, or `"none"`.
        who: user and machine.
        why: the reason.

    Raises:
        IllegalMoveError: it isn't an earlier stage.
        ParameterError: there is no such consumer, it has no rollout, or there is no reason.
    """
    _check_reason(why)
    with _held(database, consumer) as (connection, record):
        earlier = record.stages[: record.stages.index(record.last.stage)]
        if stage not in earlier:
            _refuse(
                record,
                stage,
                f"rule {record.last.rule} is at the stage {record.last.stage} and can't be rolled "
                f"back to {stage}: earlier stages are {', '.join(earlier) or 'none at all'}",
            )
        handled, failed = _counts(connection, record)
        done = {"what": ROLLED_BACK, "stage": stage, "handled": handled, "failed": failed}
        _write(connection, record, {**done, "who": who, "why": why})


@contextmanager
def _held(database: MessageDatabase, consumer: str) -> Iterator[tuple[sa.Connection, _Record]]:
    """A transaction for whose end others wait who would move the rollout."""
    with database.begin("the rollout") as connection:
        lock_rollout(connection, find_consumer(connection, consumer).id)
        yield connection, _found(connection, consumer)
        failpoint("rollout.before-commit")
    failpoint("rollout.committed")


def _found(connection: sa.Connection, consumer: str) -> _Record:
    found = find_consumer(connection, consumer)
    select = ROLLOUT.select().where(ROLLOUT.c.consumer == found.id).order_by(ROLLOUT.c.number)
    entries = connection.execute(select).all()
    if not entries:
        raise ParameterError(
            f"consumer {consumer} has no rollout on record: give its handler two rules and a "
            "rollout, and start it",
            parameter="consumer",
            value=consumer,
        )
    return _Record(consumer, found.id, entries)


def _write(connection: sa.Connection, record: _Record, values: dict[str, Any]) -> None:
    failpoint("rollout.before-entry")
    write_entry(connection, record.id, record.last, **values)


def _check_reason(why: str) -> None:
    if not why.strip():
        raise ParameterError(
            "--why is empty: say why, for the record", parameter="--why", value=why
        )


def _check_promotion(
    connection: sa.Connection, record: _Record, stage: str, force: bool
) -> dict[str, int]:
    """What the new rule has done at the present stage, if that allows the next one."""
    last = record.last
    if stage != record.next:
        after = f"the next stage is {record.next}" if record.next else "it is the last stage"
        _refuse(
            record, stage, f"rule {last.rule} is at the stage {last.stage}, not {stage}: {after}"
        )
    handled, failed = _counts(connection, record)
    limit = FailureLimit(record.plan["failures"])
    if last.stage != NOBODY and not force:
        advice = "--force promotes it all the same"
        if not limit.allows(failed, handled + failed):
            _refuse(
                record,
                stage,
                f"at the stage {last.stage} rule {last.rule} has handled {handled:,} messages, and "
                f"{failed:,} have failed: {limit.text} may: see messages dead {record.consumer}; "
                f"{advice}",
            )
        if not handled:
            _refuse(
                record,
                stage,
                f"at the stage {last.stage} rule {last.rule} hasn't handled a message yet: wait; "
                f"{advice}",
            )
    return {"handled": handled, "failed": failed}


def _counts(connection: sa.Connection, record: _Record) -> tuple[int, int]:
    """Messages that the new rule has handled at the present stage, and that have failed by it."""
    since = record.begun.number
    handled = sa.select(sa.func.count()).where(INBOX.c.consumer == record.id, INBOX.c.move >= since)
    failed = sa.select(sa.func.count()).where(
        PARKED.c.consumer == record.id,
        PARKED.c.move >= since,
        (PARKED.c.tries > 0) | PARKED.c.dead_at.is_not(None),
    )
    return connection.execute(handled).scalar_one(), connection.execute(failed).scalar_one()


def _refuse(record: _Record, stage: str, why: str) -> NoReturn:
    raise IllegalMoveError(
        f"consumer {record.consumer}: {why}", from_status=record.last.stage, to_status=stage
    )


def _user(who: str) -> str:
    return who.rpartition("@")[0]
