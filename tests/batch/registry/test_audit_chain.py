"""The audit's hash chain: what was changed behind the registry's back is found."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.json_lines import lines_of
from tests.support.racers import start, submitted
from typer.testing import CliRunner

from ledgerbeam.batch.cli.app import app
from ledgerbeam.batch.registry import audit_chain
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.schema import audit_link, event
from ledgerbeam.io.errors import AuditMismatchError


@pytest.fixture
def sealed(registry: Registry) -> str:
    """The hash of the last of several events."""
    for _ in range(3):
        assert start(registry, submitted(registry).id)
    assert registry.seal_audit() == 6
    return registry.verify_audit().head


def change(engine: sa.Engine, *statements: Any) -> None:
    """What somebody does who may change tables, and takes out of the way what guards them."""
    # Without foreign keys, which each connection to SQLite has to ask for.
    with sa.create_engine(engine.url).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SET session_replication_role = replica"))
        else:
            names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for name in connection.scalars(sa.text(names)).all():
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        for statement in statements:
            connection.execute(statement)


def sequence_of(engine: sa.Engine, number: int) -> int:
    with engine.begin() as connection:
        query = sa.select(audit_link.c.sequence).where(audit_link.c.number == number)
        return int(connection.scalars(query).one())


def test_events_are_sealed_once_and_in_their_order(registry: Registry, sealed: str) -> None:
    assert registry.verify_audit() == (6, 0, sealed)
    submitted(registry)
    assert registry.verify_audit() == (6, 1, sealed)
    assert (registry.seal_audit(), registry.seal_audit()) == (1, 0)
    later = registry.verify_audit(sealed)
    assert (later.entries, later.unsealed) == (7, 0)
    assert later.head != sealed


def test_an_empty_registry_has_nothing_to_show(registry: Registry) -> None:
    assert registry.seal_audit() == 0
    assert registry.verify_audit() == (0, 0, "0" * 64)


def test_it_is_sealed_in_batches(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, sealed: str
) -> None:
    monkeypatch.setattr(audit_chain, "BATCH", 2)
    for _ in range(5):
        submitted(registry)
    assert registry.seal_audit() == 5
    assert registry.verify_audit(sealed).entries == 11


def test_of_several_who_seal_at_once_each_event_has_one_place(registry: Registry) -> None:
    for _ in range(20):
        submitted(registry)
    with ThreadPoolExecutor(4) as pool:
        sealed = [pool.submit(registry.seal_audit) for _ in range(4)]
    assert sum(each.result() for each in sealed) == 20
    assert registry.verify_audit().entries == 20


def test_that_listeners_were_notified_is_no_change(registry: Registry, sealed: str) -> None:
    waiting = [each.sequence for each in registry.undelivered(100)]
    registry.mark_delivered(waiting)
    assert registry.verify_audit(sealed).entries == 6


@pytest.mark.parametrize(
    "values",
    [
        {"who": "somebody@else"},
        {"why": "another reason"},
        {"at": datetime(2026, 11, 1, tzinfo=UTC)},
        {"detail": {"approved": True}},
        {"attempt": 7},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_change_is_found(
    registry: Registry, sealed: str, engine: sa.Engine, values: dict[str, Any]
) -> None:
    sequence = sequence_of(engine, 4)
    change(engine, sa.update(event).where(event.c.sequence == sequence).values(values))
    with pytest.raises(AuditMismatchError, match=f"event {sequence} or its hash was changed") as at:
        registry.verify_audit()
    assert at.value.sequence == sequence


def test_what_is_removed_is_found(registry: Registry, sealed: str, engine: sa.Engine) -> None:
    sequence = sequence_of(engine, 6)
    change(engine, sa.delete(event).where(event.c.sequence == sequence))
    with pytest.raises(AuditMismatchError, match=f"event {sequence} was removed"):
        registry.verify_audit()
    # With its place in the chain it isn't missed, but by who has kept the hash.
    change(engine, sa.delete(audit_link).where(audit_link.c.number == 6))
    assert registry.verify_audit().entries == 5
    with pytest.raises(AuditMismatchError, match=f"none of 5 entries has the hash {sealed}"):
        registry.verify_audit(sealed)


ACT = """
INSERT INTO audit (at, who, action, kind, subject, why, detail)
VALUES ('2026-11-20 09:00:00', 'ada', 'hold', 'counting', 'counting', 'a storm', '{}')
"""


def test_what_the_service_has_recorded_is_covered(
    registry: Registry, sealed: str, engine: sa.Engine
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(ACT))
    assert registry.verify_audit().unsealed == 1
    assert registry.seal_audit() == 1
    assert registry.verify_audit(sealed).entries == 7
    change(engine, sa.text("UPDATE audit SET why = 'no storm'"))
    with pytest.raises(AuditMismatchError, match="audit 1 or its hash was changed") as at:
        registry.verify_audit()
    assert (at.value.source, at.value.sequence) == ("audit", 1)
    change(engine, sa.text("DELETE FROM audit"))
    with pytest.raises(AuditMismatchError, match="audit 1 was removed"):
        registry.verify_audit()


def test_an_entry_of_a_table_that_is_unknown_is_found(
    registry: Registry, sealed: str, engine: sa.Engine
) -> None:
    change(engine, sa.update(audit_link).where(audit_link.c.number == 2).values(source="other"))
    with pytest.raises(AuditMismatchError, match=r"other \d+ was removed"):
        registry.verify_audit()


def test_a_place_that_is_missing_is_found(
    registry: Registry, sealed: str, engine: sa.Engine
) -> None:
    change(engine, sa.delete(audit_link).where(audit_link.c.number == 3))
    with pytest.raises(AuditMismatchError, match="entry 3 is missing"):
        registry.verify_audit()


def test_hashes_that_were_made_anew_are_not_the_one_that_was_kept(
    registry: Registry, sealed: str, engine: sa.Engine
) -> None:
    sequence = sequence_of(engine, 2)
    forged = sa.update(event).where(event.c.sequence == sequence).values(why="approved by nobody")
    change(engine, forged, sa.delete(audit_link))
    with pytest.raises(AuditMismatchError, match=r"event \d+ was sealed, and its hash was removed"):
        registry.verify_audit()
    change(engine, sa.update(event).values(sealed=False))
    assert registry.seal_audit() == 6
    assert registry.verify_audit().entries == 6
    with pytest.raises(AuditMismatchError, match="none of 6 entries has the hash"):
        registry.verify_audit(sealed)


def test_what_another_version_has_sealed_is_not_sealed_twice(
    registry: Registry, sealed: str, engine: sa.Engine
) -> None:
    change(engine, sa.update(event).values(sealed=False))  # which doesn't mark what it seals
    submitted(registry)
    assert registry.seal_audit() == 1
    assert registry.verify_audit(sealed).entries == 7
    with engine.connect() as connection:
        assert all(connection.scalars(sa.select(event.c.sealed)))


class TestCommand:
    def test_it_prints_the_hash_and_takes_it(
        self, registry: Registry, registry_url: str, sealed: str
    ) -> None:
        submitted(registry)
        command = ["audit", "--verify", f"--registry={registry_url}"]
        shown = dict(
            line.split("\t") for line in CliRunner().invoke(app, command).output.splitlines()
        )
        assert shown == {
            "entries as they were recorded": "6",
            "entries not sealed yet": "1",
            "hash": sealed,
        }
        (line,) = lines_of(CliRunner().invoke(app, [*command, f"--head={sealed}", "--json"]).output)
        assert line == {"entries": 6, "unsealed": 1, "head": sealed}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give a RUN, or --all, or --verify"),
            (["counting/2026-11-20", "--verify"], "give a RUN, or --all, or --verify"),
            (["counting/2026-11-20", "--head=abc"], "--head goes with --verify"),
            (["--verify", "--registry=http://localhost:1"], "localhost:1 can't be reached"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, arguments: list[str], message: str) -> None:
        done = CliRunner().invoke(app, ["audit", *arguments])
        assert message in str(done.exception)
