"""What all kinds of sinks have in common: what is posted, and what may become of it."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import sqlalchemy as sa

from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.transforms.concurrency.retry import Retry

RETRY = Retry(tries=300, first_delay=1.0, longest_delay=300.0)
"""How often a message is tried that a sink doesn't take: for about a day."""


class RefusedError(Exception):
    """The sink refuses the message for what it is: another try wouldn't help."""


class UnavailableError(Exception):
    """The sink doesn't take the message now, and may take it later."""


class Envelope(NamedTuple):
    """A message as it is posted.

    Attributes:
        id: the same at every try and at every sink of the database; no other message has it.
        customer: whom it is about.
        body: JSON, with the message as its sender has written it.
    """

    id: str
    customer: str
    body: bytes


class Sent(NamedTuple):
    """How far a sink has taken the messages that it was given.

    Attributes:
        taken: how many of the first ones it has taken.
        error: why it hasn't taken the next one; None if it wasn't tried, since time was up.
    """

    taken: int
    error: RefusedError | UnavailableError | None


class Poster(Protocol):
    """Posts to a sink. Threads may share one.

    Attributes:
        batch: messages that it is given at once at most.
    """

    batch: ClassVar[int]

    def post(self, envelopes: Sequence[Envelope], until: float) -> Sent:
        """Post messages: those of one customer in their order, each when the last one is taken.

        Args:
            envelopes: in the order of the stream.
            until: nothing is posted at this time of the monotonic clock or later.
        """

    def close(self) -> None:
        """Give back what is open."""


def envelope_of(source: str, topic: str, row: sa.Row[Any]) -> Envelope:
    """A message of the stream, as every sink posts it.

    Args:
        source: stands for the database, in whose tables the message has its number.
        topic: name of the topic.
        row: of the stream.
    """
    number = f"{source}-{row.message_id}"
    facts = {
        "id": number,
        "topic": topic,
        "customer": row.customer,
        "key": row.key,
        "due": to_datetime(row.due).isoformat(),
        "posted_at": to_datetime(row.posted_at).isoformat(),
        "schema_version": row.version,
    }
    # The message isn't parsed, so that none of its numbers is rounded.
    head = json.dumps(facts, ensure_ascii=False)[:-1]
    return Envelope(number, row.customer, f'{head}, "message": {row.payload}}}'.encode())
