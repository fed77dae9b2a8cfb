"""One component at once: what a caller is told, and that the night neither sees it nor waits."""

import signal
import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import httpx
import pytest
from tests.support.json_lines import lines_of
from tests.support.recorded import NewPlace, until
from tests.support.service import Service, service_of

import ledgerbeam as lb
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import (
    ComponentNotFoundError,
    ParameterError,
    StorageError,
)
from ledgerbeam.pipelines.loan_close_of_business import CloseParameters, LoanCloseOfBusiness
from ledgerbeam.service.at_once.inline import execute
from ledgerbeam.service.client import Client
from ledgerbeam.service.errors import AnswerTimeoutError, ServiceUnavailableError
from ledgerbeam.synthetic.loans import write_loans

pytestmark = pytest.mark.slow

LOANS = "loan-close-of-business"
TODAY = date(2026, 3, 20)


@pytest.fixture(scope="module")
def lease() -> float:
    return 8.0


@pytest.fixture
def service(new_place: NewPlace, lease: float) -> Iterator[Service]:
    with service_of(new_place(), lease) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    service.serve()
    service.route()
    with service.client() as client:
        kinds = f"{service.server}/v1/kinds"
        until(lambda: "counting" in httpx.get(kinds).text, "the kinds are published")
        yield client


def loans_of(service: Service) -> dict[str, Any]:
    """Parameters of a night; all loans are behind by months."""
    bank = service.place.folder / "bank"
    write_loans(str(bank), 40, files=2, business_date=TODAY, months=3)
    return {
        "loans": f"{bank}/loans*",
        "transactions": f"{bank}/transactions*",
        "business_date": TODAY.isoformat(),
        "output": str(service.place.folder / "results"),
    }


def test_a_loan_is_closed_while_its_customer_is_on_the_phone(
    service: Service, client: Client
) -> None:
    place, night = service.place, loans_of(service)
    service.work(f"--kinds={LOANS}")
    # The night has begun, and goes on for hours; its queue serves one at a time, and is held.
    run = place.runs.record(LOANS, night)[0]
    place.runs.pause(run.id, "it takes its time")
    launcher = place.launcher(run)
    until(lambda: place.runs.get(run.id).run.live_attempt, "the night has begun")
    held = {"limit": 1, "held": True, "why": "the night has it for itself"}
    httpx.patch(f"{service.server}/v1/queues/{LOANS}", json=held).raise_for_status()
    quick = client.inline(LOANS, "L000000007", night, why="on the phone")
    assert (quick.state, quick.run_id, quick.error) == ("SUCCESS", None, None)
    (loan,) = quick.results
    assert (loan["loan_id"], loan["closed_through"]) == ("L000000007", TODAY.isoformat())
    assert {entry["loan_id"] for entry in quick.tables["entries"]} == {"L000000007"}
    done = client.inline(LOANS, "L000000007", night, publish=True, seconds=60, why="on the phone")
    assert (done.state, done.results, done.tables) == ("SUCCESS", quick.results, quick.tables)
    asked = client.get_request(str(done.request_id))
    assert (asked.state, asked.run_id, asked.why) == ("SUCCESS", done.run_id, "on the phone")
    own = client.get(str(done.run_id)).run
    assert own.name == f"{LOANS}/{TODAY}-only-L000000007"
    # Asked for again, it is another run of that instance.
    again = client.inline(LOANS, "L000000007", night, publish=True, seconds=60, why="once more")
    assert client.get(str(again.run_id)).run.name == f"{own.name}/2"
    assert client.get(run.id).run.status is RunStatus.PAUSED
    client.resume(run.id)
    assert client.wait(run.id).run.status is RunStatus.SUCCESS
    launcher.wait()
    # It is the same night as one that nobody has called in.
    by_itself = night | {"output": str(place.folder / "alone")}
    alone = lb.run(LoanCloseOfBusiness(CloseParameters.model_validate(by_itself)))
    assert lb.load_manifest(run.uri).totals == alone.totals
    row = {"loan_id": "L000000007"}
    rows = [r for r in client.results(run.id).to_table().to_pylist() if r | row == r]
    assert rows == client.results(str(done.run_id)).to_table().to_pylist()
    assert str(rows[0]["balance"]) == loan["balance"]
    assert len(client.list(LOANS)) == 3


