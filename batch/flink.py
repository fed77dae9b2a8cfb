"""A job on a Flink cluster, by Flink's REST API.

Beam's own handle of a job is of no use for this: its `cancel` asks for `/v1/JOB/stop`, which Flink
doesn't have, and it looks for the end ever more rarely, at last once a minute.
"""

import time
from typing import Any

import requests

from ledgerbeam.batch.rest import Rest

_ENDED = ("FINISHED", "CANCELED", "FAILED")


class FlinkJob:
    """A job that is known by its name.

    Attributes:
        poll_seconds: how long to wait before Flink is asked again.
    """

    poll_seconds = 0.5

    def __init__(self, master: str, name: str) -> None:
        """Look for nothing yet.

        Args:
            master: `HOST:PORT` or the URL of the cluster's REST endpoint, as `--flink_master` has.
            name: of the job.
        """
        url = master if "://" in master else f"http://{master}"
        self._flink = Rest(url, requests.Session())
        self._name = name

    def is_alive(self) -> bool:
        """Whether the cluster has such a job, and it goes on."""
        found = self._find()
        return found is not None and found["state"] not in _ENDED

    def cancel(self) -> None:
        """End it; return when it is in a final state."""
        found = self._find()
        while found is not None and found["state"] not in _ENDED:
            if found["state"] != "CANCELLING":
                # 409: it has ended in the meantime.
                path = f"/jobs/{found['jid']}"
                self._flink.ask("PATCH", path, query={"mode": "cancel"}, allowed=(202, 409))
            time.sleep(self.poll_seconds)
            found = self._find()

    def failure(self) -> str:
        """Why it has failed: a Java exception with its causes; empty where it hasn't."""
        found = self._find()
        if found is None or found["state"] != "FAILED":
            return ""
        exceptions = self._flink.ask("GET", f"/jobs/{found['jid']}/exceptions")
        return str(exceptions.get("root-exception") or "Flink knows no reason")

    def _find(self) -> dict[str, Any] | None:
        jobs = self._flink.ask("GET", "/jobs/overview")["jobs"]
        # One is submitted once; should a proxy have done so twice, the one that goes on counts.
        named = [job for job in jobs if job["name"] == self._name]
        return min(named, key=lambda job: job["state"] in _ENDED, default=None)
