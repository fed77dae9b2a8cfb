"""What data holds is printed as it is: by every verb, to a terminal and to a pipe."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from tests.support.racers import NOON, draft, end, start

from ledgerbeam.batch.cli.app import main
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_table
from ledgerbeam.batch.model.run import AttemptOutcome
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.plain_text import plain_text, print_line
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.commit.attempts import start_attempt
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.datasets.rejections import rejections_table
from ledgerbeam.transforms.publish import Part, commit_part, manifest_of

_numbers = itertools.count(1)
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
"""What Rich puts around a status or a title on a terminal that has colors."""

hostile = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("[]/\\\x1b\n\r\t\x07:_")),
    max_size=12,
) | st.sampled_from(
    [
        "[red]A", "[/x]", "[ticket-123]", "[link=file:///etc/passwd]x[/link]", "\\[red]", "[",
        ":smile:", "\x1b[2J\x1b[31m", "\x1b]0;title\x07", "a\nb", "a\rb", "a\tb", "\u202eabc",
        "a\u200bb", "\u2028", "\x85", "\x9b31m", "\xa0",
    ]
)  # fmt: skip


class Place(NamedTuple):
    """A registry, and the folder that it is in."""

    folder: Path
    registry: Registry

    def verb(self, name: str, *arguments: str) -> str:
        """All that `ledgerbeam …` in this process prints, with this registry."""
        out = StringIO()
        command = ["ledgerbeam", name, *arguments]
        if name != "verify":
            command.append(f"--registry=sqlite:///{self.folder}/registry.db")
        with (
            patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(out),
            suppress(SystemExit),
        ):  # fmt: skip
            main()
        return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("plain")
    with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
        yield Place(folder, registry)


def publish(uri: str, process: str, text: str) -> None:
    """An instance whose keys, errors, columns and values hold the text."""
    record = AttemptRecord(
        process=process, instance="2026-11-20", number=1, started_at=NOON, code_version="1",
        parameters={}, inputs=[], shards=1, fingerprint="f",
    )  # fmt: skip
    attempt = start_attempt(uri, record)
    key, column = f"<{text}>", f"c<{text}>"
    outcome = Outcome(
        f"failed {key}", ComponentStatus.FAILURE, 2, f"error {key}", "", f"trace {key}", {key: key}
    )
    rejected = rejections_table([(f"file {key}", 1, f"raw {key}", f"reason {key}")])
    totals = {"components": 2, "failed": 1, f"total <{text}>": 3}
    table = pa.table({"account": [key], column: [f"value {key}"]})
    part = Part(table, totals, ["account"], outcomes=outcomes_table([outcome]), rejects=rejected)
    shards = [commit_part(attempt, 0, part)]
    attempt.publish(manifest_of(attempt, shards, {}, totals, totals, [], NOON), NOON)


def recorded(place: Place, text: str, *, fails: bool) -> str:
    """The id of a run that has ended, whose reasons, errors and folder hold the text."""
    marked = f"<{text}>"
    in_path = marked.replace("/", "|").replace("\0", "|")
    folder = str(place.folder / f"{next(_numbers)} {in_path}")
    process = f"process {in_path}"
    run = draft(uri=folder, process=process, reason=f"why {marked}", submitted_by=f"by {marked}")
    place.registry.submit(run, {})
    assert start(place.registry, run.id, why=f"started {marked}", runner=f"runner {marked}")
    failed: dict[str, Any] = {
        "outcome": AttemptOutcome.FAILURE,
        "to": RunStatus.FAILURE,
        "error": f"E {marked}",
    }
    detail: dict[str, Any] = {"detail": {f"k {marked}": f"v {marked}"}}
    assert end(place.registry, run.id, **(failed if fails else {}), **detail)
    publish(folder, process, text)
    return run.id


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [False, True])
@given(text=hostile)
@example(text="[/x]")
@example(text="\x1b[31m\n\u202e")
@settings(
    max_examples=10, deadline=None, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_every_verb_prints_data_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, text: str, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "1000")
    marked = plain_text(f"<{text}>")
    # The registry's own escape for what no database takes.
    stored = plain_text(f"<{text}>".replace("\0", r"\x00"))
    in_path = plain_text(f"<{text}>".replace("/", "|").replace("\0", "|"))
    # An error is one line, whatever is in it.
    of_error = plain_text(" ".join(f"<{text}>".replace("/", "|").replace("\0", "|").split()))
    failed, done = (recorded(place, text, fails=fails) for fails in (True, False))
    folder = place.registry.get(done).uri
    expected = {
        ("get", failed): [f"E {stored}", f"runner {stored}", f"process {in_path}"],
        ("get", done): [str(place.folder), in_path, f"total {stored}", f"error {marked}"],
        ("audit", failed): [
            f"why {stored}", f"by {stored}", f"started {stored}", f"E {stored}", "v <", "k <",
        ],
        ("list",): [f"process {in_path}", f"by {stored}"],
        ("components", done): [f"failed {marked}", f"error {marked}"],
        ("rejects", done): [f"file {marked}", f"raw {marked}", f"reason {marked}"],
        ("logs", done): ["has no log on this machine"],
        ("results", done): [f"c{marked}", f"value {marked}"],
        ("reports", done): [],
        ("get", f"no {text}"): [],
        ("verify", folder): [f"process {of_error}"],
        ("verify", f"{folder} [/x]"): [f"{of_error} [/x]: nothing is published there"],
    }  # fmt: skip
    for (name, *arguments), parts in expected.items():
        shown = _STYLES.sub("", place.verb(name, *arguments))
        assert all(char.isprintable() for char in re.sub("[\n\t]", "", shown)), (name, shown)
        for part in parts:
            # A label stands in place of a total's name: without underscores.
            loose = part.replace("_", " ")
            assert part in shown or loose in shown, (name, part, shown)
        if name != "verify":
            for line in place.verb(name, *arguments, "--json").splitlines():
                assert (
                    line.startswith(f"{arguments[0]}: its process")
                    if line[0] != "{"
                    else (json.loads(line))
                )


_HEADS = {
    "list": "run name status attempts submitted by",
    "audit": "time attempt who what why",
    "components": "component status tries error",
    "rejects": "file row reason as-in-the-source",
    "results": "account c<a\\tb>",
}


@pytest.fixture(scope="module")
def recorded_run(place: Place) -> str:
    return recorded(place, "a\tb", fails=False)


@pytest.mark.parametrize("name", ["list", "audit", "components", "rejects", "results"])
def test_a_table_is_plain_where_it_is_piped(place: Place, recorded_run: str, name: str) -> None:
    shown = place.verb(name, *([] if name == "list" else [recorded_run]))
    heads, *rows = (line.split("\t") for line in shown.splitlines())
    assert [head.replace(" ", "-") for head in heads] == _HEADS[name].split()
    assert rows
    for fields in (heads, *rows):
        assert len(fields) == len(heads), fields
        assert [field.strip() for field in fields] == fields
    assert any(r"<a\tb>" in field for fields in rows for field in fields)


@pytest.mark.parametrize("name", ["get", "list", "audit", "components", "rejects", "results"])
def test_a_table_fits_the_terminal(
    place: Place, recorded_run: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "50"}.items():
        monkeypatch.setenv(variable, value)
    shown = place.verb(name, *([] if name == "list" else [recorded_run]))
    lines = _STYLES.sub("", shown).splitlines()
    assert max(map(len, lines)) <= 50


def test_a_run_is_a_name_and_a_value_a_line_where_it_is_piped(
    place: Place, recorded_run: str
) -> None:
    first, _, attempts = place.verb("get", recorded_run).partition("\n\n")
    pairs = dict(line.split("\t") for line in first.splitlines())
    assert pairs["run"] == recorded_run
    assert pairs["status"] == "SUCCESS"
    assert pairs["published at"] == place.registry.get(recorded_run).uri.replace("\t", r"\t")
    heads, attempt = (line.split("\t") for line in attempts.splitlines())
    assert dict(zip(heads, attempt, strict=True))["runner"] == r"runner <a\tb>"


def test_what_a_stream_cannot_hold_is_escaped_too() -> None:
    data = BytesIO()
    stream = TextIOWrapper(data, encoding="latin-1")
    print_line("é → \udcff", stream)
    assert data.getvalue() == "é \\u2192 \\udcff\n".encode("latin-1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("A1 \\d é 文", "A1 \\d é 文"), ("\x1b[1m\n", r"\x1b[1m\n"), ("\u202e\xa0", r"\u202e\xa0")],
)
def test_only_what_is_not_seen_is_escaped(text: str, shown: str) -> None:
    assert plain_text(text) == shown
