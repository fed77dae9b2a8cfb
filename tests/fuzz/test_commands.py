"""Settings, files of parameters, URLs and command lines, changed by chance.

Whatever stands there, a command does what it says, or tells in one line what is wrong with it.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutations import cases, mutated, mutated_text, refused
from tests.support.racers import play, submitted

from ledgerbeam.batch.cli.app import main
from ledgerbeam.batch.cli.arguments import parse_arguments
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.environments import CONFIG, NAME, chosen_environment
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import REGISTRY, STATE
from ledgerbeam.io.datasets.reading import load_profile
from ledgerbeam.io.sql.engine import open_engine
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.pipelines.loan_close_of_business import LoanCloseOfBusiness

TOML_TOKENS = [
    *(b"=", b'"', b"'", b"[", b"]", b"{", b"}", b"#", b"\n", b"\\", b".", b",", b'"""', b"\xff"),
    *(b"[[a]]", b"a.b = 1\n", b"1979-05-27", b"07:32:00", b"nan", b"-inf", b"1e400", b"0x1f"),
    *(b"true", b"${env:HOME}", b"${file:/}", b"${", b"9" * 5_000, b"[" * 2_000, b"a." * 2_000),
]
CONFIGURATION = b"""default = "test"

[environment.test]
registry = "sqlite:///runs.db"
output = "results"

[environment.production]
registry = "postgresql+psycopg://batch:${env:FUZZ_PASSWORD}@db/runs"
output = "gs://bank-results"
flags = ["--runner=FlinkRunner", "--flink_master=flink:8081"]
"""
PARAMETERS = b"""trades = "trades/*.csv"
trade_date = 2026-11-20
output = "results"
shards = 4
max-rejects = 3
delimiter = ";"
thousands = ","
trim = true
columns = "id=No,symbol=Symbol"
constants = "client_code=A"
"""
PROFILE = b"""description = "An evening file"
delimiter = "|"
date_format = "%d/%m/%Y"
null = ["NA", "-"]
trim = true
trailing_delimiter = true

[columns]
id = ["Trade No", "TradeNo"]
_ = ["Remarks"]

[values.side]
Buy = "B"

[constants]
exchange = "NSE"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder; nothing outside is read as configuration or written."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(STATE, str(folder / "state"))
        patch.setenv(CONFIG, str(folder / "ledgerbeam.toml"))
        patch.setenv("FUZZ_PASSWORD", "secret")
        for name in (NAME, REGISTRY):
            patch.delenv(name, raising=False)
        (folder / "ledgerbeam.toml").write_text("")
        yield folder


@given(data=mutated(CONFIGURATION, TOML_TOKENS), name=st.sampled_from(["", "test", "production"]))
@cases()
def test_configurations(folder: Path, data: bytes, name: str) -> None:
    file = folder / "changed.toml"
    file.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG, str(file))
        patch.setenv(NAME, name)
        refused(chosen_environment)


@given(data=mutated(PARAMETERS, TOML_TOKENS))
@cases()
def test_files_of_parameters(folder: Path, data: bytes) -> None:
    file = folder / "params.toml"
    file.write_bytes(data)
    refused(lambda: parse_arguments(DeliveryMarking, [f"--params={file}"]))


@given(data=mutated(PROFILE, TOML_TOKENS))
@cases()
def test_profiles(folder: Path, data: bytes) -> None:
    file = folder / "profile.toml"
    file.write_bytes(data)
    refused(lambda: load_profile(str(file)))


URL_TOKENS = [":", "/", "//", "@", "?", "&", "=", "%", "%00", "+", "[", "]", "::1", "#", "\n", " "]
URLS = [
    "sqlite:///{folder}/shop.db",
    "sqlite:///{folder}/shop.db?mode=ro&timeout=5",
    "postgresql+psycopg://batch:pass@127.0.0.1:5432/shop?sslmode=require",
    "mysql+pymysql://u@h/d",
]


@given(data=st.data())
@cases(0.5)
def test_urls_of_databases(folder: Path, data: st.DataObject) -> None:
    (folder / "shop.db").touch()
    url = data.draw(st.sampled_from(URLS)).format(folder=folder)
    engine = refused(lambda: open_engine(data.draw(mutated_text(url, URL_TOKENS))))
    if engine is not None:
        engine.dispose()


RUNS = [
    "--trades=t/*.csv --trade-date=2026-11-20 --output=results --shards=4 --max-rejects=3",
    "--trades t.csv --trade-date today --output=r --delimiter=; --decimal=, --columns=id=No,_=x",
    "--trades=t.csv --trade-date=2026-11-20 --json --plan --registry=sqlite:///r.db --trim=true",
    "--trades=t.csv --trade-date=last-business-day --calendar=NSE --runner=FlinkRunner",
]
WORDS = [
    *("--", "-", "=", "--json", "--plan", "--help=1", "--params=", "--registry=", "--output", "''"),
    *("today", "yesterday", "2026-02-30", "0", "-1", "1e9", "9" * 5_000, "nan", "tRue", "None"),
    *("--runner=", "--runner=X", "--no_such_flag", "--max-rejects=5%", "gs://", "s3://x", "%s"),
    *("\0", "\n"),
]


def _arguments(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split(" ")


@given(data=st.data())
@cases()
def test_arguments_of_runs(folder: Path, data: st.DataObject) -> None:
    line = data.draw(mutated_text(data.draw(st.sampled_from(RUNS)), [f" {w} " for w in WORDS]))
    kinds: list[type[BatchProcess[Any]]] = [DeliveryMarking, LoanCloseOfBusiness]
    kind = data.draw(st.sampled_from(kinds))
    arguments = [word for word in _arguments(line) if word not in ("-h", "--help")]
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        refused(lambda: parse_arguments(kind, arguments))


VERBS = [
    *("list --limit=5 --status=FAILURE", "list --since=2026-11-20 --where shards=7 --json"),
    *("get {id}", "audit {id} --json", "components {id} --status=FAILURE", "rejects {id}"),
    *("results {id}", "reports {id}", "logs {id} --component=A1", "pause {id} --why=x"),
    *("resume {id}", "cancel {id}", "set-rate {id} 10 --ramp-from=1 --ramp-seconds=5"),
    *("set-parallelism {id} 5", "schema list", "verify results/x", "workloads --json"),
    *("wait {id} --timeout=0.01", "expire", "--version"),
]


@pytest.fixture(scope="module")
def run_id(folder: Path) -> str:
    with Registry.open(f"sqlite:///{folder}/registry.db") as registry:
        run = submitted(registry, uri=str(folder / "run"))
        play(registry, run.id, "start fail")
    return run.id


@given(data=st.data())
@cases()
def test_command_lines(folder: Path, run_id: str, data: st.DataObject) -> None:
    verb, _, rest = data.draw(st.sampled_from(VERBS)).format(id=run_id).partition(" ")
    words = _arguments(data.draw(mutated_text(rest, [f" {word} " for word in WORDS])))
    out, err = StringIO(), StringIO()
    environment = {**os.environ, REGISTRY: f"sqlite:///{folder}/registry.db"}
    status: object = 0
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", ["ledgerbeam", verb, *words]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code or 0
    assert status in {*Exit}, f"{status}: {err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    if status == Exit.FAILURE and verb != "wait":  # the run of which has failed
        assert len(err.getvalue().splitlines()) == 1, err.getvalue()
