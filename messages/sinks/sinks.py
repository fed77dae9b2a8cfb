"""Sinks on record: each is a consumer of a topic that posts instead of handling.

So it has what consumers have: buckets that are leased, a position in each, a pause, a rate, dead
letters, a lag, and books.
"""

import re
import uuid
from typing import Annotated, Literal, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from ledgerbeam.batch.alerts.address import Webhook
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.secrets import Secret
from ledgerbeam.messages.consumer.consumers import (
    Consumer,
    find_consumer,
    position_before,
    record_consumer,
)
from ledgerbeam.messages.sinks.kafka import KafkaPoster
from ledgerbeam.messages.sinks.posting import Poster
from ledgerbeam.messages.sinks.webhook import WebhookPoster
from ledgerbeam.messages.store.schema import CONSUMER, SINK, TOPIC
from ledgerbeam.messages.store.topics import find_topic

_ADDRESS = re.compile(r"([^\s:,\[\]]+|\[[^\s,]+\]):\d{1,5}")
_SECRET_OPTION = re.compile(r"password|secret|jaas|key\.pem|token", re.IGNORECASE)
# By these the order, and that nothing is lost, would be given up.
_OWN_OPTIONS = {
    "acks",
    "request.required.acks",
    "bootstrap.servers",
    "metadata.broker.list",
    "enable.idempotence",
    "transactional.id",
    "delivery.timeout.ms",
    "message.timeout.ms",
}


class WebhookSink(Webhook):
    """Posts each message to an address."""

    kind: Literal["webhook"] = "webhook"

    @property
    def target(self) -> str:
        """Where it posts to, for people."""
        return self.url

    def poster(self, time_limit: float) -> Poster:
        """What posts to it."""
        return WebhookPoster(self, time_limit)


class KafkaSink(BaseModel):
    """Posts to a topic of Kafka.

    Attributes:
        brokers: HOST:PORT, several separated by commas.
        topic: its name in Kafka.
        options: further ones of librdkafka; what is secret is a reference.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kafka"] = "kafka"
    brokers: str
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    options: dict[str, str] = {}

    @field_validator("brokers")
    @classmethod
    def _are_addresses(cls, brokers: str) -> str:
        if not all(_ADDRESS.fullmatch(each) for each in brokers.split(",")):
            raise ValueError("give HOST:PORT, several separated by commas")
        return brokers

    @field_validator("options")
    @classmethod
    def _keep_promises_and_secrets(cls, options: dict[str, str]) -> dict[str, str]:
        if own := sorted(_OWN_OPTIONS & options.keys()):
            raise ValueError(f"{', '.join(own)} is set by ledgerbeam, so that nothing is lost")
        for name, value in options.items():
            if _SECRET_OPTION.search(name):
                Secret(value)
        return options

    @property
    def target(self) -> str:
        """Where it posts to, for people."""
        return f"{self.brokers}/{self.topic}"

    def poster(self, time_limit: float) -> Poster:
        """What posts to it."""
        return KafkaPoster(self.brokers, self.topic, self.options, time_limit)


Definition = WebhookSink | KafkaSink
_DEFINITION: TypeAdapter[Definition] = TypeAdapter(
    Annotated[WebhookSink | KafkaSink, Field(discriminator="kind")]
)


class Sink(NamedTuple):
    """A sink on record.

    Attributes:
        consumer: whose position is its own.
        topic: name of its topic.
        source: stands for the database in the ids of messages.
        definition: where it posts to.
    """

    consumer: Consumer
    topic: str
    source: str
    definition: Definition

    def poster(self, lease_seconds: float) -> Poster:
        """What posts to it.

        Args:
            lease_seconds: of the process; a post takes half of it at most, so that it has ended
                before another process has the lease.
        """
        return self.definition.poster(lease_seconds / 2)


def declare_sink(
    connection: sa.Connection,
    topic: str,
    name: str,
    definition: Definition,
    since: int | None = None,
) -> Sink:
    """Put a sink on record, or change where it posts to; it goes on where it was.

    Args:
        connection: in a transaction that commits soon.
        topic: name of a topic.
        name: of the sink, as that of a consumer.
        definition: where it posts to.
        since: as for `declare_consumer`.

    Raises:
        ParameterError: there is no such topic, or the name belongs to a consumer or to a sink of
            another topic.
    """
    found = find_topic(connection, topic)
    first = 0 if since is None else position_before(connection, since)
    consumer, is_new = record_consumer(connection, name, found, first)
    row = connection.execute(SINK.select().where(SINK.c.consumer == consumer.id)).first()
    if row is None and not is_new:
        raise ParameterError(
            f"{name} is a consumer with a handler: give the sink another name by --name",
            parameter="--name",
            value=name,
        )
    text = definition.model_dump_json()
    if row is not None:
        mine = SINK.c.consumer == consumer.id
        connection.execute(SINK.update().where(mine).values(definition=text))
        return Sink(consumer, topic, row.source, definition)
    # The same message has the same id at each sink.
    known = connection.execute(sa.select(SINK.c.source).limit(1)).scalar()
    source = known or uuid.uuid4().hex[:12]
    connection.execute(SINK.insert().values(consumer=consumer.id, source=source, definition=text))
    return Sink(consumer, topic, source, definition)


def find_sink(connection: sa.Connection, name: str) -> Sink | None:
    """A sink by its name; None if there is none."""
    return next((sink for sink in sinks(connection) if sink.consumer.name == name), None)


def sinks(connection: sa.Connection) -> list[Sink]:
    """All sinks, in the order in which they were declared."""
    select = (
        sa.select(CONSUMER.c.name, TOPIC.c.name.label("topic"), SINK.c.source, SINK.c.definition)
        .where(SINK.c.consumer == CONSUMER.c.id, TOPIC.c.id == CONSUMER.c.topic)
        .order_by(CONSUMER.c.id)
    )
    return [
        Sink(
            find_consumer(connection, row.name),
            row.topic,
            row.source,
            _DEFINITION.validate_json(row.definition),
        )
        for row in connection.execute(select).all()
    ]
