"""Archiving and erasing, killed with -9 at every failpoint, and begun again.

At no point is a message lost, or in two archives, and the books balance; in the end no payload of
the customer is left in any file.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.messages.senders import Bank
from tests.messages.test_archive import EVENING, books, payloads, send
from tests.support.pages import ROOT

from ledgerbeam.io.failpoints import FAILPOINT, FAILPOINT_ONCE
from ledgerbeam.messages.archive.erase import erasures
from ledgerbeam.messages.archive.files import STREAM, find_manifest
from ledgerbeam.messages.model.message import to_microseconds
from ledgerbeam.messages.store.schema import ARCHIVE

pytestmark = pytest.mark.slow

SECONDS = 120


def points() -> list[str]:
    """The failpoints of the folder, as the code names them."""
    texts = (file.read_text() for file in (ROOT / "messages" / "archive").glob("*.py"))
    return sorted(re.findall(r'failpoint\("([\w.-]+)"\)', "\n".join(texts)))


def leaving(*arguments: str, point: str = "", once: Path | None = None) -> int:
    environment = dict(os.environ)
    if point:
        environment |= {FAILPOINT: point, FAILPOINT_ONCE: str(once)}
    command = [sys.executable, "-m", "tests.messages.leaving", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, timeout=SECONDS, check=False
    ).returncode


def archived(bank: Bank) -> list[int]:
    """The messages in the files of archives that are on record."""
    numbers = []
    with bank.database.begin("archives") as connection:
        for row in connection.execute(ARCHIVE.select().where(ARCHIVE.c.archived_at.is_not(None))):
            manifest = find_manifest(row.uri)
            assert manifest is not None
            for each in manifest.files:
                if each.table == STREAM:
                    table = pq.read_table(f"{row.uri}/{each.file.name}")
                    numbers += table.column("message_id").to_pylist()
    return numbers


def test_there_are_points_in_both() -> None:
    assert {point.partition(".")[0] for point in points()} == {"archive", "erase"}
    assert len(points()) >= 7


@pytest.mark.parametrize("point", points())
def test_nothing_is_lost_or_double_and_nothing_stays_that_was_erased(
    fresh: Bank, tmp_path: Path, point: str
) -> None:
    bank, folder = fresh.for_a_test(), tmp_path / "archive"
    send(bank, "abcdefg", "P1")
    send(bank, "hijklmn", "P2")
    bank.consume(bank.handler()())
    before = books(bank)
    numbers = [row[0] for row in bank.rows("SELECT message_id FROM ledgerbeam_stream")]

    def check() -> None:
        left = [row[0] for row in bank.rows("SELECT message_id FROM ledgerbeam_stream")]
        assert sorted(left + archived(bank)) == sorted(numbers)
        assert books(bank) == before

    steps = [
        ("archive", bank.url, str(folder), str(to_microseconds(EVENING))),
        ("erase", bank.url, "P1"),
    ]
    killed = 0
    for step in steps:
        status = leaving(*step, point=point, once=tmp_path / "killed")
        check()
        if status:
            assert status == -signal.SIGKILL
            killed += 1
            # One that archives may be killed, and the payloads in its files be erased next.
            if step[0] == "archive":
                assert leaving(*steps[1]) == 0
                assert not [p for p in payloads(folder).split() if '"payer":"P1"' in p]
            assert leaving(*step) == 0
            check()
    assert killed == 1
    assert sorted(archived(bank)) == sorted(numbers)
    assert payloads(folder).count('"payer":"P1"') == 0
    assert payloads(folder).count('"payer":"P2"') == 7
    assert all(entry.archived is not None for entry in erasures(bank.database))
    named = [path.name for path in folder.rglob("*.parquet")]
    assert len(named) == sum(
        len(manifest.files)
        for batch in folder.iterdir()
        if (manifest := find_manifest(str(batch))) is not None
    )
