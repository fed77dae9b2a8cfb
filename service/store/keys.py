"""API keys: who may call the service, and what for.

A key is `lb_ID_SECRET`. Only a hash of the secret is stored, which is as good as the secret is
long: 256 random bits can't be guessed, so the hash needs no salt and no work factor.
"""

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.registry.database import Database
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.service.errors import UnauthenticatedError
from ledgerbeam.service.model import KeyRecord, Principal, Role
from ledgerbeam.service.store.reading import note
from ledgerbeam.service.store.tables import api_key

SESSION_HOURS = 12
"""How long somebody who has signed in on the page stays so."""


class Keys:
    """The keys of a service."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        roles: Mapping[str, Role],
        *,
        who: str,
        at: datetime.datetime,
        expires_at: datetime.datetime | None = None,
    ) -> str:
        """Make a key.

        Args:
            name: of its owner, who signs what is done with it.
            roles: role by kind; `*` for every kind that isn't named.
            who: makes it.
            at: time in UTC.
            expires_at: None for a key that doesn't expire.

        Returns:
            The key. It can't be had again.
        """
        return self._insert(name, roles, who, at, expires_at, None)

    def sign_in(self, key: str, at: datetime.datetime) -> str:
        """A key for a browser, which is as good as the one given and soon expires.

        Raises:
            UnauthenticatedError: the key isn't valid.
        """
        principal = self.check(key, at)
        expires_at = at + datetime.timedelta(hours=SESSION_HOURS)
        roles, name = principal.roles, principal.name
        return self._insert(name, roles, name, at, expires_at, principal.key_id)

    def check(self, key: str, at: datetime.datetime) -> Principal:
        """Who calls with a key.

        Raises:
            UnauthenticatedError: there is no such key, or it was revoked or has expired.
        """
        (principal,) = self.check_all([key], at)
        if isinstance(principal, UserError):
            raise principal
        return principal

    def check_all(
        self, keys: Sequence[str], at: datetime.datetime
    ) -> "Sequence[Principal | UserError]":
        """The same for many keys, by one question; gives the error of one that isn't valid."""
        parent = api_key.alias()
        query = (
            sa.select(api_key, parent.c.revoked_at.label("parent_revoked_at"))
            .outerjoin(parent, parent.c.id == api_key.c.parent)
            .where(api_key.c.id.in_({_parts(key)[0] for key in keys}))
        )
        with self._database.asking() as connection:
            rows = {row.id: row for row in connection.execute(query)}
        found: list[Principal | UserError] = []
        for key in keys:
            try:
                found.append(_owner(key, rows.get(_parts(key)[0]), at))
            except UnauthenticatedError as error:
                found.append(error)
        return found

    def revoke(self, key_id: str, *, who: str, at: datetime.datetime, why: str) -> None:
        """Make a key invalid, and those of the browsers that were signed in with it.

        Raises:
            ParameterError: there is no such key, or it was revoked before.
        """
        with self._database.writing() as connection:
            valid = (api_key.c.id == key_id) & api_key.c.revoked_at.is_(None)
            revoked = api_key.update().where(valid).values(revoked_at=at)
            if not connection.execute(revoked).rowcount:
                raise ParameterError(
                    f"no valid key {key_id}: `ledgerbeam keys list` lists them", parameter="key"
                )
            note(connection, at, who, "key.revoked", key_id, None, why)

    def _insert(
        self,
        name: str,
        roles: Mapping[str, Role],
        who: str,
        at: datetime.datetime,
        expires_at: datetime.datetime | None,
        parent: str | None,
    ) -> str:
        id_, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        given = {kind: str(role) for kind, role in roles.items()}
        with self._database.writing() as connection:
            connection.execute(
                api_key.insert().values(
                    id=id_,
                    secret_hash=_hash(secret),
                    name=name,
                    roles=given,
                    parent=parent,
                    created_at=at,
                    created_by=who,
                    expires_at=expires_at,
                )
            )
            action = "key.created" if parent is None else "key.signed-in"
            note(connection, at, who, action, id_, None, name=name, roles=given)
        return f"lb_{id_}_{secret}"

    def are_there(self) -> bool:
        """Whether people have made a key that isn't revoked."""
        made = api_key.c.parent.is_(None) & api_key.c.revoked_at.is_(None)
        with self._database.asking() as connection:
            return (
                connection.execute(sa.select(api_key.c.id).where(made).limit(1)).first() is not None
            )

    def list(self) -> list[KeyRecord]:
        """All keys that people have made, oldest first; those of browsers are left out."""
        columns = [api_key.c[name] for name in KeyRecord.model_fields]
        query = sa.select(*columns).where(api_key.c.parent.is_(None))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(api_key.c.created_at, api_key.c.id))
            return [KeyRecord.model_validate(row._asdict()) for row in rows]


def read_roles(texts: list[str]) -> dict[str, Role]:
    """Roles as people write them: `operator` for all kinds, `counting=operator` for one.

    Raises:
        ParameterError: there is no such role.
    """
    roles = {}
    for text in texts:
        kind, _, role = text.rpartition("=")
        if role not in set(Role):
            raise ParameterError(
                f"role {text}: give one of {', '.join(Role)}, or KIND=ROLE",
                parameter="--role",
                value=text,
            )
        roles[kind or "*"] = Role(role)
    return roles


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _parts(key: str) -> tuple[str, str]:
    """The id of a key, and its secret."""
    id_, _, secret = key.removeprefix("lb_").partition("_")
    return id_, secret


def _owner(key: str, row: sa.Row[Any] | None, at: datetime.datetime) -> Principal:
    """Whose a key is, given what is stored of it."""
    known = row.secret_hash if row is not None else _hash("")
    fits = hmac.compare_digest(known, _hash(_parts(key)[1])) and key.startswith("lb_")
    if row is None or not fits:
        raise UnauthenticatedError("the API key isn't valid: check that it is whole")
    if row.revoked_at is not None or row.parent_revoked_at is not None:
        raise UnauthenticatedError("the API key was revoked: ask for another one")
    if row.expires_at is not None and row.expires_at <= at:
        raise UnauthenticatedError("the API key has expired: ask for another one")
    return Principal(name=row.name, roles=row.roles, key_id=row.id)
