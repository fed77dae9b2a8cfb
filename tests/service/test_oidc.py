"""Tokens of a provider, which is a server of the tests' own with keys of its own."""

import base64
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.service.access import oidc
from ledgerbeam.service.access.oidc import AUDIENCE, ISSUER, Provider
from ledgerbeam.service.errors import ServiceUnavailableError, UnauthenticatedError
from ledgerbeam.service.model import Role

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


class Server:
    """A provider: its description, its keys, and how often it was asked for them."""

    def __init__(self) -> None:
        self.keys: list[Any] = [RSAKey.generate_key(2048, {"kid": "1"}, auto_kid=False)]
        self.asked = 0
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body: Any = {"issuer": this.issuer, "jwks_uri": f"{this.issuer}/keys"}
                if self.path == "/keys":
                    this.asked += 1
                    body = KeySet(this.keys).as_dict(private=False)
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.http.server_port}"

    def token(self, key: Any = None, algorithm: str = "RS256", **changes: Any) -> str:
        key = key or self.keys[0]
        claims = {
            "iss": self.issuer,
            "aud": "ledgerbeam",
            "sub": "ada",
            "exp": SECONDS + 600,
            "ledgerbeam_roles": ["viewer", "close=operator"],
        }
        header = {"alg": algorithm, "kid": key.kid}
        given = {name: v for name, v in {**claims, **changes}.items() if v is not None}
        return jwt.encode(header, given, key, algorithms=[algorithm])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def provider(server: Server) -> Provider:
    return Provider(server.issuer, "ledgerbeam", lambda: NOW)


def test_a_token_says_who_calls_and_what_for(server: Server, provider: Provider) -> None:
    caller = provider.check(server.token())
    assert (caller.name, caller.key_id) == ("ada", None)
    assert caller.roles == {"*": Role.VIEWER, "close": Role.OPERATOR}
    assert provider.check(server.token(email="ada@bank")).name == "ada@bank"
    assert provider.check(server.token(ledgerbeam_roles=None)).roles == {}
    assert server.asked == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example.com"},
        {"exp": SECONDS - 60},
        {"exp": None},
        {"nbf": SECONDS + 600},
        {"sub": None},
        {"ledgerbeam_roles": "admin"},
        {"ledgerbeam_roles": ["boss"]},
        {"ledgerbeam_roles": [{}]},
    ],
)
def test_one_that_is_for_somebody_else_or_over_is_refused(
    server: Server, provider: Provider, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnauthenticatedError):
        provider.check(server.token(**changes))


def test_only_the_providers_own_signature_counts(server: Server, provider: Provider) -> None:
    stranger = RSAKey.generate_key(2048, {"kid": "1"}, auto_kid=False)
    head, body, signature = server.token().split(".")
    # Signed by the public key, which everybody has, as if it were a secret.
    symmetric = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"1"}').decode().rstrip("=")
    public = server.keys[0].as_pem(private=False)
    digest = hmac.digest(public, f"{symmetric}.{body}".encode(), "sha256")
    for token in (
        server.token(stranger),
        f"{symmetric}.{body}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        f"eyJhbGciOiJub25lIn0.{body}.",
        "",
        "a.b",
        "\u00e4.b.c",
    ):
        with pytest.raises(UnauthenticatedError):
            provider.check(token)


def test_new_keys_are_found_and_a_provider_is_not_asked_for_each_bad_token(
    server: Server, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.check(server.token())
    server.keys.insert(0, ECKey.generate_key("P-256", {"kid": "2"}, auto_kid=False))
    for _ in range(5):
        with pytest.raises(UnauthenticatedError):
            provider.check(server.token(algorithm="ES256"))
    assert server.asked == 1
    monkeypatch.setattr(oidc, "_REFETCH_SECONDS", 0.0)
    assert provider.check(server.token(algorithm="ES256")).name == "ada"
    assert server.asked == 2


def test_a_provider_that_is_gone_is_said_or_its_keys_are_kept(
    server: Server, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = server.token()
    provider.check(token)
    gone = Provider("http://127.0.0.1:9", "ledgerbeam", lambda: NOW)
    with pytest.raises(ServiceUnavailableError, match="doesn't give its keys"):
        gone.check(token)
    monkeypatch.setattr(oidc, "_FRESH_SECONDS", -1.0)
    server.issuer = "http://127.0.0.1:1"  # what it calls itself now
    assert provider.check(token).name == "ada"


def test_variables_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for issuer, audience in (("http://idp.example.com", "x"), ("https://idp.example.com", "")):
        monkeypatch.setenv(ISSUER, issuer)
        monkeypatch.setenv(AUDIENCE, audience)
        with pytest.raises(ParameterError, match="give both"):
            Provider.from_environment(lambda: NOW)
    monkeypatch.setenv(AUDIENCE, "ledgerbeam")
    assert Provider.from_environment(lambda: NOW) is not None
    monkeypatch.delenv(ISSUER)
    monkeypatch.delenv(AUDIENCE)
    assert Provider.from_environment(lambda: NOW) is None
