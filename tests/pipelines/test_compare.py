"""A comparison from two datasets to what is published, held against plain Python."""

import datetime
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.testing import run_components
from ledgerbeam.io.commit.published import read_part, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import DamagedFileError, ParameterError, UserError
from ledgerbeam.pipelines.comparison.compare import Compare, CompareParameters

DAY = datetime.date(2026, 11, 20)
Row = dict[str, Any]


def loan(loan_id: str, customer: str, currency: str, balance: str | None, note: str = "") -> Row:
    amount = None if balance is None else Decimal(balance)
    return {
        "loan": loan_id,
        "customer": customer,
        "currency": currency,
        "balance": amount,
        "note": note,
    }


BEFORE = [
    loan("L1", "A", "USD", "10.00"),
    loan("L2", "A", "USD", "20.00", "typo"),
    loan("L3", "B", "JPY", "300"),
    loan("L4", "B", "EUR", "5.50"),
    loan("L5", "C", "USD", "7.00"),
    loan("L7", "C", "EUR", "1.00", "<b>typo"),
]
AFTER = [
    loan("L1", "A", "USD", "10.00"),
    loan("L2", "A", "USD", "19.99"),
    loan("L3", "B", "JPY", "305"),
    loan("L4", "B", "USD", "6.50"),
    loan("L6", "<i>D", "USD", "1234567.89"),
    loan("L7", "C", "EUR", "1.00", "type"),
]


def written(path: Path, rows: list[Row], scale: int = 2, files: int = 1, **columns: Any) -> str:
    schema = pa.schema(
        [
            ("loan", pa.string()),
            ("customer", pa.string()),
            ("currency", pa.string()),
            ("balance", pa.decimal128(18, scale)),
            ("note", pa.string()),
        ]
    )
    path.mkdir(parents=True)
    for number in range(files):
        table = pa.Table.from_pylist(rows[number::files], schema)
        for name, value in columns.items():
            table = table.append_column(name, pa.array([value] * table.num_rows))
        pq.write_table(table, path / f"{number}.parquet")
    return f"{path}/*.parquet"


def known(path: Path, *rows: str) -> str:
    path.write_text("\n".join(["column,customer,owner,reason,expires", *rows, ""]))
    return str(path)


def process(before: str, after: str, output: Path, **others: Any) -> Compare:
    values = {
        "before": before,
        "after": after,
        "keys": "loan",
        "customer": "customer",
        "amounts": "balance",
        "currency": "currency",
        "business_date": DAY,
        "output": str(output),
        **others,
    }
    return Compare(CompareParameters.model_validate(values))


def report(manifest: Manifest) -> dict[str, Any]:
    (file,) = (file for file in manifest.reports if file.name.endswith(".json"))
    found: dict[str, Any] = json.loads(Path(instance_uri(manifest), file.name).read_text())
    return found


def page(manifest: Manifest) -> str:
    (file,) = (file for file in manifest.reports if file.name.endswith(".html"))
    return Path(instance_uri(manifest), file.name).read_text()


def flags_of(definition: Compare) -> list[str]:
    values = definition.parameters.model_dump(mode="json", exclude_defaults=True)
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


