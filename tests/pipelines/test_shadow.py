"""Shadow runs of keyed processes: on the same input, without effects, compared with the run."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.fee_rules import FeesEach, FeesTable, fees, write_late
from tests.support.json_lines import lines_of

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.shadow import shadow_of
from ledgerbeam.batch.define.process import Record, Retry, RetryMode, instance_uri
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.rollouts.moves import rollout_of
from ledgerbeam.batch.rollouts.planning import log_of
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import InputChangedError, ParameterError
from ledgerbeam.messages.define.handlers import import_named
from ledgerbeam.pipelines.comparison.drill import of_customer
from ledgerbeam.pipelines.comparison.noise import unknown_rows
from ledgerbeam.pipelines.comparison.shadows import ShadowResult, compare_shadow, plan_process
from ledgerbeam.rules.components import Component

CODE = """
import datetime
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated

import pyarrow as pa

import ledgerbeam as lb

LATE = lb.Contract(
    (
        lb.Column("client", pa.string()),
        lb.Column("number", pa.int64()),
        lb.Column("overdue", pa.decimal128(18, 2)),
    )
)


class LateParameters(lb.FileParameters):
    late: Annotated[str, lb.RowInput(LATE, order="number")]
    business_date: datetime.date


class LateFees(lb.KeyedProcess[LateParameters]):
    name = "late-fees"
    key = ("client",)
    results = pa.schema([("number", pa.int64()), ("fee", pa.decimal128(18, 2))])

    def before(self) -> None:
        self.note("before")

    def after(self, manifest: object) -> None:
        self.note("after")

    def cleanup(self) -> None:
        self.note("cleanup")

    def note(self, hook: str) -> None:
        with open(self.parameters.output + ".hooks", "a") as hooks:
            print(hook, file=hooks)

    def execute(self, component: lb.Component) -> Iterator[dict[str, object]]:
        for number, overdue in zip(component.values("number"), component.values("overdue")):
            yield {"number": number, "fee": overdue / DIVISOR}
