"""`ledgerbeam messages set-retention`, `archive`, `erase`, `remove-consumer`, and their records."""

from typing import TYPE_CHECKING, Annotated

import typer

from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import whoami
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.cli.options import (
    ConsumerName,
    Database,
    Json,
    open_database,
    read_moment,
    show_table,
    told,
)

if TYPE_CHECKING:
    from ledgerbeam.messages.consumer.removal import Removal

keeping = typer.Typer()

_SHOWN = 10


@keeping.command("set-retention")
def set_retention(
    topic: Annotated[str, typer.Argument(help="name of a topic")],
    days: Annotated[str, typer.Argument(help="whole days, or none")],
    database: Database,
    as_json: Json = False,
) -> None:
    """Keep messages of a topic out of archives for so many days after they were posted."""
    from ledgerbeam.messages.store.topics import set_retention as set_topic_retention

    if days != "none" and not days.isdecimal():
        raise ParameterError(
            f"retention {days}: give whole days, or none", parameter="retention", value=days
        )
    number = None if days == "none" else int(days)
    with open_database(database) as opened, opened.begin("the topic") as connection:
        set_topic_retention(connection, topic, number)
    told(as_json, "topic-retention", topic=topic, days=number)


@keeping.command("archive")
def archive(
    database: Database,
    before: Annotated[str, typer.Option(help="what was posted before, as 2026-11-20T08:00Z")],
    output: Annotated[str, typer.Option(help="URI of the folder that batches go to")],
    as_json: Json = False,
) -> None:
    """Move what was posted before a time, and is handled, from the database to files."""
    from ledgerbeam.messages.archive.leave import archive as archive_messages
    from ledgerbeam.messages.model.message import to_microseconds

    moment = to_microseconds(read_moment(before, "--before"))
    count = 0
    with open_database(database) as opened:
        for batch in archive_messages(opened, moment, output):
            count += 1
            if as_json:
                print_record("archived-batch", batch._asdict())
            else:
                print_line(
                    f"{batch.messages:,} messages, and {batch.withdrawn:,} that were canceled or "
                    f"moved, in {batch.uri}"
                )
    if not count and not as_json:
        print_line("nothing to archive")


@keeping.command("erase")
def erase(
    database: Database,
    customer: Annotated[str, typer.Option(help="whose payloads are erased")],
    why: Annotated[str, typer.Option(help="the reason, for the record")],
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel",
            help="cancel what is due later, and make dead letters of what isn't handled yet",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase what a customer's messages say, in the database and in its archives."""
    from ledgerbeam.messages.archive.erase import erase as erase_payloads

    with open_database(database) as opened:
        done = erase_payloads(opened, customer, who=whoami(), why=why, cancel=cancel)
    if as_json:
        print_record("erasure", done._asdict())
    else:
        print_line(
            f"erased: {done.messages:,} messages in the database, {done.archived:,} in archives; "
            f"{done.canceled:,} were withdrawn"
        )


@keeping.command("erasures")
def erasures(database: Database, as_json: Json = False) -> None:
    """List whose payloads were erased, by whom and why."""
    from ledgerbeam.messages.archive.erase import erasures as erasures_of

    with open_database(database) as opened:
        found = erasures_of(opened)
    rows = [
        (
            f"{entry.at:%F %T} UTC",
            entry.customer,
            entry.who,
            f"{entry.messages:,}",
            "not done" if entry.archived is None else f"{entry.archived:,}",
            entry.why,
        )
        for entry in found
    ]
    heads = ("when", "customer", "who", "messages", "in archives", "why")
    show_table(heads, rows, as_json, "erasure", [entry._asdict() for entry in found])


@keeping.command("remove-consumer")
def remove_consumer(
    consumer: ConsumerName,
    database: Database,
    why: Annotated[str, typer.Option(help="the reason, for the record")],
    force: Annotated[
        bool, typer.Option("--force", help="also while processes of it run, which end")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what it has not handled")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove a consumer or a sink: what it records of messages is deleted, and none wait for it."""
    from ledgerbeam.messages.consumer.removal import remove_consumer as remove

    with open_database(database) as opened:
        done = remove(opened, consumer, who=whoami(), why=why, force=force, dry_run=dry_run)
    if as_json:
        print_record("removal", done._asdict())
        return
    print_line(
        f"{consumer} {'would be' if dry_run else 'is'} removed: {done.handled:,} messages handled, "
        f"{done.dead:,} dead, {done.unhandled:,} not handled{_examples(done)}"
    )


@keeping.command("removals")
def removals(database: Database, as_json: Json = False) -> None:
    """List which consumers were removed, by whom and why, and what they had not handled."""
    from ledgerbeam.messages.consumer.removal import removals as removals_of

    with open_database(database) as opened:
        found = removals_of(opened)
    rows = [
        (
            f"{entry.at:%F %T} UTC",
            entry.consumer,
            entry.who + (", forced" if entry.forced else ""),
            *(f"{count:,}" for count in (entry.handled, entry.dead, entry.unhandled)),
            entry.why + _examples(entry),
        )
        for entry in found
    ]
    heads = ("when", "consumer", "who", "handled", "dead", "not handled", "why")
    show_table(heads, rows, as_json, "removal", [entry._asdict() for entry in found])


def _examples(removal: "Removal") -> str:
    """The messages that a removal names, as many as fit into a line."""
    if not removal.examples:
        return ""
    shown = removal.examples[:_SHOWN]
    more = removal.dead + removal.unhandled - len(shown)
    return f" ({', '.join(map(str, shown))}{f' and {more:,} more' if more else ''})"
