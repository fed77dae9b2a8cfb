"""`ledgerbeam schedule-messages`, `consume` and `messages …`; each takes `--database`."""

import datetime
import signal
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.io.errors import ControlTotalMismatchError, ParameterError
from ledgerbeam.messages.cli.keeping import keeping
from ledgerbeam.messages.cli.options import (
    ConsumerName,
    Database,
    Json,
    open_database,
    read_moment,
    show_table,
    told,
)
from ledgerbeam.messages.cli.sinks import sink, sinks

app = typer.Typer(help="Messages to the future")
messages = typer.Typer(help="Messages to the future: see how they stand.", no_args_is_help=True)
messages.add_typer(keeping)
messages.command("sink")(sink)
messages.command("sinks")(sinks)
app.add_typer(messages, name="messages")

MessageId = Annotated[int | None, typer.Option("--message", help="only the message of this number")]
CustomerOption = Annotated[str | None, typer.Option("--customer", help="only this customer's")]
ErrorText = Annotated[str | None, typer.Option("--error", help="only errors with this text in it")]


def _stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set: what was begun is finished, and nothing more begins."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@app.command("schedule-messages")
def schedule_messages(
    database: Database,
    once: Annotated[
        bool, typer.Option("--once", help="end when all that is due is posted")
    ] = False,
    lease_seconds: Annotated[
        float, typer.Option(min=1, help="how long others wait for this process if it is silent")
    ] = 15.0,
    as_json: Json = False,
) -> None:
    """Post messages to the stream when they are due; run it as often as you like."""
    from ledgerbeam.messages.scheduler.process import Scheduler

    stop = _stop_on_signals()
    with open_database(database) as opened:
        scheduler = Scheduler(opened, lease_seconds)
        scheduler.run(stop, once)
    if as_json:
        print_record("posted-messages", {"posted": scheduler.posted})
    else:
        print_line(f"{scheduler.posted:,} messages posted")


@app.command()
def consume(
    handler: Annotated[
        str, typer.Argument(help="a handler that is installed, or MODULE:CLASS; or a sink")
    ],
    database: Database,
    slots: Annotated[int, typer.Option(min=1, help="customers that are served at once")] = 4,
    since: Annotated[
        str | None,
        typer.Option(help="a new consumer begins with what was posted since, as 2026-11-20T08:00Z"),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="end when all that was posted is handled")
    ] = False,
    lease_seconds: Annotated[
        float, typer.Option(min=1, help="how long others wait for this process if it is silent")
    ] = 15.0,
    as_json: Json = False,
) -> None:
    """Handle messages of the stream, or post them to a sink; run it as often as you like."""
    from ledgerbeam.messages.consumer.bucket import Buckets
    from ledgerbeam.messages.consumer.consumers import declare_consumer
    from ledgerbeam.messages.consumer.process import ConsumerProcess
    from ledgerbeam.messages.define.handlers import load_handler
    from ledgerbeam.messages.model.message import to_microseconds
    from ledgerbeam.messages.sinks.bucket import SinkBuckets
    from ledgerbeam.messages.sinks.sinks import find_sink

    begins = None if since is None else to_microseconds(read_moment(since, "--since"))
    stop = _stop_on_signals()
    with open_database(database, slots + 2, keeps_plans=True) as opened:
        with opened.begin("the sinks") as connection:
            found = find_sink(connection, handler)
        if found is not None:
            poster = found.poster(lease_seconds)
            process = ConsumerProcess(
                opened, found.consumer, SinkBuckets(opened, found, poster), slots, lease_seconds
            )
            process.run(stop, until_idle)
            poster.close()
            _show_handled(found.consumer.name, process.handled, process.failed, "posted", as_json)
            return
        loaded = load_handler(handler)
        with opened.begin("the consumer") as connection:
            consumer = declare_consumer(connection, loaded, begins)
        buckets = Buckets(opened, consumer, loaded())
        process = ConsumerProcess(opened, consumer, buckets, slots, lease_seconds)
        process.run(stop, until_idle)
    _show_handled(consumer.name, process.handled, process.failed, "handled", as_json)


def _show_handled(consumer: str, handled: int, failed: int, verb: str, as_json: bool) -> None:
    if as_json:
        done = {"consumer": consumer, "handled": handled, "failed": failed}
        print_record("handled-messages", done)
    else:
        print_line(f"{consumer}: {handled:,} messages {verb}, {failed:,} tries failed")


