"""Profiles: settings for one kind of file, shipped or of a user's own."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.reading import read_whole

from ledgerbeam.batch.cli.module import main
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.readers import ROW_LOCATION
from ledgerbeam.io.datasets.reading import SHIPPED_PROFILES, load_profile, profile_names, reading_of
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.delivery_inputs import TRADES
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.pipelines.repayment_schedules import RepaymentSchedules

PRICES = Contract(
    (
        Column("symbol", pa.string(), dictionary_encoded=True),
        Column("series", pa.string(), dictionary_encoded=True),
        Column("trade_date", pa.date32()),
        Column("close", pa.decimal128(18, 4)),
        Column("volume", pa.int64()),
    )
)
BALANCES = Contract(
    (
        Column("loan_id", pa.string()),
        Column("currency", pa.string(), dictionary_encoded=True),
        Column("balance", pa.decimal128(18, 2), required=False),
        Column("principal", pa.decimal128(18, 2), required=False),
        Column("reporting_month", pa.date32(), required=False),
        Column("first_due_on", pa.date32(), required=False),
    )
)
TRADEBOOK = (
    "symbol,isin,trade_date,exchange,segment,series,trade_type,auction,quantity,price,trade_id,"
    "order_id,order_execution_time\n"
    "TCS,INE467B01029,2026-11-20,NSE,EQ,EQ,buy,false,7.000000,3100.500000,501,9,2026-11-20T10:00:00\n"
    "TCS,INE467B01029,2026-11-20,NSE,EQ,EQ,sell,false,2.000000,3101.000000,502,9,2026-11-20T11:00:00\n"
)


def read(file: Path, contract: Contract, **settings: Any) -> list[dict[str, Any]]:
    planned = plan_input(str(file), contract, reading_of(settings))
    parts = [read_whole(split) for split in planned.splits]
    assert [rejection for part in parts for rejection in part.rejections] == []
    names = {column.name for column in contract.columns} | {ROW_LOCATION}
    tables = [part.table for part in parts]
    kept = [table.select([n for n in table.column_names if n in names]) for table in tables]
    return [row for table in kept for row in table.drop_columns(ROW_LOCATION).to_pylist()]


@pytest.mark.parametrize("name", [path.stem for path in sorted(SHIPPED_PROFILES.glob("*.toml"))])
def test_shipped_profiles_can_be_meant(name: str) -> None:
    assert name in profile_names()
    assert load_profile(name).description
    assert reading_of({"profile": name}).profile == name


@pytest.mark.parametrize(
    ("profile", "text", "symbol"),
    [
        (
            "nse-bhavcopy",
            "TradDt,BizDt,Sgmt,Src,FinInstrmTp,FinInstrmId,ISIN,TckrSymb,SctySrs,ClsPric,"
            "TtlTradgVol\n2026-11-20,2026-11-20,CM,NSE,STK,11,INE467B01029,TCS,EQ,3100.5,90\n",
            "TCS",
        ),
        (
            "bse-bhavcopy",
            "TradDt,BizDt,Sgmt,Src,FinInstrmTp,FinInstrmId,ISIN,TckrSymb,SctySrs,ClsPric,"
            "TtlTradgVol\n2026-11-20,2026-11-20,CM,BSE,STK,532540,INE467B01029,TCS,A,3100.5,90\n",
            "TCS",
        ),
        (
            "nse-bhavcopy-until-2024",
            "SYMBOL,SERIES,OPEN,HIGH,LOW,CLOSE,LAST,PREVCLOSE,TOTTRDQTY,TOTTRDVAL,TIMESTAMP,"
            "TOTALTRADES,ISIN,\nTCS,EQ,1,1,1,3100.5,1,1,90,1,20-NOV-2026,3,INE467B01029,\n",
            "TCS",
        ),
        (
            "bse-bhavcopy-until-2024",
            "SC_CODE,SC_NAME,SC_GROUP,SC_TYPE,OPEN,HIGH,LOW,CLOSE,LAST,PREVCLOSE,NO_TRADES,"
            "NO_OF_SHRS,NET_TURNOV,TDCLOINDI,ISIN_CODE,TRADING_DATE,FILLER2,FILLER3\n"
            "532540,TCS LTD.   ,A ,Q,1,1,1,3100.50,1,1,3,90,1,,INE467B01029,20-Nov-26,,\n",
            "TCS LTD.",
        ),
    ],
)
def test_prices_of_exchanges(tmp_path: Path, profile: str, text: str, symbol: str) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(text)
    (row,) = read(file, PRICES, profile=profile)
    assert row["symbol"] == symbol
    assert row["trade_date"] == datetime.date(2026, 11, 20)
    assert (row["close"], row["volume"]) == (Decimal("3100.5"), 90)


@pytest.mark.parametrize(
    ("profile", "fields", "expected"),
    [
        (
            "fannie-mae-performance",
            {2: "100", 3: "112026", 10: "200000.00", 12: "150000.25", 15: "022020"},
            {"principal": Decimal(200000), "balance": Decimal("150000.25")},
        ),
        (
            "freddie-mac-performance",
            {1: "F20Q1", 2: "202611", 3: "150000.25"},
            {"balance": Decimal("150000.25"), "reporting_month": datetime.date(2026, 11, 1)},
        ),
        (
            "freddie-mac-origination",
            {2: "202002", 11: "200000", 20: "F20Q1"},
            {"principal": Decimal(200000), "first_due_on": datetime.date(2020, 2, 1)},
        ),
    ],
)
@pytest.mark.parametrize("last", ["", "|"])
def test_loans_of_agencies(
    tmp_path: Path, profile: str, fields: dict[int, str], expected: dict[str, Any], last: str
) -> None:
    count = len(load_profile(profile).header)
    file = tmp_path / "loans.txt"
    file.write_text("|".join(fields.get(n, "") for n in range(1, count + 1)) + last + "\n")
    (row,) = read(file, BALANCES, profile=profile)
    assert row["currency"] == "USD"
    assert row["loan_id"] in fields.values()
    assert row.items() >= expected.items()


def run(
    capsys: pytest.CaptureFixture[str], *flags: str, output: str = "out"
) -> tuple[dict[int, Any], str]:
    """Delivery quantities by id, and what was written to standard error."""
    status = main(
        DeliveryMarking, ["--trade-date=2026-11-20", f"--output={output}", "--json", *flags]
    )
    streams = capsys.readouterr()
    if status:
        return {}, streams.err
    uri = json.loads(streams.out.splitlines()[-1])["published"]
    table = read_published(uri).to_table()
    ids, quantities = table.column("id").to_pylist(), table.column("delivery_quantity").to_pylist()
    return dict(zip(ids, quantities, strict=True)), streams.err


def test_a_tradebook_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.csv").write_text(TRADEBOOK)
    flags = ("--trades=book.csv", "--profile=zerodha-tradebook")
    _, error = run(capsys, *flags)
    assert "wrong schema: no column client_code" in error
    constant = "--constants=client_code=AB1234"
    assert run(capsys, *flags, constant) == ({501: 5, 502: 0}, "")
    # Another client is another input.
    assert "from other input" in run(capsys, *flags, "--constants=client_code=AB1235")[1]
    assert run(capsys, *flags, constant) == ({501: 5, 502: 0}, "")
    _, error = run(capsys, *flags, "--constants=client_code=", output="new")
    assert "--constants=client_code=: client_code is missing: correct it" in error
    _, error = run(capsys, *flags, f"{constant},symbol=TCS", output="new")
    assert "it has a column 'symbol', which is given as a constant too" in error


def test_values_are_given_by_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.csv").write_text(TRADEBOOK)
    flags = ("--trades=book.csv", "--columns=id=trade_id,side=trade_type")
    constant = "--constants=client_code=AB1234"
    marked, _ = run(capsys, *flags, constant, "--values=side:buy=B,side:sell=S")
    assert marked == {501: 5, 502: 0}
    # They win over those of a profile, value by value.
    profile = ("--trades=book.csv", "--profile=zerodha-tradebook", constant)
    marked, _ = run(capsys, *profile, "--values=side:sell=B", output="bought")
    assert marked == {501: 7, 502: 2}


def test_a_profile_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("No;Client;Way;Qty;Symbol\n1;C;K;5,0;INFY\n2;C;V;2,0;INFY\n")
    own = Path("profiles/broker.toml")
    own.parent.mkdir()
    own.write_text(
        'format = "csv"\ndelimiter = "|"\ndecimal = ","\n[columns]\nid = ["Number", "No"]\n'
        'client_code = "Client"\nside = "Way"\nquantity = "Qty"\nsymbol = "Symbol"\n'
        '[values.side]\nK = "B"\nV = "S"\n'
    )
    # What is said along with a profile wins.
    flags = ("--trades=t.txt", "--delimiter=;")
    for name in ("profiles/broker.toml", "profiles/broker", str(own.absolute())):
        found = run(capsys, *flags, f"--profile={name}", output=f"out-{len(name)}")
        assert found == ({1: 3, 2: 0}, "")
    monkeypatch.setenv("LEDGERBEAM_PROFILES", str(own.parent.absolute()))
    assert run(capsys, *flags, "--profile=broker") == ({1: 3, 2: 0}, "")
    # A profile that says something else tomorrow is another input then.
    own.write_text(own.read_text().replace('K = "B"\nV = "S"', 'K = "S"\nV = "B"'))
    assert "from other input or with other parameters" in run(capsys, *flags, "--profile=broker")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('delimeter = ";"\n', "own.toml: unknown setting delimeter: it is none of description,"),
        ('[value.side]\nbuy = "B"\n', "own.toml: unknown setting value: it is none of"),
        ("[values.side]\nbuy = 1\n", "own.toml: values.side: Input should be a valid string"),
        ("trim = 1\n", "own.toml: trim: Input should be a valid boolean"),
        ("delimiter = ;\n", "own.toml: not TOML: "),
        ("null = " + "[" * 2_000, "own.toml: not TOML: values are nested too deeply"),
        ('delimiter = ";;"\n', "own.toml: delimiter=;;: it must be one ASCII character"),
    ],
)
def test_a_profile_that_can_not_be_meant(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        reading_of({"profile": str(file)})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such profile: name one of bse-bhavcopy, .*, or a fil"):
        reading_of({"profile": "zerodha"})
    with pytest.raises(UserError, match=r"there is no .*mine\.toml: check the path"):
        reading_of({"profile": f"{tmp_path}/mine"})


def test_two_columns_that_a_profile_takes_for_one(tmp_path: Path) -> None:
    file = tmp_path / "book.csv"
    file.write_text(TRADEBOOK.replace("order_id", "Trade ID"))
    constants = "client_code=C"
    with pytest.raises(UserError, match=r"trade_id and Trade ID are both id .*--columns=id=trade"):
        read(file, TRADES, profile="zerodha-tradebook", constants=constants)
    settings = {"profile": "zerodha-tradebook", "constants": constants}
    rows = read(file, TRADES, **settings, columns="id=trade_id,_=Trade ID")
    assert [row["id"] for row in rows] == [501, 502]


def test_settings_hold_for_workloads_over_loans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "loans.txt"
    file.write_bytes(
        "Kredit;Betrag;Satz;Tag;Laufzeit\nL1;1.200,00;12,0;01.01.2026;6\n".encode("utf-16")
    )
    status = main(
        RepaymentSchedules,
        [
            f"--loans={file}",
            "--format=csv",
            "--business-date=2026-11-20",
            f"--output={tmp_path}/out",
            "--json",
            "--columns=loan_id=Kredit,principal=Betrag,annual_rate_percent=Satz,"
            "disbursed_on=Tag,term=Laufzeit",
            "--constants=currency=EUR,day_count=30/360,frequency=P1M,method=level",
            *("--delimiter=;", "--decimal=,", "--thousands=.", "--encoding=utf-16"),
            "--date-format=%d.%m.%Y",
        ],
    )
    streams = capsys.readouterr()
    assert (status, streams.err) == (0, "")
    result = json.loads(streams.out.splitlines()[-1])
    assert result["totals"]["principal_EUR"]["amount"] == "1200.00"
