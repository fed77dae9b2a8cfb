"""A job on Dataflow, by the service's REST API, version v1b3.

https://docs.cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.jobs
"""

import time
from typing import Any

import requests

from ledgerbeam.batch.rest import Rest
from ledgerbeam.io.errors import UserError

ENDPOINT = "https://dataflow.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_ENDED = tuple(
    f"JOB_STATE_{state}" for state in ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
)


class DataflowJob:
    """A job that is known by its name, which is unique among those of a project that go on.

    Attributes:
        poll_seconds: how long to wait before the service is asked again.
    """

    poll_seconds = 5.0

    def __init__(
        self, project: str, region: str, name: str, endpoint: str = ENDPOINT, auth: bool = True
    ) -> None:
        """Look for nothing yet.

        Args:
            project: of Google Cloud.
            region: that the job runs in.
            name: of the job.
            endpoint: URL of the service.
            auth: whether it wants credentials: those that the environment has by default.

        Raises:
            UserError: there are no credentials.
        """
        self._dataflow = Rest(endpoint, _authorized() if auth else requests.Session())
        self._path = f"/v1b3/projects/{project}/locations/{region}/jobs"
        self._name = name

    def is_alive(self) -> bool:
        """Whether the service has such a job, and it goes on."""
        found = self._find()
        return found is not None and found["currentState"] not in _ENDED

    def cancel(self) -> None:
        """End it; return when it is in a final state."""
        found = self._find()
        while found is not None and found["currentState"] not in _ENDED:
            if found["currentState"] != "JOB_STATE_CANCELLING":
                wish = {"requestedState": "JOB_STATE_CANCELLED"}
                # 400: it has ended in the meantime.
                path = f"{self._path}/{found['id']}"
                self._dataflow.ask("PUT", path, body=wish, allowed=(200, 400))
            time.sleep(self.poll_seconds)
            found = self._find()

    def failure(self) -> str:
        """Why it has failed: the job's messages of errors; empty where it hasn't."""
        found = self._find()
        if found is None or found["currentState"] != "JOB_STATE_FAILED":
            return ""
        query = {"minimumImportance": "JOB_MESSAGE_ERROR"}
        told = self._dataflow.ask("GET", f"{self._path}/{found['id']}/messages", query)
        texts = [message["messageText"] for message in told.get("jobMessages", [])]
        return "\n".join(texts) or "Dataflow knows no reason"

    def _find(self) -> dict[str, Any] | None:
        query = {"filter": "ALL", "name": self._name}
        jobs = self._dataflow.ask("GET", self._path, query).get("jobs", [])
        named = [job for job in jobs if job["name"] == self._name]
        return min(named, key=lambda job: job["currentState"] in _ENDED, default=None)


def _authorized() -> requests.Session:
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import AuthorizedSession
    except ImportError as error:
        raise UserError("Dataflow needs pip install 'ledgerbeam[dataflow]'") from error
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except DefaultCredentialsError as error:
        raise UserError(f"Dataflow: {error}") from error
    session: requests.Session = AuthorizedSession(credentials)
    return session