@messages.command("init")
def init(
    database: Database,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            help="a topic and the field of its messages that names the customer: due:payer"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the tables, or bring them up to date, and declare topics."""
    from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
    from ledgerbeam.messages.store.topics import declare_topic, topics

    pairs = [_topic_and_field(text) for text in topic or ()]
    create_sqlite_file(database)
    with MessageDatabase(database) as opened:
        opened.migrate()
        with opened.begin("topics") as connection:
            for name, field in pairs:
                declare_topic(connection, name, field)
            for found in topics(connection):
                if as_json:
                    print_record("topic", {"topic": found.name, "customer": found.customer})
                else:
                    print_line(f"topic {found.name}, customer in {found.customer}")


def _topic_and_field(text: str) -> tuple[str, str]:
    name, _, field = text.partition(":")
    if not name or not field:
        raise ParameterError(
            f"--topic={text}: give TOPIC:FIELD, where the field of its messages names the customer",
            parameter="--topic",
            value=text,
        )
    return name, field


@messages.command("status")
def status(database: Database, as_json: Json = False) -> None:
    """Show how each consumer stands: how far it is behind, and what has failed."""
    from ledgerbeam.messages.books.forecast import standings

    with open_database(database) as opened:
        found = standings(opened)
    rows = [
        (
            standing.consumer,
            standing.topic,
            "paused" if standing.paused else "",
            "" if standing.rate is None else f"{standing.rate:g}",
            f"{standing.lag:,}",
            "" if standing.age is None else f"{standing.age:.1f} s",
            f"{standing.parked:,}",
            f"{standing.dead:,}",
        )
        for standing in found
    ]
    heads = ("consumer", "topic", "state", "rate", "lag", "age", "parked", "dead")
    show_table(heads, rows, as_json, "consumer", [standing._asdict() for standing in found])


@messages.command("verify")
def verify(database: Database, as_json: Json = False) -> None:
    """Check that nothing is lost and nothing was handled twice; exit status 1 if it was."""
    from ledgerbeam.messages.books.verify import verify as verify_books

    with open_database(database) as opened:
        books = verify_books(opened)
    days = [
        day._replace(day=str(datetime.date(1970, 1, 1) + datetime.timedelta(int(day.day))))
        for day in books.days
    ]
    if as_json:
        for day in days:
            print_record("topic-day", day._asdict())
        for of_consumer in books.consumers:
            print_record("consumer-books", of_consumer._asdict())
        for difference in books.differences:
            print_record("unbalanced-messages", difference._asdict())
    else:
        of_days = [(*day[:2], *(f"{number:,}" for number in day[2:])) for day in days]
        show_table(
            ("topic", "due on", "scheduled", "posted", "canceled", "moved", "pending"), of_days
        )
        if books.consumers:
            rows = [(row[0], *(f"{number:,}" for number in row[1:])) for row in books.consumers]
            print_line("")
            show_table(("consumer", "posted", "handled", "dead", "in flight"), rows)
    if books.differences:
        raise ControlTotalMismatchError(
            "the books of messages don't balance: "
            + "; ".join(
                f"{found.where}: {found.messages:,} {found.what} ("
                f"{', '.join(map(str, found.examples))})"
                for found in books.differences
            )
        )
    if not as_json:
        print_line("the books balance")


@messages.command("forecast")
def forecast(
    database: Database,
    first: Annotated[str | None, typer.Option("--from", help="by default now")] = None,
    to: Annotated[str | None, typer.Option("--to", help="by default a day later")] = None,
    as_json: Json = False,
) -> None:
    """Show how many messages are due, by topic and hour in UTC."""
    from ledgerbeam.messages.books.forecast import forecast as forecast_messages

    begins = utc_now() if first is None else read_moment(first, "--from")
    ends = begins + datetime.timedelta(days=1) if to is None else read_moment(to, "--to")
    with open_database(database) as opened:
        hours = forecast_messages(opened, begins, ends)
    rows = [(f"{h.begins_at:%Y-%m-%d %H:00}", h.topic, f"{h.messages:,}") for h in hours]
    heads = ("hour", "topic", "messages")
    show_table(heads, rows, as_json, "due-hour", [hour._asdict() for hour in hours])


@messages.command("pause")
def pause(consumer: ConsumerName, database: Database, as_json: Json = False) -> None:
    """Have a consumer begin nothing more; what it has begun is finished."""
    from ledgerbeam.messages.consumer.consumers import set_paused

    with open_database(database) as opened, opened.begin("the consumer") as connection:
        set_paused(connection, consumer, True)
    told(as_json, "paused-consumer", consumer=consumer, paused=True)


@messages.command("resume")
def resume(consumer: ConsumerName, database: Database, as_json: Json = False) -> None:
    """Let a paused consumer go on."""
    from ledgerbeam.messages.consumer.consumers import set_paused

    with open_database(database) as opened, opened.begin("the consumer") as connection:
        set_paused(connection, consumer, False)
    told(as_json, "paused-consumer", consumer=consumer, paused=False)


@messages.command("set-rate")
def set_rate(
    consumer: ConsumerName,
    rate: Annotated[str, typer.Argument(help="messages a second, or none")],
    database: Database,
    as_json: Json = False,
) -> None:
    """Limit the messages a second that a consumer handles, in all its processes together."""
    from ledgerbeam.messages.consumer.consumers import set_rate as set_consumer_rate

    number = _rate(rate)
    with open_database(database) as opened, opened.begin("the consumer") as connection:
        set_consumer_rate(connection, consumer, number)
    told(as_json, "limited-consumer", consumer=consumer, rate=number)


@messages.command("set-posting-rate")
def set_posting_rate(
    topic: Annotated[str, typer.Argument(help="name of a topic")],
    rate: Annotated[str, typer.Argument(help="messages a second, or none")],
    database: Database,
    as_json: Json = False,
) -> None:
    """Limit the messages a second that are posted of a topic, so that a flood is smoothed."""
    from ledgerbeam.messages.store.topics import set_topic_rate

    number = _rate(rate)
    with open_database(database) as opened, opened.begin("the topic") as connection:
        set_topic_rate(connection, topic, number)
    told(as_json, "limited-topic", topic=topic, rate=number)


def _rate(text: str) -> float | None:
    try:
        number = None if text == "none" else float(text)
    except ValueError:
        number = 0.0
    if number is not None and not 0 < number < float("inf"):
        raise ParameterError(
            f"rate {text}: give messages a second, more than 0, or none",
            parameter="rate",
            value=text,
        )
    return number


@messages.command("dead")
def dead(
    consumer: ConsumerName,
    database: Database,
    message: MessageId = None,
    customer: CustomerOption = None,
    error: ErrorText = None,
    as_json: Json = False,
) -> None:
    """List the dead letters of a consumer, with their errors."""
    from ledgerbeam.messages.consumer.dead_letters import dead_letters

    with open_database(database) as opened:
        found = dead_letters(opened, consumer, message_id=message, customer=customer, error=error)
    _show_dead(found, as_json)


@messages.command("redrive")
def redrive(
    consumer: ConsumerName,
    database: Database,
    message: MessageId = None,
    customer: CustomerOption = None,
    error: ErrorText = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list them")] = False,
    as_json: Json = False,
) -> None:
    """Have dead letters tried again, all or those chosen."""
    from ledgerbeam.messages.consumer.dead_letters import dead_letters
    from ledgerbeam.messages.consumer.dead_letters import redrive as redrive_letters

    chosen: dict[str, Any] = {"message_id": message, "customer": customer, "error": error}
    with open_database(database) as opened:
        if dry_run:
            _show_dead(dead_letters(opened, consumer, **chosen), as_json)
            return
        numbers = redrive_letters(opened, consumer, **chosen)
    if as_json:
        print_record("redriven", {"redriven": numbers})
    else:
        print_line(f"{len(numbers):,} messages are tried again")


def _show_dead(found: Sequence[Any], as_json: bool) -> None:
    rows = [
        (str(letter.message_id), letter.customer, letter.key or "", str(letter.tries), letter.error)
        for letter in found
    ]
    heads = ("message", "customer", "key", "tries", "error")
    show_table(heads, rows, as_json, "dead-letter", [letter._asdict() for letter in found])


@messages.command("derive")
def derive(
    database: Database,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would move")] = False,
    as_json: Json = False,
) -> None:
    """Take local times again, after zone rules or a calendar have changed; list what moved."""
    from ledgerbeam.messages.store.derive import derive as derive_times

    with open_database(database) as opened:
        moves = derive_times(opened, dry_run)
    rows = [
        (
            str(m.message_id),
            m.topic,
            m.customer,
            m.key or "",
            f"{m.before:%F %T}",
            f"{m.after:%F %T}",
        )
        for m in moves
    ]
    heads = ("message", "topic", "customer", "key", "was due", "is due")
    show_table(heads, rows, as_json, "moved-message", [move._asdict() for move in moves])
