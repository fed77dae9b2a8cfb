"""The made-up portfolio: repeatable, skewed, with everything in it that a close has to handle."""

import datetime
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.loans.book import STATE_SCHEMA, TRANSACTION_SCHEMA, States, Transactions
from ledgerbeam.rules.loans.entries import KINDS
from ledgerbeam.rules.loans.loan import EntryKind, Policy
from ledgerbeam.rules.loans.terms_columns import TERMS_SCHEMA, TermsColumns
from ledgerbeam.rules.remittance.remit import RemittanceType
from ledgerbeam.synthetic import loans as module
from ledgerbeam.synthetic.loans import (
    INVESTORS,
    LOANS,
    TRANSACTIONS,
    Tables,
    investor_table,
    make_loans,
    write_loans,
)

DATE = datetime.date(2026, 11, 20)


def portfolio(count: int, **options: Any) -> Tables:
    made = list(make_loans(count, **{"business_date": DATE, **options}))
    return Tables(
        pa.concat_tables([LOANS.empty_table(), *(each.loans for each in made)]),
        pa.concat_tables([TRANSACTIONS.empty_table(), *(each.transactions for each in made)]),
    )


def in_order(tables: Tables) -> Tables:
    return Tables(
        tables.loans.sort_by([("loan_id", "ascending"), ("investor_id", "ascending")]),
        tables.transactions.sort_by([("transaction_id", "ascending")]),
    )


@pytest.fixture(scope="module")
def made() -> Tables:
    return portfolio(3_000)


def test_columns_are_those_that_the_rules_take() -> None:
    for field in TRANSACTION_SCHEMA:
        assert TRANSACTIONS.field(field.name) == field
    for field in [*list(TERMS_SCHEMA)[:7], *list(STATE_SCHEMA)[:7]]:
        assert LOANS.field(field.name) == field
    investors = investor_table(9)
    assert investors.schema == INVESTORS
    assert set(investors.column("remittance_type").to_pylist()) == {*RemittanceType}


def test_loans_are_a_function_of_seed_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_order(portfolio(300))
    assert whole == in_order(portfolio(300))
    assert whole != in_order(portfolio(300, seed=8))
    assert in_order(portfolio(300, numbers=range(100))).loans == whole.loans.slice(0, 100)
    monkeypatch.setattr(module, "BLOCK", 70)
    assert whole == in_order(portfolio(300))


def test_the_history_is_worth_testing_on(made: Tables) -> None:
    kinds = Counter(made.transactions.column("kind").to_pylist())
    assert set(kinds) == {"payment", "curtailment", "payoff", "reversal", "rate_change"}
    assert all(number > 20 for number in kinds.values())
    # Two payments a loan and month, but for those that were paid off.
    assert 35 < kinds["payment"] / 3_000 < 55
    lags = pc.subtract(
        made.transactions.column("posted_date").cast(pa.int32()),
        made.transactions.column("effective_date").cast(pa.int32()),
    ).to_numpy()
    assert 0.003 < (lags > 0).mean() < 0.03
    assert set(made.loans.column("day_count").to_pylist()) == {
        "30/360", "ACT/360", "ACT/365F", "ACT/ACT",
    }  # fmt: skip
    ids = made.transactions.column("transaction_id").to_numpy()
    assert len(np.unique(ids)) == len(ids)
    assert max(made.transactions.column("posted_date").to_pylist()) <= DATE
    first = min(made.transactions.column("effective_date").to_pylist())
    assert first == datetime.date(2024, 12, 1)


