"""The pages of a run: how it stands, its components, its results, its log, what is on record."""

import csv
import io
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from ledgerbeam.batch.json_lines import text_of
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.service.access.front import AFront, Caller, Front, demand, is_number
from ledgerbeam.service.errors import BadRequestError, ChangedMeanwhileError
from ledgerbeam.service.model import Principal, Role, Verb
from ledgerbeam.service.page.actions import actions, command
from ledgerbeam.service.page.balance import balances, sheet
from ledgerbeam.service.page.shards import STATES, Readers, shard_grid
from ledgerbeam.service.page.timeline import Axis, begun_at, end_of, forecast, gantt
from ledgerbeam.service.web import approvals, runs
from ledgerbeam.service.web.render import Form, is_refresh, page_of

if TYPE_CHECKING:
    from ledgerbeam.batch.model.outcomes import Outcome
    from ledgerbeam.io.commit.records import Manifest

_COMPONENTS = 50
_FAILED_SHARDS = 100
_SEARCH_SECONDS = 5.0
_ROWS = 20
_REPORT_ROWS = 200
_LARGEST_REPORT = 2_000_000
_LOG_LINES = 500
_BAD = (ComponentStatus.UNKNOWN, ComponentStatus.FAILURE)

router = APIRouter(prefix="/runs", include_in_schema=False)
_readers = Readers()


