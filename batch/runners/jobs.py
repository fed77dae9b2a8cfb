"""Finding the job on an engine that Beam's flags and a name identify."""

import argparse
import re
from collections.abc import Sequence

from ledgerbeam.batch.runners.engine import RunnerJob
from ledgerbeam.io.errors import ParameterError, SecretError

LOCAL_RUNNERS = ("", "directrunner", "direct", "fnapirunner", "fnapi")
"""Names of the local runner in lower case; no name at all is the local runner too."""


_SECRETS = {
    "--s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "--s3_session_token": "AWS_SESSION_TOKEN",
    "--azure_connection_string": "AZURE_STORAGE_CONNECTION_STRING",
}
"""Flags of Beam that hold secrets, and the variable that the same client takes each from."""

_SHORTEST = len("--s3_se")
_SECRET = re.compile(
    "secret|passw|pwd|token|api[-_]?key|private[-_]?key|credential|connection[-_]?string"
)


def runner_of(beam_flags: Sequence[str]) -> str:
    """The runner that the flags name; empty if they name none."""
    return _flag("--runner", beam_flags)


def refuse_secrets(beam_flags: Sequence[str]) -> None:
    """Refuse flags that hold secrets: flags are stored with a run, and shown.

    Raises:
        SecretError: there is one; the message doesn't repeat its value.
    """
    for flag in beam_flags:
        if not flag.startswith("--"):
            continue
        name = flag.partition("=")[0].lower()
        # Beam takes a flag by its first letters, too.
        meant = [known for known in _SECRETS if len(name) >= _SHORTEST and known.startswith(name)]
        if meant or _SECRET.search(name):
            place = _SECRETS.get(meant[0]) if meant else None
            advice = f"set {place}" if place else "have it in a variable or a file of theirs"
            raise SecretError(
                f"{name}: a run's flags are stored and shown, so none may hold a secret: leave it "
                f"out, and {advice} where launchers and workers run"
            )


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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(name, dest="value", default="")
    try:
        return str(parser.parse_known_args(list(beam_flags))[0].value)
    except argparse.ArgumentError:
        raise ParameterError(f"{name}: no value: write {name}=VALUE", parameter=name) from None
