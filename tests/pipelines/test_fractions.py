"""Fractions of shares are marked as whole units of their last decimal."""

from decimal import Decimal
from pathlib import Path

import pytest
from tests.pipelines.test_delivery_marking import (
    DAY,
    is_good,
    process,
    random_trades,
    rows_of,
    write,
)
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.errors import UserError


@pytest.mark.parametrize("rule", ["vectorised", "per-component"])
def test_they_are_marked_as_whole_units_of_their_last_decimal(tmp_path: Path, rule: str) -> None:
    rows = [row for row in random_trades(300, trade_date=DAY) if is_good(row)]
    write(tmp_path / "whole.parquet", rows)
    whole = run(process(tmp_path / "whole.parquet", tmp_path / "whole"))
    lines = ["id,client_code,symbol,side,quantity"]
    for row in rows:
        quantity = Decimal(row["quantity"]).scaleb(-4)
        named = ",".join(str(row[n]) for n in ("id", "client_code", "symbol", "side"))
        lines.append(f"{named},{quantity}")
    (tmp_path / "fractions.csv").write_text("\n".join(lines))
    definition = process(
        tmp_path / "fractions.csv", tmp_path / "fractions", quantity_decimals=4, rule=rule
    )
    manifest = run(definition)
    delivered = {row["id"]: row["delivery_quantity"] for row in rows_of(manifest)}
    assert delivered == {
        row["id"]: Decimal(row["delivery_quantity"]).scaleb(-4) for row in rows_of(whole)
    }
    assert manifest.totals == whole.totals
    assert set(manifest.attempt.total_decimals.values()) == {4}
    verify(instance_uri(manifest), definition)


@pytest.mark.parametrize(
    ("quantity", "problem"),
    [("0.125", "'0.125' has more than 2 decimals"), ("-0.10", "-0.10 is below 0")],
)
def test_what_is_no_such_quantity_is_rejected(tmp_path: Path, quantity: str, problem: str) -> None:
    trades = tmp_path / "trades.csv"
    trades.write_text(f"id,client_code,symbol,side,quantity\n1,C,S,B,{quantity}\n")
    with pytest.raises(UserError, match=problem):
        run(process(trades, tmp_path / "o", quantity_decimals=2))
