"""What all parts of a front end share."""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.service.access.streams import Streams
from ledgerbeam.service.access.together import Together
from ledgerbeam.service.errors import (
    AccessDeniedError,
    BadRequestError,
    UnauthenticatedError,
)
from ledgerbeam.service.model import Principal, RequestRecord, Role
from ledgerbeam.service.store.intake import Asked, Intake
from ledgerbeam.service.store.keys import Keys
from ledgerbeam.service.store.wake import Bell

if TYPE_CHECKING:
    from ledgerbeam.service.access.oidc import Provider

COOKIE = "ledgerbeam_session"
_OIDC = "LEDGERBEAM_OIDC_"  # begins the variables that name a provider

_LOOPBACK = ("localhost", "localhost.localdomain")


@dataclass(frozen=True)
class Front:
    """A front end's way to the databases.

    Attributes:
        runs: the registry's runs.
        intake: requests.
        keys: API keys.
        bell: wakes routers and nodes.
        needs_key: whether callers have to name a key in any case.
        provider: whose tokens are as good as keys; None for none.
        now: the present time in UTC.
        local: who calls from this machine, as long as there are no keys.
        streams: of events, for those who follow runs.
        is_guarded: `asks_for_key`, for many callers at once.
        checked: whose a key is, for many callers at once.
        accepted: what `Intake.accept` gives, for many callers at once.
    """

    runs: Runs
    intake: Intake
    keys: Keys
    bell: Bell
    needs_key: bool
    provider: "Provider | None"
    now: Clock
    local: Principal
    streams: Streams
    is_guarded: Together[None, bool]
    checked: Together[str, Principal]
    accepted: Together[Asked, tuple[RequestRecord, bool]]

    @classmethod
    def open(cls, settings: Settings, *, needs_key: bool, now: Clock = utc_now) -> "Front":
        """Connect to the databases, which are one.

        Raises:
            UserError: it can't be opened.
        """
        runs = Runs(settings)
        database = runs.registry.database
        intake, keys, bell = Intake(database), Keys(database), Bell(database)
        provider = None
        if has_provider():
            from ledgerbeam.service.access.oidc import Provider

            provider = Provider.from_environment(now)

        def are_guarded(calls: Sequence[None]) -> Sequence[bool]:
            return [needs_key or keys.are_there()] * len(calls)

        return cls(
            runs,
            intake,
            keys,
            bell,
            needs_key,
            provider,
            now,
            Principal(name=whoami(), roles={"*": Role.ADMIN}),
            Streams(runs, now),
            Together(are_guarded),
            Together(lambda given: keys.check_all(given, now())),
            Together(intake.accept_all),
        )

    def asks_for_key(self) -> bool:
        """Whether callers have to name a key: in any case, or since there is one by now.

        Else they are on this machine, and may do everything.
        """
        return self.needs_key or self.keys.are_there()

    def close(self) -> None:
        """Close all connections."""
        self.bell.close()
        self.runs.registry.close()


def front_of(request: Request) -> Front:
    """The front end that a call came to."""
    front: Front = request.app.state.front
    return front


async def _front_of(request: Request) -> Front:
    return front_of(request)  # what isn't asynchronous would be called in a thread


async def caller_of(request: Request) -> Principal:
    """Who calls: by a key or a token in `Authorization: Bearer`, or by the cookie of the page.

    Raises:
        UnauthenticatedError: there is no key, or it isn't valid.
        AccessDeniedError: without keys, the call doesn't come from a page of this machine.
    """
    front = front_of(request)
    if not (front.needs_key or await front.is_guarded.ask(None)):
        _check_local(request)
        return front.local
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        token = key.strip()
        if front.provider is not None and not token.startswith("lb_"):
            return await run_in_threadpool(front.provider.check, token)
        return await front.checked.ask(token)
    session = request.cookies.get(COOKIE)
    if session is None:
        raise UnauthenticatedError("the call names no key: send Authorization: Bearer KEY")
    if request.method not in ("GET", "HEAD") and request.url.path.startswith("/v1/"):
        # A cookie goes with every call of a browser, whatever page has made it.
        raise UnauthenticatedError("the API takes no cookies: send Authorization: Bearer KEY")
    return await front.checked.ask(session)


AFront = Annotated[Front, Depends(_front_of)]
Caller = Annotated[Principal, Depends(caller_of)]


def demand(caller: Principal, role: Role, kind: str = "*") -> None:
    """Let a caller go on who has a role.

    Raises:
        AccessDeniedError: they haven't.
    """
    if not caller.may(role, kind):
        of_kind = "" if kind == "*" else f" of {kind}"
        raise AccessDeniedError(
            f"{caller.name} is no {role}{of_kind}: ask for a key with that role",
            role=role,
            kind=kind,
        )


def visible_kinds(caller: Principal, kind: str | None) -> Sequence[str] | None:
    """The kinds of which a caller may see lists; None for all.

    Raises:
        AccessDeniedError: they may not see the kind that is asked for.
    """
    if kind is not None:
        demand(caller, Role.VIEWER, kind)
        return [kind]
    return None if "*" in caller.roles else sorted(caller.roles)


def has_provider() -> bool:
    """Whether variables name an OpenID Connect provider, whose tokens are taken too."""
    return any(name.startswith(_OIDC) for name in os.environ)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine itself."""
    if host.lower() in _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_local(request: Request) -> None:
    """Refuse what pages of other sites have a browser on this machine do."""
    host = request.url.hostname or ""
    # A name that a stranger's DNS points to 127.0.0.1 is one, too.
    if not is_loopback(host):
        raise AccessDeniedError(
            f"without keys this service answers to localhost only, not to {host}: make a key by "
            "`ledgerbeam keys create`"
        )
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    is_own = origin is None or origin == str(request.base_url).rstrip("/")
    if request.method not in ("GET", "HEAD") and not (is_own and site in ("same-origin", "none")):
        raise AccessDeniedError("a page of another site may not do that in your name")


def is_number(text: str) -> bool:
    """Whether a text from a header is a number, of a size that databases have."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def etag_of(if_match: str | None) -> int | None:
    """The version that a caller has seen, from the header `If-Match`; None for any.

    Raises:
        BadRequestError: it isn't a tag that this service has given.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not is_number(text):
        raise BadRequestError(f"If-Match: {if_match[:40]}: give the ETag of the answer before")
    return int(text)


def seconds_to_wait(prefer: str | None) -> float:
    """How long a caller would wait, from the header `Prefer: wait=N`; a minute at most."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.strip().partition("=")
        if name.strip().lower() == "wait" and is_number(value.strip()):
            return min(float(value), 60.0)
    return 0.0
