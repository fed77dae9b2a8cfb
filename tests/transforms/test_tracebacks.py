"""What a failed call leaves: where it was, on what, and in plain words."""

import json
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ledgerbeam.batch.define.page_process import Page
from ledgerbeam.batch.model.outcomes import Outcome, grouped, outcomes_of, outcomes_table
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.columnar.components import align, sort_components
from ledgerbeam.transforms.concurrency.executor import Executor
from ledgerbeam.transforms.concurrency.retry import Failure, Retry

MOVEMENTS = pa.table({"account": ["A1", "A1", "A2", "A3"], "id": [1, 2, 3, 4]})
BALANCES = pa.table({"account": ["A1", "A2"], "balance": [Decimal(1), Decimal(2)]})


def accounts() -> list[Component]:
    """The accounts A1 to A3, of which the last has no balance."""
    movements, balances = (
        sort_components(table, ("account",), None).components for table in (MOVEMENTS, BALANCES)
    )
    aligned, _ = align(movements, balances, ("account",))
    both = movements._replace(related={"balances": aligned})
    return list(both.each(("account",)))


def failures(function: Callable[[Any], Any], *units: Any) -> list[Failure]:
    """How the function fails for each of the units."""
    results = pa.schema([("value", pa.string())])
    executor = Executor(Retry(tries=1))
    names = [f"unit {number}" for number in range(len(units))]
    executed = executor.execute_each(units, function, names, results)
    return [executed.failed[number] for number in sorted(executed.failed)]


def balance_of(account: Component) -> list[Any]:
    account.related("balances").first("balance")
    return []


def test_a_first_row_is_never_that_of_another_component() -> None:
    """Between two accounts with a balance, and behind the last one."""
    table = pa.table({"account": ["A1", "A2", "A3"]})
    balances = pa.table({"account": ["A1", "A3"], "balance": [1, 3]})
    first, others = (sort_components(t, ("account",), None).components for t in (table, balances))
    aligned, _ = align(first, others, ("account",))
    units = list(first._replace(related={"balances": aligned}).each(("account",)))
    assert units[0].related("balances").first("balance") == 1
    with pytest.raises(IndexError, match=r"^there are no balances for account A2$"):
        units[1].related("balances").first("balance")
    assert units[2].related("balances").first("balance") == 3


def last_balance(account: Component) -> list[Any]:
    return [account.related("balances").values("balance")[-1]]


def test_nothing_at_an_index_is_told_by_input_and_key() -> None:
    (by_first,) = failures(balance_of, *accounts())
    line = "NoRowsError: there are no balances for account A3 (test_tracebacks.py:"
    assert by_first.error.startswith(line)
    (by_index,) = failures(last_balance, accounts()[2])
    assert by_index.error.startswith(
        "IndexError: there are no balances for account A3 (list index out of range) (test_trac"
    )


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (
            lambda account: account.values("amount"),
            "there is no column amount in the component's rows: there is account, id",
        ),
        (
            lambda account: account.related("balances").first("amount"),
            "there is no column amount in balances: there is account, balance",
        ),
        (
            lambda account: account.records()[0]["amount"],
            "there is no column amount in the row: there is account, id",
        ),
        (
            lambda account: account.related("rates"),
            "there is no other input rates: there is balances",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    ask: Callable[[Component], Any], line: str
) -> None:
    (failure,) = failures(ask, accounts()[0])
    assert failure.error.startswith(f"NoColumnError: {line} (test_tracebacks.py:")
    table = Components(MOVEMENTS, pa.array([0]).to_numpy())
    with pytest.raises(KeyError, match="no column amount in the components' rows: there is acc"):
        table.values("amount")


def parsed(account: Component) -> list[Any]:
    return [json.loads(f"{{{row['id']}") for row in account.records()]


def rethrown(account: Component) -> list[Any]:
    for row in account.records():
        try:
            parsed(account)
        except ValueError as error:
            raise RuntimeError(f"id {row['id']}") from error
    return []


