"""Definitions over rows by key: what is checked, how instances are called, hooks, reports."""

import datetime
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import new_class
from typing import Annotated, Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.outstanding_runs import (
    outstanding,
    outstanding_of,
    random_loans,
    results_of,
)
from tests.support.processes import (
    DAY,
    LOANS,
    TRANSACTIONS,
    BalanceParameters,
    Balances,
    LoanParameters,
    Outstanding,
    noted,
)
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import clean_up, run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record, Retry, RetryMode
from ledgerbeam.batch.define.process import instance_uri as uri_of
from ledgerbeam.io.commit.attempts import Attempt, attempts, ending_of
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import OutOfMemoryError, UserError
from ledgerbeam.rules.components import Component, Components

LOAN = Column("loan", pa.string())


NUMBER = Column("number", pa.int64())


class Dated(FileParameters):
    loans: Annotated[str, RowInput(Contract((LOAN, NUMBER)), "number")] = ""
    business_date: datetime.date = DAY


class TestDefinitions:
    """What is wrong with a class is said when it is made."""

    def refused(self, message: str, base: Any = KeyedProcess[Dated], **members: Any) -> None:
        members = {"name": "test", "key": ("loan",), **members}
        with pytest.raises(TypeError, match=message):
            new_class("Wrong", (base,), exec_body=lambda namespace: namespace.update(members))

    def test_no_parameters(self) -> None:
        wrong = r"Wrong: its parameters are missing: .* class Wrong\(KeyedProcess\[MyParameters\]\)"
        self.refused(wrong, KeyedProcess, execute_components=self.execute_components)

    def test_parameters_without_an_input(self) -> None:
        class Nothing(FileParameters):
            business_date: datetime.date = DAY

        wrong = "Wrong: Nothing declares no input: annotate the parameter"
        self.refused(wrong, KeyedProcess[Nothing], execute_components=self.execute_components)

    def execute(self, component: Component) -> Iterable[Record]:
        return []

    def execute_components(self, components: Components) -> pa.Table:
        return components.table

    def test_neither_way_to_execute(self) -> None:
        self.refused("Wrong has neither execute and execute_components: write one of them")

    def test_both_ways_to_execute(self) -> None:
        both: dict[str, Any] = {
            "execute": self.execute,
            "execute_components": self.execute_components,
        }
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
        with pytest.raises(TypeError, match="failure_limit must be a count or a share"):
            type("Wrong", (KeyedProcess,), {"failure_limit": "some"})

    def test_a_base_needs_no_way_to_execute(self) -> None:
        type("Base", (KeyedProcess,), {"key": ("loan",)})

    def test_at_most_once_is_one_try(self) -> None:
        assert Retry(RetryMode.AT_MOST_ONCE, tries=5).tries == 1


class TestInputs:
    """What is wrong with its inputs is said when a definition is given its parameters."""

    def refused(self, message: str, *given: RowInput) -> None:
        class Wrong(KeyedProcess[Dated]):
            name = "test"
            key = ("loan",)

            @property
            def inputs(self) -> tuple[RowInput, ...]:
                return given

            def execute_components(self, components: Components) -> pa.Table:
                return components.table

        with pytest.raises(TypeError, match=message):
            Wrong(Dated(output="o"))

    @pytest.mark.parametrize(("name", "shown"), [("", "one without a name"), ("other", "other")])
    def test_one_that_no_parameter_declares(self, name: str, shown: str) -> None:
        rows = RowInput(Contract((LOAN, NUMBER)), "number", name=name)
        self.refused(f"Wrong: inputs has {shown}, which Dated doesn't declare", rows)

    def test_they_are_those_that_parameters_declare_in_their_order(self) -> None:
        loans, transactions = Outstanding(
            LoanParameters(output="o", loans="l", transactions="t")
        ).inputs
        assert (loans.name, loans.contract, loans.order) == ("loans", LOANS, "tranche")
        assert (transactions.name, transactions.contract) == ("transactions", TRANSACTIONS)

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
        rows = RowInput(Contract(columns), "number", name="loans")
        self.refused("input loans: loan must be a column of the contract, required", rows)

    @pytest.mark.parametrize("member", ["order", "ids", "currency"])
    def test_columns_that_the_contract_does_not_have(self, member: str) -> None:
        value = ("other",) if member == "ids" else "other"
        members: dict[str, Any] = {"order": "number", member: value}
        rows = RowInput(Contract((LOAN, NUMBER)), **members, name="loans")
        self.refused("input loans: other must be a column of the contract", rows)

    @pytest.mark.parametrize("type_", [pa.string(), pa.date32(), None], ids=str)
    def test_amounts_that_cannot_be_added(self, type_: pa.DataType | None) -> None:
        columns = (LOAN, NUMBER) if type_ is None else (LOAN, NUMBER, Column("paid", type_))
        rows = RowInput(Contract(columns), "number", amounts=("paid",), name="loans")
        what = re.escape(f"not of {type_}")
        self.refused(f"the amount paid must be a required column .* {what}", rows)

    def test_keys_of_other_types(self) -> None:
        class Wrong(Outstanding):
            @property
            def inputs(self) -> tuple[RowInput, ...]:
                loans, transactions = super().inputs
                other = transactions.contract.with_type("branch", pa.string())
                return loans, replace(transactions, contract=other)

        message = "transactions: branch is string, and int64 in loans: a key has the same type"
        with pytest.raises(TypeError, match=message):
            Wrong(LoanParameters(output="o", loans="l", transactions="t"))


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
        with pytest.raises(UserError, match="rows rejected"):
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
        with pytest.raises(OutOfMemoryError):
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
