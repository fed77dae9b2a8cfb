"""What the commands of messages have in common: options, the database, tables for people."""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.io.errors import ParameterError

if TYPE_CHECKING:
    from ledgerbeam.messages.store.database import MessageDatabase

DATABASE = "LEDGERBEAM_MESSAGES"

Database = Annotated[
    str,
    typer.Option(
        "--database",
        envvar=DATABASE,
        show_envvar=False,
        help=f"URL of the database of messages; by default {DATABASE}",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, a line a record")]
ConsumerName = Annotated[str, typer.Argument(metavar="CONSUMER", help="name of a consumer")]


@contextmanager
def open_database(
    url: str, max_connections: int = 4, keeps_plans: bool = False
) -> "Iterator[MessageDatabase]":
    """The database of messages, whose tables are up to date; as `MessageDatabase.open`."""
    from ledgerbeam.messages.store.database import MessageDatabase

    with MessageDatabase.open(url, max_connections, keeps_plans) as database:
        yield database


def told(as_json: bool, kind: str, **record: Any) -> None:
    """What a command that says nothing to people says to programs."""
    if as_json:
        print_record(kind, record)


def show_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    as_json: bool = False,
    kind: str = "",
    records: Iterable[dict[str, Any]] = (),
) -> None:
    """A table for people, or a line of JSON a record."""
    if as_json:
        for record in records:
            print_record(kind, record)
        return
    from ledgerbeam.batch.attempt.terminal import print_table

    print_table(heads, rows)


def read_moment(text: str, flag: str) -> datetime.datetime:
    """A time with its zone, as people give it.

    Raises:
        ParameterError: it is none, or has no zone.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ParameterError(
            f"{flag}={text}: give a time with its zone, such as 2026-11-20T08:00+00:00",
            parameter=flag,
            value=text,
        )
    return moment
