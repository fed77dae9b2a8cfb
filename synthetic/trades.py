"""A made-up day of trades: of any size, skewed as real trades are, the same for the same seed.

Every value of a trade is a function of the seed and of the trade's row number alone. The same day
therefore comes out whatever the format and the number of files, any range of rows can be made
without the others, and memory doesn't grow with the day.

Clients and symbols follow a Zipf-Mandelbrot law, except for one client who holds 1% of all
trades. Ids are 1..count in an order that looks random. Bad rows can be planted, evenly spread:
an unknown side, a negative quantity, a missing client, and two trades of one client and symbol
with the same id; in text formats half of the negative quantities are words instead.
"""

import datetime
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Required, TypedDict, Unpack

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.synthetic.draws import Bits, Draws, Integers, mixed, zipf_mandelbrot
from ledgerbeam.synthetic.formats import TradeFormat

IdType = Literal["integer", "string"]

BATCH_ROWS = 250_000
FIRST_CLIENT_SHARE = 0.01
ROWS_PER_CLIENT = 100
"""Trades per client if the number of clients isn't given."""

PRICE = pa.decimal128(18, 4)
_TICK = 500  # 0.0500 in units of the price's last decimal
_QUANTITIES = 500


class Generated(NamedTuple):
    """What `write_trades` has written.

    Attributes:
        uris: URIs of the files.
        rows: number of trades, bad ones included.
        size: total size in bytes.
    """

    uris: list[str]
    rows: int
    size: int


def schema(id_type: IdType = "integer") -> pa.Schema:
    """Columns of the trades; `price` in the currency's units, `quantity` in the symbol's."""
    return pa.schema(
        {
            "id": pa.int64() if id_type == "integer" else pa.string(),
            "client_code": pa.string(),
            "symbol": pa.string(),
            "side": pa.string(),
            "quantity": pa.int64(),
            "price": PRICE,
            "trade_date": pa.date32(),
        }
    )


class DayOptions(TypedDict, total=False):
    """Arguments of `trades` besides the count, with the same meaning and defaults."""

    trade_date: Required[datetime.date]
    clients: int | None
    symbols: int
    seed: int
    other_dates: float
    id_type: IdType
    bad_rows: int


