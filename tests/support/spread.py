"""A process in plain Python, whose shards may be executed by several processes."""

import datetime
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from pydantic import Field
from tests.support.processes import DAY, MONEY, PAYMENTS, note, noted
from tests.support.recorded import until

from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record, Retry
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.rules.components import Component, Components

ACCOUNTS = 60
SHARDS = 8
_log = logging.getLogger("tests.spread")


class SpreadParameters(FileParameters):
    payments: Annotated[str, RowInput(PAYMENTS, order="number", amounts=("amount",))] = Field(
        description="files of payments"
    )
    business_date: datetime.date = Field(default=DAY, description="the day")
    folder: str = Field(description="where it is noted who was called")


class UnsendableError(Exception):
    """An error that can't be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message, threading.Lock())


class Spread(KeyedProcess[SpreadParameters]):
    """The sum of each account's payments."""

    name = "spread"
    key = ("account",)
    results = pa.schema([("total", MONEY), ("rows", pa.int64())])
    retry = Retry(first_delay=0.001)
    failure_limit = 5

    @property
    def folder(self) -> Path:
        return Path(self.parameters.folder)

    @property
    def mode(self) -> str:
        """What happens in the run; it is no parameter, which would make it another instance."""
        return (self.folder / "mode").read_text()

    def execute(self, component: Component) -> Iterable[Record]:
        (account,) = component.key
        mode, own = self.mode, os.getpid()
        note(self.folder / "calls", f"{own} {account}")
        if not mode.startswith("alone"):
            # Nobody goes on until another process has been called, too.
            until(lambda: len(self.pids()) > 1, "a call in another process")
        for number, row in enumerate(component.records()):
            if account == "A7" and number:
                raise ValueError(f"{row['account']} is bad")
            if account == "A8" and self.calls().count(account) == 1:
                raise OSError("not now")
        if mode == "alone, once told":
            until(lambda: (self.folder / "free").exists(), "word of the test")
        if mode == "hang" and own != self.first():
            until(lambda: (self.folder / "free").exists(), "the end of the test")
        if account in ("A9", "A10", "A11"):
            print(f"printed by {account}")
            _log.info("logged by %s", account)
        yield {"total": sum(component.values("amount")), "rows": len(component)}

    def result_totals(self, results: Components) -> Totals:
        if self.mode == "unsendable" and os.getpid() != self.first():
            raise UnsendableError("no totals today")
        return {"sums": results.table.num_rows}

    def pids(self) -> set[int]:
        """The processes in which calls were made."""
        return {int(line.split()[0]) for line in noted(self.folder / "calls")}

    def first(self) -> int:
        """The process that the test has started."""
        return int((self.folder / "first").read_text())

    def calls(self) -> list[str]:
        """The accounts of all calls."""
        return [line.split()[1] for line in noted(self.folder / "calls")]


class OneByOne(Spread):
    """The same, never in another process."""

    holds_interpreter = False


def spread_at(
    folder: Path, mode: str = "", kind: type[Spread] = Spread, shards: int = SHARDS
) -> Spread:
    """The process over payments that are written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"A{account},{number},{account * 7 % 13}.{number}0"
        for account in range(ACCOUNTS)
        for number in range(1 + account % 3)
    ]
    if not (folder / "payments.csv").exists():  # written again, it would be another input
        (folder / "payments.csv").write_text("\n".join(["account,number,amount", *lines, ""]))
    (folder / "mode").write_text(mode)
    (folder / "first").write_text(str(os.getpid()))
    return kind(
        SpreadParameters(
            payments=str(folder / "payments.csv"),
            output=str(folder / "results"),
            folder=str(folder),
            shards=shards,
        )
    )
