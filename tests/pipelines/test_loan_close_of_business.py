"""Close of business from files to published loans and entries, held against plain Python."""

import csv
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from tests.support.loan_jobs import (
    BOARDED,
    LAST,
    FaultyClose,
    LosingClose,
    Row,
    close_files,
    parameters_of,
    plain_close,
    portfolio,
    published,
    states_of,
    uri_of,
    write_portfolio,
)

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.expire import expire_results
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.loan_close_of_business import LoanCloseOfBusiness
from ledgerbeam.rules.loans.loan import AMOUNTS, Policy, Step

ONE_DAY = datetime.timedelta(1)


@pytest.fixture(scope="module")
def made() -> tuple[pa.Table, pa.Table]:
    return portfolio()


@pytest.fixture
def folder(tmp_path: Path, made: tuple[pa.Table, pa.Table]) -> Path:
    write_portfolio(tmp_path, *made)
    return tmp_path


def bytes_of(manifest: Manifest) -> list[bytes]:
    """All files of results, by shard."""
    attempt = manifest.attempt
    root = Path(attempt.parameters["output"], attempt.process, attempt.instance)
    return [
        (root / file.name).read_bytes()
        for commit in manifest.shards
        for file in (commit.part, *commit.tables.values())
    ]


def change(table: pa.Table, row: int, **values: Any) -> pa.Table:
    rows = table.to_pylist()
    rows[row] |= values
    return pa.Table.from_pylist(rows, table.schema)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"rule": "per-loan", "shards": 3},
        {"partials": "apply", "steps": "accrue,apply-payments"},
    ],
    ids=["as it is", "loan by loan", "another policy"],
)
def test_what_is_published_is_what_plain_python_gives(
    folder: Path, made: tuple[pa.Table, pa.Table], others: Row
) -> None:
    manifest = close_files(folder, **others)
    policy = parameters_of(folder, **others).policy()
    states, made_entries = plain_close(*made, LAST, policy)
    found = states_of(published(manifest))
    assert sorted(found) == sorted(states)
    for loan, state in states.items():
        expected = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        del expected["rate_changes"]
        assert {name: found[loan][name] for name in expected} == expected
        assert found[loan]["locked"] is None
        changes = found[loan]["rate_changes"]
        assert len(changes.split(";") if changes else []) == len(state.rate_changes)
    entries = published(manifest, "entries")
    assert [(row["loan_id"], row["kind"], row["posted_date"]) for row in entries] == [
        (loan, entry.kind, entry.posted_date) for loan, entry in made_entries
    ]
    for row, (_, entry) in zip(entries, made_entries, strict=True):
        assert [row[name] for name in AMOUNTS] == [
            Decimal(getattr(entry, name)).scaleb(-6 if name == "interest_base" else -2)
            for name in AMOUNTS
        ]
    process = LoanCloseOfBusiness(parameters_of(folder, **others))
    assert all(control.balances for control in verify(uri_of(folder, **others), process))


def test_three_nights_are_one_run_over_three_days(folder: Path) -> None:
    start = BOARDED + datetime.timedelta(40)
    close_files(folder, start)
    nights = [start + number * ONE_DAY for number in (1, 2, 3)]
    loans = uri_of(folder, start)
    entries: list[Row] = []
    for night in nights:
        manifest = close_files(folder, night, loans=loans)
        entries += published(manifest, "entries")
        loans = uri_of(folder, night, loans=loans)
    at_once = close_files(
        folder, nights[-1], loans=uri_of(folder, start), output=str(folder / "once")
    )
    assert published(at_once) == published(manifest)
    entries.sort(key=lambda row: (row["loan_id"], row["posted_date"]))
    assert published(at_once, "entries") == entries
    assert entries


def test_a_loan_that_was_left_behind_is_brought_up(
    folder: Path, made: tuple[pa.Table, pa.Table]
) -> None:
    """Loans at different dates: each from its own last closed date."""
    close_files(folder, BOARDED + datetime.timedelta(30))
    ahead = read_published(uri_of(folder, BOARDED + datetime.timedelta(30))).to_table()
    columns = [name for name in ahead.column_names if name in made[0].column_names]
    behind = made[0].slice(0, 7)
    rest = ahead.filter(pc.invert(pc.is_in(ahead["loan_id"], behind["loan_id"])))
    assert len(columns) == len(made[0].column_names)
    pq.write_table(
        pa.concat_tables([behind, rest], promote_options="default"), folder / "mixed.parquet"
    )
    output = str(folder / "mixed")
    mixed = close_files(folder, loans=str(folder / "mixed.parquet"), output=output)
    assert published(mixed) == published(close_files(folder))