class Table(NamedTuple):
    """Rows as they are shown.

    Attributes:
        columns: name and type of each.
        rows: the first ones, as text.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]


class Output(NamedTuple):
    """A table that a run has published.

    Attributes:
        name: empty for the results.
        rows: how many it has.
        size: in bytes.
        files: how many it is made of.
    """

    name: str
    rows: int
    size: int
    files: int


def _visible(run: str, front: AFront, caller: Caller) -> RunRecord:
    record = front.runs.registry.find(run)
    demand(caller, Role.VIEWER, record.process)
    return record


Visible = Annotated[RunRecord, Depends(_visible)]


@router.get("/{run}")
def overview(
    request: Request, record: Visible, front: AFront, caller: Caller, awaiting: bool = False
) -> Response:
    """How a run stands, and what can be done about it; reloaded when an awaited attempt begins."""
    now = front.now()
    asked = front.intake.of_run(record.id)
    is_awaited = record.status.is_final and asked is not None and not asked.state.is_final
    if awaiting and not is_awaited:
        return Response(headers={"HX-Refresh": "true"})
    reader = _readers.of(record.uri)
    view = front.runs.view(record, reader, _FAILED_SHARDS)
    grid = shard_grid(reader.seen, view.progress)
    manifest = _published(record) if record.status is RunStatus.SUCCESS else None
    axis = Axis.over((begun_at(record), end_of(view, now), record.must_finish_by))
    decimals = view.progress.total_decimals
    allowed = runs.allowed(record)
    return _page(
        request,
        caller,
        record,
        "live" if is_refresh(request) else "overview",
        view=view,
        now=now,
        forecast=forecast(view, axis, now) if axis and record.attempts else None,
        grid=grid,
        failed_shards=_FAILED_SHARDS,
        states=STATES,
        gantt=gantt(record, front.runs.registry.events(record.id), now),
        balances=balances(manifest.controls, decimals) if manifest else [],
        totals=sheet(view.progress.totals, decimals),
        actions=actions(record, allowed) if caller.may(Role.OPERATOR, record.process) else [],
        may_approve=caller.may(Role.APPROVER, record.process),
        request_of_run=asked,
        is_awaited=is_awaited,
    )


@router.get("/{run}/components")
def component_list(
    request: Request,
    record: Visible,
    front: AFront,
    caller: Caller,
    status: str = "",
    text: str = "",
    after: str | None = None,
) -> Response:
    """Components that failed or are unknown, or those of a status, searched by text."""
    chosen = ComponentStatus(status) if status in set(ComponentStatus) else None
    found, last = _searched(front, record, chosen, text, after)
    has_more = last is not None
    can_retry = "retry" in runs.allowed(record) and caller.may(Role.OPERATOR, record.process)
    return _page(
        request,
        caller,
        record,
        "components",
        found=found[:_COMPONENTS],
        last=last,
        has_more=has_more,
        chosen=status,
        text=text,
        counts=front.runs.view(record, _readers.of(record.uri), 0).progress.components,
        can_retry=can_retry,
        may_resolve=caller.may(Role.APPROVER, record.process) and "resolve" in runs.allowed(record),
        command=command,
    )


@router.get("/{run}/results")
def results(
    request: Request,
    record: Visible,
    front: AFront,
    caller: Caller,
    table: str = "",
    report: str = "",
) -> Response:
    """What a run has published: tables with their first rows, and reports opened in place."""
    manifest, problem = None, ""
    try:
        manifest = _manifest(record)
    except UserError as error:
        problem = str(error)
    known = {each["name"]: each for each in runs.reports(record)} if manifest else {}
    if report and report not in known:
        raise ParameterError(f"no report {report}: see the list", parameter="report", value=report)
    rejected = front.runs.view(record, _readers.of(record.uri), 0).rejected
    return _page(
        request,
        caller,
        record,
        "results",
        problem=problem,
        outputs=_outputs(manifest) if manifest else [],
        chosen=table,
        rows=_first_rows(front, record, table) if manifest else None,
        volume=manifest.volume if manifest else None,
        reports=known.values(),
        report=known.get(report),
        preview=_preview(record, report) if report else None,
        rejected=rejected,
        rejects=_first_rejects(front, record) if rejected else None,
    )


@router.get("/{run}/log")
def log(
    request: Request, record: Visible, front: AFront, caller: Caller, component: str = ""
) -> Response:
    """The last lines of what launchers, attempts and workers have logged on this machine."""
    lines: deque[str] = deque(maxlen=_LOG_LINES)
    problem, number = "", 0
    try:
        for line in front.runs.logs(record.id, component or None):
            number += 1
            # All of them are of this run.
            lines.append(line.replace(f"run={record.id} ", "", 1))
    except UserError as error:
        problem = str(error)
    return _page(
        request,
        caller,
        record,
        "log-lines" if is_refresh(request) else "log",
        lines=lines,
        number=number,
        problem=problem,
        component=component,
        command=command(
            "logs", record.id, *([f"--component={component}"] if component else []), why=False
        ),
    )


@router.get("/{run}/record")
def on_record(request: Request, record: Visible, front: AFront, caller: Caller) -> Response:
    """What is on record: parameters, inputs with their versions, history."""
    from ledgerbeam.io.commit.attempts import attempts

    stored, problem = [], ""
    try:
        stored = attempts(record.uri)
    except UserError as error:
        problem = str(error)
    return _page(
        request,
        caller,
        record,
        "record",
        attempt=stored[-1] if stored else None,
        problem=problem,
        events=front.runs.registry.events(record.id),
        command=command,
    )


@router.post("/{run}/{verb}")
def act(
    run: str, verb: str, form: Form, front: AFront, caller: Caller, response: Response
) -> Response:
    """Do what somebody has chosen on a page of a run."""
    record = front.runs.registry.find(run)
    # A person has seen a status; what else happens meanwhile, such as progress, changes nothing.
    if form.get("etag") != record.status:
        raise ChangedMeanwhileError(
            f"run {record.name} is {record.status} now: load its page again, and decide anew",
            etag=record.status,
        )
    why = form.get("why", "")
    if verb in ("approve", "refuse"):
        return _answered(front, caller, record, verb, response, form)
    demand(caller, Role.OPERATOR, record.process)
    if verb in ("cancel", "pause", "resume"):
        runs.act(front, caller, record, verb, why)
    elif verb in ("retry", "restart"):
        only: dict[str, Any] = {}
        if form.get("component"):
            only["components"] = [form["component"]]
        asked = runs.ask_again(front, caller, record, response, Verb(verb), why, **only)
        return RedirectResponse(f"/requests/{asked.id}", 303)
    elif verb == "resolve":
        if form.get("status") not in (ComponentStatus.SUCCESS, ComponentStatus.FAILURE):
            raise BadRequestError("say whether the call has ended as SUCCESS or as FAILURE")
        resolution = runs.Resolution(
            component=form.get("component", ""),
            status=ComponentStatus(form["status"]),
            results=form.get("results") or None,
            why=why,
        )
        asked = runs.resolve(record, front, caller, response, resolution)
        return RedirectResponse(f"/requests/{asked.id}", 303)
    elif verb in ("set-parallelism", "set-rate"):
        _limit(front, caller, record, verb, form.get("value", ""), why)
    else:
        raise BadRequestError(f"a run has no verb {verb}")
    return RedirectResponse(f"/runs/{record.id}", 303)


def _answered(
    front: Front,
    caller: Principal,
    record: RunRecord,
    verb: str,
    response: Response,
    form: Mapping[str, str],
) -> Response:
    """Approve or refuse what another person has asked for."""
    demand(caller, Role.APPROVER, record.process)
    number = form.get("number", "")
    if not is_number(number):
        raise BadRequestError("the form lacks the number of what was asked for")
    given = approvals.Answer(approval=int(number), why=form.get("why", ""))
    if verb == "refuse":
        approvals.refuse(record, front, caller, response, given)
        return RedirectResponse(f"/runs/{record.id}", 303)
    asked = approvals.approve(record, front, caller, response, given)
    return RedirectResponse(f"/requests/{asked.id}", 303)


def _limit(
    front: Front, caller: Principal, record: RunRecord, verb: str, value: str, why: str
) -> None:
    signed = front.runs.signed_by(caller.name)
    given = "" if value.strip() == "none" else value.strip()
    try:
        if verb == "set-rate":
            signed.set_rate(record.id, float(given) if given else None, why=why)
        else:
            signed.set_parallelism(record.id, int(given) if given else None, why)
    except ValueError as error:
        raise ParameterError(f"{value}: give a number, or none", parameter=verb) from error


def _page(
    request: Request, caller: Principal, record: RunRecord, name: str, **values: Any
) -> Response:
    return page_of(request, caller, f"run/{name}.html", run=record, tab=name, **values)


def _manifest(record: RunRecord) -> "Manifest":
    from ledgerbeam.io.commit.attempts import load_manifest

    return load_manifest(record.uri)


def _published(record: RunRecord) -> "Manifest | None":
    """What a run has published; None where that can't be read."""
    try:
        return _manifest(record)
    except UserError:
        return None


