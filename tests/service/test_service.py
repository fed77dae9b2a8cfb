"""A service as its users have it: processes, a server's database, calls over HTTP."""

import dataclasses
import html
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.json_lines import lines_of
from tests.support.recorded import NewPlace, goes_on, until
from tests.support.service import Service, service_of, succeeded

from ledgerbeam.batch.cli.app import main
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.errors import (
    ApprovalNeededError,
    NotPublishedError,
    ParameterError,
    RunNotFoundError,
    SamePersonError,
)
from ledgerbeam.service.client import Client
from ledgerbeam.service.errors import AccessDeniedError, ServiceUnavailableError
from ledgerbeam.service.model import RequestState, Role
from ledgerbeam.service.store.keys import Keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lease() -> float:
    return 8.0


@pytest.fixture
def service(new_place: NewPlace, new_schema: Callable[[], str], lease: float) -> Iterator[Service]:
    """On PostgreSQL; the crash tests, the page and `up` are on SQLite."""
    with service_of(new_place(url=new_schema()), lease) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    service.serve()
    service.route()
    with service.client() as client:
        yield client


def test_a_request_becomes_a_run_that_is_watched_and_read(
    service: Service, client: Client, tmp_path: Path
) -> None:
    place = service.place
    place.set("fail-A7")
    service.work()
    run = client.submit("counting", place.parameters())
    name = f"counting/{place.day}"
    view = client.wait(run.id)
    assert (view.run.status, view.code) == (RunStatus.FAILURE, "too-many-failures")
    assert view == place.runs.get(run.id)
    (bad,) = client.components(name, ComponentStatus.FAILURE)
    assert (bad.component, "can't be counted" in bad.error) == ("A7", True)
    with pytest.raises(NotPublishedError):
        client.results(run.id)
    place.unset("fail-A7")
    assert client.retry(name, "mended").id == run.id
    seen: list[int] = []
    done = client.wait(run.id, tracker=lambda view: seen.append(view.progress.shards_done))
    assert done.run.status is RunStatus.SUCCESS
    assert seen[-1] == 4
    assert client.results(run.id).to_table() == place.runs.results(run.id).to_table()
    assert list(client.components(run.id)) == list(place.runs.components(run.id))
    assert client.reports(run.id) == place.runs.reports(run.id)
    (copy,) = client.copy_reports(run.id, tmp_path / "copies")
    (original,) = place.runs.copy_reports(run.id, tmp_path / "originals")
    assert copy.read_bytes() == original.read_bytes()
    assert list(client.events(run.id)) == list(place.runs.events(run.id))
    assert client.list("counting") == place.runs.list("counting")
    last = place.runs.registry.get(run.id)
    assert [attempt.kind for attempt in last.attempts] == ["first", "retry"]
    place.check_story()


