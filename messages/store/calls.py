"""Calls over REST that may be repeated: what a key was answered, kept with what the call did."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.store.database import present_time
from ledgerbeam.messages.store.schema import CALL

_FORGOTTEN = 100
"""Expired keys that a call removes at most."""


class UsedKeyError(Exception):
    """The key stands for another call."""


def answer_once(
    connection: sa.Connection,
    caller: str,
    key: str,
    call: object,
    seconds: int,
    act: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Do what a call asks for, unless the same call was done before.

    Of two at once, the second waits for the first one's transaction.

    Args:
        connection: in the transaction in which the call is done.
        caller: whose key it is.
        key: by which the caller knows the call again.
        call: what is asked for, as JSON.
        seconds: for how long the key is remembered.
        act: does it, in the transaction; gives the answer as JSON.

    Returns:
        The answer.

    Raises:
        UsedKeyError: the key stands for another call.
    """
    now = present_time(connection)
    text = json.dumps(call, sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    is_it = (CALL.c.caller == caller) & (CALL.c.key == key)
    connection.execute(CALL.delete().where(is_it, CALL.c.expires_at <= now))
    row = {
        "caller": caller,
        "key": key,
        "fingerprint": fingerprint,
        "expires_at": now + seconds * 1_000_000,
    }
    if connection.execute(_insert(connection, row)).first() is None:
        known = connection.execute(CALL.select().where(is_it)).one()
        if known.fingerprint != fingerprint:
            raise UsedKeyError
        found: dict[str, Any] = json.loads(known.answer)
        return found
    answer = act()
    failpoint("calls.done")
    connection.execute(CALL.update().where(is_it).values(answer=json.dumps(answer)))
    _forget(connection, now)
    return answer


def _insert(connection: sa.Connection, row: dict[str, Any]) -> sa.Executable:
    """Inserts a key and gives it back, if it isn't there."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        insert = postgresql_insert(CALL).values(row).on_conflict_do_nothing()
        return insert.returning(CALL.c.key)
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert(CALL).values(row).on_conflict_do_nothing().returning(CALL.c.key)


def _forget(connection: sa.Connection, now: int) -> None:
    expired = (
        sa.select(CALL.c.caller, CALL.c.key)
        .where(CALL.c.expires_at <= now)
        .limit(_FORGOTTEN)
        .with_for_update(skip_locked=True)  # nobody waits for another one's
    )
    for row in connection.execute(expired).all():
        connection.execute(CALL.delete().where(CALL.c.caller == row.caller, CALL.c.key == row.key))
