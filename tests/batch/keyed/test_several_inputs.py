"""Several inputs that are grouped by one key, against a plain join."""

from collections import defaultdict
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support.harness import pipeline, started_by_hand
from tests.support.outstanding_runs import (
    DAY_BEFORE,
    Row,
    outstanding,
    outstanding_of,
    random_loans,
    results_of,
)
from tests.support.processes import (
    DAY,
    Outstanding,
)
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.io.commit.attempts import find_manifest
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import UserError


class Expected(NamedTuple):
    """What a run over loans and transactions gives, in plain Python."""

    results: list[Row]
    orphans: list[int]
    other_dates: int
    totals: dict[str, int]


def expected_of(loans: list[Row], transactions: list[Row]) -> Expected:
    of_date = [row for row in transactions if row["booked_on"] == DAY]
    tranches: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in loans:
        tranches[row["branch"], row["loan"]].append(row)
    results = []
    for key in sorted(tranches, key=lambda key: (key[0], key[1].encode())):
        paid = [row["amount"] for row in of_date if (row["branch"], row["loan"]) == key]
        principal = sum(row["principal"] for row in tranches[key])
        results.append(
            {
                "branch": key[0],
                "loan": key[1],
                "outstanding": principal - sum(paid),
                "paid": len(paid),
            }
        )
    orphans = [
        line
        for line, row in enumerate(transactions, 2)
        if row["booked_on"] == DAY and (row["branch"], row["loan"]) not in tranches
    ]
    totals: dict[str, int] = defaultdict(int)
    for row in loans:
        totals[f"principal_{row['currency']}"] += int(row["principal"] * 100)
    for row in of_date:
        is_orphan = (row["branch"], row["loan"]) not in tranches
        name = f"transactions_amount_{row['currency']}"
        totals[f"refused_{name}" if is_orphan else name] += int(row["amount"] * 100)
    return Expected(results, orphans, len(transactions) - len(of_date), dict(totals))