def test_a_traceback_has_the_users_own_frames_only() -> None:
    (failure,) = failures(parsed, accounts()[0])
    # Up to Python 3.11 a comprehension has a frame beside that of its function.
    assert failure.traceback.count("File ") == (2 if sys.version_info < (3, 12) else 1)
    assert __file__ in failure.traceback
    assert "in parsed" in failure.traceback
    assert "json.loads(" in failure.traceback
    for other in ("decoder.py", "executor.py"):
        assert other not in failure.traceback
    assert failure.error.rpartition(" (")[2].startswith("test_tracebacks.py:")
    (chained,) = failures(rethrown, accounts()[0])
    cause, _, effect = chained.traceback.partition("which led to:")
    assert "JSONDecodeError: " in cause
    assert effect.endswith("RuntimeError: id 1")


def test_the_record_at_hand() -> None:
    many, one = failures(rethrown, accounts()[0], accounts()[1])
    assert many.record == {"account": "A1", "id": "1"}
    assert one.record == {"account": "A2", "id": "3"}
    (unknown,) = failures(lambda account: 1 / 0, accounts()[0])
    assert unknown.record is None
    (item,) = failures(lambda item: 1 / 0, {"id": 7, "note": None})
    assert item.record == {"id": "7", "note": None}


def test_of_a_page_it_is_the_item_at_hand() -> None:
    def execute(page: Page) -> list[Any]:
        # From Python 3.12 on, what a comprehension is at can't be seen from outside.
        for item in page.items:
            if item["id"] > 1:
                return [item["amount"]]
        return []

    of_table = Page("1..3", table=pa.table({"id": [1, 2, 3], "note": ["a", None, "c"]}))
    of_cursor = Page("0", items=[{"id": 1}, {"id": 2}])
    by_table, by_cursor = failures(execute, of_table, of_cursor)
    assert by_table.error.startswith("NoColumnError: there is no column amount in the row: there ")
    assert (by_table.record, by_cursor.record) == ({"id": "2", "note": None}, {"id": "2"})
    (by_item,) = failures(lambda item: item["amount"], of_table.item(1, "2"))
    assert by_item.error.startswith("NoColumnError: there is no column amount in the row: there ")
    assert by_item.record == {"id": "2", "note": None}


def test_secrets_are_in_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ledgerbeam.io.secrets import Secret

    monkeypatch.setenv("TEST_TOKEN", "hunter2-and-more")
    token = Secret("env:TEST_TOKEN").resolve()

    def leak(item: Any) -> list[Any]:
        raise ValueError(f"no {item['token']}")

    (failure,) = failures(leak, {"token": token})
    assert "hunter2" not in repr(failure)


def test_of_many_components_in_one_call_each_has_its_own() -> None:
    def execute(components: Components) -> None:
        for account in components.values("account"):
            if account in ("A2", "A3"):
                raise ValueError(f"{account} is bad")

    components = sort_components(MOVEMENTS, ("account",), None).components
    executed = Executor(Retry(tries=1)).execute_tables(components, execute, ["A1", "A2", "A3"])
    assert [failure.record for failure in executed.failed.values()] == [
        {"account": "A2", "id": "3"},
        {"account": "A3", "id": "4"},
    ]
    assert all("in execute" in failure.traceback for failure in executed.failed.values())


def test_outcomes_are_stored_with_all_that_and_grouped_by_error() -> None:
    found = failures(balance_of, accounts()[2]) + failures(parsed, *accounts())
    outcomes = [
        Outcome(
            f"A{number}", ComponentStatus.FAILURE, 1, each.error, "", each.traceback, each.record
        )
        for number, each in enumerate(found)
    ]
    plain = Outcome("B", ComponentStatus.UNKNOWN, 1, "its one call was begun")
    assert outcomes_of(outcomes_table([*outcomes, plain])) == [*outcomes, plain]
    groups = grouped([*outcomes, plain])
    assert [(group.size, group.first.component) for group in groups] == [
        (3, "A1"),
        (1, "A0"),
        (1, "B"),
    ]
    assert groups[0].text.startswith("FAILURE: component A1 and 2 more: JSONDecodeError: ")
    before = outcomes_table([plain]).drop_columns(["traceback", "record", "code"])
    assert outcomes_of(before) == [plain]
