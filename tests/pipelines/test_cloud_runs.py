"""Delivery marking from and to object storage, on emulators of the stores."""

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.busy_proxy import Fault, busy_proxy
from typer.testing import CliRunner

from ledgerbeam.batch.cli.app import app
from ledgerbeam.batch.cli.module import main
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.storage import stores
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.synthetic.formats import TradeFormat
from ledgerbeam.synthetic.trades import write_trades

DATE = datetime.date(2026, 11, 20)


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    status = main(DeliveryMarking, [f"--trade-date={DATE}", "--json", *flags])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
    return result


@pytest.mark.parametrize("format_", ["parquet", "csv", "jsonl.zst", "avro"])
def test_bytes_are_those_of_local_files(
    root: str, tmp_path: Path, format_: TradeFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "local"
    for place in (root, str(local)):
        write_trades(f"{place}/in", 3000, files=3, format=format_, trade_date=DATE, other_dates=0.1)
    flags = (f"--format={format_.partition('.')[0]}", "--shards=3")
    there = run(capsys, f"--trades={root}/in/*.{format_}", f"--output={root}/out", *flags)
    here = run(capsys, f"--trades={local}/in/*.{format_}", f"--output={local}/out", *flags)
    assert there["published"] == f"{root}/out/delivery-marking/{DATE}"
    assert (there["counts"], there["totals"]) == (here["counts"], here["totals"])
    for shard in range(3):
        name = f"attempt-1/part-{shard:05d}-of-00003.parquet"
        published = stores.read_bytes(f"{there['published']}/{name}")
        assert published == stores.read_bytes(f"{here['published']}/{name}")
    assert read_published(str(there["published"])).count_rows() == there["counts"]["rows_out"]
    verified = CliRunner().invoke(app, ["verify", str(there["published"])])
    assert verified.exit_code == 0, verified.output


@pytest.mark.slow
@pytest.mark.parametrize("root", ["s3"], indirect=True)
def test_a_store_that_is_busy_all_the_time_is_published_to_once(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fourth request fails, and half of those have been carried out nevertheless."""
    write_trades(f"{root}/in", 3000, files=3, trade_date=DATE)
    write_trades(f"{tmp_path}/in", 3000, files=3, trade_date=DATE)
    with busy_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.choose = lambda method, number: (
            None if number % 4 else Fault(500 if number % 3 else 503, applied=number % 8 == 0)
        )
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        stores._store.cache_clear()
        there = run(capsys, f"--trades={root}/in/*", f"--output={root}/out", "--shards=3")
        again = run(capsys, f"--trades={root}/in/*", f"--output={root}/out", "--shards=3")
    stores._store.cache_clear()
    here = run(capsys, f"--trades={tmp_path}/in/*", f"--output={tmp_path}/out", "--shards=3")
    assert {method for method, fault in proxy.faults if fault.applied} >= {"PUT", "GET"}
    assert (there["counts"], there["totals"]) == (here["counts"], here["totals"])
    assert (there["attempt"], again["attempt"]) == (1, 1)
    names = [
        {file.uri.rpartition("/")[2] for file in stores.find(f"{place}/out/**/attempt-1/*")}
        for place in (root, str(tmp_path))
    ]
    assert names[0] == names[1]
    assert CliRunner().invoke(app, ["verify", str(there["published"])]).exit_code == 0


def test_rejects_are_named_by_their_uri(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    stores.create(
        f"{root}/in/a.csv", b"id,client_code,symbol,side,quantity\n1,A,S,B,1\n2,A,S,X,1\n"
    )
    status = main(
        DeliveryMarking, [f"--trades={root}/in/*", f"--trade-date={DATE}", f"--output={root}/out"]
    )
    line = capsys.readouterr().err
    assert status == 1
    assert f"{root}/in/a.csv row 3 (side 'X' is none of B, S" in line
    assert stores.stat_of(f"{root}/out/delivery-marking/{DATE}/manifest.json") is None
    assert len(stores.find(f"{root}/out/delivery-marking/{DATE}/attempt-1/rejects-*")) == 1


def test_missing_bucket_is_one_line(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "://" not in root:
        root = f"{root}/file"
        stores.create(root, b"not a folder")
    else:
        root = root.partition("://")[0] + "://ledgerbeam-no-such-bucket"
    status = main(
        DeliveryMarking, [f"--trades={root}/in/*", f"--trade-date={DATE}", f"--output={root}/out"]
    )
    error = capsys.readouterr().err
    assert status == 1
    assert root in error
    assert len(error.splitlines()) == 1
