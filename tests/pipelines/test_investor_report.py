"""The investor report from files to pages, held against plain Python loan by loan."""

import csv
import datetime
import io
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.published import read_file, read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import MixedCurrenciesError, UserError
from ledgerbeam.pipelines.investor_files import LineSums, _reconciled, file_name
from ledgerbeam.pipelines.investor_report import (
    InvestorReport,
    InvestorReportParameters,
    investors_of,
)
from ledgerbeam.pipelines.loan_close_of_business import CloseParameters, LoanCloseOfBusiness
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.loans.book import Transactions
from ledgerbeam.rules.loans.loan import RATE_SCALE, Partials, Policy
from ledgerbeam.rules.loans.tables import read_states, read_terms, with_state_columns
from ledgerbeam.rules.money import units
from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS, PoolTotal, pool_totals
from ledgerbeam.rules.remittance.remit import RemittanceType
from ledgerbeam.rules.remittance.report_line import Holding, ReportLine, report_line
from ledgerbeam.rules.remittance.report_line_many import REPORT_SCHEMA
from ledgerbeam.synthetic.loans import TRANSACTIONS, investor_table, make_loans, write_loans

DAY = datetime.date(2026, 11, 30)
COUNT, MONTHS, INVESTORS = 150, 3, 4


class Portfolio(NamedTuple):
    """Where the files of a portfolio are."""

    loans: Path
    transactions: Path
    investors: Path

    def process(self, output: Path, **others: Any) -> InvestorReport:
        return InvestorReport(self.parameters(output, **others))

    def parameters(self, output: Path, **others: Any) -> InvestorReportParameters:
        values = {"business_date": DAY, "output": str(output), **self.flags(), **others}
        return InvestorReportParameters.model_validate(values)

    def flags(self) -> dict[str, str]:
        return {name: str(value) for name, value in self._asdict().items()}


_DEFAULT = Policy()


def portfolio(folder: Path, loans: pa.Table, transactions: pa.Table) -> Portfolio:
    """Write a portfolio in Parquet."""
    folder.mkdir(exist_ok=True)
    files = Portfolio(*(folder / f"{name}.parquet" for name in Portfolio._fields))
    tables = (loans, transactions, investor_table(INVESTORS))
    for path, table in zip(files, tables, strict=True):
        pq.write_table(table, path)
    return files


def made(bad_rows: int = 0) -> tuple[pa.Table, pa.Table]:
    (tables,) = make_loans(
        COUNT, business_date=DAY, months=MONTHS, investors=INVESTORS, bad_rows=bad_rows
    )
    return tables.loans, tables.transactions


def expected_lines(
    loans: pa.Table, transactions: pa.Table, policy: Policy = _DEFAULT
) -> dict[str, ReportLine]:
    """The whole report, by the plain rule, one loan after the other."""
    investors = investors_of(investor_table(INVESTORS))
    loans = with_state_columns(loans)
    terms = read_terms(loans)
    states, _ = read_states(loans, terms)
    participation = units(loans.column("participation"), 6).tolist()
    scheduled = units(loans.column("scheduled_balance"), 2).tolist()
    lines = {}
    for at, (loan_id, investor_id, pool_id) in enumerate(
        zip(*(loans.column(n).to_pylist() for n in ("loan_id", "investor_id", "pool_id")),
            strict=True)
    ):  # fmt: skip
        of_loan = transactions.filter(pc.equal(transactions.column("loan_id"), loan_id))
        rows = Transactions.from_table(of_loan, np.array([0, of_loan.num_rows])).rows(0)
        holding = Holding(investor_id, pool_id, participation[at], scheduled[at])
        lines[loan_id] = report_line(
            terms.row(at), holding, investors[investor_id], states.row(at), rows, DAY, policy
        )
    return lines


def published_lines(manifest: Manifest) -> dict[str, tuple[Any, ...]]:
    table = read_published(instance_uri(manifest)).to_table()
    assert table.schema.equals(REPORT_SCHEMA)
    columns = [
        units(column, 2).tolist() if pa.types.is_decimal(column.type) else column.to_pylist()
        for column in table.columns
    ]
    return {row[0]: row for row in zip(*columns, strict=True)}


