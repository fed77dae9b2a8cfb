"""What commands print with `--json`: in real processes, against the published schemas.

Verbs on recorded runs and on messages are held against them by their own tests, with `lines_of`.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support.command import COMMAND
from tests.support.json_lines import SCHEMAS, lines_of, schemas
from tests.support.pages import ROOT

from ledgerbeam.batch.cli.app import COMMANDS, _add_commands, app
from ledgerbeam.batch.cli.comparisons import COMPARISONS
from ledgerbeam.batch.cli.lines import all_lines
from ledgerbeam.batch.define.workloads import workload_names
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.settings import REGISTRY, STATE

PAGE = (ROOT / "docs" / "json-for-programs.md").read_text()
WITH_A_WORKLOADS_FLAGS = {"run", "compare"}
"""Their `--json` is one of the workload's flags."""


def commands() -> dict[str, Any]:
    """All commands by name, those of groups as `messages status`."""

    def walk(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(f"{prefix}{name} ", command)
            else:
                yield f"{prefix}{name}", command

    _add_commands([])
    return dict(walk("", typer.main.get_group(app)))


def call(folder: Path, *arguments: str, status: Exit = Exit.OK) -> list[Any]:
    """The lines that a command prints with `--json`."""
    done = subprocess.run(
        [str(COMMAND), *arguments, "--json"],
        cwd=folder,
        env=os.environ | {STATE: str(folder / "state"), REGISTRY: ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    if status is Exit.OK:
        assert done.stderr == ""
    return lines_of(done.stdout if status in {Exit.OK, Exit.DIFFERENT} else done.stderr)


def test_every_command_takes_it() -> None:
    without = {
        name
        for name, command in commands().items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == WITH_A_WORKLOADS_FLAGS


def test_every_kind_of_line_and_every_command_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`.*?) \| .*? \| (`.*|all) \|$", PAGE, re.MULTILINE)
    kinds = [kind for cell, _ in rows for kind in re.findall("`([a-z-]+)`", cell)]
    assert sorted(kinds) == sorted(all_lines(COMMANDS, COMPARISONS))
    named = {
        re.split(" --| alone", name)[0] for _, cell in rows for name in re.findall("`(.*?)`", cell)
    }
    assert named == commands().keys() - {"schema"}


def test_published_schemas_are_those_of_the_code() -> None:
    """One that has changed needs the next number, in `VERSIONS`, and to be published again."""
    published = {path: path.read_text() for path in SCHEMAS.iterdir()}
    assert published == schemas(), "see tests.support.json_lines"


def test_lines_that_the_schema_does_not_know_are_noticed() -> None:
    line = '{"schema": "ledgerbeam/report/1", "report": "a"}'
    assert lines_of(line) == [{"report": "a"}]
    for wrong in (line.replace('"a"', "1"), line.replace("}", ', "b": 1}')):
        with pytest.raises(AssertionError):
            lines_of(wrong)


@pytest.mark.slow
def test_commands_that_need_no_registry(tmp_path: Path) -> None:
    listed = call(tmp_path, "workloads")
    assert [workload["name"] for workload in listed] == workload_names()
    assert call(tmp_path, "run") == listed
    (trades,) = call(tmp_path, "generate", "trades", "--output=trades", "--count=50", "--files=1")
    assert trades == {"output": "trades", "rows": {"trades": 50}, "files": 1}
    (loans,) = call(tmp_path, "generate", "loans", "--output=loans", "--count=3", "--files=1")
    assert loans["rows"]["loans"] == 3
    flags = ["--trades=trades/*", "--trade-date=2026-11-20"]
    published = []
    for output in ("a", "b"):
        published += call(tmp_path, "run", "delivery-marking", *flags, f"--output={output}")
    (verified,) = call(tmp_path, "verify", published[0]["published"])
    assert verified["parts"] == 1
    assert 50 in verified["controls"].values()
    uris = [each["published"] for each in published]
    (same,) = call(
        tmp_path, "compare", *uris, "--keys=id", "--business-date=2026-11-20", "--output=c"
    )
    assert same["totals"]["keys_same"] == 50
    (error,) = call(tmp_path, "verify", "nowhere", status=Exit.FAILURE)
    assert error["error"]["code"] == "not-published"


@pytest.mark.slow
def test_processes_of_messages(tmp_path: Path) -> None:
    url = f"--database=sqlite:///{tmp_path}/bank.db"
    (topic,) = call(tmp_path, "messages", "init", url, "--topic=due:payer")
    assert topic == {"topic": "due", "customer": "payer"}
    assert call(tmp_path, "schedule-messages", "--once", url) == [{"posted": 0}]
    for name in ("status", "verify", "forecast", "derive"):
        assert call(tmp_path, "messages", name, url) == []
    (tmp_path / "payments.py").write_text(
        "from ledgerbeam import messages\n\n\nclass Due(messages.Message):\n    payer: str\n\n\n"
        "class Handler(messages.MessageHandler[Due]):\n"
        '    name, topic, customer = "payments", "due", "payer"\n\n'
        "    def handle(self, message, work):\n        pass\n"
    )
    (handled,) = call(tmp_path, "consume", "payments:Handler", "--until-idle", "--slots=1", url)
    assert handled == {"consumer": "payments", "handled": 0, "failed": 0}
    (paused,) = call(tmp_path, "messages", "pause", "payments", url)
    assert paused == {"consumer": "payments", "paused": True}


@pytest.mark.slow
def test_keys_and_processes_of_a_service(tmp_path: Path) -> None:
    (key,) = call(tmp_path, "keys", "create", "auditor", "--role=viewer", "--days=2")
    (listed,) = call(tmp_path, "keys", "list")
    assert (listed["name"], listed["roles"]) == ("auditor", {"*": "viewer"})
    assert key["key"].startswith(f"lb_{listed['id']}_")
    (revoked,) = call(tmp_path, "keys", "revoke", listed["id"], "--why=it was shown")
    assert revoked == {"key": listed["id"]}
    with subprocess.Popen(
        [str(COMMAND), "up", "--port=0", "--json"],
        env=os.environ | {STATE: str(tmp_path / "state"), REGISTRY: ""},
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdout is not None
        begun = [lines_of(service.stdout.readline())[0] for _ in range(3)]
        service.send_signal(signal.SIGTERM)
        (stopped,) = lines_of(service.stdout.read())
        assert service.wait(60) == 0
    assert {name for line in begun for name in line} == {
        *("address", "needs_key"),
        "routing",
        *("node", "workloads"),
    }
    assert stopped == {"stopped": ["front end", "router", "node"]}
