"""Executing the pages of a shard: results, outcomes and totals, merged with those from before."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.batch.execution import MOST_FAILURES, Executor, records_table
from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.outcomes import (
    Outcome,
    component_name,
    decisions,
    outcomes_of,
    retries,
)
from ledgerbeam.batch.page_process import Page, PageProcess
from ledgerbeam.batch.page_source import CursorFetcher, SqlFetcher
from ledgerbeam.batch.process import Record
from ledgerbeam.batch.publish import READ
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part
from ledgerbeam.io.records import ShardCommit, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import component_starts
from ledgerbeam.transforms.totals import add_totals, exact_sum


class PageDone(NamedTuple):
    """What executing a page gave.

    Attributes:
        names: of all its components, in their order.
        results: of those that succeeded now.
        outcomes: of those executed now that did not just succeed.
        succeeded: names of those that just succeeded, where others were tried before.
        totals: counts and sums over what was executed now, or is lost since before.
    """

    names: list[str]
    results: pa.Table
    outcomes: list[Outcome]
    succeeded: list[str]
    totals: Totals


class ShardDone(NamedTuple):
    """What executing a shard gave.

    Attributes:
        results: of the components that succeeded, in the order of the pages.
        outcomes: of those that did not just succeed.
        totals: by name.
    """

    results: pa.Table
    outcomes: list[Outcome]
    totals: Totals


class PageShard:
    """Executes the pages of one shard, from several threads, and puts together what they give."""

    def __init__(
        self,
        process: PageProcess[Any],
        attempt: Attempt,
        governor: Governor,
        shard: int,
        fetcher: SqlFetcher | CursorFetcher,
        earlier: ShardCommit | None = None,
    ) -> None:
        """Begin with nothing executed.

        Args:
            process: the definition.
            attempt: in whose name it is done.
            governor: of this worker.
            shard: its number.
            fetcher: that gave the pages.
            earlier: the shard's marker of an earlier attempt, whose failed components are tried
                again and whose other results are kept.
        """
        self._process = process
        self._attempt = attempt
        self._key = process.key
        self._fetcher = fetcher
        self._earlier = earlier
        self._known: dict[str, Outcome] = {}
        if earlier is not None and earlier.outcomes is not None:
            found = outcomes_of(read_part(attempt.instance_uri, earlier.outcomes))
            self._known = {outcome.component: outcome for outcome in found}
        decided = decisions(attempt.instance_uri, shard, self._known.values())
        failed = {o.component for o in self._known.values() if o.status is ComponentStatus.FAILURE}
        self._again = failed | decided.keys()
        limit = process.failure_limit
        self._executor = Executor(
            process.retry,
            shard,
            attempt,
            governor,
            # What a share allows is known at the end of the pages only.
            most_failures=max(MOST_FAILURES, limit) if isinstance(limit, int) else sys.maxsize,
            tries={name: outcome.tries for name, outcome in self._known.items()},
            decided=decided,
            slow=True,
        )

    def execute(self, number: int, page: Page) -> PageDone:
        """Execute a page's components, or those that failed before.

        Raises:
            UserError: too many of its items fail, or two share a key.
        """
        process = self._process
        names = self._names(number, page)
        todo = list(range(len(names)))
        if self._earlier is not None:
            todo = [n for n in todo if names[n] in self._again]

        def name_of(unit: int) -> str:
            return names[todo[unit]]

        results = process.results
        assert results is not None
        if process.executes_items():
            items = [page.item(n, names[n]) for n in todo]
            each = self._executor.execute_each(items, process.execute_item, name_of, results)
        else:
            # A page of a table is empty only if its rows were deleted since it was cut.
            is_gone = self._fetcher.schema is not None and not len(page)
            execute = _nothing if is_gone else process.execute
            each = self._executor.execute_each([page] * len(todo), execute, name_of, results)
        table, counts = records_table(each, results, self._executor, name_of)
        succeeded = []
        for unit, (records, count) in enumerate(zip(each.records, counts, strict=True)):
            if records is None or unit in each.outcomes:
                continue
            if self._earlier is not None:
                succeeded.append(name_of(unit))
            elif not count:
                each.outcomes[unit] = self._executor.outcome(
                    name_of(unit), ComponentStatus.SUCCESS, 1, ""
                )
        lost = [todo[unit] for unit, records in enumerate(each.records) if records is None]
        rows = np.repeat(np.array(todo, np.int64), np.array(counts, np.int64))
        keys = [keys.take(pa.array(rows)) for keys in self._keys(number, page)]
        return PageDone(
            names,
            pa.table([*keys, *table.columns], schema=self._schema()),
            [each.outcomes[unit] for unit in sorted(each.outcomes)],
            succeeded,
            self._totals(page, names, todo, lost),
        )

    def put_together(self, pages: Sequence[PageDone]) -> ShardDone:
        """The shard's results from those of its pages."""
        process = self._process
        outcomes = dict(self._known)
        for page in pages:
            for outcome in page.outcomes:
                outcomes[outcome.component] = outcome
            for name in page.succeeded:
                before = self._known[name]
                outcomes[name] = Outcome(
                    name, ComponentStatus.SUCCESS, before.tries + 1, before.error
                )
        now = add_totals(page.totals for page in pages)
        none = self._schema().empty_table()
        results = pa.concat_tables([none, *(page.results for page in pages)])
        totals = {f"{READ}rows": 0, "rows": 0} | now
        if self._earlier is not None:
            results = self._merged(pages, results, self._earlier)
            totals = self._with_earlier(now, self._earlier.totals)
        results = results.combine_chunks()
        components = Components(results, component_starts(results, self._key))
        found = [outcome.status for outcome in outcomes.values()]
        return ShardDone(
            results,
            list(outcomes.values()),
            {
                "components": totals.pop("components", 0),
                "failed": found.count(ComponentStatus.FAILURE),
                "unknown": found.count(ComponentStatus.UNKNOWN),
                "result_rows": results.num_rows,
                "result_components": len(components.starts),
                **retries(outcomes.values()),
                **totals,
                **process.result_totals(components),
            },
        )

    def _names(self, number: int, page: Page) -> list[str]:
        if not self._process.executes_items():
            return [component_name((page.name,))]
        columns = [keys.to_pylist() for keys in self._keys(number, page)]
        names = [component_name(key) for key in zip(*columns, strict=True)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"page {number}: two items have the key ({', '.join(self._key)}) = {twice}: name "
                "columns in item_key that identify an item"
            )
        return names

    def _keys(self, number: int, page: Page) -> list[pa.ChunkedArray]:
        """The columns of the key, with a value for each component of the page."""
        if not self._process.executes_items():
            return [pa.chunked_array([[page.name]], pa.string())]
        if self._fetcher.schema is not None:
            return [page.table.column(name) for name in self._key]
        try:
            values = [[str(item[name]) for item in page.items] for name in self._key]
        except KeyError as error:
            raise UserError(
                f"page {number}: an item has no {error}, which is in item_key: name columns that "
                "every item has"
            ) from error
        return [pa.chunked_array([column], pa.string()) for column in values]

    def _schema(self) -> pa.Schema:
        results, source = self._process.results, self._fetcher.schema
        assert results is not None
        keys = [pa.field(name, pa.string()) for name in self._key]
        if source is not None and self._process.executes_items():
            keys = [source.field(name) for name in self._key]
        return pa.schema([*keys, *results])

    def _totals(self, page: Page, names: list[str], todo: list[int], lost: list[int]) -> Totals:
        """Sums over the components that were executed, or that nobody knows the outcome of."""
        unknown = [n for n, name in enumerate(names) if self._is_unknown(name)]
        read, failed = self._sums(page, todo + unknown), self._sums(page, lost + unknown)
        totals = {"components": len(names)}
        for name, value in read.items():
            totals |= {READ + name: value, name: value - failed[name]}
            if lost or unknown:
                totals[f"failed_{name}"] = failed[name]
        return totals

    def _is_unknown(self, name: str) -> bool:
        outcome = self._known.get(name)
        is_unknown = outcome is not None and outcome.status is ComponentStatus.UNKNOWN
        return is_unknown and name not in self._again

    def _sums(self, page: Page, numbers: list[int]) -> Totals:
        if self._process.executes_items():
            rows = {"rows": len(numbers)}
            if not self._fetcher.amounts:
                return rows
            table = page.table.take(pa.array(numbers, pa.int64()))
        else:
            rows = {"rows": len(page) if numbers else 0}
            if not self._fetcher.amounts:
                return rows
            table = page.table if numbers else page.table.slice(0, 0)
        return rows | {name: exact_sum(table.column(name)) for name in self._fetcher.amounts}

    def _with_earlier(self, now: Totals, before: Totals) -> Totals:
        totals = {"components": before["components"]}
        for read in (name for name in before if name.startswith(READ)):
            name = read.removeprefix(READ)
            lost = now.get(f"failed_{name}", 0)
            totals[read] = before[read] - before.get(f"failed_{name}", 0) + now.get(read, 0)
            totals[name] = totals[read] - lost
            if lost:
                totals[f"failed_{name}"] = lost
        return totals

    def _merged(self, pages: Sequence[PageDone], now: pa.Table, earlier: ShardCommit) -> pa.Table:
        """Results from before and from now, in the order of the components."""
        places = {name: n for n, name in enumerate(n for page in pages for n in page.names)}
        before = read_part(self._attempt.instance_uri, earlier.part).cast(now.schema)
        order: list[int] = []
        for table in (before, now):
            place = 0
            keys = (table.column(name).to_pylist() for name in self._key)
            for key in zip(*keys, strict=True):
                # What is in the source no more stays where it was.
                place = places.get(component_name(key), place)
                order.append(place)
        rows = np.argsort(np.array(order, np.int64), kind="stable")
        return pa.concat_tables([before, now]).take(pa.array(rows))


def _nothing(page: Page) -> Iterable[Record]:
    return ()
