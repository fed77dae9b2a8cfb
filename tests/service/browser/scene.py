"""A service in the middle of a night, for browsers to look at: runs in every state."""

import dataclasses
import datetime
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Playwright
from tests.support.recorded import Place, until, workloads_installed
from tests.support.service import Service, service_of

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.service.client import Client
from ledgerbeam.service.model import Role
from ledgerbeam.service.store.keys import Keys

KINDS = "charging,counting,loan-close-of-business,punctual"
LEASE = 8.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PUNCTUAL = "PUNCTUAL_SECONDS"
_SECONDS_TO_DEADLINE = 25


def launched(playwright: Playwright) -> Browser:
    """The Chromium of this machine.

    Raises:
        RuntimeError: there is none.
    """
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        raise RuntimeError("there is no Chromium on this machine: apt-get install chromium")
    # In containers root runs everything, and Chromium's own sandbox refuses to be run by root.
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


@dataclasses.dataclass
class Night:
    """A service with runs in every state.

    Attributes:
        server: its URL.
        key: of a person who may do everything.
        runs: ids of runs, by what they are an example of.
    """

    server: str
    key: str
    runs: dict[str, str]

    @property
    def paths(self) -> dict[str, str]:
        """Paths of all pages, by name."""
        done, failed = self.runs["done"], self.runs["failed"]
        return {
            "tonight": "/",
            "runs": "/runs",
            "requests": "/requests",
            "queues": "/queues",
            "bulk": "/bulk",
            "bulk-dry-run": "/bulk/new?of=runs&verb=retry&status=FAILURE",
            "audit": "/audit",
            "form": "/kinds/counting/new",
            "run": f"/runs/{self.runs['late']}",
            "run-failed": f"/runs/{failed}",
            "run-done": f"/runs/{done}",
            "components": f"/runs/{failed}/components",
            "unknown": f"/runs/{self.runs['unknown']}/components",
            "results": f"/runs/{done}/results",
            "report": f"/runs/{self.runs['reported']}/results?report=total.txt",
            "log": f"/runs/{failed}/log",
            "record": f"/runs/{self.runs['unknown']}/record",
            "error": "/runs/none-such",
        }


@contextmanager
def night(folder: Path) -> Iterator[Night]:
    """A night, whose processes are gone afterwards."""
    now = utc_now()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    deadline = (now - midnight).total_seconds() + _SECONDS_TO_DEADLINE
    before = os.environ.get(_PUNCTUAL)
    os.environ[_PUNCTUAL] = str(deadline)
    url = f"sqlite:///{folder}/registry.db"
    try:
        with workloads_installed(folder / "state", LEASE), ExitStack() as places:
            place = Place(folder / "failing", url)
            places.callback(place.let_go)
            key = Keys(place.runs.registry.database).create(
                "ada", {"*": Role.ADMIN}, who="root", at=now
            )
            with service_of(place, LEASE) as service:
                service.serve()
                service.route()
                service.work(f"--kinds={KINDS}", "--slots=6")
                with Client(service.server, key) as client:
                    runs = _runs(folder, place, service, client, now.date(), places)
                    yield Night(service.server, key, runs)
    finally:
        os.environ.pop(_PUNCTUAL)
        if before is not None:
            os.environ[_PUNCTUAL] = before


def _runs(
    folder: Path,
    failing: Place,
    service: Service,
    client: Client,
    today: datetime.date,
    places: ExitStack,
) -> dict[str, str]:
    runs = {"done": _loans(folder, failing, client)}
    late = Place(folder / "late", failing.url, "punctual", today)
    places.callback(late.let_go)
    late.set("flaky-A5", "hold-A5")
    runs["late"] = client.submit("punctual", late.parameters(shards=60)).id
    charging = dataclasses.replace(failing, folder=folder / "charging", process="charging")
    charging.set("kill-A3")
    runs["unknown"] = client.submit("charging", charging.parameters()).id
    failing.set("fail-A7", "fail-A9", "log")
    runs["failed"] = client.submit("counting", failing.parameters()).id
    client.wait(runs["failed"])
    plain = dataclasses.replace(failing, folder=folder / "plain", day=today)
    runs["reported"] = client.submit("counting", plain.parameters()).id
    for name in ("failed", "unknown", "reported"):
        view = client.wait(runs[name])
        expected = RunStatus.SUCCESS if name == "reported" else RunStatus.FAILURE
        assert view.run.status is expected, service.told()
    until(lambda: client.get(runs["late"]).progress.stuck, "a component that is stuck")
    wrong = client.request("counting", failing.parameters(business_date="soon"), why="a trial")
    service.ended(client, wrong.id)
    return runs


def _loans(folder: Path, place: Place, client: Client) -> str:
    """A close of business that has published, and in which a loan stayed locked."""
    book = folder / "book"
    day = "2026-11-30"
    made = place.command(
        *("generate", "loans", f"--output={book}", "--count=400", "--months=3", "--files=1"),
        *(f"--business-date={day}", "--format=csv"),
    )
    assert made.returncode == 0, made.stderr
    (file,) = book.glob("loans-*")
    header, first, second, *others = file.read_text().splitlines()
    fields = second.split(",")
    # Less than a month's interest: such a loan can't be closed.
    fields[header.replace('"', "").split(",").index("payment")] = "1.00"
    file.write_text("\n".join([header, first, ",".join(fields), *others]) + "\n")
    parameters: dict[str, Any] = {
        "loans": str(file),
        "transactions": str(book / "transactions-*"),
        "business_date": day,
        "output": str(folder / "results"),
    }
    run = client.submit("loan-close-of-business", parameters)
    view = client.wait(run.id)
    assert view.run.status is RunStatus.SUCCESS, view.run.error
    return run.id
