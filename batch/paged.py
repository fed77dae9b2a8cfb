"""From the definition of a page process to its pipeline.

A table that is cut beforehand is worked on partition by partition, on as many workers as there are:

    partitions ─ Spread ─ ExecutePartitions ─ commits ─┬─ Finish ─┐
                                                       └──────────┴─ Publish

A cursor, or a table that is split by count, can only be walked: each page tells where the next one
begins. One worker walks, and works on pages while it fetches those that follow. Batch runners hand
the outputs of a step on when the step has ended, so a walk that left its pages to other workers
would have ended before the first of them began.

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
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList

from ledgerbeam import __version__
from ledgerbeam.batch import connections, governor
from ledgerbeam.batch.connections import Transactions
from ledgerbeam.batch.execution import IN_FLIGHT
from ledgerbeam.batch.finish import Finish
from ledgerbeam.batch.outcomes import outcomes_table
from ledgerbeam.batch.page_process import MAX_CONNECTIONS, PageProcess, SqlPages
from ledgerbeam.batch.page_shard import PageDone, PageShard, ShardDone
from ledgerbeam.batch.page_source import CursorFetcher, FetchedPage, SqlFetcher
from ledgerbeam.batch.publish import PublishPages
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import WALK_WINDOW, Attempt, commits
from ledgerbeam.io.records import ShardCommit
from ledgerbeam.io.sql_keys import KeyRange
from ledgerbeam.transforms.ahead import call_ahead
from ledgerbeam.transforms.calls import DaemonPool
from ledgerbeam.transforms.in_flight import DoInFlight

_UNLIMITED = 32
_ROWS_AHEAD = 40_000
"""Rows fetched beyond the pages in flight: two fetches, so that one is there when one is spent."""


@dataclass(frozen=True)
class PagePlan:
    """All that the pipeline of a page process is built from.

    Attributes:
        process: the definition, with its parameters.
        attempt: where results go.
        committed: shards that earlier attempts on the same input have committed.
        retried: those of them whose failed components are tried again.
        snapshot: of the database, that all pages are read from; None where there is none.
    """

    process: PageProcess[Any]
    attempt: Attempt
    committed: tuple[ShardCommit, ...] = ()
    retried: tuple[ShardCommit, ...] = ()
    snapshot: str | None = None

    @property
    def kept(self) -> tuple[ShardCommit, ...]:
        """The markers that count as they are."""
        retried = {commit.shard for commit in self.retried}
        return tuple(commit for commit in self.committed if commit.shard not in retried)


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
        if plan.attempt.record.shards is None:
            done = (
                root
                | "Walk" >> beam.Create([None], reshuffle=False)
                | "WalkPages" >> beam.ParDo(DoInFlight(WalkPages(plan), 1))
            )
        else:
            kept = {commit.shard for commit in plan.kept}
            partitions = [n for n in range(plan.attempt.record.shards) if n not in kept]
            done = (
                root
                | "Partitions" >> beam.Create(partitions, reshuffle=False).with_output_types(int)
                | "Spread" >> beam.Reshuffle()
                | "ExecutePartitions" >> beam.ParDo(DoInFlight(ExecutePartition(plan), IN_FLIGHT))
            )
        committed = done | "CountCommitted" >> beam.Map(_count_committed)
        reports = committed | "Finish" >> Finish(plan.process, plan.attempt, plan.kept)
        publish = PublishPages(plan.process, plan.attempt, plan.kept)
        once = root | "Once" >> beam.Create([None])
        return once | "Publish" >> beam.Map(publish, AsList(committed), AsList(reports))


def _count_committed(commit: ShardCommit) -> ShardCommit:
    Metrics.counter("committed", "rows").inc(commit.part.rows)
    Metrics.counter("committed", "bytes").inc(commit.part.size)
    return commit


class _Worker:
    """What a worker process needs to work on pages."""

    def __init__(self, plan: PagePlan) -> None:
        """Hold the plan."""
        self._plan = plan
        self._retried = {commit.shard: commit for commit in plan.retried}

    def setup(self) -> None:
        """Put this process under the run's control."""
        process, attempt = self._plan.process, self._plan.attempt
        self._governor = governor.acquire(attempt.instance_uri, attempt.record.number)
        most = getattr(process.parameters, "max_connections", MAX_CONNECTIONS)
        self._engines = connections.acquire(attempt.uri, most)
        self._transactions = Transactions(f"{process.name}/{process.instance}", self._engines)

    def teardown(self) -> None:
        """Let go of all that."""
        connections.release(self._plan.attempt.uri)
        governor.release(self._governor)

    def _sql_fetcher(self) -> SqlFetcher:
        plan = self._plan
        return SqlFetcher(
            plan.process, plan.attempt, self._engines, self._transactions, plan.snapshot
        )

    def _shard(self, shard: int, fetcher: SqlFetcher | CursorFetcher) -> PageShard:
        plan = self._plan
        earlier = self._retried.get(shard)
        return PageShard(plan.process, plan.attempt, self._governor, shard, fetcher, earlier)

    def _weigh(self, fetched: FetchedPage) -> int:
        return len(fetched.page) if self._plan.process.executes_items() else 1

    def _bound(self) -> int:
        """How many pages, or items, to have at hand: in flight, or waiting for their turn."""
        share = self._governor.throttle.limits.parallelism or _UNLIMITED
        source = self._plan.process.source
        if self._plan.process.executes_items() or not isinstance(source, SqlPages):
            return 2 * share
        return share + max(share, _ROWS_AHEAD // source.page_rows)

    def _commit(
        self, shard: int, done: ShardDone, position: dict[str, Any] | None = None
    ) -> ShardCommit:
        plan = self._plan
        outcomes = None
        if done.outcomes:
            outcomes = plan.attempt.write_outcomes(shard, outcomes_table(done.outcomes))
        return plan.attempt.commit(
            ShardCommit(
                shard=shard,
                attempt=plan.attempt.record.number,
                code_version=__version__,
                part=plan.attempt.write_part(shard, done.results),
                outcomes=outcomes,
                key=list(plan.process.key),
                totals=done.totals,
                position=position,
            )
        )


class ExecutePartition(_Worker):
    """Fetches and executes the pages of a partition, and commits them as one shard."""

    def setup(self) -> None:
        """Put this process under the run's control."""
        super().setup()
        self._fetcher = self._sql_fetcher()

    def __call__(self, number: int) -> list[ShardCommit]:
        """The partition's marker.

        Raises:
            UserError: the source can't be read, or too many items fail.
        """
        attempt = self._plan.attempt
        before = attempt.find_commit(number)
        if before is not None:
            return [before]  # the bundle is repeated
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
        told: Counter[str] = Counter()
        try:
            for page in pages:
                done.append(page)
                told += self._tell(page)
            return [self._commit(number, shard.put_together(done))]
        finally:
            self._governor.count({status: -count for status, count in told.items()})

    def _tell(self, page: PageDone) -> "Counter[str]":
        """Tell of a page that is done, long before its partition is."""
        statuses = Counter(str(outcome.status) for outcome in page.outcomes)
        statuses[str(ComponentStatus.SUCCESS)] += len(page.names) - statuses.total()
        self._governor.count(statuses)
        return statuses


class WalkPages(_Worker):
    """Walks from page to page, executes them, and commits each as a shard."""

    def __call__(self, _: None) -> Iterator[ShardCommit]:
        """The markers of all pages that this attempt commits.

        Raises:
            UserError: a page can't be fetched, or too many items fail.
        """
        plan = self._plan
        # A bundle that is repeated goes on where it was.
        mine = commits(plan.attempt.instance_uri, [plan.attempt.record.number])
        yield from mine.values()
        known = {commit.shard: commit for commit in plan.committed} | mine
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
            # An empty table has no page, but columns.
            yield self._commit(0, self._shard(0, fetcher).put_together([]))


@functools.cache
def _page_pool() -> DaemonPool:
    """Threads that pages are executed in; not those of calls, which pages wait for."""
    return DaemonPool()
