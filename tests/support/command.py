"""`ledgerbeam` as users call it, and what it has published."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ledgerbeam.io.commit.attempts import load_manifest

COMMAND = Path(sys.executable).parent / "ledgerbeam"
SECONDS = 300


class Published(NamedTuple):
    """What a run has published; all but the place is the same for two runs of one instance.

    Attributes:
        uri: where.
        parts: SHA-256 of each part.
        reports: names and SHA-256 of reports.
        sums: totals and counts.
    """

    uri: str
    parts: list[str]
    reports: list[tuple[str, str]]
    sums: dict[str, int]


def ledgerbeam(
    *arguments: str, folder: Path | None = None, environment: Mapping[str, str] = os.environ
) -> str:
    """What the command prints; it has to succeed."""
    done = subprocess.run(
        [str(COMMAND), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def published_by(
    *arguments: str, folder: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Published:
    """What `ledgerbeam run …` publishes."""
    shown = ledgerbeam("run", *arguments, "--json", folder=folder, environment=environment)
    uri = json.loads(shown.splitlines()[-1])["published"]
    manifest = load_manifest(uri)
    return Published(
        uri,
        [commit.part.sha256 for commit in manifest.shards],
        [(file.name, file.sha256) for file in manifest.reports],
        {**manifest.totals, **manifest.counts},
    )
