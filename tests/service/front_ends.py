"""Front ends in this process, with two kinds, that tests of REST and of the page share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from tests.service.test_request_database import NOON

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import Settings
from ledgerbeam.service.model import KindRecord, Role
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.keys import Keys
from ledgerbeam.service.web.app import create_app

KIND = "delivery-marking"
SCHEMA = {
    "type": "object",
    "required": ["day"],
    "properties": {
        "day": {"type": "string", "format": "date", "description": "the <day>"},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "rule": {"$ref": "#/$defs/Rule", "default": "each"},
        "strict": {"type": "boolean", "default": True},
        "names": {"type": "array", "items": {"type": "string"}, "default": []},
    },
    "$defs": {"Rule": {"enum": ["each", "many"], "type": "string"}},
}
NewKey = Callable[..., dict[str, str]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(f"sqlite:///{tmp_path}/registry.db", tmp_path, 30)


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with Registry.open(settings.registry_url) as registry:
        dispatch = Dispatch(registry.database)
        dispatch.publish(
            KindRecord(
                name=name,
                description=f"About {name}.",
                parameters_schema=SCHEMA,
                code_version="1",
                policy=QueuePolicy(),
                seen_at=NOON,
            )
            for name in (KIND, "other")
        )
        yield registry


@pytest.fixture
def local(settings: Settings, registry: Registry) -> Iterator[TestClient]:
    """A front end without keys."""
    app = create_app(settings, needs_key=False)
    with TestClient(app, "http://localhost:8017", follow_redirects=False) as client:
        yield client


@pytest.fixture
def guarded(settings: Settings, registry: Registry) -> Iterator[TestClient]:
    """A front end whose callers need keys."""
    app = create_app(settings, needs_key=True)
    with TestClient(app, "http://batch.example.com", follow_redirects=False) as client:
        yield client


@pytest.fixture
def new_key(registry: Registry) -> NewKey:
    def make(name: str = "ada", **roles: str) -> dict[str, str]:
        given = {kind.replace("_", "-").replace("all", "*"): Role(r) for kind, r in roles.items()}
        key = Keys(registry.database).create(name, given, who="root", at=NOON)
        return {"Authorization": f"Bearer {key}"}

    return make


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem details of an answer, which has to be these."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["type"] == f"/v1/problems/{code}"
    return body