def test_the_command_line_takes_a_service(
    service: Service, client: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def verb(*arguments: str) -> tuple[int, str, str]:
        status = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["ledgerbeam", *arguments, f"--server={client.server}"])
            try:
                status = main()
            except SystemExit as end:
                status = int(end.code or 0)
        return status, *capsys.readouterr()

    place = service.place
    place.set("fail-A7")
    place.set("fail-A9")
    service.work()
    # This process hasn't the workload: the service has it.
    flags = [f"--{name.replace('_', '-')}={v}" for name, v in place.parameters().items()]
    status, out, _ = verb("submit", "counting", *flags, "--json")
    run, *_ = lines_of(out)
    assert (status, run["name"]) == (0, f"counting/{place.day}")
    assert verb("wait", run["id"])[0] == Exit.FAILURE
    status, out, _ = verb("get", run["id"], "--json")
    (shown,) = lines_of(out)
    assert [group["count"] for group in shown["failures"]] == [2]
    page = httpx.get(f"{client.server}/runs/{run['id']}").text
    assert "Failures by kind of error" in page
    assert shown["failures"][0]["traceback"].splitlines()[-1] in html.unescape(page)
    (listed,) = lines_of(verb("list", f"--where=business_date={place.day}", "--json")[1])
    assert listed["id"] == run["id"]
    assert verb("list", "--where=colour=red")[0] == Exit.USAGE
    assert verb("list", "--since=2100-01-01", "--json")[1] == ""
    place.unset("fail-A7")
    status, _, err = verb("retry", run["id"], "--component=A1")
    assert (status, "A1" in err) == (Exit.NOT_FOUND, True)
    assert verb("retry", run["id"], "--component=A7", "--why=mended")[0] == 0
    assert verb("wait", run["id"])[0] == Exit.FAILURE
    (left,) = lines_of(verb("components", run["id"], "--status=FAILURE", "--json")[1])
    assert left["component"] == "A9"
    place.unset("fail-A9")
    status, _, err = verb("retry", run["id"], "--set=shards=many", "--why=mended")
    assert (status, "shards" in err) == (Exit.USAGE, True)
    assert verb("retry", run["id"], "--set=max_rejects=5", "--why=mended")[0] == 0
    assert verb("wait", run["id"])[0] == 0
    assert place.runs.find(run["id"]).parameters["max_rejects"] == 5
    assert verb("results", run["id"], f"--output={tmp_path}/rows.parquet")[0] == 0
    assert pq.read_table(tmp_path / "rows.parquet") == place.runs.results(run["id"]).to_table()
    whys = [event["why"] for event in lines_of(verb("audit", run["id"], "--json")[1])]
    assert whys.count("mended") == 2
    assert verb("logs", run["id"])[1].splitlines() == list(place.runs.logs(run["id"]))
    status, _, err = verb("restart", run["id"], "--force", "--why=gone")
    assert (status, "it has published" in err) == (Exit.FAILURE, True)
    assert verb("get", "no-such-run")[0] == Exit.NOT_FOUND
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ledgerbeam", "list", "--server=http://127.0.0.1:9"])
        assert main() == Exit.UNAVAILABLE


def test_a_second_person_approves(service: Service, client: Client) -> None:
    place = dataclasses.replace(service.place, process="approved")
    keys = Keys(place.runs.registry.database)
    roles = {"ann": Role.OPERATOR, "bob": Role.APPROVER}
    given = {n: keys.create(n, {"*": r}, who="root", at=utc_now()) for n, r in roles.items()}
    service.work("--kinds=approved")
    with Client(client.server, given["ann"]) as ann, Client(client.server, given["bob"]) as bob:
        run = ann.submit("approved", place.parameters(max_rejects=0))
        assert ann.wait(run.id).run.status is RunStatus.FAILURE
        with pytest.raises(ApprovalNeededError, match="another person approves it") as caught:
            ann.retry(run.id, "a typing error", parameters={"max_rejects": 3})
        (waiting,) = bob.get(run.id).approvals
        assert str(waiting.number) in str(caught.value)
        with pytest.raises(AccessDeniedError):
            ann.approve(run.id)
        headers = {"Authorization": f"Bearer {given['bob']}"}
        page = httpx.get(f"{client.server}/runs/{run.id}", headers=headers).text
        assert "To be approved by another person" in page
        bob.refuse(run.id, "three or four?", waiting.number)
        with pytest.raises(ApprovalNeededError):
            bob.retry(run.id, "three", parameters={"max_rejects": 3})
        with pytest.raises(SamePersonError):
            bob.approve(run.id)
        bob.refuse(run.id, "ann is to ask")
        with pytest.raises(ApprovalNeededError):
            ann.retry(run.id, "three", parameters={"max_rejects": 3})
        assert bob.approve(run.id, why="three it is").id == run.id
        assert bob.wait(run.id).run.status is RunStatus.SUCCESS
        moves = [event for event in bob.events(run.id) if "asked_by" in event.detail]
        assert [(e.who, e.detail["asked_by"], e.why) for e in moves] == [
            ("bob", "ann", "three it is")
        ]


