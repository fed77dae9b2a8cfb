"""Taking local times again, when zone rules or calendars have changed."""

import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ledgerbeam.messages.model.local_time import LocalTime
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import MESSAGE, PENDING, TOPIC
from ledgerbeam.messages.store.send import move_message


class Move(NamedTuple):
    """A message whose local time is another moment than it was taken for."""

    message_id: int
    topic: str
    customer: str
    key: str | None
    before: datetime.datetime
    after: datetime.datetime


def derive(database: MessageDatabase, dry_run: bool) -> list[Move]:
    """Move the pending messages whose local times are other moments now, each by itself.

    Args:
        database: of the messages.
        dry_run: whether to list them only.

    Returns:
        Those that were moved, or would be, in the order of the time they were due before.
    """
    select = (
        sa.select(MESSAGE, TOPIC.c.name)
        .where(MESSAGE.c.local.is_not(None), MESSAGE.c.state == PENDING)
        .where(TOPIC.c.id == MESSAGE.c.topic)
        .order_by(MESSAGE.c.due, MESSAGE.c.id)
    )
    moves = []
    with database.begin("local times") as connection:
        now = database.now(connection)
        rows = connection.execute(select.where(MESSAGE.c.due > now)).all()
    for row in rows:
        before = to_datetime(row.due)
        after = LocalTime.model_validate_json(row.local).moment()
        if after == before:
            continue
        if not dry_run:
            with database.begin("local times") as connection:
                if not move_message(connection, row, after):
                    continue  # posted, canceled or moved meanwhile
        moves.append(Move(row.id, row.name, row.customer, row.key, before, after))
    return moves
