"""Definitions over rows by key: what is checked, several inputs, hooks, the reduce step."""

import datetime
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.harness import pipeline
from tests.processes import (
    DAY,
    LOANS,
    MONEY,
    TRANSACTIONS,
    BalanceParameters,
    Balances,
    LoanParameters,
    Outstanding,
    noted,
)
from tests.reading import instance_uri

from ledgerbeam.batch.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.launch import clean_up, run
from ledgerbeam.batch.launch import instance_uri as uri_of
from ledgerbeam.batch.prepare import Start, prepare
from ledgerbeam.batch.process import Record, Retry, RetryMode
from ledgerbeam.batch.verify import verify
from ledgerbeam.io.attempts import Attempt, attempts, ending_of, find_manifest, start_attempt
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part, read_published
from ledgerbeam.io.records import AttemptRecord, Manifest
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.components import align, sort_components

DAY_BEFORE = DAY - datetime.timedelta(days=1)


class Dated(FileParameters):
    loans: str = ""
    business_date: datetime.date = DAY


class TestDefinitions:
    """What is wrong with a class is said when it is made."""

    def refused(self, message: str, base: type[Any] = KeyedProcess, **members: Any) -> None:
        members = {"name": "test", "parameters_type": Dated, "key": ("loan",), **members}
        with pytest.raises(TypeError, match=message):
            type("Wrong", (base,), members)

    def execute(self, component: Component) -> Iterable[Record]:
        return []

    def execute_components(self, components: Components) -> pa.Table:
        return components.table

    def test_neither_way_to_execute(self) -> None:
        self.refused("Wrong has neither execute and execute_components: write one of them")

    def test_both_ways_to_execute(self) -> None:
        both = {"execute": self.execute, "execute_components": self.execute_components}
        self.refused("Wrong has both execute and execute_components", results=pa.schema([]), **both)

    def test_no_results(self) -> None:
        self.refused("Wrong: results is missing", execute=self.execute)

    def test_many_at_once_at_most_once(self) -> None:
        retry = Retry(RetryMode.AT_MOST_ONCE)
        wrong = "Wrong: execute_components can't be AT_MOST_ONCE"
        self.refused(wrong, execute_components=self.execute_components, retry=retry)

    def test_many_at_once_in_limited_time(self) -> None:
        wrong = "Wrong: a time_limit is one for each component"
        self.refused(wrong, execute_components=self.execute_components, retry=Retry(time_limit=1.0))

    @pytest.mark.parametrize(
        ("member", "value"), [("identity", ("book",)), ("date_parameter", "book")]
    )
    def test_an_identity_that_is_no_parameter(self, member: str, value: Any) -> None:
        wrong = "Wrong: Dated has no field 'book', which identifies an instance"
        self.refused(wrong, execute_components=self.execute_components, **{member: value})

    def test_a_failure_limit_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="failure_limit must be a count or a share"):
            type("Wrong", (KeyedProcess,), {"failure_limit": "some"})

    def test_a_base_needs_no_way_to_execute(self) -> None:
        type("Base", (KeyedProcess,), {"key": ("loan",)})

    def test_at_most_once_is_one_try(self) -> None:
        assert Retry(RetryMode.AT_MOST_ONCE, tries=5).tries == 1


LOAN = Column("loan", pa.string())
NUMBER = Column("number", pa.int64())


