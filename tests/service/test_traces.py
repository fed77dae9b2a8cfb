"""One trace from a call to the shards of its run, over five processes, sent to a real receiver."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.support.collector import Collector, Span, collector
from tests.support.recorded import SHARDS, NewPlace, until
from tests.support.service import service_of

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
OF_RUN = {"queue": 1, "run": 1, "launch": 1, "attempt": 1, "prepare": 1, "pipeline": 1}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        monkeypatch.setenv(ENDPOINT, found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield found


@pytest.fixture(scope="module")
def lease() -> float:
    return 5.0


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_call_and_the_shards_of_its_run_are_one_trace(
    receiver: Collector, new_place: NewPlace, lease: float, ahead: int
) -> None:
    place = new_place()
    place.set("fail-A7")
    with service_of(place, lease) as service:
        service.serve()
        service.route()
        service.work(f"--ahead={ahead}")
        asked = httpx.post(
            f"{service.server}/v1/requests",
            json={"kind": "counting", "parameters": place.parameters()},
            headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
        ).json()
        assert "traceparent" not in asked
        with service.client() as client:
            run = service.ended(client, asked["id"]).run_id
            until(lambda: receiver.spans("run"), "the node's span")
            found = {span.id: span for span in receiver.spans() if span.trace == TRACE}
            names = [span.name for span in found.values()]
            wanted = {"accept": 1, "route": 1, "shard": SHARDS, **OF_RUN}
            assert {name: names.count(name) for name in set(names)} == wanted
            ways = {way(found, span) for span in found.values()}
            assert ways == {
                "accept",
                "accept/route",
                "accept/queue",
                "accept/run",
                "accept/run/launch",
                "accept/run/launch/attempt",
                "accept/run/launch/attempt/prepare",
                "accept/run/launch/attempt/pipeline",
                "accept/run/launch/attempt/shard",
            }
            pids = {span.name: span.pid for span in found.values()}
            assert len(set(pids.values())) == 5
            assert pids["shard"] == pids["attempt"] != pids["launch"]
            (attempt,) = (span for span in found.values() if span.name == "attempt")
            facts = {"workload": "counting", "run": run, "attempt": 1}
            assert attempt.attributes == facts
            assert attempt.error == "too-many-failures"
            shards = {s.attributes["shard"] for s in found.values() if s.name == "shard"}
            assert shards == set(range(SHARDS))
            # Another attempt belongs to the call that asks for it: here one without a trace.
            place.unset("fail-A7")
            client.retry(str(run))
            client.wait(str(run))
            until(lambda: len(receiver.spans("run")) == 2, "the other span")
            retry = {span for span in map(key_of, receiver.spans()) if span[1] != TRACE}
            assert len({trace for _, trace in retry}) == 1
            assert {name for name, _ in retry} == {"accept", "route", "shard", *OF_RUN}


def key_of(span: Span) -> tuple[str, str]:
    return span.name, span.trace


def way(found: dict[str, Span], span: Span) -> str:
    """The names of the spans that lead to one."""
    above = found.get(span.parent)
    if above is None:
        assert span.parent == CALLER
        return span.name
    return f"{way(found, above)}/{span.name}"


CODE = """
import sys
from ledgerbeam.batch import traces
with traces.of_process("attempt"), traces.span("shard", shard=1) as own:
    traces.note(run="r")
assert own == "", own
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""


def test_nothing_is_imported_where_nothing_is_configured() -> None:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("OTEL")}
    off = {ENDPOINT: "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}
    for more in ({}, off):
        subprocess.run([sys.executable, "-c", CODE], env={**environment, **more}, check=True)


# FastAPI brings a part of OpenTelemetry, which sends nothing.
HIDES = """
import sys
class Hides:
    def find_spec(self, name, *_):
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hides())
"""


def test_what_is_configured_and_not_installed_is_told(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDES)
    environment = {
        **os.environ,
        ENDPOINT: "http://127.0.0.1:9",
        "PYTHONPATH": str(tmp_path),
        "LEDGERBEAM_STATE": str(tmp_path / "state"),
    }
    for arguments in (["serve", "--port=0"], ["route"], ["work"]):
        done = subprocess.run(
            [sys.executable, "-m", "ledgerbeam.service.commands", *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            f"ledgerbeam: {ENDPOINT} is set, and OpenTelemetry isn't installed: pip install "
            "'ledgerbeam[otel]', or unset it\n"
        )


def test_a_receiver_that_is_away_or_an_odd_header_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = """
from ledgerbeam.batch import traces
for parent in ("", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\\xff" * 10000):
    with traces.continued(parent), traces.span("accept", parent) as own:
        assert own.startswith("00-") and len(own) == 55
    try:
        with traces.of_process("attempt"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
"""
    environment = {**os.environ, ENDPOINT: "http://127.0.0.1:9"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=100)