def test_rejected_rows_are_read_page_by_page(service: Service, client: Client) -> None:
    place = service.place
    with (place.folder / "amounts.csv").open("a") as file:
        file.writelines(f"A1,no number {number}\n" for number in range(450))
    service.work()
    run = client.submit("counting", place.parameters(max_rejects=500))
    assert client.wait(run.id).run.status is RunStatus.SUCCESS
    pages = list(client.rejects(run.id))
    assert [page.num_rows for page in pages] == [200, 200, len(pages[2])]
    assert pa.concat_tables(pages) == pa.concat_tables(place.runs.rejects(run.id))
    assert client.get(run.id).rejected == sum(map(len, pages))


def test_a_run_is_steered_and_canceled(service: Service, client: Client) -> None:
    place = service.place
    place.set("hold")
    service.work("--slots=2")
    asked = client.request("counting", place.parameters(), why="a trial")
    # The same instance again is the same run.
    run = client.submit("counting", place.parameters())
    until(place.calls, "the first call")
    assert client.set_rate(run.id, 5.0, why="slow").rate == 5.0
    assert client.set_parallelism(run.id, 2).parallelism == 2
    assert client.pause(run.id, "a look").status is RunStatus.PAUSED
    assert client.resume(run.id).status is RunStatus.EXECUTING
    told = client.cancel_request(asked.id, "enough")
    assert told.cancel_why == "enough"
    assert client.wait(run.id).run.status is RunStatus.CANCELED
    assert service.ended(client, asked.id).state is RequestState.CANCELED
    assert any(event.why == "enough" for event in client.events(run.id))
    place.unset("hold")


def test_what_does_not_fit_is_rejected_with_every_problem(service: Service, client: Client) -> None:
    wrong = {**service.place.parameters(business_date="soon", shards=-1), "amounds": "x"}
    asked = client.request("counting", wrong)
    found = service.ended(client, asked.id)
    assert found.state is RequestState.REJECTED
    assert {p.parameter for p in found.problems} == {"business_date", "shards", "amounds"}
    with pytest.raises(ParameterError, match="business_date"):
        client.submit("counting", wrong)
    literal = {**service.place.parameters(), "password": "hunter2"}
    secret = service.ended(client, client.request("counting", literal).id)
    assert (secret.code, "hunter2" in secret.model_dump_json()) == ("secret-error", False)
    unknown = service.ended(client, client.request("no-such-kind", {}).id)
    assert (unknown.state, unknown.code) == (RequestState.REJECTED, "workload-not-found")
    with pytest.raises(RunNotFoundError):
        client.get("counting/2026-01-01")
    assert {kind["name"] for kind in httpx.get(f"{client.server}/v1/kinds").json()} >= {"counting"}


def test_a_run_is_launched_by_a_process_that_waited(service: Service, client: Client) -> None:
    node = service.work("--ahead=1")
    until(lambda: len(psutil.Process(node.pid).children(recursive=True)) == 2, "a launcher")
    waiting, driver = sorted(psutil.Process(node.pid).children(recursive=True), key=lambda p: p.pid)
    run = client.submit("counting", service.place.parameters())
    done = client.wait(run.id).run
    (attempt,) = done.attempts
    assert f":{waiting.pid}:" in attempt.launcher
    assert f":{driver.pid}:" in str(attempt.job_id)
    assert f"run={run.id} attempt=1" in service.place.settings.log_of(run.id).read_text()
    until(lambda: len(psutil.Process(node.pid).children(recursive=True)) == 2, "another one")
    left = psutil.Process(node.pid).children(recursive=True)
    service.kill(node)
    until(lambda: not any(goes_on(process) for process in left), "their end")


