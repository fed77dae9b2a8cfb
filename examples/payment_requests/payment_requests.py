"""Payment requests: their tables, and what the service does with them in its own transactions.

A request that is made sends a message to the moment at which it expires, in the same transaction.
Who pays it or withdraws it takes the message back; who gives it more time moves the message.
"""

import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

import ledgerbeam as lb
from ledgerbeam import messages

DUE = "payment-request-due"
EXPIRED = "payment-request-expired"

metadata = sa.MetaData()
REQUEST = sa.Table(
    "payment_request",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("payer", sa.String(40), nullable=False),
    sa.Column("payer_group", sa.String(10), nullable=False),
    sa.Column("minor_units", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("due", sa.String(32), nullable=False),
)
"""Requests. Amounts are whole numbers of the currency's minor units; `due` is text that sorts like
the times it stands for. A request is open, and then paid, withdrawn or expired for ever."""

STATISTICS = sa.Table(
    "expired_by_currency",
    metadata,
    sa.Column("currency", sa.String(3), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("minor_units", sa.BigInteger, nullable=False),
)
PUSH = sa.Table(
    "push_notification",
    metadata,
    sa.Column("message_id", sa.BigInteger, primary_key=True),
    sa.Column("payer", sa.String(40), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)


class PaymentRequestDue(messages.Message):
    """It is time to look at a request."""

    request: str
    payer: str


class PaymentRequestExpired(messages.Message):
    """A request has expired."""

    request: str
    payer: str
    amount: Decimal
    currency: str


def create(
    connection: sa.Connection,
    request: str,
    payer: str,
    group: str,
    amount: Decimal,
    currency: str,
    due: datetime.datetime,
) -> None:
    """Make a request, and the message that expires it.

    Raises:
        IntegrityError: there is one of that name.
        ValueError: the currency is none, or doesn't have so many decimals.
    """
    connection.execute(
        REQUEST.insert().values(
            id=request,
            payer=payer,
            payer_group=group,
            minor_units=to_minor_units(amount, currency),
            currency=currency,
            state="open",
            due=as_text(due),
        )
    )
    message = PaymentRequestDue(request=request, payer=payer)
    messages.schedule(connection, DUE, message, due=due, key=request)


def pay(connection: sa.Connection, request: str) -> bool:
    """Pay a request, and take its message back; false if the request isn't open any more.

    A message that is on its way already finds nothing left to do.
    """
    return _close(connection, request, "paid")


def withdraw(connection: sa.Connection, request: str) -> bool:
    """Withdraw a request, and its message; false if the request isn't open any more."""
    return _close(connection, request, "withdrawn")


def extend(connection: sa.Connection, request: str, due: datetime.datetime) -> bool:
    """Give a request more time; false if it isn't open any more, or has as much already.

    If its message is on its way already, it can't be moved: the handler sees that it comes too
    early, and sends it again.
    """
    is_earlier = REQUEST.c.due < as_text(due)
    if not change(connection, request, is_earlier, due=as_text(due)):
        return False
    messages.reschedule(connection, DUE, request, to=due)
    return True


def find(connection: sa.Connection, request: str) -> sa.Row[Any] | None:
    """A request; None if there is none of that name."""
    return connection.execute(REQUEST.select().where(REQUEST.c.id == request)).first()


def change(
    connection: sa.Connection, request: str, *conditions: sa.ColumnElement[bool], **values: str
) -> bool:
    """Change an open request that meets the conditions; false if there is none."""
    is_open = (REQUEST.c.id == request) & (REQUEST.c.state == "open")
    changed = connection.execute(REQUEST.update().where(is_open, *conditions).values(values))
    return changed.rowcount == 1


def _close(connection: sa.Connection, request: str, state: str) -> bool:
    if not change(connection, request, state=state):
        return False
    messages.cancel(connection, DUE, request)
    return True


def to_minor_units(amount: Decimal, currency: str) -> int:
    """An amount as a whole number of its currency's minor units: 9.99 EUR is 999.

    Raises:
        ValueError: the currency is none, or doesn't have so many decimals.
    """
    units = amount.scaleb(lb.minor_units(currency))
    if units != int(units):
        raise ValueError(f"{amount} has more decimals than {currency} has")
    return int(units)


def as_text(moment: datetime.datetime) -> str:
    """A moment in UTC, so that texts sort like moments."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")
