"""What `--json` prints of messages: the models that its published schemas are made of."""

from collections.abc import Mapping

from pydantic import BaseModel

from ledgerbeam.batch.json_schemas import Line, line_of
from ledgerbeam.batch.model.rollout import RolloutEntry, RolloutStanding
from ledgerbeam.messages.archive.erase import Erasure
from ledgerbeam.messages.archive.leave import Batch
from ledgerbeam.messages.books.forecast import Hour, Standing
from ledgerbeam.messages.books.verify import ConsumerBooks, Difference, TopicDay
from ledgerbeam.messages.consumer.dead_letters import DeadLetter
from ledgerbeam.messages.consumer.removal import Removal
from ledgerbeam.messages.store.derive import Move


class Posted(Line):
    """How many messages a scheduler has posted."""

    posted: int


class Handled(Line):
    """How many messages a consumer's process has handled, and how many tries have failed."""

    consumer: str
    handled: int
    failed: int


class Topic(Line):
    """A topic that is declared, and the field of its messages that names the customer."""

    topic: str
    customer: str


class PausedConsumer(Line):
    """Whether a consumer is paused from now on."""

    consumer: str
    paused: bool


class LimitedConsumer(Line):
    """Messages a second that a consumer handles at most; null for no limit."""

    consumer: str
    rate: float | None


class LimitedTopic(Line):
    """Messages a second that are posted of a topic at most; null for no limit."""

    topic: str
    rate: float | None


class TopicRetention(Line):
    """Days for which messages of a topic stay at least; null if nothing is said of that."""

    topic: str
    days: int | None


class Sink(Line):
    """Where the messages of a topic are posted to besides the stream."""

    sink: str
    topic: str
    kind: str
    target: str


class Redriven(Line):
    """Numbers of the messages that are tried again."""

    redriven: list[int]


LINES: Mapping[str, type[BaseModel]] = {
    "archived-batch": line_of(Batch),
    "consumer": line_of(Standing),
    "consumer-books": line_of(ConsumerBooks),
    "dead-letter": line_of(DeadLetter),
    "due-hour": line_of(Hour),
    "erasure": line_of(Erasure),
    "handled-messages": Handled,
    "limited-consumer": LimitedConsumer,
    "limited-topic": LimitedTopic,
    "moved-message": line_of(Move),
    "paused-consumer": PausedConsumer,
    "posted-messages": Posted,
    "redriven": Redriven,
    "removal": line_of(Removal),
    "rollout": line_of(RolloutStanding),
    "rollout-entry": line_of(RolloutEntry),
    "sink": Sink,
    "topic": Topic,
    "topic-day": line_of(TopicDay),
    "topic-retention": TopicRetention,
    "unbalanced-messages": line_of(Difference),
}
