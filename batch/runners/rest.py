"""Calls of an engine's REST API, with retries."""

from collections.abc import Mapping
from typing import Any

import requests
import tenacity

from ledgerbeam.io.errors import RunnerUnavailableError

_TIMEOUT_SECONDS = 10


class Rest:
    """A REST API that answers in JSON."""

    def __init__(self, url: str, session: requests.Session) -> None:
        """Make a client.

        Args:
            url: the URL that all paths are appended to.
            session: sends requests, with credentials if the API needs them.
        """
        self._url = url.rstrip("/")
        self._session = session

    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(RunnerUnavailableError),
        wait=tenacity.wait_exponential(0.2),
        stop=tenacity.stop_after_attempt(4),
        reraise=True,
    )
    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        allowed: tuple[int, ...] = (200,),
    ) -> dict[str, Any]:
        """Send a request and return the answer.

        Args:
            method: the HTTP method.
            path: the path below the API's URL.
            query: parameters of the URL.
            body: the body, which is sent as JSON.
            allowed: HTTP statuses that are no error.

        Returns:
            The JSON object of the answer; empty if the answer has no content.

        Raises:
            RunnerUnavailableError: the API can't be reached, or answers with another status.
        """
        url = f"{self._url}{path}"
        try:
            answer = self._session.request(
                method, url, params=query, json=body, timeout=_TIMEOUT_SECONDS
            )
            if answer.status_code in allowed:
                found: dict[str, Any] = answer.json() if answer.content else {}
                return found
        except requests.RequestException as error:
            raise RunnerUnavailableError(f"{url}: {type(error).__name__}") from error
        raise RunnerUnavailableError(f"{url}: status {answer.status_code}: {answer.text[:200]}")
