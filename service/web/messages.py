"""`/v1/messages`: messages to the future, for services in other languages.

A sender in Python writes to the database of messages itself, in its own transaction. Others call,
and repeat the call with the same `Idempotency-Key` until they are answered. The routes are there
where `LEDGERBEAM_MESSAGES` names the database.
"""

import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, field_validator

from ledgerbeam.messages.cli.options import DATABASE
from ledgerbeam.messages.model.local_time import LocalTime
from ledgerbeam.messages.store.calls import UsedKeyError, answer_once
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import (
    Outgoing,
    cancel,
    reschedule,
    schedule,
    schedule_many,
)
from ledgerbeam.service.access.front import Caller, demand
from ledgerbeam.service.errors import IdempotencyConflictError
from ledgerbeam.service.model import KEY_SECONDS, Principal, Role
from ledgerbeam.service.web.requests import IdempotencyKey

MOST = 1_000
"""Messages of a call at most."""

router = APIRouter(prefix="/v1/messages", tags=["messages"])

Topic = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Key = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
When = Annotated[
    AwareDatetime | LocalTime,
    Field(description="a moment with its zone, or a time by the clocks of a place"),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewMessage(_Body):
    """A message, and when it is due.

    Attributes:
        message: its fields, the topic's customer among them. Numbers with a point are refused:
            amounts are given as text, such as "9.99".
        due: posted at once if it has passed.
        key: the sender's own name for it, by which it is canceled or moved.
        schema_version: of the fields.
    """

    message: dict[str, JsonValue]
    due: When
    key: Key | None = None
    schema_version: int = Field(default=1, ge=1, le=32_767)

    @field_validator("message")
    @classmethod
    def _has_no_float(cls, message: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for place, value in _values(message, ""):
            if isinstance(value, float):
                raise ValueError(
                    f'{place[1:]} is a number with a point, which may be rounded: give "{value}"'
                )
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{place[1:]} has NUL in it, which no database takes")
        return message

    def outgoing(self) -> Outgoing:
        """What is scheduled."""
        return Outgoing(self.message, self.due, self.key, self.schema_version)


class Scheduled(NewMessage):
    """A message of a topic."""

    topic: Topic


class Batch(_Body):
    """Messages of a topic: all are scheduled, or none."""

    topic: Topic
    messages: list[NewMessage] = Field(min_length=1, max_length=MOST)


class Cancellation(_Body):
    """Which messages are taken back: those of a key."""

    topic: Topic
    key: Key
    due: AwareDatetime | None = Field(
        default=None, description="when it is due, if that is known: less is searched"
    )


class Move(Cancellation):
    """Which messages are moved, and to when."""

    to: When


class MessageId(BaseModel):
    """The number of a message, which stays with it."""

    id: int


class ScheduledCount(BaseModel):
    """How many messages were scheduled."""

    scheduled: int


class CanceledCount(BaseModel):
    """How many messages were taken back; 0 says that it is too late, or that there are none."""

    canceled: int


class MovedCount(BaseModel):
    """How many messages were moved; 0 says that it is too late, or that there are none."""

    moved: int


def mount(app: FastAPI) -> None:
    """Add the routes, if the environment names a database of messages.

    Raises:
        DatabaseError: it can't be reached, or its tables aren't up to date.
    """
    url = os.environ.get(DATABASE)
    app.state.messages = None
    if url:
        app.state.messages = MessageDatabase.open(url, max_connections=8)
        app.include_router(router)


def close(app: FastAPI) -> None:
    """Close the connections."""
    if app.state.messages is not None:
        app.state.messages.close()


def _database_of(request: Request) -> MessageDatabase:
    database: MessageDatabase = request.app.state.messages
    return database


Database = Annotated[MessageDatabase, Depends(_database_of)]


@router.post("", status_code=201)
def schedule_one(
    scheduled: Scheduled, database: Database, caller: Caller, idempotency_key: IdempotencyKey = None
) -> MessageId:
    """Send a message to the moment at which it is due."""

    def act(connection: Any) -> dict[str, Any]:
        new = scheduled.outgoing()
        number = schedule(
            connection, scheduled.topic, new.message, due=new.due, key=new.key, version=new.version
        )
        return {"id": number}

    return MessageId(**_do(database, caller, scheduled, idempotency_key, act))


@router.post("/batch", status_code=201)
def schedule_several(
    batch: Batch, database: Database, caller: Caller, idempotency_key: IdempotencyKey = None
) -> ScheduledCount:
    """Send messages of a topic, each to its own moment; all of them or none."""

    def act(connection: Any) -> dict[str, Any]:
        outgoing = [message.outgoing() for message in batch.messages]
        return {"scheduled": schedule_many(connection, batch.topic, outgoing)}

    return ScheduledCount(**_do(database, caller, batch, idempotency_key, act))


@router.post("/cancel")
def cancel_messages(
    body: Cancellation, database: Database, caller: Caller, idempotency_key: IdempotencyKey = None
) -> CanceledCount:
    """Take back the messages of a key that haven't been posted: they never are."""

    def act(connection: Any) -> dict[str, Any]:
        return {"canceled": cancel(connection, body.topic, body.key, due=body.due)}

    return CanceledCount(**_do(database, caller, body, idempotency_key, act))


@router.post("/reschedule")
def move_messages(
    body: Move, database: Database, caller: Caller, idempotency_key: IdempotencyKey = None
) -> MovedCount:
    """Move the messages of a key that haven't been posted to another moment."""

    def act(connection: Any) -> dict[str, Any]:
        return {"moved": reschedule(connection, body.topic, body.key, to=body.to, due=body.due)}

    return MovedCount(**_do(database, caller, body, idempotency_key, act))


def _do(
    database: MessageDatabase,
    caller: Principal,
    body: Scheduled | Batch | Cancellation,
    key: str | None,
    act: Callable[[Any], dict[str, Any]],
) -> dict[str, Any]:
    """Do a call in one transaction with what its key stands for."""
    demand(caller, Role.SUBMITTER, body.topic)
    with database.begin("messages") as connection:
        if key is None:
            return act(connection)
        call = [type(body).__name__, body.model_dump(mode="json")]
        try:
            return answer_once(
                connection, caller.name, key, call, KEY_SECONDS, lambda: act(connection)
            )
        except UsedKeyError:
            raise IdempotencyConflictError(
                f"Idempotency-Key {key} was used for another call: give each call a key of its own"
            ) from None


def _values(value: JsonValue, place: str) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _values(name, f"{place}.{name}")
            yield from _values(each, f"{place}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _values(each, f"{place}.{number}")
    else:
        yield place, value
