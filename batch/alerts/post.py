"""One HTTP POST to an address that a configuration names, bounded in every way.

Redirects are not followed, so what is signed goes to nobody else. An address that isn't public is
refused unless the configuration allows it: whoever may write an alert's URL must not reach what
only this machine can reach, such as a cloud's metadata service. The check is made of the address
that is connected to, so a name can't mean another one in between. Of the answer only its status and
headers are read.
"""

import contextlib
import functools
import http.client
import ipaddress
import queue
import socket
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class DeliveryError(Exception):
    """A listener didn't take an event; the message says why, in one line.

    Attributes:
        passing: whether the same may go well in a moment.
        status: of the HTTP answer; None if there was none.
    """

    def __init__(self, why: str, *, passing: bool, status: int | None = None) -> None:
        super().__init__(textwrap.shorten(why, 400, placeholder=" …"))
        self.passing = passing
        self.status = status


class _PrivateAddressError(Exception):
    """The URL's host has an address that isn't public."""


def post(
    url: str,
    body: bytes,
    headers: dict[str, str],
    seconds: float,
    allow_private: bool = False,
) -> None:
    """POST JSON once.

    Where the environment names a proxy for the URL, the proxy decides which addresses it reaches.

    Args:
        url: `http://` or `https://`.
        body: the JSON.
        headers: besides those of any POST of JSON.
        seconds: for all of it.
        allow_private: whether the host's address may be a private one, or this machine's.

    Raises:
        DeliveryError: the answer wasn't 2xx, or there was none in time.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DeliveryError("the URL is neither http:// nor https://", passing=False)
    opened: list[http.client.HTTPConnection] = []
    # No reason repeats the URL, which may be a secret.
    try:
        request = urllib.request.Request(  # noqa: S310  # checked above
            url, body, {"Content-Type": "application/json", "User-Agent": "ledgerbeam", **headers}
        )
        is_checked = not allow_private and not _goes_by_proxy(url)
        handlers = (_Http(opened, is_checked), _Https(opened, is_checked), _NoRedirect())
        opener = urllib.request.build_opener(*handlers)

        def send() -> None:
            with opener.open(request, timeout=seconds):
                pass  # 2xx, or else an exception; what the answer says is of no interest

        _within(seconds, send, functools.partial(_hang_up, opened))
    except urllib.error.HTTPError as error:
        # Over, too early, too busy, or out of order: it may be better in a moment. All else is a
        # refusal.
        passing = error.code in (408, 425, 429) or error.code >= 500
        moved = ", and redirects are not followed" if 300 <= error.code < 400 else ""
        error.close()
        raise DeliveryError(
            f"answered {error.code} {error.reason}{moved}", passing=passing, status=error.code
        ) from None
    except _PrivateAddressError:
        raise DeliveryError(
            "the URL's host has a private address: set allow_private = true if it is meant",
            passing=False,
        ) from None
    except (http.client.InvalidURL, ValueError):
        raise DeliveryError("the URL is not valid", passing=False) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = f"{type(error).__name__}: {reason}"
        if isinstance(reason, TimeoutError):
            why = f"within {seconds:g} s"
        raise DeliveryError(f"no answer {why}", passing=True) from None


def _goes_by_proxy(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        parts.hostname or ""
    )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, also where it is packed into one of IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        packed = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            packed = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if packed is not None:
            return is_public(str(packed))
    return ip.is_global and not ip.is_multicast


def _connect_public(
    place: tuple[str, int], timeout: Any = None, source: tuple[str, int] | None = None
) -> socket.socket:
    """Connect to a public address of the host; see `socket.create_connection`."""
    found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not all(map(is_public, addresses)):
        raise _PrivateAddressError
    failed: OSError = OSError("the host has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, place[1]), timeout, source)
        except OSError as error:
            failed = error
    raise failed


class _Http(urllib.request.HTTPHandler):
    """Makes connections that can be hung up, and that are refused to private addresses."""

    def __init__(self, opened: list[http.client.HTTPConnection], is_checked: bool) -> None:
        super().__init__()
        self._made = functools.partial(_made, http.client.HTTPConnection, opened, is_checked)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPHandler`."""
        return self.do_open(self._made, request)


class _Https(urllib.request.HTTPSHandler):
    """The same over TLS, whose certificate is that of the host's name."""

    def __init__(self, opened: list[http.client.HTTPConnection], is_checked: bool) -> None:
        super().__init__()
        self._made = functools.partial(_made, http.client.HTTPSConnection, opened, is_checked)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """See `urllib.request.HTTPSHandler`."""
        return self.do_open(self._made, request)


def _made(
    kind: type[http.client.HTTPConnection],
    opened: list[http.client.HTTPConnection],
    is_checked: bool,
    host: str,
    **others: Any,
) -> http.client.HTTPConnection:
    connection = kind(host, **others)
    if is_checked:
        connection._create_connection = _connect_public  # type: ignore[attr-defined]
    opened.append(connection)
    return connection


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Make none: the answer becomes an error."""


def _hang_up(opened: list[http.client.HTTPConnection]) -> None:
    for connection in opened:
        held = connection.sock
        if held is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                held.shutdown(socket.SHUT_RDWR)


def _within(seconds: float, function: Callable[[], None], give_up: Callable[[], None]) -> None:
    """Call in a thread that is left alone after `seconds`, when `give_up` was called.

    A time-out of sockets bounds neither the look-up of a name nor an answer that comes drop by
    drop. The thread ends with the process at the latest.
    """
    ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            function()
        except Exception as error:
            ends.put(error)
        else:
            ends.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        error = ends.get(timeout=seconds)
    except queue.Empty:
        give_up()
        raise TimeoutError from None
    if error is not None:
        raise error
