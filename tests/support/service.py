"""A service of the tests: front end, router and nodes as processes, any of which can be killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from tests.support.recorded import TIMEOUT, Place, until

from ledgerbeam.batch.settings import LEASE, REGISTRY
from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE
from ledgerbeam.service.client import Client
from ledgerbeam.service.model import RequestRecord, RequestState


class Service:
    """The processes of a service over the registry of a place.

    Attributes:
        place: with the input of requests, and its registry.
        server: URL of the front end that was started last.
        environment: of all its processes, in place of this one's.
    """

    def __init__(self, place: Place, lease: float) -> None:
        self.place = place
        self.server = ""
        self.environment: dict[str, str] = {}
        self._lease = lease
        self._log = place.folder / "service.log"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, failpoint: str = "") -> "subprocess.Popen[str]":
        """`ledgerbeam …` as a process, once it says that it is at work."""
        environment = {**os.environ, REGISTRY: self.place.url, LEASE: str(self._lease)}
        environment |= self.environment
        if arguments[0] == "serve":
            # A front end knows no workloads: those of the tests aren't installed for it.
            environment.pop("PYTHONPATH", None)
        if failpoint:
            once = str(self.place.folder / "once")
            environment |= {FAILPOINT: failpoint, FAILPOINT_ONCE: once}
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ledgerbeam.service.commands", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        assert process.stdout is not None
        # Each part of it says a line.
        for _ in range(3 if arguments[0] == "up" else 1):
            line = process.stdout.readline()
            if line.startswith("serving"):
                self.server = line.split()[1]
        return process

    def serve(self, failpoint: str = "") -> "subprocess.Popen[str]":
        return self.start("serve", "--port=0", failpoint=failpoint)

    def route(self, failpoint: str = "") -> "subprocess.Popen[str]":
        return self.start("route", failpoint=failpoint)

    def work(self, *arguments: str, failpoint: str = "") -> "subprocess.Popen[str]":
        # The last of several flags counts.
        flags = [f"--kinds={self.place.process}", "--ahead=0", *arguments]
        return self.start("work", *flags, failpoint=failpoint)

    def client(self) -> Client:
        return Client(self.server)

    def ended(self, client: Client, request: str) -> RequestRecord:
        """A request at its end."""
        until(lambda: client.get_request(request, wait=5).state.is_final, f"{request}'s end")
        return client.get_request(request)

    def told(self) -> str:
        return self._log.read_text()[-3000:]

    def stop(self, process: "subprocess.Popen[str]") -> int:
        """End a process as a platform does, and give its exit status."""
        process.terminate()
        return process.wait(TIMEOUT)

    def kill(self, process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                psutil.Process(process.pid).resume()
                process.kill()
            process.communicate()


@contextmanager
def service_of(place: Place, lease: float) -> Iterator[Service]:
    """A service that is gone afterwards."""
    service = Service(place, lease)
    try:
        yield service
    finally:
        service.close()


def succeeded(request: RequestRecord) -> Any:
    assert request.state is RequestState.SUCCESS, request
    return request.run_id
