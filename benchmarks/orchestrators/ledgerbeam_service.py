"""The service: a front end, a router and a node, and a workload whose one component is the work."""

import datetime
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from orchestrators.contenders import Call, Running, call, free_port, started, until

_FIRST = datetime.date(2001, 1, 1)
_WORKLOAD = '''
"""Work that says when it begins."""

import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow as pa

import ledgerbeam as lb

ROWS = lb.Contract((lb.Column("account", pa.string()), lb.Column("id", pa.int64())))


class Numbered(lb.FileParameters):
    business_date: datetime.date
    rows: Annotated[str, lb.RowInput(ROWS, order="id")]


class AtOnce(lb.KeyedProcess[Numbered]):
    """Writes the time at which its one component is executed."""

    name = "at-once"
    key = ("account",)
    results = pa.schema([("at", pa.float64())])

    def execute(self, component: lb.Component) -> Iterator[lb.Record]:
        at = time.time()
        output = Path(self.parameters.output)
        begun = output.parent / "begun" / output.name
        begun.with_suffix(".new").write_text(str(at))
        begun.with_suffix(".new").rename(begun)
        yield {"at": at}


class Waiting(AtOnce):
    """The same, held."""

    name = "waiting"
'''


@contextmanager
def start(database: str, folder: Path) -> Iterator[Running]:
    """Start the service."""
    package = folder / "package"
    info = package / "numbered_work-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "numbered_work.py").write_text(_WORKLOAD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbered-work\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ledgerbeam.pipelines]\nat-once = numbered_work:AtOnce\nwaiting = numbered_work:Waiting\n"
    )
    (folder / "rows.csv").write_text("account,id\nA,1\n")
    environment = {
        "PYTHONPATH": str(package),
        "LEDGERBEAM_REGISTRY": f"postgresql+psycopg://{database}",
        "LEDGERBEAM_STATE": str(folder / "state"),
    }
    port = free_port()
    command = (sys.executable, "-m", "ledgerbeam.service.commands")
    parts = {
        "front-end": [*command, "serve", f"--port={port}"],
        "router": [*command, "route"],
        "node": [*command, "work", "--kinds=at-once,waiting"],
    }

    def asked(kind: str, number: int) -> Call:
        parameters = {
            # Each is an instance of its own.
            "business_date": str(_FIRST + datetime.timedelta(days=number)),
            "rows": f"{folder}/rows.csv",
            "output": f"{folder}/{number}",
        }
        return Call("/v1/requests", {"kind": kind, "parameters": parameters})

    with started(parts, environment, folder) as processes:
        for kind in ("at-once", "waiting"):
            until(partial(call, port, "GET", f"/v1/kinds/{kind}"), f"the kind {kind}")
        held = {"held": True, "why": "measured"}
        call(port, "PATCH", "/v1/queues/waiting", body=held)
        yield Running(
            port,
            processes,
            at_once=lambda number: asked("at-once", number),
            waiting=lambda number: asked("waiting", number),
            pause=8.0,  # until another launcher waits
        )
