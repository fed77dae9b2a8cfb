"""Signatures of events that are posted, and how a receiver checks them.

    POST /alerts HTTP/1.1
    Content-Type: application/json
    X-Ledgerbeam-Event: 5c0f…                              id of the event
    X-Ledgerbeam-Signature: t=1795132800,v1=9a31…,v2=04be…  when it was signed, and by what

`v2` is the HMAC-SHA256, in hexadecimal, of the id, a dot, `t`, a dot and the body as it was sent,
with the shared secret as the key. A receiver

1. takes the body's bytes before anything parses them, and refuses them unless `verify_signature`
   is true; in another language: refuse an id of other characters than letters, digits, hyphens and
   underscores, compute `v2` again, compare in constant time, refuse an old `t`;
2. remembers the id for some days, and answers a request whose id it has seen with 200 without
   acting on it: a request may come more than once;
3. answers 2xx within the time limit once it has the event safe, and works on it afterwards.

`v1` doesn't cover the id, so whoever recorded a request could send it again as another event. It is
sent for receivers that don't know `v2` yet, and will be left out.
"""

import datetime
import hashlib
import hmac
import re

from ledgerbeam.io.errors import SecretError

SIGNATURE_HEADER = "X-Ledgerbeam-Signature"
EVENT_HEADER = "X-Ledgerbeam-Event"
TOLERANCE = datetime.timedelta(minutes=5)

# Without dots: what is signed can be taken apart in one way only.
_ID = re.compile("[A-Za-z0-9_-]{1,128}")


def sign(secret: str, event: str, body: bytes, now: datetime.datetime) -> str:
    """The value of the signature header.

    Raises:
        SecretError: the secret is empty.
        ValueError: the id of the event has other characters than ids have.
    """
    if not _ID.fullmatch(event):
        raise ValueError(f"no id of an event: {event!r}")
    key = _key(secret)
    stamp = str(int(now.timestamp()))
    first = hmac.new(key, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={first},v2={_digest(key, event, stamp, body)}"


def verify_signature(
    secret: str,
    header: str,
    event: str,
    body: bytes,
    now: datetime.datetime,
    tolerance: datetime.timedelta = TOLERANCE,
) -> bool:
    """Whether this event was signed with `secret`, and not longer ago than `tolerance`.

    Args:
        secret: that both sides share.
        header: the value of `X-Ledgerbeam-Signature`; an empty one is never right.
        event: the value of `X-Ledgerbeam-Event`.
        body: as it was received.
        now: the receiver's time, with its zone.
        tolerance: how far the signature's time may be from `now`, either way: against requests
            that somebody recorded and sends again.

    Raises:
        SecretError: the secret is empty: anybody could sign with it.
    """
    key = _key(secret)
    fields = [part.strip().partition("=") for part in header.split(",")]
    stamps = [value for name, _, value in fields if name == "t"]
    if len(stamps) != 1 or not re.fullmatch("[0-9]{1,12}", stamps[0]) or not _ID.fullmatch(event):
        return False
    if abs(int(now.timestamp()) - int(stamps[0])) > tolerance.total_seconds():
        return False
    expected = _digest(key, event, stamps[0], body).encode()
    # Several, while a secret is being replaced.
    given = [value.encode() for name, _, value in fields if name == "v2"]
    return any(hmac.compare_digest(expected, value) for value in given)


def _key(secret: str) -> bytes:
    if not secret.strip():
        raise SecretError(
            "the secret that signs events is empty, so that anybody could sign: set it"
        )
    return secret.encode()


def _digest(key: bytes, event: str, stamp: str, body: bytes) -> str:
    return hmac.new(key, f"{event}.{stamp}.".encode() + body, hashlib.sha256).hexdigest()
