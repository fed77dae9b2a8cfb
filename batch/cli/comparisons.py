"""`ledgerbeam shadow`: what a candidate changes; `differences`: one customer of a comparison."""

import time
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.cli.verbs import RUN_HELP, Json, Registry, open_runs
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import names_registry, server_of
from ledgerbeam.io.errors import ParameterError

if TYPE_CHECKING:
    from ledgerbeam.batch.model.run import RunRecord

app = typer.Typer(help="Comparisons")

COMPARISONS = "ledgerbeam.comparisons"
"""Entry points of what these commands do, which stands above this room: modules, by name."""

_MESSAGES = "LEDGERBEAM_MESSAGES"
AS_COMPARE = "as in ledgerbeam compare"


_WITH_BEAM_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_WITH_BEAM_FLAGS)
def shadow(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help=f"{RUN_HELP}; or a published instance; or, with --from and --to, a handler",
        ),
    ],
    rule: Annotated[
        int | None,
        typer.Option(help="by which the candidate executes all; of a handler, else the newest"),
    ] = None,
    candidate_python: Annotated[
        str, typer.Option(help="interpreter of the environment that has the candidate's code")
    ] = "",
    definition: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="of a process that isn't installed")
    ] = "",
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="first compare the run with its own repetition"),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(help="a new folder; by default one in `shadow`, beside the process's results"),
    ] = None,
    keys: Annotated[str, typer.Option(help=f"{AS_COMPARE}; else those of the process")] = "",
    customer: Annotated[str, typer.Option(help=f"{AS_COMPARE}; else that of the process")] = "",
    amounts: Annotated[
        str, typer.Option(help=f"{AS_COMPARE}; else decimals, or the input's amounts")
    ] = "",
    currency: Annotated[str, typer.Option(help=f"{AS_COMPARE}; else the input's column")] = "",
    ignore: Annotated[str, typer.Option(help=f"{AS_COMPARE}; else rule")] = "",
    known: Annotated[str, typer.Option(help=f"{AS_COMPARE}")] = "",
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="of a handler: messages posted since"),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="of a handler: and before this")
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            envvar=_MESSAGES,
            show_envvar=False,
            help=f"of a handler: URL of the database of messages; by default {_MESSAGES}",
        ),
    ] = "",
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Execute a candidate on a run's input, without effects; exit status 5 if results differ.

    Results go to a folder of their own. What a handler writes is rolled back, and what it sends is
    only captured. If the run is on record, or a registry is named, the comparison is put on record
    there. Any other flag goes to Beam, for instance --runner=FlinkRunner.
    """
    interrupts.catch()
    from ledgerbeam.batch.cli.arguments import checked_beam_flags
    from ledgerbeam.batch.cli.summary import print_summary
    from ledgerbeam.io.commit.amounts import totals_json

    shadows = _load("shadows")
    own_flags = [name for option in context.command.params for name in option.opts]
    beam_flags = checked_beam_flags(context.args, own_flags)
    is_recorded = names_registry(registry)
    if first is None and end is None:
        published, run = _published(subject, registry)
        is_recorded |= run is not None and server_of(registry) is None
        plan = shadows.plan_process(published, rule, definition, output)
        if run is not None:
            plan = plan._replace(reason=f"{plan.reason}, run {run.id}")
    else:
        since, until = shadows.check_time(first, "--from"), shadows.check_time(end, "--to")
        for flag, value in (("--database", database), ("--output", output)):
            if not value:
                raise ParameterError(f"{flag} is missing: a handler needs it", parameter=flag)
        plan = shadows.plan_handler(subject, rule, database, since, until, str(output))
    flags = {
        "keys": keys,
        "customer": customer,
        "amounts": amounts,
        "currency": currency,
        "ignore": ignore,
        "known": known,
    }
    began = time.monotonic()
    where = (registry or "") if is_recorded else None
    found = shadows.compare_shadow(plan, candidate_python, baseline, flags, beam_flags, where)
    seconds = time.monotonic() - began
    manifest = found.manifest
    if as_json:
        totals = totals_json(manifest.totals, manifest.attempt.total_decimals)
        record = {"published": found.uri, "page": found.page, "totals": totals}
        print_record("shadow", record)
    else:
        print_summary(manifest, found.definition, found.uri, seconds)
        print_line(f"page at {found.page}")
    raise typer.Exit(found.definition.exit_status(manifest))


@app.command()
def differences(
    comparison: Annotated[str, typer.Argument(help="a published comparison")],
    customer: Annotated[str, typer.Option(help="whose rows are shown")],
    definition: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="of a process that isn't installed")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show what differs for one customer, and the rows of input behind it, of both sides."""
    from ledgerbeam.batch.attempt.terminal import print_table

    for number, table in enumerate(_load("drill").of_customer(comparison, customer, definition)):
        if as_json:
            for row in table.rows:
                values = dict(zip(table.columns, row, strict=True))
                print_record("customer-row", {"what": table.what, "row": values})
            continue
        if number:
            print()
        print_line(table.what)
        print_table(table.columns, table.rows)


def _published(subject: str, registry: str | None) -> "tuple[str, RunRecord | None]":
    """The URI of a published instance: it itself, or that of a run, and that run."""
    from ledgerbeam.io.commit.attempts import find_manifest
    from ledgerbeam.io.storage import uris

    if find_manifest(uris.absolute(subject)) is not None:
        return subject.rstrip("/"), None
    with open_runs(registry) as runs:
        run = runs.get(subject).run
    return run.uri, run


def _load(name: str) -> Any:
    (found,) = entry_points(group=COMPARISONS, name=name)
    return found.load()
