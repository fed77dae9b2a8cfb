"""A pipeline for tests, pinned to the local Fn API runner."""

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_pipeline

from ledgerbeam.batch.runners.beam import local_runner


def pipeline(*flags: str) -> test_pipeline.TestPipeline:
    """A pipeline that runs here and nowhere else."""
    options = PipelineOptions(list(flags))
    return test_pipeline.TestPipeline(runner=local_runner(options), options=options)
