"""The service: payment requests over HTTP, on SQLite or PostgreSQL.

    PAYMENT_REQUESTS=sqlite:///bank.db uvicorn --factory payment_service:from_environment

Whatever it answers is committed; a call that is repeated is answered alike and does nothing again.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any, Literal

import payment_requests as requests
import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from payment_requests import STATISTICS
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

import ledgerbeam as lb


def _refuse_number(value: object) -> object:
    if not isinstance(value, str | Decimal):
        raise ValueError('give the amount as text, such as "9.99": numbers may be rounded')
    return value


Amount = Annotated[Decimal, BeforeValidator(_refuse_number), Field(gt=0, max_digits=15)]
Name = Annotated[str, Field(min_length=1, max_length=40)]


class NewRequest(BaseModel):
    """A request as it is made."""

    model_config = ConfigDict(extra="forbid")

    payer: Name
    payer_group: Literal["business", "private"]
    amount: Amount
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    due: AwareDatetime


class MoreTime(BaseModel):
    """Until when a request may be paid."""

    model_config = ConfigDict(extra="forbid")

    due: AwareDatetime


class PaymentRequest(BaseModel):
    """A request as it stands."""

    id: str
    payer: str
    payer_group: str
    amount: Decimal
    currency: str
    state: Literal["open", "paid", "withdrawn", "expired"]
    due: datetime.datetime


class Expired(BaseModel):
    """What has expired of a currency."""

    currency: str
    requests: int
    amount: Decimal


def from_environment() -> FastAPI:
    """The service on the database that `PAYMENT_REQUESTS` names."""
    return create_app(os.environ["PAYMENT_REQUESTS"])


def create_app(url: str) -> FastAPI:
    """The service.

    Args:
        url: of the database, to which `ledgerbeam messages init` has added its tables.
    """
    # On SQLite a transaction waits until no other one writes.
    options = {"timeout": 30} if url.startswith("sqlite") else {}
    engine = sa.create_engine(url, connect_args=options)
    requests.metadata.create_all(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        yield
        await run_in_threadpool(engine.dispose)

    app = FastAPI(title="Payment requests", lifespan=lifespan)
    app.state.engine = engine
    app.put("/payment-requests/{name}", status_code=201)(create)
    app.get("/payment-requests/{name}")(show)
    app.post("/payment-requests/{name}/pay")(pay)
    app.post("/payment-requests/{name}/withdraw")(withdraw)
    app.post("/payment-requests/{name}/extend")(extend)
    app.get("/statistics")(statistics)
    return app


def _transaction(request: Request) -> Iterator[sa.Connection]:
    with request.app.state.engine.connect() as connection:
        yield connection


# Each call commits before it answers, so that an answer is never ahead of its transaction.
Transaction = Annotated[sa.Connection, Depends(_transaction)]


def create(
    name: Name, new: NewRequest, connection: Transaction, answer: Response
) -> PaymentRequest:
    """Make a request; the same one again is answered by 200, another one by 409."""
    try:
        requests.create(
            connection,
            name,
            new.payer,
            new.payer_group,
            new.amount,
            new.currency,
            new.due,
        )
        connection.commit()
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except sa.exc.IntegrityError:
        connection.rollback()
        answer.status_code = 200
    found = _found(connection, name)
    given = new.model_dump(exclude={"due"})
    if answer.status_code == 200 and found.model_dump(include=set(given)) != given:
        raise HTTPException(409, f"there is another request {name}")
    return found


def show(name: Name, connection: Transaction) -> PaymentRequest:
    """A request."""
    return _found(connection, name)


def pay(name: Name, connection: Transaction) -> PaymentRequest:
    """Pay a request; 409 if it is withdrawn or expired."""
    return _changed(connection, name, requests.pay, lambda found: found.state == "paid")


def withdraw(name: Name, connection: Transaction) -> PaymentRequest:
    """Withdraw a request; 409 if it is paid or expired."""
    return _changed(connection, name, requests.withdraw, lambda found: found.state == "withdrawn")


def extend(name: Name, more: MoreTime, connection: Transaction) -> PaymentRequest:
    """Give a request more time; 409 if it isn't open, or would have less time than it has."""
    return _changed(
        connection,
        name,
        lambda connection, name: requests.extend(connection, name, more.due),
        lambda found: found.state == "open" and found.due == more.due,
    )


def statistics(connection: Transaction) -> list[Expired]:
    """How many requests have expired, and over how much, by currency."""
    return [
        Expired(
            currency=row.currency,
            requests=row.requests,
            amount=lb.to_decimal(row.minor_units, row.currency),
        )
        for row in connection.execute(STATISTICS.select().order_by(STATISTICS.c.currency))
    ]


def _changed(
    connection: sa.Connection,
    name: str,
    change: Callable[[sa.Connection, str], bool],
    is_done: Callable[[PaymentRequest], bool],
) -> PaymentRequest:
    """A request after a change; 409 if it was refused, unless the request is that way already."""
    is_changed = change(connection, name)
    connection.commit()
    found = _found(connection, name)
    if not is_changed and not is_done(found):
        raise HTTPException(409, f"request {name} is {found.state}, due {found.due.isoformat()}")
    return found


def _found(connection: sa.Connection, name: str) -> PaymentRequest:
    row = requests.find(connection, name)
    if row is None:
        raise HTTPException(404, f"there is no request {name}")
    return PaymentRequest(
        id=row.id,
        payer=row.payer,
        payer_group=row.payer_group,
        amount=lb.to_decimal(row.minor_units, row.currency),
        currency=row.currency,
        state=row.state,
        due=datetime.datetime.fromisoformat(row.due),
    )