class TestInputs:
    """What is wrong with its inputs is said when a definition is given its parameters."""

    def refused(self, message: str, *inputs: RowInput) -> None:
        class Wrong(KeyedProcess[Dated]):
            name = "test"
            parameters_type = Dated
            key = ("loan",)

            @property
            def inputs(self) -> tuple[RowInput, ...]:
                return given

            def execute_components(self, components: Components) -> pa.Table:
                return components.table

        given = inputs
        with pytest.raises(TypeError, match=message):
            Wrong(Dated(output="o"))

    def test_no_parameter_of_its_name(self) -> None:
        rows = RowInput("transactions", Contract((LOAN, NUMBER)), "number")
        self.refused("Wrong, input transactions: Dated has no field of that name", rows)

    @pytest.mark.parametrize(
        "loan",
        [
            None,
            Column("loan", pa.string(), nullable=True),
            Column("loan", pa.string(), required=False),
        ],
        ids=["missing", "nullable", "not required"],
    )
    def test_a_key_that_may_be_missing(self, loan: Column | None) -> None:
        columns = (NUMBER,) if loan is None else (loan, NUMBER)
        rows = RowInput("loans", Contract(columns), "number")
        self.refused("input loans: loan must be a column of the contract, required", rows)

    @pytest.mark.parametrize("member", ["order", "ids", "currency"])
    def test_columns_that_the_contract_does_not_have(self, member: str) -> None:
        value = ("other",) if member == "ids" else "other"
        members = {"order": "number", member: value}
        rows = RowInput("loans", Contract((LOAN, NUMBER)), **members)
        self.refused("input loans: other must be a column of the contract", rows)

    @pytest.mark.parametrize("type_", [pa.string(), pa.date32(), None], ids=str)
    def test_amounts_that_cannot_be_added(self, type_: pa.DataType | None) -> None:
        columns = (LOAN, NUMBER) if type_ is None else (LOAN, NUMBER, Column("paid", type_))
        rows = RowInput("loans", Contract(columns), "number", amounts=("paid",))
        what = re.escape(f"not of {type_}")
        self.refused(f"the amount paid must be a required column .* {what}", rows)

    def test_keys_of_other_types(self) -> None:
        class Two(Dated):
            transactions: str = ""

        class Wrong(Outstanding):
            parameters_type = Two  # type: ignore[assignment]

            @property
            def inputs(self) -> tuple[RowInput, ...]:
                loans, transactions = super().inputs
                other = transactions.contract.with_type("branch", pa.string())
                return loans, RowInput("transactions", other, "number")

        message = "transactions: branch is string, and int64 in loans: a key has the same type"
        with pytest.raises(TypeError, match=message):
            Wrong(Two(output="o"))  # type: ignore[arg-type]


class TestInstanceNames:
    def name(self, book: str, **others: Any) -> str:
        parameters = {"payments": "p", "output": "o", "folder": "f", "book": book, **others}
        return Balances(BalanceParameters.model_validate(parameters)).instance

    def test_date_and_identity(self) -> None:
        assert self.name("retail") == "2026-11-20-book-retail"
        assert self.name("retail", business_date="2026-11-21") == "2026-11-21-book-retail"

    def test_further_runs(self) -> None:
        assert self.name("retail", run_number=3, reason="r") == "2026-11-20-book-retail-run-3"

    def test_without_identity(self) -> None:
        parameters = LoanParameters(output="o", loans="l", transactions="t")
        assert Outstanding(parameters).instance == "2026-11-20"

    def test_what_does_not_identify_does_not_name(self) -> None:
        assert self.name("retail", payments="other", shards=3) == self.name("retail")

    @given(st.text(max_size=80), st.text(max_size=80))
    def test_other_values_give_other_names_that_are_one_folder(self, one: str, other: str) -> None:
        names = [self.name(book) for book in (one, other)]
        assert (names[0] == names[1]) == (one == other)
        for name in names:
            assert name.isascii()
            assert not set(name) & set("/\\*?[] ")
            assert not name.startswith(".")
            assert len(name) < 120


Row = dict[str, Any]


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


