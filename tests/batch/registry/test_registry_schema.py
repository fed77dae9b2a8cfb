"""The registry as a database: opened, migrated, guarded by constraints and triggers."""

import re
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError
from tests.support.postgres import PostgresServer
from tests.support.racers import play, start, submitted

from ledgerbeam.batch.model.run import AttemptKind
from ledgerbeam.batch.model.status import MOVES
from ledgerbeam.batch.registry import migrations
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.schema import HEAD, metadata, whole_metadata
from ledgerbeam.io.errors import RegistryUnavailableError, UserError

ROOT = Path(__file__).parents[3]


class TestOpening:
    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("", "isn't one"),
            ("/tmp/registry.db", "isn't one"),
            ("postgresql://ada:s3cret@host:port/x", "isn't one"),
            ("mysql://ada:s3cret@host/x", "by mysql"),
            ("sqlite://", "names no file"),
            ("sqlite:///:memory:", "names no file"),
            ("sqlite:////tmp/registry.db?timeout=abc", "abc.*behind the \\?"),
            ("sqlite:////tmp/registry.db?timeout=5&timeout=6", "tuple.*behind the \\?"),
            ("sqlite:////tmp/registry.db?time=5", "'time'.*behind the \\?"),
            ("postgresql://127.0.0.1:1/x?connect_timeout=abc", "abc.*behind the \\?"),
            ("postgresql://127.0.0.1:1/x?nonsense=1", "nonsense.*behind the \\?"),
            ("sqlite:////no/such/folder/registry.db", "check that its folder exists"),
            ("postgresql://ada:s3cret@127.0.0.1:1/x?application_name=s3cret", "server runs"),
            ("postgresql+psycopg://127.0.0.1:1/x?password=s3cret", "server runs"),
        ],
    )
    def test_a_database_out_of_reach_is_one_line_no_password(self, url: str, says: str) -> None:
        with pytest.raises(UserError, match=says) as caught:
            Registry.open(url)
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_one_that_is_locked_is_told_as_such(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ledgerbeam.batch.registry.database.TIMEOUT", 0.2)
        with Registry.open(f"sqlite:///{tmp_path}/registry.db") as registry:
            writer = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(RegistryUnavailableError, match="is locked: another") as caught:
                submitted(registry)
            writer.close()
        assert "fuser" in str(caught.value)
        assert "folder" not in str(caught.value)

    def test_a_server_that_shuts_down_meanwhile_is_one_line(self, postgres: PostgresServer) -> None:
        with (
            Registry.open(postgres.create_database()) as registry,
            pytest.raises(RegistryUnavailableError, match="terminating connection") as caught,
            registry.database.reading() as connection,
        ):
            connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert "\n" not in str(caught.value)

    def test_a_server_that_refuses_is_one_line_without_password(
        self, postgres: PostgresServer
    ) -> None:
        url = postgres.url("nowhere").replace("postgres@", "postgres:nowhere-s3cret@")
        with pytest.raises(RegistryUnavailableError, match='"nowhere" does not exist') as caught:
            Registry.open(url)
        assert "s3cret" not in str(caught.value)
        assert f"postgres:***@127.0.0.1:{postgres.port}/nowhere" in str(caught.value)

    def test_a_file_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "registry.db").write_text("id,client_code\n" * 100)
        with pytest.raises(RegistryUnavailableError, match="not a database"):
            Registry.open(f"sqlite:///{tmp_path}/registry.db")

    def test_a_newer_schema_is_refused(
        self, registry: Registry, registry_url: str, engine: sa.Engine
    ) -> None:
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '999'"))
        with pytest.raises(UserError, match=r"version 999.*upgrade ledgerbeam"):
            Registry.open(registry_url)

    def test_what_is_on_record_is_there_when_it_is_opened_again(
        self, registry: Registry, registry_url: str
    ) -> None:
        run = submitted(registry)
        registry.close()
        with Registry.open(registry_url) as again:
            assert again.get(run.id) == run

    def test_sqlite_logs_ahead_so_that_readers_do_not_wait(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/registry.db"
        with Registry.open(url) as registry, sa.create_engine(url).connect() as writer:
            assert writer.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
            run = submitted(registry)
            writer.exec_driver_sql("BEGIN IMMEDIATE")
            assert registry.get(run.id) == run


class TestSchema:
    def test_the_newest_migration_is_the_head(self) -> None:
        assert ScriptDirectory.from_config(_config()).get_current_head() == HEAD

    def test_migrations_make_the_tables_that_the_code_uses(
        self, engine: sa.Engine, empty_database: sa.Engine
    ) -> None:
        whole_metadata().create_all(empty_database)
        assert _described(engine) == _described(empty_database)

    def test_legal_moves_are_those_of_the_code(self, engine: sa.Engine) -> None:
        with engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT from_status, to_status FROM legal_move"))
            assert {tuple(row) for row in rows} == {
                (old.value, new.value) for old, after in MOVES.items() for new in after
            }

    @pytest.mark.parametrize(
        "statement",
        [
            # A move that isn't legal: no run fails once it has succeeded.
            "INSERT INTO event (run_id, at, who, type, from_status, to_status, follows, why, "
            "detail, delivered) SELECT id, submitted_at, 'me', 'status', 'SUCCESS', 'FAILURE', "
            "last_move, '', '{}', false FROM run",
            # One that is, but doesn't begin where the run stands.
            "INSERT INTO event (run_id, at, who, type, from_status, to_status, follows, why, "
            "detail, delivered) SELECT id, submitted_at, 'me', 'status', 'FAILURE', 'EXECUTING', "
            "last_move, '', '{}', false FROM run",
            # One that doesn't follow any other.
            "INSERT INTO event (run_id, at, who, type, from_status, to_status, follows, why, "
            "detail, delivered) SELECT id, submitted_at, 'me', 'status', 'EXECUTING', 'SUCCESS', "
            "NULL, '', '{}', false FROM run",
            # A second beginning.
            "INSERT INTO event (run_id, at, who, type, to_status, why, detail, delivered) "
            "SELECT id, submitted_at, 'me', 'submitted', 'INITIATED', '', '{}', false FROM run",
            # A beginning with another status than the first one.
            "INSERT INTO event (run_id, at, who, type, to_status, why, detail, delivered) "
            "SELECT id, submitted_at, 'me', 'submitted', 'SUCCESS', '', '{}', false FROM run",
            # A second move after the same one.
            "INSERT INTO event (run_id, at, who, type, from_status, to_status, follows, why, "
            "detail, delivered) SELECT run_id, at, who, type, from_status, to_status, follows, "
            "why, detail, delivered FROM event WHERE to_status = 'EXECUTING'",
            # A status without its event.
            "UPDATE run SET status = 'SUCCESS'",
            # An event of no run.
            "INSERT INTO event (run_id, at, who, type, why, detail, delivered) "
            "SELECT 'x', submitted_at, 'me', 'rate', '', '{}', false FROM run",
            # Two live attempts.
            "INSERT INTO attempt (run_id, number, launcher, lease_until, deadline, runner, kind, "
            "started_at) SELECT run_id, 2, 'me', lease_until, deadline, runner, kind, started_at "
            "FROM attempt",
            # An attempt that has ended without an outcome.
            "UPDATE attempt SET ended_at = started_at",
            "DELETE FROM event",
        ],
    )
    def test_the_database_itself_refuses(
        self, registry: Registry, engine: sa.Engine, statement: str
    ) -> None:
        run = submitted(registry)
        assert start(registry, run.id)
        before = registry.get(run.id), registry.events(run.id)
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(sa.text(statement))
        assert (registry.get(run.id), registry.events(run.id)) == before


class TestVersion1:
    """A database of the first version is opened by this one."""

    HISTORIES: ClassVar = {
        "": "first",
        "start": "first",
        "start succeed": "first",
        "start fail": "first",
        "start fail retry": "retry",
        "start fail retry start": "retry",
        "start fail retry start fail restart": "restart",
        "cancel restart": "restart",
        "start lose": "reconcile",
        "start lose start": "reconcile",
        "start lose start lose start give-up": "reconcile",
        "start lose start give-up retry": "retry",
        "start fail retry start lose start": "reconcile",
    }
    """Histories of runs, and why the attempt is made that comes next or is the last."""

    def test_its_runs_go_on_where_they_stood(
        self,
        registry: Registry,
        registry_url: str,
        engine: sa.Engine,
        empty_database: sa.Engine,
    ) -> None:
        runs = [play(registry, submitted(registry).id, steps) for steps in self.HISTORIES]
        assert [run.next_kind for run in runs] == list(self.HISTORIES.values())
        events = [registry.events(run.id) for run in runs]
        schema = _described(engine)
        known = {*metadata.tables, "alembic_version"}
        registry.close()
        with engine.begin() as connection:
            command.downgrade(_config(connection), "6")
            cascade = " CASCADE" if engine.dialect.name == "postgresql" else ""
            for name in {*sa.inspect(connection).get_table_names()} - known:
                connection.execute(sa.text(f"DROP TABLE {name}{cascade}"))
            connection.execute(sa.text("DROP TABLE audit_link"))
            connection.execute(sa.text("ALTER TABLE run DROP COLUMN next_kind"))
            connection.execute(sa.text("ALTER TABLE run DROP COLUMN launcher_started_at"))
            connection.execute(sa.text("ALTER TABLE run DROP COLUMN launcher_process"))
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '1'"))
        with empty_database.begin() as connection:
            command.upgrade(_config(connection), "1")
        assert _described(engine) == _described(empty_database)
        with Registry.open(registry_url) as opened:
            assert [opened.get(run.id) for run in runs] == runs
            assert [opened.events(run.id) for run in runs] == events
            waiting = runs[list(self.HISTORIES).index("start fail retry")].id
            assert play(opened, waiting, "start").attempts[-1].kind is AttemptKind.RETRY
        assert _described(engine) == schema


def test_versions_4_and_5_can_be_taken_back(
    registry: Registry, registry_url: str, engine: sa.Engine
) -> None:
    run = submitted(registry)
    schema = _described(engine)
    registry.close()
    with engine.begin() as connection:
        command.downgrade(_config(connection), "4")
        assert not sa.inspect(connection).has_table("audit_link")
        command.downgrade(_config(connection), "3")
        names = {column["name"] for column in sa.inspect(connection).get_columns("run")}
        assert not {"launcher_started_at", "launcher_process"} & names
    with Registry.open(registry_url) as again:
        assert again.get(run.id) == run
    assert _described(engine) == schema


@pytest.mark.parametrize(
    "damage",
    [
        "parameters = 'broken'",
        "reason = x'00ff'",
        "run_number = x'00'",
        f'parameters = \'{{"{"n" * 100}1": 1, "{"n" * 100}2": 1}}\'',
    ],
    ids=["parameters", "reason", "number", "long names"],
)
def test_a_damaged_run_keeps_no_registry_from_a_newer_version(tmp_path: Path, damage: str) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    with Registry.open(url) as registry:
        submitted(registry)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        command.downgrade(_config(connection), "7")
        connection.exec_driver_sql(f"UPDATE run SET {damage}")
    engine.dispose()
    with Registry.open(url) as registry:
        new = submitted(registry)
        assert registry.get(new.id) == new


@pytest.fixture
def empty_database(engine: sa.Engine, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """Another database, of the kind of the registry's."""
    url = f"sqlite:///{request.getfixturevalue('tmp_path')}/other.db"
    if engine.dialect.name == "postgresql":
        url = request.getfixturevalue("new_schema")()
    empty = sa.create_engine(url)
    yield empty
    empty.dispose()


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def _described(engine: sa.Engine) -> Any:
    inspector = sa.inspect(engine)
    described = {}
    for table in {*metadata.tables} & {*inspector.get_table_names()}:
        described[table] = {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)
            ],
            "key": inspector.get_pk_constraint(table),
            "foreign keys": _sorted(inspector.get_foreign_keys(table)),
            "unique": _sorted(inspector.get_unique_constraints(table)),
            "checks": _sorted(inspector.get_check_constraints(table)),
            "indexes": _sorted(inspector.get_indexes(table)),
        }
    return described


def _sorted(items: list[Any]) -> list[str]:
    # Objects such as an index's condition compare by what they say.
    return sorted(re.sub(r" object at 0x\w+", "", repr(_plain(item))) for item in items)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    return str(value) if isinstance(value, sa.TextClause) else value


def test_it_is_opened_without_beam(tmp_path: Path) -> None:
    code = (
        "import sys; from ledgerbeam.batch.registry.registry import Registry; "
        f"Registry.open('sqlite:///{tmp_path}/r.db'); print('apache_beam' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.slow
def test_a_wheel_brings_its_migrations(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import ledgerbeam.batch.registry.registry as r; "
        f"print(r.Registry.open('sqlite:///{tmp_path}/r.db').runs(), r.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"[] {tmp_path}/installed/ledgerbeam/batch/registry/registry.py")
