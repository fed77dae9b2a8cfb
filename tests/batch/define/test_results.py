"""Results with further tables: put together by component, and what a definition may say of them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.processes import Balances, EachBalance

from ledgerbeam.batch.define.results import Results, joined, replaced
from ledgerbeam.batch.keyed.shard import checked_results
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components


def rows(*pairs: tuple[str, int]) -> pa.Table:
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    return pa.table({"key": pa.array(keys, pa.string()), "value": pa.array(values, pa.int64())})


def encoded(results: Results) -> Results:
    return results.each(
        lambda table: table.set_column(0, "key", table.column("key").dictionary_encode())
    )


class TestComponents:
    def test_rows_of_further_tables_stand_beside_their_component(self) -> None:
        results = Results(rows(("a", 1), ("b", 2), ("c", 3)), {"log": rows(("a", 4), ("c", 5))})
        log = results.components(("key",)).related["log"]
        assert log.starts.tolist() == [0, 1, 1]

    def test_a_component_that_is_in_a_further_table_alone_is_refused(self) -> None:
        results = Results(rows(("a", 1)), {"log": rows(("a", 4), ("b", 5))})
        with pytest.raises(UserError, match="log has rows of b, for which there are no results"):
            results.components(("key",))


keyed = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.integers(0, 9), min_size=1))


@given(keyed, keyed, st.sets(st.sampled_from("abcdefgh")))
def test_replacing_is_taking_out_and_putting_in(
    before: dict[str, list[int]], now: dict[str, list[int]], names: set[str]
) -> None:
    now = {key: values for key, values in now.items() if key in names or key not in before}

    def table(by_key: dict[str, list[int]]) -> pa.Table:
        return rows(*((key, value) for key in sorted(by_key) for value in by_key[key]))

    # A further table with the first value of every second key.
    def results(by_key: dict[str, list[int]]) -> Results:
        log = {key: values[:1] for key, values in by_key.items() if key in "aceg"}
        return Results(table(by_key), {"log": table(log)})

    expected = {key: values for key, values in before.items() if key not in names} | now
    found = replaced(results(before), names, [encoded(results(now))], ("key",))
    assert found.table.to_pylist() == table(expected).to_pylist()
    assert found.tables["log"].to_pylist() == results(expected).tables["log"].to_pylist()
    assert pa.types.is_dictionary(found.table.schema.field("key").type)


def test_pieces_are_joined_in_their_order() -> None:
    pieces = [Results(rows(("a", n)), {"log": rows(("a", -n))}) for n in (2, 1)]
    whole = joined(pieces)
    assert whole.table["value"].to_pylist() == [2, 1]
    assert whole.tables["log"]["value"].to_pylist() == [-2, -1]


class TestDefinitions:
    def test_execute_has_one_table(self) -> None:
        with pytest.raises(TypeError, match="tables names entries: write execute_components"):
            type("Wrong", (EachBalance,), {"tables": ("entries",)})

    @pytest.mark.parametrize(
        ("tables", "given", "message"),
        [
            (("log",), rows(("a", 1)), "gave the tables none beside .* names log"),
            ((), Results(rows(("a", 1)), {"log": rows()}), "gave the tables log beside .* none"),
            (
                ("log",),
                Results(rows(("a", 1)), {"log": pa.table({"value": [1]})}),
                "gave no column key",
            ),
        ],
    )
    def test_what_is_given_is_what_is_named(
        self, tables: tuple[str, ...], given: Any, message: str
    ) -> None:
        class Process(Balances):
            key = ("key",)

        Process.tables = tables
        with pytest.raises(UserError, match=message):
            checked_results(Process.__new__(Process), given)


def test_components_without_rows_have_empty_tables() -> None:
    results = Results(rows(), {"log": rows()})
    components = results.components(("key",), np.zeros(0, np.int64))
    assert isinstance(components, Components)
    assert components.related["log"].table.num_rows == 0
