"""The verbs that show what became of a run: its log, the rows it rejected, its whole history."""

import csv
import itertools
import sys
from typing import Annotated

import typer

from ledgerbeam.batch.cli.verbs import RUN_HELP, Json, Limit, RegistryOrServer, RunText, open_runs
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import plain_text, print_fields, print_line
from ledgerbeam.io.errors import ParameterError

app = typer.Typer()

_COLUMNS = ("file", "row", "reason", "raw")


@app.command()
def logs(
    run: RunText,
    component: Annotated[
        str | None, typer.Option(help="only what names it, and what has become of it")
    ] = None,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Print a run's log on this machine: launcher, attempts and their workers."""
    from ledgerbeam.batch.observe.log import where_workers_log

    with open_runs(registry) as runs:
        for line in runs.logs(run, component):
            if as_json:
                print_record("log-line", {"line": line})
            else:
                print_line(line)
        elsewhere = where_workers_log(runs.find(run))
    if elsewhere:
        print_line(f"{run}: {elsewhere}", sys.stderr)


@app.command()
def rejects(
    run: RunText,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="print all of them as CSV, as they are in the source")
    ] = False,
    limit: Limit = 50,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """List the rows that a run has rejected: file, row, reason, and the row as in the source."""
    with open_runs(registry) as runs:
        tables = runs.rejects(run)
        rows = (row for table in tables for row in table.to_pylist())
        if as_csv:
            # To a file, what the source holds is written as it is, to be corrected and given back.
            shown = plain_text if sys.stdout.isatty() else str
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(_COLUMNS)
            for row in rows:
                writer.writerow([shown(row[name]) for name in _COLUMNS])
            return
        found = list(itertools.islice(rows, limit + 1))
    if as_json:
        for row in found[:limit]:
            print_record("rejected-row", row)
        return
    from ledgerbeam.batch.cli.tables import print_rejects

    print_rejects(found[:limit])
    if len(found) > limit:
        print_line("and more: --limit=NUMBER shows them, --csv prints them all", sys.stderr)


@app.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help=RUN_HELP)] = "",
    registry: RegistryOrServer = None,
    as_json: Json = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="check the hashes of all entries, in place of a RUN")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="print all entries there are, in place of a RUN")
    ] = False,
    after: Annotated[
        int, typer.Option(min=0, help="with --all: number of an entry; only those behind it")
    ] = 0,
    head: Annotated[
        str, typer.Option(metavar="HASH", help="that an earlier --verify has printed, to be found")
    ] = "",
) -> None:
    """Print the whole history of a run: who did what, when and why.

    With `--all`, print every entry, of all runs and of the service, oldest first; `--after` goes on
    behind the last one that you have.

    With `--verify`, check that no entry was changed or removed since `reconcile` has sealed it: of
    any run, or of requests, queues and keys of the service. Keep the hash that it prints elsewhere:
    whoever can write to the registry could make all hashes anew, but not that one.
    """
    if [bool(run), verify, everything].count(True) != 1:
        raise ParameterError("give a RUN, or --all, or --verify", parameter="RUN")
    if head and not verify:
        raise ParameterError("--head goes with --verify", parameter="--head", value=head)
    if verify:
        _verify_audit(registry, head, as_json)
        return
    if everything:
        _print_audit(registry, after, as_json)
        return
    with open_runs(registry) as runs:
        record = runs.find(run)
        events = runs.events(record.id)
    if as_json:
        for event in events:
            print_record("event", event.model_dump(mode="json"))
    else:
        from ledgerbeam.batch.cli import tables

        tables.print_history(record, events)


def _print_audit(registry: str | None, after: int, as_json: bool) -> None:
    with open_runs(registry) as runs:
        for entry in runs.audit(after):
            if as_json:
                print_record("audit-entry", entry.model_dump(mode="json"))
            else:
                at = f"{entry.at:%Y-%m-%d %H:%M:%S} UTC"
                what = f"{entry.action} {entry.name or entry.subject}"
                print_fields([str(entry.number), at, entry.who, what, entry.why])


def _verify_audit(registry: str | None, head: str, as_json: bool) -> None:
    with open_runs(registry) as runs:
        chain = runs.verify_audit(head)
    if as_json:
        print_record("audit-chain", chain._asdict())
        return
    from ledgerbeam.batch.attempt.terminal import print_pairs

    print_pairs(
        [
            ("entries as they were recorded", f"{chain.entries:,}"),
            ("entries not sealed yet", f"{chain.unsealed:,}"),
            ("hash", chain.head),
        ]
    )
