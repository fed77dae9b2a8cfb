"""The pipeline of a page process.

A table that is cut beforehand is executed by partition, on all workers:

    partitions ─ Spread ─ ExecutePartitions ─ commits ─┬─ Finish ─┐
                                                       └──────────┴─ Publish

A cursor, or a table that is split by count, can only be walked, since the start of a page is known
only once the page before it was fetched. One worker walks, and executes pages while it fetches the
following ones. Batch runners pass on the outputs of a step only when the step has ended, so if
other workers executed the pages, the whole walk would end before the first page was executed.

    walk ─ WalkPages ─ commits ─┬─ Finish ─┐
                                └──────────┴─ Publish
"""

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsList

from ledgerbeam.batch import logs, traces
from ledgerbeam.batch.define.page_process import MAX_CONNECTIONS, PageProcess, SqlPages
from ledgerbeam.batch.execute import worker_control
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.batch.execute.reduce import Finish
from ledgerbeam.batch.execute.worker_control import IN_FLIGHT
from ledgerbeam.batch.model.outcomes import outcomes_table
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.pages.fetch import CursorFetcher, FetchedPage, SqlFetcher
from ledgerbeam.batch.pages.publish import PublishPages
from ledgerbeam.batch.pages.shard import PageDone, PageShard, ShardDone
from ledgerbeam.io.commit.attempts import WALK_WINDOW, commits
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.sql import connections
from ledgerbeam.io.sql.connections import Transactions
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.transforms.concurrency.ahead import call_ahead
from ledgerbeam.transforms.concurrency.calls import DaemonPool
from ledgerbeam.transforms.concurrency.executor import current_fence
from ledgerbeam.transforms.concurrency.in_flight import DoInFlight
from ledgerbeam.transforms.publish import Part, commit_part, count_committed

_UNLIMITED = 32
_ROWS_AHEAD = 40_000
"""Rows fetched beyond the pages in flight: two fetches, so that one is ready when one is used."""


@dataclass(frozen=True)
class PagePlan:
    """Everything that the pipeline of a page process is built from.

    Attributes:
        process: the definition, with its parameters.
        context: the context of the attempt.
        snapshot: the database snapshot that all pages are read from; None if there is none.
    """

    process: PageProcess[Any]
    context: AttemptContext
    snapshot: str | None = None


class PagedBatch(beam.PTransform):
    """Runs a plan: fetches pages, executes them, commits each shard, and publishes.

    Outputs one `Manifest`. It is applied to the root of a pipeline.
    """

    def __init__(self, plan: PagePlan) -> None:
        super().__init__()
        self._plan = plan

    def expand(self, root: Any) -> beam.PCollection:
        """Build one of the graphs that the module's docstring shows."""
        plan = self._plan
        if plan.context.attempt.record.shards is None:
            done = (
                root
                | "Walk" >> beam.Create([None], reshuffle=False)
                | "WalkPages" >> beam.ParDo(DoInFlight(WalkPages(plan), 1))
            )
        else:
            kept = {commit.shard for commit in plan.context.kept}
            partitions = [n for n in range(plan.context.attempt.record.shards) if n not in kept]
            done = (
                root
                | "Partitions" >> beam.Create(partitions, reshuffle=False).with_output_types(int)
                | "Spread" >> beam.Reshuffle()
                | "ExecutePartitions" >> beam.ParDo(DoInFlight(ExecutePartition(plan), IN_FLIGHT))
            )
        committed = done | "CountCommitted" >> beam.Map(count_committed)
        reports = committed | "Finish" >> Finish(
            plan.process, plan.context.attempt, plan.context.kept
        )
        publish = PublishPages(plan.process, plan.context.attempt, plan.context.kept)
        once = root | "Once" >> beam.Create([None])
        return once | "Publish" >> beam.Map(publish, AsList(committed), AsList(reports))


def _enter_commit() -> None:
    current_fence().enter_commit()


