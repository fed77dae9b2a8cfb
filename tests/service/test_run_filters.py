"""Runs by filters, over REST, on the page, on the command line and by the Python client."""

import re
import shlex
from collections.abc import Sequence
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from tests.service.front_ends import KIND
from tests.service.front_ends import local as local
from tests.service.front_ends import registry as registry
from tests.service.front_ends import settings as settings
from tests.support.json_lines import lines_of
from tests.support.racers import NOON, end, play, start, submitted
from typer.testing import CliRunner

from ledgerbeam.batch.cli.app import app as command_line
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_table
from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry import search
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.commit.attempts import start_attempt
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.service.web import run_page
from ledgerbeam.transforms.publish import Part, commit_part


@pytest.fixture
def runs(registry: Registry) -> Sequence[RunRecord]:
    """Of one day each, by ada and bob in turn; every third one has failed."""
    made = []
    for number in range(9):
        run = submitted(
            registry,
            submitted_by=("ada", "bob")[number % 2],
            submitted_at=NOON + timedelta(days=number),
            parameters={"book": "xyz"[number % 3], "day": f"day {number}"},
        )
        if number % 3 == 0:
            assert start(registry, run.id)
            failed: dict[str, Any] = {"outcome": AttemptOutcome.FAILURE, "to": RunStatus.FAILURE}
            assert end(registry, run.id, **failed, error=f"no prices of day {number}, 100% & more")
        made.append(registry.get(run.id))
    return made


WAYS = (
    ("where=book=x", "--where=book=x", (6, 3, 0)),
    ("where=book=y&where=day=day 4", "--where=book=y --where='day=day 4'", (4,)),
    ("requester=bob", "--requester=bob", (7, 5, 3, 1)),
    ("error=0% %26 m", "--error='0% & m'", (6, 3, 0)),
    ("error=day 3&requester=bob&status=FAILURE", "--error='day 3' --requester=bob", (3,)),
    ("error=day 3&requester=ada", "--error='day 3' --requester=ada", ()),
    ("where=book=x&requester=ada&since=2026-11-21T00:00:00Z", "--where=book=x --requester=ada "
     "--since=2026-11-21", (6,)),
)  # fmt: skip


@pytest.mark.parametrize("looked_at", [2, 3_000])
@pytest.mark.parametrize(("query", "flags", "numbers"), WAYS)
def test_filters_find_the_same_everywhere(
    local: TestClient,
    settings: Settings,
    runs: Sequence[RunRecord],
    monkeypatch: pytest.MonkeyPatch,
    looked_at: int,
    query: str,
    flags: str,
    numbers: Sequence[int],
) -> None:
    monkeypatch.setattr(search, "LOOKED_AT", looked_at)
    expected = [runs[number].id for number in numbers]
    found: list[str] = []
    pages: list[str] = []
    address = f"/v1/runs?{query}"
    while True:
        page = local.get(address).json()
        found += [item["id"] for item in page["items"]]
        assert (page["looked_back_to"] is None) == (page["next"] is None)
        if page["next"] is None:
            break
        address = f"/v1/runs?{query}&cursor={page['next']}"
    assert found == expected
    # The page takes a day, where REST takes a time.
    address = f"/runs?{query.replace('T00:00:00Z', '')}"
    while address:
        text = local.get(address).text
        pages += re.findall(r'<a href="/runs/([0-9a-f-]{36})">', text)
        more = re.search(r'href="([^"]+)">(?:Look at older ones|Older ones)', text)
        assert bool(more) == ("were submitted since" in text)
        address = f"/runs{unescape(more[1])}" if more else ""
    assert pages == expected
    asked = ["list", "--json", f"--registry={settings.registry_url}", *shlex.split(flags)]
    printed = lines_of(CliRunner().invoke(command_line, asked).stdout)
    assert [line["id"] for line in printed] == expected


def test_a_filter_on_the_page_goes_on_to_actions_on_many(
    local: TestClient, runs: Sequence[RunRecord]
) -> None:
    shown = local.get("/runs?where=book=x&error=prices&requester=bob&since=2026-11-20").text
    (address,) = re.findall(r'href="(/bulk/new[^"]*)">retry runs', shown)
    dry = local.get(unescape(address)).text
    assert re.findall(r'<a href="/runs/([0-9a-f-]{36})">', dry) == [runs[3].id]
    assert "--error=prices" in dry
    assert "--requester=bob" in dry
    asked: dict[str, Any] = {"of": "runs", "verb": "retry", "why": "prices are there"}
    asked["filter"] = {"error": "day 6", "requester": "ada"}
    answer = local.post("/v1/bulk/dry-run", json=asked).json()
    assert [target["id"] for target in answer["targets"]] == [runs[6].id]


@pytest.mark.parametrize(
    "query", ["since=yesterday", "since=2026-13-01", "where=book", "where=bok=x"]
)
def test_what_is_no_filter_is_one_line(
    local: TestClient, runs: Sequence[RunRecord], query: str
) -> None:
    answer = local.get(f"/runs?{query}")
    name = query.partition("=")[0]
    assert answer.status_code in (400, 422)
    assert name in answer.text or "no run has a parameter bok" in answer.text


def test_failures_of_many_shards_are_counted_in_part_and_that_is_said(
    local: TestClient, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "run")
    run = play(registry, submitted(registry, uri=uri).id, "start fail")
    record = AttemptRecord(
        process=KIND, instance="2026-11-20", number=1, started_at=NOON, code_version="1",
        parameters={}, inputs=[], shards=3, fingerprint="f",
    )  # fmt: skip
    attempt = start_attempt(uri, record)
    for shard in range(3):
        failed = Outcome(f"A{shard}", ComponentStatus.FAILURE, 1, "ValueError: no", "", "at", {})
        totals = {"components": 2, "failed": 1}
        part = Part(pa.table({"id": ["B"]}), totals, ["id"], outcomes=outcomes_table([failed]))
        commit_part(attempt, shard, part)
    shown = local.get(f"/runs/{run.id}").text
    assert 'status=FAILURE">3</a>' in shown
    assert "shards that have some" not in shown
    monkeypatch.setattr(run_page, "_FAILED_SHARDS", 2)
    shown = local.get(f"/runs/{run.id}").text
    assert 'status=FAILURE">2</a>' in shown
    assert "Those of the first 2 of 3 shards that have some." in shown
    assert local.get(f"/v1/runs/{run.id}").json()["failures"][0]["count"] == 3