def _searched(
    front: Front, record: RunRecord, status: ComponentStatus | None, text: str, after: str | None
) -> "tuple[list[Outcome], Outcome | None]":
    """Components with a text in their names or errors, and the last one looked at if more follow.

    It takes a few seconds at most: who looks for one of a million goes on behind the last one.
    """
    found: list[Outcome] = []
    ends_at = time.monotonic() + _SEARCH_SECONDS
    last = None
    for outcome in _components(front, record, status, after):
        if len(found) == _COMPONENTS or time.monotonic() > ends_at:
            return found, last
        last = outcome
        if text in outcome.component or text in outcome.error:
            found.append(outcome)
    return found, None


def _components(
    front: Front, record: RunRecord, status: ComponentStatus | None, after: str | None
) -> "Iterator[Outcome]":
    if status is not None:
        return front.runs.components(record.id, status, after)
    return itertools.chain.from_iterable(front.runs.components(record.id, bad) for bad in _BAD)


def _outputs(manifest: "Manifest") -> list[Output]:
    from ledgerbeam.io.commit.published import published_parts

    found = []
    for name in ("", *manifest.tables):
        parts = published_parts("", manifest, name or None)
        rows, size = sum(part.rows for part in parts), sum(part.size for part in parts)
        found.append(Output(name, rows, size, len(parts)))
    return found


def _first_rows(front: Front, record: RunRecord, table: str) -> Table:
    dataset = front.runs.results(record.id, table or None)
    columns = [(field.name, str(field.type)) for field in dataset.schema]
    return _table(columns, dataset.head(_ROWS).to_pylist())


def _first_rejects(front: Front, record: RunRecord) -> Table:
    rows: list[dict[str, Any]] = []
    for table in front.runs.rejects(record.id):
        rows += table.slice(0, _ROWS - len(rows)).to_pylist()
        if len(rows) >= _ROWS:
            break
    columns = [("file", "string"), ("row", "int64"), ("raw", "string"), ("reason", "string")]
    return _table(columns, rows)


def _table(columns: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as text, exactly as they are stored."""
    return Table(columns, [[_text(row[name]) for name, _ in columns] for row in rows])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else str(text_of(value))


def _preview(record: RunRecord, name: str) -> Table | None:
    """The first rows of a report of commas and lines; None for others, which browsers show."""
    if not name.endswith(".csv"):
        return None
    from ledgerbeam.io.commit.published import published_reports, read_file

    file = published_reports(record.uri)[name]
    if file.size > _LARGEST_REPORT:
        return None
    text = read_file(record.uri, file).decode("utf-8", "replace")
    lines = list(itertools.islice(csv.reader(io.StringIO(text)), _REPORT_ROWS + 1))
    header, *rows = lines or [[]]
    return Table([(name, "") for name in header], rows)
