"""What consumers of the benchmarks handle; workers of engines import it, too."""

import sqlalchemy as sa

from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import Message

TOPIC = "payment-due"
UPDATE = sa.text("UPDATE customer SET handled = handled + 1 WHERE id = :id")


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
