"""Finding the job on an engine that Beam's flags and a name identify."""

import argparse
from collections.abc import Sequence

from ledgerbeam.batch.runners.engine import RunnerJob

LOCAL_RUNNERS = ("", "directrunner", "direct", "fnapirunner", "fnapi")
"""Names of the local runner in lower case; no name at all is the local runner too."""


def runner_of(beam_flags: Sequence[str]) -> str:
    """The runner that the flags name; empty if they name none."""
    return _flag("--runner", beam_flags)


def runner_job(beam_flags: Sequence[str], name: str) -> RunnerJob | None:
    """The job with a name; None if it ends with the process that has submitted it."""
    runner = runner_of(beam_flags).lower()
    if runner in ("flinkrunner", "flink"):
        from ledgerbeam.batch.runners.flink import FlinkJob

        master = _flag("--flink_master", beam_flags)
        # For these names Beam starts a cluster for the job, which ends with it.
        if master and master not in ("[local]", "[auto]", "[collection]"):
            return FlinkJob(master, name)
    if runner in ("dataflowrunner", "dataflow"):
        from ledgerbeam.batch.runners.dataflow import ENDPOINT, DataflowJob

        return DataflowJob(
            _flag("--project", beam_flags),
            _flag("--region", beam_flags),
            name,
            _flag("--dataflow_endpoint", beam_flags) or ENDPOINT,
            auth="--no_auth" not in beam_flags,
        )
    return None


def _flag(name: str, beam_flags: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default="")
    return str(parser.parse_known_args(list(beam_flags))[0].value)
