"""How Arrow tables travel between workers.

Beam's own conversions refuse decimals, dates and timestamps. What goes through a runner is
compressed, since engines write, send and read each byte several times; what goes through a local
file isn't.
"""

import apache_beam as beam
import pyarrow as pa

from ledgerbeam.io.arrow.stream import read_stream, write_stream

# For fewer rows, the time that each buffer takes is worth more than the bytes that it saves.
_FEW_ROWS = 1000
# Trades take a third of their bytes; higher levels take more time and save nothing more.
_COMPRESSED = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


class ArrowTableCoder(beam.coders.Coder):
    """Encodes a `pa.Table` as an IPC stream; not deterministic, hence not for keys.

    Tables of many rows are compressed.
    """

    def encode(self, value: pa.Table) -> bytes:
        """The stream's bytes."""
        sink = pa.BufferOutputStream()
        write_stream(sink, value, _COMPRESSED if value.num_rows >= _FEW_ROWS else None)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.Table:
        """The table; its columns are views into the bytes."""
        return read_stream(encoded)

    def estimate_size(self, value: pa.Table) -> int:
        """Bytes in memory: Beam's own estimate would encode the table once more."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """False: equal tables can differ in their chunks."""
        return False

    def to_type_hint(self) -> type:
        """The type that this coder is registered for."""
        return pa.Table


beam.coders.registry.register_coder(pa.Table, ArrowTableCoder)
