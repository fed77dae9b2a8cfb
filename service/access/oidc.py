"""Bearer tokens of an OpenID Connect provider: who calls, by the provider's signature.

| variable | what |
| --- | --- |
| `LEDGERBEAM_OIDC_ISSUER` | URL of the provider; its keys are found from there |
| `LEDGERBEAM_OIDC_AUDIENCE` | what tokens for this service have as `aud` |

Roles are the texts in the claim `ledgerbeam_roles`, as `ledgerbeam keys create --role` takes them.
"""

import os
import threading
import time
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ledgerbeam.batch.clock import Clock
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.service.errors import ServiceUnavailableError, UnauthenticatedError
from ledgerbeam.service.model import Principal
from ledgerbeam.service.store.keys import read_roles

ISSUER = "LEDGERBEAM_OIDC_ISSUER"
AUDIENCE = "LEDGERBEAM_OIDC_AUDIENCE"
ROLES = "ledgerbeam_roles"

# A key that verifies must not be one that signs, as with HS256; and `none` is no signature.
_ALGORITHMS = ["RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"]
_FRESH_SECONDS = 300.0
_REFETCH_SECONDS = 10.0
_LEEWAY_SECONDS = 30


class Provider:
    """An OpenID Connect provider, whose keys are kept for some minutes."""

    def __init__(self, issuer: str, audience: str, now: Clock) -> None:
        """Ask the provider for nothing yet.

        Args:
            issuer: its URL, which tokens have as `iss`.
            audience: what tokens for this service have as `aud`.
            now: the present time in UTC.
        """
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._keys: KeySet | None = None
        self._fetched_at = float("-inf")
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, now: Clock) -> "Provider | None":
        """The provider that variables name; None where they don't.

        Raises:
            ParameterError: one of the two is missing, or the URL isn't safe.
        """
        issuer, audience = os.environ.get(ISSUER, ""), os.environ.get(AUDIENCE, "")
        if not issuer and not audience:
            return None
        is_safe = issuer.startswith(("https://", "http://127.0.0.1:", "http://localhost:"))
        if not is_safe or not audience:
            raise ParameterError(
                f"{ISSUER}={issuer} {AUDIENCE}={audience}: give both, the issuer as https://…",
                parameter=ISSUER,
            )
        return cls(issuer, audience, now)

    def check(self, token: str) -> Principal:
        """Who calls with a token.

        Raises:
            UnauthenticatedError: it isn't valid, has expired, or is for somebody else.
            ServiceUnavailableError: the provider can't be asked for its keys.
        """
        try:
            claims = self._decode(token)
            registry = jwt.JWTClaimsRegistry(
                now=lambda: int(self._now().timestamp()),
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
                exp={"essential": True},
                sub={"essential": True},
            )
            registry.validate(claims)
        except (JoseError, ValueError) as error:
            raise UnauthenticatedError(f"the token isn't valid: {error}") from None
        roles = claims.get(ROLES, [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise UnauthenticatedError(f"the token's claim {ROLES} is no list of texts")
        try:
            name = str(claims.get("email") or claims["sub"])
            return Principal(name=name, roles=read_roles(roles))
        except ParameterError as error:
            raise UnauthenticatedError(f"the token's claim {ROLES}: {error}") from None

    def _decode(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(token, self._key_set(_FRESH_SECONDS), algorithms=_ALGORITHMS).claims
        except (JoseError, ValueError):
            # The provider may have new keys; it isn't asked for them more often than that.
            keys = self._key_set(_REFETCH_SECONDS)
            return jwt.decode(token, keys, algorithms=_ALGORITHMS).claims

    def _key_set(self, seconds: float) -> KeySet:
        """The provider's keys, not older than that where it can be reached."""
        with self._lock:
            if self._keys is None or time.monotonic() - self._fetched_at > seconds:
                try:
                    self._keys = self._fetch()
                except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                    if self._keys is None:
                        raise ServiceUnavailableError(
                            f"{self._issuer} doesn't give its keys: {type(error).__name__}",
                            server=self._issuer,
                        ) from error
                self._fetched_at = time.monotonic()
            return self._keys

    def _fetch(self) -> KeySet:
        with httpx.Client(timeout=5.0) as client:
            place = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            described = client.get(place).raise_for_status().json()
            if described["issuer"] != self._issuer:
                raise ValueError("it calls itself otherwise")
            keys = client.get(described["jwks_uri"]).raise_for_status().json()
        return KeySet.import_key_set(keys)
