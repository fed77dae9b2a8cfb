"""A job on Dataflow, through the service's REST API, version v1b3.

https://docs.cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.jobs
"""

from collections.abc import Iterable

import requests

from ledgerbeam.batch.runners.engine import JobState, Listed, RunnerJob
from ledgerbeam.batch.runners.rest import Rest
from ledgerbeam.io.errors import RunnerError

ENDPOINT = "https://dataflow.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_STATES = {
    "JOB_STATE_CANCELLING": JobState.ENDING,
    "JOB_STATE_CANCELLED": JobState.ENDED,
    "JOB_STATE_DONE": JobState.ENDED,
    "JOB_STATE_DRAINED": JobState.ENDED,
    "JOB_STATE_UPDATED": JobState.ENDED,
    "JOB_STATE_FAILED": JobState.FAILED,
}


class DataflowJob(RunnerJob):
    """A job identified by its name, which is unique among a project's running jobs."""

    poll_seconds = 5.0

    def __init__(
        self, project: str, region: str, name: str, endpoint: str = ENDPOINT, auth: bool = True
    ) -> None:
        """Make a handle of a job, without asking the service.

        Args:
            project: the project of Google Cloud.
            region: the region that the job runs in.
            name: the name of the job.
            endpoint: URL of the service.
            auth: whether to send credentials: the default ones of the environment.

        Raises:
            RunnerError: there are no credentials.
        """
        super().__init__(name)
        self._dataflow = Rest(endpoint, _authorized() if auth else requests.Session())
        self._path = f"/v1b3/projects/{project}/locations/{region}/jobs"

    def _jobs(self) -> Iterable[Listed]:
        query = {"filter": "ALL", "name": self._name}
        for job in self._dataflow.ask("GET", self._path, query).get("jobs", []):
            yield Listed(
                job["id"], job["name"], _STATES.get(job["currentState"], JobState.GOING_ON)
            )

    def _ask_to_end(self, id: str) -> None:  # noqa: A002
        body = {"requestedState": "JOB_STATE_CANCELLED"}
        # Status 400: the job has already ended.
        self._dataflow.ask("PUT", f"{self._path}/{id}", body=body, allowed=(200, 400))

    def _reason(self, id: str) -> str:  # noqa: A002
        """The job's error messages, one per line."""
        query = {"minimumImportance": "JOB_MESSAGE_ERROR"}
        found = self._dataflow.ask("GET", f"{self._path}/{id}/messages", query)
        return "\n".join(message["messageText"] for message in found.get("jobMessages", []))


def _authorized() -> requests.Session:
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import AuthorizedSession
    except ImportError as error:
        raise RunnerError(
            "Dataflow needs pip install 'ledgerbeam[dataflow]'", runner="DataflowRunner"
        ) from error
    try:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    except DefaultCredentialsError as error:
        raise RunnerError(f"Dataflow: {error}", runner="DataflowRunner") from error
    session: requests.Session = AuthorizedSession(credentials)
    return session
