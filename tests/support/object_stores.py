"""Object stores of this machine for tests, each in a process of its own, and a faulty network.

`google_cloud_storage()` and `amazon_s3()` start a server on a free port and yield the bucket and
the environment variables by which any process, subprocesses included, finds it.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

BUCKET = "ledgerbeam-test"
FORBIDDEN_BUCKET = "ledgerbeam-forbidden"

# The variable by which a client finds its endpoint.
ENDPOINT = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}


class ObjectStore(NamedTuple):
    """A running store: an existing bucket, as a URI, and the environment that leads there."""

    bucket: str
    env: dict[str, str]


@contextmanager
def google_cloud_storage() -> Iterator[ObjectStore]:
    """Cloud Storage, which also refuses all access to the bucket `FORBIDDEN_BUCKET`."""
    with _server("gs", {}) as url:
        yield ObjectStore(f"gs://{BUCKET}", {"STORAGE_EMULATOR_HOST": url})


@contextmanager
def amazon_s3(*, accept_credentials: bool = True) -> Iterator[ObjectStore]:
    """S3, which answers the first request for any object `…/conflict` with status 409.

    Without `accept_credentials` it knows no account, and refuses all access.
    """
    import boto3

    # The one action that needs no account is the creation of the bucket.
    settings = {} if accept_credentials else {"INITIAL_NO_AUTH_ACTION_COUNT": "1"}
    with _server("s3", settings) as url:
        env = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.session.Session("test", "test", region_name="us-east-1").client(
            "s3", endpoint_url=url
        )
        client.create_bucket(Bucket=BUCKET)
        yield ObjectStore(f"s3://{BUCKET}", env)


class FaultyProxy:
    """A proxy before a store, which cuts connections when told to.

    Attributes:
        url: where it listens.
        cuts: how many answers it has cut.
    """

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._fault: tuple[bytes, int] | None = None
        self._is_down_until = 0.0
        self._clients: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next(self, request: str, after: int) -> None:
        """Pass on only that many bytes of the next answer to a request that begins like this."""
        self._fault = (request.encode(), after)

    def go_down(self, seconds: float) -> None:
        """Cut all connections, and those that are made in the next seconds at once."""
        self._is_down_until = time.monotonic() + seconds
        for client in list(self._clients):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # shutdown, since a close alone does not wake the thread in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if time.monotonic() < self._is_down_until:
                client.close()
            else:
                self._pass_on(client)
        finally:
            self._clients.discard(client)

    def _pass_on(self, client: socket.socket) -> None:
        requests = [b""]
        limit: int | None = None
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            threading.Thread(
                target=self._forward, args=(client, server, requests), daemon=True
            ).start()
            while answer := server.recv(1 << 16):
                final = not answer.startswith(b"HTTP/1.1 100 ")
                if self._fault is not None and final and requests[-1].startswith(self._fault[0]):
                    limit, self._fault = self._fault[1], None
                if limit is not None and limit <= len(answer):
                    self.cuts += 1
                    client.sendall(answer[:limit])
                    break
                client.sendall(answer)
                limit = None if limit is None else limit - len(answer)
            # shutdown, since a close alone is put off while the other thread is in recv().
            client.shutdown(socket.SHUT_RDWR)

    def _forward(self, client: socket.socket, server: socket.socket, requests: list[bytes]) -> None:
        with suppress(OSError):
            while request := client.recv(1 << 16):
                if request.startswith((b"GET ", b"POST ", b"PUT ")):
                    requests.append(request[:100])
                server.sendall(request)
            server.shutdown(socket.SHUT_WR)


@contextmanager
def faulty_proxy(endpoint: str) -> Iterator[FaultyProxy]:
    """A `FaultyProxy` before the endpoint."""
    proxy = FaultyProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


def unused_endpoint() -> str:
    """The URL of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def _server(kind: str, settings: dict[str, str]) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, __file__, kind],
        # It is none of ledgerbeam's processes, which tests look for by their variables.
        env={k: v for k, v in os.environ.items() if not k.startswith("LEDGERBEAM_")} | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            # The server writes its URL once it listens.
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the {kind} server ended with code {process.wait()}")
            yield url
        finally:
            process.terminate()


def _serve(kind: str) -> None:
    """Serve until standard input ends, which it does when whoever started this is gone."""
    logging.disable(logging.WARNING)
    server = {"gs": _gcs_server, "s3": _s3_server}[kind]()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


def _gcs_server() -> Any:
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.storage import Storage

    # The emulator knows no precondition, and takes every generation for the present one.
    server.HANDLERS = tuple(
        (route, {method: _guarded(handler) for method, handler in handlers.items()})
        for route, handlers in server.HANDLERS
    )
    content = Storage(use_memory_fs=True)
    create_bucket(BUCKET, content)
    # Connections are kept, as in real life; each answer comes in two pieces, hence no Nagle.
    server.RequestHandler.protocol_version = "HTTP/1.1"
    server.RequestHandler.disable_nagle_algorithm = True
    ThreadingHTTPServer.request_queue_size = 64
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(server.RequestHandler, content))


_ONE_AT_A_TIME = threading.Lock()


def _guarded(handler: Callable[..., None]) -> Callable[..., None]:
    def handle(request: Any, response: Any, content: Any) -> None:
        _ = request.data  # received before the lock is taken, lest a slow sender hold it
        session = request.query.get("upload_id", [""])[0]
        with _ONE_AT_A_TIME:
            if session in finished:
                response.json(finished[session])
                return
            upload = content.resumable.get(session)
            rejection = _refusal(request, content)
            if rejection is not None:
                response.status = rejection
                response.json({"error": {"code": rejection.value, "message": rejection.phrase}})
                return
            handler(request, response, content)
            if upload is not None and session not in content.resumable:
                finished[session] = upload

    # Cloud Storage says so when the last chunk of an upload comes again; the emulator forgets it.
    finished: dict[str, Any] = {}
    return handle


def _refusal(request: Any, content: Any) -> HTTPStatus | None:
    bucket = request.params.get("bucket_name")
    if bucket == FORBIDDEN_BUCKET:
        return HTTPStatus.FORBIDDEN
    query = {key: values[0] for key, values in request.query.items()}
    name = request.params.get("object_id") or query.get("name")
    if "upload_id" in query:
        name = content.resumable.get(query["upload_id"], {}).get("name")
    elif name is None and isinstance(request.data, dict):
        name = request.data.get("meta", request.data).get("name")
    present = content.objects.get(bucket, {}).get(name, {}).get("generation", "0")
    if query.get("ifGenerationMatch", present) != present:
        return HTTPStatus.PRECONDITION_FAILED
    if query.get("generation", present) != present:
        return HTTPStatus.NOT_FOUND
    return None


def _s3_server() -> Any:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug import Request, Response
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    conflicts = set()

    def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        if request.path.endswith("/conflict") and request.path not in conflicts:
            conflicts.add(request.path)
            request.get_data()
            conflict = "<Error><Code>ConditionalRequestConflict</Code></Error>"
            return Response(conflict, 409)(environ, start_response)
        # moto looks whether the object exists and then writes it, in two steps.
        with _ONE_AT_A_TIME:
            answer: Iterable[bytes] = application(environ, start_response)
            return answer

    return make_server(
        "127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=MotoRequestHandler
    )


if __name__ == "__main__":
    _serve(sys.argv[1])