class TestWorkedExample:
    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        before = written(tmp_path / "before", BEFORE, old=1)
        after = written(tmp_path / "after", AFTER, scale=4, files=2, new="x")
        listed = known(
            tmp_path / "known.csv",
            "note,C,ops,spelling,2026-11-20",
            "note,A,ops,expired the day before,2026-11-19",
        )
        again = written(tmp_path / "again", BEFORE, old=1)
        repeated = run(process(before, again, tmp_path / "noise"))
        definition = process(
            before, after, tmp_path / "out", known=listed, baseline=instance_uri(repeated)
        )
        manifest = run(definition)
        assert verify(instance_uri(manifest), definition)
        return manifest

    def test_each_row_has_a_status_and_a_change(self, manifest: Manifest) -> None:
        rows = read_published(instance_uri(manifest)).to_table()
        assert rows.schema.field("balance_change").type == pa.decimal128(38, 4)
        found = {row["loan"]: row for row in rows.to_pylist()}
        assert {name: (row["comparison"], row["differing"]) for name, row in found.items()} == {
            "L1": ("same", ""),
            "L2": ("changed", "balance,note"),
            "L3": ("changed", "balance"),
            "L4": ("changed", "currency,balance"),
            "L5": ("only_before", ""),
            "L6": ("only_after", ""),
            "L7": ("known", "note"),
        }
        assert {name: row["balance_change"] for name, row in found.items()} == {
            "L1": 0,
            "L2": Decimal("-0.01"),
            "L3": 5,
            "L4": None,
            "L5": -7,
            "L6": Decimal("1234567.89"),
            "L7": 0,
        }
        assert found["L6"]["customer"] == "<i>D"

    def test_both_values_of_each_difference(self, manifest: Manifest) -> None:
        rows = read_published(instance_uri(manifest), table="differences").to_table()
        assert [tuple(row.values()) for row in rows.to_pylist()] == [
            ("L2", "balance", "20.00", "19.9900", False),
            ("L2", "note", "typo", "", False),
            ("L3", "balance", "300.00", "305.0000", False),
            ("L4", "currency", "EUR", "USD", False),
            ("L4", "balance", "5.50", "6.5000", False),
            ("L7", "note", "<b>typo", "type", True),
        ]

    def test_totals_count_minor_units(self, manifest: Manifest) -> None:
        totals = {name: value for name, value in manifest.totals.items() if "balance" in name}
        assert totals == {
            "changed_balance": 3,
            "net_balance_EUR": 0,
            "gross_balance_EUR": 0,
            "net_balance_JPY": 5,
            "gross_balance_JPY": 5,
            "net_balance_USD": 123456788 - 700,
            "gross_balance_USD": 123456790 + 700,
        }

    def test_the_page_and_its_numbers(self, manifest: Manifest) -> None:
        found = report(manifest)
        assert found["rows"] == {
            "same": 1, "changed": 3, "known": 1, "only_before": 1, "only_after": 1,
        }  # fmt: skip
        assert found["columns"] == {"balance": 3, "note": 2, "currency": 1}
        assert found["one_sided_columns"] == {"before": ["old"], "after": ["new"]}
        euro, yen, dollar = found["money"]
        assert (euro["net"], yen["net"], dollar["net"]) == ("0.00", "5", "1234560.88")
        assert dollar["customers"][1] == {
            "customer": "C", "change": "-7.00", "gross": "7.00", "keys": 1,
        }  # fmt: skip
        assert [row["key"] for row in dollar["largest"]] == ["L6", "L5", "L2"]
        sizes = {size["from"]: size["changes"] for size in dollar["sizes"] if size["changes"]}
        assert sizes == {"0.01": 1, "1": 1, "1000000": 1}
        assert [(known["customer"], known["rows"]) for known in found["known"]] == [
            ("A", 1), ("C", 1),
        ]  # fmt: skip
        assert (found["baseline"]["rows"], found["baseline"]["of"]) == (0, len(BEFORE))
        shown = page(manifest)
        assert "There are differences" in shown
        assert "<strong>none</strong> of\n6 rows" in shown
        assert "2026-11-19, expired" in shown
        assert "1,234,560.88" in shown
        # Text from the data is text.
        assert "&lt;i&gt;D" in shown
        assert "<i>D" not in shown


def test_a_dataset_does_not_differ_from_itself(tmp_path: Path) -> None:
    before = written(tmp_path / "before", BEFORE)
    after = written(tmp_path / "after", BEFORE[::-1], files=3)
    manifest = run(process(before, after, tmp_path / "out"))
    assert manifest.totals["keys_same"] == len(BEFORE)
    assert report(manifest)["rows"]["same"] == len(BEFORE)
    assert "No unknown differences" in page(manifest)
    empty = read_published(instance_uri(manifest), table="differences").to_table()
    assert (empty.num_rows, empty.schema.names) == (
        0,
        ["loan", "column", "before", "after", "known"],
    )


