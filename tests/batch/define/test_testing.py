"""What tests of workloads are given: components give what a run of them publishes."""

import csv
import datetime
import io
from collections.abc import Iterator
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from apache_beam.testing.util import assert_that, equal_to
from tests.support.page_jobs import FeedItems, FeedParameters
from tests.support.processes import LoanParameters, Outstanding

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, Lookup, RowInput
from ledgerbeam.batch.define.process import Record, instance_uri
from ledgerbeam.batch.define.workloads import GROUP, load_workload
from ledgerbeam.batch.testing import RunProcess, local_pipeline, run_components
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking, DeliveryParameters, Rule
from ledgerbeam.pipelines.price_migration import PRODUCT
from ledgerbeam.rules.components import Component

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
    results = run_components(process(rule=rule), trades=ROWS).results
    assert [(row["client_code"], row["id"], row["delivery_quantity"]) for row in results] == [
        ("A", 3, 7),
        ("B", 1, 0),
        ("B", 2, 2),
    ]
    assert [row["price"] for row in results] == [Decimal("0.0100"), None, Decimal("1.5000")]


def test_no_rows_give_no_results() -> None:
    assert run_components(process(), trades=[]).results == []


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
        results = pipeline | RunProcess(process(tmp_path))
        assert_that(results, equal_to(run_components(process(), trades=ROWS).results))


def rows(text: str) -> list[dict[str, Any]]:
    return [dict(row) for row in csv.DictReader(io.StringIO(text))]


LOANS = rows("""\
loan_id,investor_id,pool_id,currency,participation,day_count,origination_date,maturity_date,due_day,escrow_payment,closed_through,balance,scheduled_balance,rate,payment,next_due,accrued_from,late_fees_through
Y,AA,PY,JPY,100,30/360,2020-01-01,2050-05-01,1,0,2026-10-31,1234567,1234567,3,5205,2026-11-01,2026-10-01,2026-10-01
D,SA,PD,USD,100,30/360,2020-01-01,2050-05-01,1,0,2026-10-31,200000.00,200000.00,6,1199.10,2026-11-01,2026-10-01,2026-10-01
""")
TRANSACTIONS = rows("""\
transaction_id,loan_id,kind,effective_date,posted_date,amount,currency
3,D,payment,2026-11-01,2026-11-01,1199.10,USD
1,Y,payment,2026-11-01,2026-11-01,5205,JPY
4,D,payment,2026-11-02,2026-11-02,3.12,EUR
""")
INVESTORS = rows("""\
investor_id,name,remittance_type,servicing_fee,guaranty_fee
AA,Actual,A/A,0.25,0
SA,Interest,S/A,0.25,0
""")
TRADES = rows("""\
id,client_code,symbol,side,quantity,exchange,segment,series
2,B,TWO,B,3,NSE,CM,EQ
1,B,ONE,S,1,BSE,CM,A
3,A,ONE,S,7,NSE,CM,BE
""")
PRODUCTS = [{"product_id": 1, "price": Decimal("1.00")}, {"product_id": 7, "price": Decimal(10)}]

# By workload: parameters, and rows of its inputs and lookups.
CASES: dict[str, tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]] = {
    "compare": (
        {"business_date": "2026-11-30", "keys": "id", "customer": "client_code"},
        {
            "before": TRADES,
            "after": [TRADES[1] | {"quantity": "2"}, TRADES[2], TRADES[0] | {"id": "4"}],
        },
    ),
    "delivery-marking": (
        {"trade_date": "2026-11-30", "products": "net"},
        {"trades": TRADES, "instruments": rows("symbol,isin\nONE,INE1\nTWO,INE2\n")},
    ),
    "investor-report": (
        {"business_date": "2026-11-30", "calendar": "XFED"},
        {
            "loans": LOANS,
            "transactions": TRANSACTIONS,
            "investors": INVESTORS,
            "calendar_changes": rows("calendar,date,status,reason\nXFED,2026-11-03,closed,vote\n"),
        },
    ),
    "loan-close-of-business": (
        {"business_date": "2026-11-30"}, {"loans": LOANS, "transactions": TRANSACTIONS},
    ),
    "price-migration": (
        {"business_date": "2026-11-30", "percent": "2.5"}, {"items": PRODUCTS},
    ),
    "repayment-schedules": (
        {"business_date": "2026-11-30"},
        {
            "loans": rows(
                "loan_id,currency,principal,annual_rate_percent,day_count,disbursed_on,frequency,"
                "term,method\n"
                "B,USD,1000.00,6,30/360,2026-01-15,monthly,3,level\n"
                "A,JPY,90000,2,30/360,2026-01-31,monthly,2,equal_principal\n"
            )
        },
    ),
}  # fmt: skip


