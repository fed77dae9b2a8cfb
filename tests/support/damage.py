"""Records of an instance, damaged, and all that reads them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.launchers import instance_of, parameters_of, write_input
from tests.support.processes import OneClientFails

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import Attempt, attempts, commits, ending_of
from ledgerbeam.io.commit.claims import decided_shards
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import UserError


def publish(folder: Path) -> Path:
    """The folder, once an instance with a failed component and a limit is published in it."""
    write_input(folder / "trades.csv")
    run(OneClientFails(parameters_of(folder)))
    instance = str(instance_of(folder))
    control_log.steer(instance, utc_now(), "somebody", "for the test", parallelism=2)
    return folder


def follow(folder: Path) -> None:
    """All that reads records of an instance."""
    instance = str(instance_of(folder))
    found = attempts(instance)
    commits(instance, [record.number for record in found])
    for record in found:
        ending_of(Attempt(instance, record).uri)
    control_log.latest(instance)
    control_log.heartbeats(f"{instance}/attempt-1", utc_now())
    decided_shards(instance)
    ProgressReader(instance).read(utc_now())
    read_published(instance)
    list(components_of(instance))
    verify(instance, OneClientFails(parameters_of(folder)))


AWKWARD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    10**400,
    1.5,
    "",
    "x",
    "../x",
    "\x00",
    "2026-11-20",
    "2026-11-20T10:00:00",
    [],
    {},
    [[]],
    {"a": 1},
]


def mutated(record: Any, source: random.Random) -> Any:
    """A record with something in it replaced, left out or added."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(record)
    container, key = source.choice(places)
    how = source.randrange(4)
    if how == 0:
        container.pop(key)
    elif how == 1 and isinstance(container, dict):
        container[source.choice(["", "fenced_at", "x\n"])] = container.pop(key)
    elif how == 2 and isinstance(container[key], int):
        container[key] += source.choice([-1, 1, 2**40])
    else:
        container[key] = source.choice(AWKWARD)
    return record


def written(path: Path, source: random.Random) -> None:
    """Damage a record: by its content, or by its bytes."""
    how = source.randrange(4)
    if how < 2:
        record = json.loads(path.read_bytes())
        record.pop("digest", None)
        path.write_text(json.dumps(mutated(record, source)))
    elif how == 2:
        data = bytearray(path.read_bytes())
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        path.write_bytes(data)
    else:
        path.write_bytes(
            source.choice(
                [b"", b"5", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000]
            )
        )


def one_line(function: Callable[[], object]) -> None:
    try:
        function()
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may also go well