def flat(line: ReportLine) -> tuple[Any, ...]:
    return (*line.remittance, *line.money, line.rejections)


def reports_of(manifest: Manifest) -> dict[str, bytes]:
    """The files of the reduce step by their names."""
    uri = instance_uri(manifest)
    return {re.sub(r".*/report-", "", file.name): read_file(uri, file) for file in manifest.reports}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Portfolio:
    return portfolio(tmp_path_factory.mktemp("good") / "p", *made())


@pytest.fixture(scope="module")
def published(good: Portfolio) -> Manifest:
    return run(good.process(good.loans.parent / "out", shards=3))


class TestWhole:
    def test_lines_are_those_of_the_plain_rule(self, published: Manifest) -> None:
        expected = expected_lines(*made())
        assert published_lines(published) == {name: flat(line) for name, line in expected.items()}
        # The portfolio has what is worth reporting on.
        remittances = [line.remittance for line in expected.values()]
        assert any(line.missed_payments for line in remittances)
        assert any(line.payoff for line in remittances)
        assert any(line.money.reversed for line in expected.values())
        assert {line.remittance_type for line in remittances} == {"A/A", "S/A", "S/S"}

    def test_totals_are_those_of_the_lines(self, published: Manifest) -> None:
        lines = [line.remittance for line in expected_lines(*made()).values()]
        pools = pool_totals(
            line for line in lines if any(getattr(line, name) for name in LINE_TOTALS)
        )
        data = reports_of(published)["investor-totals.parquet"]
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        assert [(row["investor_id"], row["pool_id"]) for row in rows] == [
            (pool.investor_id, pool.pool_id) for pool in pools
        ]
        for row, pool in zip(rows, pools, strict=True):
            assert row["currency"] == pool.currency
            assert row["loans"] == pool.loans
            assert {name: int(row[name] * 100) for name in LINE_TOTALS} == pool.amounts
            buckets = ("current", "30", "60", "90", "120_plus")
            assert tuple(row[f"loans_{name}"] for name in buckets) == pool.delinquent
            balances = tuple(int(row[f"balance_{name}"] * 100) for name in buckets)
            assert balances == pool.delinquent_balance

    def test_controls_balance_and_can_be_verified(
        self, good: Portfolio, published: Manifest
    ) -> None:
        names = [control.name for control in published.controls]
        for start in (
            "beginning less principal = ending balance, CAD",
            "received = applied + suspense + rejected + reversed, USD",
            "transactions = received + those of other months and currencies, USD",
        ):
            assert start in names
        verify(instance_uri(published), good.process(good.loans.parent / "out", shards=3))

    def test_each_investor_gets_lines_and_a_page(self, published: Manifest) -> None:
        reports = reports_of(published)
        lines = expected_lines(*made())
        by_investor = Counter(line.remittance.investor_id for line in lines.values())
        assert set(reports) == {"investor-totals.parquet"} | {
            f"{name}.{kind}" for name in by_investor for kind in ("csv", "html")
        }
        for investor_id, count in by_investor.items():
            rows = list(csv.DictReader(reports[f"{investor_id}.csv"].decode().splitlines()))
            assert len(rows) == count
            assert [row["loan_id"] for row in rows] == sorted(row["loan_id"] for row in rows)
            of_usd = [row for row in rows if row["currency"] == "USD"]
            due = sum(Decimal(row["remittance"]) for row in of_usd)
            page = reports[f"{investor_id}.html"].decode()
            assert f"<b>{due:,.2f}</b>" in page
            assert f"Investor {int(investor_id[1:])}" in page
            assert "November 2026" in page
            assert page.count("<svg") == 2 * len({row["currency"] for row in rows})
            # Nothing is loaded from elsewhere.
            assert not re.search(r"""(src|href)=["']?(http|//)|@import""", page)

    def test_reports_are_the_same_however_the_work_was_cut(
        self, good: Portfolio, published: Manifest, tmp_path: Path
    ) -> None:
        again = run(good.process(tmp_path / "out", shards=1))
        assert reports_of(again) == reports_of(published)

    def test_csv_gives_the_same(self, published: Manifest, tmp_path: Path) -> None:
        write_loans(
            str(tmp_path), COUNT, files=1, format="csv", investors=INVESTORS, business_date=DAY,
            months=MONTHS,
        )  # fmt: skip
        files = Portfolio(
            tmp_path / "loans-*.csv", tmp_path / "transactions-*.csv", tmp_path / "investors.csv"
        )
        manifest = run(files.process(tmp_path / "out", shards=3))
        parts = [[c.part.sha256 for c in each.shards] for each in (manifest, published)]
        assert parts[0] == parts[1]


