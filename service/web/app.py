"""The front end as an ASGI application.

    uvicorn --factory ledgerbeam.service.web.app:from_environment

It holds no state: any number of replicas may stand behind a load balancer.
"""

import asyncio
import functools
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledgerbeam import __version__
from ledgerbeam.batch import traces
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import BugError, LedgerbeamError, UserError
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.access.front import Front
from ledgerbeam.service.document import complete
from ledgerbeam.service.errors import BadRequestError, BodyTooLargeError
from ledgerbeam.service.model import MAX_BODY
from ledgerbeam.service.problems import MEDIA_TYPE, problem_of, status_of, title_of, type_of
from ledgerbeam.service.web import (
    approvals,
    bulk,
    health,
    inline,
    messages,
    pages,
    queues,
    requests,
    runs,
)
from ledgerbeam.service.web.render import error_page, is_page

_PARTS = (requests, runs, approvals, bulk, inline, queues, health)
_BODY_SECONDS = 20.0
_HEADERS = [
    (name.lower().encode(), value.encode())
    for name, value in {
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; frame-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        # With `no-referrer`, browsers call the origin of our own forms `null`.
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }.items()
]


def from_environment() -> FastAPI:
    """The application for servers that import one; its callers always need keys."""
    return create_app(Settings.from_environment(), needs_key=True)


def import_for_pages() -> None:
    """Import what pages of runs need, for which the first one would wait.

    What is imported by then stays to the end. The garbage collector needn't look through it: each
    time that it did, a page took 0.1 s more.
    """
    import ledgerbeam.batch.observe.components  # noqa: F401

    gc.freeze()


def create_app(settings: Settings, *, needs_key: bool) -> FastAPI:
    """The application.

    Args:
        settings: where the registry is, which holds the request database.
        needs_key: whether callers have to name a key.

    Raises:
        UserError: the registry can't be opened.
    """
    front = Front.open(settings, needs_key=needs_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        messages.close(app)
        front.close()

    app = FastAPI(
        title="ledgerbeam",
        version=__version__,
        summary="Batch work: submitted, queued by kind, run by worker nodes, watched and steered.",
        description="Errors are problem details (RFC 9457); their `code` stays as it is. An "
        "`Idempotency-Key` is remembered for 24 hours. Lists are read by following `next`.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.front = front
    for part in _PARTS:
        app.include_router(part.router)
    messages.mount(app)
    pages.mount(app)
    derived = app.openapi
    app.openapi = functools.cache(lambda: complete(derived()))  # type: ignore[method-assign]
    app.add_exception_handler(LedgerbeamError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(requests.Submissions, on_error=_on_error)
    app.add_middleware(Guard)
    return app


class Guard:
    """Refuses bodies that are too large or take too long, and tells browsers to be careful."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, with its body read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                given = {name for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in given]
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            # No database takes it, and no id or name has it.
            await _problem(BadRequestError("NUL stands in the address"))(scope, receive, send_on)
            return
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _read(receive)
        except TimeoutError:
            error: UserError = BadRequestError("the body didn't come within 20 seconds")
            await _problem(error)(scope, receive, send_on)
            return
        if body is None:
            error = BodyTooLargeError(
                f"the body has more than {MAX_BODY:,} bytes: name input by URI, in parameters"
            )
            await _problem(error)(scope, receive, send_on)
            return
        if not _is_text(body):
            await _problem(BadRequestError("the body isn't UTF-8"))(scope, receive, send_on)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        with traces.continued(_header(scope, traces.TRACEPARENT)):
            await self._app(scope, replay, send_on)


def _header(scope: Scope, name: str) -> str:
    """The last header of that name, as text; empty where there is none."""
    given: bytes = dict(scope["headers"]).get(name.lower().encode(), b"")
    return given.decode("latin-1")


async def _read(receive: Receive) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return body


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _problem(error: LedgerbeamError, **members: Any) -> JSONResponse:
    body = {**problem_of(error), **members}
    headers = {}
    if body["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if body["status"] == 503:
        headers["Retry-After"] = "5"
    text = {name: redact(v) if isinstance(v, str) else v for name, v in body.items()}
    return _Problem(text, body["status"], headers)


class _Problem(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, default=str).encode()


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LedgerbeamError)
    if error.code == "unauthenticated" and is_page(request):
        return RedirectResponse("/sign-in", 303)
    if is_page(request):
        return error_page(request, error, status_of(error.code))
    return _problem(error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"parameter": ".".join(map(str, entry["loc"][1:])), "message": entry["msg"]}
        for entry in error.errors()
    ]
    told = "; ".join(f"{p['parameter']}: {p['message']}" for p in problems)
    return _problem(BadRequestError(f"the call can't be read: {told}"), problems=problems)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {
        "type": "about:blank",
        "title": error.detail,
        "status": error.status_code,
        "detail": f"{request.method} {request.url.path}: {error.detail}",
    }
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Starlette names the methods of one route, and each method has a route of its own.
        path = request.url.path
        routes: list[Any] = [route for part in (*_PARTS, pages) for route in part.router.routes]
        found = [route for route in routes if route.path_regex.match(path)]
        # An address of its own may look like one with a name in it: /v1/bulk/dry-run.
        own = [route for route in found if route.path == path] or found
        methods = {method for route in own for method in route.methods}
        headers["Allow"] = ", ".join(sorted(methods)) or headers["Allow"]
    return _Problem(body, error.status_code, headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette logs it; what it says may hold anything, and is no caller's business.
    body = {
        "type": type_of(BugError.code),
        "title": title_of(BugError.code),
        "status": 500,
        "detail": "the service failed by a bug; its log has the traceback",
        "code": BugError.code,
    }
    return _Problem(body, 500)
