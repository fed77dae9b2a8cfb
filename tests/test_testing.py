"""What workloads' tests are given: refusals are told, and both forms of a rule give the same."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from apache_beam.testing.util import assert_that, equal_to

from ledgerbeam.batch.testing import Results, local_pipeline, run_components
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking, DeliveryParameters, Rule

ROWS = [
    {"id": 2, "client_code": "B", "symbol": "X", "side": "B", "quantity": 3, "price": "1.50"},
    {"id": 1, "client_code": "B", "symbol": "X", "side": "S", "quantity": 1, "price": None},
    {"id": 3, "client_code": "A", "symbol": "X", "side": "S", "quantity": 7, "price": "0.01"},
]


def process(folder: Path = Path("unused"), rule: Rule = Rule.VECTORISED) -> DeliveryMarking:
    return DeliveryMarking(
        DeliveryParameters(
            trades=f"{folder}/trades.csv",
            trade_date=datetime.date(2026, 11, 20),
            output=f"{folder}/results",
            rule=rule,
        )
    )


@pytest.mark.parametrize("rule", Rule)
def test_components_execute_in_the_order_of_their_keys(rule: Rule) -> None:
    results = run_components(process(rule=rule), trades=ROWS)
    assert [(row["client_code"], row["id"], row["delivery_quantity"]) for row in results] == [
        ("A", 3, 7),
        ("B", 1, 0),
        ("B", 2, 2),
    ]
    assert [row["price"] for row in results] == [Decimal("0.0100"), None, Decimal("1.5000")]


def test_no_rows_give_no_results() -> None:
    assert run_components(process(), trades=[]) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"side": "X"}, "side 'X' is none of B, S"),
        ({"quantity": -1}, "quantity -1"),
        ({"quantity": "ten"}, "quantity 'ten' is not a number"),
        ({"id": 1, "client_code": "B"}, "its key and id repeat"),
    ],
)
def test_a_row_that_would_be_refused_is_an_error(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        run_components(process(), trades=[*ROWS[:2], ROWS[2] | changes])


def test_an_input_that_the_process_lacks_is_an_error() -> None:
    with pytest.raises(TypeError, match="no input loans"):
        run_components(process(), trades=ROWS, loans=[])


def test_a_whole_pipeline_gives_what_its_components_give(tmp_path: Path) -> None:
    names = list(ROWS[0])
    lines = [",".join(names)]
    lines += [",".join("" if v is None else str(v) for v in row.values()) for row in ROWS]
    (tmp_path / "trades.csv").write_text("\n".join(lines) + "\n")
    with local_pipeline() as pipeline:
        results = pipeline | Results(process(tmp_path))
        assert_that(results, equal_to(run_components(process(), trades=ROWS)))
