"""The command `ledgerbeam`.

Every command imports what it needs when it is called, so that `list` and `get` answer at once.
"""

import contextlib
import datetime
import json
import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer
from pydantic import ValidationError

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.cli import verb_of
from ledgerbeam.batch.cli.backfill import app as backfill_app
from ledgerbeam.batch.cli.comparisons import COMPARISONS
from ledgerbeam.batch.cli.comparisons import app as comparisons_app
from ledgerbeam.batch.cli.errors import print_error
from ledgerbeam.batch.cli.init import app as init_app
from ledgerbeam.batch.cli.inspection import app as inspection_app
from ledgerbeam.batch.cli.verbs import WITH_OWN_FLAGS, Json, help_or_name
from ledgerbeam.batch.cli.verbs import app as runs_app
from ledgerbeam.batch.define.dates import read_date
from ledgerbeam.batch.environments import FILE, NAME
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.model.exits import Exit, exit_of
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import names_registry
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.synthetic.formats import LoanFormat, TradeFormat

COMMANDS = "ledgerbeam.commands"
"""Entry points of commands that stand above this room.

The name of each is its verb, and its value a `typer.Typer` that has the verb. Its help is
the heading under which its commands stand in that of `ledgerbeam`.
"""

WORKLOADS = "Workloads"
"""A heading of the help."""

_DATE = "YYYY-MM-DD"

app = typer.Typer(
    name="ledgerbeam",
    help="Batch workloads over loans and trades, as Apache Beam pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
generate = typer.Typer(help="Make input to try workloads on.", no_args_is_help=True)
app.add_typer(generate, name="generate", rich_help_panel=WORKLOADS)


def _add(part: typer.Typer, group: str) -> None:
    """Add a part's commands, which stand in the help under that heading."""
    for command in part.registered_commands:
        command.rich_help_panel = group
    for others in part.registered_groups:
        others.rich_help_panel = group
    app.add_typer(part)


_add(init_app, WORKLOADS)
_add(runs_app, "Runs on record")
_add(inspection_app, "Runs on record")
_add(backfill_app, "Runs on record")
_add(comparisons_app, "Comparisons")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from ledgerbeam import __version__

        print_line(f"ledgerbeam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
    ] = False,
    env: Annotated[
        str | None,
        typer.Option("--env", metavar="NAME", help=f"an environment of {FILE}; or {NAME}"),
    ] = None,
) -> None:
    """Batch workloads over loans and trades, as Apache Beam pipelines."""
    if env is not None:
        # Processes that this one starts use it, too.
        os.environ[NAME] = env


@app.command(context_settings=WITH_OWN_FLAGS, rich_help_panel=WORKLOADS)
def run(
    context: typer.Context,
    workload: Annotated[
        str | None, typer.Argument(help="name of a workload", callback=help_or_name)
    ] = None,
) -> None:
    """Run WORKLOAD with its own flags, which `run WORKLOAD --help` shows; alone, list workloads."""
    interrupts.catch()
    if workload is None or workload == "--json":
        from ledgerbeam.batch.attempt.terminal import print_table
        from ledgerbeam.batch.define.workloads import descriptions

        found = descriptions()
        if workload is None:
            print_table(("workload", "what it does"), found.items())
            return
        for name, description in found.items():
            print_record("workload", {"name": name, "description": description})
        return
    raise typer.Exit(_run(workload, context.args))


@app.command(
    context_settings=WITH_OWN_FLAGS | {"help_option_names": ["-h", "--help"]},
    rich_help_panel=WORKLOADS,
)
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(help="a published instance, or a glob of files")],
    after: Annotated[str, typer.Argument(help="what is compared with it")],
) -> None:
    """Compare BEFORE with AFTER row by row; exit status 0 if they agree, 5 if they differ.

    Its other flags are those of `ledgerbeam run compare --help`.
    """
    interrupts.catch()
    arguments = [f"--before={before}", f"--after={after}", *context.args]
    raise typer.Exit(_run("compare", arguments))


