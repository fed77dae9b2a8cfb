"""The command `ledgerbeam`.

Every command imports what it needs when it is called, so that `list` and `get` answer at once.
"""

import datetime
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.cli.errors import print_error
from ledgerbeam.batch.cli.verbs import WITH_OWN_FLAGS, WorkloadName
from ledgerbeam.batch.cli.verbs import app as runs_app
from ledgerbeam.io.errors import UserError
from ledgerbeam.synthetic.formats import LoanFormat, TradeFormat

COMMANDS = "ledgerbeam.commands"
"""Entry points of commands that stand above this room.

The name of each is its verb, and its value a `typer.Typer` that has the verb.
"""

app = typer.Typer(
    name="ledgerbeam",
    help="Batch workloads over loans and trades, as Apache Beam pipelines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
generate = typer.Typer(help="Make input to try workloads on.", no_args_is_help=True)
app.add_typer(generate, name="generate")
app.add_typer(runs_app)


@app.command(context_settings=WITH_OWN_FLAGS)
def run(context: typer.Context, workload: WorkloadName) -> None:
    """Run WORKLOAD with its own flags; `ledgerbeam run WORKLOAD --help` shows them."""
    interrupts.catch()
    from ledgerbeam.batch.cli.module import main as run_main
    from ledgerbeam.batch.define.workloads import load_workload

    raise typer.Exit(run_main(load_workload(workload), context.args))


@app.command(context_settings=WITH_OWN_FLAGS | {"help_option_names": ["--help"]})
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(help="a published instance, or a glob of files")],
    after: Annotated[str, typer.Argument(help="what is compared with it")],
) -> None:
    """Compare BEFORE with AFTER row by row; exit status 0 if they agree, 5 if they differ.

    Its other flags are those of `ledgerbeam run compare --help`.
    """
    interrupts.catch()
    from ledgerbeam.batch.cli.module import main as run_main
    from ledgerbeam.batch.define.workloads import load_workload

    arguments = [f"--before={before}", f"--after={after}", *context.args]
    raise typer.Exit(run_main(load_workload("compare"), arguments))


@app.command()
def workloads() -> None:
    """Print the workloads that are installed."""
    from ledgerbeam.batch.define.workloads import workload_names

    for name in workload_names():
        print(name)


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="a published instance, as a run prints it")],
) -> None:
    """Check files, row counts and control totals of a published instance."""
    from ledgerbeam.batch.attempt.terminal import progress_bars
    from ledgerbeam.batch.attempt.verify import verify as verify_instance
    from ledgerbeam.batch.define.workloads import load_workload
    from ledgerbeam.batch.model.amounts import shown
    from ledgerbeam.io.commit.attempts import load_manifest

    manifest = load_manifest(uri)
    process = load_workload(manifest.attempt.process)
    definition = process(process.parameters_type.model_validate(manifest.attempt.parameters))
    with progress_bars() as bars:
        task = bars.add_task("verify", total=len(manifest.shards))
        controls = verify_instance(uri, definition, lambda: bars.advance(task))
    for control in controls:
        value = shown(control.name, control.actual, manifest.attempt.total_decimals)
        print(f"ok  {control.name}: {value}")
    parts = len(manifest.shards)
    files = "1 part" if parts == 1 else f"{parts:,} parts"
    print(f"{uri}: {files} and {len(controls)} control totals are as published")


@generate.command("trades")
def generate_trades(
    output: Annotated[str, typer.Option(help="folder, gs:// or s3:// URI of the files")],
    count: Annotated[int, typer.Option(min=0, help="how many trades")] = 1_000_000,
    trade_date: Annotated[
        datetime.datetime, typer.Option(formats=["%Y-%m-%d"], help="the day of the trades")
    ] = datetime.datetime(2026, 11, 20),  # noqa: DTZ001 - a date, which typer can't express
    files: Annotated[int, typer.Option(min=1, help="over how many files they are spread")] = 16,
    format: Annotated[  # noqa: A002 - the flag's own name
        TradeFormat, typer.Option(help="of the files")
    ] = "parquet",
    seed: Annotated[int, typer.Option(help="the same seed gives the same trades")] = 7,
    bad_rows: Annotated[int, typer.Option(min=0, help="how many break the contract")] = 0,
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
            trade_date=trade_date.date(),
            seed=seed,
            bad_rows=bad_rows,
            progress=lambda rows: bars.advance(task, rows),
        )
    print(f"{written.rows:,} trades of {trade_date.date()} in {files:,} files at {output}")


@generate.command("loans")
def generate_loans(
    output: Annotated[str, typer.Option(help="folder, gs:// or s3:// URI of the files")],
    count: Annotated[int, typer.Option(min=0, help="how many loans")] = 20_000,
    business_date: Annotated[
        datetime.datetime,
        typer.Option(formats=["%Y-%m-%d"], help="the last day on which anything is posted"),
    ] = datetime.datetime(2026, 11, 20),  # noqa: DTZ001 - a date, which typer can't express
    months: Annotated[int, typer.Option(min=1, help="how long the history is")] = 24,
    files: Annotated[int, typer.Option(min=1, help="over how many files each is spread")] = 8,
    format: Annotated[  # noqa: A002 - the flag's own name
        LoanFormat, typer.Option(help="of the files")
    ] = "parquet",
    seed: Annotated[int, typer.Option(help="the same seed gives the same loans")] = 7,
    bad_rows: Annotated[int, typer.Option(min=0, help="how many are added to be rejected")] = 0,
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
            business_date=business_date.date(),
            months=months,
            seed=seed,
            bad_rows=bad_rows,
            progress=lambda loans: bars.advance(task, loans),
        )
    print(
        f"{written.loans:,} loans and {written.transactions:,} transactions up to "
        f"{business_date.date()} in {len(written.uris):,} files at {output}"
    )


def main() -> int:
    """Entry point; an error that the user can fix is one line."""
    _add_commands(sys.argv[1:])
    try:
        app()
    except UserError as error:
        print_error("ledgerbeam", error, "--json" in sys.argv[1:])
        return 1
    return 0


def _add_commands(args: list[str]) -> None:
    """Add the commands of entry points: all of them for the help, else only the one asked for."""
    verb = next((arg for arg in args if not arg.startswith("-")), None)
    asked = {
        found.value: found for found in entry_points(group=COMMANDS) if verb in {None, found.name}
    }
    for _, found in sorted(asked.items()):
        app.add_typer(found.load())
