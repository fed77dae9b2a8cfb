"""The verbs on runs as commands of `ledgerbeam`; each takes `--registry` and `--json`."""

import datetime
import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledgerbeam.batch.cli.filters import read_pairs, read_since
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.json_lines import print_record, text_of
from ledgerbeam.batch.model.exits import EXITS_OF_RUNS, Exit
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import REGISTRY, SERVER, Settings, server_of
from ledgerbeam.io.errors import ParameterError, StorageError, WorkloadNotFoundError

if TYPE_CHECKING:
    from ledgerbeam.batch.launch.spawn import Spawn
    from ledgerbeam.batch.model.run import RunRecord
    from ledgerbeam.batch.runs.client import Runs
    from ledgerbeam.batch.runs.reading import RunView
    from ledgerbeam.io.commit.control_log import Steering

app = typer.Typer()

# Help texts are Rich's markup, in which a bracket begins a style.
RUN_HELP = r"a run's id, six or more characters of it, or process/instance\[/run-number]"
RunText = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
Registry = Annotated[
    str | None,
    typer.Option("--registry", help=f"database of runs; by default {REGISTRY}, or a local file"),
]
RegistryOrServer = Annotated[
    str | None,
    typer.Option(
        "--registry",
        "--server",
        metavar="URL",
        help=f"database of runs, or a service (https://…); by default {REGISTRY}, {SERVER}, or a "
        "local file",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, a line a record")]
Why = Annotated[str, typer.Option(help="the reason, for the record")]
# SQLite takes no number of more than 63 bits.
Limit = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="at most so many")]
Watch = Annotated[bool, typer.Option("--watch", help="show it live until the run has ended")]


def help_or_name(context: typer.Context, workload: str | None) -> str | None:
    """Show the command's help if `--help` stands in place of the workload's name.

    After the name, `--help` is one of the workload's own flags.
    """
    if workload in {"--help", "-h"}:
        typer.echo(context.get_help())
        raise typer.Exit
    return workload


WorkloadName = Annotated[
    str,
    typer.Argument(help="name of a workload, as `workloads` prints it", callback=help_or_name),
]
CLIENTS = "ledgerbeam.clients"
"""Group of the entry points of classes with the methods of `Runs`, by the scheme of their URLs."""

WITH_OWN_FLAGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
"""Context settings of a command that passes on a workload's flags."""


@contextmanager
def open_runs(
    registry: str | None, launches: bool = False, spawn_it: "Spawn | None" = None
) -> "Iterator[Runs]":
    """The runs of a registry, or those of a service, which has the same methods."""
    from ledgerbeam.batch.launch.spawn import spawn
    from ledgerbeam.batch.runs.client import Runs

    if server := server_of(registry):
        (client,) = entry_points(group=CLIENTS, name=server.partition(":")[0])
        with client.load()(server) as runs:
            yield runs
        return
    if launches:
        from ledgerbeam.batch.alerts.configuration import check_configuration

        check_configuration()
    with Runs(Settings.from_environment(registry), spawn_it=spawn_it or spawn) as runs:
        yield runs


def _print_view(view: "RunView") -> None:
    from ledgerbeam.batch.runs.body import RunBody, fields_of

    print_record("run", RunBody.model_validate(fields_of(view)).model_dump(mode="json"))


def _show(view: "RunView", as_json: bool) -> None:
    if as_json:
        _print_view(view)
    else:
        from ledgerbeam.batch.cli import tables

        tables.print_view(view, utc_now())


def _show_run(runs: "Runs", run: "RunRecord", as_json: bool) -> None:
    if as_json:
        _print_view(runs.get(run.id))
    else:
        print_line(f"{run.name} {run.id} {run.status}")


def _follow(runs: "Runs", run: str, as_json: bool, timeout: float | None, live: bool) -> int:
    """Wait for the run's end, and return the exit status for it."""
    from ledgerbeam.batch.attempt.terminal import PlainConsole

    console = PlainConsole()
    if as_json or not live or not sys.stdout.isatty() or console.is_dumb_terminal:
        view = runs.wait(run, timeout)
    else:
        from rich.live import Live

        from ledgerbeam.batch.cli import tables

        with Live(console=console, transient=True) as screen:
            view = runs.wait(
                run, timeout, lambda seen: screen.update(tables.view_table(seen, utc_now()))
            )
    _show(view, as_json)
    return EXITS_OF_RUNS[view.run.status]


