"""Runs by any filter: what the database finds is what plain Python finds, page by page."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.racers import NOON, end, play, start, submitted

from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry import migrations, search
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.schema import run_parameter
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.io.errors import ParameterError

LONG = "é" * 101
VALUES: Sequence[Any] = ("", "a", "A", "a%", "1", 1, 1.5, True, None, ["a", 1], {"a": "ä"}, LONG)
ERRORS = ("no prices of A", "no prices of a", "50% off_by", "disk full")
NAMES = ("book", "note")


def recorded(registry: Registry) -> list[RunRecord]:
    """Runs of every kind that filters tell apart, newest first."""
    ids = []
    for number, value in enumerate([*VALUES, *VALUES]):
        parameters = {"book": value, "note": VALUES[number // 3]} if number % 5 else {"note": value}
        run = submitted(
            registry,
            process="ab"[number % 2],
            submitted_by=("ada", "bob", "Ada")[number % 3],
            # Some at the same moment: then they are in the order of their ids.
            submitted_at=NOON + timedelta(seconds=number // 2),
            parameters=parameters,
        )
        ids.append(run.id)
        if number % 4 == 0:
            assert start(registry, run.id)
            error = ERRORS[number // 4 % len(ERRORS)]
            ended: dict[str, Any] = {
                "outcome": AttemptOutcome.FAILURE,
                "to": RunStatus.FAILURE,
                "error": error,
            }
            assert end(registry, run.id, **ended)
    runs = [registry.get(run_id) for run_id in ids]
    return sorted(runs, key=lambda run: (run.submitted_at, run.id), reverse=True)


def expected(runs: Sequence[RunRecord], wanted: RunFilter) -> list[str]:
    """The ids of those that a filter means."""

    def text(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    def fits(run: RunRecord) -> bool:
        given = {n: text(v) for n, v in run.parameters.items()} | {"run_number": "1", "reason": ""}
        return (
            wanted.process in (None, run.process)
            and wanted.status in (None, run.status)
            and wanted.requester in (None, run.submitted_by)
            and (wanted.since is None or run.submitted_at >= wanted.since)
            and all(given.get(name) == value for name, value in wanted.where.items())
            and (not wanted.error or wanted.error in (run.error or ""))
        )

    return [run.id for run in runs if fits(run)]


filters = st.builds(
    RunFilter,
    process=st.sampled_from([None, "a", "b", "c"]),
    status=st.sampled_from([None, RunStatus.INITIATED, RunStatus.FAILURE, RunStatus.SUCCESS]),
    requester=st.sampled_from([None, "ada", "bob", "Ada", "eve"]),
    since=st.sampled_from([None, NOON, NOON + timedelta(seconds=5)]),
    where=st.dictionaries(
        st.sampled_from([*NAMES, "run_number", "reason"]),
        st.sampled_from(["", "a", "A", "a%", "1", "1.5", "true", '["a", 1]', LONG, LONG[1:]]),
        max_size=3,
    ),
    error=st.sampled_from([None, "", "prices of A", "prices", "%", "_", "full", "nothing"]),
)


class TestAnyFilter:
    @pytest.mark.parametrize("looked_at", [1, 3, 3_000])
    def test_it_finds_what_plain_python_finds(
        self, registry: Registry, looked_at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "LOOKED_AT", looked_at)
        runs = recorded(registry)

        @settings(max_examples=150)
        @given(filters, st.sampled_from([None, 1, 2, 100]))
        def check(wanted: RunFilter, limit: int | None) -> None:
            ids = expected(runs, wanted)
            assert [run.id for run in registry.runs(wanted, limit)] == ids[:limit]
            before, paged = None, []
            while True:
                page = registry.search(wanted, limit or 4, before)
                paged += [run.id for run in page.runs]
                assert len(page.runs) <= (limit or 4)
                if page.next is None:
                    break
                assert (page.looked_back_to is None) or len(page.runs) < (limit or 4)
                before = page.next
            assert paged == ids

        check()

    def test_a_name_that_no_run_has_is_told(self, registry: Registry) -> None:
        submitted(registry, process="a", parameters={"book": "x"})
        assert registry.runs(RunFilter("b", where={"bok": "x"})) == []
        for wanted in (RunFilter(where={"bok": "x"}), RunFilter("a", where={"bok": "x"})):
            with pytest.raises(ParameterError, match="no run has a parameter bok"):
                registry.runs(wanted)
        # What others have is nothing that whoever may see only these runs is told.
        submitted(registry, process="b", parameters={"bok": "x"})
        with pytest.raises(ParameterError, match="no run has a parameter bok"):
            registry.runs(RunFilter("a", where={"bok": "x"}))
        assert len(registry.runs(RunFilter(where={"bok": "x"}))) == 1

    def test_what_all_runs_have_is_no_unknown_name(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ledgerbeam.batch.registry.parameters._LOOKED_AT", 1)
        submitted(registry, process="a")
        submitted(registry, process="b")
        for process in "ab":
            assert registry.runs(RunFilter(process, where={"reason": "none of them"})) == []

    def test_a_parameter_that_is_corrected_is_found_as_it_is(self, registry: Registry) -> None:
        run = play(registry, submitted(registry, parameters={"book": "x"}).id, "start fail")
        registry.move(
            run.id,
            RunStatus.EXECUTING,
            who="ada",
            at=NOON,
            why="a slip",
            next_kind=AttemptKind.RETRY,
            parameters={"book": "y"},
        )
        assert registry.runs(RunFilter(where={"book": "x"})) == []
        (found,) = registry.runs(RunFilter(where={"book": "y"}))
        assert found.id == run.id


class TestVersion7:
    """Runs of the version before are found, and what its programs record meanwhile."""

    def test_runs_that_are_there_are_found_after_the_migration(
        self, registry: Registry, registry_url: str, engine: sa.Engine, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("ledgerbeam.batch.registry.migrations.versions.v8._RUNS", 7)
        runs = recorded(registry)
        registry.close()
        with engine.begin() as connection:
            command.downgrade(config(connection), "7")
            assert not sa.inspect(connection).has_table("run_parameter")
            # One that is damaged stops nobody, and is told of where it is read.
            damage = sa.text("UPDATE run SET parameters = '7' WHERE id = :id")
            connection.execute(damage, {"id": runs[0].id})
        with Registry.open(registry_url) as migrated:
            for value in ("a", "1", '["a", 1]', LONG):
                for name in NAMES:
                    wanted = RunFilter(where={name: value})
                    ids = [each for each in expected(runs, wanted) if each != runs[0].id]
                    assert [run.id for run in migrated.runs(wanted)] == ids
            with engine.connect() as connection:
                missed = sa.text("SELECT count(*) FROM run WHERE NOT listed")
                assert connection.execute(missed).scalar() == 0

    def test_what_its_programs_record_and_correct_is_found(
        self, registry: Registry, engine: sa.Engine
    ) -> None:
        kept = submitted(registry, parameters={"book": "x"})
        old = submitted(registry, parameters={"book": "x"})
        with engine.begin() as connection:
            # A program of version 7 knows neither the table nor the column.
            mine = run_parameter.c.run_id == old.id
            connection.execute(run_parameter.delete().where(mine))
            connection.execute(sa.text("UPDATE run SET parameters = parameters"))
        assert [run.id for run in registry.runs(RunFilter(where={"book": "x"}))] == [
            run.id for run in registry.runs()
        ]
        with engine.begin() as connection:
            changed = sa.text("UPDATE run SET parameters = :new WHERE id = :id")
            connection.execute(changed, {"new": '{"book": "y"}', "id": kept.id})
        assert [run.id for run in registry.runs(RunFilter(where={"book": "y"}))] == [kept.id]
        assert [run.id for run in registry.runs(RunFilter(where={"book": "x"}))] == [old.id]

    def test_a_row_that_is_inserted_without_the_column_is_not_listed_yet(
        self, registry: Registry, engine: sa.Engine
    ) -> None:
        run = submitted(registry, parameters={"book": "x"})
        with engine.connect() as connection:
            listed = sa.text("SELECT listed FROM run WHERE id = :id")
            assert connection.execute(listed, {"id": run.id}).scalar()
            column = next(c for c in sa.inspect(engine).get_columns("run") if c["name"] == "listed")
        assert column["default"] in ("0", "false")


def config(connection: sa.Connection) -> Config:
    """Alembic's, for the registry's migrations."""
    found = Config(attributes={"connection": connection})
    found.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return found
