"""The reduce step: reports over all results of an instance."""

from typing import Any

import apache_beam as beam
import pyarrow as pa

import ledgerbeam.io.arrow.coder  # noqa: F401 - how Beam hands tables on
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import FileRecord, ShardCommit


class Finish(beam.PTransform):
    """Runs the process's reduce step over the results of all shards, and writes its files."""

    def __init__(
        self, process: BatchProcess[Any], attempt: Attempt, kept: tuple[ShardCommit, ...]
    ) -> None:
        """Make the step.

        Args:
            process: the definition.
            attempt: the attempt that writes the files.
            kept: markers of shards that earlier attempts have committed.
        """
        super().__init__()
        self._attempt = attempt
        self._kept = kept
        self._keeps_dictionaries = process.keeps_dictionaries
        self._reduce = process.finish()

    def expand(self, commits: beam.PCollection) -> beam.PCollection:
        """`FileRecord`s of the written files; none if the process has no reduce step."""
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
        # If flattened before writing, whole files would be held in memory until the last is made.
        written = [
            each | f"WriteReports{number}" >> beam.Map(self._write)
            for number, each in enumerate(reports)
        ]
        return written | "AllReports" >> beam.Flatten()

    def _read(self, commit: ShardCommit) -> pa.Table:
        return read_part(self._attempt.instance_uri, commit.part, self._keeps_dictionaries)

    def _write(self, report: tuple[str, bytes]) -> FileRecord:
        return self._attempt.write_report(*report)


def _no_report(commit: ShardCommit) -> bool:
    return False
