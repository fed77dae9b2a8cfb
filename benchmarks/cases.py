"""What the contenders are run on: days of trades, made once and kept for the next time."""

import datetime
import glob
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ledgerbeam.synthetic.formats import TradeFormat
from ledgerbeam.synthetic.trades import write_trades

TRADE_DATE = datetime.date(2026, 11, 20)
SMALL_TRADES = 10_000
_SEED = 7
_SMALL_TYPES = {"id": pa.int64(), "quantity": pa.int64()}

Progress = Callable[[int], None]


class Case(NamedTuple):
    """A day of trades.

    Attributes:
        title: for people.
        trades: how many there are.
        files: in how many Parquet files.
        parquet: glob of the Parquet files.
        ours: the arguments that make the pipeline read it; not always from Parquet.
        columns: what all contenders have to bring out unchanged.
    """

    title: str
    trades: int
    files: int
    parquet: str
    ours: tuple[str, ...]
    columns: tuple[str, ...]


def generated(data: Path, trades: int, files: int, progress: Progress) -> Case:
    """Make a day in Parquet files, unless `data` holds it already."""
    pattern = _written(data, trades, files, "parquet", progress)
    columns = tuple(pq.read_schema(glob.glob(pattern)[0]).names)
    return Case(f"{trades:,} trades", trades, files, pattern, (f"--trades={pattern}",), columns)


def small_generated(data: Path, progress: Progress) -> Case:
    """Make a small day as one CSV file with a header, for the pipeline, and as Parquet."""
    csv = _written(data, SMALL_TRADES, 1, "csv", progress)
    case = generated(data, SMALL_TRADES, 1, progress)
    title = f"{SMALL_TRADES:,} trades, for ledgerbeam from a CSV file"
    return case._replace(title=title, ours=(f"--trades={csv}",))


def small_given(data: Path, csv: Path, columns: str) -> Case:
    """Take a day from a CSV file without a header.

    Args:
        data: where its copy in Parquet goes, from which the other contenders read.
        csv: the file.
        columns: names of its columns in order, separated by commas; `_` leaves one out.
    """
    names = [name if name != "_" else f"_{place}" for place, name in enumerate(columns.split(","))]
    kept = [name for name in names if not name.startswith("_")]
    table = pa_csv.read_csv(
        csv,
        pa_csv.ReadOptions(column_names=names),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: _SMALL_TYPES.get(name, pa.string()) for name in kept},
            include_columns=kept,
        ),
    )
    if "trade_date" not in kept:
        dates = pa.repeat(pa.scalar(TRADE_DATE, pa.date32()), table.num_rows)
        table = table.append_column("trade_date", dates)
    folder = data / f"given-{csv.stem}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "trades.parquet")
    return Case(
        f"{table.num_rows:,} trades of {csv.name}, for ledgerbeam from that CSV file",
        table.num_rows,
        1,
        str(folder / "*.parquet"),
        (f"--trades={csv}", f"--columns={columns}"),
        tuple(kept),
    )


def _written(data: Path, trades: int, files: int, format_: TradeFormat, progress: Progress) -> str:
    folder = data / f"trades-{trades}-seed-{_SEED}-files-{files}-{format_}"
    if not folder.exists():
        # A name of its own until it is complete: what was interrupted is made again.
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_trades(
            str(partial),
            trades,
            files=files,
            format=format_,
            trade_date=TRADE_DATE,
            seed=_SEED,
            progress=progress,
        )
        partial.rename(folder)
    return str(folder / f"*.{format_}")
