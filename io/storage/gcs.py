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

from ledgerbeam.io.storage import object_store
from ledgerbeam.io.storage.base import FileInfo

_TIMEOUT = {
    "timeout": (object_store.CONNECT_SECONDS, object_store.READ_SECONDS),
    "retry": DEFAULT_RETRY.with_timeout(45.0),
}

# Request and expected codes, which the client writes around the server's own message.
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
            StorageError: the bucket can't be listed.
        """
        bucket, name = object_store.split(pattern)
        prefix = object_store.literal_prefix(name)
        with _client_errors("list", pattern):
            blobs = self._client.list_blobs(
                bucket,
                prefix=prefix,
                fields="items(name,size,generation),nextPageToken",
                **_TIMEOUT,
            )
            return sorted(
                FileInfo(f"gs://{bucket}/{blob.name}", blob.size, str(blob.generation))
                for blob in blobs
                if object_store.matches(blob.name, name)
            )

    def stat(self, uri: str) -> FileInfo | None:
        """See `Store.stat`.

        Raises:
            StorageError: the store can't be reached, or refuses the request.
        """
        blob = self._find_blob(uri)
        return None if blob is None else FileInfo(uri, blob.size, str(blob.generation))

    def open_input(self, uri: str) -> pa.NativeFile:
        """See `Store.open_input`. The generation that existed on opening is read.

        Raises:
            StorageError: there is no such object or it can't be read; later, while reading, also
                if that generation is gone.
        """
        found = self._find_blob(uri)
        if found is None:
            raise object_store.missing_error(uri)
        bucket, name = object_store.split(uri)
        container = self._client.bucket(bucket)

        def fetch(start: int, end: int) -> bytes:
            with _client_errors("read", uri):
                # A new blob each time: a download makes a blob forget its generation if the
                # answer doesn't repeat it, and the next range could come from another one.
                blob = container.blob(name, generation=found.generation)
                try:
                    # Raw: otherwise a gzip-encoded object is decompressed, and ranges are ignored.
                    data: bytes = blob.download_as_bytes(
                        start=start, end=end - 1, raw_download=True, checksum=None, **_TIMEOUT
                    )
                except NotFound as error:
                    raise object_store.changed_error(uri, str(found.generation)) from error
                if len(data) != end - start:
                    raise OSError(f"{len(data)} bytes came for a range of {end - start}")
                return data

        return pa.PythonFile(object_store.RangeReader(fetch, found.size), mode="r")

    def read_bytes(self, uri: str) -> bytes:
        """See `Store.read_bytes`.

        Raises:
            UserError: as `open_input` does.
        """
        with self.open_input(uri) as file:
            return bytes(file.read())

    def create(self, uri: str, data: bytes | pa.Buffer, is_private: bool = False) -> bool:
        """See `Store.create`. Relies on the precondition `ifGenerationMatch=0`.

        Raises:
            StorageError: the store refused or did not answer; in the latter case the object may
                have been created.
        """
        bucket, name = object_store.split(uri)
        stream = pa.BufferReader(data)
        # If the answer to an upload is lost, the client tries again and finds its own object.
        # Another writer's object may hold the same bytes; only a token of this call shows whose
        # it is.
        token = uuid.uuid4().hex
        with _client_errors("write", uri):
            blob = self._client.bucket(bucket).blob(name)
            blob.metadata = {object_store.CREATED_BY: token}
            try:
                blob.upload_from_file(
                    stream,
                    size=stream.size(),
                    content_type="application/octet-stream",
                    if_generation_match=0,
                    checksum="crc32c",
                    **_TIMEOUT,
                )
            except PreconditionFailed:
                there = self._find_blob(uri)
                return (
                    there is not None
                    and (there.metadata or {}).get(object_store.CREATED_BY) == token
                )
        return True

    def persist(self, uris: Sequence[str]) -> None:
        """See `Store.persist`: nothing to do, what Cloud Storage has accepted is durable."""

    def delete(self, uri: str) -> None:
        """See `Store.delete`.

        Raises:
            StorageError: the store refused or did not answer.
        """
        bucket, name = object_store.split(uri)
        with _client_errors("delete", uri):
            try:
                self._client.bucket(bucket).blob(name).delete(**_TIMEOUT)
            except NotFound:
                return

    def _find_blob(self, uri: str) -> storage.Blob | None:
        bucket, name = object_store.split(uri)
        with _client_errors("read", uri):
            return self._client.bucket(bucket).get_blob(name, **_TIMEOUT)


@contextmanager
def _client_errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        cause = error.cause if isinstance(error, RetryError) else error
        reason: object = cause
        if isinstance(cause, GoogleAPICallError):
            reason = f"status {cause.code} {_NOISE.sub('', cause.message)}".strip()
        raise object_store.access_error(verb, uri, reason, _advice(cause)) from error


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
