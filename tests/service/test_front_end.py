"""The front end over HTTP: who may what, what is refused and how it is said."""

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from tests.service.front_ends import KIND, NewKey, problem
from tests.service.front_ends import guarded as guarded
from tests.service.front_ends import local as local
from tests.service.front_ends import new_key as new_key
from tests.service.front_ends import registry as registry
from tests.service.front_ends import settings as settings
from tests.service.test_request_database import NOON
from tests.support.json_lines import lines_of
from tests.support.racers import play, submitted
from typer.testing import CliRunner

from ledgerbeam.batch.cli.app import app as command_line
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_table
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.body import view_of
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io import errors
from ledgerbeam.io.commit.attempts import start_attempt
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.errors import LedgerbeamError, UserError
from ledgerbeam.service import errors as own_errors
from ledgerbeam.service.access.front import Front
from ledgerbeam.service.model import RequestState, Role
from ledgerbeam.service.problems import classes, error_of, problem_of
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.intake import Intake
from ledgerbeam.service.web import app as front_end
from ledgerbeam.service.web.app import Guard, create_app
from ledgerbeam.transforms.publish import Part, commit_part


def test_from_the_first_key_on_all_callers_need_one(local: TestClient, new_key: NewKey) -> None:
    assert local.get("/v1/requests").status_code == 200
    key = new_key("ada", all="viewer")
    problem(local.get("/v1/requests"), 401, "unauthenticated")
    assert local.get("/v1/requests", headers=key).status_code == 200
    assert local.get("/").status_code == 303  # to the page on which one signs in


def test_a_request_that_failed_without_a_run_waits_for_a_person(
    local: TestClient, registry: Registry
) -> None:
    assert "Nothing of the last day does" in local.get("/").text
    asked = local.post("/v1/requests", json={"kind": KIND, "parameters": {}}).json()["id"]
    dispatch, now = Dispatch(registry.database), utc_now()
    dispatch.admit([asked], "router", now)
    (taken,) = dispatch.take([KIND], 1, node="n", now=now, lease_until=now)
    dispatch.finish(asked, taken.epoch, "n", RequestState.FAILURE, now, error="no such file")
    shown = local.get("/").text
    assert f"/requests/{asked}" in shown
    assert "no such file" in shown


def told(answer: Any) -> Any:
    """An answer, without what is different each time."""
    own = ("id", "sequence", "received_at", "request")
    body = {name: value for name, value in answer.json().items() if name not in own}
    ids = r"[0-9a-f-]{36}|Idempotency-Key \w+|\d+k+"
    headers = {n: re.sub(ids, "ID", v) for n, v in answer.headers.items() if n != "content-length"}
    return answer.status_code, json.loads(re.sub(ids, "ID", json.dumps(body))), headers