def trades(
    count: int,
    *,
    trade_date: datetime.date,
    clients: int | None = None,
    symbols: int = 500,
    seed: int = 7,
    other_dates: float = 0.0,
    id_type: IdType = "integer",
    bad_rows: int = 0,
    rows: range | None = None,
) -> Iterator[pa.RecordBatch]:
    """Make the trades of a day, in batches of at most `BATCH_ROWS`.

    Args:
        count: number of trades of the whole day, bad ones included.
        trade_date: date of all trades except a share of `other_dates`, which are a day older.
        clients: number of clients; by default one for every `ROWS_PER_CLIENT` trades.
        symbols: number of symbols.
        seed: another seed gives another day.
        other_dates: share of trades of the day before, from 0 to 1.
        id_type: strings are `T1`, `T2`, …, which sort in another order than the integers.
        bad_rows: how many of the rows are wrong, each for one reason.
        rows: numbers of the day's rows to make; by default all.

    Returns:
        Batches with the schema `schema(id_type)`.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 <= bad_rows <= count:
        raise ValueError(f"bad_rows={bad_rows} must be from 0 to count={count}")
    if not 0.0 <= other_dates <= 1.0:
        raise ValueError(f"other_dates={other_dates} must be from 0 to 1")
    clients = max(1, count // ROWS_PER_CLIENT) if clients is None else clients
    if min(clients, symbols) < 1:
        raise ValueError(f"clients={clients} and symbols={symbols} must be at least 1")
    day = _Day(count, trade_date, clients, symbols, seed, other_dates, id_type, bad_rows)
    wanted = range(count) if rows is None else rows
    # Not a generator itself, so that wrong arguments are refused at the call.
    return (
        day.batch(np.arange(start, min(start + BATCH_ROWS, wanted.stop)))
        for start in range(wanted.start, wanted.stop, BATCH_ROWS)
    )


def write_trades(
    output: str,
    count: int,
    *,
    files: int = 16,
    format: TradeFormat = "parquet",  # noqa: A002 - what it is called on command lines
    progress: Callable[[int], None] | None = None,
    **day: Unpack[DayOptions],
) -> Generated:
    """Write the day that `trades` gives to files.

    Args:
        output: URI of the folder; the files are `trades-00000-of-00016.parquet` and so on.
        count: number of trades of the whole day, bad ones included.
        files: number of files, each with about as many trades.
        format: file format; Parquet is compressed by snappy, Avro by deflate. Amounts and dates are
            strings in JSON.
        progress: called with the number of trades that were written since its last call.
        **day: other arguments of `trades`.

    Raises:
        UserError: the folder holds trades already, or can't be written.
        ValueError: a number is out of its range.
    """
    if files < 1:
        raise ValueError(f"files={files} must be at least 1")
    present = stores.find(uris.join(uris.escape(output), "trades-*"))
    if present:
        raise _exists(present[0].uri)
    columns = schema(day.get("id_type", "integer"))
    written: list[str] = []
    size = 0
    for number in range(files):
        rows = range(count * number // files, count * (number + 1) // files)
        batches = _reporting(trades(count, rows=rows, **day), progress)
        uri = uris.join(output, f"trades-{number:05}-of-{files:05}.{format}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trades")
            _WRITERS[format](path, columns, batches)
            if not stores.create(uri, _mapped(path)):
                raise _exists(uri)
            size += path.stat().st_size
        written.append(uri)
    return Generated(written, count, size)


@dataclass(frozen=True)
class _Day:
    """The arguments of `trades`, and the values of its rows."""

    count: int
    trade_date: datetime.date
    clients: int
    symbols: int
    seed: int
    other_dates: float
    id_type: IdType
    bad_rows: int

    @property
    def _draws(self) -> Draws:
        return Draws(self.seed)

    def batch(self, rows: Integers) -> pa.RecordBatch:
        """Make the trades of the given rows."""
        faults = self._faults(rows)
        # The second trade of a pair takes its id, client and symbol from the first.
        twins = np.where(faults.twin_of >= 0, faults.twin_of, rows)
        client = self._draws.choice("client", _client_law(self.clients), twins)
        symbol = self._draws.choice("symbol", zipf_mandelbrot(self.symbols), twins)
        side = np.where(self._draws.uniform("side", rows) < 0.5, 0, 1)
        quantity = self._draws.integers("quantity", _QUANTITIES, rows)
        quantity = np.where(faults.kind == _NEGATIVE, -1 - faults.number // 5, quantity)
        of_other_date = (self._draws.uniform("date", rows) < self.other_dates) & (faults.kind < 0)
        epoch_day = (self.trade_date - datetime.date(1970, 1, 1)).days
        columns = [
            self._ids(twins),
            pa.array(_names("C", self.clients)).take(
                pa.array(client, mask=faults.kind == _NO_CLIENT)
            ),
            pa.array(_names("S", self.symbols)).take(pa.array(symbol)),
            pa.array(["B", "S", "X"]).take(pa.array(np.where(faults.kind == _SIDE, 2, side))),
            pa.array(quantity),
            self._prices(symbol, rows),
            pa.array((epoch_day - of_other_date).astype(np.int32)).cast(pa.date32()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema(self.id_type))

    def _ids(self, rows: Integers) -> pa.Array:
        ids = pa.array(1 + _shuffled(rows, self.count, self._draws.salt("id")))
        if self.id_type == "integer":
            return ids
        return pc.binary_join_element_wise("T", ids.cast(pa.string()), "")

    def _prices(self, symbol: Integers, rows: Integers) -> pa.Array:
        """Prices around the symbol's own price of 10.00 to 2,010.00, in ticks of 0.05."""
        base = 220 + self._draws.integers("symbol price", 39_961, symbol)
        ticks = base + self._draws.integers("price", 41, rows) - 20
        words = np.zeros((len(rows), 2), np.int64)  # decimal128: low half, high half
        words[:, 0] = ticks * _TICK
        return pa.Array.from_buffers(PRICE, len(rows), [None, pa.py_buffer(words)])

    def _faults(self, rows: Integers) -> "_Faults":
        """The fault of each row; the bad rows are evenly spread over the day."""
        number = np.full(len(rows), -1, np.int64)
        twin_of = np.full(len(rows), -1, np.int64)
        kind = np.full(len(rows), -1, np.int64)
        if self.bad_rows and len(rows):
            first = -(-int(rows[0]) * self.bad_rows // self.count)
            behind = -(-(int(rows[-1]) + 1) * self.bad_rows // self.count)
            bad = np.arange(first, behind)
            at = bad * self.count // self.bad_rows - rows[0]
            number[at] = bad
            # A pair needs two rows: the first of a pair that isn't complete gets another fault.
            lonely = (bad % 5 == _TWIN_A) & (bad + 1 == self.bad_rows)
            kind[at] = np.where(lonely, _SIDE, bad % 5)
            second = bad % 5 == _TWIN_B
            twin_of[at[second]] = (bad[second] - 1) * self.count // self.bad_rows
        return _Faults(kind, number, twin_of)


_SIDE, _NEGATIVE, _NO_CLIENT, _TWIN_A, _TWIN_B = range(5)


class _Faults(NamedTuple):
    """Faults of rows, in int64 arrays `(rows,)`; -1 for rows without a fault.

    Attributes:
        kind: kind of fault, from `_SIDE` to `_TWIN_B`.
        number: number of the bad row among all bad rows, from 0.
        twin_of: the row whose id, client and symbol this one repeats.
    """

    kind: Integers
    number: Integers
    twin_of: Integers


def _shuffled(rows: Integers, count: int, salt: np.uint64) -> Integers:
    """Give each row its position in a permutation of 0..count-1 that looks random.

    Multiplication by an odd number and a shift-xor are permutations of all numbers of a given
    number of bits. A number that leaves 0..count-1 is permuted again until it is back in that
    range: that gives a permutation of 0..count-1 without holding one in memory.
    """
    bits = max(2, (count - 1).bit_length())
    mask = np.uint64((1 << bits) - 1)
    shift = np.uint64(bits // 2)
    rounds = mixed(salt + np.arange(6, dtype=np.uint64)).reshape(3, 2)

    def permute(numbers: Bits) -> Bits:
        for factor, offset in rounds:
            numbers = (numbers * (factor | np.uint64(1)) + offset) & mask
            numbers = numbers ^ (numbers >> shift)
        return numbers

    places = permute(rows.astype(np.uint64))
    while (outside := places >= count).any():
        places[outside] = permute(places[outside])
    return places.astype(np.int64)


@functools.cache
def _client_law(clients: int) -> npt.NDArray[np.float64]:
    """Cumulative shares `(clients,)`: the first client has 1%, the others the rest by their law."""
    if clients == 1:
        return np.ones(1)
    others = FIRST_CLIENT_SHARE + (1 - FIRST_CLIENT_SHARE) * zipf_mandelbrot(clients - 1)
    return np.concatenate([[FIRST_CLIENT_SHARE], others])


@functools.cache
def _names(prefix: str, count: int) -> pa.StringArray:
    return pa.array([f"{prefix}{number:06}" for number in range(1, count + 1)])


def _reporting(
    batches: Iterable[pa.RecordBatch], progress: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        if progress is not None:
            progress(batch.num_rows)


def _mapped(path: Path) -> pa.Buffer:
    if not path.stat().st_size:
        return pa.py_buffer(b"")  # an empty file can't be mapped
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def _exists(uri: str) -> UserError:
    return ParameterError(
        f"{uri} exists already: trades are never written over: choose another folder, or delete "
        "the trades in this one",
        parameter="--output",
        value=uri,
    )


def _write_parquet(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(str(path), columns, compression="snappy") as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=BATCH_ROWS)


def _write_csv(
    path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch], compression: str | None
) -> None:
    text = pa.schema([(name, pa.string()) for name in columns.names])
    options = pa_csv.WriteOptions(quoting_style="none")
    with (
        pa.output_stream(str(path), compression=compression) as file,
        pa_csv.CSVWriter(file, text, write_options=options) as writer,
    ):
        for batch in batches:
            writer.write_batch(_as_text(batch, word="many"))


def _write_json_lines(
    path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch], compression: str | None
) -> None:
    with pa.output_stream(str(path), compression=compression) as file:
        for batch in batches:
            text = _as_text(batch, word='"many"')
            parts: list[pa.Array | str] = []
            for name, type_ in zip(columns.names, columns.types, strict=True):
                values = text.column(name)
                if type_ != pa.int64():
                    values = pc.binary_join_element_wise('"', values, '"', "")
                parts += [
                    f', "{name}": ' if parts else f'{{"{name}": ',
                    pc.fill_null(values, "null"),
                ]
            lines = pc.binary_join_element_wise(*parts, "}\n", "")
            whole = pa.ListArray.from_arrays([0, len(lines)], lines)
            file.write(pc.binary_join(whole, "")[0].as_buffer())


def _write_avro(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with path.open("wb") as file:
        fastavro.writer(
            file,
            _avro_schema(columns),
            (record for batch in batches for record in batch.to_pylist()),
            codec="deflate",
            sync_marker=b"ledgerbeam trade",  # by default random, so files would differ
        )


def _avro_schema(columns: pa.Schema) -> dict[str, object]:
    types: dict[pa.DataType, object] = {
        pa.int64(): "long",
        pa.string(): ["null", "string"],
        pa.date32(): {"type": "int", "logicalType": "date"},
        PRICE: {
            "type": "bytes",
            "logicalType": "decimal",
            "precision": PRICE.precision,
            "scale": PRICE.scale,
        },
    }
    fields = [{"name": field.name, "type": types[field.type]} for field in columns]
    return {"type": "record", "name": "trade", "fields": fields}


def _as_text(batch: pa.RecordBatch, word: str) -> pa.RecordBatch:
    """All columns as strings, with `word` in place of every other negative quantity."""
    columns = [column.cast(pa.string()) for column in batch.columns]
    at = batch.schema.get_field_index("quantity")
    quantity = batch.column(at).to_numpy()
    is_word = (quantity < 0) & (quantity % 2 == 0)
    columns[at] = pc.if_else(pa.array(is_word), word, columns[at])
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


_WRITERS: dict[TradeFormat, Callable[[Path, pa.Schema, Iterable[pa.RecordBatch]], None]] = {
    "parquet": _write_parquet,
    "csv": functools.partial(_write_csv, compression=None),
    "csv.gz": functools.partial(_write_csv, compression="gzip"),
    "jsonl": functools.partial(_write_json_lines, compression=None),
    "jsonl.zst": functools.partial(_write_json_lines, compression="zstd"),
    "avro": _write_avro,
}