def test_what_a_component_comes_to_is_told(service: Service, client: Client) -> None:
    place = service.place
    service.work()
    given = place.parameters()
    found = client.inline("counting", "A3", given)
    assert [row["account"] for row in found.results] == ["A3"]
    assert found.rejects == []
    # Only its own rows can be refused.
    (refused,) = client.inline("counting", "A1", given).rejects
    assert "not a number" in refused["raw"]
    place.set("fail-A7")
    failed = client.inline("counting", "A7", given)
    assert (failed.state, failed.code, failed.results) == ("FAILURE", "too-many-failures", [])
    (failure,) = failed.failures
    assert (failure["component"], "can't be counted" in failure["error"]) == ("A7", True)
    with pytest.raises(ComponentNotFoundError, match="have the key A99"):
        client.inline("counting", "A99", given)
    with pytest.raises(ParameterError, match="business-date=tomorrow"):
        client.inline("counting", "A3", given | {"business_date": "tomorrow"})
    with pytest.raises(ParameterError, match="give account, one value"):
        client.inline("counting", "A3/x", given)
    assert client.list("counting") == []
    assert not (place.folder / "output").exists()
    audit = httpx.get(f"{service.server}/v1/audit").json()["items"]
    asked = [entry for entry in audit if entry["action"] == "inline.asked"]
    assert [entry["detail"]["key"] for entry in asked][-1] == "A3"


def test_it_ends_at_its_time_limit_and_the_next_is_served(service: Service, client: Client) -> None:
    place = service.place
    asked = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match="no node serves counting: start one by"):
        client._create("/v1/kinds/counting/inline", {"key": "A3", "seconds": 60}, None, tries=1)
    assert time.monotonic() - asked < 20
    service.work()
    place.set("hold")
    with pytest.raises(AnswerTimeoutError, match="was ended"):
        client.inline("counting", "A3", place.parameters(), seconds=4)
    place.unset("hold")
    assert client.inline("counting", "A3", place.parameters(), seconds=60).state == "SUCCESS"


def test_a_node_that_dies_with_it_leaves_nothing_behind(service: Service, client: Client) -> None:
    place = service.place
    doomed = service.work(failpoint="errand: taken")
    with pytest.raises(AnswerTimeoutError, match="hasn't answered in time: it may be lost"):
        client.inline("counting", "A3", place.parameters(), seconds=5)
    assert doomed.wait(60) == -signal.SIGKILL
    service.work()
    # It isn't done later by another, when nobody waits any more.
    assert client.inline("counting", "A5", place.parameters(), seconds=60).state == "SUCCESS"
    assert {call.account for call in place.calls()} == {"A5"}


def test_the_command_line_does_it_here_or_on_a_node(service: Service, client: Client) -> None:
    place = service.place
    service.work()
    given = ["inline", "counting", "--key=A3", *place.flags()]
    here = place.command(*given, "--json")
    there = place.command(*given, "--json", f"--server={service.server}")
    assert lines_of(here.stdout) == lines_of(there.stdout)
    assert here.returncode == there.returncode == 0
    place.set("fail-A3")
    failed = place.command(*given, f"--server={service.server}")
    assert (failed.returncode, "A3 FAILURE: " in failed.stderr) == (1, True)
    unfit = place.command(*given, "--publish")
    assert "--publish needs a service" in unfit.stderr


def test_logs_are_read_where_the_launcher_was(service: Service, client: Client) -> None:
    place = service.place
    place.set("fail-A7")
    service.work()
    run = client.submit("counting", place.parameters())
    client.wait(run.id)
    assert list(client.logs(run.id)) == list(place.runs.logs(run.id))
    about = list(client.logs(run.id, "A7"))
    assert about == list(place.runs.logs(run.id, "A7"))
    assert "can't be counted" in "".join(about)
    page = httpx.get(f"{service.server}/v1/runs/{run.id}/logs", params={"limit": 1}).json()
    assert len(page["items"]) == 1
    assert page["next"] is not None
    waiting = place.record(business_date="2026-11-02")
    with pytest.raises(StorageError, match="no launcher has begun yet"):
        list(client.logs(waiting.id))


def test_what_may_be_called_once_only_is_refused(new_place: NewPlace) -> None:
    place = new_place("charging")
    given = {"kind": "charging", "key": "A3", "parameters": place.parameters()}
    with pytest.raises(ParameterError, match="may be called once only"):
        execute(given)
