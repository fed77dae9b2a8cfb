"""Rows of the registry that aren't as it has written them."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.racers import NOON, start, submitted

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.schema import metadata
from ledgerbeam.io.errors import DatabaseError


class TestDamage:
    def test_a_damaged_row_is_one_line_and_costs_no_other_run(
        self, registry: Registry, engine: sa.Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        runs = [submitted(registry, instance=f"2026-11-{day}") for day in (10, 11)]
        run, event = metadata.tables["run"], metadata.tables["event"]
        with engine.begin() as connection:
            connection.execute(
                sa.update(run).where(run.c.id == runs[0].id).values(options=["no options"])
            )
        assert [each.id for each in registry.open_runs()] == [runs[1].id]
        assert f"run {runs[0].id}: damaged in the registry: " in caplog.text
        for ask in (lambda: registry.get(runs[0].id), registry.runs):
            with pytest.raises(DatabaseError, match=f"^run {runs[0].id}: damaged") as raised:
                ask()
            assert "\n" not in str(raised.value)
        with engine.begin() as connection:
            connection.execute(
                sa.update(event).where(event.c.run_id == runs[0].id).values(detail=["no detail"])
            )
        assert [each.run for each in registry.undelivered(10)] == [runs[1].id]
        with pytest.raises(DatabaseError, match=r"^event \d+: damaged"):
            registry.events(runs[0].id)

    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [
            ("run", "launcher_started_at", "no time"),
            ("run", "next_kind", "no kind"),
            ("run", "run_number", ""),
            ("attempt", "lease_until", "no time"),
        ],
    )
    def test_what_is_damaged_is_not_changed(
        self, tmp_path: Path, table: str, column: str, value: str
    ) -> None:
        file = tmp_path / "registry.db"
        with Registry.open(f"sqlite:///{file}") as registry:
            run = submitted(registry)
            start(registry, run.id)
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("PRAGMA ignore_check_constraints = ON")
                connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
            with pytest.raises(DatabaseError, match="damaged in the registry: ") as raised:
                start(registry, run.id, 2)
            assert "\n" not in str(raised.value)

    def test_rows_that_do_not_fit_together_are_one_line(self, tmp_path: Path) -> None:
        file = tmp_path / "registry.db"
        with Registry.open(f"sqlite:///{file}") as registry:
            run = submitted(registry)
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("UPDATE event SET sequence = 0")
            with pytest.raises(DatabaseError, match="don't fit together: restore it") as raised:
                registry.move(run.id, RunStatus.PAUSED, who="ada@bank", at=NOON)
            assert "\n" not in str(raised.value)

    def test_an_id_that_is_no_text_is_left_out(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "registry.db"
        with Registry.open(f"sqlite:///{file}") as registry:
            gone, kept = submitted(registry), submitted(registry, business_date="2026-11-21")
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("UPDATE run SET id = x'ff' WHERE id = ?", (gone.id,))
            assert [run.id for run in registry.open_runs()] == [kept.id]
            assert "damaged in the registry: its id is no text" in caplog.text
            with pytest.raises(DatabaseError, match="its id is no text"):
                registry.runs()
