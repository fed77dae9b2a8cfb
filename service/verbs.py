"""The commands that only a service has: `bulk` and `inline`."""

import datetime
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerbeam.batch.cli.filters import read_since
from ledgerbeam.batch.cli.verbs import WITH_OWN_FLAGS, Json, WorkloadName
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import SERVER, server_of
from ledgerbeam.io.errors import ParameterError, WorkloadNotFoundError
from ledgerbeam.service.bulk import BulkOf, BulkVerb, TargetState
from ledgerbeam.service.model import RequestState

if TYPE_CHECKING:
    from ledgerbeam.service.bulk import BulkPreview, BulkRecord
    from ledgerbeam.service.client import Client
    from ledgerbeam.service.model import InlineAnswer

app = typer.Typer(help="Service")
bulk = typer.Typer(
    help="Actions on many runs, requests or queues at once, which the service goes on with.",
    no_args_is_help=True,
)
app.add_typer(bulk, name="bulk")

Server = Annotated[
    str | None,
    typer.Option(metavar="URL", help=f"the service; by default {SERVER}"),
]
Action = Annotated[str, typer.Argument(metavar="ACTION", help="its id, as it was printed")]
Why = Annotated[str, typer.Option(help="the reason, for the record of each")]
Reason = Annotated[str, typer.Option("--why", help="the reason, for the record")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print what it would touch, and do nothing")
]
Wait = Annotated[bool, typer.Option("--wait", help="wait until it has ended")]
Kind = Annotated[str | None, typer.Option(help="only those of this workload")]
Status = Annotated[RunStatus | None, typer.Option(help="only runs that have it")]
Since = Annotated[
    datetime.datetime | None,
    typer.Option(
        parser=read_since, metavar="TIME", help="only runs submitted since: as for `list`"
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="only runs with that parameter; may be repeated"),
]
State = Annotated[RequestState | None, typer.Option(help="only requests that are in it")]
Requester = Annotated[str | None, typer.Option(help="only those that they have submitted")]
Text = Annotated[str | None, typer.Option("--error", help="only those with it in their error")]

_WAIT_SECONDS = 20


@contextmanager
def open_service(server: str | None) -> "Iterator[Client]":
    """A client of the service that is given, or that the environment names.

    Raises:
        ParameterError: none is.
    """
    from ledgerbeam.service.client import Client

    found = server_of(server)
    if found is None:
        raise ParameterError(
            f"this is done by a service: name one by --server, or by {SERVER}",
            parameter="--server",
            value=server,
        )
    with Client(found) as client:
        yield client


