"""Messages: pydantic models with a schema version, each about one customer."""

import datetime
import json
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from ledgerbeam.io.errors import ParameterError

BUCKETS = 64
"""Customers are hashed to so many buckets; the messages of a bucket are handled one after another.

The number is stored with every message and never changes.
"""

LANES = 4
"""Buckets are posted in so many lanes; each is the work of one scheduler at a time."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


class Message(BaseModel):
    """Base of messages; a subclass has the fields.

        class PaymentRequestDue(Message):
            request: str
            payer: str

    A message may wait for years, and the class that reads it may have changed meanwhile: raise
    `schema_version` with every change that old messages don't fit, and let `upgrade` bring them up
    to date.

    Attributes:
        schema_version: of the fields as they are now; it is stored with every message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: ClassVar[int] = 1

    @classmethod
    def upgrade(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
        """The fields of a message of an older version, as this version has them.

        Args:
            fields: as they were stored, parsed from JSON.
            version: the version that they were stored with.
        """
        raise ValueError(
            f"{cls.__name__} is at version {cls.schema_version}, and the message at {version}: "
            "write upgrade()"
        )

    @classmethod
    def from_stored(cls, payload: str, version: int) -> Self:
        """A message from its stored form.

        Raises:
            ValueError: it doesn't fit this class.
        """
        if version == cls.schema_version:
            return cls.model_validate_json(payload)
        return cls.model_validate(cls.upgrade(json.loads(payload), version))


def bucket_of(customer: str) -> int:
    """The bucket of a customer, from 0 up to `BUCKETS`; the same for ever, in every language."""
    return zlib.crc32(customer.encode()) % BUCKETS


def lane_of(bucket: int) -> int:
    """The lane in which a bucket is posted."""
    return bucket % LANES


def customer_of(message: BaseModel | Mapping[str, Any], field: str) -> str:
    """The customer that a message is about.

    Args:
        message: a model, or the fields of one.
        field: the field that names the customer, text or a whole number.

    Raises:
        ParameterError: there is no such field, or it holds something else.
    """
    # Asked in this order, since the abstract class takes several times as long to ask for.
    fields = message.__dict__ if isinstance(message, BaseModel) else message
    value = fields.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ParameterError(
            f"the message has {value!r} as its customer, in {field!r}: give text or a whole number",
            parameter=field,
            value=value,
        )
    return str(value)


def to_microseconds(moment: datetime.datetime) -> int:
    """Microseconds since 1970 in UTC, which is how moments are stored.

    Raises:
        ParameterError: the moment has no time zone.
    """
    if moment.tzinfo is None:
        raise ParameterError(
            f"the time {moment} has no time zone: give one, such as tzinfo=datetime.UTC",
            parameter="due",
            value=moment,
        )
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def to_datetime(microseconds: int) -> datetime.datetime:
    """The moment in UTC of a number that `to_microseconds` gave."""
    return _EPOCH + microseconds * _MICROSECOND
