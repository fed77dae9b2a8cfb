"""What is done with messages about payment requests: three consumers, each at its own pace.

One expires requests that are due. Two follow what has expired: one tells payers, one counts.
"""

import datetime

from payment_requests import (
    DUE,
    EXPIRED,
    PUSH,
    REQUEST,
    STATISTICS,
    PaymentRequestDue,
    PaymentRequestExpired,
    change,
    to_minor_units,
)

import ledgerbeam as lb
from ledgerbeam import messages

GRACE = datetime.timedelta(days=1)
NO_GRACE = datetime.timedelta(0)


class ExpirePaymentRequest(messages.MessageHandler[PaymentRequestDue]):
    """Expires a request that is still open; one that has more time is looked at again then.

    By the new rule, private payers have a day of grace.
    """

    name = "expire-payment-request"
    topic = DUE
    customer = "payer"

    def on_time(self, message: PaymentRequestDue, work: messages.Work) -> None:
        """Rule 1: a request expires when it is due."""
        self._expire(message, work, private_grace=NO_GRACE)

    def with_grace(self, message: PaymentRequestDue, work: messages.Work) -> None:
        """Rule 2: a request to a private payer expires a day later."""
        self._expire(message, work, private_grace=GRACE)

    rules = {1: on_time, 2: with_grace}  # noqa: RUF012 - shown as users would write it
    rollout = messages.Rollout(stages=("5%", "100%"))

    def _expire(
        self, message: PaymentRequestDue, work: messages.Work, private_grace: datetime.timedelta
    ) -> None:
        of_request = REQUEST.select().where(REQUEST.c.id == message.request).with_for_update()
        request = work.connection.execute(of_request).one()
        if request.state != "open":
            return
        grace = private_grace if request.payer_group == "private" else NO_GRACE
        expires_at = datetime.datetime.fromisoformat(request.due) + grace
        if expires_at > work.due:
            work.reschedule(expires_at)
            return
        change(work.connection, message.request, state="expired")
        expired = PaymentRequestExpired(
            request=message.request,
            payer=message.payer,
            amount=lb.to_decimal(request.minor_units, request.currency),
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
        units = to_minor_units(message.amount, message.currency)
        of_currency = STATISTICS.c.currency == message.currency
        more = {
            "requests": STATISTICS.c.requests + 1,
            "minor_units": STATISTICS.c.minor_units + units,
        }
        counted = work.connection.execute(STATISTICS.update().where(of_currency).values(more))
        if not counted.rowcount:
            # Of two transactions that begin a currency at once, one fails and is tried again.
            row = {"currency": message.currency, "requests": 1, "minor_units": units}
            work.connection.execute(STATISTICS.insert().values(row))
