"""What a client of a service calls besides the methods of `Runs`: requests, and actions on many."""

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import httpx
from pydantic import ValidationError

from ledgerbeam.batch.define.parameters import parameter_error
from ledgerbeam.batch.settings import SERVER
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.service.bulk import (
    BulkAsk,
    BulkPreview,
    BulkRecord,
    BulkTarget,
    TargetState,
)
from ledgerbeam.service.errors import RequestRejectedError, ServiceUnavailableError
from ledgerbeam.service.model import (
    InlineAnswer,
    InlineAsk,
    RequestRecord,
    RequestState,
    Submission,
)
from ledgerbeam.service.problems import classes, error_of

KEY = "LEDGERBEAM_KEY"
POLL_SECONDS = 0.2

_TRIES = 4
_PATIENCE_SECONDS = 15.0


class Calls:
    """A service, and what it alone offers. `Client` has these methods too."""

    def __init__(self, server: str | None = None, key: str | None = None) -> None:
        """Name the service; nothing is sent yet.

        Args:
            server: its URL; by default that of the variable `LEDGERBEAM_SERVER`.
            key: an API key; by default that of the variable `LEDGERBEAM_KEY`. A service on
                loopback may need none.

        Raises:
            ParameterError: no URL is given, or it isn't one.
        """
        self.server = (server or os.environ.get(SERVER, "")).rstrip("/")
        if not self.server.startswith(("http://", "https://")):
            raise ParameterError(
                f"server {self.server or 'is missing'}: give a URL such as http://localhost:8017",
                parameter=SERVER,
                value=self.server,
            )
        key = key or os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.server, headers=headers, timeout=60.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def request(
        self,
        process: str,
        parameters: Mapping[str, Any],
        *,
        priority: int = 0,
        why: str = "",
        key: str | None = None,
        replace: bool = False,
    ) -> RequestRecord:
        """Ask for a run, and don't wait for a node to take it.

        Args:
            process: name of the workload.
            parameters: its parameters.
            priority: higher ones are taken first.
            why: for the record.
            key: by which the service knows the request again if it is sent twice; by default a new
                one.
            replace: whether it takes the place of a run whose parameters were wrong.
        """
        submission = Submission(
            kind=process,
            parameters=dict(parameters),
            priority=priority,
            why=why,
            replace=replace,
        )
        return self._ask("/v1/requests", submission.model_dump(mode="json"), key)

    def get_request(self, request: str, wait: float = 0) -> RequestRecord:
        """How a request stands, at its end or after so many seconds.

        Raises:
            RequestNotFoundError: there is no such request.
        """
        headers = {"Prefer": f"wait={int(wait)}"} if wait else {}
        answer = self._get(f"/v1/requests/{request}", headers=headers)
        return RequestRecord.model_validate(answer.json())

    def list_requests(
        self,
        kind: str | None = None,
        state: RequestState | None = None,
        requester: str | None = None,
        error: str | None = None,
        limit: int = 50,
    ) -> Sequence[RequestRecord]:
        """Requests, newest first.

        Args:
            kind: only those for it.
            state: only those that are in it.
            requester: only those of that requester.
            error: only those whose error has this text in it, in the same case.
            limit: how many at most.
        """
        found: list[RequestRecord] = []
        asked = {"kind": kind, "state": state, "requester": requester, "error": error}
        for page in self._pages("/v1/requests", limit=min(limit, 200), **asked):
            found += map(RequestRecord.model_validate, page)
            if len(found) >= limit:
                break
        return found[:limit]

    def cancel_request(self, request: str, why: str = "") -> RequestRecord:
        """Withdraw a request; where it runs, its run is canceled.

        Raises:
            RequestStateError: it has ended.
        """
        answer = self._post(f"/v1/requests/{request}/cancel", {"why": why})
        return RequestRecord.model_validate(answer.json())

    # Actions on many

    def preview_bulk(self, of: str, verb: str, why: str, **which: Any) -> BulkPreview:
        """What an action on many would touch now; nothing is done. Arguments as for `bulk`."""
        answer = self._post("/v1/bulk/dry-run", _bulk(of, verb, why, which))
        return BulkPreview.model_validate(answer.json())

    def bulk(
        self, of: str, verb: str, why: str, *, key: str | None = None, **which: Any
    ) -> BulkRecord:
        """Do something with many at once; the service goes on with it by itself.

            runs.bulk("runs", "retry", "the prices are there now", kind="delivery-marking")

        Args:
            of: `runs`, `requests` or `queues`.
            verb: `cancel`, `retry`, `redrive` or `release`.
            why: for the record of each.
            key: by which the service knows the action again if it is sent twice; by default a new
                one.
            which: what `BulkFilter` has: `kind`, `requester`, `error`, and of runs `status`,
                `since`, `where`, of requests `state`.

        Raises:
            UserError: there is no such action or filter, or it finds too many.
        """
        answer = self._create("/v1/bulk", _bulk(of, verb, why, which), key)
        return BulkRecord.model_validate(answer.json())

    def get_bulk(self, action: str, wait: float = 0) -> BulkRecord:
        """How an action on many stands, at its end or after so many seconds.

        Raises:
            BulkNotFoundError: there is no such action.
        """
        headers = {"Prefer": f"wait={int(wait)}"} if wait else {}
        return BulkRecord.model_validate(self._get(f"/v1/bulk/{action}", headers=headers).json())

    def list_bulk(self, limit: int = 50) -> Sequence[BulkRecord]:
        """Actions on many, newest first."""
        found = self._get("/v1/bulk", params={"limit": limit}).json()["items"]
        return [BulkRecord.model_validate(item) for item in found]

    def bulk_targets(self, action: str, state: TargetState | None = None) -> Iterator[BulkTarget]:
        """What became of each target of an action on many."""
        for page in self._pages(f"/v1/bulk/{action}/targets", state=state):
            yield from map(BulkTarget.model_validate, page)

    def approve_bulk(self, action: str, why: str = "") -> BulkRecord:
        """Have an action carried out that another person has asked for.

        Raises:
            RequestStateError: it doesn't wait for that.
            SamePersonError: who approves has asked for it.
        """
        return self._decide(action, "approve", why)

    def refuse_bulk(self, action: str, why: str) -> BulkRecord:
        """Refuse an action that waits for a second person.

        Raises:
            RequestStateError: it doesn't wait for that.
        """
        return self._decide(action, "refuse", why)

    def cancel_bulk(self, action: str, why: str = "") -> BulkRecord:
        """End an action where it has got to.

        Raises:
            RequestStateError: it has ended.
        """
        return self._decide(action, "cancel", why)

    # At once

    def inline(
        self,
        process: str,
        key: str,
        parameters: Mapping[str, Any],
        *,
        publish: bool = False,
        seconds: float = 30.0,
        why: str = "",
    ) -> InlineAnswer:
        """Execute one component now, and give its rows.

        Args:
            process: name of the workload.
            key: of the component, as the method `components` gives it.
            parameters: of the workload; without `publish` no `output` is needed.
            publish: whether it is recorded and published as an instance of its own.
            seconds: that it may take, up to 60; a run that is published goes on after that.
            why: for the record.

        Raises:
            ComponentNotFoundError: no row of the input has that key.
            AnswerTimeoutError: it took too long, and was ended.
            ServiceUnavailableError: no node was free in time.
            UserError: the parameters don't fit.
        """
        asked = InlineAsk(
            key=key, parameters=dict(parameters), publish=publish, seconds=seconds, why=why
        )
        answer = self._create(
            f"/v1/kinds/{process}/inline",
            asked.model_dump(mode="json"),
            None,
            timeout=seconds + _PATIENCE_SECONDS,
        )
        return InlineAnswer.model_validate(answer.json())

    def _decide(self, action: str, verb: str, why: str) -> BulkRecord:
        answer = self._post(f"/v1/bulk/{action}/{verb}", {"why": why})
        return BulkRecord.model_validate(answer.json())

    def _not_offered(self, what: str, advice: str) -> ParameterError:
        return ParameterError(
            f"{self.server}: a service doesn't offer {what}: {advice}", parameter=SERVER
        )

    def _pages(
        self, path: str, cursor: str | None = None, **asked: Any
    ) -> "Iterator[Sequence[dict[str, Any]]]":
        """The items of a list, page by page."""
        while True:
            page = self._get(path, params={"limit": 200, **asked, "cursor": cursor}).json()
            yield page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def _ask(self, path: str, body: Mapping[str, Any], key: str | None) -> RequestRecord:
        return RequestRecord.model_validate(self._create(path, body, key).json())

    def _create(
        self, path: str, body: Mapping[str, Any], key: str | None, **given: Any
    ) -> httpx.Response:
        # What breaks off may have been stored: with a key, it is safe to ask again.
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._send("POST", path, json=body, headers=headers, **given)

    def _get(self, path: str, params: Any = None, **given: Any) -> httpx.Response:
        asked = {name: value for name, value in (params or {}).items() if value is not None}
        return self._send("GET", path, params=asked, **given)

    def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self._send("POST", path, tries=1, json=body)

    def _send(self, method: str, path: str, *, tries: int = _TRIES, **given: Any) -> httpx.Response:
        for number in range(1, tries + 1):
            try:
                answer = self._http.request(method, path, **given)
            except httpx.HTTPError as error:
                if number < tries:
                    time.sleep(POLL_SECONDS * 2**number)
                    continue
                raise ServiceUnavailableError(
                    f"{self.server} can't be reached: {error}: check the URL, and that "
                    "`ledgerbeam serve` runs there",
                    server=self.server,
                ) from error
            if answer.status_code != 503 or number == tries:
                break
            time.sleep(POLL_SECONDS * 2**number)
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {"detail": f"{self.server} answers {answer.status_code}: is it the service?"}
            problem["code"] = ServiceUnavailableError.code
        raise error_of(problem)


def _bulk(of: str, verb: str, why: str, which: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in which.items() if value not in (None, "", [])}
    try:
        asked = BulkAsk.model_validate({"of": of, "verb": verb, "why": why, "filter": given})
    except ValidationError as error:
        raise parameter_error(error) from error
    return asked.model_dump(mode="json", exclude_unset=True)


def check_request(request: RequestRecord) -> None:
    """Let a caller go on whose request may still have a run.

    Raises:
        UserError: it has ended without one.
    """
    if not request.state.is_final or request.state is RequestState.SUCCESS:
        return
    told = request.error or request.cancel_why or ""
    ended = (RequestState.REJECTED, RequestState.FAILURE)
    if request.state in ended and request.code in classes():
        raise classes()[request.code](told)
    raise RequestRejectedError(
        f"request {request.id} is {request.state}: {told}",
        request=request.id,
        state=request.state,
        cause=request.code,
    )
