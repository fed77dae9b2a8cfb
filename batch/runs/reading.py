"""What is read of runs: how they stand, what has become of their components, their results.

Each method imports what it needs when it is called: most of them are asked for by short programs,
which would else import Arrow for nothing.
"""

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.io.errors import IllegalMoveError, WaitTimeoutError
from ledgerbeam.io.storage import uris

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from ledgerbeam.batch.model.approval import Approval
    from ledgerbeam.batch.model.outcomes import FailureGroup, Outcome
    from ledgerbeam.batch.observe.progress import Progress, ProgressReader
    from ledgerbeam.batch.registry.audit_chain import AuditChain
    from ledgerbeam.batch.registry.audit_export import ChainedEntry

_POLL_SECONDS = 0.3


class RunView(NamedTuple):
    """A run as `get` shows it.

    Attributes:
        run: what the registry says, its attempts included.
        progress: what object storage says.
        code: code of the error by which the run has failed; None if it hasn't, or if that isn't
            known.
        failures: the components that failed or are unknown, by kind of error, most frequent first.
            Views that a tracker is called with have them only when the run has ended.
        rejected: rows that were rejected, as far as is known; as the failures, not in all views.
        approvals: what waits for a second person; as the failures.
    """

    run: RunRecord
    progress: "Progress"
    code: str | None = None
    failures: "Sequence[FailureGroup]" = ()
    rejected: int = 0
    approvals: "Sequence[Approval]" = ()


class Tracker(Protocol):
    """Is called by `Runs.wait` with how a run goes."""

    def __call__(self, view: RunView) -> None:
        """Called at an interval, and once at the end."""


