"""What people do to a consumer's rollout: look at it, promote it, approve that, roll it back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.model.rollout import (
    Counts,
    RolloutEntry,
    RolloutHistory,
    RolloutStanding,
    Values,
    approval,
    promotion,
    step_back,
)
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import find_consumer
from ledgerbeam.messages.consumer.rollouts import entry_of, lock_rollout, write_entry
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import INBOX, PARKED, ROLLOUT
from ledgerbeam.rules.rollout import NOBODY


def rollout_of(
    database: MessageDatabase, consumer: str
) -> tuple[RolloutStanding, list[RolloutEntry]]:
    """How the rollout of a consumer stands, and what was done to its rollouts so far.

    Raises:
        ParameterError: there is no such consumer, or it has none.
    """
    with database.begin("the rollout") as connection:
        record = _found(connection, consumer)
        return record.history.standing(record.counts(connection)), [*record.history.entries]


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

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.promotion`.

    Returns:
        What was done: `promoted` or `asked`.

    Raises:
        ParameterError: there is no such consumer, or it has no rollout.
    """
    with _held(database, consumer) as (connection, record):
        counts = record.counts(connection)
        values = promotion(record.history, stage, counts, who=who, why=why, force=force)
        record.write(connection, values)
    return str(values["what"])


def approve(
    database: MessageDatabase,
    consumer: str,
    stage: str,
    *,
    who: str,
    why: str,
    comparison: str = "",
) -> None:
    """Bring a rollout to the stage that another person has asked for.

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.approval`.

    Raises:
        ParameterError: there is no such consumer, or it has no rollout.
    """
    with _held(database, consumer) as (connection, record):
        counts = record.counts(connection)
        said = {"who": who, "why": why, "comparison": comparison}
        record.write(connection, approval(record.history, stage, counts, **said))


def roll_back(
    database: MessageDatabase, consumer: str, stage: str = NOBODY, *, who: str, why: str
) -> None:
    """Bring a rollout back to an earlier stage; that needs nobody's approval.

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.step_back`.

    Raises:
        ParameterError: there is no such consumer, or it has no rollout.
    """
    with _held(database, consumer) as (connection, record):
        counts = record.counts(connection)
        record.write(connection, step_back(record.history, stage, counts, who=who, why=why))


class _Record(NamedTuple):
    """A rollout that was found: the number of its consumer, its last row, and its history."""

    id: int
    last: sa.Row[Any]
    history: RolloutHistory

    def counts(self, connection: sa.Connection) -> Counts:
        """Messages that the new rule has handled at the present stage, and that have failed."""
        since = self.history.begun.number
        handled = sa.select(sa.func.count()).where(
            INBOX.c.consumer == self.id, INBOX.c.move >= since
        )
        failed = sa.select(sa.func.count()).where(
            PARKED.c.consumer == self.id,
            PARKED.c.move >= since,
            (PARKED.c.tries > 0) | PARKED.c.dead_at.is_not(None),
        )
        return Counts(*(connection.execute(count).scalar_one() for count in (handled, failed)))

    def write(self, connection: sa.Connection, values: Values) -> None:
        failpoint("rollout.before-entry")
        write_entry(connection, self.id, self.last, **values)


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
    rows = connection.execute(select).all()
    if not rows:
        raise ParameterError(
            f"consumer {consumer} has no rollout on record: give its handler two rules and a "
            "rollout, and start it",
            parameter="consumer",
            value=consumer,
        )
    history = RolloutHistory(
        consumer,
        "consumer",
        "messages",
        f"messages dead {consumer}",
        [entry_of(row) for row in rows],
        json.loads(rows[-1].plan),
    )
    return _Record(found.id, rows[-1], history)
