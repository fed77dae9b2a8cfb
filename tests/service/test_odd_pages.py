"""Whatever an address of the page or a field of its forms says, it is no bug of the service."""

import re
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.service.front_ends import KIND
from tests.service.front_ends import local as local
from tests.service.front_ends import registry as registry
from tests.service.front_ends import settings as settings
from tests.service.test_request_database import NOON
from tests.support.racers import play, submitted

from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.service.bulk import BulkAsk, BulkOf, BulkTarget, BulkVerb
from ledgerbeam.service.model import RequestState, Submission
from ledgerbeam.service.store.bulk import Bulks, Chosen
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.intake import Intake
from ledgerbeam.service.web import pages
from ledgerbeam.service.web.render import TEMPLATES

ROUTES: list[Any] = [
    route
    for part in pages.PARTS
    for route in cast(list[Any], part.routes)
    # Whoever signs out isn't there any more for the next case.
    if route.path != "/sign-out"
]
FIELDS = sorted(
    {
        name
        for template in TEMPLATES.rglob("*.html")
        for name in re.findall(r'name="([a-z_]+)"', template.read_text())
    }
    - {"csrf"}
)
NUMBERS = ("9" * 5_000, "9" * 30, str(2**63), "-1", "0", "1e999", "-inf", "nan", "²", "٣", "1_0")
values = st.sampled_from(NUMBERS) | st.text(max_size=30) | st.integers().map(str)


@pytest.fixture
def world(registry: Registry, local: TestClient) -> dict[str, list[str]]:
    """What is there, by the name of the part of the path that stands for it."""
    runs = [submitted(registry, output=f"/tmp/{n}").id for n in range(2)]
    play(registry, runs[0], "start")
    intake = Intake(registry.database)
    asked = [
        intake.accept(Submission(kind=KIND, parameters={}), who="ada", at=NOON)[0].id
        for _ in range(2)
    ]
    Dispatch(registry.database).settle(asked[0], RequestState.REJECTED, "router", NOON)
    given = BulkAsk(of=BulkOf.RUNS, verb=BulkVerb.CANCEL, filter={"kind": "x"}, why="odd")
    target = BulkTarget(id=runs[0], kind="x", name="x")
    many = Bulks(registry.database).ask(given, [Chosen(target)], who="ada", at=NOON, waits=True)
    verbs = {"cancel", "redrive", "pause", "retry", "restart", "resolve", "approve", "refuse"}
    verbs |= {"set-parallelism", "set-rate", "stop"}
    return {
        "run": runs,
        "request_id": asked,
        "kind": [KIND],
        "bulk_id": [many.id],
        "verb": sorted(verbs),
    }


def test_every_page_has_routes_and_forms_have_fields() -> None:
    assert len(ROUTES) > 15
    assert {"why", "limit", "number", "value"} <= set(FIELDS)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.path} {route.methods}")
def test_odd_values_are_answered_by_one_clear_line(
    route: Any, world: dict[str, list[str]], local: TestClient
) -> None:
    (token,) = {*re.findall(r'name="csrf" value="(\w+)"', local.get("/queues").text)}
    asked = [parameter.name for parameter in route.dependant.query_params]

    @hypothesis_settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path = re.sub(
            r"{(\w+)}", lambda it: data.draw(st.sampled_from(world[it[1]]), it[1]), route.path
        )
        if "GET" in route.methods:
            query = {name: data.draw(values, name) for name in asked}
            answer = local.get(path, params=query)
        else:
            fields = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values))
            form = data.draw(fields, "form")
            if "{run}" in route.path:  # whoever has seen how it stands
                form["etag"] = data.draw(st.sampled_from(["INITIATED", "EXECUTING"]))
            answer = local.post(path, data={**form, "csrf": token})
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.text.strip()
            assert "Traceback" not in answer.text

    check()
