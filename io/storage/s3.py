"""Objects of Amazon S3, and of other stores with its protocol, as `s3://BUCKET/NAME`.

Endpoint, region and credentials are found by boto3: in the environment (`AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, …), in `~/.aws`, or by the machine's role.
"""

import functools
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
import pyarrow as pa
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from ledgerbeam.io.errors import StorageError
from ledgerbeam.io.storage import object_store
from ledgerbeam.io.storage.base import FileInfo

_ATTEMPTS = 5


class S3Store:
    """Objects of S3. Its version of an object is the ETag."""

    @functools.cached_property
    def _client(self) -> Any:
        # A session of its own: the default one must not be used by several threads.
        session = boto3.session.Session()
        config = Config(
            connect_timeout=object_store.CONNECT_SECONDS,
            read_timeout=object_store.READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        )
        try:
            return session.client("s3", config=config)
        except ValueError as error:
            raise StorageError(
                f"cannot reach S3: {error}: set AWS_ENDPOINT_URL to a URL with http:// or https://"
            ) from error

    def find(self, pattern: str) -> list[FileInfo]:
        """See `Store.find`.

        Raises:
            StorageError: the bucket can't be listed.
        """
        bucket, name = object_store.split(pattern)
        prefix = object_store.literal_prefix(name)
        with _client_errors("list", pattern):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix
            )
            return sorted(
                FileInfo(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"])
                for page in pages
                for entry in page.get("Contents", [])
                if object_store.matches(entry["Key"], name)
            )

    def stat(self, uri: str) -> FileInfo | None:
        """See `Store.stat`.

        Raises:
            StorageError: the store can't be reached, or refuses the request.
        """
        head = self._head(uri)
        return None if head is None else FileInfo(uri, head["ContentLength"], head["ETag"])

    def open_input(self, uri: str) -> pa.NativeFile:
        """See `Store.open_input`. The object with the ETag that it had on opening is read.

        Raises:
            StorageError: there is no such object or it can't be read; later, while reading, also
                if it has been replaced or deleted.
        """
        head = self._head(uri)
        if head is None:
            raise object_store.missing_error(uri)
        bucket, name = object_store.split(uri)

        def fetch(start: int, end: int) -> bytes:
            with _client_errors("read", uri):
                try:
                    return self._get_range(bucket, name, head["ETag"], start, end)
                except ClientError as error:
                    if _status(error) in (404, 412):
                        raise object_store.changed_error(uri, head["ETag"]) from error
                    raise

        return pa.PythonFile(object_store.RangeReader(fetch, head["ContentLength"]), mode="r")

    def read_bytes(self, uri: str) -> bytes:
        """See `Store.read_bytes`.

        Raises:
            UserError: as `open_input` does.
        """
        with self.open_input(uri) as file:
            return bytes(file.read())

    def create(self, uri: str, data: bytes | pa.Buffer, is_private: bool = False) -> bool:
        """See `Store.create`. Relies on the precondition `If-None-Match: *`.

        Raises:
            StorageError: the store refused or did not answer; in the latter case the object may
                have been created.
        """
        bucket, name = object_store.split(uri)
        # If the answer to an upload is lost, the client tries again and finds its own object.
        # Another writer's object may hold the same bytes; only a token of this call shows whose
        # it is.
        token = uuid.uuid4().hex
        with _client_errors("write", uri):
            for pause in (0.2, 0.5, 1.0, 2.0, None):
                try:
                    self._client.put_object(
                        Bucket=bucket,
                        Key=name,
                        Body=pa.BufferReader(data),
                        ContentType="application/octet-stream",
                        IfNoneMatch="*",
                        Metadata={object_store.CREATED_BY: token},
                    )
                except ClientError as error:
                    if _status(error) == 412:
                        head = self._head(uri)
                        return (
                            head is not None
                            and head["Metadata"].get(object_store.CREATED_BY) == token
                        )
                    # 409: another upload or a deletion is under way, and neither has won yet.
                    if _status(error) != 409 or pause is None:
                        raise
                    time.sleep(pause)
                else:
                    break
        return True

    def persist(self, uris: Sequence[str]) -> None:
        """See `Store.persist`: nothing to do, what S3 has accepted is durable."""

    def delete(self, uri: str) -> None:
        """See `Store.delete`.

        Raises:
            StorageError: the store refused or did not answer.
        """
        bucket, name = object_store.split(uri)
        with _client_errors("delete", uri):
            self._client.delete_object(Bucket=bucket, Key=name)

    def _head(self, uri: str) -> dict[str, Any] | None:
        bucket, name = object_store.split(uri)
        with _client_errors("read", uri):
            try:
                head: dict[str, Any] = self._client.head_object(Bucket=bucket, Key=name)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return head

    def _get_range(self, bucket: str, name: str, etag: str, start: int, end: int) -> bytes:
        # The client repeats a failed request, but not a failed read of its answer.
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._client.get_object(
                    Bucket=bucket, Key=name, Range=f"bytes={start}-{end - 1}", IfMatch=etag
                )
                data: bytes = response["Body"].read()
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if attempt == _ATTEMPTS:
                    raise
            else:
                break
        return data


@contextmanager
def _client_errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise object_store.access_error(verb, uri, error, _advice(error)) from error


def _status(error: ClientError) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status


def _advice(error: Exception) -> str:
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
    if not isinstance(error, ClientError):
        return "check the network, the AWS_… variables and ~/.aws, then run again"
    # What stands in front of a store answers without a code.
    if error.response["Error"].get("Code") in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "the credentials are not valid, check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return {
        400: "check the region, and whether the credentials have expired",
        401: "the credentials are not valid, log in again",
        403: "allow this account s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and "
        "s3:DeleteObject on its objects",
        404: "check the name of the bucket",
        301: "set AWS_DEFAULT_REGION to the region of the bucket",
    }.get(_status(error), "the store is busy or out of order, run again later")
