"""Signed HTTP POSTs of events, and how a receiver checks them.

    POST /alerts HTTP/1.1
    Content-Type: application/json
    X-Ledgerbeam-Event: 5c0f…                       id of the event
    X-Ledgerbeam-Signature: t=1795132800,v1=9a31…   when it was signed, and by what

`v1` is the HMAC-SHA256, in hexadecimal, of `t`, a dot and the body as it was sent, with the shared
secret as the key. A receiver

1. takes the body's bytes before anything parses them, and refuses them unless `verify_signature`
   is true; in another language: compute `v1` again, compare in constant time, refuse an old `t`;
2. remembers the id for some days, and answers a request whose id it has seen with 200 without
   acting on it: a request may come more than once;
3. answers 2xx within the time limit once it has the event safe, and works on it afterwards.
"""

import datetime
import hashlib
import hmac
import http.client
import queue
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

SIGNATURE_HEADER = "X-Ledgerbeam-Signature"
EVENT_HEADER = "X-Ledgerbeam-Event"
TOLERANCE = datetime.timedelta(minutes=5)


class DeliveryError(Exception):
    """A listener didn't take an event; the message says why, in one line.

    Attributes:
        passing: whether the same may go well in a moment.
    """

    def __init__(self, why: str, *, passing: bool) -> None:
        super().__init__(textwrap.shorten(why, 400, placeholder=" …"))
        self.passing = passing


def sign(secret: str, body: bytes, now: datetime.datetime) -> str:
    """The value of the signature header."""
    stamp = str(int(now.timestamp()))
    return f"t={stamp},v1={_digest(secret, stamp, body)}"


def verify_signature(
    secret: str,
    header: str,
    body: bytes,
    now: datetime.datetime,
    tolerance: datetime.timedelta = TOLERANCE,
) -> bool:
    """Whether `body` was signed with `secret`, and not longer ago than `tolerance`.

    Args:
        secret: that both sides share.
        header: the value of `X-Ledgerbeam-Signature`; an empty one is never right.
        body: as it was received.
        now: the receiver's time, with its zone.
        tolerance: how far the signature's time may be from `now`, either way: against requests
            that somebody recorded and sends again.
    """
    fields = [part.strip().partition("=") for part in header.split(",")]
    stamps = [value for name, _, value in fields if name == "t"]
    if len(stamps) != 1 or not (stamps[0].isascii() and stamps[0].isdigit()):
        return False
    if (
        len(stamps[0]) > 12
        or abs(int(now.timestamp()) - int(stamps[0])) > tolerance.total_seconds()
    ):
        return False
    expected = _digest(secret, stamps[0], body).encode()
    # Several, while a secret is being replaced.
    given = [value.encode() for name, _, value in fields if name == "v1"]
    return any(hmac.compare_digest(expected, value) for value in given)


def _digest(secret: str, stamp: str, body: bytes) -> str:
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def post(url: str, body: bytes, headers: dict[str, str], seconds: float) -> None:
    """POST JSON once; redirects are not followed, so what is signed goes to nobody else.

    Raises:
        DeliveryError: the answer wasn't 2xx, or there was none in time.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DeliveryError("the URL is neither http:// nor https://", passing=False)
    request = urllib.request.Request(  # noqa: S310  # checked above
        url, body, {"Content-Type": "application/json", "User-Agent": "ledgerbeam", **headers}
    )

    opener = urllib.request.build_opener(_NoRedirect)

    def send() -> None:
        with opener.open(request, timeout=seconds):
            pass  # 2xx, or else an exception; what the answer says is of no interest

    # No reason repeats the URL, which may be a secret.
    try:
        _within(seconds, send)
    except urllib.error.HTTPError as error:
        # Over, too early, too busy, or out of order: it may be better in a moment. All else is a
        # refusal.
        passing = error.code in (408, 425, 429) or error.code >= 500
        moved = ", and redirects are not followed" if 300 <= error.code < 400 else ""
        error.close()
        raise DeliveryError(
            f"answered {error.code} {error.reason}{moved}", passing=passing
        ) from None
    except (http.client.InvalidURL, ValueError):
        raise DeliveryError("the URL is not valid", passing=False) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = f"{type(error).__name__}: {reason}"
        if isinstance(reason, TimeoutError):
            why = f"within {seconds:g} s"
        raise DeliveryError(f"no answer {why}", passing=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Make none: the answer becomes an error."""


def _within(seconds: float, function: Callable[[], None]) -> None:
    """Call in a thread that is left alone after `seconds`.

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
        raise TimeoutError from None
    if error is not None:
        raise error
