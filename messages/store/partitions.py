"""Partitions on PostgreSQL: of messages a week each, of the stream so many positions each.

Rows are never deleted one by one: partitions leave as a whole. A sender never depends on anybody to
have made a partition: what has none goes to the default partition, and works there as well. It is
moved to a partition of its own when that is made, more than a year ahead of its time.
"""

import datetime

import sqlalchemy as sa

from ledgerbeam.messages.model.message import to_datetime, to_microseconds

WEEKS = 56
"""How many weeks ahead there are partitions, a year and a bit."""

STREAM_ROWS = 4_000_000
"""Positions of a partition of the stream."""

_WEEK = datetime.timedelta(weeks=1)
_MAKING = 5_303_178_129  # a lock that one process holds while it makes partitions


def make_partitions(connection: sa.Connection, now: int) -> list[str]:
    """Make the partitions that are missing, in this transaction.

    Args:
        connection: to PostgreSQL, in a transaction.
        now: the present time in microseconds.

    Returns:
        The names of those that were made; none if another process is at it.
    """
    if not connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(_MAKING))).scalar():
        return []
    connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
    monday = _monday(to_datetime(now))
    made = []
    existing = _partitions(connection, "ledgerbeam_message")
    missing = [
        start
        for number in range(WEEKS)
        if _week_name(start := monday + number * _WEEK) not in existing
    ]
    is_new = len(missing) == WEEKS
    for start in missing:
        # Rows on their way into the stream are left where they are.
        if is_new or start > monday + 2 * _WEEK:
            _make_week(connection, start)
            made.append(_week_name(start))
    last = _last_position(connection) // STREAM_ROWS
    existing = _partitions(connection, "ledgerbeam_stream")
    for number in (last, last + 1):
        name = f"ledgerbeam_stream_{number}"
        if name not in existing:
            _attach(connection, "ledgerbeam_stream", name, number * STREAM_ROWS, STREAM_ROWS)
            made.append(name)
    return made


def passed_stream_partitions(connection: sa.Connection) -> list[str]:
    """Partitions of the stream to which nothing will be posted any more, the oldest first."""
    last = _last_position(connection) // STREAM_ROWS
    numbers = (name.rpartition("_")[2] for name in _partitions(connection, "ledgerbeam_stream"))
    passed = sorted(int(number) for number in numbers if number.isdecimal() and int(number) < last)
    return [f"ledgerbeam_stream_{number}" for number in passed]


def drop_empty_weeks(connection: sa.Connection, now: int) -> list[str]:
    """Drop partitions of messages of past weeks that are empty; their names.

    What is due then and is still sent goes to the default partition.
    """
    connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
    this_week = _week_name(_monday(to_datetime(now)))
    dropped = []
    for name in sorted(_partitions(connection, "ledgerbeam_message")):
        if not name.rpartition("_")[2].isdecimal() or name >= this_week:
            continue
        connection.exec_driver_sql(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
        if connection.exec_driver_sql(f"SELECT 1 FROM {name} LIMIT 1").first() is None:
            connection.exec_driver_sql(f"DROP TABLE {name}")
            dropped.append(name)
    return dropped


def _monday(moment: datetime.datetime) -> datetime.datetime:
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return day - datetime.timedelta(days=day.weekday())


def _week_name(start: datetime.datetime) -> str:
    return f"ledgerbeam_message_{start:%Y%m%d}"


def _partitions(connection: sa.Connection, parent: str) -> set[str]:
    return set(
        connection.exec_driver_sql(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            f"WHERE i.inhparent = '{parent}'::regclass"
        ).scalars()
    )


def _last_position(connection: sa.Connection) -> int:
    return int(
        connection.exec_driver_sql("SELECT last_value FROM ledgerbeam_stream_position").scalar_one()
    )


def _make_week(connection: sa.Connection, start: datetime.datetime) -> None:
    first = to_microseconds(start)
    length = to_microseconds(start + _WEEK) - first
    name = _week_name(start)
    # Nobody may be between the snapshot of a statement and its lock on a row that moves: it would
    # find the row deleted, and pass it.
    connection.exec_driver_sql("LOCK TABLE ledgerbeam_message_default IN ACCESS EXCLUSIVE MODE")
    _create(connection, "ledgerbeam_message", name)
    connection.exec_driver_sql(
        f"WITH gone AS (DELETE FROM ledgerbeam_message_default "
        f"WHERE due >= {first} AND due < {first + length} RETURNING *) "
        f"INSERT INTO {name} SELECT * FROM gone"
    )
    _attach(connection, "ledgerbeam_message", name, first, length, create=False)


def _create(connection: sa.Connection, parent: str, name: str) -> None:
    connection.exec_driver_sql(f"CREATE TABLE {name} (LIKE {parent} INCLUDING DEFAULTS)")


def _attach(
    connection: sa.Connection, parent: str, name: str, first: int, length: int, create: bool = True
) -> None:
    # CREATE … PARTITION OF would lock the parent against everyone; ATTACH doesn't.
    if create:
        _create(connection, parent, name)
    connection.exec_driver_sql(
        f"ALTER TABLE {parent} ATTACH PARTITION {name} "
        f"FOR VALUES FROM ({first}) TO ({first + length})"
    )
