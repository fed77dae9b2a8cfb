"""Business days of workloads: a file opens and closes days, and is part of what decides a run."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pytest

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.keyed_process import KeyedProcess, RowInput
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.parameters import CalendarParameters
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention

TRADES = Contract((Column("id", pa.int64()), Column("traded", pa.date32())))


class SettlementParameters(CalendarParameters):
    trades: Annotated[str, RowInput(TRADES, order="id")]
    business_date: datetime.date


class Settlement(KeyedProcess[SettlementParameters]):
    """When trades settle: the next business day of the exchange."""

    name = "settlement"
    key = ("id",)
    results = pa.schema([("settles", pa.date32())])

    def execute(self, component: Any) -> Iterable[dict[str, Any]]:
        calendar = self.parameters.business_days(self.lookup_tables)
        assert calendar is not None
        traded = np.array([row["traded"] for row in component.records()], "datetime64[D]")
        settles = calendar.add(traded, 1, BusinessDayConvention.FOLLOWING)
        return [{"settles": settles.tolist()[0]}]


@pytest.fixture
def trades(tmp_path: Path) -> Path:
    file = tmp_path / "trades.csv"
    file.write_text("id,traded\n1,2024-01-19\n2,2024-06-06\n")
    return file


def settle(trades: Path, output: str, changes: str = "") -> list[datetime.date]:
    made = Settlement(
        SettlementParameters(
            trades=str(trades),
            calendar="NSE",
            calendar_changes=changes,
            business_date=datetime.date(2024, 6, 6),
            output=str(trades.parent / output),
        )
    )
    run(made)
    uri = f"{trades.parent}/{output}/settlement/2024-06-06"
    return sorted(read_published(uri).to_table().column("settles").to_pylist())


def changes_file(trades: Path, *lines: str) -> str:
    file = trades.parent / "changes.csv"
    file.write_text("\n".join(["calendar,date,status,reason", *lines, ""]))
    return str(file)


def test_known_changes_need_no_file(trades: Path) -> None:
    # A Saturday on which the exchange traded, and a Friday like any other.
    assert settle(trades, "out") == [datetime.date(2024, 1, 20), datetime.date(2024, 6, 7)]


def test_a_file_closes_days_and_opens_them(trades: Path) -> None:
    file = changes_file(
        trades, "XNSE,2024-06-07,closed,mourning", "NSE,2024-01-20,closed,", "US,2024-06-08,open,"
    )
    assert settle(trades, "out", file) == [datetime.date(2024, 1, 23), datetime.date(2024, 6, 10)]


def test_another_file_is_another_input(trades: Path) -> None:
    settle(trades, "out")
    file = changes_file(trades, "XNSE,2024-06-07,closed,mourning")
    with pytest.raises(UserError, match="published already, from other input"):
        settle(trades, "out", file)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["XNSE,2024-06-07,shut,"], "status.*shut"),
        (["XNSE,07-06-2024,closed,"], "date.*07-06-2024"),
        ([",2024-06-07,closed,"], "calendar"),
        (
            ["XNSE,2024-06-07,closed,", "XNSE,2024-06-07,open,"],
            "calendar XNSE, date 2024-06-07 comes 2 times",
        ),
        (["XNZZ,2024-06-07,closed,"], "no calendar of business days 'XNZZ'"),
    ],
)
def test_files_that_are_wrong(trades: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        settle(trades, "out", changes_file(trades, *lines))