class TestSubmitting:
    @pytest.mark.parametrize(
        "body",
        [
            {"kind": KIND, "parameters": {"a": "ü"}, "priority": 5, "why": "asked for"},
            {"kind": KIND, "start_by": "2026-11-30T22:00:00+01:00", "replace": True, "why": "no"},
            {"kind": "other"},
            {"kind": KIND, "priority": 101, "more": 1},
            {"kind": KIND, "start_by": "2026-11-30"},
            {"parameters": []},
            ["kind"],
            "kind",
        ],
        ids=str,
    )
    @pytest.mark.parametrize("key", [None, "k", "", "k" * 201])
    def test_it_is_answered_alike_whichever_way_it_takes(
        self, guarded: TestClient, new_key: NewKey, body: object, key: str | None
    ) -> None:
        # With a character set, FastAPI reads it.
        caller = new_key("ada", **{KIND: "operator"})
        answers = []
        for number, form in enumerate(("application/json", "application/json; charset=utf-8")):
            for headers in ({}, caller, {"Authorization": "Bearer lb_no_no"}):
                own = {} if key is None else {"Idempotency-Key": key and f"{number}{key}"[:201]}
                sent = {"Content-Type": form, **headers, **own}
                given = [guarded.post("/v1/requests", json=body, headers=sent) for _ in range(2)]
                other = guarded.post("/v1/requests", json={"kind": KIND}, headers=sent)
                answers.append([told(answer) for answer in (*given, other)])
        assert answers[:3] == answers[3:]

    def test_it_is_accepted_and_says_where_it_is(self, local: TestClient) -> None:
        answer = local.post("/v1/requests", json={"kind": "unheard-of", "parameters": {"a": 1}})
        assert answer.status_code == 202
        found = local.get(answer.headers["location"])
        assert found.json() == answer.json()
        assert found.headers["etag"] == answer.headers["etag"] == '"1"'
        assert found.json()["state"] == "RECEIVED"

    def test_a_key_makes_it_safe_to_send_again(self, local: TestClient) -> None:
        headers = {"Idempotency-Key": "a-1"}
        first = local.post("/v1/requests", json={"kind": KIND}, headers=headers)
        again = local.post("/v1/requests", json={"kind": KIND}, headers=headers)
        assert (again.status_code, again.json()) == (202, first.json())
        other = local.post("/v1/requests", json={"kind": "other"}, headers=headers)
        body = problem(other, 422, "idempotency-conflict")
        assert body["request"] == first.json()["id"]

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ({}, "kind: Field required"),
            ({"kind": ""}, "kind"),
            ({"kind": "a\0b"}, "kind"),
            ({"kind": "a", "priority": 1000}, "priority"),
            ({"kind": "a", "beam_flags": ["--setup_file=/tmp/x"]}, "beam_flags"),
            ({"kind": "a", "start_by": "2026-11-30T12:00:00"}, "start_by"),
            ([], "valid dictionary"),
        ],
    )
    def test_what_cannot_be_read_is_told_by_field(
        self, local: TestClient, body: Any, says: str
    ) -> None:
        answer = local.post("/v1/requests", json=body)
        assert says in problem(answer, 400, "bad-request")["detail"]

    def test_a_body_is_as_large_as_may_be(self, local: TestClient, registry: Registry) -> None:
        large = {"kind": KIND, "parameters": {"a": "x" * 262_144}}
        problem(local.post("/v1/requests", json=large), 413, "body-too-large")
        assert Intake(registry.database).search().items == []

    def test_one_that_does_not_come_is_not_waited_for(
        self, local: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(front_end, "_BODY_SECONDS", 0.05)
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/requests", "query_string": b""}
        asyncio.run(Guard(local.app)(scope, receive, send))
        assert sent[0]["status"] == 400
        assert b"didn't come" in sent[1]["body"]

    @pytest.mark.parametrize("body", [b"{", b"\xff", b"null"])
    def test_a_body_that_is_no_json_is_refused(self, local: TestClient, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        problem(local.post("/v1/requests", content=body, headers=headers), 400, "bad-request")

    @pytest.mark.parametrize("path", ["/v1/requests/%00", "/v1/requests?error=%00", "/runs/%00"])
    def test_nul_is_no_part_of_an_address(self, local: TestClient, path: str) -> None:
        problem(local.get(path), 400, "bad-request")


class TestRuns:
    def test_verbs_are_those_of_the_registry(self, local: TestClient, registry: Registry) -> None:
        run = play(registry, submitted(registry, instance="2026-11-20").id, "start")
        seen = local.get(f"/v1/runs/{run.id}")
        assert (seen.json()["name"], seen.json()["status"]) == (f"{KIND}/2026-11-20", "EXECUTING")
        assert seen.json()["allowed"] == ["pause", "cancel", "set-parallelism", "set-rate"]
        etag = {"If-Match": seen.headers["etag"]}
        paused = local.post(f"/v1/runs/{run.id}/pause", json={"why": "late file"}, headers=etag)
        assert paused.json()["status"] == "PAUSED"
        assert paused.headers["etag"] != seen.headers["etag"]
        told = problem(
            local.post(f"/v1/runs/{run.id}/cancel", headers=etag), 412, "changed-meanwhile"
        )
        assert f'"{told["etag"]}"' == paused.headers["etag"]
        assert registry.get(run.id).status is RunStatus.PAUSED
        rate = local.post(f"/v1/runs/{run.id}/set-rate", json={"rate": 5, "why": "slow database"})
        assert rate.json()["rate"] == 5
        local.post(f"/v1/runs/{run.id}/resume", json={})
        history = local.get(f"/v1/runs/{run.id}/audit").json()
        assert [e["why"] for e in history if e["type"] in ("status", "rate")] == [
            "late file",
            "slow database",
            "",
        ]
        assert registry.events(run.id)[-1].to_status is RunStatus.EXECUTING

    def test_money_and_failures_are_as_the_command_line_gives_them(
        self, local: TestClient, registry: Registry, settings: Settings, tmp_path: Path
    ) -> None:
        uri = str(tmp_path / "run")
        run = play(registry, submitted(registry, uri=uri).id, "start fail")
        record = AttemptRecord(
            process=KIND, instance="2026-11-20", number=1, started_at=NOON, code_version="1",
            parameters={}, inputs=[], shards=1, fingerprint="f", total_decimals={"amount": 2},
        )  # fmt: skip
        totals = {"components": 2, "failed": 1, "rows": 3, "amount": 98000, "fee_JPY": 7}
        failed = Outcome("A7", ComponentStatus.FAILURE, 2, "ValueError: no", "", "at", {"id": "7"})
        part = Part(pa.table({"id": ["A6"]}), totals, ["id"], outcomes=outcomes_table([failed]))
        commit_part(start_attempt(uri, record), 0, part)
        money = {
            "amount": {"amount": "980.00", "currency": None, "scale": 2},
            "fee_JPY": {"amount": "7", "currency": "JPY", "scale": 0},
        }
        answer = local.get(f"/v1/runs/{run.id}").json()
        assert answer["progress"]["totals"].items() >= {"rows": 3, **money}.items()
        (failure,) = answer["failures"]
        assert (failure["component"], failure["record"]) == ("A7", {"id": "7"})
        printed = ["get", run.id, "--json", f"--registry={settings.registry_url}"]
        (line,) = lines_of(CliRunner().invoke(command_line, printed).stdout)
        assert {n: v for n, v in answer.items() if n != "allowed"} == line
        (data,) = re.findall(
            "event: progress\ndata: (.*)", local.get(f"/v1/runs/{run.id}/events").text
        )
        assert json.loads(data)["totals"] == line["progress"]["totals"]
        view = view_of(answer)
        with Runs(settings) as runs:
            assert view == runs.get(run.id)

    def test_what_cannot_be_done_is_a_conflict(self, local: TestClient, registry: Registry) -> None:
        run = play(registry, submitted(registry).id, "start succeed")
        for verb in ("pause", "resume", "cancel", "retry", "restart"):
            body = problem(local.post(f"/v1/runs/{run.id}/{verb}"), 409, "illegal-move")
            assert body["from_status"] == "SUCCESS"
        assert local.get(f"/v1/runs/{run.id}").json()["allowed"] == []

    def test_another_attempt_is_asked_for(self, local: TestClient, registry: Registry) -> None:
        run = play(registry, submitted(registry).id, "start fail")
        answer = local.post(f"/v1/runs/{run.id}/retry", json={"why": "the file is there"})
        assert answer.status_code == 202
        asked = local.get(answer.headers["location"]).json()
        last = registry.events(run.id)[-1].sequence
        assert (asked["verb"], asked["run_id"]) == ("retry", run.id)
        assert asked["parameters"] == {"after": last}

    def test_runs_are_found_by_name_and_listed_by_page(
        self, local: TestClient, registry: Registry
    ) -> None:
        made = [submitted(registry, instance=f"2026-11-{day}") for day in range(10, 15)]
        found = local.get("/v1/runs", params={"name": f"{KIND}/2026-11-12"}).json()["items"]
        assert [run["id"] for run in found] == [made[2].id]
        seen: list[str] = []
        asked: dict[str, str] = {"limit": "2"}
        while True:
            page = local.get("/v1/runs", params=asked).json()
            seen += [run["id"] for run in page["items"]]
            if page["next"] is None:
                break
            asked["cursor"] = page["next"]
        assert sorted(seen) == sorted(run.id for run in made)
        problem(local.get("/v1/runs/nothing"), 404, "run-not-found")
        problem(local.get(f"/v1/runs/{made[0].id}/results"), 404, "not-published")

    def test_preferring_to_wait_ends_with_the_time(
        self, local: TestClient, registry: Registry
    ) -> None:
        run = submitted(registry)
        answer = local.get(f"/v1/runs/{run.id}", headers={"Prefer": "respond-async, wait=1"})
        assert answer.json()["status"] == "INITIATED"

    def test_events_go_on_behind_the_last_one_seen(
        self, local: TestClient, registry: Registry
    ) -> None:
        run = play(registry, submitted(registry).id, "start fail")
        whole = local.get(f"/v1/runs/{run.id}/events").text
        ids = [line[4:] for line in whole.splitlines() if line.startswith("id: ")]
        assert ids == [str(event.sequence) for event in registry.events(run.id)]
        assert whole.endswith("event: end\ndata: FAILURE\n\n")
        rest = local.get(f"/v1/runs/{run.id}/events", headers={"Last-Event-ID": ids[0]}).text
        assert [line[4:] for line in rest.splitlines() if line.startswith("id: ")] == ids[1:]
        data = next(line for line in whole.splitlines() if line.startswith("data: {"))
        assert json.loads(data[6:])["type"] == "submitted"


class TestQueues:
    def test_a_queue_is_held_and_released_with_a_reason(self, local: TestClient) -> None:
        seen = local.get(f"/v1/queues/{KIND}")
        etag = {"If-Match": seen.headers["etag"]}
        body = {"held": True, "limit": 2, "why": "month's end"}
        held = local.patch(f"/v1/queues/{KIND}", json=body, headers=etag)
        assert (held.json()["held_why"], held.json()["policy"]["limit"]) == ("month's end", 2)
        problem(
            local.patch(f"/v1/queues/{KIND}", json={"held": False}, headers=etag),
            412,
            "changed-meanwhile",
        )
        entries = local.get("/v1/audit", params={"subject": KIND}).json()["items"]
        assert [entry["why"] for entry in entries] == ["month's end"]
        assert local.patch(f"/v1/queues/{KIND}", json={"limit": None}).json()["policy"] == {
            "limit": None,
            "lost_nodes": 3,
        }
        problem(local.patch(f"/v1/queues/{KIND}", json={"limit": 0}), 400, "bad-request")
        problem(local.patch(f"/v1/queues/{KIND}", json={"held": None}), 400, "bad-request")
        problem(local.patch("/v1/queues/none", json={"held": True}), 404, "kind-not-found")

    def test_metrics_tell_depth_and_age(self, local: TestClient, registry: Registry) -> None:
        asked = local.post("/v1/requests", json={"kind": KIND}).json()
        Dispatch(registry.database).admit([asked["id"]], "router", NOON)
        text = local.get("/metrics").text
        assert f'ledgerbeam_queue_queued{{kind="{KIND}"}} 1.0' in text
        assert local.get("/healthz").json() == local.get("/readyz").json() == {"status": "ok"}


class TestAccess:
    def test_without_a_key_nothing_is_told(self, guarded: TestClient) -> None:
        for path in ("/v1/requests", "/v1/runs", "/v1/kinds", "/v1/queues", "/v1/audit"):
            answer = guarded.get(path)
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/runs", "/requests", "/queues", "/audit"):
            assert guarded.get(path).headers["location"] == "/sign-in"
        assert guarded.get("/healthz").status_code == 200

    def test_roles_are_by_kind(
        self, guarded: TestClient, registry: Registry, new_key: NewKey
    ) -> None:
        run = play(registry, submitted(registry).id, "start")
        foreign = play(registry, submitted(registry, process="other").id, "start")
        ada = new_key("ada", delivery_marking="submitter")
        assert guarded.post("/v1/requests", json={"kind": KIND}, headers=ada).status_code == 202
        assert guarded.get(f"/v1/runs/{run.id}", headers=ada).status_code == 200
        for method, path, body in (
            ("POST", "/v1/requests", {"kind": "other"}),
            ("GET", f"/v1/runs/{foreign.id}", None),
            ("GET", f"/v1/runs/{foreign.id}/audit", None),
            ("GET", f"/v1/runs/{foreign.id}/events", None),
            ("GET", "/v1/runs?kind=other", None),
            ("GET", "/v1/kinds/other", None),
            ("GET", "/v1/queues/other/waiting", None),
            ("POST", f"/v1/runs/{run.id}/cancel", {}),
            ("POST", f"/v1/runs/{run.id}/set-rate", {"rate": 1}),
            ("POST", f"/v1/runs/{run.id}/retry", {}),
            ("POST", f"/v1/runs/{run.id}/resolve", {"component": "a", "status": "SUCCESS"}),
            ("PATCH", f"/v1/queues/{KIND}", {"held": True}),
        ):
            answer = guarded.request(method, path, json=body, headers=ada)
            assert problem(answer, 403, "access-denied")["role"] in set(Role), path
        assert [k["name"] for k in guarded.get("/v1/kinds", headers=ada).json()] == [KIND]
        assert [q["kind"] for q in guarded.get("/v1/queues", headers=ada).json()] == [KIND]
        listed = guarded.get("/v1/runs", headers=ada).json()["items"]
        assert [item["id"] for item in listed] == [run.id]
        boss = new_key("bob", all="operator")
        assert len(guarded.get("/v1/runs", headers=boss).json()["items"]) == 2
        canceled = guarded.post(f"/v1/runs/{run.id}/cancel", json={"why": "no"}, headers=boss)
        assert canceled.json()["status"] == "CANCELING"
        assert registry.events(run.id)[-1].who == "bob"

    def test_who_asked_may_withdraw_it_and_others_may_not(
        self, guarded: TestClient, new_key: NewKey
    ) -> None:
        ada, bob = new_key("ada", all="submitter"), new_key("bob", all="submitter")
        asked = guarded.post("/v1/requests", json={"kind": KIND}, headers=ada).json()["id"]
        answer = guarded.post(f"/v1/requests/{asked}/cancel", headers=bob)
        problem(answer, 403, "access-denied")
        done = guarded.post(f"/v1/requests/{asked}/cancel", json={"why": "no"}, headers=ada)
        assert done.json()["state"] == "CANCELED"

    def test_without_keys_it_answers_to_this_machine_only(self, local: TestClient) -> None:
        answer = local.get("/v1/kinds", headers={"Host": "rebound.example.com"})
        problem(answer, 403, "access-denied")
        for headers in (
            {"Origin": "https://evil.example.com"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "null"},
        ):
            answer = local.post("/v1/requests", json={"kind": KIND}, headers=headers)
            problem(answer, 403, "access-denied")
        for host in ("127.0.0.1:8017", "[::1]:8017", "localhost"):
            assert local.get("/v1/kinds", headers={"Host": host}).status_code == 200


class TestProblems:
    @pytest.mark.parametrize("code", sorted(classes()))
    def test_errors_and_problems_are_one_to_one(self, code: str) -> None:
        kind = classes()[code]
        error = kind("one line")
        for field in dataclasses.fields(error):
            setattr(error, field.name, "text")
        again = error_of(json.loads(json.dumps(problem_of(error))))
        assert type(again) is kind
        assert (str(again), again.attributes) == ("one line", error.attributes)

    def test_a_type_is_where_it_is_explained(self, local: TestClient) -> None:
        for kind in classes().values():
            told = problem_of(kind("one line"))
            assert local.get(told["type"]).json() == {
                n: told[n] for n in ("type", "title", "status")
            }

    def test_no_class_is_left_out(self) -> None:
        found = [*vars(errors).values(), *vars(own_errors).values()]
        kinds = {k for k in found if isinstance(k, type) and issubclass(k, LedgerbeamError)}
        expected = {kind for kind in kinds if issubclass(kind, UserError)}
        assert set(classes().values()) == expected

    def test_a_path_that_is_none_and_a_method_that_is_none(self, local: TestClient) -> None:
        assert local.get("/v1/nothing").json()["status"] == 404
        assert local.delete("/v1/requests").json()["status"] == 405

    def test_a_bug_tells_nothing(
        self, settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("password=s3cret")

        monkeypatch.setattr(Intake, "search", fail)
        app = create_app(settings, needs_key=False)
        with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
            answer = client.get("/v1/requests")
        problem(answer, 500, "bug")
        assert "s3cret" not in answer.text

    def test_a_database_that_is_gone_is_unavailable(
        self, local: TestClient, settings: Settings
    ) -> None:
        front: Front = local.app.state.front  # type: ignore[attr-defined]
        front.runs.registry.close()
        file = Path(settings.registry_url.removeprefix("sqlite:///"))
        for each in file.parent.glob("registry.db*"):
            each.unlink()
        file.write_text("id,client_code\n" * 100)
        answer = local.get("/readyz")
        problem(answer, 503, "registry-unavailable")
        assert answer.headers["retry-after"]

    def test_the_description_is_there(self, local: TestClient) -> None:
        described = local.get("/v1/openapi.json").json()
        assert described["openapi"].startswith("3.1")
        assert "/v1/runs/{run}/set-rate" in described["paths"]
        schemas = described["components"]["schemas"]
        progress = schemas[schemas["ServedRun"]["properties"]["progress"]["$ref"].split("/")[-1]]
        (_, money) = progress["properties"]["totals"]["additionalProperties"]["anyOf"]
        assert money["$ref"].endswith("/Money")


def test_it_imports_neither_beam_nor_a_workload(settings: Settings) -> None:
    code = (
        "import sys, pathlib\n"
        "from ledgerbeam.batch.settings import Settings\n"
        "from ledgerbeam.service.web.app import create_app\n"
        f"create_app(Settings({settings.registry_url!r}, pathlib.Path('.'), 30), needs_key=True)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    packages = {name.partition(".")[0] for name in modules}
    assert not packages & {"apache_beam", "pyarrow", "numpy", "grpc", "holidays", "pandas"}
    assert not [name for name in modules if name.startswith("ledgerbeam.pipelines")]
