"""Topics: declared once, by name, with the field that names the customer of a message.

A topic that nobody declared is refused, so that a misspelt one is no black hole.
"""

import weakref
from typing import NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.model.message import LANES
from ledgerbeam.messages.store.schema import CURSOR, TOPIC

NOTHING_SEEN = {"postgresql": "1:1:", "sqlite": "0"}
"""The snapshot of a cursor that hasn't moved yet, by dialect."""


class Topic(NamedTuple):
    """A topic.

    Attributes:
        id: in the tables.
        name: its name.
        customer: the field of its messages that names the customer.
        rate: messages a second that are posted at most; None for no limit.
        retention: days for which messages stay at least after they were posted; None if nothing is
            said of that.
    """

    id: int
    name: str
    customer: str
    rate: float | None
    retention: int | None = None


# By engine, since the same name may have another id in another database.
_known: "weakref.WeakKeyDictionary[sa.Engine, dict[str, Topic]]" = weakref.WeakKeyDictionary()


def declare_topic(connection: sa.Connection, name: str, customer: str) -> Topic:
    """Declare a topic, or find that it is declared alike.

    Args:
        connection: in a transaction that commits soon: others who declare a topic wait for it.
        name: of the topic.
        customer: the field of its messages that names the customer.

    Raises:
        ParameterError: it is declared with another field.
    """
    found = _find(connection, name)
    if found is None and connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE ledgerbeam_topic IN SHARE ROW EXCLUSIVE MODE")
        found = _find(connection, name)
    if found is None:
        last = connection.execute(sa.select(sa.func.max(TOPIC.c.id))).scalar() or 0
        found = Topic(last + 1, name, customer, None)
        connection.execute(TOPIC.insert().values(**found._asdict()))
        blank = {
            "topic": found.id,
            "epoch": 0,
            "due": 0,
            "id": 0,
            "snapshot": NOTHING_SEEN[connection.dialect.name],
            "position": 0,
        }
        connection.execute(CURSOR.insert(), [{**blank, "lane": lane} for lane in range(LANES)])
    if found.customer != customer:
        raise ParameterError(
            f"topic {name}: its customer is in the field {found.customer!r}, not {customer!r}: "
            "use the same, or another topic",
            parameter="customer",
            value=customer,
        )
    return found


def find_topic(connection: sa.Connection, name: str) -> Topic:
    """A topic by its name; asked for once by each engine.

    Raises:
        ParameterError: nobody has declared it.
    """
    known = _known.setdefault(connection.engine, {})
    if name not in known:
        found = _find(connection, name)
        if found is None:
            raise ParameterError(
                f"there is no topic {name}: correct the name, or declare it by "
                f"ledgerbeam messages init --topic={name}:CUSTOMER_FIELD",
                parameter="topic",
                value=name,
            )
        known[name] = found
    return known[name]


def topics(connection: sa.Connection) -> list[Topic]:
    """All topics, in the order in which they were declared."""
    return [Topic(*row) for row in connection.execute(TOPIC.select().order_by(TOPIC.c.id))]


def _find(connection: sa.Connection, name: str) -> Topic | None:
    row = connection.execute(TOPIC.select().where(TOPIC.c.name == name)).first()
    return None if row is None else Topic(*row)


def set_topic_rate(connection: sa.Connection, name: str, rate: float | None) -> None:
    """Limit the messages a second that are posted of a topic; schedulers follow within seconds.

    Raises:
        ParameterError: there is no such topic.
    """
    topic = find_topic(connection, name)
    connection.execute(TOPIC.update().where(TOPIC.c.id == topic.id).values(rate=rate))


def set_retention(connection: sa.Connection, name: str, days: int | None) -> None:
    """Have messages of a topic stay for so many days at least before they may be archived.

    Raises:
        ParameterError: there is no such topic.
    """
    topic = find_topic(connection, name)
    connection.execute(TOPIC.update().where(TOPIC.c.id == topic.id).values(retention=days))