def write(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    lines = [",".join(columns)] + [",".join(str(row[name]) for name in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")


LOAN_COLUMNS = [column.name for column in LOANS.columns]
TRANSACTION_COLUMNS = [column.name for column in TRANSACTIONS.columns]


def outstanding(
    folder: Path, loans: list[Row], transactions: list[Row], **others: Any
) -> Outstanding:
    """The definition, with its input written."""
    write(folder / "loans.csv", LOAN_COLUMNS, loans)
    write(folder / "transactions.csv", TRANSACTION_COLUMNS, transactions)
    return outstanding_of(folder, **others)


def outstanding_of(folder: Path, **others: Any) -> Outstanding:
    parameters = {
        "loans": str(folder / "loans.csv"),
        "transactions": str(folder / "transactions.csv"),
        "output": str(folder / "output"),
        "shards": 3,
        "max_rejects": 1000,
        **others,
    }
    return Outstanding(LoanParameters.model_validate(parameters))


def refused_rows(manifest: Manifest) -> list[Row]:
    files = [commit.rejects for commit in manifest.shards if commit.rejects is not None]
    tables = [read_part(instance_uri(manifest), file) for file in files]
    return [row for table in tables for row in table.to_pylist()]


def results_of(manifest: Manifest) -> list[Row]:
    rows: list[Row] = read_published(instance_uri(manifest)).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["branch"], row["loan"].encode()))


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


def random_loans(count: int, seed: int = 7) -> tuple[list[Row], list[Row]]:
    """Loans with one or two tranches, and transactions of theirs and of others."""
    source = random.Random(seed)
    keys = [(source.randrange(3), f"L{number}") for number in range(count)]
    strangers = [(9, "L1"), (9, "GONE"), *((branch + 1, loan) for branch, loan in keys)]
    loans = [
        {
            "branch": branch,
            "loan": loan,
            "tranche": tranche,
            "principal": Decimal(source.randrange(10**7)).scaleb(-2),
            "currency": source.choice(["EUR", "INR"]),
        }
        for branch, loan in keys
        for tranche in range(source.choice([1, 1, 2]))
    ]
    transactions = [
        {
            "number": number,
            "branch": branch,
            "loan": loan,
            "booked_on": source.choice([DAY, DAY, DAY, DAY_BEFORE]),
            "amount": Decimal(source.randrange(-(10**5), 10**5)).scaleb(-2),
            "currency": source.choice(["EUR", "INR", "USD"]),
        }
        for number in range(4 * count)
        for branch, loan in [source.choice(source.choice([keys, keys, keys, strangers]))]
    ]
    source.shuffle(loans)
    return loans, transactions


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
        with pytest.raises(UserError, match=rf"{orphans} rows refused, .* there is no branch "):
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
        with pytest.raises(UserError, match=r"1 row refused, .* principal '1\.005' "):
            run(outstanding(tmp_path, loans, transactions[:0], max_rejects=0))


def run_without_spilling(process: Outstanding) -> Manifest:
    """As on a runner whose workers share no disk: tables go through GroupByKey."""
    prepared = prepare(process)
    cut = prepared.cut()
    draft = AttemptRecord(
        process=process.name,
        instance=process.instance,
        number=1,
        started_at=datetime.datetime(2026, 11, 20, 18, tzinfo=datetime.UTC),
        code_version="by hand",
        parameters=process.parameters.model_dump(mode="json"),
        inputs=prepared.files,
        shards=cut.shards,
        fingerprint="by hand",
    )
    attempt = start_attempt(uri_of(process), draft)
    with ExitStack() as stack, pipeline() as made:
        _ = made | prepared.build(Start(attempt, (), (), None, stack))
    manifest = find_manifest(attempt.instance_uri)
    assert manifest is not None
    return manifest


class TestAlign:
    """Components of a further input, put beside those of the first."""

    @given(st.data())
    def test_against_dictionaries(self, data: st.DataObject) -> None:
        keys = st.tuples(st.integers(-2, 2), st.sampled_from("ABé"))
        sides = [data.draw(st.lists(st.tuples(keys, st.integers(0, 9)), max_size=20)) for _ in "12"]
        encoded = [data.draw(st.booleans()) for _ in "12"]
        first, others = (
            sort_components(table_of(rows, is_encoded), ("branch", "loan"), "order").components
            for rows, is_encoded in zip(sides, encoded, strict=True)
        )
        aligned, orphans = align(first, others, ("branch", "loan"))
        ours = sorted({key for key, _ in sides[0]}, key=lambda key: (key[0], key[1].encode()))
        assert len(aligned.starts) == len(ours)
        columns = ("branch", "loan", "order")
        for key, (start, end) in zip(ours, aligned.bounds(), strict=True):
            rows = aligned.table.slice(start, end - start).select(columns).to_pylist()
            found = [((row["branch"], row["loan"]), row["order"]) for row in rows]
            assert found == sorted(row for row in sides[1] if row[0] == key)
        expected = sorted(row for row in sides[1] if row[0] not in ours)
        found = sorted(((row["branch"], row["loan"]), row["order"]) for row in orphans.to_pylist())
        assert found == expected

    @given(st.data())
    def test_slices_and_choices_keep_what_is_related(self, data: st.DataObject) -> None:
        keys = st.tuples(st.integers(0, 2), st.sampled_from("AB"))
        sides = [data.draw(st.lists(st.tuples(keys, st.integers(0, 9)), max_size=15)) for _ in "12"]
        first, others = (
            sort_components(table_of(rows, True), ("branch", "loan"), "order").components
            for rows in sides
        )
        aligned, _ = align(first, others, ("branch", "loan"))
        whole = first._replace(related={"others": aligned})
        everything = contents(whole)
        count = len(first.starts)
        start = data.draw(st.integers(0, count))
        end = data.draw(st.integers(start, count))
        assert contents(whole.slice(start, end)) == everything[start:end]
        chosen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
        assert contents(whole.select(chosen)) == [
            content for content, is_chosen in zip(everything, chosen, strict=True) if is_chosen
        ]


def table_of(rows: list[tuple[tuple[int, str], int]], is_encoded: bool) -> pa.Table:
    loans = pa.array([loan for (_, loan), _ in rows], pa.string())
    return pa.table(
        {
            "branch": pa.array([branch for (branch, _), _ in rows], pa.int64()),
            "loan": loans.dictionary_encode() if is_encoded else loans,
            "order": pa.array([order for _, order in rows], pa.int64()),
        }
    )


def contents(components: Components) -> list[Any]:
    return [
        (component.key, component.values("order"), component.related("others").records())
        for component in components.each(("branch", "loan"))
    ]


class TestComponents:
    """One unit of work, as rules and their tests see it."""

    ROWS = pa.table({"loan": ["L", "L"], "amount": pa.array([Decimal(1), Decimal(2)], MONEY)})

    def test_made_by_hand(self) -> None:
        paid = pa.table({"amount": pa.array([Decimal(3)], MONEY)})
        component = Component.of(("L",), self.ROWS, {"paid": paid})
        assert (len(component), component.key, component.first("loan")) == (2, ("L",), "L")
        assert component.values("amount") == [Decimal(1), Decimal(2)]
        assert component.records()[1] == {"loan": "L", "amount": Decimal(2)}
        assert component.related("paid").values("amount") == [Decimal(3)]
        assert repr(component) == "Component(L: 2 rows)"

    def test_a_rule_is_tested_without_a_run(self) -> None:
        parameters = LoanParameters(output="o", loans="l", transactions="t")
        loan = pa.table({"principal": pa.array([Decimal(9), Decimal(1)], MONEY)})
        paid = pa.table({"amount": pa.array([Decimal("0.50")], MONEY)})
        component = Component.of((1, "L"), loan, {"transactions": paid})
        assert list(Outstanding(parameters).execute(component)) == [
            {"outstanding": Decimal("9.50"), "paid": 1}
        ]


class TestReduceStep:
    def reports(self, manifest: Manifest) -> dict[str, str]:
        uri = instance_uri(manifest)
        return {
            file.name.partition("/report-")[2]: Path(uri, file.name).read_text()
            for file in manifest.reports
        }

    def expected(self, manifest: Manifest) -> dict[str, str]:
        rows = results_of(manifest)
        total = sum((row["outstanding"] for row in rows), Decimal("0.00"))
        return {"rows.txt": f"{len(rows)}\n", "total.txt": f"{total}\n"}

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        outstanding(tmp_path, *random_loans(30))
        return tmp_path

    def test_reports_are_published_and_verified(self, folder: Path) -> None:
        manifest = run(outstanding_of(folder))
        assert self.reports(manifest) == self.expected(manifest)
        assert [file.rows for file in manifest.reports] == [0, 0]
        verify(instance_uri(manifest), outstanding_of(folder))

    @pytest.mark.parametrize("kept", [1, 2, 3])
    def test_they_cover_what_an_earlier_attempt_has_committed(
        self, folder: Path, kept: int
    ) -> None:
        with pytest.raises(UserError, match="rows refused"):
            run(outstanding_of(folder, max_rejects=0))
        instance = Path(uri_of(outstanding_of(folder)))
        assert {path.name for path in instance.glob("attempt-1/report-*")} == {
            "report-rows.txt",
            "report-total.txt",
        }
        for shard in range(kept, 3):
            # As if it had died before.
            (instance / f"attempt-1/committed-{shard:05}.json").unlink()
        manifest = run(outstanding_of(folder))
        assert [commit.attempt for commit in manifest.shards] == [1] * kept + [2] * (3 - kept)
        assert {file.name.partition("/")[0] for file in manifest.reports} == {"attempt-2"}
        assert self.reports(manifest) == self.expected(manifest)
        verify(instance_uri(manifest), outstanding_of(folder))

    @pytest.mark.parametrize("damage", ["changed", "gone"])
    def test_a_damaged_report_is_found(self, folder: Path, damage: str) -> None:
        manifest = run(outstanding_of(folder))
        path = Path(instance_uri(manifest), manifest.reports[1].name)
        if damage == "gone":
            path.unlink()
        else:
            path.write_text(path.read_text().replace("1", "2") + "0")
        message = "it is gone" if damage == "gone" else "not what was published"
        with pytest.raises(UserError, match=rf"report-total\.txt: .*{message}"):
            verify(instance_uri(manifest), outstanding_of(folder))

    def test_no_results(self, tmp_path: Path) -> None:
        manifest = run(outstanding(tmp_path, [], []))
        assert self.reports(manifest) == {"rows.txt": "0\n", "total.txt": "0.00\n"}


class TestHooks:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "payments.csv").write_text("account,number,amount\nA,1,1.00\nB,1,2.00\n")
        return tmp_path

    def process(self, folder: Path, payments: str = "payments.csv") -> Balances:
        return Balances(
            BalanceParameters(
                payments=str(folder / payments),
                output=str(folder / "output"),
                folder=str(folder),
                shards=1,
            )
        )

    def attempt(self, folder: Path, number: int = 1) -> Attempt:
        uri = uri_of(self.process(folder))
        return Attempt(uri, attempts(uri)[number - 1])

    def hooks(self, folder: Path) -> list[str]:
        return noted(folder / "hooks")

    def test_success(self, folder: Path) -> None:
        run(self.process(folder))
        assert self.hooks(folder) == ["before", "after 1", "cleanup"]
        run(self.process(folder))
        assert self.hooks(folder) == ["before", "after 1", "cleanup"]

    def test_failure_and_then_success(self, folder: Path) -> None:
        (folder / "faults.json").write_text('{"A": "ValueError"}')
        with pytest.raises(UserError, match="1 of 2 components failed"):
            run(self.process(folder))
        assert self.hooks(folder) == ["before", "cleanup"]
        ending = ending_of(self.attempt(folder).uri)
        assert ending is not None
        assert ending.outcome == "failed"
        assert ending.error.startswith("nothing published: 1 of 2 components failed")
        (folder / "faults.json").unlink()
        run(self.process(folder))
        assert self.hooks(folder) == ["before", "cleanup", "before", "after 2", "cleanup"]

    def test_a_defect(self, folder: Path) -> None:
        (folder / "faults.json").write_text('{"A": "MemoryError"}')
        with pytest.raises(MemoryError):
            run(self.process(folder))
        assert self.hooks(folder) == ["before", "cleanup"]
        ending = ending_of(self.attempt(folder).uri)
        assert ending is not None
        assert "A is bad" in ending.error

    def test_before_fails(self, folder: Path) -> None:
        (folder / "no-before").touch()
        with pytest.raises(OSError, match="before is not possible"):
            run(self.process(folder))
        assert self.hooks(folder) == ["before", "cleanup"]
        assert attempts(uri_of(self.process(folder))) == []

    def test_no_input(self, folder: Path) -> None:
        with pytest.raises(UserError, match=r"other\.csv"):
            run(self.process(folder, "other.csv"))
        assert self.hooks(folder) == ["before", "cleanup"]

    def test_after_fails(self, folder: Path) -> None:
        (folder / "no-after").touch()
        with pytest.raises(OSError, match="after 1 is not possible"):
            run(self.process(folder))
        assert self.hooks(folder) == ["before", "after 1", "cleanup"]
        ending = ending_of(self.attempt(folder).uri)
        assert ending is not None
        assert ending.outcome == "published"
        verify(uri_of(self.process(folder)), self.process(folder))

    def test_before_may_bring_the_input(self, folder: Path) -> None:
        class Fetching(Balances):
            def before(self) -> None:
                (folder / "payments.csv").rename(folder / "fetched.csv")
                super().before()

        fetching = Fetching(self.process(folder, "fetched.csv").parameters)
        assert run(fetching).counts["rows_in"] == 2

    def test_an_attempt_that_died_before_it_was_cleaned_up(self, folder: Path) -> None:
        run(self.process(folder))
        Path(self.attempt(folder).uri, "cleanup.json").unlink()
        run(self.process(folder))
        run(self.process(folder))
        assert self.hooks(folder) == ["before", "after 1", "cleanup", "cleanup"]

    def test_several_who_clean_up(self, folder: Path) -> None:
        run(self.process(folder))
        attempt = self.attempt(folder)
        Path(attempt.uri, "cleanup.json").unlink()
        (folder / "hooks").unlink()
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: clean_up(self.process(folder), attempt), range(8)))
        assert done.count(True) == 1
        assert self.hooks(folder) == ["cleanup"]
