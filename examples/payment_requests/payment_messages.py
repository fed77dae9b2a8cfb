"""Payment requests that expire by message: no nightly scan, each at its own moment.

    ledgerbeam messages init --database=URL --topic=payment-request-due:payer \
        --topic=payment-request-expired:payer
    ledgerbeam schedule-messages --database=URL
    ledgerbeam consume expire-payment-request --database=URL
    ledgerbeam consume notify-payer --database=URL
    ledgerbeam consume count-expired --database=URL

The functions are what a service does in its own transactions. Three consumers follow, each at its
own pace: one expires requests, two do something about those that have expired.
"""

import datetime
from decimal import Decimal

import sqlalchemy as sa

from ledgerbeam import messages

DUE = "payment-request-due"
EXPIRED = "payment-request-expired"

metadata = sa.MetaData()
REQUEST = sa.Table(
    "payment_request",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("payer", sa.String(40), nullable=False),
    sa.Column("amount", sa.Numeric(18, 2, asdecimal=True), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("due", sa.String(40), nullable=False),
)
STATISTICS = sa.Table(
    "expired_by_currency",
    metadata,
    sa.Column("currency", sa.String(3), primary_key=True),
    sa.Column("requests", sa.Integer, nullable=False),
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
    amount: Decimal,
    currency: str,
    due: datetime.datetime,
) -> None:
    """Make a request, and the message that expires it, in one transaction."""
    connection.execute(
        REQUEST.insert().values(
            id=request,
            payer=payer,
            amount=amount,
            currency=currency,
            state="open",
            due=due.isoformat(),
        )
    )
    message = PaymentRequestDue(request=request, payer=payer)
    messages.schedule(connection, DUE, message, due=due, key=request)


def pay(connection: sa.Connection, request: str) -> bool:
    """Pay a request; false if it isn't open any more. Its message finds nothing left to do."""
    return _change(connection, request, state="paid")


def extend(connection: sa.Connection, request: str, due: datetime.datetime) -> bool:
    """Give a request more time, also if its message is on its way already: see the handler."""
    messages.reschedule(connection, DUE, request, to=due)
    return _change(connection, request, due=due.isoformat())


def withdraw(connection: sa.Connection, request: str) -> bool:
    """Withdraw a request, and its message with it."""
    messages.cancel(connection, DUE, request)
    return _change(connection, request, state="withdrawn")


def _change(connection: sa.Connection, request: str, **values: str) -> bool:
    is_open = (REQUEST.c.id == request) & (REQUEST.c.state == "open")
    return connection.execute(REQUEST.update().where(is_open).values(values)).rowcount == 1


class ExpirePaymentRequest(messages.MessageHandler[PaymentRequestDue]):
    """Expires a request that is still open; one that got more time is looked at again then."""

    name = "expire-payment-request"
    topic = DUE
    customer = "payer"

    def handle(self, message: PaymentRequestDue, work: messages.Work) -> None:
        """See what is the case, and act on it."""
        of_request = REQUEST.select().where(REQUEST.c.id == message.request).with_for_update()
        request = work.connection.execute(of_request).one()
        if request.state != "open":
            return
        due = datetime.datetime.fromisoformat(request.due)
        if due > work.due:
            work.reschedule(due)
            return
        _change(work.connection, message.request, state="expired")
        expired = PaymentRequestExpired(
            request=message.request,
            payer=message.payer,
            amount=request.amount,
            currency=request.currency,
        )
        work.publish(EXPIRED, expired, key=message.request)


class NotifyPayer(messages.MessageHandler[PaymentRequestExpired]):
    """Tells the payer; the number of the message lets the receiver drop a repetition."""

    name = "notify-payer"
    topic = EXPIRED
    customer = "payer"
    batch = 1

    def handle(self, message: PaymentRequestExpired, work: messages.Work) -> None:
        """Note the push notification; a real one would go to a provider here."""
        text = f"Request {message.request} over {message.amount} {message.currency} has expired"
        row = {"message_id": work.message_id, "payer": message.payer, "text": text}
        work.connection.execute(PUSH.insert().values(row))


class CountExpired(messages.MessageHandler[PaymentRequestExpired]):
    """Keeps a table of statistics up to date."""

    name = "count-expired"
    topic = EXPIRED
    customer = "payer"

    def handle(self, message: PaymentRequestExpired, work: messages.Work) -> None:
        """Count the request once: the transaction is the same that handles the message."""
        counted = work.connection.execute(
            STATISTICS.update()
            .where(STATISTICS.c.currency == message.currency)
            .values(requests=STATISTICS.c.requests + 1)
        )
        if not counted.rowcount:
            row = {"currency": message.currency, "requests": 1}
            work.connection.execute(STATISTICS.insert().values(row))
