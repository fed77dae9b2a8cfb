"""A job on Dataflow, by the service's REST API, version v1b3.

https://docs.cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.jobs
"""

from collections.abc import Iterable

import requests

from ledgerbeam.batch.rest import Rest
from ledgerbeam.batch.runner_jobs import JobState, Listed, RunnerJob
from ledgerbeam.io.errors import UserError

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
    """A job that is known by its name, which is unique among those of a project that go on."""

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
        wish = {"requestedState": "JOB_STATE_CANCELLED"}
        # 400: it has ended.
        self._dataflow.ask("PUT", f"{self._path}/{id}", body=wish, allowed=(200, 400))

    def _reason(self, id: str) -> str:  # noqa: A002
        """The job's messages of errors, a line each."""
        query = {"minimumImportance": "JOB_MESSAGE_ERROR"}
        told = self._dataflow.ask("GET", f"{self._path}/{id}/messages", query)
        return "\n".join(message["messageText"] for message in told.get("jobMessages", []))


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
