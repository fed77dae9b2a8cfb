"""What consumers of the benchmarks handle; workers of engines import it, too."""

from collections.abc import Sequence

import sqlalchemy as sa

from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import Message

TOPIC = "payment-due"
UPDATE = sa.text("UPDATE customer SET handled = handled + 1 WHERE id = :id")
UPDATE_MANY = sa.text("UPDATE customer SET handled = handled + 1 WHERE id = ANY(:ids)")


class PaymentDue(Message):
    """A payment request is due."""

    request: int
    payer: str


class Nothing(MessageHandler[PaymentDue]):
    """Does nothing: what is left is the framework's."""

    name = "nothing"
    topic = TOPIC
    customer = "payer"

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Return."""


class OneUpdate(Nothing):
    """Changes the customer's row."""

    name = "one-update"

    def handle(self, message: PaymentDue, work: Work) -> None:
        """Count."""
        work.connection.execute(UPDATE, {"id": message.payer})


class OneUpdateForMany(MessageHandler[PaymentDue]):
    """Changes the rows of many customers by one UPDATE."""

    name = "one-update-for-many"
    topic = TOPIC
    customer = "payer"

    def handle_many(self, messages: Sequence[tuple[PaymentDue, Work]]) -> None:
        """Count."""
        ids = [message.payer for message, _ in messages]
        messages[0][1].connection.execute(UPDATE_MANY, {"ids": ids})
