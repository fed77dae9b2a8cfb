"""What a receiver of events can be sure of: who has sent them, when, and what."""

import datetime
import hashlib
import hmac
from datetime import UTC, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.batch.alerts.webhook import sign, verify_signature
from ledgerbeam.io.errors import SecretError

NOW = datetime.datetime(2026, 11, 20, 22, tzinfo=UTC)
SECRET = "c4nary-shared-secret"


SECRETS = st.text().filter(str.strip)
IDS = st.from_regex("[A-Za-z0-9_-]{1,128}", fullmatch=True)


@given(SECRETS, IDS, st.binary(), st.integers(-300, 300))
def test_what_was_signed_is_verified_within_the_tolerance(
    secret: str, id_: str, body: bytes, seconds: int
) -> None:
    header = sign(secret, id_, body, NOW)
    now = NOW + timedelta(seconds=seconds)
    assert verify_signature(secret, header, id_, body, now)
    assert not verify_signature(secret, header, id_, body, now, timedelta(seconds=abs(seconds) - 1))
    assert verify_signature(secret, f"v2=00,{header},v2=11", id_, body, now)


@given(SECRETS, IDS, st.binary(), SECRETS, IDS | st.text(), st.binary(), st.integers(0, 200))
def test_whatever_else_is_refused(
    secret: str,
    id_: str,
    body: bytes,
    other: str,
    other_id: str,
    other_body: bytes,
    place: int,
) -> None:
    header = sign(secret, id_, body, NOW)
    if other != secret and secret.encode().rstrip(b"\0") != other.encode().rstrip(b"\0"):
        assert not verify_signature(other, header, id_, body, NOW)
    if other_body != body:
        assert not verify_signature(secret, header, id_, other_body, NOW)
    if other_id != id_:
        assert not verify_signature(secret, header, other_id, body, NOW)
    assert not verify_signature(secret, other, id_, body, NOW)
    signed = header[: header.index("v1=")] + header[header.index("v2=") :]
    assert verify_signature(secret, signed, id_, body, NOW)
    place %= len(signed)
    changed = signed[:place] + chr(ord(signed[place]) ^ 1) + signed[place + 1 :]
    assert not verify_signature(secret, changed, id_, body, NOW)


def test_a_signature_of_version_1_is_not_enough() -> None:
    """It would let a recorded request be sent again under the id of another event."""
    header = sign(SECRET, "abc", b"{}", NOW)
    assert not verify_signature(SECRET, header[: header.index(",v2=")], "abc", b"{}", NOW)


def test_nothing_can_be_moved_from_the_body_into_the_id() -> None:
    stamp = int(NOW.timestamp())
    header = sign(SECRET, "abc", f"1.{stamp}.{{}}".encode(), NOW)
    assert verify_signature(SECRET, header, "abc", f"1.{stamp}.{{}}".encode(), NOW)
    assert not verify_signature(SECRET, header, f"abc.{stamp}.1", b"{}", NOW)


@pytest.mark.parametrize("secret", ["", " ", "\n"])
def test_an_empty_secret_is_refused_by_both_sides(secret: str) -> None:
    stamp = str(int(NOW.timestamp()))
    digest = hmac.new(secret.encode(), f"abc.{stamp}.".encode() + b"{}", hashlib.sha256).hexdigest()
    with pytest.raises(SecretError, match="is empty"):
        verify_signature(secret, f"t={stamp},v2={digest}", "abc", b"{}", NOW)
    with pytest.raises(SecretError, match="is empty"):
        sign(secret, "abc", b"{}", NOW)


@pytest.mark.parametrize(
    "header",
    ["", "t=", "t=1,v2=", "v2=ab", "t=x,v2=ab", "t=\u0661,v2=ab", f"t={'9' * 5000},v2=ab", "é"],
)
def test_a_malformed_signature_is_refused_and_raises_nothing(header: str) -> None:
    assert not verify_signature(SECRET, header, "abc", b"", NOW)


def test_a_signature_is_as_documented() -> None:
    """So that a receiver in any language can compute it."""
    stamp = str(int(NOW.timestamp()))
    first, second = (
        hmac.new(SECRET.encode(), start.encode() + b"{}", hashlib.sha256).hexdigest()
        for start in (f"{stamp}.", f"abc.{stamp}.")
    )
    assert sign(SECRET, "abc", b"{}", NOW) == f"t={stamp},v1={first},v2={second}"