@app.command(context_settings=WITH_OWN_FLAGS)
def submit(
    context: typer.Context,
    workload: WorkloadName,
    registry: RegistryOrServer = None,
    as_json: Json = False,
    watch: Watch = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="in place of a run whose parameters were wrong, if nothing is published; needs "
            "--why",
        ),
    ] = False,
    why: Why = "",
) -> None:
    """Record a run of WORKLOAD, given its own flags, and start it in the background.

    With `--plan` nothing is recorded: it prints what would be done.
    """
    from ledgerbeam.batch.define.workloads import load_workload

    with ExitStack() as stack:
        spawn_it = None
        is_to_start = not {"--plan", "--help", "-h"}.intersection(context.args)
        if is_to_start and server_of(registry) is None:
            from ledgerbeam.batch.launch.ahead import launcher_ahead

            # It imports what the run needs while this process does the same.
            spawn_it = stack.enter_context(launcher_ahead(Settings.from_environment(registry)))
        from ledgerbeam.batch.cli.arguments import given_parameters, parse_arguments

        try:
            kind = load_workload(workload)
        except WorkloadNotFoundError:
            if server_of(registry) is None:
                raise
            # The service has it, and checks what it is given.
            runs = stack.enter_context(open_runs(registry))
            run = runs.submit(workload, given_parameters(context.args), replace=replace, why=why)
            _submitted(runs, run, as_json, watch)
            return
        own = "Flags of submit itself, such as --replace and --watch: ledgerbeam submit --help.\n"
        parsed = parse_arguments(kind, context.args, more_help=own)
        if parsed.plan:
            from ledgerbeam.batch.cli.summary import print_plan

            print_plan(kind(parsed.parameters), as_json or parsed.json)
            return
        runs = stack.enter_context(open_runs(registry, launches=True, spawn_it=spawn_it))
        parameters = parsed.parameters.model_dump(mode="json")
        if not replace:
            parameters["reason"] = parameters["reason"] or why
        run = runs.submit(workload, parameters, parsed.beam_flags, replace=replace, why=why)
        _submitted(runs, run, as_json, watch)


def _submitted(runs: "Runs", run: "RunRecord", as_json: bool, watch: bool) -> None:
    if watch:
        raise typer.Exit(_follow(runs, run.id, as_json, None, live=True))
    _show_run(runs, run, as_json)


@app.command()
def get(
    run: RunText, registry: RegistryOrServer = None, as_json: Json = False, watch: Watch = False
) -> None:
    """Show how a run stands: status, progress, stuck components, attempts."""
    with open_runs(registry) as runs:
        if watch:
            raise typer.Exit(_follow(runs, run, as_json, None, live=True))
        _show(runs.get(run), as_json)


