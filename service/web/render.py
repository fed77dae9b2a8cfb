"""Pages from templates: what all of them share, and the forms that they send."""

import datetime
import functools
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

import jinja2
from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse

from ledgerbeam.io.errors import LedgerbeamError
from ledgerbeam.service.access.front import COOKIE, front_of
from ledgerbeam.service.errors import AccessDeniedError, BadRequestError
from ledgerbeam.service.model import Principal
from ledgerbeam.service.page.timeline import duration

_FOLDER = Path(__file__).parent
STATIC = _FOLDER / "static"
TEMPLATES = _FOLDER / "templates"
_LONGEST_WHY = 2000
_NUMBERS = ("int", "uint", "float", "double", "decimal")
"""How names of Arrow's types of numbers begin."""

# Without keys there is no session that a token could belong to; then it is this process's.
_LOCAL = secrets.token_hex(16)


def is_page(request: Request) -> bool:
    """Whether a person is to read the answer."""
    paths = ("/v1/", "/healthz", "/readyz", "/metrics", "/static/")
    return not request.url.path.startswith(paths)


def is_refresh(request: Request) -> bool:
    """Whether a page that is shown asks for its live part alone."""
    return "hx-request" in request.headers


def page_of(
    request: Request, caller: Principal | None, name: str, *, status: int = 200, **values: Any
) -> Response:
    """A page.

    Args:
        request: that it answers.
        caller: who sees it; None where nobody has signed in.
        name: of the template.
        status: of HTTP.
        **values: that the template shows.
    """
    text = _templates.get_template(name).render(
        path=request.url.path,
        caller=caller,
        needs_key=front_of(request).asks_for_key(),
        csrf=_token(request),
        key=secrets.token_hex(16),
        **values,
    )
    return HTMLResponse(text, status)


def error_page(request: Request, error: LedgerbeamError, status: int) -> Response:
    """An error for people."""
    return page_of(request, None, "error.html", status=status, error=error)


async def _form(request: Request) -> dict[str, str]:
    """What a form has sent.

    Raises:
        AccessDeniedError: it isn't one of our own.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "application/x-www-form-urlencoded":
        raise BadRequestError("a form is sent as application/x-www-form-urlencoded")
    body = (await request.body()).decode("utf-8", "replace")
    sent = dict(parse_qsl(body, keep_blank_values=True))
    if len(sent.get("why", "")) > _LONGEST_WHY:
        raise BadRequestError(f"why: a reason has {_LONGEST_WHY:,} characters at most")
    # Who signs in has no session yet, and gives a key that another site doesn't know.
    is_own = hmac.compare_digest(sent.pop("csrf", ""), _token(request))
    if not is_own and request.url.path != "/sign-in":
        raise AccessDeniedError("this form is out of date: load the page again, and repeat")
    return sent


Form = Annotated[dict[str, str], Depends(_form)]


def _token(request: Request) -> str:
    session = request.cookies.get(COOKIE) if front_of(request).asks_for_key() else _LOCAL
    return hashlib.sha256(f"csrf:{session}".encode()).hexdigest()


def _time(value: datetime.datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.filters["time"] = _time
_templates.filters["duration"] = duration
_templates.filters["query"] = functools.partial(urlencode, doseq=True)
_templates.filters["count"] = "{:,}".format
_templates.tests["number_type"] = lambda name: name.startswith(_NUMBERS)
