"""The verbs that show why a run did not go as it should: its log, and the rows it rejected."""

import csv
import itertools
import sys
from typing import Annotated

import typer

from ledgerbeam.batch.cli.verbs import Json, RegistryOrServer, RunText, open_runs
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.plain_text import plain_text, print_line

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
    limit: Annotated[int, typer.Option(min=1, help="at most so many, unless as CSV")] = 50,
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