def test_noise_in_the_baseline_is_said_and_is_no_pass(tmp_path: Path) -> None:
    before = written(tmp_path / "before", BEFORE)
    noisy = written(tmp_path / "noisy", [BEFORE[0] | {"note": "12:00:01"}, *BEFORE[1:]])
    noise = run(process(before, noisy, tmp_path / "noise"))
    same = written(tmp_path / "same", BEFORE)
    definition = process(before, same, tmp_path / "out", baseline=instance_uri(noise))
    manifest = run(definition)
    assert report(manifest)["baseline"]["rows"] == 1
    assert "The baseline has noise" in page(manifest)
    assert definition.exit_status(manifest) == Exit.DIFFERENT
    with pytest.raises(ParameterError, match="is no comparison of"):
        process(same, before, tmp_path / "out", baseline=instance_uri(noise))


def test_rows_that_one_side_lacks_are_counted_where_they_are_known(tmp_path: Path) -> None:
    before, after = (written(tmp_path / name, rows) for name, rows in (("b", BEFORE), ("a", [])))
    listed = known(tmp_path / "known.csv", "*,B,ops,sold,2026-12-31", "note,*,ops,no,2026-12-31")
    manifest = run(process(before, after, tmp_path / "out", known=listed))
    assert [(known["column"], known["rows"]) for known in report(manifest)["known"]] == [
        ("*", 2), ("note", 0),
    ]  # fmt: skip


def test_many_rows_in_any_shards_are_those_of_a_full_join(tmp_path: Path) -> None:
    chance = random.Random(7)
    rows = {
        str(number): loan(
            str(number), f"C{number % 50}", chance.choice(["USD", "JPY"]), str(number)
        )
        for number in range(3_000)
    }
    changed = {name: dict(row) for name, row in rows.items() if chance.random() < 0.95}
    for row in changed.values():
        if chance.random() < 0.1:
            row["balance"] += chance.randint(-5, 5)
    changed |= {f"new {n}": loan(f"new {n}", "C1", "USD", "1") for n in range(40)}
    before = written(tmp_path / "before", [*rows.values()], files=3)
    after = written(tmp_path / "after", [*changed.values()], files=2)
    manifests = [
        run(process(before, after, tmp_path / f"out-{shards}", shards=shards)) for shards in (1, 7)
    ]
    expected = {}
    for name in rows.keys() | changed.keys():
        old, new = rows.get(name), changed.get(name)
        if old is None or new is None:
            expected[name] = "only_after" if old is None else "only_before"
        else:
            expected[name] = "same" if old == new else "changed"
    for manifest in manifests:
        published = read_published(instance_uri(manifest)).to_table().to_pylist()
        assert {row["loan"]: row["comparison"] for row in published} == expected
        assert report(manifest) == report(manifests[0])
        for status in set(expected.values()):
            assert manifest.totals[f"keys_{status}"] == [*expected.values()].count(status)
    net = {
        currency: sum(row["balance"] for row in changed.values() if row["currency"] == currency)
        - sum(row["balance"] for row in rows.values() if row["currency"] == currency)
        for currency in ("USD", "JPY")
    }
    totals = manifests[0].totals
    assert totals["net_balance_USD"] == net["USD"] * 100
    assert totals["net_balance_JPY"] == net["JPY"]


@pytest.mark.parametrize("is_longer", [True, False])
def test_an_instance_that_has_changed_is_refused(tmp_path: Path, is_longer: bool) -> None:
    first = run(
        process(written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER), tmp_path / "1")
    )
    uri = instance_uri(first)
    file = Path(uri, first.shards[0].part.name)
    data = bytearray(file.read_bytes())
    data[10] ^= 1  # in a page, so that the columns can still be read
    file.chmod(0o600)
    file.write_bytes(data + b"?" * is_longer)
    given = {"customer": "", "amounts": "", "currency": ""}
    with pytest.raises(DamagedFileError, match="not what was published"):
        run(process(uri, uri, tmp_path / "2", **given))


