"""Executing the pages of a shard, and merging their results with those of earlier attempts."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.batch.define.page_process import Page, PageProcess
from ledgerbeam.batch.execute.executor import EarlierOutcomes, shard_executor
from ledgerbeam.batch.execute.worker_control import WorkerControl
from ledgerbeam.batch.model.outcomes import Outcome, retries
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.pages.fetch import CursorFetcher, SqlFetcher
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import component_name, component_starts
from ledgerbeam.transforms.columnar.shard_totals import ShardTotals
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals, table_totals
from ledgerbeam.transforms.concurrency.executor import MAX_FAILURES
from ledgerbeam.transforms.concurrency.rows import GivenRows


class PageDone(NamedTuple):
    """The result of executing a page.

    Attributes:
        names: names of all components of the page, in their order.
        results: results of the components that succeeded in this attempt.
        outcomes: outcomes of the components executed in this attempt, without plain successes.
        succeeded: names of the components whose retry succeeded at the first try; empty if the
            shard was not executed by an earlier attempt.
        read: totals over the components that were executed in this attempt, or are still failed or
            unknown from an earlier one.
        lost: totals over those of them that failed or are unknown.
    """

    names: list[str]
    results: pa.Table
    outcomes: list[Outcome]
    succeeded: list[str]
    read: TableTotals
    lost: TableTotals


class ShardDone(NamedTuple):
    """The result of executing a shard.

    Attributes:
        results: results of the components that succeeded, in the order of the pages.
        outcomes: outcomes of components, without plain successes.
        totals: totals of the shard.
    """

    results: pa.Table
    outcomes: list[Outcome]
    totals: ShardTotals


class PageShard:
    """Executes the pages of one shard, from several threads, and combines their results."""

    def __init__(
        self,
        process: PageProcess[Any],
        attempt: Attempt,
        worker_control: WorkerControl,
        shard: int,
        fetcher: SqlFetcher | CursorFetcher,
        earlier: ShardCommit | None = None,
        chosen: frozenset[str] | None = None,
    ) -> None:
        """Prepare a shard.

        Args:
            process: the definition.
            attempt: the attempt that executes the shard.
            worker_control: the control of this worker process.
            shard: the number of the shard.
            fetcher: the fetcher of the pages.
            earlier: the shard's marker of an earlier attempt. Its failed components are tried
                again, and its other results are kept.
            chosen: names of the components that alone are tried again; None for all of those.
        """
        self._process = process
        self._attempt = attempt
        self._key = process.key
        self._fetcher = fetcher
        self._earlier = earlier
        self._before = EarlierOutcomes.read(attempt, shard, earlier, chosen)
        self._again = self._before.retried
        limit = process.failure_limit
        # The count that a share allows is known only after the last page.
        max_failures = max(MAX_FAILURES, limit) if isinstance(limit, int) else sys.maxsize
        self._executor = shard_executor(
            process, attempt, worker_control, shard, self._before, max_failures, pooled=True
        )

    def execute(self, number: int, page: Page) -> PageDone:
        """Execute a page's components, or only those to retry if an earlier attempt has run.

        Raises:
            UserError: too many items fail, or two of them share a key.
        """
        process = self._process
        names = self._names(number, page)
        todo = list(range(len(names)))
        if self._earlier is not None:
            todo = [n for n in todo if names[n] in self._again]
        of_units = [names[n] for n in todo]
        results = process.results
        assert results is not None
        if process.executes_items():
            items = [page.item(n, names[n]) for n in todo]
            each = self._executor.execute_each(items, process.execute_item, of_units, results)
        else:
            # A page of a table is empty only if its rows were deleted since it was cut.
            is_gone = self._fetcher.schema is not None and not len(page)
            execute: Callable[[Any], GivenRows] = _nothing if is_gone else process.execute
            each = self._executor.execute_each([page] * len(todo), execute, of_units, results)
        now = self._before.outcomes_now(each, of_units)
        succeeded = []
        for unit, (name, count) in enumerate(zip(of_units, each.counts, strict=True)):
            if unit in now:
                continue
            if self._earlier is not None:
                succeeded.append(name)
            elif not count:
                now[unit] = Outcome(name, ComponentStatus.SUCCESS)
        lost = [todo[unit] for unit in sorted(each.failed)]
        rows = np.repeat(np.array(todo, np.int64), np.array(each.counts, np.int64))
        keys = [keys.take(pa.array(rows)) for keys in self._keys(number, page)]
        return PageDone(
            names,
            pa.table([*keys, *each.table.columns], schema=self._schema()),
            [now[unit] for unit in sorted(now)],
            succeeded,
            *self._totals(page, names, todo, lost),
        )

    def put_together(self, pages: Sequence[PageDone]) -> ShardDone:
        """Combine the results of the shard's pages."""
        process = self._process
        outcomes = dict(self._before.outcomes)
        for page in pages:
            for outcome in page.outcomes:
                outcomes[outcome.component] = outcome
            for name in page.succeeded:
                before = self._before.outcomes[name]
                outcomes[name] = before._replace(
                    status=ComponentStatus.SUCCESS, tries=before.tries + 1
                )
        components = sum(len(page.names) for page in pages)
        read, lost = NO_ROWS, NO_ROWS
        for page in pages:
            read, lost = read + page.read, lost + page.lost
        none = self._schema().empty_table()
        results = pa.concat_tables([none, *(page.results for page in pages)])
        if self._earlier is not None:
            results = self._merged(pages, results, self._earlier)
            stored = ShardTotals.from_json(self._earlier.totals, process.total_names)
            components = stored.components
            read += stored.read[0] - stored.lost[0]
        results = results.combine_chunks()
        with_rows = Components(results, component_starts(results, self._key))
        found = [outcome.status for outcome in outcomes.values()]
        totals = ShardTotals(
            components=components,
            failed=found.count(ComponentStatus.FAILURE),
            unknown=found.count(ComponentStatus.UNKNOWN),
            retries=retries(outcomes.values()),
            result_rows=results.num_rows,
            result_components=len(with_rows.starts),
            results=(read - lost,),
            lost=(lost,),
            read=(read,),
        ).with_own(process.result_totals(with_rows), process.total_names)
        return ShardDone(results, list(outcomes.values()), totals)

    def _names(self, number: int, page: Page) -> list[str]:
        if not self._process.executes_items():
            return [component_name((page.name,))]
        columns = [keys.to_pylist() for keys in self._keys(number, page)]
        names = [component_name(key) for key in zip(*columns, strict=True)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DefinitionError(
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
            raise DefinitionError(
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

    def _totals(
        self, page: Page, names: list[str], todo: list[int], lost: list[int]
    ) -> tuple[TableTotals, TableTotals]:
        """Totals over components that were executed, and over those of them that failed.

        Those that are left as earlier attempts have left them, failed or unknown, are in both.
        """
        left = [n for n, name in enumerate(names) if self._is_left(name)]
        return self._sums(page, todo + left), self._sums(page, lost + left)

    def _is_left(self, name: str) -> bool:
        """Whether a component has no results from earlier attempts, and isn't tried again."""
        outcome = self._before.outcomes.get(name)
        is_lost = outcome is not None and outcome.status is not ComponentStatus.SUCCESS
        return is_lost and name not in self._again

    def _sums(self, page: Page, numbers: list[int]) -> TableTotals:
        """Totals over some components of a page: its items, or the page itself."""
        is_by_item = self._process.executes_items()
        if not self._fetcher.amounts:
            whole = len(page) if numbers else 0
            return TableTotals(len(numbers) if is_by_item else whole)
        rows = pa.array(numbers, pa.int64())
        table = page.table.take(rows) if is_by_item else page.table
        return table_totals(table if numbers else table.slice(0, 0), self._fetcher.amounts)

    def _merged(self, pages: Sequence[PageDone], now: pa.Table, earlier: ShardCommit) -> pa.Table:
        """Results of an earlier attempt and of this one, in the order of the components."""
        places = {name: n for n, name in enumerate(n for page in pages for n in page.names)}
        before = read_part(self._attempt.instance_uri, earlier.part).cast(now.schema)
        order: list[int] = []
        for table in (before, now):
            place = 0
            keys = (table.column(name).to_pylist() for name in self._key)
            for key in zip(*keys, strict=True):
                # A component that is no longer in the source stays behind the one before it.
                place = places.get(component_name(key), place)
                order.append(place)
        rows = np.argsort(np.array(order, np.int64), kind="stable")
        return pa.concat_tables([before, now]).take(pa.array(rows))


def _nothing(page: Page) -> GivenRows:
    return ()
