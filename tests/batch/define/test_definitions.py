"""What is wrong with a definition is told when it is made, or by the component that shows it."""

import datetime
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import new_class
from typing import Annotated, Any, cast

import pyarrow as pa
import pytest

import ledgerbeam as lb
from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.errors import DefinitionError, ParameterError
from ledgerbeam.transforms.concurrency.executor import Executor

LOANS = lb.Contract((lb.Column("loan", pa.string()), lb.Column("number", pa.int64())))
MONEY = pa.decimal128(18, 2)


class Given(lb.FileParameters):
    """Parameters of all definitions here."""

    loans: Annotated[str, lb.RowInput(LOANS, order="number")] = ""
    business_date: datetime.date = datetime.date(2026, 11, 20)
    bank: str = "north"


def nothing(self: Any, component: lb.Component) -> Iterator[lb.Record]:
    yield from ()


def define(**members: Any) -> type[lb.KeyedProcess[Given]]:
    """A definition with these members."""
    given = {
        "name": "test",
        "key": ("loan",),
        "results": pa.schema([("amount", MONEY)]),
        "execute": nothing,
        **members,
    }
    base: Any = lb.KeyedProcess[Given]
    made = new_class("Made", (base,), exec_body=lambda namespace: namespace.update(given))
    return cast("type[lb.KeyedProcess[Given]]", made)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"retrry": lb.Retry()}, "Made has retrry, which nothing reads: did you mean retry?"),
        ({"failure_limits": 3}, "did you mean failure_limit?"),
        ({"is_outter": True}, "did you mean is_outer?"),
        ({"befor": lambda self: None}, "did you mean before?"),
        ({"result_total": lambda self, results: {}}, "did you mean result_totals?"),
        ({"key": "loan"}, "Made.key is 'loan', and must be of the type tuple[str, ...]: write"),
        ({"key": ["loan"]}, "Made.key is ['loan'], and must be of the type tuple[str, ...]"),
        ({"key": ("loan", 3)}, "must be of the type tuple[str, ...]"),
        ({"identity": "bank"}, "write identity = ('bank',)"),
        ({"distinct": "loans"}, "must be of the type tuple[str, str] or None"),
        ({"retry": 3}, "Made.retry is 3, and must be of the type Retry"),
        ({"results": ["amount"]}, "Made.results is ['amount'], and must be of the type"),
        ({"failure_limit": 0.5}, "Made.failure_limit is 0.5, and must be of the type int or str"),
        ({"failure_limit": "some"}, "Made: failure_limit must be a count or a share like '0.5%'"),
        ({"parallelism": True}, "Made.parallelism is True, and must be of the type int or None"),
        ({"parallelism": 0}, "Made.parallelism is 0: give more than 0"),
        ({"rate": "fast"}, "Made.rate is 'fast', and must be of the type float or Ramp or None"),
        ({"rate": -1.0}, "Made.rate is -1.0: give more than 0"),
        ({"lost_attempts": 2.0}, "must be of the type int"),
        ({"attempt_deadline": 3600}, "must be of the type timedelta"),
        ({"attempt_deadline": datetime.timedelta()}, "is 0:00:00: give more than 0"),
        ({"sla": "22:00"}, "must be of the type Sla or None"),
        ({"after": "mail"}, "Made.after is 'mail': write it as a method"),
        ({"after": lambda self: None}, "write def after(self, manifest)"),
        ({"execute": lambda self: []}, "write def execute(self, component)"),
    ],
)
def test_a_wrong_attribute_is_one_line(members: dict[str, Any], line: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        define(**members)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attributes_of_its_own_and_properties_are_let_be() -> None:
    made = define(
        rate=lb.Ramp(1, 50, 600),
        parallelism=None,
        date_parameter="business_date",
        rounding="up",
        helper=lambda self: 3,
        _retries=4,
        optional=("note",),
        results_expire_after=datetime.timedelta(days=3),
    )
    assert made(Given(output="o")).instance == "2026-11-20"


def test_an_identity_is_never_empty() -> None:
    made = define(identity=("bank",))
    assert made(Given(output="o", bank="south")).instance == "2026-11-20-bank-south"
    with pytest.raises(ParameterError, match="--bank is empty, and identifies an instance"):
        made(Given(output="o", bank="")).instance  # noqa: B018


def failure(rows: Any, retry: lb.Retry) -> str:
    """The error of a component that gives these rows, or raises this."""

    def call(unit: Any) -> Any:
        if isinstance(rows, BaseException):
            raise rows
        return rows

    executor = Executor(retry, sleep=lambda seconds: None)
    schema = pa.schema([("amount", MONEY)])
    executed = executor.execute_each([1], call, ["A"], schema)
    ((number, failed),) = executed.failed.items()
    assert (number, failed.tries) == (0, 1)
    return failed.error


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ({"amount": Decimal("1.00")}, "execute returned a single row: yield each row"),
        (None, "execute returned nothing: yield each row, or return a list of rows"),
        (["amount"], "execute gave 'amount', which is no row"),
        ([{"amount": Decimal("1.005")}], "amount is Decimal('1.005'), not decimal128(18, 2)"),
        ([{"amount": 1.5}], "amount is 1.5, not decimal128(18, 2)"),
        ([{"amount": "1.00"}], "amount is '1.00', not decimal128(18, 2)"),
        ([{"amuont": 1}], "execute gave the columns amuont, and results has amount"),
        (SystemExit(3), "sys.exit(3) was called: raise an error in its place"),
    ],
)
def test_a_wrong_result_names_its_column(rows: Any, line: str) -> None:
    for retry in (lb.Retry(), lb.Retry(time_limit=60)):
        assert line in failure(rows, retry)


