"""Whether a run has found as many rows as are expected of its day, and rows that are new enough."""

import datetime
import re
from typing import Any

from ledgerbeam.batch.define.expect import Expect
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.records import Manifest, Totals, Volume
from ledgerbeam.io.errors import ComponentNotFoundError, StaleInputError, UnexpectedRowsError
from ledgerbeam.io.storage import stores, uris

_DAYS_BACK = 100
_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(.*?)(?:-run-(\d+))?")
"""Of an instance's folder: the date, the identity, the run number."""


def check_volume(
    process: BatchProcess[Any], rows: int, counts: Totals, newest: datetime.date | None
) -> Volume:
    """Compare the number of rows and their age with what is expected by definition or parameters.

    Args:
        process: the definition.
        rows: how many were found.
        counts: of the run, by name; for the error.
        newest: the last date in the columns that inputs are `dated_by`; None if there is none.

    Returns:
        What was expected and found, for the manifest.

    Raises:
        UnexpectedRowsError: there are too few rows, or their number has changed too much.
        StaleInputError: the newest row is too old.
        ComponentNotFoundError: only one key is wanted, and no row has it.
    """
    if only := getattr(process.parameters, "only_key", ""):
        # A day's worth isn't to be expected of one key.
        if not rows:
            raise ComponentNotFoundError(
                f"nothing published: no {process.rows_label} of {process.business_date} have the "
                f"key {only}: give it as `components` prints it, and see whether the input is "
                "right",
                component=only,
            )
        return Volume(rows=rows, min_rows=1, change=None, newest=newest, max_age_days=None)
    expect = _expected(process)
    date, label = process.business_date, process.rows_label
    if rows < expect.min_rows:
        so_many = f"{rows:,}" if rows else "no"
        fewest = f", and {expect.min_rows:,} or more are expected" if expect.min_rows > 1 else ""
        others = [
            f"{counts[name]:,} {words}"
            for name, words in (("other_dates", "of other dates"), ("rejected", "rejected"))
            if counts.get(name)
        ]
        without = f" (beside {' and '.join(others)})" if others else ""
        raise UnexpectedRowsError(
            f"nothing published: {so_many} {label} of {date} were found{without}{fewest}: see "
            f"whether the input is all there; if it is, allow it by --min-rows={rows}",
            rows=rows,
            expected=expect.min_rows,
        )
    limit = expect.max_age
    if newest is not None and limit is not None and date - newest > limit:
        raise StaleInputError(
            f"nothing published: the newest row is of {newest}, {(date - newest).days:,} days "
            f"before {date}, and the most expected is {limit.days:,}: see whether the date is "
            "right, and the input the last one; if they are, allow it by --max-age=none",
            newest=newest.isoformat(),
            max_age=limit.days,
        )
    found = Volume(
        rows=rows,
        min_rows=expect.min_rows,
        change=expect.change,
        newest=newest,
        max_age_days=None if limit is None else limit.days,
    )
    last = None if expect.change is None else _last_before(process)
    if last is None or last.volume is None:
        return found
    before = last.volume.rows
    if not expect.allows_change(rows, before):
        share = abs(rows - before) * 100 // before
        raise UnexpectedRowsError(
            f"nothing published: {rows:,} {label} of {date} were found, {share:,}% "
            f"{'more' if rows > before else 'fewer'} than the {before:,} of "
            f"{last.attempt.instance}, and the most expected is {expect.change}: see whether the "
            "input is right; if it is, allow it by --max-change=none",
            rows=rows,
            expected=before,
        )
    return found.model_copy(update={"compared_with": last.attempt.instance, "rows_before": before})


def _expected(process: BatchProcess[Any]) -> Expect:
    """What the definition expects, unless the run was told otherwise."""
    given, expect = process.parameters, process.expect
    change = given.max_change or expect.change
    age = expect.max_age
    if given.max_age:
        age = None if given.max_age == "none" else datetime.timedelta(days=int(given.max_age))
    return Expect(
        min_rows=expect.min_rows if given.min_rows is None else given.min_rows,
        change=None if change == "none" else change,
        max_age=age,
    )


def _last_before(process: BatchProcess[Any]) -> Manifest | None:
    """The manifest of the last instance of an earlier date that has the same identity."""
    folder = uris.join(uris.absolute(process.parameters.output), process.name)
    date = process.business_date
    identity = process.instance_name.removeprefix(date.isoformat())
    for back in range(1, _DAYS_BACK + 1):
        day = (date - datetime.timedelta(back)).isoformat()
        pattern = uris.join(uris.escape(folder), uris.escape(f"{day}{identity}") + "*")
        of_day = []
        for found in stores.find(uris.join(pattern, "manifest.json")):
            instance = found.uri.removesuffix("/manifest.json")
            name = _NAME.fullmatch(uris.base_name(instance))
            if name is not None and name[2] == identity:
                of_day.append((int(name[3] or 1), instance))
        if of_day:
            return load_manifest(max(of_day)[1])
    return None
