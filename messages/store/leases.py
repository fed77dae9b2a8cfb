"""Leases: which process works on which unit, a lane of the scheduler or a bucket of a consumer.

A process that is cut off, or stopped and woken, may believe in leases that are long another's. So a
lease has an epoch, which grows when it changes hands, and whoever works on a unit first writes its
epoch where the work's progress is, and later finds it there, in each of its transactions: see
`sweep.take_lane`. The lease's clock decides only how soon another process takes over.
"""

import os
import uuid
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.machine import host_name
from ledgerbeam.messages.store.schema import LEASE, MEMBER


def new_owner() -> str:
    """A name that no other process has."""
    return f"{host_name()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def declare_units(connection: sa.Connection, work: str, units: Iterable[int]) -> None:
    """Make the leases of some work, which nobody has yet."""
    rows = [
        {"work": work, "unit": unit, "owner": None, "epoch": 0, "expires_at": 0} for unit in units
    ]
    connection.execute(LEASE.insert(), rows)


class Leases:
    """The leases that one process has on the units of some work.

    Attributes:
        epochs: the epoch of each unit that it has.
    """

    def __init__(self, work: str, owner: str, seconds: float) -> None:
        """Begin without any.

        Args:
            work: what the units belong to.
            owner: this process.
            seconds: how long a lease lasts without being renewed.
        """
        self.work = work
        self.owner = owner
        self.seconds = seconds
        self.epochs: dict[int, int] = {}

    def renew(self, connection: sa.Connection, now: int) -> Mapping[int, int]:
        """Renew what this process has, take what is free up to its share, give up what is beyond.

        Args:
            connection: in a transaction, which is to be committed at once.
            now: the present time in microseconds.

        Returns:
            The epochs of the units that were taken.
        """
        until = now + int(self.seconds * 1_000_000)
        mine = LEASE.c.work == self.work, LEASE.c.owner == self.owner
        rows = connection.execute(
            LEASE.update()
            .where(*mine)
            .values(expires_at=until)
            .returning(LEASE.c.unit, LEASE.c.epoch)
        )
        self.epochs = {row.unit: row.epoch for row in rows}
        share = self._share(connection, now, until)
        surplus = sorted(self.epochs)[share:]
        if surplus:
            given_up = LEASE.update().where(*mine, LEASE.c.unit.in_(surplus))
            connection.execute(given_up.values(owner=None, expires_at=0))
            self.epochs = {unit: self.epochs[unit] for unit in sorted(self.epochs)[:share]}
        wanted = share - len(self.epochs)
        taken = self._take(connection, now, until, wanted) if wanted > 0 else {}
        self.epochs |= taken
        if taken:
            failpoint("messages.leased")
        return taken

    def release(self, connection: sa.Connection) -> None:
        """Give up all, so that others needn't wait for their end."""
        connection.execute(
            LEASE.update()
            .where(LEASE.c.work == self.work, LEASE.c.owner == self.owner)
            .values(owner=None, expires_at=0)
        )
        connection.execute(
            MEMBER.delete().where(MEMBER.c.work == self.work, MEMBER.c.owner == self.owner)
        )
        self.epochs = {}

    def _share(self, connection: sa.Connection, now: int, until: int) -> int:
        """How many of the units this process should have."""
        of_work = MEMBER.c.work == self.work
        is_mine = of_work & (MEMBER.c.owner == self.owner)
        renewed = connection.execute(MEMBER.update().where(is_mine).values(expires_at=until))
        if not renewed.rowcount:
            row = {"work": self.work, "owner": self.owner, "expires_at": until}
            connection.execute(MEMBER.insert().values(row))
        count = sa.select(sa.func.count()).select_from(LEASE).where(LEASE.c.work == self.work)
        members = connection.execute(
            sa.select(MEMBER.c.owner, MEMBER.c.expires_at, count.scalar_subquery().label("units"))
            .where(of_work)
            .order_by(MEMBER.c.owner)
        ).all()
        owners = [member.owner for member in members if member.expires_at >= now]
        if len(owners) < len(members):
            connection.execute(MEMBER.delete().where(of_work, MEMBER.c.expires_at < now))
        least, rest = divmod(members[0].units, len(owners))
        return least + (owners.index(self.owner) < rest)

    def _take(self, connection: sa.Connection, now: int, until: int, wanted: int) -> dict[int, int]:
        free = (
            sa.select(LEASE.c.unit)
            .where(
                LEASE.c.work == self.work,
                sa.or_(LEASE.c.owner.is_(None), LEASE.c.expires_at < now),
            )
            .order_by(LEASE.c.unit)
            .limit(wanted)
            .with_for_update(skip_locked=True)
        )
        units = list(connection.execute(free).scalars())
        rows = connection.execute(
            LEASE.update()
            .where(LEASE.c.work == self.work, LEASE.c.unit.in_(units))
            .values(owner=self.owner, epoch=LEASE.c.epoch + 1, expires_at=until)
            .returning(LEASE.c.unit, LEASE.c.epoch)
        )
        return {row.unit: row.epoch for row in rows}