class RunsReader:
    """What can be read of the runs of a registry. `Runs` has these methods too."""

    def __init__(
        self,
        settings: Settings,
        who: str | None = None,
        now: Clock = utc_now,
    ) -> None:
        """Open the registry.

        Args:
            settings: where it is.
            who: signs events; by default `user@host`.
            now: the present time in UTC.

        Raises:
            UserError: it can't be opened.
        """
        self.registry = Registry.open(settings.registry_url)
        self._settings = settings
        self._who = who or whoami()
        self._now = now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.registry.close()

    def find(self, run: str) -> RunRecord:
        """What is on record of a run.

        Args:
            run: its id, six or more characters of it, or `process/instance[/run-number]`.

        Raises:
            RunNotFoundError: there is no such run.
        """
        return self.registry.find(run)

    def get(self, run: str) -> RunView:
        """How a run stands.

        Args:
            run: its id, six or more characters of it, or `process/instance[/run-number]`.

        Raises:
            RunNotFoundError: there is no such run.
        """
        from ledgerbeam.batch.observe.progress import ProgressReader

        record = self.registry.find(run)
        return self.view(record, ProgressReader(record.uri))

    def view(
        self, record: RunRecord, reader: "ProgressReader", failed_shards: int | None = None
    ) -> RunView:
        """How a run stands, seen by a reader that has looked at it before.

        Args:
            record: of the run.
            reader: of its progress.
            failed_shards: at how many shards the failures are looked for; by default all that have
                some.
        """
        return self._whole(self._view(record, reader), reader, failed_shards)

    def wait(
        self,
        run: str,
        timeout: float | None = None,
        tracker: Tracker | None = None,
        interval: float = 1.0,
    ) -> RunView:
        """Wait until a run has ended.

        Args:
            run: which.
            timeout: seconds to wait at most; None to wait without a limit.
            tracker: called at the interval, and once at the end.
            interval: seconds between two calls of the tracker.

        Returns:
            How the run stands at its end, whether or not that is a success.

        Raises:
            WaitTimeoutError: it hasn't ended within that time, and goes on.
        """
        from ledgerbeam.batch.observe.progress import ProgressReader

        record = self.registry.find(run)
        reader = ProgressReader(record.uri)
        started = time.monotonic()
        tracked_at = float("-inf")
        while True:
            record = self.registry.get(record.id)
            is_late = timeout is not None and time.monotonic() - started >= timeout
            if record.status.is_final or is_late or time.monotonic() - tracked_at >= interval:
                tracked_at = time.monotonic()
                view = self._view(record, reader)
                if record.status.is_final:
                    view = self._whole(view, reader)
                if tracker is not None:
                    tracker(view)
            if record.status.is_final:
                return view
            if is_late:
                raise WaitTimeoutError(
                    f"run {record.id} is {record.status} after {timeout:g} s: it goes on",
                    run=record.id,
                    status=record.status,
                )
            time.sleep(min(_POLL_SECONDS, interval))

    def list(
        self,
        process: str | None = None,
        status: RunStatus | None = None,
        limit: int | None = None,
        before: str | None = None,
        since: datetime.datetime | None = None,
        where: Mapping[str, str] = MappingProxyType({}),
        requester: str | None = None,
        error: str | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first.

        Args:
            process: only runs of that process.
            status: only runs that have it.
            limit: how many at most.
            before: only runs that were submitted before this one, which is the next page.
            since: only runs that were submitted at that time in UTC or later.
            where: only runs that have these parameters, each as a text.
            requester: only runs that were submitted by them.
            error: only runs whose error has this text in it, in the same case.

        Raises:
            ParameterError: none of the other runs has a parameter of that name.
        """
        if before is not None:
            before = self.registry.find(before).id
        wanted = RunFilter(process, status, requester, since, where, error)
        return self.registry.runs(wanted, limit, before)

    def components(
        self, run: str, status: ComponentStatus | None = None, after: str | None = None
    ) -> "Iterator[Outcome]":
        """How each of a run's components has ended, ordered by shard and then by name.

        Args:
            run: which.
            status: only components that have it.
            after: name of a component; only those that come after it.
        """
        from ledgerbeam.batch.observe.components import components_of

        return components_of(self._uri(run), status, after)

    def rejects(self, run: str) -> "Iterator[pa.Table]":
        """The rows that were rejected, file by file: those found so far if nothing is published.

        Each table has the columns `file`, `row` (line of text, or row, from 1), `raw` (the row as
        it is in the source) and `reason`.

        Raises:
            DamagedFileError: a file of them isn't what was written.
        """
        from ledgerbeam.batch.observe.rejections import rejected_tables

        return rejected_tables(self._uri(run))

    def logs(self, run: str, component: str | None = None) -> Iterator[str]:
        """The lines of a run's log on this machine: of launchers, attempts and their workers.

        Workers of an engine, such as Dataflow's, log there.

        Args:
            run: which.
            component: only messages that name this component, by its key as `components` gives it,
                and then what has become of it, with its traceback.

        Raises:
            StorageError: the run has no log on this machine, or it can't be read.
            ComponentNotFoundError: neither the log nor the outcomes know the component.
        """
        from ledgerbeam.batch.observe.log import log_lines

        record = self.registry.find(run)
        return log_lines(self._settings.log_of(record.id), record, component)

    def results(self, run: str, table: str | None = None) -> "ds.Dataset":
        """What a run has published.

        Args:
            run: which.
            table: name of an extra table; by default the results.

        Raises:
            UserError: nothing is published, or no such table, or the results have expired.
        """
        from ledgerbeam.io.commit.published import read_published

        return read_published(self._uri(run), table)

    def reports(self, run: str) -> Sequence[str]:
        """The URIs of the reports that a run has published.

        Raises:
            UserError: nothing is published, or the results have expired.
        """
        from ledgerbeam.io.commit.published import published_reports

        uri = self._uri(run)
        return [uris.inside(uri, file.name) for file in published_reports(uri).values()]

    def copy_reports(self, run: str, folder: Path) -> Sequence[Path]:
        """Copy the reports that a run has published, after checking their hashes.

        Args:
            run: which.
            folder: to copy to; it is made if it isn't there.

        Returns:
            The paths of the copies.

        Raises:
            UserError: nothing is published, or a report differs from its record.
        """
        from ledgerbeam.io.commit.published import copy_reports

        return copy_reports(self._uri(run), folder)

    def events(self, run: str) -> Sequence[RecordedEvent]:
        """All events of a run, in their order."""
        return self.registry.events(self.registry.find(run).id)

    def verify_audit(self, head: str = "") -> "AuditChain":
        """Compute the hashes of all sealed entries of the audit again; see `Registry`."""
        return self.registry.verify_audit(head)

    def audit(
        self,
        after: int = 0,
        process: str | None = None,
        since: datetime.datetime | None = None,
    ) -> "Iterator[ChainedEntry]":
        """The whole audit, of runs and of a service, in one order; what is new is sealed before.

        Args:
            after: number of an entry; only those that come behind it.
            process: only those of this workload; None for all.
            since: only those of that time in UTC or later.
        """
        return self.audit_of(None if process is None else [process], after, since)

    def audit_of(
        self, kinds: Sequence[str] | None, after: int, since: datetime.datetime | None
    ) -> "Iterator[ChainedEntry]":
        """The audit of these workloads, or all of it; see `audit`."""
        self.registry.seal_audit()
        while page := self.registry.audit_entries(after, kinds=kinds, since=since):
            yield from page
            after = page[-1].number

    def _view(self, record: RunRecord, reader: "ProgressReader") -> RunView:
        if self._successor(record) is not None:
            from ledgerbeam.batch.observe.progress import Progress

            # What is in its folder is the other one's.
            code = self._failure_code(record) if record.status is RunStatus.FAILURE else None
            return RunView(record, Progress(at=self._now()), code)
        ended = record.attempts[-1].ended_at if record.attempts else None
        progress = reader.read(ended or self._now(), is_live=ended is None)
        code = self._failure_code(record) if record.status is RunStatus.FAILURE else None
        return RunView(record, progress, code)

    def _successor(self, record: RunRecord) -> str | None:
        """Id of the run that was submitted in the place of this one; None if none was."""
        if record.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
            return None
        return self.registry.successor(record.id)

    def _uri(self, run: str) -> str:
        """The folder of a run, whose content is its own."""
        record = self.registry.find(run)
        by = self._successor(record)
        if by is not None:
            raise IllegalMoveError(
                f"run {record.name} was replaced by run {by}: what is stored is that one's",
                run=record.id,
                from_status=record.status,
            )
        return record.uri

    def _whole(
        self, view: RunView, reader: "ProgressReader", failed_shards: int | None = None
    ) -> RunView:
        """The view, with what isn't read each time that somebody looks."""
        if self._successor(view.run) is not None:
            return view
        from ledgerbeam.batch.model.approval import open_approvals
        from ledgerbeam.batch.observe.rejections import rejected_rows

        waiting = open_approvals(self.registry.events(view.run.id))
        view = view._replace(rejected=rejected_rows(view.run.uri), approvals=tuple(waiting))
        counts = view.progress.components
        if not any(counts.get(each) for each in (ComponentStatus.FAILURE, ComponentStatus.UNKNOWN)):
            return view
        from ledgerbeam.batch.observe.components import failures_of

        found = failures_of(view.run.uri, reader.seen.values(), failed_shards)
        return view._replace(failures=found)

    def _failure_code(self, record: RunRecord) -> str | None:
        """The code of the error by which a run has failed, where it is on record."""
        ends = [event for event in self.registry.events(record.id) if event.to_status is not None]
        return ends[-1].detail.get("code")