@app.command()
def wait(
    run: RunText,
    timeout: Annotated[float | None, typer.Option(help="seconds to wait at most")] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Wait for a run's end; exit status 0 for SUCCESS, 1 FAILURE, 3 CANCELED, 4 timed out."""
    with open_runs(registry) as runs:
        raise typer.Exit(_follow(runs, run, as_json, timeout, live=False))


@app.command("list")
def list_runs(
    process: Annotated[str | None, typer.Option(help="only its runs")] = None,
    status: Annotated[RunStatus | None, typer.Option(help="only those that have it")] = None,
    limit: Limit = 20,
    before: Annotated[str | None, typer.Option(help="only older ones than this run")] = None,
    since: Annotated[
        datetime.datetime | None,
        typer.Option(
            parser=read_since,
            metavar="TIME",
            help="only those submitted since: a date, today, yesterday, or 2026-11-20T08:00Z",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="only those with that parameter; may be repeated"),
    ] = None,
    requester: Annotated[
        str | None, typer.Option(metavar="WHO", help="only those that they have submitted")
    ] = None,
    error: Annotated[
        str | None, typer.Option(metavar="TEXT", help="only those with it in their error")
    ] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    with open_runs(registry) as runs:
        pairs = read_pairs(where or [])
        found = runs.list(process, status, limit, before, since, pairs, requester, error)
    if as_json:
        from ledgerbeam.batch.runs.body import listed

        for run in found:
            print_record("listed-run", listed(run).model_dump(mode="json"))
    else:
        from ledgerbeam.batch.cli import tables

        tables.print_runs(found)


@app.command()
def components(
    run: RunText,
    status: Annotated[ComponentStatus | None, typer.Option(help="only those that have it")] = None,
    limit: Limit = 50,
    after: Annotated[str | None, typer.Option(help="only those behind this component")] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """List what became of a run's components; `--json` has tracebacks and records at hand too."""
    with open_runs(registry) as runs:
        found = list(itertools.islice(runs.components(run, status, after), limit))
    if as_json:
        for outcome in found:
            print_record("component", outcome._asdict())
    else:
        from ledgerbeam.batch.cli import tables

        tables.print_outcomes(found)


@app.command()
def results(
    run: RunText,
    output: Annotated[Path | None, typer.Option(help="write them to this Parquet file")] = None,
    table: Annotated[str | None, typer.Option(help="an extra table in place of them")] = None,
    limit: Limit = 10,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Print what a run has published, or copy it into one file."""
    import pyarrow.parquet as pq

    from ledgerbeam.batch.attempt.terminal import print_table

    with open_runs(registry) as runs:
        dataset = runs.results(run, table)
    if output is not None:
        try:
            with pq.ParquetWriter(output, dataset.schema) as writer:
                for batch in dataset.to_batches():
                    writer.write_batch(batch)
        except OSError as error:
            raise StorageError(
                f"cannot write {output}: {error.strerror or error}", uri=str(output)
            ) from error
        rows_written = dataset.count_rows()
        if as_json:
            print_record("result-file", {"rows": rows_written, "output": str(output)})
        else:
            print_line(f"{rows_written:,} rows written to {output}")
        return
    rows = dataset.head(limit).to_pylist()
    if as_json:
        for row in rows:
            print_record("result", row)
        return
    cells = (["" if value is None else text_of(value) for value in row.values()] for row in rows)
    print_table(dataset.schema.names, cells)


@app.command()
def reports(
    run: RunText,
    output: Annotated[Path | None, typer.Option(help="copy them into this folder")] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Print where the reports are that a run has published, or copy them into one folder."""
    with open_runs(registry) as runs:
        places = runs.reports(run) if output is None else runs.copy_reports(run, output)
    if not places:
        print_line(f"{run}: its process gives no reports", sys.stderr)
    for place in places:
        if as_json:
            print_record("report", {"report": str(place)})
        else:
            print_line(place)


@app.command()
def cancel(
    run: RunText, why: Why = "", registry: RegistryOrServer = None, as_json: Json = False
) -> None:
    """Ask for a run to be stopped; it is CANCELED when nothing of it can commit any more."""
    with open_runs(registry) as runs:
        _show_run(runs, runs.cancel(run, why), as_json)


@app.command()
def pause(
    run: RunText, why: Why = "", registry: RegistryOrServer = None, as_json: Json = False
) -> None:
    """Begin no more components; those in flight go on."""
    with open_runs(registry) as runs:
        _show_run(runs, runs.pause(run, why), as_json)


@app.command()
def resume(
    run: RunText, why: Why = "", registry: RegistryOrServer = None, as_json: Json = False
) -> None:
    """Go on after a pause."""
    with open_runs(registry) as runs:
        _show_run(runs, runs.resume(run, why), as_json)


@app.command()
def retry(
    run: RunText,
    component: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="only this one of the failed ones; may be given again"),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="the right value of a parameter that was wrong; needs --why; may be given again",
        ),
    ] = None,
    why: Why = "",
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Try again what failed, as a new attempt with today's code."""
    parameters = dict(map(_parameter, changes or ()))
    with open_runs(registry, launches=True) as runs:
        _show_run(runs, runs.retry(run, why, component or (), parameters), as_json)


def _parameter(text: str) -> tuple[str, str]:
    """Name and value of a parameter, given as `name=value`, or as its flag."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ParameterError(
            f"--set {text}: give NAME=VALUE, such as max_rejects=10", parameter="--set", value=text
        )
    return name.removeprefix("--").replace("-", "_"), value


@app.command()
def restart(
    run: RunText,
    why: Why = "",
    force: Annotated[
        bool, typer.Option("--force", help="give up an attempt whose machine is gone; needs --why")
    ] = False,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Do whatever no attempt has committed."""
    with open_runs(registry, launches=True) as runs:
        _show_run(runs, runs.restart(run, why, force=force), as_json)


@app.command()
def resolve(
    run: RunText,
    component: Annotated[
        str, typer.Argument(help="one that is UNKNOWN, as `components` prints it")
    ],
    status: Annotated[
        ComponentStatus,
        typer.Argument(help="SUCCESS: its call took effect; FAILURE: it may be called again"),
    ],
    why: Annotated[str, typer.Option(help="what was found, and where; for the record")],
    results: Annotated[
        str | None, typer.Option(help="file with the rows that the call would have given")
    ] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Record how a call has ended whose outcome was unknown; the next `retry` uses it."""
    with open_runs(registry) as runs:
        runs.resolve(run, component, status, why, results)
    if as_json:
        print_record("resolution", {"component": component, "status": status})
    else:
        print_line(f"{component} {status}")


Number = Annotated[
    int | None,
    typer.Argument(help="of what was asked for, as `get` prints it; needed where several wait"),
]


@app.command()
def approve(
    run: RunText,
    number: Number = None,
    why: Why = "",
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Do what another person has asked for, where the definition wants it approved."""
    with open_runs(registry, launches=True) as runs:
        _show_run(runs, runs.approve(run, number, why), as_json)


@app.command()
def refuse(
    run: RunText,
    why: Annotated[str, typer.Option(help="the reason, for the record")],
    number: Number = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Refuse what another person has asked for; it isn't done."""
    with open_runs(registry) as runs:
        _show_run(runs, runs.refuse(run, why, number), as_json)


@app.command("set-parallelism")
def set_parallelism(
    run: RunText,
    parallelism: Annotated[str, typer.Argument(help="components in flight, or `none`")],
    why: Why = "",
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Change how many components or pages may be in flight over the whole run."""
    try:
        number = None if parallelism == "none" else int(parallelism)
    except ValueError:  # `int` reads no more than 4,300 digits either
        raise ParameterError(
            f"parallelism {parallelism}: give a whole number, or none",
            parameter="parallelism",
            value=parallelism,
        ) from None
    with open_runs(registry) as runs:
        steering = runs.set_parallelism(run, number, why)
    _show_limits(steering, as_json)


@app.command("set-rate")
def set_rate(
    run: RunText,
    rate: Annotated[str, typer.Argument(help="components a second, or `none`")],
    ramp_from: Annotated[
        float | None, typer.Option("--from", help="where a ramp to RATE begins")
    ] = None,
    over: Annotated[float | None, typer.Option(help="seconds that the ramp takes")] = None,
    why: Why = "",
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Change how many components a second may be begun over the whole run."""
    try:
        number = None if rate == "none" else float(rate)
    except ValueError:
        raise ParameterError(
            f"rate {rate}: give a number of components a second, or none",
            parameter="rate",
            value=rate,
        ) from None
    with open_runs(registry) as runs:
        steering = runs.set_rate(run, number, ramp_from, over, why)
    _show_limits(steering, as_json)


def _show_limits(steering: "Steering", as_json: bool) -> None:
    if as_json:
        print_record("limits", steering.model_dump(mode="json"))
    else:
        from ledgerbeam.batch.cli import tables

        print_line(tables.limits_text(steering) or "no limits")


@app.command()
def reconcile(
    scrub: Annotated[
        bool, typer.Option("--scrub", help="read all published files, and compare their hashes")
    ] = False,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Bring every run to the truth: for a cron, every minute."""
    from ledgerbeam.batch.alerts.configuration import check_configuration
    from ledgerbeam.batch.logs import configured_style
    from ledgerbeam.batch.runs.client import Runs
    from ledgerbeam.batch.runs.reconcile import reconcile as reconcile_runs

    settings = Settings.from_environment(registry)
    configured_style()
    with Runs(settings) as runs:
        actions = reconcile_runs(settings, runs, utc_now())
    for run, what in actions:
        if as_json:
            print_record("action", {"run": run.id, "name": run.name, "action": what})
        else:
            print_line(f"{run.name} {run.id}: {what}")
    # Runs aren't held up by those who are only notified of them.
    check_configuration()
    if scrub and _show_differences(registry, as_json):
        raise typer.Exit(Exit.DIFFERENT)


def _show_differences(registry: str | None, as_json: bool) -> bool:
    """Print where storage isn't what the registry says; whether that is anywhere."""
    from ledgerbeam.batch.runs.scrub import scrub

    differs = False
    with open_runs(registry) as runs:
        for run, what in scrub(runs.registry, runs.list()):
            differs = True
            if as_json:
                print_record("difference", {"run": run.id, "name": run.name, "difference": what})
            else:
                print_line(f"{run.name} {run.id}: {what}")
    return differs


@app.command()
def expire(registry: Registry = None, as_json: Json = False) -> None:
    """Delete results that are due; the records of runs stay."""
    with open_runs(registry) as runs:
        for run in runs.expire():
            if as_json:
                print_record("expired", {"run": run.id, "name": run.name, "uri": run.uri})
            else:
                print_line(f"{run.name} {run.id}: results deleted at {run.uri}")
