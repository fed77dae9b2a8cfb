"""Schemathesis calls the whole API: with anything that its document allows, and with other things.

The document's links lead it from one answer to the next call. No call fails by a bug, and there is
no answer that the document doesn't describe.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.postgres import PostgresServer
from tests.support.recorded import NewPlace
from tests.support.service import Service, service_of, succeeded

from ledgerbeam.service.errors import RequestStateError

pytestmark = pytest.mark.slow

CASES = os.environ.get("LEDGERBEAM_API_CASES")
"""How many cases `make api-fuzz` tries of each operation; None in the suite."""

CASES_OF_SUITE = 1
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def lease() -> float:
    return 5.0


@pytest.fixture
def service(new_place: NewPlace, lease: float, postgres: PostgresServer) -> Iterator[Service]:
    """One with a run that has succeeded and one that has failed."""
    place = new_place(url=postgres.create_database())
    with service_of(place, lease) as service:
        service.serve()
        service.route()
        service.work()
        with service.client() as client:
            place.set("fail-A7")
            failed = client.request("counting", place.parameters(business_date="2026-11-02"))
            service.ended(client, failed.id)
            place.unset("fail-A7")
            asked = client.request("counting", place.parameters(business_date="2026-11-03"))
            succeeded(service.ended(client, asked.id))
            with pytest.raises(RequestStateError):
                client.cancel_request(failed.id)
        yield service


@pytest.mark.timeout(3600)  # calls that wait for a node take their time
def test_whatever_is_called_the_answer_is_documented(service: Service, tmp_path: Path) -> None:
    cases = int(CASES or CASES_OF_SUITE)
    # Of the last one a case is a way of several calls.
    phases = {"examples,coverage,fuzzing": cases, "stateful": 10 * cases}
    number = 0
    for phase, examples in phases.items():
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={CONFIGURATION}",
            "run",
            f"{service.server}/v1/openapi.json",
            f"--phases={phase}",
            "--checks=all",
            "--continue-on-failure",
            "--suppress-health-check=all",
            f"--max-examples={examples}",
            # Some wait for an end, and the machine may be busy.
            "--request-timeout=120",
            "--max-response-time=120",
            *([] if CASES else ["--seed=1"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-50_000:] + service.told()
        generated = re.search(r"(\d+) generated", done.stdout)
        assert generated is not None, done.stdout
        number += int(generated[1])
        links = re.search(r"API Links: .*", done.stdout)
        print(f"{phase}: {generated[0]} cases; {links[0] if links else ''}")
    assert number > 500
    # Nothing that was sent has stopped one of its parts.
    with service.client() as client:
        asked = client.request("counting", service.place.parameters())
        succeeded(service.ended(client, asked.id))