@bulk.command("cancel")
def cancel(
    why: Why,
    of: Annotated[BulkOf, typer.Option(help="runs or requests")] = BulkOf.RUNS,
    kind: Kind = None,
    status: Status = None,
    since: Since = None,
    where: Where = None,
    state: State = None,
    requester: Requester = None,
    error: Text = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Cancel all runs, or requests, that are found and haven't ended."""
    which = {"kind": kind, "status": status, "since": since, "where": where}
    which |= {"state": state, "requester": requester, "error": error}
    _act(of, BulkVerb.CANCEL, why, which, dry_run, wait, server, as_json)


@bulk.command("retry")
def retry(
    why: Why,
    kind: Kind = None,
    status: Status = None,
    since: Since = None,
    where: Where = None,
    requester: Requester = None,
    error: Text = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Retry all runs that are found and have ended without publishing."""
    which = {"kind": kind, "status": status, "since": since, "where": where}
    which |= {"requester": requester, "error": error}
    _act(BulkOf.RUNS, BulkVerb.RETRY, why, which, dry_run, wait, server, as_json)


@bulk.command("redrive")
def redrive(
    why: Why,
    kind: Kind = None,
    state: State = None,
    requester: Requester = None,
    error: Text = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Queue all requests again that are found and are DEAD or EXPIRED."""
    which = {"kind": kind, "state": state, "requester": requester, "error": error}
    _act(BulkOf.REQUESTS, BulkVerb.REDRIVE, why, which, dry_run, wait, server, as_json)


@bulk.command("release")
def release(
    why: Why,
    kind: Kind = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Release all queues that are held, or the one of a workload."""
    which = {"kind": kind}
    _act(BulkOf.QUEUES, BulkVerb.RELEASE, why, which, dry_run, wait, server, as_json)


@bulk.command("get")
def get(
    action: Action,
    targets: Annotated[
        TargetState | None, typer.Option(help="print targets that have come to that, too")
    ] = None,
    wait: Wait = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Show how an action stands."""
    with open_service(server) as client:
        found = client.get_bulk(action)
        while wait and found.ended_at is None:
            found = client.get_bulk(action, wait=_WAIT_SECONDS)
        _show(found, as_json)
        for target in client.bulk_targets(action, targets) if targets is not None else ():
            if as_json:
                print_record("bulk-target", target.model_dump(mode="json"))
            else:
                told = f": {target.told}" if target.told else ""
                print_line(f"{target.state} {target.kind} {target.id} {target.name}{told}")


@bulk.command("list")
def list_actions(
    limit: Annotated[int, typer.Option(min=1, max=200, help="at most so many")] = 20,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """List actions, newest first."""
    with open_service(server) as client:
        for found in client.list_bulk(limit):
            _show(found, as_json)


@bulk.command("approve")
def approve(action: Action, why: Reason = "", server: Server = None, as_json: Json = False) -> None:
    """Have an action carried out that another person has asked for."""
    with open_service(server) as client:
        _show(client.approve_bulk(action, why), as_json)


@bulk.command("refuse")
def refuse(
    action: Action,
    why: Annotated[str, typer.Option(help="the reason, for the record")],
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Refuse an action that waits for a second person."""
    with open_service(server) as client:
        _show(client.refuse_bulk(action, why), as_json)


@bulk.command("stop")
def stop(action: Action, why: Reason = "", server: Server = None, as_json: Json = False) -> None:
    """End an action where it has got to; what it has done stays done."""
    with open_service(server) as client:
        _show(client.cancel_bulk(action, why), as_json)


@app.command(context_settings=WITH_OWN_FLAGS)
def inline(
    context: typer.Context,
    workload: WorkloadName,
    key: Annotated[str, typer.Option(help="of the component, as `components` prints it")] = "",
    publish: Annotated[
        bool, typer.Option("--publish", help="record and publish it, as an instance of its own")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="that it may take")] = 30.0,
    why: Reason = "",
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Execute one component of WORKLOAD now, given its own flags, and print its rows.

    A service does it on a node; without one it is done here. Exit status 1 if the component fails.
    """
    if not key:
        raise ParameterError("--key is required: see `ledgerbeam inline --help`", parameter="--key")
    parameters = _parameters(workload, context.args)
    if server_of(server) is not None:
        with open_service(server) as client:
            answer = client.inline(
                workload, key, parameters, publish=publish, seconds=seconds, why=why
            )
    else:
        if publish:
            raise ParameterError(
                "--publish needs a service: name one by --server; without one, `ledgerbeam submit "
                f"{workload} --only-key={key} --watch` does the same",
                parameter="--publish",
            )
        from ledgerbeam.service.at_once.inline import execute
        from ledgerbeam.service.model import InlineAnswer

        facts = execute({"kind": workload, "key": key, "parameters": parameters})
        answer = InlineAnswer.model_validate({"kind": workload, "key": key, **facts})
    _show_answer(answer, as_json)
    if answer.state == "FAILURE" or answer.failures:
        raise typer.Exit(Exit.FAILURE)


def _parameters(workload: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The workload's parameters, which only a service may know."""
    from ledgerbeam.batch.cli.arguments import given_parameters, parse_arguments
    from ledgerbeam.batch.define.workloads import load_workload

    try:
        kind = load_workload(workload)
    except WorkloadNotFoundError:
        return given_parameters(arguments)
    # Results that nobody keeps need no place.
    has_output = any(flag.partition("=")[0] == "--output" for flag in arguments)
    parsed = parse_arguments(kind, [*arguments, *([] if has_output else ["--output=."])])
    if parsed.beam_flags:
        raise ParameterError(
            f"{parsed.beam_flags[0]}: one component goes to no runner: leave it out",
            parameter=parsed.beam_flags[0],
        )
    left_out = set() if has_output else {"output"}
    return parsed.parameters.model_dump(mode="json", exclude_unset=True, exclude=left_out)


def _show_answer(answer: "InlineAnswer", as_json: bool) -> None:
    if as_json:
        print_record("inline", answer.model_dump(mode="json"))
        return
    from ledgerbeam.batch.attempt.terminal import print_pairs, print_table

    for name, rows in {"": answer.results, **answer.tables}.items():
        if name:
            print_line(f"{name}: {len(rows):,}")
        if len(rows) == 1 and not name:
            print_pairs((column, _cell(value)) for column, value in rows[0].items())
        elif rows:
            print_table([*rows[0]], ([*map(_cell, row.values())] for row in rows))
    for row in answer.rejects:
        print_line(f"rejected: {row['file']} row {row['row']}: {row['reason']}", sys.stderr)
    for failure in answer.failures:
        print_line(f"{failure['component']} {failure['status']}: {failure['error']}", sys.stderr)
    if answer.error is not None:
        print_line(answer.error, sys.stderr)
    if answer.run_id is not None:
        print_line(f"run {answer.run_id} {answer.state}")


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _act(
    of: BulkOf,
    verb: BulkVerb,
    why: str,
    which: dict[str, Any],
    dry_run: bool,
    wait: bool,
    server: str | None,
    as_json: bool,
) -> None:
    with open_service(server) as client:
        if dry_run:
            _show_preview(client.preview_bulk(of, verb, why, **which), verb, of, as_json)
            return
        found = client.bulk(of, verb, why, **which)
        while wait and found.ended_at is None:
            found = client.get_bulk(found.id, wait=_WAIT_SECONDS)
    _show(found, as_json)
    if found.targets.get(TargetState.FAILED):
        raise typer.Exit(Exit.FAILURE)


def _show_preview(preview: "BulkPreview", verb: BulkVerb, of: BulkOf, as_json: bool) -> None:
    if as_json:
        print_record("bulk-preview", preview.model_dump(mode="json"))
        return
    for target in preview.targets:
        print_line(f"{target.kind} {target.id} {target.name}")
    counts = ", ".join(f"{count:,} of {kind}" for kind, count in preview.kinds.items())
    second = "; a second person has to approve it" if preview.approval else ""
    touched = f"{verb} would touch {preview.count:,} {of}"
    print_line(f"{touched}{f': {counts}' if counts else ''}{second}")


def _show(found: "BulkRecord", as_json: bool) -> None:
    if as_json:
        print_record("bulk", found.model_dump(mode="json"))
        return
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(found.targets.items()))
    print_line(f"{found.id} {found.verb} {found.of} {found.state}: {counts or 'nothing to do'}")