"""
LATE = "client,number,overdue\nC1,1,100.00\nC1,2,0.00\nC2,1,30.00\nC3,1,0.00\n"


def code(divisor: int) -> str:
    return CODE.replace("DIVISOR", str(divisor))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a process, its input, and what it has published."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late_fees.py").write_text(code(20))
    (tmp_path / "late.csv").write_text(LATE)
    program = (
        "from ledgerbeam.batch.cli.module import main; import late_fees, sys; "
        "sys.exit(main(late_fees.LateFees))"
    )
    flags = ["--late=late.csv", "--business-date=2026-11-20", "--output=output"]
    subprocess.run([sys.executable, "-c", program, *flags], check=True, timeout=120)
    return tmp_path


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from ledgerbeam.batch.cli.app import main; raise SystemExit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def shadow(*arguments: str) -> subprocess.CompletedProcess[str]:
    of = ("output/late-fees/2026-11-20", "--definition=late_fees:LateFees")
    return command("shadow", *of, *arguments)


def other_environment(folder: Path, module: str) -> str:
    """The Python of an environment that has the same packages, and other code of the process."""
    venv.create(folder, with_pip=False)
    found = subprocess.run(
        [folder / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(found.stdout.strip())
    packages.joinpath("late_fees.py").write_text(module)
    shared = next(path for path in sys.path if path.endswith("site-packages"))
    packages.joinpath("shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")
    return str(folder / "bin" / "python")


def test_code_of_another_environment_is_compared_with_the_run(here: Path) -> None:
    hooks = (here / "output.hooks").read_text()
    python = other_environment(here / "candidate", code(10))
    done = shadow(f"--candidate-python={python}", "--baseline", "--json", "--output=shadows")
    assert done.returncode == Exit.DIFFERENT, done.stderr
    (line,) = lines_of(done.stdout)
    assert (line["totals"]["keys_changed"], line["totals"]["keys_same"]) == (2, 2)
    assert line["totals"]["net_fee"]["amount"] == "6.50"
    page = Path(line["page"]).read_text()
    assert "none</strong> of\n4 rows came out different" in page
    candidate = load_manifest(str(here / "shadows/candidate/late-fees/2026-11-20"))
    assert candidate.attempt.plan["shadow"]["of"] == str(here / "output/late-fees/2026-11-20")
    # What readers of the process see is what was there, and no hook was called.
    assert sorted(os.listdir("output")) == ["late-fees"]
    assert os.listdir("output/late-fees") == ["2026-11-20"]
    assert (here / "output.hooks").read_text() == hooks
    assert not [*here.glob("shadows/**/*.hooks")]
    # One customer, with the input of both sides.
    told = command(
        "differences", line["published"], "--customer=C2", "--definition=late_fees:LateFees"
    )
    assert told.stdout.splitlines() == [
        "differences",
        "client\tnumber\tcolumn\tbefore\tafter",
        "C2\t1\tfee\t1.50\t3.00",
        "",
        "input late, before",
        "client\tnumber\toverdue",
        "C2\t1\t30.00",
        "",
        "input late, after",
        "client\tnumber\toverdue",
        "C2\t1\t30.00",
    ]


def test_the_same_code_gives_the_same(here: Path) -> None:
    done = shadow("--baseline")
    assert (done.returncode, done.stderr) == (0, "")
    assert "keys same\t4" in done.stdout
    assert os.listdir("output/late-fees") == ["2026-11-20"]


def test_what_the_candidate_says_of_its_failure_is_one_line(here: Path) -> None:
    python = other_environment(here / "candidate", code(0))
    done = shadow(f"--candidate-python={python}")
    assert done.returncode == Exit.FAILURE
    assert done.stderr.splitlines()[-1].startswith(
        f"ledgerbeam: the candidate in {python}: nothing published: "
    )
    python = other_environment(here / "broken", "import nothing_of_that_name")
    done = shadow(f"--candidate-python={python}")
    assert done.returncode == Exit.FAILURE
    assert "No module named 'nothing_of_that_name'" in done.stderr.splitlines()[-1]
    done = shadow("--candidate-python=/nowhere/python")
    assert done.returncode == Exit.USAGE
    assert "--candidate-python=/nowhere/python: No such file" in done.stderr


def test_changed_input_is_refused(here: Path) -> None:
    (here / "late.csv").write_text(LATE.replace("30.00", "31.00"))
    done = shadow()
    assert done.returncode == Exit.FAILURE
    assert "late.csv changed since" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_folder_of_the_process_is_refused(here: Path) -> None:
    again = command(
        "shadow",
        "output/late-fees/2026-11-20",
        "--definition=late_fees:LateFees",
        "--output=output/late-fees",
    )
    assert again.returncode == 0, again.stderr
    kind: Any = import_named("late_fees:LateFees", "definition")
    with pytest.raises(ParameterError, match="is where late-fees itself publishes"):
        shadow_of("output/late-fees/2026-11-20", kind, "output")


class Once(FeesEach):
    name = "fees-each"
    retry = Retry(RetryMode.AT_MOST_ONCE)


class Withholds(FeesEach):
    """Notes what it would do elsewhere, unless it is a shadow."""

    name = "fees-each"

    def by_amount(self, component: Component) -> Iterator[Record]:
        if self.shadow is None:
            Path(self.parameters.folder, "called").touch()
        yield from FeesEach.by_amount(self, component)

    rules = {1: FeesEach.flat, 2: by_amount}  # noqa: RUF012 - as users write it


def published(kind: Any, folder: Path) -> str:
    definition = fees(kind, write_late(folder, 30))
    run(definition)
    return instance_uri(definition)


def compared(of: str, kind: Any, rule: int | None, **flags: str) -> ShadowResult:
    where = f"{kind.__module__}:{kind.__name__}"
    return compare_shadow(plan_process(of, rule, where, None), "", False, flags)


@pytest.mark.parametrize("kind", [FeesEach, FeesTable])
def test_a_rule_is_tried_on_all_before_anybody_has_it(kind: Any, tmp_path: Path) -> None:
    of = published(kind, tmp_path)
    log = log_of(kind(kind.parameters_type.model_validate(load_manifest(of).attempt.parameters)))
    before = rollout_of(log)
    found = compared(of, kind, 2)
    assert found.manifest.totals["keys_changed"] == 90 - 3
    assert found.manifest.totals["net_fee"] == sum(
        (n + 1) * 100 - 1500 for n in range(30) for _ in range(3)
    )
    assert found.definition.exit_status(found.manifest) == Exit.DIFFERENT
    after = read_published(found.definition.parameters.after).to_table()
    assert set(after.column("rule").to_pylist()) == {2}
    same = compared(of, kind, None)
    assert (unknown_rows(same.manifest), same.manifest.totals["keys_same"]) == (0, 90)
    assert rollout_of(log) == before
    assert log.runs(1) == ["2026-11-20"]


def test_keys_that_do_not_tell_rows_apart_are_named(tmp_path: Path) -> None:
    of = published(FeesEach, tmp_path)
    plan = plan_process(of, 2, f"{FeesEach.__module__}:{FeesEach.__name__}", None)
    plan = plan._replace(columns={"keys": "client,loan"})
    with pytest.raises(ParameterError, match="--keys: client,loan doesn't tell the rows"):
        compare_shadow(plan, "", False, {})


def test_effects_can_be_withheld(tmp_path: Path) -> None:
    of = published(FeesEach, tmp_path)
    compared(of, Withholds, 2)
    assert not (tmp_path / "called").exists()


def test_components_that_may_be_called_once_are_not_called(tmp_path: Path) -> None:
    of = published(FeesEach, tmp_path)
    with pytest.raises(ParameterError, match="a shadow would call 60 of them a second time"):
        shadow_of(of, Once, str(tmp_path / "shadows"), 2)
    with pytest.raises(ParameterError, match="has no rule 3: it has 1, 2"):
        shadow_of(of, FeesEach, str(tmp_path / "shadows"), 3)


def test_the_input_of_a_customer_is_that_of_the_run(tmp_path: Path) -> None:
    of = published(FeesEach, tmp_path)
    found = compared(of, FeesEach, 2)
    where = f"{FeesEach.__module__}:{FeesEach.__name__}"
    tables = {table.what: table.rows for table in of_customer(found.uri, "C3", where)}
    assert [row[-2:] for row in tables["differences"]] == [["15.00", "4.00"]] * 3
    assert tables["input late, before"] == tables["input late, after"]
    assert tables["input late, before"][0] == ["C3", "A", "1", "80.00"]
    with pytest.raises(ParameterError, match="has no row whose client is C99"):
        list(of_customer(found.uri, "C99", where))
    os.utime(tmp_path / "late.parquet", ns=(1, 1))
    with pytest.raises(InputChangedError, match="has changed since"):
        list(of_customer(found.uri, "C3", where))


def test_a_shadow_is_on_record_and_takes_flags_of_beam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGERBEAM_STATE", str(tmp_path / "state"))
    of = published(FeesEach, tmp_path)
    where = f"--definition={FeesEach.__module__}:{FeesEach.__name__}"
    registry = f"--registry=sqlite:///{tmp_path}/runs.db"
    flags = [of, where, "--rule=2", f"--output={tmp_path}/tried", registry]
    done = command("shadow", *flags, "--runner=FnApiRunner", "--json")
    assert done.returncode == Exit.DIFFERENT, done.stderr
    (told,) = lines_of(done.stdout)
    (run_,) = lines_of(command("list", registry, "--json").stdout)
    assert (run_["process"], run_["status"]) == ("compare", "SUCCESS")
    (shown, *_) = lines_of(command("get", str(run_["id"]), registry, "--json").stdout)
    assert (shown["uri"], shown["reason"]) == (told["published"], f"shadow of {of}")
    candidate = load_manifest(f"{tmp_path}/tried/candidate/fees-each/2026-11-20")
    assert candidate.attempt.plan["shadow"]["of"] == of


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--runer=FlinkRunner", "unknown flag or value --runer=FlinkRunner: see --help"),
        ("--candidate-pyton=python3", "did you mean --candidate-python?"),
    ],
)
def test_misspelt_flags_are_refused(tmp_path: Path, flag: str, message: str) -> None:
    done = command("shadow", str(tmp_path), flag)
    assert done.returncode == Exit.USAGE
    assert message in done.stderr
