"""Shards whose components fail, are mended and tried again, against plain Python."""

import json
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import processes
from tests.support.execution_bench import BOTH, FAILURE, SUCCESS, attempt_at
from tests.support.processes import (
    Balances,
    EachBalance,
    noted,
)

from ledgerbeam.batch.define.process import Record
from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.execute.worker_control import WorkerControl
from ledgerbeam.batch.keyed.shard import execute_shard
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_table
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.datasets.rejections import RowLocator
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import sort_components
from ledgerbeam.transforms.concurrency.throttle import NO_LIMITS

Payments = Sequence[tuple[str, int, Decimal]]


def payments_table(payments: Payments) -> pa.Table:
    accounts, numbers, amounts = zip(*payments, strict=True) if payments else ((), (), ())
    return pa.table(
        {
            "account": pa.array(accounts, pa.string()).dictionary_encode(),
            "number": pa.array(numbers, pa.int64()),
            "amount": pa.array(amounts, processes.MONEY),
        }
    )


def expected_of(payments: Payments, failing: Iterable[str]) -> list[dict[str, Any]]:
    """The results in plain Python."""
    failing = set(failing)
    rows = []
    for account in sorted({account for account, _, _ in payments} - failing):
        own = sorted((number, amount) for name, number, amount in payments if name == account)
        rows += [{"account": account, **row} for row in processes.balances(own)]
    return rows


def statuses_of(payments: Payments, failing: Iterable[str]) -> dict[str, ComponentStatus]:
    """Outcomes of those that did not just succeed, with rows."""
    failing = set(failing)
    accounts = {account for account, _, _ in payments}
    with_rows = {account for account, _, amount in payments if amount}
    return dict.fromkeys(accounts & failing, FAILURE) | dict.fromkeys(
        accounts - failing - with_rows, SUCCESS
    )


@st.composite
def payments_of_accounts(draw: st.DrawFn) -> list[tuple[str, int, Decimal]]:
    accounts = st.sampled_from(["A", "B", "C", "é", "a/b", "100%", "E"])
    amounts = st.sampled_from([0, 1, -1, 250, 10**14, -(10**14)])
    keys = draw(st.lists(st.tuples(accounts, st.integers(0, 9)), unique=True, max_size=40))
    return [(*key, Decimal(draw(amounts)).scaleb(-2)) for key in keys]


class Executed(NamedTuple):
    """What executing a shard gave, its totals as they are stored."""

    results: Results
    outcomes: list[Outcome]
    totals: dict[str, int]


class Shard:
    """A shard that is executed and committed as often as attempts are made."""

    def __init__(self, folder: Path, definition: type[Any], payments: Payments) -> None:
        self.folder = folder
        self.process = definition(
            processes.BalanceParameters(payments="", output="", folder=str(folder))
        )
        table = payments_table(payments)
        self.components = sort_components(table, ("account",), "number").components
        self.worker_control = WorkerControl(str(folder), 1, "here")
        self.worker_control.throttle.set(NO_LIMITS)
        self.commit: ShardCommit | None = None

    def execute(self, failing: Iterable[str]) -> Executed:
        """The next attempt, in which these accounts fail."""
        faults = dict.fromkeys(failing, "ValueError")
        (self.folder / "faults.json").write_text(json.dumps(faults))
        (self.folder / "calls").unlink(missing_ok=True)
        attempt = attempt_at(self.folder)
        done = execute_shard(
            self.process,
            attempt,
            self.worker_control,
            0,
            self.components,
            RowLocator((), ()),
            self.commit,
        )
        outcomes = (
            attempt.write_outcomes(0, outcomes_table(done.outcomes)) if done.outcomes else None
        )
        self.commit = attempt.commit(
            ShardCommit(
                shard=0,
                attempt=attempt.record.number,
                code_version="1",
                part=attempt.write_part(0, done.results.table),
                outcomes=outcomes,
                totals=done.totals.to_json(self.process.total_names),
            )
        )
        return Executed(done.results, done.outcomes, self.commit.totals)

    @property
    def calls(self) -> set[str]:
        return {name for line in noted(self.folder / "calls") for name in line.split()}