def refused_rows(manifest: Manifest) -> list[Row]:
    files = [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    tables = [read_part(instance_uri(manifest), file) for file in files]
    return [row for table in tables for row in table.to_pylist()]


def check(manifest: Manifest, loans: list[Row], transactions: list[Row]) -> None:
    """Compare all that a run gives with plain Python."""
    expected = expected_of(loans, transactions)
    assert results_of(manifest) == expected.results
    refused = refused_rows(manifest)
    assert sorted(row["row"] for row in refused) == expected.orphans
    counts = manifest.counts
    assert (counts["rows_in"], counts["transactions_in"]) == (len(loans), len(transactions))
    assert counts["rows_out"] == counts["components"] == len(expected.results)
    assert (counts["rejected"], counts["other_dates"]) == (len(refused), expected.other_dates)
    sums = {n: v for n, v in manifest.totals.items() if v and not n.endswith("_hash")}
    assert sums == {name: value for name, value in expected.totals.items() if value}
    assert all(control.balances for control in manifest.controls)
    verify(instance_uri(manifest), outstanding_of(Path(manifest.attempt.inputs[0].uri).parent))


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    keys = st.tuples(st.integers(-1, 2), st.sampled_from(["A", "B", "é", "1", "a/b"]))
    amounts = st.integers(-(10**15), 10**15).map(lambda cents: Decimal(cents).scaleb(-2))
    currencies = st.sampled_from(["EUR", "INR"])

    def rows(order: str, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
        row = st.tuples(keys, st.integers(0, 3), st.fixed_dictionaries(values))
        made = row.map(lambda r: {"branch": r[0][0], "loan": r[0][1], order: r[1], **r[2]})
        return st.lists(made, max_size=15, unique_by=lambda r: (r["branch"], r["loan"], r[order]))

    dates = st.sampled_from([DAY, DAY, DAY_BEFORE])
    return draw(rows("tranche", principal=amounts, currency=currencies)), draw(
        rows("number", amount=amounts, currency=currencies, booked_on=dates)
    )


class TestTwoInputs:
    @settings(
        max_examples=8,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run is too slow to shrink by
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(rows=inputs(), shards=st.integers(1, 3))
    def test_against_a_plain_join(
        self, tmp_path_factory: Any, rows: tuple[list[Row], list[Row]], shards: int
    ) -> None:
        folder = tmp_path_factory.mktemp("join")
        check(run(outstanding(folder, *rows, shards=shards)), *rows)

    @pytest.mark.parametrize("spills", [True, False])
    def test_many_loans(self, tmp_path: Path, spills: bool) -> None:
        loans, transactions = random_loans(200)
        process = outstanding(tmp_path, loans, transactions)
        manifest = run(process) if spills else run_without_spilling(process)
        check(manifest, loans, transactions)
        assert manifest.counts["rejected"] > 100

    @pytest.mark.slow
    def test_in_several_processes(self, tmp_path: Path) -> None:
        loans, transactions = random_loans(50)
        flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
        manifest = run(outstanding(tmp_path, loans, transactions), flags)
        check(manifest, loans, transactions)

    def test_orphans_are_refused_with_their_place_and_the_reason(self, tmp_path: Path) -> None:
        loans, transactions = random_loans(1)
        branch = loans[0]["branch"]
        base = {"booked_on": DAY, "amount": Decimal("1.00"), "currency": "EUR", "branch": branch}
        transactions = [
            {**base, "number": 1, "loan": "L0"},
            {**base, "number": 2, "loan": "L0", "branch": branch + 1},
            {**base, "number": 3, "loan": "NONE"},
        ]
        manifest = run(outstanding(tmp_path, loans, transactions))
        file = str(tmp_path / "transactions.csv")
        refused = {row["row"]: (row["file"], row["reason"]) for row in refused_rows(manifest)}
        assert refused == {
            3: (file, f"there is no branch {branch + 1}, loan L0 in loans"),
            4: (file, f"there is no branch {branch}, loan NONE in loans"),
        }
        raw = {row["row"]: row["raw"] for row in refused_rows(manifest)}
        assert "NONE" in raw[4]
        (result,) = results_of(manifest)
        assert result["paid"] == 1

    def test_one_orphan_too_many(self, tmp_path: Path) -> None:
        loans, transactions = random_loans(10)
        orphans = len(expected_of(loans, transactions).orphans)
        process = outstanding(tmp_path, loans, transactions, max_rejects=orphans - 1)
        with pytest.raises(UserError, match=rf"{orphans} rows rejected, .* \(there is no branch "):
            run(process)

    def test_rows_that_come_twice_are_refused_in_either_input(self, tmp_path: Path) -> None:
        loans, _ = random_loans(3)
        twice = {**loans[0], "principal": Decimal(1)}
        base = {"booked_on": DAY, "amount": Decimal("1.00"), "currency": "EUR"}
        keys = {name: loans[-1][name] for name in ("branch", "loan")}
        transactions = [{**base, **keys, "number": 5}, {**base, **keys, "number": 5}]
        manifest = run(outstanding(tmp_path, [*loans, twice], transactions))
        reasons = [row["reason"].partition(" for branch ")[0] for row in refused_rows(manifest)]
        assert sorted(reasons) == ["number 5 comes 2 times"] * 2 + ["tranche 0 comes 2 times"] * 2
        assert sum(row["paid"] for row in results_of(manifest)) == 0

    def test_loans_without_transactions(self, tmp_path: Path) -> None:
        loans, _ = random_loans(20)
        manifest = run(outstanding(tmp_path, loans, []))
        check(manifest, loans, [])
        assert {row["paid"] for row in results_of(manifest)} == {0}

    def test_transactions_without_loans(self, tmp_path: Path) -> None:
        _, transactions = random_loans(20)
        manifest = run(outstanding(tmp_path, [], transactions))
        check(manifest, [], transactions)

    def test_columns_of_further_inputs_are_named_by_a_parameter_of_their_own(
        self, tmp_path: Path
    ) -> None:
        loans, transactions = random_loans(5)
        outstanding(tmp_path, loans, transactions)
        path = tmp_path / "transactions.csv"
        path.write_text(path.read_text().replace("amount", "betrag", 1))
        with pytest.raises(UserError, match="no column amount"):
            run(outstanding_of(tmp_path))
        manifest = run(outstanding_of(tmp_path, transactions_columns="amount=betrag"))
        assert results_of(manifest) == expected_of(loans, transactions).results

    def test_controls_by_currency(self, tmp_path: Path) -> None:
        loans, transactions = random_loans(30)
        manifest = run(outstanding(tmp_path, loans, transactions))
        names = [control.name.partition(":")[0] for control in manifest.controls]
        assert names == [
            "rows",
            "principal_EUR",
            "principal_INR",
            "id_hash",
            "transactions_rows",
            "transactions_amount_EUR",
            "transactions_amount_INR",
            "transactions_amount_USD",
            "transactions_id_hash",
        ]

    def test_sums_beyond_64_bits(self, tmp_path: Path) -> None:
        largest = Decimal("9999999999999999.99")
        loans = [
            {"branch": 1, "loan": f"L{n}", "tranche": 1, "principal": largest, "currency": "EUR"}
            for n in range(30)
        ]
        manifest = run(outstanding(tmp_path, loans, []))
        assert manifest.totals["principal_EUR"] == 30 * int(largest * 100) > 2**64
        check(manifest, loans, [])

    def test_fractions_of_the_smallest_unit_are_refused(self, tmp_path: Path) -> None:
        loans, transactions = random_loans(3)
        loans[0]["principal"] = Decimal("1.005")
        with pytest.raises(UserError, match=r"1 row rejected, .* \(principal '1\.005' "):
            run(outstanding(tmp_path, loans, transactions[:0], max_rejects=0))


def run_without_spilling(process: Outstanding) -> Manifest:
    """As on a runner whose workers share no disk: tables go through GroupByKey."""
    prepared = kind_of(process).prepare(process)
    attempt = started_by_hand(process, prepared.files, prepared.partition().shards)
    with ExitStack() as stack, pipeline() as made:
        _ = made | prepared.build(AttemptContext(attempt), stack)
    manifest = find_manifest(attempt.instance_uri)
    assert manifest is not None
    return manifest
