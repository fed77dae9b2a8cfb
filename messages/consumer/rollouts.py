"""Rollouts on record, as consumers declare and follow them.

Each entry says what was done, and how the rollout stands from then on: a move and its entry are one
row. A consumer reads the last one in each transaction in which it handles messages, so that what
begins after a move has been committed follows it.
"""

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.model.rollout import RolloutEntry, declaration, everyones_rule
from ledgerbeam.batch.settings import whoami
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import present_time
from ledgerbeam.messages.store.schema import CONSUMER, ROLLOUT
from ledgerbeam.rules.rollout import NOBODY


def last_entry(connection: sa.Connection, consumer: int) -> sa.Row[Any] | None:
    """The last entry of a consumer's rollouts; None if it never had one."""
    entries = sa.select(ROLLOUT).where(ROLLOUT.c.consumer == consumer)
    return connection.execute(entries.order_by(ROLLOUT.c.number.desc()).limit(1)).first()


def declare_rollout(
    connection: sa.Connection, consumer: int, handler: type[MessageHandler[Any]]
) -> None:
    """Put what a handler's definition says of its rollout on record, if it isn't yet.

    Args:
        connection: in a transaction that commits soon.
        consumer: number of the consumer.
        handler: the consumer's.

    Raises:
        DefinitionError: the rollout on record isn't finished, and the definition doesn't go on
            with it.
    """
    if not handler.rules:
        return
    lock_rollout(connection, consumer)
    last = last_entry(connection, consumer)
    values = declaration(
        handler.__name__,
        handler.rules,
        handler.rollout,
        None if last is None else entry_of(last),
        None if last is None else json.loads(last.plan),
    )
    if values is not None:
        plan = json.dumps(values.pop("plan"))
        write_entry(connection, consumer, last, who=whoami(), plan=plan, **values)


def entry_of(row: sa.Row[Any]) -> RolloutEntry:
    """The entry that a row holds."""
    values = {name: getattr(row, name) for name in RolloutEntry._fields}
    return RolloutEntry(**values | {"at": to_datetime(row.at), "forced": bool(row.forced)})


Chooses = Callable[[str, Any], tuple[int | None, int | None]]
"""Gives, for a customer and a message, the number of the customer's rule; and of the rollout's
entry if that is the new rule."""


def chooses_rules(handler: type[MessageHandler[Any]], entry: sa.Row[Any] | None) -> Chooses:
    """What chooses the rule of a customer, at the stage of a rollout's last entry.

    Args:
        handler: the consumer's.
        entry: with `number`, `rule`, `old_rule` and `stage`; None if there is none.

    Raises:
        DefinitionError: the rollout is one of a rule, or at a stage, that this definition doesn't
            have.
    """
    if not handler.rules or entry is None:
        only = max(handler.rules, default=None)
        return lambda customer, message: (only, None)
    rollout, new, old, stage = handler.rollout, entry.rule, entry.old_rule, entry.stage
    is_known = rollout is not None and stage in (NOBODY, *rollout.stages)
    if rollout is not None and is_known and {new, old} == set(handler.rules):
        return lambda customer, message: (
            (new, entry.number) if rollout.includes(stage, customer, message) else (old, None)
        )
    everyones = everyones_rule(stage, new, old)
    if everyones not in handler.rules:
        raise DefinitionError(
            f"{handler.__name__}: rule {new} is at the stage {stage}, which this process doesn't "
            "have: start it with the present definition"
        )
    move = entry.number if everyones == new else None
    return lambda customer, message: (everyones, move)


def write_entry(
    connection: sa.Connection, consumer: int, last: sa.Row[Any] | None, **values: Any
) -> None:
    """Write an entry behind the last one; what isn't given is as it was, or empty.

    Args:
        connection: in a transaction that has locked the rollout.
        consumer: number of the consumer.
        last: the last entry.
        values: of columns.
    """
    kept = ("rule", "old_rule", "stage", "plan")
    entry = {} if last is None else {name: getattr(last, name) for name in kept}
    number = 1 if last is None else last.number + 1
    blank = {"at": present_time(connection), "why": "", "forced": False}
    connection.execute(
        ROLLOUT.insert().values(
            {"consumer": consumer, "number": number, **blank, **entry, **values}
        )
    )


def lock_rollout(connection: sa.Connection, consumer: int) -> None:
    """Have others who would write an entry wait for the end of this transaction."""
    connection.execute(sa.select(CONSUMER.c.id).where(CONSUMER.c.id == consumer).with_for_update())
