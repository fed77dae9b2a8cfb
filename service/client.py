"""Runs of a service, from another machine: the methods of `Runs`, over REST."""

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry.audit_chain import AuditChain
from ledgerbeam.batch.registry.audit_export import ChainedEntry
from ledgerbeam.batch.runs.body import record_of, view_of
from ledgerbeam.batch.runs.reading import RunView, Tracker
from ledgerbeam.io.commit.control_log import Steering
from ledgerbeam.io.errors import StorageError, WaitTimeoutError
from ledgerbeam.io.storage import uris
from ledgerbeam.service.calls import POLL_SECONDS, Calls, check_request
from ledgerbeam.service.model import RequestState, Verb

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from ledgerbeam.batch.model.outcomes import Outcome

_WAIT_SECONDS = 20
_LINES = "application/x-ndjson"
_ARROW = "application/vnd.apache.arrow.stream"


class Client(Calls):
    """Runs of a service, and all that can be done with them; it has the methods of `Runs`.

        with Client("https://batch.example.com", key) as runs:
            run = runs.submit("delivery-marking", {"trades": "s3://trades/*", …})
            runs.wait(run.id)
            runs.results(run.id).to_table()

    A run is named as for `Runs`, and errors are the same ones. In addition each method raises
    `ServiceUnavailableError` if the service can't be reached, `UnauthenticatedError` if the key
    isn't valid, and `AccessDeniedError` if its owner may not do that.
    """

    # The methods of `Runs`

    def submit(
        self,
        process: str,
        parameters: Mapping[str, Any],
        beam_flags: Sequence[str] = (),
        *,
        replace: bool = False,
        why: str = "",
        timeout: float | None = None,
    ) -> RunRecord:
        """Ask for a run, and wait until a node has begun it.

        Args:
            process: name of the workload.
            parameters: its parameters.
            beam_flags: none: the nodes have theirs.
            replace: whether it takes the place of a run whose parameters were wrong; see
                `Runs.submit`.
            why: for the record.
            timeout: seconds to wait at most; None to wait without a limit. The request stays.

        Raises:
            RequestRejectedError: it was rejected, canceled, or not started in time.
            WaitTimeoutError: no node has begun it within that time.
            UserError: the parameters don't fit.
        """
        if beam_flags:
            raise self._not_offered(f"flags for Beam ({' '.join(beam_flags)})", "nodes have theirs")
        asked = self.request(process, parameters, why=why, replace=replace)
        deadline = None if timeout is None else time.monotonic() + timeout
        while asked.run_id is None:
            check_request(asked)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"request {asked.id} is {asked.state} after {timeout:g} s: it stays",
                    status=asked.state,
                )
            time.sleep(POLL_SECONDS)
            asked = self.get_request(asked.id)
        return self.get(asked.run_id).run

    def find(self, run: str) -> RunRecord:
        """What is on record of a run; see `Runs.find`."""
        return self.get(run).run

    def get(self, run: str) -> RunView:
        """How a run stands; see `Runs.get`."""
        return view_of(self._get(self._path(run)).json())

    def wait(
        self,
        run: str,
        timeout: float | None = None,
        tracker: Tracker | None = None,
        interval: float = 1.0,
    ) -> RunView:
        """Wait until a run has ended; see `Runs.wait`."""
        path = self._path(run)
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = _WAIT_SECONDS if tracker is None else 0
        while True:
            left = patience
            if deadline is not None:
                left = int(min(patience, max(0.0, deadline - time.monotonic())))
            view = view_of(self._get(path, headers={"Prefer": f"wait={left}"}).json())
            if tracker is not None:
                tracker(view)
            if view.run.status.is_final:
                return view
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    f"run {view.run.id} is {view.run.status} after {timeout:g} s: it goes on",
                    run=view.run.id,
                    status=view.run.status,
                )
            if left == 0:
                time.sleep(min(interval, POLL_SECONDS if deadline is not None else interval))

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
    ) -> "list[RunRecord]":
        """Runs, newest first; see `Runs.list`."""
        from ledgerbeam.service.store.reading import cursor_of

        cursor = None if before is None else cursor_of(self.find(before).id)
        asked = {
            "kind": process,
            "status": status,
            "limit": min(limit or 200, 200),
            "since": None if since is None else since.isoformat(),
            "where": [f"{name}={value}" for name, value in where.items()],
            "requester": requester,
            "error": error,
        }
        found: list[RunRecord] = []
        for page in self._pages("/v1/runs", cursor, **asked):
            found += [record_of(item) for item in page]
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    def rejects(self, run: str) -> "Iterator[pa.Table]":
        """The rows that were rejected, page by page; see `Runs.rejects`."""
        import pyarrow as pa

        from ledgerbeam.io.datasets.rejections import REJECTS_SCHEMA

        for page in self._pages(f"{self._path(run)}/rejects"):
            yield pa.Table.from_pylist(page, REJECTS_SCHEMA)

    def logs(self, run: str, component: str | None = None) -> Iterator[str]:
        """The lines of a run's log, which a node on its launcher's machine reads; see `Runs.logs`.

        Raises:
            ServiceUnavailableError: no node of that machine has answered.
        """
        for page in self._pages(f"{self._path(run)}/logs", component=component):
            yield from map(str, page)

    def components(
        self, run: str, status: ComponentStatus | None = None, after: str | None = None
    ) -> "Iterator[Outcome]":
        """How each of a run's components has ended; see `Runs.components`."""
        from ledgerbeam.service.store.reading import cursor_of

        cursor = None if after is None else cursor_of(after)
        for page in self._pages(f"{self._path(run)}/components", cursor, status=status):
            for item in page:
                yield _outcome(item)

    def results(self, run: str, table: str | None = None) -> "ds.Dataset":
        """What a run has published, which is loaded into memory; see `Runs.results`."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        path = f"{self._path(run)}/results"
        answer = self._get(path, params={"table": table}, headers={"Accept": _ARROW})
        return ds.dataset(pa.ipc.open_stream(answer.content).read_all())

    def reports(self, run: str) -> Sequence[str]:
        """The URIs of the reports that a run has published; see `Runs.reports`."""
        return [report["uri"] for report in self._get(f"{self._path(run)}/reports").json()]

    def copy_reports(self, run: str, folder: Path) -> Sequence[Path]:
        """Copy the reports that a run has published; see `Runs.copy_reports`."""
        copies = []
        for report in self._get(f"{self._path(run)}/reports").json():
            copy = Path(uris.inside(str(folder), report["name"]))
            data = self._get(report["href"]).content
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
            except OSError as error:
                raise StorageError(
                    f"cannot write {copy}: {error.strerror or error}", uri=str(copy)
                ) from error
            copies.append(copy)
        return copies

    def cancel(self, run: str, why: str = "") -> RunRecord:
        """Ask for a run to be stopped; see `Runs.cancel`."""
        return self._act(run, "cancel", why)

    def pause(self, run: str, why: str = "") -> RunRecord:
        """Begin no more components; see `Runs.pause`."""
        return self._act(run, "pause", why)

    def resume(self, run: str, why: str = "") -> RunRecord:
        """Go on after a pause; see `Runs.resume`."""
        return self._act(run, "resume", why)

    def set_parallelism(self, run: str, parallelism: int | None, why: str = "") -> Steering:
        """How many components may be in flight over the whole run; see `Runs.set_parallelism`."""
        body = {"parallelism": parallelism, "why": why}
        answer = self._post(f"{self._path(run)}/set-parallelism", body)
        return Steering.model_validate(answer.json())

    def set_rate(
        self,
        run: str,
        rate: float | None,
        ramp_from: float | None = None,
        ramp_seconds: float | None = None,
        why: str = "",
    ) -> Steering:
        """How many components a second may be begun; see `Runs.set_rate`."""
        body = {"rate": rate, "ramp_from": ramp_from, "ramp_seconds": ramp_seconds, "why": why}
        return Steering.model_validate(self._post(f"{self._path(run)}/set-rate", body).json())

    def retry(
        self,
        run: str,
        why: str = "",
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Execute failed and missing components, when a node is free; see `Runs.retry`."""
        given = {"components": [*components], "parameters": dict(parameters or {})}
        return self._again(run, "retry", {"why": why, **given})

    def restart(self, run: str, why: str = "", *, force: bool = False) -> RunRecord:
        """Execute missing components, when a node is free; see `Runs.restart`.

        An attempt whose machine is gone is given up by force, by a node, at once.
        """
        if force and self.find(run).live_attempt is not None:
            return self._act(run, "force-restart", why)
        return self._again(run, "restart", {"why": why})

    def resolve(
        self,
        run: str,
        component: str,
        status: ComponentStatus,
        why: str,
        results: str | None = None,
    ) -> None:
        """Record how the call of a component that is `UNKNOWN` has ended; see `Runs.resolve`."""
        body = {"component": component, "status": status, "why": why, "results": results}
        asked = self._ask(f"{self._path(run)}/resolve", body, None)
        while not asked.state.is_final:
            asked = self.get_request(asked.id, wait=_WAIT_SECONDS)
        check_request(asked)

    def approve(self, run: str, number: int | None = None, why: str = "") -> RunRecord:
        """Do what another person has asked for, when a node is free; see `Runs.approve`."""
        return self._again(run, "approve", {"approval": number, "why": why})

    def refuse(self, run: str, why: str, number: int | None = None) -> RunRecord:
        """Refuse what another person has asked for; see `Runs.refuse`."""
        body = {"approval": number, "why": why}
        return record_of(self._post(f"{self._path(run)}/refuse", body).json())

    def events(self, run: str) -> Sequence[RecordedEvent]:
        """All events of a run, in their order."""
        found = self._get(f"{self._path(run)}/audit").json()
        return [RecordedEvent.model_validate(event) for event in found]

    def audit(
        self,
        after: int = 0,
        process: str | None = None,
        since: datetime.datetime | None = None,
    ) -> Iterator[ChainedEntry]:
        """The whole audit, of runs and of the service, in one order; see `Runs.audit`."""
        asked = {"after": after, "kind": process, "since": since and since.isoformat()}
        lines = self._get("/v1/audit", params=asked, headers={"Accept": _LINES}).iter_lines()
        yield from map(ChainedEntry.model_validate_json, filter(None, lines))

    def verify_audit(self, head: str = "") -> AuditChain:
        """Compute the hashes of all sealed entries of the audit again; see `Runs.verify_audit`.

        Raises:
            AuditMismatchError: an entry or a hash was changed or removed, or the head isn't there.
        """
        return AuditChain(**self._get("/v1/audit/chain", params={"head": head or None}).json())

    def _act(self, run: str, verb: str, why: str) -> RunRecord:
        return record_of(self._post(f"{self._path(run)}/{verb}", {"why": why}).json())

    def _again(self, run: str, verb: str, body: Mapping[str, Any]) -> RunRecord:
        """Ask for another attempt; gives the run when a node has begun that."""
        path = self._path(run)
        asked = self._ask(f"{path}/{verb}", body, None)
        first = asked.run_id
        while not asked.state.is_final:
            record = self.get(str(asked.run_id)).run
            # One that is to be replaced may go on until then.
            is_other = asked.verb is not Verb.REPLACE or asked.run_id != first
            if is_other and not record.status.is_final:
                return record
            time.sleep(POLL_SECONDS)
            asked = self.get_request(asked.id)
        if asked.state in (RequestState.REJECTED, RequestState.EXPIRED, RequestState.DEAD):
            check_request(asked)
        return self.get(str(asked.run_id)).run

    def _path(self, run: str) -> str:
        """The path of a run. A name has slashes in it, and is looked up."""
        if "/" not in run:
            return f"/v1/runs/{run}"
        found = self._get("/v1/runs", params={"name": run}).json()["items"]
        return f"/v1/runs/{found[0]['id']}"


def _outcome(body: Mapping[str, Any]) -> "Outcome":
    from ledgerbeam.batch.model.outcomes import Outcome

    return Outcome(**{**body, "status": ComponentStatus(body["status"])})
