"""The page of a front end, as a browser asks for it: signing in, forms, what is shown to whom."""

from fastapi.testclient import TestClient
from tests.service.front_ends import KIND, NewKey, problem
from tests.service.front_ends import guarded as guarded
from tests.service.front_ends import local as local
from tests.service.front_ends import new_key as new_key
from tests.service.front_ends import registry as registry
from tests.service.front_ends import settings as settings
from tests.service.test_request_database import NOON
from tests.support.racers import play, submitted

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.service.model import RequestState
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.intake import Intake


class TestPage:
    def test_somebody_signs_in_and_submits_by_the_form(
        self, guarded: TestClient, registry: Registry, new_key: NewKey
    ) -> None:
        key = new_key("ada", all="operator")["Authorization"].removeprefix("Bearer ")
        wrong = guarded.post("/sign-in", data={"key": "lb_no_no"})
        assert wrong.status_code == 401
        assert "isn&#39;t valid" in wrong.text
        entered = guarded.post("/sign-in", data={"key": key})
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert key not in cookie
        form = guarded.get(f"/kinds/{KIND}/new").text
        assert "the &lt;day&gt;" in form
        sent = {"day": "2026-11-30", "count": "", "rule": "many", "names": '["a"]', "_why": "late"}
        assert guarded.post(f"/kinds/{KIND}/new", data=sent).status_code == 403
        (token,) = {part.split('"')[0] for part in form.split('name="csrf" value="')[1:]}
        answer = guarded.post(f"/kinds/{KIND}/new", data={**sent, "csrf": token})
        assert answer.status_code == 303
        (stored,) = Intake(registry.database).search().items
        assert stored.parameters == {
            "day": "2026-11-30",
            "rule": "many",
            "strict": False,
            "names": ["a"],
        }
        assert (stored.requester, stored.why) == ("ada", "late")
        assert "RECEIVED" in guarded.get(answer.headers["location"]).text
        api = guarded.post("/v1/requests", json={"kind": KIND})
        problem(api, 401, "unauthenticated")
        guarded.post("/sign-out", data={"csrf": token})
        guarded.cookies.set("ledgerbeam_session", cookie.split("=", 1)[1].split(";")[0])
        assert guarded.get("/").headers["location"] == "/sign-in"

    def test_a_rejected_form_comes_back_with_its_problems(
        self, local: TestClient, registry: Registry
    ) -> None:
        from ledgerbeam.service.model import Problem

        given = {"kind": KIND, "parameters": {"day": "yesterday", "rule": "many"}}
        asked = local.post("/v1/requests", json=given).json()["id"]
        Dispatch(registry.database).settle(
            asked,
            RequestState.REJECTED,
            "router",
            NOON,
            "invalid-parameter",
            "day: no date",
            [Problem(parameter="day", message="no date")],
        )
        assert f"/kinds/{KIND}/new?like={asked}" in local.get(f"/requests/{asked}").text
        form = local.get(f"/kinds/{KIND}/new?like={asked}").text
        assert 'value="yesterday"' in form
        assert "no date" in form
        assert "<option selected>many</option>" in form

    def test_every_page_shows_what_there_is_as_text(
        self, local: TestClient, registry: Registry
    ) -> None:
        run = play(registry, submitted(registry).id, "start")
        evil = "<script>alert(1)</script>"
        local.post(f"/v1/runs/{run.id}/pause", json={"why": evil})
        asked = local.post("/v1/requests", json={"kind": KIND, "why": evil}).json()["id"]
        for path in (
            "/",
            "/runs",
            "/requests",
            "/queues",
            "/audit",
            f"/runs/{run.id}",
            f"/runs/{run.id}/components?text={evil}",
            f"/runs/{run.id}/results",
            f"/runs/{run.id}/log?component={evil}",
            f"/runs/{run.id}/record",
            f"/requests/{asked}",
            f"/requests?requester={evil}",
            f"/kinds/{KIND}/new",
            "/sign-in",
            "/runs/none",
        ):
            for headers in ({}, {"HX-Request": "true"}):
                answer = local.get(path, headers=headers)
                assert answer.status_code == (404 if path == "/runs/none" else 200), path
                assert evil not in answer.text, path
                policy = answer.headers["content-security-policy"]
                assert "script-src 'self'" in policy
                assert "unsafe" not in policy
                # Else a browser calls the origin of the page's own forms `null`.
                assert answer.headers["referrer-policy"] == "same-origin"
        assert "alert(1)" in local.get(f"/runs/{run.id}/record").text

    def test_actions_are_forms_with_their_reason(
        self, local: TestClient, registry: Registry
    ) -> None:
        run = play(registry, submitted(registry).id, "start")
        page = local.get(f"/runs/{run.id}").text
        token = page.split('name="csrf" value="')[1].split('"')[0]
        etag = page.split('name="etag" value="')[1].split('"')[0]
        sent = {"csrf": token, "etag": etag, "why": "late file"}
        assert local.post(f"/runs/{run.id}/pause", data={**sent, "csrf": "x"}).status_code == 403
        assert local.post(f"/runs/{run.id}/pause", data=sent).status_code == 303
        assert registry.events(run.id)[-1].why == "late file"
        assert local.post(f"/runs/{run.id}/resume", data=sent).status_code == 412
        assert registry.get(run.id).status is RunStatus.PAUSED
        assert (
            local.post(f"/runs/{run.id}/explode", data=sent | {"etag": "PAUSED"}).status_code == 400
        )

    def test_a_run_whose_next_attempt_is_asked_for_is_looked_at_until_that_begins(
        self, local: TestClient, registry: Registry
    ) -> None:
        run = play(registry, submitted(registry).id, "start fail")
        page = f"/runs/{run.id}"
        assert "awaiting" not in local.get(page).text
        asked = local.post(f"/v1/runs/{run.id}/retry", json={"why": "mended"}).json()["id"]
        assert f'hx-get="{page}?awaiting=yes"' in local.get(page).text
        again = {"url": f"{page}?awaiting=yes", "headers": {"HX-Request": "true"}}
        assert "hx-refresh" not in local.get(**again).headers
        local.post(f"/v1/requests/{asked}/cancel")
        assert local.get(**again).headers["hx-refresh"] == "true"

    def test_static_files_are_those_that_are_shipped(self, local: TestClient) -> None:
        for name in (
            "app.css",
            "htmx.min.js",
            "htmx.LICENSE",
            "uPlot.iife.min.js",
            "uPlot.LICENSE",
        ):
            assert local.get(f"/static/{name}").status_code == 200
        for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/..%2fpages.py"):
            assert local.get(path).status_code == 404
