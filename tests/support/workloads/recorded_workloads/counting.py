"""Adds up the amounts of each account, and does on the way what files in its folder say.

FOLDER/calls           gets a line a call: begin or end, process, account, time
FOLDER/hooks           gets a line a hook: its name, process
FOLDER/hold            components wait as long as it is there
FOLDER/slow            components take a tenth of a second
FOLDER/fail-ACCOUNT    its component fails
FOLDER/flaky-ACCOUNT   its component fails once; the file is removed
FOLDER/kill-ACCOUNT    its component kills its process; the file is removed
FOLDER/grow-ACCOUNT    its component takes more and more memory as long as it is there
FOLDER/log             components log a line of two lines
FOLDER/leak-ACCOUNT    its component fails with the secret in its error
"""

import contextlib
import datetime
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import apache_beam as beam
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record, Retry
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.secrets import Secret
from ledgerbeam.rules.components import Component

AMOUNTS = Contract(
    (Column("account", pa.string()), Column("id", pa.int64()), Column("amount", pa.int64()))
)


class CountingParameters(FileParameters):
    amounts: Annotated[str, RowInput(AMOUNTS, order="id", amounts=("amount",), ids=("id",))] = (
        Field(description="URI or glob of the amounts")
    )
    business_date: datetime.date = Field(description="the day")
    folder: Path = Field(description="of logs and switches")
    password: Secret | None = Field(default=None, description="env:NAME or file:PATH")


class Counting(KeyedProcess[CountingParameters]):
    name = "counting"
    key = ("account",)
    results = pa.schema([("total", pa.int64())])
    retry = Retry(first_delay=0.05, longest_delay=0.05)

    def execute(self, component: Component) -> Iterable[Record]:
        account = component.key[0]
        self.log("calls", f"begin {os.getpid()} {account} {time.time()}")
        try:
            self._obey(account)
        finally:
            self.log("calls", f"end {os.getpid()} {account} {time.time()}")
        return [] if account == "EMPTY" else [{"total": sum(component.values("amount"))}]

    def _obey(self, account: str) -> None:
        while self._is("hold"):
            time.sleep(0.02)
        if self._is("log"):
            logging.getLogger(__name__).info("the account is\nbeing counted")
        if self._is("slow"):
            time.sleep(0.1)
        if self._is(f"leak-{account}"):
            assert self.parameters.password is not None
            raise RuntimeError(f"login with {self.parameters.password.resolve()} failed")
        if self._is(f"fail-{account}"):
            raise RuntimeError(f"{account} can't be counted")
        with contextlib.suppress(FileNotFoundError):
            (self.parameters.folder / f"flaky-{account}").unlink()
            raise RuntimeError(f"{account} can't be counted yet")
        with contextlib.suppress(FileNotFoundError):
            (self.parameters.folder / f"kill-{account}").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        hoard = []
        while self._is(f"grow-{account}"):
            hoard.append(b"\1" * (32 << 20))
        while self._is(f"hold-{account}"):
            time.sleep(0.02)

    def _is(self, switch: str) -> bool:
        return (self.parameters.folder / switch).exists()

    def before(self) -> None:
        self.log("hooks", f"before {os.getpid()}")

    def after(self, manifest: Manifest) -> None:
        self.log("hooks", f"after {os.getpid()}")

    def cleanup(self) -> None:
        self.log("hooks", f"cleanup {os.getpid()}")

    def finish(self) -> beam.PTransform | None:
        return Report()

    def log(self, file: str, line: str) -> None:
        # O_APPEND: lines of several processes don't overwrite each other.
        with open(self.parameters.folder / file, "a") as log:
            log.write(line + "\n")


class Report(beam.PTransform):
    def expand(self, results: Any) -> Any:
        return (
            results
            | "Sum" >> beam.Map(_sum)
            | "Add" >> beam.CombineGlobally(sum)
            | "Text" >> beam.Map(_report)
        )


def _sum(table: pa.Table) -> int:
    return sum(table.column("total").to_pylist())


def _report(total: int) -> tuple[str, bytes]:
    return "total.txt", f"{total}\n".encode()
