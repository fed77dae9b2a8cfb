"""File formats in which made-up input is written."""

from typing import Literal

TradeFormat = Literal["parquet", "csv", "csv.gz", "jsonl", "jsonl.zst", "avro"]
LoanFormat = Literal["parquet", "csv"]
