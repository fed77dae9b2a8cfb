"""The command line, as a user meets it: in processes of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ledgerbeam import __version__
from ledgerbeam.batch.cli.app import app
from ledgerbeam.batch.define.workloads import workload_names
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.pipelines import delivery_marking

BIN = Path(sys.executable).parent
REGISTRY = "--registry=sqlite:///registry.db"


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("day")
    made = command(
        "ledgerbeam", "generate", "trades", "--output=trades", "--count=2000", "--files=2",
        cwd=folder,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "2,000 trades of 2026-11-20" in made.stdout
    return folder


def flags(output: str) -> list[str]:
    return ["--trades=trades/*.parquet", "--trade-date=2026-11-20", f"--output={output}"]


def test_module_and_command_do_the_same(day: Path) -> None:
    module = command(
        sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking", *flags("a"), "--json",
        cwd=day,
    )  # fmt: skip
    assert (module.returncode, module.stderr) == (0, "")
    run = command("ledgerbeam", "run", "delivery-marking", *flags("b"), "--json", cwd=day)
    assert (run.returncode, run.stderr) == (0, "")
    of_module, of_run = (json.loads(done.stdout.splitlines()[-1]) for done in (module, run))
    assert of_module["published"] == str(day / "a" / "delivery-marking" / "2026-11-20")
    assert of_module["seconds"] > 0
    assert of_module["counts"]["rows_in"] == 2000
    assert (of_module["counts"], of_module["totals"]) == (of_run["counts"], of_run["totals"])


def test_the_same_run_from_another_folder_is_the_same_run(day: Path) -> None:
    first = command("ledgerbeam", "run", "delivery-marking", *flags("e"), "--json", cwd=day)
    assert first.returncode == 0, first.stderr
    folder = day / "elsewhere"
    folder.mkdir()
    there = ["--trades=../trades/*.parquet", "--trade-date=2026-11-20", "--output=../e", "--json"]
    again = command("ledgerbeam", "run", "delivery-marking", *there, cwd=folder)
    assert again.returncode == 0, again.stderr
    results = [json.loads(done.stdout.splitlines()[-1]) for done in (first, again)]
    assert results[0]["published"] == results[1]["published"]
    assert results[1]["attempt"] == 1
    assert not (day / "e" / "delivery-marking" / "2026-11-20" / "attempt-2").exists()


def test_summary_is_for_people_and_verify_agrees(day: Path) -> None:
    run = command("ledgerbeam", "run", "delivery-marking", *flags("c"), cwd=day)
    assert run.returncode == 0, run.stderr
    told = dict(line.split("\t") for line in run.stdout.splitlines())
    for word in ("rejected", "clients", "components", "delivery quantity", "seconds"):
        assert word in told
    assert told["trades"] == "2,000"
    assert "published before" not in told
    run = command("ledgerbeam", "run", "delivery-marking", *flags("c"), cwd=day)
    again = dict(line.split("\t") for line in run.stdout.splitlines())
    assert re.fullmatch(
        r"2\d{3}-.* UTC, from the same input: nothing was done", again.pop("published before")
    )
    assert again == {name: told[name] for name in told if "second" not in name}
    published = told["published at"]
    verified = command("ledgerbeam", "verify", published, cwd=day)
    assert verified.returncode == 0, verified.stderr
    assert "are as published" in verified.stdout.splitlines()[-1]
    part = next(Path(published).glob("attempt-1/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    damaged = command("ledgerbeam", "verify", published, cwd=day)
    assert damaged.returncode == 1
    assert part.name in damaged.stderr
    assert len(damaged.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", sorted(typer.main.get_group(app).commands))
def test_every_command_has_help(name: str) -> None:
    helped = CliRunner().invoke(app, [name, "--help"])
    assert helped.exit_code == 0, helped.exception
    assert f"Usage: ledgerbeam {name}" in helped.output


def test_the_version_is_told() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"ledgerbeam {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["get"], ["generate", "loans"], ["run"], ["compare"]])
def test_help_has_a_short_flag(arguments: list[str]) -> None:
    helped = CliRunner().invoke(app, [*arguments, "-h"])
    assert helped.exit_code == 0, helped.output
    assert "Usage:" in helped.output


def test_run_alone_lists_the_workloads(day: Path) -> None:
    listed = command("ledgerbeam", "run", cwd=day)
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [name for name, _ in lines] == ["workload", *workload_names()]
    assert ["delivery-marking", (delivery_marking.__doc__ or "").splitlines()[0]] in lines


def test_help_is_by_groups(tmp_path: Path) -> None:
    shown = command("ledgerbeam", "--help", cwd=tmp_path)
    headings = re.findall("╭─ (.*?) ─", shown.stdout)
    assert headings[0] == "Options"
    assert headings[1:] == [
        *("Workloads", "Runs on record", "Comparisons", "Messages to the future", "Rollouts"),
        "Service",
    ]


@pytest.mark.parametrize(
    ("begun", "verbs"),
    [("re", {"retry", "restart", "rejects"}), ("sche", {"schema", "schedule-messages"})],
)
def test_a_shell_completes_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, verbs: set[str]
) -> None:
    monkeypatch.setenv("_LEDGERBEAM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"ledgerbeam {begun}")
    monkeypatch.setenv("COMP_CWORD", "1")
    shown = set(command("ledgerbeam", cwd=tmp_path).stdout.split())
    assert shown >= verbs
    assert all(verb.startswith(begun) for verb in shown)


def test_help_names_every_parameter_and_its_default(day: Path) -> None:
    shown = command("ledgerbeam", "run", "delivery-marking", "--help", cwd=day)
    assert shown.returncode == 0
    for flag in ("--trades", "--trade-date", "--output", "--columns", "--max-rejects", "--json"):
        assert flag in shown.stdout
    assert "(default: 0)" in shown.stdout
    needed = shown.stdout.partition("required flags:")[2].partition("other flags of delivery")[0]
    assert re.findall("^  (--[a-z-]+)", needed, re.MULTILINE) == [
        "--output",
        "--trades",
        "--trade-date",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "deliveries"], "no workload deliveries: there are compare, delivery-marking"),
        (["verify", "nowhere"], "nowhere: nothing is published there"),
        (["run", "delivery-marking"], "--output is required"),
        (
            ["run", "delivery-marking", *flags("d"), "--max-reject=1"],
            "unknown flag --max-reject: did you mean --max-rejects?",
        ),
        (
            ["run", "delivery-marking", *flags("d"), "--trade-date=20 November"],
            "--trade-date=20 November",
        ),
        (
            ["run", "delivery-marking", *flags("d"), "--runner=NoSuchRunner"],
            "NoSuchRunner",
        ),
    ],
)
def test_a_users_mistake_is_one_line(day: Path, arguments: list[str], line: str) -> None:
    done = command("ledgerbeam", *arguments, cwd=day)
    assert done.returncode != 0
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (day / "d").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (
            ["run", "deliveries"],
            Exit.NOT_FOUND,
            {"code": "workload-not-found", "workload": "deliveries"},
        ),
        (
            ["run", "delivery-marking", *flags("d"), "--trade-date=20 November"],
            Exit.USAGE,
            {"code": "invalid-parameter", "parameter": "--trade-date", "value": "20 November"},
        ),
        (
            ["run", "delivery-marking", "--trades=no.csv", *flags("d")[1:]],
            Exit.FAILURE,
            {"code": "input-not-found", "file": "no.csv"},
        ),
        (
            ["wait", "counting/2026-11-20", REGISTRY],
            Exit.NOT_FOUND,
            {"code": "run-not-found", "run": "counting/2026-11-20"},
        ),
        (["get", "a1", REGISTRY], Exit.NOT_FOUND, {"code": "run-not-found", "run": "a1"}),
        (
            ["set-rate", "a1", "fast", REGISTRY],
            Exit.USAGE,
            {"code": "invalid-parameter", "parameter": "rate", "value": "fast"},
        ),
        (
            ["list", "--registry=sqlite:////nowhere/runs.db"],
            Exit.UNAVAILABLE,
            {"code": "registry-unavailable", "registry": "sqlite:////nowhere/runs.db"},
        ),
    ],
)
def test_an_error_is_json_where_json_is_asked_for(
    day: Path, arguments: list[str], status: Exit, expected: dict[str, str]
) -> None:
    (line,) = command("ledgerbeam", *arguments, cwd=day).stderr.splitlines()
    done = command("ledgerbeam", *arguments, "--json", cwd=day)
    assert (done.returncode, done.stdout) == (status, "")
    error = json.loads(done.stderr)["error"]
    message = error.pop("message")
    assert error == expected
    assert line in {f"{program}: {message}" for program in ("ledgerbeam", "delivery-marking")}


@pytest.mark.parametrize(
    ("verb", "variable", "value", "line"),
    [
        (
            "submit",
            "LEDGERBEAM_LOG",
            "xml",
            "LEDGERBEAM_LOG=xml: no such format: give plain or json",
        ),
        ("reconcile", "LEDGERBEAM_LOG", "xml", "LEDGERBEAM_LOG=xml: no such format"),
        ("reconcile", "LEDGERBEAM_ALERTS", "none.toml", "none.toml: cannot read the listeners: No"),
        ("run", "LEDGERBEAM_ALERTS", "[[listener]]\nname='a'", "listener 1: kind is missing"),
        (
            "submit",
            "LEDGERBEAM_ALERTS",
            "[[listener]]\nname='a'\nkind='command'\ncommand=['no-such-pager']",
            "listener a: there is no command no-such-pager",
        ),
        (
            "submit",
            "LEDGERBEAM_ALERTS",
            "[[listener]]\nname='a'\nkind='webhook'\nurl='https://x'\nsecret='env:NO_SUCH'",
            "listener a: env:NO_SUCH",
        ),
    ],
)
def test_a_mistake_in_what_launchers_are_configured_by_is_told_at_once(
    tmp_path: Path, verb: str, variable: str, value: str, line: str
) -> None:
    if value.startswith("[["):
        (tmp_path / "alerts.toml").write_text(value)
        value = "alerts.toml"
    arguments = [] if verb == "reconcile" else ["delivery-marking", *flags("out")]
    done = subprocess.run(
        [str(BIN / "ledgerbeam"), verb, *arguments, REGISTRY],
        cwd=tmp_path, env={**os.environ, variable: value}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    last = done.stderr.splitlines()[-1]
    assert line in last
    if verb != "reconcile":
        assert done.stderr == f"{last}\n"
        listed = command("ledgerbeam", "list", REGISTRY, "--json", cwd=tmp_path)
        assert (listed.returncode, listed.stdout) == (0, "")


def test_a_recorded_run_that_fails_names_the_code_of_its_cause(day: Path) -> None:
    given = ["run", "delivery-marking", "--trades=no.csv", *flags("f")[1:], REGISTRY, "--json"]
    done = command("ledgerbeam", *given, cwd=day)
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert (error["code"], error["status"]) == ("run-failed", "FAILURE")
    assert error["cause"] == "input-not-found"
    shown = command("ledgerbeam", "get", error["run"], REGISTRY, "--json", cwd=day)
    assert json.loads(shown.stdout)["code"] == "input-not-found"
    audit = command("ledgerbeam", "audit", error["run"], REGISTRY, "--json", cwd=day)
    ends = [json.loads(line) for line in audit.stdout.splitlines() if "attempt_ended" in line]
    assert [end["detail"]["code"] for end in ends] == ["input-not-found"]
