"""Objects of Google Cloud Storage, as `gs://BUCKET/NAME`.

Where `STORAGE_EMULATOR_HOST` is set the client talks to that endpoint, without credentials.
"""

import functools
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
from google.api_core.exceptions import (
    GoogleAPICallError,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    RetryError,
)
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from ledgerbeam.io import objects
from ledgerbeam.io.storage import FileInfo

_PATIENCE = {
    "timeout": (objects.CONNECT_SECONDS, objects.READ_SECONDS),
    "retry": DEFAULT_RETRY.with_timeout(45.0),
}

# Request and expectations, which the client writes around what the server had to say.
_NOISE = re.compile(r"^[A-Z]+ \S+: |(: )?\('Request failed with .*$", re.DOTALL)


class GoogleCloudStore:
    """Objects of Google Cloud Storage. Its version of an object is the generation."""

    @functools.cached_property
    def _client(self) -> storage.Client:
        # No operation on objects needs a project; left to itself, the client insists on one.
        return storage.Client(project=None)

    def find(self, pattern: str) -> list[FileInfo]:
        """See `Store.find`.

        Raises:
            UserError: the bucket can't be listed.
        """
        bucket, name = objects.split(pattern)
        prefix = objects.literal_prefix(name)
        with _client_errors("list", pattern):
            blobs = self._client.list_blobs(
                bucket,
                prefix=prefix,
                fields="items(name,size,generation),nextPageToken",
                **_PATIENCE,
            )
            return sorted(
                FileInfo(f"gs://{bucket}/{blob.name}", blob.size, str(blob.generation))
                for blob in blobs
                if objects.matches(blob.name, name)
            )

    def stat(self, uri: str) -> FileInfo | None:
        """See `Store.stat`.

        Raises:
            UserError: the store can't be asked.
        """
        blob = self._find_blob(uri)
        return None if blob is None else FileInfo(uri, blob.size, str(blob.generation))

    def open_input(self, uri: str) -> pa.NativeFile:
        """See `Store.open_input`. What is read is the generation that was there on opening.

        Raises:
            UserError: there is no such object or it can't be read; later, while reading, also
                where that generation is gone.
        """
        found = self._find_blob(uri)
        if found is None:
            raise objects.missing_error(uri)
        bucket, name = objects.split(uri)
        container = self._client.bucket(bucket)

        def fetch(start: int, end: int) -> bytes:
            with _client_errors("read", uri):
                # A new one each time: to download makes a blob forget its generation where the
                # answer does not repeat it, and the next range would come from any other.
                blob = container.blob(name, generation=found.generation)
                try:
                    # Raw: a gzip-encoded object would else arrive unpacked, ranges ignored.
                    data: bytes = blob.download_as_bytes(
                        start=start, end=end - 1, raw_download=True, checksum=None, **_PATIENCE
                    )
                except NotFound as error:
                    raise objects.changed_error(uri, str(found.generation)) from error
                if len(data) != end - start:
                    raise OSError(f"{len(data)} bytes came for a range of {end - start}")
                return data

        return pa.PythonFile(objects.RangeReader(fetch, found.size), mode="r")

    def create(self, uri: str, data: bytes | pa.Buffer) -> bool:
        """See `Store.create`. Relies on the precondition `ifGenerationMatch=0`.

        Raises:
            UserError: the store refused or did not answer; in the latter case the object may have
                been made.
        """
        bucket, name = objects.split(uri)
        stream = pa.BufferReader(data)
        # Where the answer to an upload is lost the client tries again, and finds its own object.
        # Equal bytes would not tell that from another writer's; a token of this call does.
        token = uuid.uuid4().hex
        with _client_errors("write", uri):
            blob = self._client.bucket(bucket).blob(name)
            blob.metadata = {objects.CREATED_BY: token}
            try:
                blob.upload_from_file(
                    stream,
                    size=stream.size(),
                    content_type="application/octet-stream",
                    if_generation_match=0,
                    checksum="crc32c",
                    **_PATIENCE,
                )
            except PreconditionFailed:
                there = self._find_blob(uri)
                return there is not None and (there.metadata or {}).get(objects.CREATED_BY) == token
        return True

    def persist(self, uris: Sequence[str]) -> None:
        """See `Store.persist`: nothing to do, what Cloud Storage has accepted is durable."""

    def delete(self, uri: str) -> None:
        """See `Store.delete`.

        Raises:
            UserError: the store refused or did not answer.
        """
        bucket, name = objects.split(uri)
        with _client_errors("delete", uri):
            try:
                self._client.bucket(bucket).blob(name).delete(**_PATIENCE)
            except NotFound:
                return

    def _find_blob(self, uri: str) -> storage.Blob | None:
        bucket, name = objects.split(uri)
        with _client_errors("read", uri):
            return self._client.bucket(bucket).get_blob(name, **_PATIENCE)


@contextmanager
def _client_errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        cause = error.cause if isinstance(error, RetryError) else error
        reason: object = cause
        if isinstance(cause, GoogleAPICallError):
            reason = f"status {cause.code} {_NOISE.sub('', cause.message)}".strip()
        raise objects.access_error(verb, uri, reason, _advice(cause)) from error


def _advice(error: Exception | None) -> str:
    if isinstance(error, DefaultCredentialsError):
        return (
            "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS "
            "to the file of a service account's key"
        )
    if isinstance(error, GoogleAuthError):
        return "the credentials could not be refreshed, log in again"
    code = error.code if isinstance(error, GoogleAPICallError) else None
    return {
        400: "see the reason",
        401: "the credentials are not valid, run `gcloud auth application-default login`",
        404: "check the name of the bucket",
        403: "grant this account the role Storage Object User on the bucket",
        429: "the store is throttling, run with less parallelism",
    }.get(code or 0, "check the network and STORAGE_EMULATOR_HOST, then run again")
