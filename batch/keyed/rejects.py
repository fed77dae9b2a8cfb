"""Rejected rows, with the file and the row where they stood."""

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.keyed.plan import Plan
from ledgerbeam.io.datasets.readers import ROW_LOCATION, raw_rows, unpack_location
from ledgerbeam.io.datasets.rejections import RowLocator, rejections_table
from ledgerbeam.io.storage import uris
from ledgerbeam.transforms.shuffle import RejectedRowsOfShard


def with_row_locations(results: Results, places: RowLocator) -> Results:
    """Results with the columns `file` and `row` in place of `ROW_LOCATION`, if they have it."""

    def located(table: pa.Table) -> pa.Table:
        if ROW_LOCATION not in table.column_names:
            return table
        positions = table.column(ROW_LOCATION).to_pylist()
        found = [
            (None, None) if position is None else places.locate(*unpack_location(position))
            for position in positions
        ]
        table = table.drop_columns(ROW_LOCATION)
        table = table.append_column("file", pa.array([file for file, _ in found], pa.string()))
        return table.append_column("row", pa.array([row for _, row in found], pa.int64()))

    return results.each(located)


def rejected_table(
    plan: Plan, rejected: Iterable[RejectedRowsOfShard], locator: RowLocator
) -> pa.Table:
    """Rows that were rejected once all rows of their shard were together, by `REJECTS_SCHEMA`.

    Args:
        plan: the plan of the attempt.
        rejected: the rejected rows by input and kind of rejection.
        locator: finds where rows stood in their files.
    """
    return rejections_table(
        [row for rows in rejected for row in _rejections_of(plan, rows, locator)]
    )


def _rejections_of(
    plan: Plan, rejected: RejectedRowsOfShard, places: RowLocator
) -> list[tuple[str, int, str, str]]:
    key, inputs = plan.process.key, plan.process.inputs
    positions = rejected.rows.column(ROW_LOCATION).to_pylist()
    located = [places.locate(*unpack_location(position)) for position in positions]
    # Columns with `__` were added by the framework or the definition, and aren't in the file.
    own = [name for name in rejected.rows.column_names if not name.startswith("__")]
    table = rejected.rows.select(own)
    if rejected.reasons:
        raw = raw_rows(table, list(range(table.num_rows)))
        return [
            (*place, line, reason)
            for place, line, reason in zip(located, raw, rejected.reasons, strict=True)
        ]
    ids = inputs[rejected.input].identity(key)
    names = key if rejected.is_orphan else (*key, *(name for name in ids if name not in key))
    identities = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    same: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for identity, (file, row) in zip(identities, located, strict=True):
        same[identity].append(f"{uris.base_name(file)} row {row}")
    raw = raw_rows(table, list(range(table.num_rows)))
    return [
        (
            *place,
            line,
            _orphan(names, identity, inputs[0].name)
            if rejected.is_orphan
            else _reason(names, identity, same[identity]),
        )
        for place, line, identity in zip(located, raw, identities, strict=True)
    ]


def _reason(names: tuple[str, ...], identity: tuple[object, ...], places: list[str]) -> str:
    *key, last = [f"{name} {value}" for name, value in zip(names, identity, strict=True)]
    of_key = f" for {', '.join(key)}" if key else ""
    shown = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
    return f"{last} comes {len(places)} times{of_key}: {shown}"


def _orphan(names: tuple[str, ...], identity: tuple[object, ...], first: str) -> str:
    key = ", ".join(f"{name} {value}" for name, value in zip(names, identity, strict=True))
    return f"there is no {key} in {first}"