SHIPPED = [it.name for it in entry_points(group=GROUP) if it.value.startswith("ledgerbeam.")]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_components_give_what_a_run_of_them_publishes(name: str, tmp_path: Path) -> None:
    parameters, given = CASES[name]
    values = parameters | {"output": str(tmp_path / "results")}
    files = {}
    for input_, records in given.items():
        files[input_] = str(tmp_path / f"{input_}.csv")
        with Path(files[input_]).open("w") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    if name == "price-migration":
        values["database"] = shop(tmp_path / "run.db")
    kind = load_workload(name)
    of_run = kind(kind.parameters_type.model_validate(values | _known(kind, files)))
    run(of_run)
    if name == "price-migration":
        values["database"] = shop(tmp_path / "eager.db")
    # A comparison takes its columns from the files.
    named = (
        _known(kind, files) if name == "compare" else dict.fromkeys(_known(kind, files), "unused")
    )
    eager = kind(kind.parameters_type.model_validate(values | named))
    eager.before()
    results, tables = run_components(eager, **given)
    uri = instance_uri(of_run)
    assert results
    assert set(tables) == set(getattr(kind, "tables", ()))
    for table, found in [(None, results), *tables.items()]:
        published = read_published(uri, table).to_table().to_pylist()
        for row in published:
            if row.get("file") is not None:
                row |= {"file": Path(row["file"]).stem, "row": row["row"] - 1}  # line 1 has names
        for row in (*found, *published):
            row.pop("page", None)
        assert sorted(map(str, found)) == sorted(map(str, published))


def _known(kind: Any, files: dict[str, str]) -> dict[str, str]:
    """Files that parameters name."""
    return {name: uri for name, uri in files.items() if name in kind.parameters_type.model_fields}


def shop(path: Path) -> str:
    url = f"sqlite:///{path}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        PRODUCT.create(connection)
        products = [{"id": it["product_id"], "price": it["price"]} for it in PRODUCTS]
        connection.execute(PRODUCT.insert(), products)
    engine.dispose()
    return url


def test_items_are_executed_one_by_one() -> None:
    process = FeedItems(FeedParameters(feed="unused", output="unused"))
    assert run_components(process, items=[{"id": 2}, {"id": 1}]).results == [
        {"id": "2", "twice": 4},
        {"id": "1", "twice": 2},
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"investor_id": "ZZ"}, "loans: .*'loan_id': 'Y'.*investor ZZ"),
        ({"balance": "1234567.5"}, "loans: .*1234567.5"),
        ({"loan_id": "X"}, "transactions: .*'loan_id': 'Y'.*: loans has no such key"),
    ],
)
def test_so_is_a_row_that_its_workload_would_reject(changes: dict[str, Any], problem: str) -> None:
    kind = load_workload("investor-report")
    parameters, given = CASES["investor-report"]
    values = parameters | dict.fromkeys(("loans", "transactions", "investors", "output"), "unused")
    process = kind(kind.parameters_type.model_validate(values))
    loans = [LOANS[0] | changes, LOANS[1]]
    with pytest.raises(ValueError, match=problem):
        run_components(process, **(given | {"loans": loans}))


def test_an_input_without_rows_may_be_left_out() -> None:
    process = Outstanding(LoanParameters(loans="unused", transactions="unused", output="unused"))
    loan = {"branch": 1, "loan": "A", "tranche": 1, "principal": "5.00", "currency": "EUR"}
    assert run_components(process, loans=[loan]).results == [
        {"branch": 1, "loan": "A", "outstanding": Decimal("5.00"), "paid": 0}
    ]


RATES = Contract((Column("product", pa.string()), Column("rate", pa.int64())))
SAVINGS = Contract((Column("account", pa.string()), Column("product", pa.string())))


class SavingsParameters(FileParameters):
    business_date: datetime.date = datetime.date(2026, 11, 20)
    accounts: Annotated[str, RowInput(SAVINGS, order="product")]
    rates: Annotated[str, Lookup(RATES, key=("product", "branch"))]


class Savings(KeyedProcess[SavingsParameters]):
    name = "savings"
    key = ("account",)
    results = pa.schema([("rate", pa.int64())])

    def execute(self, component: Component) -> Iterator[Record]:
        yield {"rate": self.look_up("rates", component.first("product"))["rate"]}


def test_a_row_of_a_lookup_is_found_by_its_key() -> None:
    """Whatever table the process had before; columns of the key that the files lack are none."""
    savings = Savings(SavingsParameters(output="o", accounts="a", rates="r"))
    accounts = [{"account": "A", "product": "saver"}]
    for rate in (3, 4):
        rates = [{"product": "saver", "rate": rate}]
        done = run_components(savings, accounts=accounts, rates=rates)
        assert [row["rate"] for row in done.results] == [rate]
    with pytest.raises(IndexError, match=r"^there is no junior in rates$"):
        savings.look_up("rates", "junior")
    with pytest.raises(KeyError, match="there is no lookup fees: there is rates"):
        savings.look_up("fees", "saver")
