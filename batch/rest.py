"""Asking an engine's REST API, with patience."""

from collections.abc import Mapping
from typing import Any

import requests
import tenacity

from ledgerbeam.batch.runner_jobs import RunnerUnavailableError

_TIMEOUT_SECONDS = 10


class Rest:
    """An API that answers in JSON."""

    def __init__(self, url: str, session: requests.Session) -> None:
        """Ask nothing yet.

        Args:
            url: that all paths begin with.
            session: brings credentials, where the API wants some.
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
        """What the API answers.

        Args:
            method: of HTTP.
            path: below the API's URL.
            query: parameters of the URL.
            body: is sent as JSON.
            allowed: statuses that are no error.

        Raises:
            RunnerUnavailableError: it can't be reached, or refuses.
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