@pytest.mark.parametrize("hook", ["before", "controls", "after", "cleanup", "result_totals"])
def test_a_hook_that_ends_the_program_is_an_error(tmp_path: Path, hook: str) -> None:
    (tmp_path / "loans.csv").write_text("loan,number\nA,1\n")

    parameters = Given(output=str(tmp_path), loans=f"{tmp_path}/loans.csv")
    made = define(**{hook: lambda self, *_: sys.exit(0)})(parameters)
    with pytest.raises(DefinitionError, match=rf"Made\.{hook} has called sys\.exit\(0\)"):
        lb.run(made)


def test_a_declared_rate_limits_the_run(tmp_path: Path) -> None:
    (tmp_path / "loans.csv").write_text("loan,number\nA,1\n")
    for number, rate in enumerate((500.0, lb.Ramp(100, 500, 60))):
        parameters = Given(output=f"{tmp_path}/{number}", loans=f"{tmp_path}/loans.csv")
        process = define(rate=rate)(parameters)
        lb.run(process)
        steering = control_log.latest(lb.instance_uri(process))
        assert (steering.who, steering.why) == ("test", "by definition")
        if number:
            assert steering.ramp is not None
            assert (steering.ramp.from_rate, steering.ramp.to_rate) == (100, 500)
        else:
            assert steering.rate == 500


def test_what_is_wrong_with_its_module_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    modules: Mapping[str, tuple[str, str]] = {
        "typo": ("import ledgerbeam\nledgerbeam.Keyed\n", "AttributeError: module 'ledgerbeam'"),
        "leaves": ("import sys\nsys.exit(0)\n", "ends the program"),
        "syntax": ("def (\n", "SyntaxError"),
    }
    entries = "\n".join(f"{name} = broken_{name}:Process" for name in modules)
    (info / "entry_points.txt").write_text(f"[ledgerbeam.pipelines]\n{entries}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, (text, line) in modules.items():
        (tmp_path / f"broken_{name}.py").write_text(text)
        with pytest.raises(DefinitionError) as caught:
            load_workload(name)
        assert str(caught.value).startswith(
            f"workload {name}: broken_{name}:Process can't be imported: {line}"
        )
        assert "\n" not in str(caught.value)
