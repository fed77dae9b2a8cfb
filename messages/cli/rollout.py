"""`ledgerbeam messages rollout …`: at which stage a new rule is, and how it is moved."""

from typing import Annotated

import typer

from ledgerbeam.batch.settings import whoami
from ledgerbeam.messages.cli.options import ConsumerName, Database, Json, open_database, show_table

rollout = typer.Typer(
    help="Bring customers from one rule of a consumer to the next.", no_args_is_help=True
)

Why = Annotated[str, typer.Option("--why", help="the reason, for the record")]


@rollout.command("show")
def show(consumer: ConsumerName, database: Database, as_json: Json = False) -> None:
    """Show at which stage a rollout is, and what was done to it so far."""
    from ledgerbeam.messages.consumer.rollout_moves import rollout_of

    with open_database(database) as opened:
        standing, entries = rollout_of(opened, consumer)
    row = (
        str(standing.rule),
        str(standing.old_rule),
        standing.stage,
        f"{standing.handled:,}",
        f"{standing.failed:,}",
        standing.next or "",
        standing.asked or "",
    )
    columns = ["rule", "in place of", "stage", "handled", "failed", "next", "waits for approval"]
    show_table(columns, [row], as_json, "rollout", [standing._asdict()])
    rows = [
        (
            str(entry.number),
            f"{entry.at:%F %T} UTC",
            entry.who,
            f"{entry.what} {entry.asked or ''}".rstrip(),
            str(entry.rule),
            entry.stage,
            "" if entry.handled is None else f"{entry.handled:,}",
            "" if entry.failed is None else f"{entry.failed:,}",
            ("forced: " if entry.forced else "") + entry.why,
        )
        for entry in entries
    ]
    if not as_json:
        print()
    columns = ["", "when", "who", "what", "rule", "stage", "handled", "failed", "why"]
    show_table(columns, rows, as_json, "rollout-entry", [entry._asdict() for entry in entries])


@rollout.command("promote")
def promote(
    consumer: ConsumerName,
    stage: Annotated[str, typer.Argument(help="the next stage")],
    database: Database,
    why: Why,
    force: Annotated[
        bool, typer.Option("--force", help="in spite of failures, or before anything was handled")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring a rollout to its next stage, or ask for that where a second person must approve."""
    from ledgerbeam.messages.consumer.rollout_moves import promote as promote_rollout

    with open_database(database) as opened:
        promote_rollout(opened, consumer, stage, who=whoami(), why=why, force=force)
    show(consumer, database, as_json)


@rollout.command("approve")
def approve(
    consumer: ConsumerName,
    stage: Annotated[str, typer.Argument(help="the stage that another person has asked for")],
    database: Database,
    why: Why,
    as_json: Json = False,
) -> None:
    """Bring a rollout to the stage that another person has asked for."""
    from ledgerbeam.messages.consumer.rollout_moves import approve as approve_rollout

    with open_database(database) as opened:
        approve_rollout(opened, consumer, stage, who=whoami(), why=why)
    show(consumer, database, as_json)


@rollout.command("roll-back")
def roll_back(
    consumer: ConsumerName,
    database: Database,
    why: Why,
    to: Annotated[str, typer.Option("--to", metavar="STAGE", help="an earlier stage")] = "none",
    as_json: Json = False,
) -> None:
    """Bring a rollout back to an earlier stage, by default to none."""
    from ledgerbeam.messages.consumer.rollout_moves import roll_back as roll_rollout_back

    with open_database(database) as opened:
        roll_rollout_back(opened, consumer, to, who=whoami(), why=why)
    show(consumer, database, as_json)