class _Worker:
    """What a worker process needs to execute pages."""

    def __init__(self, plan: PagePlan) -> None:
        self._plan = plan
        self._retried = {commit.shard: commit for commit in plan.context.retried}

    def setup(self) -> None:
        """Set up the log of this process, acquire its worker control and database connections."""
        process, attempt = self._plan.process, self._plan.context.attempt
        logs.configure_worker(attempt.record.run, attempt.record.number)
        self._worker_control = worker_control.acquire(attempt.instance_uri, attempt.record.number)
        most = getattr(process.parameters, "max_connections", MAX_CONNECTIONS)
        self._engines = connections.acquire(attempt.uri, most)
        self._transactions = Transactions(
            f"{process.name}/{process.instance}", self._engines, _enter_commit
        )

    def teardown(self) -> None:
        """Release the connections and the worker control."""
        connections.release(self._plan.context.attempt.uri)
        worker_control.release(self._worker_control)

    def _sql_fetcher(self) -> SqlFetcher:
        plan = self._plan
        return SqlFetcher(
            plan.process, plan.context.attempt, self._engines, self._transactions, plan.snapshot
        )

    def _shard(self, shard: int, fetcher: SqlFetcher | CursorFetcher) -> PageShard:
        plan = self._plan
        earlier = self._retried.get(shard)
        return PageShard(
            plan.process,
            plan.context.attempt,
            self._worker_control,
            shard,
            fetcher,
            earlier,
            plan.context.chosen,
        )

    def _weigh(self, fetched: FetchedPage) -> int:
        return len(fetched.page) if self._plan.process.executes_items() else 1

    def _bound(self) -> int:
        """How many pages or items may be in flight or fetched and waiting."""
        share = self._worker_control.throttle.limits.parallelism or _UNLIMITED
        source = self._plan.process.source
        if self._plan.process.executes_items() or not isinstance(source, SqlPages):
            return 2 * share
        return share + max(share, _ROWS_AHEAD // source.page_rows)

    def _commit(
        self, shard: int, done: ShardDone, position: dict[str, Any] | None = None
    ) -> ShardCommit:
        part = Part(
            done.results,
            done.totals.to_json(self._plan.process.total_names),
            self._plan.process.key,
            outcomes=outcomes_table(done.outcomes) if done.outcomes else None,
            position=position,
        )
        return commit_part(self._plan.context.attempt, shard, part)


class ExecutePartition(_Worker):
    """Fetches and executes the pages of a partition, and commits them as one shard."""

    def setup(self) -> None:
        """Acquire what a worker needs, and a fetcher."""
        super().setup()
        self._fetcher = self._sql_fetcher()

    def __call__(self, number: int) -> list[ShardCommit]:
        """Execute and commit a partition, and return its marker in a list.

        Raises:
            UserError: the source can't be read, or too many items fail.
        """
        before = self._plan.context.attempt.find_commit(number)
        if before is not None:
            return [before]  # Beam has repeated the bundle
        with traces.span("shard", shard=number):
            return self._execute(number)

    def _execute(self, number: int) -> list[ShardCommit]:
        attempt = self._plan.context.attempt
        shard = self._shard(number, self._fetcher)
        range_ = KeyRange.from_json(attempt.record.plan["ranges"][number])
        pages = call_ahead(
            self._fetcher.pages(number, range_, lambda page: True),
            lambda fetched: shard.execute(fetched.number, fetched.page),
            weigh=self._weigh,
            bound=self._bound,
            window=sys.maxsize,
            pool=_page_pool(),
        )
        done: list[PageDone] = []
        reported: Counter[str] = Counter()
        try:
            for page in pages:
                done.append(page)
                reported += self._report(page)
            return [self._commit(number, shard.put_together(done))]
        finally:
            self._worker_control.count({status: -count for status, count in reported.items()})

    def _report(self, page: PageDone) -> "Counter[str]":
        """Report a page that is done, long before its partition is."""
        statuses = Counter(str(outcome.status) for outcome in page.outcomes)
        statuses[str(ComponentStatus.SUCCESS)] += len(page.names) - statuses.total()
        self._worker_control.count(statuses)
        return statuses


class WalkPages(_Worker):
    """Walks from page to page, and executes and commits each page as a shard."""

    def __call__(self, _: None) -> Iterator[ShardCommit]:
        """Yield the markers of all pages that this attempt commits.

        Raises:
            UserError: a page can't be fetched, or too many items fail.
        """
        plan = self._plan
        # A repeated bundle continues behind what it has committed.
        mine = commits(plan.context.attempt.instance_uri, [plan.context.attempt.record.number])
        yield from mine.values()
        known = {commit.shard: commit for commit in plan.context.committed} | mine
        again = self._retried.keys() - mine.keys()
        is_sql = isinstance(plan.process.source, SqlPages)
        fetcher = self._sql_fetcher() if is_sql else CursorFetcher(plan.process, self._transactions)

        def wanted(number: int) -> bool:
            return number not in known or number in again

        if isinstance(fetcher, SqlFetcher):
            pages = fetcher.pages(0, KeyRange(), wanted)
        else:
            positions = {n: commit.position or {} for n, commit in known.items()}
            pages = fetcher.pages(positions, wanted)

        def execute(fetched: FetchedPage) -> ShardCommit:
            with traces.span("shard", shard=fetched.number):
                shard = self._shard(fetched.number, fetcher)
                page = shard.execute(fetched.number, fetched.page)
                return self._commit(fetched.number, shard.put_together([page]), fetched.position)

        count = len(known)
        for commit in call_ahead(
            pages,
            execute,
            weigh=self._weigh,
            bound=self._bound,
            window=WALK_WINDOW,
            pool=_page_pool(),
        ):
            count += 1
            yield commit
        if not count:
            # An empty table has no pages, but its results need columns.
            yield self._commit(0, self._shard(0, fetcher).put_together([]))


@functools.cache
def _page_pool() -> DaemonPool:
    """Threads that execute pages; separate from the threads of calls, for which pages wait."""
    return DaemonPool()
