"""Records of runs, changed by chance: markers, manifests, the control log, rows of the registry.

Whoever reads them refuses them in one line, or is done no harm.
"""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutations import cases, mutated, refused
from tests.support import damage
from tests.support.launchers import instance_of
from tests.support.racers import NOON, end, play, submitted, take_over

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.batch.runs.expire import expire_results

TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"9" * 30, b"..", b"/"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage.publish(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases, which begin with a copy of what is published."""
    return tmp_path_factory.mktemp("damaged")


@given(data=st.data(), source=st.randoms(use_true_random=False))
@cases(0.5)
def test_records_in_storage(
    published: Path, folder: Path, data: st.DataObject, source: random.Random
) -> None:
    shutil.rmtree(folder)
    shutil.copytree(published, folder)
    instance = instance_of(folder)
    paths = sorted(path for path in instance.rglob("*.json") if path.stat().st_size > 5)
    path = data.draw(st.sampled_from(paths))
    if data.draw(st.booleans()):
        damage.written(path, source)
    else:
        record = json.loads(path.read_bytes())
        if data.draw(st.booleans()):
            record.pop("digest", None)
        path.write_bytes(data.draw(mutated(json.dumps(record).encode(), TOKENS)))
    refused(lambda: damage.follow(folder))
    refused(lambda: ProgressReader(str(instance)).read(utc_now()))
    refused(lambda: expire_results(str(instance), utc_now()))


VALUES: list[Any] = [
    *(None, 0, -1, 2**63 - 1, 1.5, "", "x", "x\ny", "\0", b"\xff", "null", "[]", "{}", '{"a": 1}'),
    *("[[", "9" * 40, "1e999", '"\\ud800"', "RUNNING", "SUCCESS", "2026-11-20", "2026-13-40"),
    *("2026-11-20 25:00:00", "0000-00-00 00:00:00.000000", "9999-12-31 23:59:59.999999"),
]


class Recorded(NamedTuple):
    """A registry, and the ids of its runs."""

    file: Path
    ids: list[str]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A run that has ended, one that goes on, and one that waits for its launcher."""
    file = tmp_path_factory.mktemp("registry") / "registry.db"
    ids = []
    with Registry.open(f"sqlite:///{file}") as registry:
        for steps in ("start fail", "start", ""):
            run = submitted(registry, uri=str(file.parent / f"run-{steps}"))
            play(registry, run.id, steps)
            ids.append(run.id)
    return Recorded(file, ids)


def cells(file: Path) -> list[tuple[str, str, str, tuple[Any, ...]]]:
    """All cells: table, column, the condition for their row, and the row's key."""
    connection = sqlite3.connect(file)
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    found = []
    for (table,) in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        key = [column[1] for column in columns if column[5]]
        of_row = " AND ".join(f"{name} = ?" for name in key)
        rows = connection.execute(f"SELECT {', '.join(key)} FROM {table}").fetchall()
        found += [(table, column[1], of_row, row) for column in columns for row in rows]
    connection.close()
    return found


def _calls(registry: Registry, ids: list[str]) -> Iterator[Callable[[], object]]:
    """What asks the registry, and what writes to it."""
    yield registry.open_runs
    yield registry.runs
    yield partial(registry.runs, RunFilter(where={"shards": "7"}))
    yield partial(registry.runs, RunFilter(error="prices", requester="ada@bank"))
    yield partial(registry.undelivered, 100)
    yield partial(registry.expiring, NOON)
    signed: dict[str, Any] = {"who": "somebody", "at": NOON}
    for id_ in ids:
        yield partial(registry.get, id_)
        yield partial(registry.find, id_[:8])
        yield partial(registry.events, id_)
        yield partial(registry.successor, id_)
        yield partial(registry.move, id_, RunStatus.PAUSED, why="a test", **signed)
        yield partial(take_over, registry, id_, "launcher-2")
        yield partial(end, registry, id_)
        yield partial(registry.mark_expired, id_, **signed)


@given(data=st.data())
@cases(0.5)
def test_rows_of_the_registry(recorded: Recorded, folder: Path, data: st.DataObject) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / "registry.db"
    shutil.copy(recorded.file, file)
    table, column, of_row, key = data.draw(st.sampled_from(cells(file)))
    value = data.draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=5), st.integers(-5, 5)))
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    with suppress(sqlite3.Error, UnicodeEncodeError):  # a value that the schema doesn't take
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {of_row}", (value, *key))
    connection.close()
    registry = refused(lambda: Registry.open(f"sqlite:///{file}"))
    if registry is not None:
        with registry:
            for call in _calls(registry, recorded.ids):
                refused(call)