class TestBadInput:
    def test_each_kind_of_bad_row(self, tmp_path: Path) -> None:
        loans, transactions = made(bad_rows=14)
        in_pool = pc.not_equal(loans.column("currency"), "XTS")
        files = portfolio(tmp_path / "p", loans.filter(in_pool), transactions)
        with pytest.raises(UserError, match=r"nothing published: .* rows rejected"):
            run(files.process(tmp_path / "out"))
        manifest = run(files.process(tmp_path / "out", max_rejects=1_000))
        uri = instance_uri(manifest)
        rejects = [
            row
            for path in Path(uri).glob("attempt-*/rejects-*.parquet")
            for row in pq.read_table(path).to_pylist()
        ]
        reasons = {re.sub(r"[A-Z]\d+", "#", row["reason"].split(":")[0]) for row in rejects}
        assert reasons == {
            "investor # of loan # is unknown",
            "loan_id # comes 2 times",
            "there is no loan_id # in loans",
        }
        assert {Path(row["file"]).name for row in rejects} == {
            "loans.parquet", "transactions.parquet",
        }  # fmt: skip
        rejections = [row[-1] for row in published_lines(manifest).values() if row[-1]]
        words = " ".join(rejections)
        assert "is in the past" in words
        assert "is not positive" in words
        assert "is before the loan's origination" in words
        pages = [data for name, data in reports_of(manifest).items() if name.endswith(".html")]
        assert any(b"Rejected transactions" in page for page in pages)
        assert all(control.balances for control in manifest.controls)

    def test_loans_as_a_close_of_business_has_published_them(self, tmp_path: Path) -> None:
        """With changes of rates that no instalment has been paid by."""
        month_end = DAY.replace(day=1) - datetime.timedelta(1)
        boarded, transactions = made()
        changes = [
            {
                **dict.fromkeys(TRANSACTIONS.names),
                "transaction_id": 10**9 + number,
                "loan_id": loan["loan_id"],
                "kind": "rate_change",
                "effective_date": month_end - datetime.timedelta(5),
                "posted_date": month_end - datetime.timedelta(20),
                "amount": Decimal(0),
                "currency": loan["currency"],
                "rate": Decimal("4.250000"),
                "payment": loan["payment"],
            }
            for number, loan in enumerate(boarded.slice(0, 50).to_pylist())
        ]
        more = pa.Table.from_pylist(changes, transactions.schema)
        transactions = pa.concat_tables([transactions, more])
        good = portfolio(tmp_path / "p", boarded, transactions)
        given = {**good.flags(), "business_date": month_end, "output": str(tmp_path)}
        del given["investors"]
        close = LoanCloseOfBusiness(CloseParameters.model_validate(given))
        uri = instance_uri(run(close))
        loans = read_published(uri).to_table()
        assert loans.column("rate_changes").null_count < loans.num_rows
        manifest = run(good.process(tmp_path, loans=uri))
        expected = expected_lines(boarded, transactions)
        assert published_lines(manifest) == {name: flat(line) for name, line in expected.items()}

    def test_the_policy_is_that_of_the_book(self, good: Portfolio, tmp_path: Path) -> None:
        manifest = run(good.process(tmp_path, partials="apply", late_fee_percent="4"))
        policy = Policy(partials=Partials.APPLY, late_fee_rate=4 * 10**RATE_SCALE)
        expected = {name: flat(line) for name, line in expected_lines(*made(), policy).items()}
        assert published_lines(manifest) == expected
        assert expected != {name: flat(line) for name, line in expected_lines(*made()).items()}

    def test_currencies_mixed_in_a_pool_block_publication(self, tmp_path: Path) -> None:
        loans, transactions = made()
        currency = loans.column("currency").to_pylist()
        at = currency.index("USD")
        currency[at] = "EUR"
        loan_id, pool = loans.column("loan_id")[at], loans.column("pool_id")[at]
        where = loans.column_names.index("currency")
        mixed = loans.set_column(where, "currency", pa.array(currency))
        files = portfolio(tmp_path / "p", mixed, transactions)
        with pytest.raises(MixedCurrenciesError) as error:
            run(files.process(tmp_path / "out"))
        assert error.value.currencies == ("EUR", "USD")
        assert (error.value.row, error.value.value) == (at + 1, "EUR")
        assert f"pool {pool} of investor" in str(error.value)
        assert f"loans in EUR and USD: amounts of different currencies can't be added: loan {loan_id} (" in str(error.value)  # fmt: skip  # noqa: E501
        assert re.search(rf"loans[^ ]*\.parquet row {at + 1}\) is in EUR", str(error.value))
        assert not list(tmp_path.glob("out/**/manifest.json"))

    def test_money_of_another_currency_is_accounted_for(self, tmp_path: Path) -> None:
        loans, transactions = made()
        foreign = transactions.slice(0, 1).to_pylist()
        foreign[0] |= {"transaction_id": 1, "currency": "EUR", "amount": Decimal("12.34")}
        foreign[0]["posted_date"] = foreign[0]["effective_date"] = DAY
        added = pa.concat_tables([transactions, pa.Table.from_pylist(foreign, TRANSACTIONS)])
        manifest = run(portfolio(tmp_path / "p", loans, added).process(tmp_path / "out"))
        assert manifest.totals["transactions_amount_EUR"] == 12_34
        (line,) = [row for row in published_lines(manifest).values() if row[-1]]
        assert line[-1] == f"transaction 1: currency EUR is not the loan's {line[3]}"

    @pytest.mark.parametrize(
        ("column", "value", "reason"),
        [
            ("closed_through", datetime.date(2026, 9, 15), "2026-09-15 is not the end of a month"),
            ("closed_through", DAY, "closed through 2026-11-30, there is no month up to"),
            ("origination_date", DAY, "is before the loan's origination 2026-11-30"),
            ("due_day", 32, "due_day 32 is above 31"),
            ("day_count", "ACT/363", "day_count 'ACT/363' is none of 30/360"),
        ],
    )
    def test_loans_that_have_no_month(
        self, tmp_path: Path, column: str, value: object, reason: str
    ) -> None:
        loans, transactions = made()
        rows = loans.to_pylist()
        rows[3][column] = value
        loans = pa.Table.from_pylist(rows, loans.schema)
        files = portfolio(tmp_path / "p", loans, transactions)
        with pytest.raises(UserError, match=r"loans\.parquet row 4 \(") as error:
            run(files.process(tmp_path / "out"))
        assert reason in str(error.value)

    def test_fees_above_the_rate_fail_the_loan(self, tmp_path: Path) -> None:
        loans, transactions = made()
        rows = loans.to_pylist()
        rows[3]["rate"] = Decimal("0.1")
        loans = pa.Table.from_pylist(rows, loans.schema)
        files = portfolio(tmp_path / "p", loans, transactions)
        with pytest.raises(UserError, match="1 of 150 components failed") as error:
            run(files.process(tmp_path / "out"))
        assert f"first {rows[3]['loan_id']} (ValueError: rate 0.1% is less than the fees" in str(
            error.value
        )

    def test_an_investor_twice(self, good: Portfolio, tmp_path: Path) -> None:
        twice = pa.concat_tables([investor_table(2), investor_table(1)])
        pq.write_table(twice, tmp_path / "investors.parquet")
        files = good._replace(investors=tmp_path / "investors.parquet")
        with pytest.raises(UserError, match="investor_id I0001 comes 2 times"):
            run(files.process(tmp_path / "out"))


