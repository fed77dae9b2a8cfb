"""Processes that run a definition, and that a test can stop or kill at any of its writes.

This module is also a program: `Launchers` runs it to have a process that has imported everything,
and that forks a launcher of a run in a few milliseconds.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from tests.support import processes

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.pipelines.delivery_marking import DeliveryParameters

SECONDS = 60
"""How long a launcher may live."""

WRITES = (
    "attempt.json",
    "rejects-split-00000-00000.parquet",
    "part-00000-of-00003.parquet",
    "part-00001-of-00003.parquet",
    "part-00002-of-00003.parquet",
    "rejects-shard-00001.parquet",
    "committed-00000.json",
    "committed-00001.json",
    "committed-00002.json",
    "outcomes-00002.parquet",
    "ended.json",
    "manifest.json",
    "cleanup.json",
)
"""All that a run of `write_input` creates; a test of the commit protocol holds it to that."""


def write_input(path: Path, seed: int = 7) -> None:
    """Trades of three shards: one is refused, two have the same id, and those of C8 will fail."""
    source = random.Random(seed)
    lines = ["id,client_code,symbol,side,quantity"]
    for id_ in range(60):
        client, side = source.randrange(9), source.choice("BS")
        lines.append(f"{id_},C{client},UPL,{side},{source.randrange(1, 50)}")
    lines += ["100,C1,UPL,X,1", "101,TWICE,UPL,B,1", "101,TWICE,UPL,B,2"]
    path.write_text("\n".join(lines) + "\n")


def parameters_of(folder: Path, **others: Any) -> DeliveryParameters:
    return DeliveryParameters.model_validate(
        {
            "trades": str(folder / "trades.csv"),
            "trade_date": "2026-11-20",
            "output": str(folder / "output"),
            "shards": 3,
            "max_rejects": 3,
            **others,
        }
    )


def instance_of(folder: Path) -> Path:
    return folder / "output" / "delivery-marking" / "2026-11-20"


def serve() -> None:
    """Start launchers, wait for them and wake them, as the lines of standard input say."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = request.get("pid") or os.fork()
        if not pid:
            os.close(0)
            os.close(1)
            launch(**request)
        if request.get("resume"):
            os.kill(pid, signal.SIGCONT)
        if request.get("wait"):
            _, status = os.waitpid(pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                print("stopped", flush=True)
            else:
                print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            print(pid, flush=True)


def launch(
    process: str, parameters: Mapping[str, Any], folder: str, at: str, moment: str, number: int
) -> None:
    """Run a definition, and send this process a signal at one moment of one creation."""
    signal.alarm(SECONDS)
    tempfile.tempdir = f"{folder}/spill"
    create, link = stores.create, os.link
    moments = [(at, moment)]

    def disturb(uri: str, now: str) -> None:
        if (uris.base_name(uri), now) in moments:
            moments.clear()
            os.kill(os.getpid(), number)

    def disturbed_create(uri: str, data: bytes | pa.Buffer, is_private: bool = False) -> bool:
        disturb(uri, "before")
        made = create(uri, data, is_private)
        if "/workers/" not in uri:
            with open(f"{folder}/writes", "a") as log:
                log.write(f"{uris.base_name(uri)}\n")
        disturb(uri, "after")
        return made

    def disturbed_link(source: Any, target: Any) -> None:
        disturb(str(target), "inside")
        link(source, target)

    stores.create = disturbed_create
    os.link = disturbed_link  # type: ignore[assignment]
    error = ""
    try:
        definition = getattr(processes, process)
        run(definition(definition.parameters_type.model_validate(parameters)))
    except UserError as user_error:
        error = str(user_error)
    except BaseException:
        error = f"defect: {traceback.format_exc()}"
    Path(folder, f"error-{os.getpid()}").write_text(error)
    os._exit(1 if error else 0)


@dataclasses.dataclass
class Launcher:
    """A process that runs a definition."""

    launchers: "Launchers"
    folder: Path
    pid: int

    def wait(self) -> str:
        """`stopped`, or the exit code; -9 is that of a process that was killed."""
        return self.launchers.ask(pid=self.pid, wait=True)

    def resume(self) -> None:
        """Let it go on after a stop."""
        self.launchers.ask(pid=self.pid, resume=True)

    @property
    def error(self) -> str:
        """The line that it ended with."""
        return (self.folder / f"error-{self.pid}").read_text()


class Launchers:
    """Starts launchers quickly."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.launchers"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> str:
        """Send a request to `serve`."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().strip()

    def start(
        self,
        folder: Path,
        at: str = "",
        moment: str = "before",
        number: int = signal.SIGKILL,
        process: str = "OneClientFails",
        **others: Any,
    ) -> Launcher:
        """Start a run that is disturbed at a moment, if that is named."""
        (folder / "spill").mkdir(exist_ok=True)
        parameters = parameters_of(folder, **others).model_dump(mode="json")
        pid = self.ask(
            process=process,
            parameters=parameters,
            folder=str(folder),
            at=at,
            moment=moment,
            number=number,
        )
        return Launcher(self, folder, int(pid))

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=SECONDS)


if __name__ == "__main__":
    serve()
