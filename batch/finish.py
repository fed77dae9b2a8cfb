"""The reduce step: reports over all results of an instance."""

from typing import Any

import apache_beam as beam
import pyarrow as pa

from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.published import read_part
from ledgerbeam.io.records import FileRecord, ShardCommit


class Finish(beam.PTransform):
    """From the shards' markers to the files of the process's reduce step, written."""

    def __init__(
        self, process: BatchProcess[Any], attempt: Attempt, kept: tuple[ShardCommit, ...]
    ) -> None:
        """Hold what the step needs.

        Args:
            process: the definition.
            attempt: in whose name files are written.
            kept: markers of shards that earlier attempts have committed.
        """
        super().__init__()
        self._attempt = attempt
        self._kept = kept
        self._reduce = process.finish()

    def expand(self, commits: beam.PCollection) -> beam.PCollection:
        """`FileRecord`s of what was written; none where the process has no such step."""
        if self._reduce is None:
            return commits | "NoReports" >> beam.Filter(_no_report)
        kept = commits.pipeline | "Kept" >> beam.Create(self._kept, reshuffle=False)
        reports = (
            (commits, kept)
            | "AllShards" >> beam.Flatten()
            | "ReadResults" >> beam.Map(self._read).with_output_types(pa.Table)
            | "Reduce" >> self._reduce
        )
        if not isinstance(reports, tuple):
            return reports | "WriteReports" >> beam.Map(self._write)
        # Flattened first, whole files would wait in memory for the last of them.
        written = [
            each | f"WriteReports{number}" >> beam.Map(self._write)
            for number, each in enumerate(reports)
        ]
        return written | "AllReports" >> beam.Flatten()

    def _read(self, commit: ShardCommit) -> pa.Table:
        return read_part(self._attempt.instance_uri, commit.part)

    def _write(self, report: tuple[str, bytes]) -> FileRecord:
        return self._attempt.write_report(*report)


def _no_report(commit: ShardCommit) -> bool:
    return False