def test_other_investors_are_other_input(good: Portfolio, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = run(good.process(output))
    assert run(good.process(output)) == first
    pq.write_table(investor_table(INVESTORS), tmp_path / "others.parquet")
    files = good._replace(investors=tmp_path / "others.parquet")
    with pytest.raises(UserError, match="published already, from other input"):
        run(files.process(output))


class Losing(InvestorReport):
    """Loses a cent of what a loan has received."""

    def execute_components(self, components: Components) -> pa.Table:
        lines = super().execute_components(components)
        where = lines.column_names.index("applied")
        cent = pa.array([Decimal("0.01")] + [Decimal(0)] * (lines.num_rows - 1))
        less = pc.subtract(lines.column(where), cent).cast(lines.schema.field(where).type)
        return lines.set_column(where, "applied", less)


def test_each_input_has_a_profile_of_its_own(good: Portfolio, tmp_path: Path) -> None:
    plain = pq.read_table(good.investors)
    renamed = plain.rename_columns([f"Its {name}" for name in plain.column_names])
    pq.write_table(renamed, tmp_path / "investors.parquet")
    names = "".join(f'{name} = "Its {name}"\n' for name in plain.column_names)
    (tmp_path / "theirs.toml").write_text(f"[columns]\n{names}")
    files = good._replace(investors=tmp_path / "investors.parquet")
    profile = str(tmp_path / "theirs.toml")
    process = files.process(tmp_path, investors_profile=profile)
    with pytest.raises(UserError, match="wrong schema: no column investor_id"):
        kind_of(files.process(tmp_path)).prepare(files.process(tmp_path))
    kind_of(process).prepare(process)
    assert process.lookup_tables["investors"].column("investor_id").to_pylist() == (
        plain.column("investor_id").to_pylist()
    )


def test_a_cent_that_is_lost_blocks_publication(good: Portfolio, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"received = applied \+ suspense \+ rejected"):
        run(Losing(good.parameters(tmp_path / "out")))
    assert not list(tmp_path.glob("out/**/manifest.json"))


def test_totals_that_differ_from_the_lines_block_publication() -> None:
    amounts = dict.fromkeys(LINE_TOTALS, 0) | {"beginning_balance": 100, "ending_balance": 100}
    pool = PoolTotal(
        "I1",
        "P1",
        "USD",
        RemittanceType.ACTUAL_ACTUAL,
        1,
        amounts,
        (1, 0, 0, 0, 0),
        (100, 0, 0, 0, 0),
    )
    by_currency = {f"{name}_USD": value for name, value in amounts.items()}
    assert _reconciled(None, [pool], [LineSums(1, by_currency)])[1]
    with pytest.raises(
        UserError, match=r"beginning_balance of all loans is 1\.01 USD, of all pools 1\.00 USD"
    ):
        _reconciled(None, [pool], [LineSums(1, by_currency | {"beginning_balance_USD": 101})])
    with pytest.raises(UserError, match="2 loans have lines, 1 are in the totals"):
        _reconciled(None, [pool], [LineSums(1, by_currency), LineSums(1, {})])


def test_files_are_called_by_what_any_storage_takes() -> None:
    assert file_name("I0001") == "I0001"
    assert file_name("a/b c") != file_name("a b/c")
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", file_name("a/b ç"))
    ids = [
        "投" * 45,
        "投" * 46,
        "A" * 120,
        "A" * 121,
        "A" * 300,
        "/2f",
        "//",
        "é" + "a9",
        "é" * 300,
    ]
    assert len({file_name(id_).lower() for id_ in ids}) == len(ids)
    assert max(len(f"report-{file_name(id_)}.html".encode()) for id_ in ids) < 150
