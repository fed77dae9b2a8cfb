"""The commands `days` and `backfill`: the business days of a range, and a workload over them."""

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.cli.verbs import (
    WITH_OWN_FLAGS,
    Json,
    RegistryOrServer,
    WorkloadName,
    open_runs,
)
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.dates import DATE_WORDS, date_of_word, read_date
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.batch.settings import Settings, server_of
from ledgerbeam.io.errors import ParameterError

if TYPE_CHECKING:
    from ledgerbeam.batch.model.run import RunRecord

EVERY_DAY = "none"
PLACE = "{date}"
"""Stands for a run's date in flags."""

app = typer.Typer()


def _date(text: str) -> datetime.date:
    return date_of_word(text, utc_now()) if text in DATE_WORDS else read_date(text)


First = Annotated[
    datetime.date, typer.Option("--from", parser=_date, metavar="DATE", help="the first day")
]
Last = Annotated[
    datetime.date, typer.Option("--to", parser=_date, metavar="DATE", help="the last day")
]
Calendar = Annotated[
    str,
    typer.Option(
        help=f"of the business days, such as XNYS; {EVERY_DAY} for every day; by default "
        "Mondays to Fridays"
    ),
]


@app.command()
def days(first: First, last: Last, calendar: Calendar = "", as_json: Json = False) -> None:
    """List the business days of a range, a line each; none where there is none."""
    for day in days_between(first, last, calendar):
        if as_json:
            print_record("day", {"date": day.isoformat(), "calendar": calendar})
        else:
            print_line(day.isoformat())


@app.command(context_settings=WITH_OWN_FLAGS)
def backfill(
    context: typer.Context,
    workload: WorkloadName,
    first: First,
    last: Last,
    calendar: Calendar = "",
    in_flight: Annotated[int, typer.Option(min=1, help="how many runs at once")] = 1,
    registry: RegistryOrServer = None,
    as_json: Json = False,
) -> None:
    """Run WORKLOAD for each business day, at most so many at once; again, go on where it stopped.

    Its own flags follow; {date} in them stands for the day, as in --trades='trades/{date}/*.csv'.
    A day that has succeeded is left as it is; after a failure no further day begins.
    """
    again = "runs that were submitted go on, and the same command goes on with the rest"
    interrupts.begin(f"backfill: interrupted: {again}")
    from ledgerbeam.batch.cli.arguments import parse_arguments
    from ledgerbeam.batch.define.parameters import flag_of
    from ledgerbeam.batch.define.workloads import load_workload
    from ledgerbeam.batch.runs.backfill import Submission
    from ledgerbeam.batch.runs.backfill import backfill as backfill_days
    from ledgerbeam.batch.runs.body import listed
    from ledgerbeam.batch.runs.reconcile import see_to_launcher

    process = load_workload(workload)
    flag = flag_of(process.date_parameter)
    if any(argument.partition("=")[0] == flag for argument in context.args):
        raise ParameterError(f"{flag} is given for each day: leave it out", parameter=flag)
    given = list(context.args)
    if calendar not in {"", EVERY_DAY} and "calendar" in process.parameters_type.model_fields:
        given.append(f"--calendar={calendar}")

    def submission_of(day: datetime.date) -> Submission:
        arguments = [argument.replace(PLACE, day.isoformat()) for argument in given]
        parsed = parse_arguments(process, [*arguments, f"{flag}={day}"])
        return parsed.parameters.model_dump(mode="json"), parsed.beam_flags

    chosen = days_between(first, last, calendar)
    if not chosen:
        raise ParameterError(
            f"there is no business day from {first} to {last}: give --from, --to and --calendar "
            "that hold one",
            parameter="--from",
            value=str(first),
        )
    failed = 0
    is_served = server_of(registry) is not None

    def see_to(run: "RunRecord") -> None:
        if not is_served:
            see_to_launcher(runs.registry, Settings.from_environment(registry), run, utc_now())

    try:
        with open_runs(registry, launches=True) as runs:
            given_days = (runs, workload, chosen, submission_of, in_flight)
            for run in backfill_days(*given_days, see_to):
                failed += run.status is not RunStatus.SUCCESS
                if as_json:
                    print_record("listed-run", listed(run).model_dump(mode="json"))
                else:
                    error = f": {run.error}" if run.error else ""
                    print_line(f"{run.name} {run.id} {run.status}{error}")
    except KeyboardInterrupt as interruption:
        interrupts.tell()
        raise typer.Exit(interrupts.status_of(interruption)) from None
    if failed:
        raise typer.Exit(Exit.FAILURE)


def days_between(first: datetime.date, last: datetime.date, calendar: str) -> list[datetime.date]:
    """The business days of a range, its first and its last day included.

    Args:
        first: of the range.
        last: of the range.
        calendar: code of the business days; `EVERY_DAY`, or empty for Mondays to Fridays.

    Raises:
        ParameterError: the calendar is unknown, or doesn't know the years.
    """
    days = [first + datetime.timedelta(number) for number in range((last - first).days + 1)]
    if calendar == "":
        days = [day for day in days if day.weekday() < 5]
    elif calendar != EVERY_DAY and days:
        import numpy as np

        from ledgerbeam.rules.calendar.business_days import business_calendar

        try:
            known = business_calendar(calendar, first.year, last.year)
            are_open = known.is_business_day(np.array(days, "datetime64[D]"))
        except ValueError as error:
            raise ParameterError(
                f"--calendar={calendar}: {error}", parameter="--calendar", value=calendar
            ) from error
        days = [day for day, is_open in zip(days, are_open, strict=True) if is_open]
    return days
