"""A job on a Flink cluster, by Flink's REST API.

Beam's own handle of a job is of no use for this: its `cancel` asks for `/v1/JOB/stop`, which Flink
doesn't have, and it looks for the end ever more rarely, at last once a minute.
"""

import time
from typing import Any

import requests
import tenacity

from ledgerbeam.batch.runner_jobs import RunnerUnavailableError

_TIMEOUT_SECONDS = 10
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
        self._url = (master if "://" in master else f"http://{master}").rstrip("/")
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
                self._ask("PATCH", f"/jobs/{found['jid']}", mode="cancel", allowed=(202, 409))
            time.sleep(self.poll_seconds)
            found = self._find()

    def failure(self) -> str:
        """Why it has failed: a Java exception with its causes; empty where it hasn't."""
        found = self._find()
        if found is None or found["state"] != "FAILED":
            return ""
        exceptions = self._ask("GET", f"/jobs/{found['jid']}/exceptions", allowed=(200,))
        return str(exceptions.get("root-exception") or "Flink knows no reason")

    def _find(self) -> dict[str, Any] | None:
        jobs = self._ask("GET", "/jobs/overview", allowed=(200,))["jobs"]
        # One is submitted once; should a proxy have done so twice, the one that goes on counts.
        named = [job for job in jobs if job["name"] == self._name]
        return min(named, key=lambda job: job["state"] in _ENDED, default=None)

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(RunnerUnavailableError),
        wait=tenacity.wait_exponential(0.2),
        stop=tenacity.stop_after_attempt(4),
        reraise=True,
    )
    def _ask(self, method: str, path: str, *, allowed: tuple[int, ...], **query: str) -> Any:
        url = f"{self._url}{path}"
        try:
            answer = requests.request(method, url, params=query, timeout=_TIMEOUT_SECONDS)
            if answer.status_code in allowed:
                return answer.json() if answer.content else {}
        except requests.RequestException as error:
            raise RunnerUnavailableError(f"{url}: {type(error).__name__}") from error
        raise RunnerUnavailableError(f"{url}: status {answer.status_code}: {answer.text[:200]}")