def test_nodes_end_when_queues_are_empty_and_when_they_are_told(
    service: Service, client: Client
) -> None:
    place = service.place
    asked = [
        client.request("counting", place.parameters(business_date=day))
        for day in ("2026-11-03", "2026-11-04")
    ]
    until(lambda: client.get_request(asked[-1].id).state is RequestState.QUEUED, "queued")
    node = service.work("--until-empty", "--slots=2")
    assert node.wait(120) == 0
    for each in asked:
        succeeded(client.get_request(each.id))
    place.set("hold")
    node = service.work("--drain=0.5")
    held = client.request("counting", place.parameters(business_date="2026-11-05"))
    until(lambda: client.get_request(held.id).run_id, "a run")
    assert service.stop(node) == 0
    # What it had is handed over, and the run has never ended meanwhile.
    service.work()
    until(lambda: client.get_request(held.id).epoch == 2, "another node")
    place.unset("hold")
    found = service.ended(client, held.id)
    assert (found.state, found.lost) == (RequestState.SUCCESS, 0)
    assert len(place.runs.registry.get(str(found.run_id)).attempts) == 1


def test_a_node_that_sleeps_has_no_say_when_it_wakes(service: Service, client: Client) -> None:
    place = service.place
    place.set("hold")
    first = service.work()
    asked = client.request("counting", place.parameters())
    until(lambda: client.get_request(asked.id).run_id, "a run")
    first.send_signal(signal.SIGSTOP)
    service.work()
    until(lambda: client.get_request(asked.id).epoch == 2, "another node")
    first.send_signal(signal.SIGCONT)
    place.unset("hold")
    found = service.ended(client, asked.id)
    assert (found.state, found.epoch, found.lost) == (RequestState.SUCCESS, 2, 1)
    history = httpx.get(f"{client.server}/v1/audit", params={"subject": asked.id}).json()["items"]
    assert [entry["action"] for entry in history].count("request.success") == 1
    assert history[0]["who"] == found.node


def test_a_request_that_kills_nodes_is_put_aside_and_redriven(
    service: Service, client: Client
) -> None:
    place = service.place
    httpx.patch(f"{client.server}/v1/queues/counting", json={"lost_nodes": 1}).raise_for_status()
    place.set("hold")
    killed = service.work(failpoint="work: linked")
    asked = client.request("counting", place.parameters())
    assert killed.wait(120) == -signal.SIGKILL
    service.work()
    found = service.ended(client, asked.id)
    assert (found.state, found.lost) == (RequestState.DEAD, 1)
    assert str(found.error).startswith("a node was lost with it")
    assert client.get(str(found.run_id)).run.status is RunStatus.CANCELED
    place.unset("hold")
    driven = httpx.post(f"{client.server}/v1/requests/{asked.id}/redrive", json={"why": "mended"})
    assert driven.json()["state"] == "RECEIVED"
    succeeded(service.ended(client, asked.id))


def test_a_client_says_when_nobody_answers() -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(ServiceUnavailableError, match="ledgerbeam serve"),
    ):
        client.list()
    with pytest.raises(ParameterError, match="is missing"):
        Client()


def test_all_of_it_on_a_laptop(new_place: NewPlace, lease: float) -> None:
    place = new_place()
    with service_of(place, lease) as service:
        up = service.start("up", "--port=0")
        body = json.dumps({"kind": "counting", "parameters": place.parameters()})
        curl = ["curl", "--silent", "--fail", "--json", body, f"{service.server}/v1/requests"]
        asked = json.loads(subprocess.run(curl, check=True, capture_output=True).stdout)
        with service.client() as client:
            run_id = succeeded(service.ended(client, asked["id"]))
            assert f"counting/{place.day}" in httpx.get(f"{service.server}/runs/{run_id}").text
        assert len(psutil.Process(up.pid).children()) == 3
        parts = psutil.Process(up.pid).children(recursive=True)
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
        until(lambda: not any(goes_on(part) for part in parts), "the end of all parts")
        killed = service.start("up", "--port=0")
        parts = psutil.Process(killed.pid).children(recursive=True)
        service.kill(killed)
        until(lambda: not any(goes_on(part) for part in parts), "the end of all parts")