def _run(workload: str, arguments: list[str]) -> int:
    """Run a workload, and give the exit status."""
    with contextlib.ExitStack() as stack:
        driver = None
        if _is_recorded(arguments):
            from ledgerbeam.batch.launch.spawn import driver_ahead

            driver = stack.enter_context(driver_ahead())
        from ledgerbeam.batch.cli.module import run_command
        from ledgerbeam.batch.define.workloads import load_workload

        return run_command(load_workload(workload), arguments, driver)


def _is_recorded(arguments: list[str]) -> bool:
    """Whether a workload's command line asks for a run on record."""
    if {"--plan", "--help", "-h"}.intersection(arguments):
        return False
    return any(a.partition("=")[0] == "--registry" for a in arguments) or names_registry(None)


@app.command(rich_help_panel=WORKLOADS)
def workloads(as_json: Json = False) -> None:
    """Print the workloads that are installed; `run` alone also says what they do."""
    from ledgerbeam.batch.define.workloads import descriptions, workload_names

    if as_json:
        for name, description in descriptions().items():
            print_record("workload", {"name": name, "description": description})
        return
    for name in workload_names():
        print_line(name)


@app.command("schema", rich_help_panel=WORKLOADS)
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="as `schema` in a line calls it, as in ledgerbeam/KIND/1")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the JSON schema of lines that `--json` prints; alone, list the kinds of lines."""
    from ledgerbeam.batch.cli.lines import all_lines
    from ledgerbeam.batch.json_schemas import json_schema

    models = all_lines(COMMANDS, COMPARISONS)
    if kind is not None and kind not in models:
        raise ParameterError(
            f"no lines are called {kind}: there are {', '.join(sorted(models))}",
            parameter="KIND",
            value=kind,
        )
    for name in sorted(models) if kind is None else [kind]:
        if as_json or kind is not None:
            print(json.dumps(json_schema(name, models[name]), indent=None if as_json else 2))
        else:
            print_line(name)


@app.command(rich_help_panel=WORKLOADS)
def verify(
    uri: Annotated[str, typer.Argument(help="a published instance, as a run prints it")],
    as_json: Json = False,
) -> None:
    """Check files, row counts and control totals of a published instance."""
    from ledgerbeam.batch.attempt.terminal import progress_bars
    from ledgerbeam.batch.attempt.verify import verify as verify_instance
    from ledgerbeam.batch.define.parameters import parameter_error
    from ledgerbeam.batch.define.workloads import load_workload
    from ledgerbeam.io.commit.amounts import shown, totals_json
    from ledgerbeam.io.commit.attempts import load_manifest
    from ledgerbeam.io.commit.records import damaged_record

    manifest = load_manifest(uri)
    process = load_workload(manifest.attempt.process)
    try:
        parameters = process.parameters_type.model_validate(manifest.attempt.parameters)
    except ValidationError as error:
        raise damaged_record(uri, str(parameter_error(error))) from error
    definition = process(parameters)
    with progress_bars() as bars:
        task = bars.add_task("verify", total=len(manifest.shards))
        controls = verify_instance(uri, definition, lambda: bars.advance(task))
    if as_json:
        totals = {control.name: control.actual for control in controls}
        shown_totals = totals_json(totals, manifest.attempt.total_decimals)
        record = {"uri": uri, "parts": len(manifest.shards), "controls": shown_totals}
        print_record("verified", record)
        return
    for control in controls:
        value = shown(control.name, control.actual, manifest.attempt.total_decimals)
        print_line(f"ok  {control.name}: {value}")
    parts = len(manifest.shards)
    files = "1 part" if parts == 1 else f"{parts:,} parts"
    print_line(f"{uri}: {files} and {len(controls)} control totals are as published")


@generate.command("trades")
def generate_trades(
    output: Annotated[str, typer.Option(help="folder, gs:// or s3:// URI of the files")],
    count: Annotated[int, typer.Option(min=0, help="how many trades")] = 1_000_000,
    trade_date: Annotated[
        datetime.date, typer.Option(parser=read_date, metavar=_DATE, help="the day of the trades")
    ] = datetime.date(2026, 11, 20),
    files: Annotated[int, typer.Option(min=1, help="over how many files they are spread")] = 16,
    format: Annotated[  # noqa: A002 - the flag's own name
        TradeFormat, typer.Option(help="of the files")
    ] = "parquet",
    seed: Annotated[int, typer.Option(help="the same seed gives the same trades")] = 7,
    bad_rows: Annotated[int, typer.Option(min=0, help="how many break the contract")] = 0,
    as_json: Json = False,
) -> None:
    """Make a day of trades, with a few large clients and many small ones."""
    from ledgerbeam.batch.attempt.terminal import progress_bars
    from ledgerbeam.synthetic.trades import write_trades

    with progress_bars() as bars:
        task = bars.add_task("generate", total=count)
        written = write_trades(
            output,
            count,
            files=files,
            format=format,
            trade_date=trade_date,
            seed=seed,
            bad_rows=bad_rows,
            progress=lambda rows: bars.advance(task, rows),
        )
    if as_json:
        rows = {"trades": written.rows}
        print_record("generated", {"output": output, "rows": rows, "files": len(written.uris)})
        return
    print_line(f"{written.rows:,} trades of {trade_date} in {files:,} files at {output}")


@generate.command("loans")
def generate_loans(
    output: Annotated[str, typer.Option(help="folder, gs:// or s3:// URI of the files")],
    count: Annotated[int, typer.Option(min=0, help="how many loans")] = 20_000,
    business_date: Annotated[
        datetime.date,
        typer.Option(
            parser=read_date, metavar=_DATE, help="the last day on which anything is posted"
        ),
    ] = datetime.date(2026, 11, 20),
    months: Annotated[int, typer.Option(min=1, help="how long the history is")] = 24,
    files: Annotated[int, typer.Option(min=1, help="over how many files each is spread")] = 8,
    format: Annotated[  # noqa: A002 - the flag's own name
        LoanFormat, typer.Option(help="of the files")
    ] = "parquet",
    seed: Annotated[int, typer.Option(help="the same seed gives the same loans")] = 7,
    bad_rows: Annotated[int, typer.Option(min=0, help="how many are added to be rejected")] = 0,
    as_json: Json = False,
) -> None:
    """Make loans, their investors, and a history of what was paid, late, in part and ahead."""
    from ledgerbeam.batch.attempt.terminal import progress_bars
    from ledgerbeam.synthetic.loans import write_loans

    with progress_bars() as bars:
        task = bars.add_task("generate", total=count)
        written = write_loans(
            output,
            count,
            files=files,
            format=format,
            business_date=business_date,
            months=months,
            seed=seed,
            bad_rows=bad_rows,
            progress=lambda loans: bars.advance(task, loans),
        )
    if as_json:
        rows = {"loans": written.loans, "transactions": written.transactions}
        print_record("generated", {"output": output, "rows": rows, "files": len(written.uris)})
        return
    print_line(
        f"{written.loans:,} loans and {written.transactions:,} transactions up to "
        f"{business_date} in {len(written.uris):,} files at {output}"
    )


def main() -> int:
    """Entry point; an error that the user can fix is one line."""
    _add_commands(sys.argv[1:])
    try:
        app()
    except UserError as error:
        print_error("ledgerbeam", error, "--json" in sys.argv[1:])
        return exit_of(error)
    return Exit.OK


def _add_commands(args: list[str]) -> None:
    """Add the commands of entry points: all of them for the help, else only the one asked for."""
    verb = verb_of(args)
    asked = {
        found.value: found for found in entry_points(group=COMMANDS) if verb in {None, found.name}
    }
    for _, found in sorted(asked.items()):
        part = found.load()
        _add(part, part.info.help)