def test_investors_are_skewed_and_pools_of_one_currency(made: Tables) -> None:
    shares = Counter(made.loans.column("investor_id").to_pylist()).most_common()
    assert shares[0][1] > 5 * shares[len(shares) // 2][1]
    pools = set(
        zip(
            made.loans.column("pool_id").to_pylist(),
            made.loans.column("investor_id").to_pylist(),
            made.loans.column("currency").to_pylist(),
            strict=True,
        )
    )
    assert len(pools) == len({pool for pool, _, _ in pools})


def test_the_close_rejects_nothing_and_payoffs_are_to_the_cent() -> None:
    made = portfolio(400, months=8)
    rows = made.transactions.sort_by([("loan_id", "ascending"), ("transaction_id", "ascending")])
    ids = made.loans.column("loan_id")
    assert pc.all(pc.equal(ids, pc.take(ids, pc.sort_indices(ids)))).as_py()
    number = pc.index_in(rows.column("loan_id"), ids.combine_chunks()).combine_chunks().to_numpy()
    offsets = np.searchsorted(number, np.arange(401))
    opening = States.from_table(made.loans)
    closed = close_many(
        TermsColumns.from_table(made.loans), opening, opening,
        Transactions.from_table(rows, offsets), DATE, Policy(),
    )  # fmt: skip
    entries = closed.entries
    kinds = Counter(KINDS[code] for code in entries.kind.tolist())
    assert not kinds[EntryKind.REJECTED], set(entries.reason)
    assert min(kinds[kind] for kind in (EntryKind.REVERSAL, EntryKind.LATE_FEE)) > 5
    is_paid_off = closed.states.balance == 0
    assert kinds[EntryKind.PAYOFF] == is_paid_off.sum() > 10
    assert not closed.states.suspense[is_paid_off].any()
    assert (closed.states.suspense > 0).sum() > 20
    # Most loans are current.
    assert 0.85 < (closed.states.missed_payments == 0).mean() < 1


def test_bad_rows_come_on_top(made: Tables) -> None:
    with_bad = in_order(portfolio(3_000, bad_rows=21))
    good = in_order(made)
    assert with_bad.loans.num_rows == 3_000 + 9
    assert with_bad.transactions.num_rows == good.transactions.num_rows + 12
    # They have the last ids.
    added = with_bad.transactions.slice(good.transactions.num_rows)
    assert with_bad.transactions.slice(0, good.transactions.num_rows) == good.transactions
    rows = added.to_pylist()
    known = set(good.loans.column("loan_id").to_pylist())
    assert sum(row["loan_id"] not in known for row in rows) == 3
    assert sum(row["amount"] < 0 for row in rows) == 3
    changes = [row for row in rows if row["kind"] == "rate_change"]
    assert len(changes) == 3
    assert all(row["effective_date"] < row["posted_date"] for row in changes)
    begins = {row["loan_id"]: row["origination_date"] for row in good.loans.to_pylist()}
    early = [row for row in rows if row["effective_date"] < begins.get(row["loan_id"], DATE)]
    assert len([row for row in early if row["kind"] == "payment"]) == 3
    loans = Counter(with_bad.loans.column("loan_id").to_pylist())
    assert sorted(loans.values())[-4:] == [1, 2, 2, 2]
    assert with_bad.loans.column("investor_id").to_pylist().count("I9999") == 3
    assert with_bad.loans.column("currency").to_pylist().count("XTS") == 3


@pytest.mark.parametrize("bad_rows", [0, 10])
def test_files_hold_the_portfolio(tmp_path: Path, bad_rows: int) -> None:
    seen: list[int] = []
    written = write_loans(
        str(tmp_path), 50, files=3, progress=seen.append, business_date=DATE, months=6,
        bad_rows=bad_rows,
    )  # fmt: skip
    expected = in_order(portfolio(50, months=6, bad_rows=bad_rows))
    names = [Path(uri).name for uri in written.uris]
    assert names[:2] == ["loans-00000-of-00003.parquet", "transactions-00000-of-00003.parquet"]
    assert names[-1] == "investors.parquet"
    assert len(names) == 7
    tables = Tables(
        pa.concat_tables([pq.read_table(each) for each in sorted(tmp_path.glob("loans-*"))]),
        pa.concat_tables([pq.read_table(each) for each in sorted(tmp_path.glob("transactions-*"))]),
    )
    assert in_order(tables) == expected
    assert (written.loans, written.transactions) == tuple(map(len, expected))
    assert sum(seen) == written.loans
    assert pq.read_table(tmp_path / "investors.parquet") == investor_table()


def test_amounts_of_three_decimals_are_in_csv(tmp_path: Path) -> None:
    write_loans(str(tmp_path), 30, files=1, format="csv", business_date=DATE, months=3, bad_rows=7)
    text = pa_csv.ConvertOptions(column_types=dict.fromkeys(TRANSACTIONS.names, pa.string()))
    rows = pa_csv.read_csv(tmp_path / "transactions-00000-of-00001.csv", convert_options=text)
    strange = [each for each in rows.column("amount").to_pylist() if each[-3] != "."]
    assert strange == ["100.125"]
    assert pa_csv.read_csv(tmp_path / "loans-00000-of-00001.csv").num_rows == 33


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    program = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    flags = ["generate", "loans", "--output=made", "--count=40", "--months=2", "--files=2"]
    command = [sys.executable, "-c", program, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"40 loans and \d+ transactions up to 2026-11-20 in 5 files at made\n", done.stdout
    )
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2, again.stderr
    assert "exists already" in again.stderr


def test_a_portfolio_is_never_written_over(tmp_path: Path) -> None:
    write_loans(str(tmp_path), 3, files=1, business_date=DATE, months=1)
    with pytest.raises(UserError, match=r"loans-00000-of-00001\.parquet exists already"):
        write_loans(str(tmp_path), 3, files=2, business_date=DATE, months=1)


def test_no_loans_make_empty_files(tmp_path: Path) -> None:
    written = write_loans(str(tmp_path), 0, files=1, business_date=DATE)
    assert pq.read_table(written.uris[0]) == LOANS.empty_table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"months": 0}, "months=0 must be at least 1"),
        ({"investors": 0}, "investors=0 must be at least 1"),
        ({"bad_rows": -1}, "bad_rows=-1 must be at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loans(5, business_date=DATE, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="files=0"):
        write_loans("nowhere", 5, files=0, business_date=DATE)