def test_running_a_date_again_changes_nothing(folder: Path) -> None:
    first = close_files(folder)
    assert close_files(folder) == first
    assert len(list((Path(uri_of(folder))).glob("attempt-*"))) == 1
    # Nor does closing loans that are closed already.
    again = close_files(folder, loans=uri_of(folder), output=str(folder / "again"))
    assert published(again) == published(first)
    assert published(again, "entries") == []


class TestLocked:
    def test_a_loan_that_fails_stays_as_it_was_and_the_others_close(
        self, folder: Path, made: tuple[pa.Table, pa.Table]
    ) -> None:
        good = published(close_files(folder, output=str(folder / "good")))
        bad = change(made[0], 4, due_day=32)
        pq.write_table(bad, folder / "loans.parquet")
        manifest = close_files(folder)
        loan_id = made[0]["loan_id"][4].as_py()
        rows = published(manifest)
        (locked,) = [row for row in rows if row["loan_id"] == loan_id]
        assert "due_day 32 is not from 1 to 31" in locked["locked"]
        before = bad.to_pylist()[4]
        assert {name: locked[name] for name in before} == before
        assert [row for row in rows if row["loan_id"] != loan_id] == [
            row for row in good if row["loan_id"] != loan_id
        ]
        assert loan_id not in {row["loan_id"] for row in published(manifest, "entries")}
        (failed,) = components_of(uri_of(folder), ComponentStatus.FAILURE)
        assert failed.component == loan_id
        assert failed.error == locked["locked"]
        assert (manifest.counts["failed"], manifest.totals["locked"]) == (1, 1)
        verify(uri_of(folder), LoanCloseOfBusiness(parameters_of(folder)))

    def test_it_takes_part_again_the_next_night(self, folder: Path) -> None:
        night = LAST - ONE_DAY
        (folder / "results").mkdir()
        (folder / "results" / "faults").write_text("L000000003 L000000009")
        run(FaultyClose(parameters_of(folder, night)))
        (folder / "results" / "faults").unlink()
        manifest = close_files(folder, loans=uri_of(folder, night))
        assert published(manifest) == published(close_files(folder, output=str(folder / "good")))
        caught_up = [
            row["posted_date"]
            for row in published(manifest, "entries")
            if row["loan_id"] == "L000000003"
        ]
        assert caught_up == sorted(caught_up)
        assert caught_up[0] <= night < caught_up[-1]

    def test_all_may_be_locked(self, tmp_path: Path) -> None:
        write_portfolio(tmp_path, *portfolio(3, months=1))
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "faults").write_text("L000000001 L000000002 L000000003")
        manifest = run(FaultyClose(parameters_of(tmp_path)))
        assert [row["closed_through"] < LAST for row in published(manifest)] == [True] * 3
        assert manifest.totals["locked"] == 3
        verify(uri_of(tmp_path), FaultyClose(parameters_of(tmp_path)))

    @pytest.mark.parametrize("rule", ["vectorised", "per-loan"])
    def test_a_retry_before_publication_gives_what_would_have_been(
        self, folder: Path, rule: str
    ) -> None:
        (folder / "results").mkdir()
        (folder / "results" / "faults").write_text("L000000003 L000000009")
        parameters = parameters_of(folder, max_locked="1", rule=rule, shards=2)
        with pytest.raises(UserError, match="2 of 40 components failed, and 1 may: first L0"):
            run(FaultyClose(parameters))
        (folder / "results" / "faults").write_text("L000000009")
        manifest = run(FaultyClose(parameters))
        assert manifest.attempt.number == 2
        (locked,) = [row for row in published(manifest) if row["locked"]]
        assert locked["loan_id"] == "L000000009"
        assert locked["closed_through"] == BOARDED
        output = {"output": str(folder / "good"), "max_locked": "1", "rule": rule, "shards": 2}
        good = close_files(folder, **output)
        others = [row for row in published(good, "entries") if row["loan_id"] != "L000000009"]
        assert published(manifest, "entries") == others
        verify(uri_of(folder), FaultyClose(parameters))

    def test_a_retry_of_all_that_failed_is_the_same_to_the_byte(self, folder: Path) -> None:
        (folder / "results").mkdir()
        (folder / "results" / "faults").write_text("L000000003 L000000009")
        parameters = parameters_of(folder, max_locked="0", shards=2)
        with pytest.raises(UserError, match="nothing published"):
            run(FaultyClose(parameters))
        (folder / "results" / "faults").unlink()
        good = close_files(folder, output=str(folder / "good"), max_locked="0", shards=2)
        assert bytes_of(run(FaultyClose(parameters))) == bytes_of(good)

    @pytest.mark.slow
    def test_it_is_listed_by_an_event(
        self, folder: Path, made: tuple[pa.Table, pa.Table], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pq.write_table(change(made[0], 4, due_day=32), folder / "loans.parquet")
        registry = f"sqlite:///{folder}/registry.db"
        monkeypatch.setenv("LEDGERBEAM_REGISTRY", registry)
        parameters = parameters_of(folder).model_dump(mode="json")
        with Runs(Settings.from_environment(registry)) as runs:
            record = runs.submit("loan-close-of-business", parameters)
            assert runs.wait(record.id).run.status == "SUCCESS"
            (event,) = [each for each in runs.events(record.id) if each.type == "stayed_locked"]
        assert event.why == "1 of 40 components failed"
        (error,) = event.detail["components"].values()
        assert "due_day 32" in error


@pytest.mark.slow
@pytest.mark.parametrize("point", ["commit: files written", "commit: marker made"])
def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(folder: Path, point: str) -> None:
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in parameters_of(folder, shards=4).model_dump(mode="json").items()
        if name in ("loans", "transactions", "business_date", "output", "shards")
    ]
    command = [sys.executable, "-m", "ledgerbeam.pipelines.loan_close_of_business", *flags]
    killed = subprocess.run(
        command, env={**os.environ, "LEDGERBEAM_FAILPOINT": point}, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert not Path(uri_of(folder), "manifest.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    manifest = load_manifest(uri_of(folder))
    if point == "commit: marker made":
        assert {commit.attempt for commit in manifest.shards} == {1, 2}
    undisturbed = close_files(folder, output=str(folder / "undisturbed"), shards=4)
    assert bytes_of(manifest) == bytes_of(undisturbed)


def write_csv(table: pa.Table, path: Path, **raw: dict[int, str]) -> None:
    """A table as text; `raw` replaces values by column and row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        for number, row in enumerate(table.to_pylist()):
            values = {name: "" if value is None else str(value) for name, value in row.items()}
            values |= {name: rows[number] for name, rows in raw.items() if number in rows}
            writer.writerow(values.values())


def test_csv_gives_what_parquet_gives(folder: Path, made: tuple[pa.Table, pa.Table]) -> None:
    write_csv(made[0], folder / "loans.csv")
    write_csv(made[1], folder / "transactions.csv")
    texts = close_files(
        folder,
        loans=str(folder / "loans.csv"),
        transactions=str(folder / "transactions.csv"),
        output=str(folder / "text"),
    )
    assert bytes_of(texts) == bytes_of(close_files(folder))


class TestBadInput:
    def rejects(self, folder: Path, **others: Any) -> list[tuple[str, int, str]]:
        with pytest.raises(UserError, match=r"nothing published: .* rejected"):
            close_files(folder, **others)
        manifest = close_files(folder, max_rejects=10, **others)
        uri = uri_of(folder, **others)
        files = [*manifest.rejects, *(c.rejects for c in manifest.shards if c.rejects)]
        rows = [row for file in files for row in read_part(uri, file).to_pylist()]
        assert all(control.balances for control in manifest.controls)
        verify(uri, LoanCloseOfBusiness(parameters_of(folder, max_rejects=10, **others)))
        return sorted((Path(row["file"]).name, row["row"], row["reason"]) for row in rows)

    def test_a_transaction_for_an_unknown_loan(
        self, folder: Path, made: tuple[pa.Table, pa.Table]
    ) -> None:
        pq.write_table(change(made[1], 4, loan_id="X1"), folder / "transactions.parquet")
        reason = "there is no loan_id X1 in loans"
        assert self.rejects(folder) == [("transactions.parquet", 5, reason)]

    def test_two_loans_of_one_id(self, folder: Path, made: tuple[pa.Table, pa.Table]) -> None:
        twins = pa.concat_tables([made[0], change(made[0], 3, balance=Decimal(1)).slice(3, 1)])
        pq.write_table(twins, folder / "loans.parquet")
        found = self.rejects(folder)
        assert [(file, row) for file, row, _ in found[:2]] == [
            ("loans.parquet", 4),
            ("loans.parquet", 41),
        ]
        assert "comes 2 times" in found[0][2]
        # What came in for them is money of no loan.
        assert {file for file, _, _ in found[2:]} == {"transactions.parquet"}

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("amount", "100.125", "amount '100.125' has more than 2 decimals"),
            ("amount", "1e2", "amount '1e2' is not a number"),
            ("kind", "gift", "kind 'gift' is none of payment"),
            ("posted_date", "2026-02-30", "posted_date '2026-02-30' is not a date"),
            ("currency", "", "currency is missing"),
        ],
    )
    def test_text_that_breaks_the_contract(
        self, folder: Path, made: tuple[pa.Table, pa.Table], column: str, value: str, reason: str
    ) -> None:
        write_csv(made[1], folder / "transactions.csv", **{column: {2: value}})
        ((file, row, found),) = self.rejects(folder, transactions=str(folder / "transactions.csv"))
        assert (file, row) == ("transactions.csv", 4)
        assert found.startswith(reason)

    def test_floats(self, folder: Path, made: tuple[pa.Table, pa.Table]) -> None:
        index = made[1].column_names.index("amount")
        floats = made[1].set_column(index, "amount", made[1]["amount"].cast(pa.float64()))
        pq.write_table(floats, folder / "transactions.parquet")
        with pytest.raises(UserError, match="amount is double: floats are refused"):
            close_files(folder)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            (
                {
                    "kind": "rate_change",
                    "amount": Decimal("0.00"),
                    "rate": Decimal("5.000000"),
                    "payment": Decimal("900.00"),
                    "effective_date": datetime.date(2026, 1, 10),
                    "posted_date": datetime.date(2026, 1, 12),
                },
                "rate_change effective 2026-01-10 is in the past: it was posted on 2026-01-12",
            ),
            (
                {"effective_date": datetime.date(1990, 1, 1)},
                "effective_date 1990-01-01 is before the loan's origination",
            ),
            ({"currency": "EUR"}, "currency EUR is not the loan's"),
            ({"amount": Decimal("-5.00")}, "amount -5.00 USD is not positive"),
        ],
        ids=["rate change in the past", "before origination", "other currency", "negative"],
    )
    def test_money_that_cannot_be_applied_is_rejected_in_the_ledger(
        self, folder: Path, made: tuple[pa.Table, pa.Table], changes: Row, reason: str
    ) -> None:
        payments = made[1].filter(pc.equal(made[1]["kind"], "payment"))
        number = payments["transaction_id"][0].as_py()
        at = made[1]["transaction_id"].to_pylist().index(number)
        pq.write_table(change(made[1], at, **changes), folder / "transactions.parquet")
        manifest = close_files(folder)
        (entry,) = [
            row
            for row in published(manifest, "entries")
            if row["transaction_id"] == number and row["kind"] == "rejected"
        ]
        assert entry["reason"].startswith(reason)
        sent = change(made[1], at, **changes).to_pylist()[at]
        assert (entry["rejected"], entry["currency"]) == (sent["amount"], sent["currency"])
        assert (entry["file"], entry["row"]) == (str(folder / "transactions.parquet"), at + 1)
        assert all(control.balances for control in manifest.controls)

    def test_only_what_is_rejected_says_where_it_stood(self, tmp_path: Path) -> None:
        """In CSV, cut into files; the row is the line, below the header."""
        loans, transactions = portfolio(bad_rows=14)
        write_portfolio(tmp_path, loans, transactions)
        for number in (0, 1):
            part = transactions.take(list(range(number, transactions.num_rows, 2)))
            pa_csv.write_csv(part, tmp_path / f"part-{number}.csv")
        given = {"transactions": str(tmp_path / "part-*.csv"), "max_rejects": 100}
        entries = published(close_files(tmp_path, **given), "entries")
        rejected = [row for row in entries if row["kind"] == "rejected"]
        assert len({row["file"] for row in rejected}) == 2
        for row in rejected:
            line = Path(row["file"]).read_text().splitlines()[row["row"] - 1]
            assert line.startswith(f"{row['transaction_id']},")
        others = [row for row in entries if row["kind"] != "rejected"]
        assert {(row["file"], row["row"]) for row in others} == {(None, None)}

    def test_the_bad_rows_that_are_made_up(self, tmp_path: Path) -> None:
        write_portfolio(tmp_path, *portfolio(bad_rows=14))
        manifest = close_files(tmp_path, max_rejects=100)
        assert manifest.counts["rejected"] > 0
        reasons = {row["reason"] for row in published(manifest, "entries") if row["reason"]}
        assert {reason.split()[0] for reason in reasons} >= {"rate_change", "effective_date"}
        verify(uri_of(tmp_path), LoanCloseOfBusiness(parameters_of(tmp_path, max_rejects=100)))


def test_what_does_not_balance_is_not_published(folder: Path) -> None:
    with pytest.raises(UserError, match=r"don't balance: .*USD: transactions in = applied"):
        run(LosingClose(parameters_of(folder)))
    assert not Path(uri_of(folder), "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "accrue,party"}, "steps: party is none of apply-payments, accrue"),
        ({"steps": "accrue,accrue"}, "steps accrue, accrue names something twice"),
        ({"waterfall": "fees"}, "waterfall fees lacks escrow, interest, principal"),
        ({"late_fee_percent": "much"}, "late_fee_percent NaN is not a decimal"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(folder: Path, changes: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoanCloseOfBusiness(parameters_of(folder, **changes))


def test_steps_that_are_not_named_are_not_done(folder: Path) -> None:
    manifest = close_files(folder, steps="accrue")
    assert {row["kind"] for row in published(manifest, "entries")} == {"accrual"}
    assert parameters_of(folder).policy() == Policy(steps=tuple(Step))


def test_the_command_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        f"--loans={folder}/loans.parquet",
        f"--transactions={folder}/transactions.parquet",
        f"--business-date={LAST}",
        f"--output={folder}/results",
    ]
    assert main(LoanCloseOfBusiness, flags) == 0
    assert f"published at\t{uri_of(folder)}\n" in capsys.readouterr().out
    assert main(LoanCloseOfBusiness, [*flags, "--max-locked=many"]) == 2
    assert "failure_limit must be a count or a share" in capsys.readouterr().err


def test_tables_that_are_not_there_are_named(folder: Path) -> None:
    close_files(folder)
    with pytest.raises(UserError, match=r"no table ledger .* there is entries, receipts"):
        read_published(uri_of(folder), "ledger")
    with pytest.raises(UserError, match="no table ledger"):
        close_files(folder, transactions=f"{uri_of(folder)}#ledger", output=str(folder / "x"))


@pytest.mark.parametrize("table", ["entries", "receipts"])
def test_a_damaged_table_is_found(folder: Path, table: str) -> None:
    manifest = close_files(folder)
    path = Path(uri_of(folder), manifest.shards[0].tables[table].name)
    assert path.name.startswith(f"{table}-00000-of-")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not what was published"):
        verify(uri_of(folder), LoanCloseOfBusiness(parameters_of(folder)))


def test_a_manifest_with_other_tables_is_found(folder: Path) -> None:
    close_files(folder)
    path = Path(uri_of(folder), "manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["tables"]["entries"]["reason"], manifest["digest"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the manifest was changed: shard 0 has other columns"):
        verify(uri_of(folder), LoanCloseOfBusiness(parameters_of(folder)))


def test_expired_results_are_gone_with_their_tables(folder: Path) -> None:
    manifest = close_files(folder)
    expire_results(uri_of(folder), datetime.datetime(2026, 4, 1, tzinfo=datetime.UTC))
    root = Path(uri_of(folder))
    names = [file.name for commit in manifest.shards for file in commit.files]
    assert {name.split("-")[1].split("/")[1] for name in names} == {"part", "entries", "receipts"}
    assert not any((root / name).exists() for name in names)
    with pytest.raises(UserError, match="expired"):
        read_published(str(root), "entries")


def test_no_loans_are_closed_if_that_is_allowed(
    folder: Path, made: tuple[pa.Table, pa.Table]
) -> None:
    write_portfolio(folder, made[0].slice(0, 0), made[1].slice(0, 0))
    with pytest.raises(UserError, match=r"no loans of .* were found"):
        close_files(folder)
    manifest = close_files(folder, min_rows=0)
    assert published(manifest) == published(manifest, "entries") == []
