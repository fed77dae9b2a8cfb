"""A pipeline for tests, pinned to the local Fn API runner, and attempts that no command starts."""

import datetime
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_pipeline

from ledgerbeam.batch.define.process import BatchProcess, instance_uri
from ledgerbeam.batch.runners.beam import local_runner
from ledgerbeam.io.commit.attempts import Attempt, start_attempt
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.storage.base import FileInfo


def pipeline(*flags: str) -> test_pipeline.TestPipeline:
    """A pipeline that runs here and nowhere else."""
    options = PipelineOptions(list(flags))
    return test_pipeline.TestPipeline(runner=local_runner(options), options=options)


def started_by_hand(
    process: BatchProcess[Any], files: Sequence[FileInfo], shards: int | None
) -> Attempt:
    """The first attempt of an instance, started by no launcher."""
    draft = AttemptRecord(
        process=process.name,
        instance=process.instance,
        number=1,
        started_at=datetime.datetime(2026, 11, 20, 18, tzinfo=datetime.UTC),
        code_version="by hand",
        parameters=process.parameters.model_dump(mode="json"),
        inputs=list(files),
        shards=shards,
        fingerprint="by hand",
    )
    return start_attempt(instance_uri(process), draft)
