"""Environments in `ledgerbeam.toml`, and parameters in files."""

import datetime
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.command import COMMAND

from ledgerbeam.batch.cli.arguments import parse_arguments
from ledgerbeam.batch.environments import CONFIG, NAME, Environment, chosen_environment
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.settings import REGISTRY, STATE, Settings
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.pipelines.price_migration import PriceMigration

TEXT = """
default = "test"

[environment.test]
registry = "sqlite:///runs.db"
output = "results"

[environment.production]
registry = "postgresql+psycopg://batch:${env:REGISTRY_PASSWORD}@db/runs"
output = "gs://bank-results"
flags = ["--runner=FlinkRunner", "--flink_master=flink:8081"]
"""
TRADES = ["--trades=trades/*", "--trade-date=2026-11-20"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, two below that of the file."""
    folder = tmp_path / "project" / "in" / "it"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "ledgerbeam.toml").write_text(TEXT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(STATE, str(tmp_path / "state"))
    for name in (CONFIG, NAME, REGISTRY):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_the_default_is_found_from_below(tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/project/runs.db"
    assert Settings.from_environment().registry_url == registry
    parsed = parse_arguments(DeliveryMarking, TRADES)
    assert parsed.parameters.output == f"{tmp_path}/project/results"
    assert (parsed.registry, parsed.beam_flags) == (registry, [])


def test_another_one_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "production")
    monkeypatch.setenv("REGISTRY_PASSWORD", "x/y")
    parsed = parse_arguments(DeliveryMarking, TRADES)
    assert parsed.parameters.output == "gs://bank-results"
    assert parsed.registry == "postgresql+psycopg://batch:x%2Fy@db/runs"
    assert parsed.beam_flags == ["--runner=FlinkRunner", "--flink_master=flink:8081"]


def test_flags_and_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "production")
    monkeypatch.setenv("REGISTRY_PASSWORD", "x")
    monkeypatch.setenv(REGISTRY, "sqlite:///mine.db")
    assert Settings.from_environment().registry_url == "sqlite:///mine.db"
    given = ["--output=o", "--flink_master=mine:8081"]
    parsed = parse_arguments(DeliveryMarking, [*TRADES, *given])
    assert (parsed.parameters.output, parsed.registry) == ("o", "sqlite:///mine.db")
    assert sorted(parsed.beam_flags) == ["--flink_master=mine:8081", "--runner=FlinkRunner"]
    parsed = parse_arguments(DeliveryMarking, [*TRADES, *given, "--registry=sqlite:///given.db"])
    assert parsed.registry == "sqlite:///given.db"


def test_without_a_file_nothing_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen_environment() == Environment()
    monkeypatch.setenv(NAME, "production")
    with pytest.raises(ParameterError, match=r"LEDGERBEAM_ENV=production: there is no ledgerbeam"):
        chosen_environment()
    monkeypatch.setenv(CONFIG, "project/ledgerbeam.toml")
    monkeypatch.setenv("REGISTRY_PASSWORD", "x")
    assert chosen_environment().output == "gs://bank-results"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("default = 1", "default: Input should be a valid string"),
        ('default = "none"', "no environment none: there are none"),
        ("default = ", "Invalid value"),
        ("[enviroment.a]", "enviroment: Extra inputs are not permitted"),
        ('[environment.test]\nregistri = "x"', "environment: test: registri: Extra inputs"),
        ('[environment.test]\nflags = ["runner"]', "flags: 'runner' is no flag"),
        ('[environment.test]\nflags = "--runner=x"', "flags: Input should be a valid tuple"),
        (
            'default = "a"\n[environment.a]\nregistry = "postgresql://u:c4nary@h/d"',
            "environment a: registry: the URL holds a literal password",
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "project" / "ledgerbeam.toml").write_text(text)
    with pytest.raises(ParameterError, match=problem) as caught:
        chosen_environment()
    assert str(caught.value).startswith(f"{tmp_path}/project/ledgerbeam.toml: ")
    assert "c4nary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_takes_the_name_in_front_of_the_verb(tmp_path: Path, folder: Path) -> None:
    def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(COMMAND), *arguments],
            cwd=folder,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    assert call("--env", "test", "list", "--json").returncode == 0
    assert (tmp_path / "project" / "runs.db").exists()
    unknown = call("--env=none", "list")
    assert (unknown.returncode, unknown.stdout) == (Exit.USAGE, "")
    assert unknown.stderr.endswith("no environment none: there are test, production\n")


def test_parameters_stand_in_a_file_and_flags_win(folder: Path) -> None:
    path = folder / "day.toml"
    path.write_text('trades = "trades/*"\ntrade-date = 2026-11-20\nmax_rejects = 3\n')
    parsed = parse_arguments(DeliveryMarking, ["--params=day.toml", "--max-rejects=5"])
    parameters = parsed.parameters.model_dump()
    assert parameters["trades"] == "trades/*"
    assert parameters["trade_date"] == datetime.date(2026, 11, 20)
    assert parameters["max_rejects"] == 5


def test_decimals_in_the_file_are_exact(folder: Path) -> None:
    text = (
        'database = "sqlite:///p.db"\nbusiness_date = "2026-11-20"\n'
        "percent = 1234567.1234567891\nmax_percent = 2000000"
    )
    (folder / "day.toml").write_text(text)
    parsed = parse_arguments(PriceMigration, ["--params=day.toml", "--business-date=2026-11-20"])
    assert str(parsed.parameters.model_dump()["percent"]) == "1234567.1234567891"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("trade_dat = 2026-11-20", "no parameter trade_dat: did you mean trade_date?"),
        ("zzz = 1", "no parameter zzz: see --help"),
        ("trades", "Expected '='"),
        ("trades = " + "[" * 2_000, "values are nested too deeply"),
        ("trade_date = 20261120", "--trade-date=20261120: give a date as YYYY-MM-DD"),
        ("trade_date = 2026-11-20T00:00:00", "give a date as YYYY-MM-DD"),
    ],
)
def test_a_mistake_in_parameters_is_one_line(folder: Path, text: str, problem: str) -> None:
    (folder / "day.toml").write_text(text)
    with pytest.raises(ParameterError, match=problem.replace("?", r"\?")):
        parse_arguments(DeliveryMarking, ["--params=day.toml", "--trades=t"])
    with pytest.raises(ParameterError, match=r"no\.toml: cannot read parameters: No such file"):
        parse_arguments(DeliveryMarking, ["--params=no.toml"])


@pytest.mark.parametrize("flag", ["--runner", "--region"])
def test_a_flag_of_beam_without_its_value_is_one_line(flag: str) -> None:
    flags = ["--trades=t", "--trade-date=2026-11-20", "--output=o", flag]
    with pytest.raises(ParameterError, match=f"{flag}: "):
        parse_arguments(DeliveryMarking, flags)
