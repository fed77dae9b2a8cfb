"""A job on a Flink cluster, through Flink's REST API.

Beam's own handle of a job can't be used: its `cancel` calls `/v1/JOB/stop`, which Flink doesn't
have, and it polls for the end more and more rarely, at last once a minute.
"""

from collections.abc import Iterable

import requests

from ledgerbeam.batch.runners.engine import JobState, Listed, RunnerJob
from ledgerbeam.batch.runners.rest import Rest

_STATES = {
    "CANCELLING": JobState.ENDING,
    "CANCELED": JobState.ENDED,
    "FINISHED": JobState.ENDED,
    "FAILED": JobState.FAILED,
}


class FlinkJob(RunnerJob):
    """A job identified by its name."""

    poll_seconds = 0.5

    def __init__(self, master: str, name: str) -> None:
        """Make a handle of a job, without asking the cluster.

        Args:
            master: `HOST:PORT` or URL of the cluster's REST endpoint, as for `--flink_master`.
            name: the name of the job.
        """
        super().__init__(name)
        url = master if "://" in master else f"http://{master}"
        self._flink = Rest(url, requests.Session())

    def _jobs(self) -> Iterable[Listed]:
        for job in self._flink.ask("GET", "/jobs/overview")["jobs"]:
            yield Listed(job["jid"], job["name"], _STATES.get(job["state"], JobState.GOING_ON))

    def _ask_to_end(self, id: str) -> None:  # noqa: A002
        # Status 409: the job has already ended.
        self._flink.ask("PATCH", f"/jobs/{id}", query={"mode": "cancel"}, allowed=(202, 409))

    def _reason(self, id: str) -> str:  # noqa: A002
        """A Java exception with its causes."""
        return str(self._flink.ask("GET", f"/jobs/{id}/exceptions").get("root-exception") or "")
