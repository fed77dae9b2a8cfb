"""`ledgerbeam rollout …`: at which stage a new rule is, and how it is moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Annotated, Any, NamedTuple

import typer

from ledgerbeam.batch.model.rollout import reason_with
from ledgerbeam.batch.settings import whoami
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.cli.options import DATABASE, Json, open_database, show_table

app = typer.Typer(help="Rollouts")
rollout = typer.Typer(
    help="Bring customers from one rule of a consumer or a process to the next.",
    no_args_is_help=True,
)
app.add_typer(rollout, name="rollout")

Name = Annotated[str, typer.Argument(metavar="NAME", help="of a consumer, or of a process")]
Stage = Annotated[str, typer.Argument(help="the next stage")]
Why = Annotated[str, typer.Option("--why", help="the reason, for the record")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar=DATABASE,
        show_envvar=False,
        help=f"of a consumer: URL of the database of messages; by default {DATABASE}",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", help="of a process: where its results go; else the environment's"),
]
Comparison = Annotated[
    str | None,
    typer.Option("--comparison", metavar="URI", help="a published comparison, as the reason"),
]


class _Bound(NamedTuple):
    """The functions of a module of moves, for one rollout."""

    module: Any
    place: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: getattr(self.module, name)(*self.place, *args, **named)


@contextmanager
def _moves(name: str, database: str | None, output: str | None) -> "Iterator[_Bound]":
    """The moves of a process, if one is installed by that name or an output is given.

    Else they are those of a consumer. An installed handler is a workload as well, but its rollout
    is that of its consumer.
    """
    from ledgerbeam.batch.define.workloads import workload_names
    from ledgerbeam.batch.environments import chosen_environment
    from ledgerbeam.messages.define.handlers import GROUP

    is_process = name in workload_names() and not entry_points(group=GROUP, name=name)
    if output is not None or is_process:
        from ledgerbeam.batch.rollouts import moves
        from ledgerbeam.io.commit.rollout_log import RolloutLog

        output = output or chosen_environment().output
        if not output:
            raise ParameterError(
                f"{name} is a process: say where its results go (--output)", parameter="--output"
            )
        yield _Bound(moves, (RolloutLog(output, name),))
        return
    from ledgerbeam.messages.consumer import rollout_moves

    if database is None:
        raise ParameterError(
            f"no process {name} is installed: for one that isn't, give --output; for a consumer, "
            f"--database, or {DATABASE}",
            parameter="--database",
        )
    with open_database(database) as opened:
        yield _Bound(rollout_moves, (opened, name))


def _digest(comparison: str | None) -> str:
    """The hash of a comparison's manifest, which has those of all its files; empty for none."""
    if comparison is None:
        return ""
    from ledgerbeam.io.commit.attempts import MANIFEST, digest_of, load_manifest
    from ledgerbeam.io.storage import uris

    found = load_manifest(comparison)
    if found.attempt.process != "compare":
        raise ParameterError(
            f"{comparison} is no comparison but what {found.attempt.process} has published: give "
            "the instance that ledgerbeam compare prints",
            parameter="--comparison",
            value=comparison,
        )
    return digest_of(uris.join(uris.absolute(comparison), MANIFEST))


def _said(why: str, digest: str, comparison: str | None) -> str:
    return why if comparison is None else reason_with(why, digest, comparison)


@rollout.command("show")
def show(
    name: Name, database: Database = None, output: Output = None, as_json: Json = False
) -> None:
    """Show at which stage a rollout is, and what was done to it so far."""
    with _moves(name, database, output) as moves:
        standing, entries = moves.rollout_of()
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
    name: Name,
    stage: Stage,
    why: Why,
    database: Database = None,
    output: Output = None,
    force: Annotated[
        bool, typer.Option("--force", help="in spite of failures, or before anything was handled")
    ] = False,
    comparison: Comparison = None,
    as_json: Json = False,
) -> None:
    """Bring a rollout to its next stage, or ask for that where a second person must approve."""
    said = _said(why, _digest(comparison), comparison)
    with _moves(name, database, output) as moves:
        moves.promote(stage, who=whoami(), why=said, force=force)
    show(name, database, output, as_json)


@rollout.command("approve")
def approve(
    name: Name,
    stage: Annotated[str, typer.Argument(help="the stage that another person has asked for")],
    why: Why,
    database: Database = None,
    output: Output = None,
    comparison: Comparison = None,
    as_json: Json = False,
) -> None:
    """Bring a rollout to the stage that another person has asked for."""
    digest = _digest(comparison)
    said = _said(why, digest, comparison)
    with _moves(name, database, output) as moves:
        moves.approve(stage, who=whoami(), why=said, comparison=digest)
    show(name, database, output, as_json)


@rollout.command("roll-back")
def roll_back(
    name: Name,
    why: Why,
    database: Database = None,
    output: Output = None,
    to: Annotated[str, typer.Option("--to", metavar="STAGE", help="an earlier stage")] = "none",
    as_json: Json = False,
) -> None:
    """Bring a rollout back to an earlier stage, by default to none."""
    with _moves(name, database, output) as moves:
        moves.roll_back(to, who=whoami(), why=why)
    show(name, database, output, as_json)