def test_published_instances_and_text_are_compared(tmp_path: Path) -> None:
    first = run(
        process(written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER), tmp_path / "1")
    )
    table = read_part(instance_uri(first), first.shards[0].part)
    pa_csv.write_csv(table.select(["loan", "comparison", "differing"]), tmp_path / "same.csv")
    uri = instance_uri(first)
    parameters = {"customer": "", "amounts": "", "currency": ""}
    second = run(process(uri, str(tmp_path / "same.csv"), tmp_path / "2", **parameters))
    assert second.totals["keys_same"] == 7
    assert report(second)["one_sided_columns"]["before"] == [
        "customer", "currency", "balance_change",
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["repeated", "null"])
def test_rows_that_the_keys_do_not_tell_apart_are_rejected(tmp_path: Path, fault: str) -> None:
    wrong = [*AFTER, AFTER[0]] if fault == "repeated" else [*AFTER, {**AFTER[0], "loan": None}]
    definition = process(
        written(tmp_path / "b", BEFORE), written(tmp_path / "a", wrong), tmp_path / "out"
    )
    with pytest.raises(UserError, match="rejected"):
        run(definition)


class TestParameters:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"keys": "id"}, "--keys: .* has no column id: it has loan, customer"),
            ({"keys": ","}, "--keys: name the columns"),
            ({"keys": "balance"}, "--keys: balance is decimal128.*: keys are integers, texts or"),
            ({"amounts": "note"}, "--amounts: note is string: an amount is a decimal or"),
            ({"currency": "money"}, "--currency: .* has no column money"),
            ({"customer": "who"}, "--customer: .* has no column who"),
        ],
    )
    def test_wrong_names(self, tmp_path: Path, parameters: dict[str, str], message: str) -> None:
        before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER)
        with pytest.raises(ParameterError, match=message):
            process(before, after, tmp_path / "out", **parameters)

    def test_keys_of_two_types(self, tmp_path: Path) -> None:
        before = written(tmp_path / "b", BEFORE, number=1)
        after = written(tmp_path / "a", AFTER, number="1")
        with pytest.raises(ParameterError, match="number is int64 on one side and string"):
            process(before, after, tmp_path / "out", keys="number")

    def test_columns_that_are_ignored_are_not_compared(self, tmp_path: Path) -> None:
        before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER)
        definition = process(before, after, tmp_path / "out", ignore="balance,note")
        assert "changed_balance" not in (totals := run(definition).totals)
        assert totals["changed_currency"] == 1

    def test_sums_without_a_currency_have_the_decimals_of_the_column(self, tmp_path: Path) -> None:
        before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", BEFORE[1:])
        manifest = run(process(before, after, tmp_path / "out", currency=""))
        assert manifest.totals["net_balance"] == -1000
        assert manifest.attempt.total_decimals["net_balance"] == 2
        assert report(manifest)["money"][0]["net"] == "-10.00"


def test_rows_that_one_side_lacks_can_be_known(tmp_path: Path) -> None:
    listed = known(tmp_path / "known.csv", "*,C,ops,moved away,2027-01-01")
    before = written(tmp_path / "b", [*BEFORE, loan("L8", "A", "USD", "1")])
    after = written(tmp_path / "a", [row for row in BEFORE if row["customer"] != "C"])
    totals = run(process(before, after, tmp_path / "out", known=listed)).totals
    assert (totals["keys_known"], totals["keys_only_before"], totals["keys_same"]) == (2, 1, 4)


class TestExitStatus:
    def test_differences_and_none(self, tmp_path: Path) -> None:
        before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER)
        assert main(Compare, flags_of(process(before, after, tmp_path / "1"))) == Exit.DIFFERENT
        assert main(Compare, flags_of(process(before, before, tmp_path / "2"))) == 0
        everything = known(
            tmp_path / "known.csv",
            *(f"{column},*,ops,new rule,2027-01-01" for column in ("*", "balance", "currency")),
            "note,*,ops,new rule,2027-01-01",
        )
        definition = process(before, after, tmp_path / "3", known=everything)
        assert main(Compare, flags_of(definition)) == 0

    def test_errors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER)
        flags = flags_of(process(before, after, tmp_path / "out"))
        assert main(Compare, [*flags, "--keys=nothing"]) == 2
        assert "has no column nothing" in capsys.readouterr().err


def test_components_without_a_pipeline(tmp_path: Path) -> None:
    before, after = written(tmp_path / "b", BEFORE), written(tmp_path / "a", AFTER)
    definition = process(before, after, tmp_path / "out")
    executed = run_components(definition, before=BEFORE, after=AFTER)
    assert [row["comparison"] for row in executed.results] == [
        "same", "changed", "changed", "changed", "only_before", "only_after", "changed",
    ]  # fmt: skip