class TestShards:
    @BOTH
    @settings(max_examples=60, deadline=None)
    @given(payments=payments_of_accounts(), failing=st.sets(st.sampled_from("ABCDé")))
    def test_any_payments_any_failures_then_mended(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        definition: type[Any],
        payments: Payments,
        failing: set[str],
    ) -> None:
        undisturbed = Shard(tmp_path_factory.mktemp("undisturbed"), definition, payments)
        undisturbed.execute([])
        shard = Shard(tmp_path_factory.mktemp("shard"), definition, payments)
        done = shard.execute(failing)
        assert done.results.table.to_pylist() == expected_of(payments, failing)
        found = {o.component.replace("%2F", "/").replace("%25", "%"): o for o in done.outcomes}
        assert {name: o.status for name, o in found.items()} == statuses_of(payments, failing)
        accounts = {account for account, _, _ in payments}
        lost = accounts & failing
        lost_amounts = [amount for account, _, amount in payments if account in lost]
        kept_amounts = [amount for account, _, amount in payments if account not in lost]
        assert done.totals["components"] == len(accounts)
        assert done.totals["failed"] == len(lost)
        assert done.totals["amount"] == sum(kept_amounts) * 100
        assert done.totals.get("failed_amount", 0) == sum(lost_amounts) * 100
        assert done.totals["rows"] + done.totals.get("failed_rows", 0) == len(payments)

        if lost:
            done = shard.execute([])
            assert shard.calls == lost
            assert {
                o.component: o[1:3] for o in done.outcomes if o.component in lost
            } == dict.fromkeys(lost, (SUCCESS, 2))
        assert done.totals["failed"] == 0
        assert done.results.table.to_pylist() == expected_of(payments, [])
        assert shard.commit is not None
        assert undisturbed.commit is not None
        assert shard.commit.part.sha256 == undisturbed.commit.part.sha256
        again = {"retries": len(lost)} if lost else {}
        assert shard.commit.totals == undisturbed.commit.totals | again

    @BOTH
    def test_what_fails_again(self, tmp_path: Path, definition: type[Any]) -> None:
        payments = [(account, 1, Decimal(1)) for account in "ABCD"]
        shard = Shard(tmp_path, definition, payments)
        shard.execute("BD")
        first = shard.commit
        done = shard.execute("B")
        assert [o[:3] for o in done.outcomes] == [("B", FAILURE, 2), ("D", SUCCESS, 2)]
        assert done.results.table.to_pylist() == expected_of(payments, "B")
        done = shard.execute("B")
        assert [o[:3] for o in done.outcomes] == [("B", FAILURE, 3), ("D", SUCCESS, 2)]
        assert done.results.table.to_pylist() == expected_of(payments, "B")
        assert first is not None
        assert shard.commit is not None
        assert shard.commit.part.sha256 != first.part.sha256

    @BOTH
    def test_who_succeeds_without_rows_keeps_the_error_of_before(
        self, tmp_path: Path, definition: type[Any]
    ) -> None:
        shard = Shard(tmp_path, definition, [("A", 1, Decimal(1)), ("NOTHING", 1, Decimal(0))])
        shard.execute(["NOTHING"])
        (outcome,) = shard.execute([]).outcomes
        assert outcome[:3] == ("NOTHING", SUCCESS, 2)
        assert outcome.error.startswith("ValueError: NOTHING is bad")

    def test_vectorised_equals_each(self, tmp_path: Path) -> None:
        payments = [(a, n, Decimal(n - 3)) for a in ("A", "B", "C", "Z") for n in range(7)]
        payments.append(("NOTHING", 1, Decimal(0)))
        done = []
        for definition in (Balances, EachBalance):
            (tmp_path / definition.__name__).mkdir()
            shard = Shard(tmp_path / definition.__name__, definition, payments)
            done.append(shard.execute(["B"]))

        def plain(outcome: Outcome) -> Outcome:
            """Without the place where it failed."""
            return outcome._replace(error=outcome.error.split(" (")[0], traceback="")

        vectorised, each = done
        assert vectorised.results.table.to_pylist() == each.results.table.to_pylist()
        assert vectorised.totals == each.totals
        ours = [plain(o) for o in vectorised.outcomes]
        theirs = [plain(o) for o in each.outcomes]
        assert sorted(ours) == sorted(theirs)
        assert {o.component: o.status for o in ours} == {"B": FAILURE, "NOTHING": SUCCESS}

    def test_totals_of_both_sides(self, tmp_path: Path) -> None:
        """A component that gave nothing has no results, nor has one that failed."""
        seen = []

        class Both(Balances):
            def executed_totals(self, executed: Components, results: Components) -> dict[str, int]:
                keys = [component.key[0] for component in executed.each(("account",))]
                sizes = (results.ends() - results.starts).tolist()
                seen.append(dict(zip(keys, sizes, strict=True)))
                return {"both": len(keys)}

            def results_of_failed(self, components: Components, errors: Any) -> pa.Table:
                none = self.execute_components(components.slice(0, 0))
                accounts = components.table.column("account").cast(pa.string())
                rows = {name: [None] * len(accounts) for name in none.column_names}
                return pa.table({**rows, "account": accounts}).cast(none.schema)

        payments = [(a, n, Decimal(1)) for a in "ABC" for n in range(3)]
        payments += [("A1", 1, Decimal(0)), ("Z", 1, Decimal(0))]
        done = Shard(tmp_path, Both, payments).execute(["B"])
        assert done.results.table.column("account").to_pylist().count("B") == 3
        assert seen == [{"A": 3, "A1": 0, "C": 3, "Z": 0}]
        assert done.totals["both"] == 4

    def test_a_function_that_cannot_do_nothing(self, tmp_path: Path) -> None:
        class Careless(Balances):
            def execute_components(self, components: Components) -> pa.Table:
                components.values("account")[0]
                return super().execute_components(components)

        with pytest.raises(
            UserError, match=r"Careless\.execute_components fails where it is given"
        ):
            Shard(tmp_path, Careless, []).execute([])

    def test_results_without_the_key(self, tmp_path: Path) -> None:
        class Keyless(Balances):
            def execute_components(self, components: Components) -> pa.Table:
                return super().execute_components(components).drop_columns("account")

        with pytest.raises(UserError, match=r"Keyless\.execute_components gave no column account"):
            Shard(tmp_path, Keyless, []).execute([])

    @pytest.mark.parametrize(
        ("limit", "components", "fails"),
        [(0, 2000, True), (1500, 2000, False), ("75%", 2000, False), ("5%", 2000, True)],
    )
    def test_how_many_failures_are_looked_for(
        self, tmp_path: Path, limit: int | str, components: int, fails: bool
    ) -> None:
        """A thousand, unless more may fail."""

        class Limited(EachBalance):
            failure_limit = limit

            def execute(self, component: Any) -> Iterator[Record]:
                if component.key[0] < "1400":
                    raise ValueError("bad")
                yield {"number": 1, "balance": Decimal(1), "sign": "+"}

        shard = Shard(tmp_path, Limited, [(f"{n:04}", 1, Decimal(1)) for n in range(components)])
        if fails:
            with pytest.raises(UserError, match="more than 1,000 components failed"):
                shard.execute([])
        else:
            assert shard.execute([]).totals["failed"] == 1400
