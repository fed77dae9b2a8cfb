"""Payment requests that nobody paid in time.

    ledgerbeam run expire-payment-requests --requests='requests/*.csv' --region=eu \
        --business-date=2026-11-20 --output=results

A request that is open and was due on the business date or before has expired. The results are the
expired requests of each payee, with the days that they are late; a report adds them up by currency.
"""

import csv
import datetime
import io
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Annotated

import apache_beam as beam
import pyarrow as pa
from pydantic import Field

import ledgerbeam as lb

MONEY = pa.decimal128(18, 2)
STATES = ("open", "paid", "withdrawn")
REQUESTS = lb.Contract(
    (
        lb.Column("request", pa.string()),
        lb.Column("payee", pa.string()),
        lb.Column("state", pa.string(), dictionary_encoded=True, one_of=STATES),
        lb.Column("amount", MONEY),
        lb.Column("currency", pa.string(), dictionary_encoded=True),
        lb.Column("due_at", pa.string()),
    )
)


class ExpiryParameters(lb.FileParameters):
    """Which requests, of which day and region."""

    business_date: datetime.date = Field(description="requests due until its end, UTC, expire")
    region: str = Field(pattern="^[a-z]{2}$", description="whose requests these are: eu, us, …")
    requests: Annotated[
        str, lb.RowInput(REQUESTS, order="request", amounts=("amount",), currency="currency")
    ] = Field(description="URI or glob of the requests")


def has_expired(state: str, due_at: datetime.datetime, date: datetime.date) -> bool:
    """Whether a request has expired at the end of a date in UTC."""
    return state == "open" and due_at.astimezone(datetime.UTC).date() <= date


class ExpirePaymentRequests(lb.KeyedProcess[ExpiryParameters]):
    """The definition: a component is a payee with all requests."""

    name = "expire-payment-requests"
    identity = ("region",)
    key = ("payee",)
    results = pa.schema(
        [
            ("request", pa.string()),
            ("amount", MONEY),
            ("currency", pa.string()),
            ("days_late", pa.int64()),
        ]
    )
    failure_limit = "1%"
    results_expire_after = datetime.timedelta(days=30)

    def execute(self, payee: lb.Component) -> Iterator[lb.Record]:
        """Give the payee's expired requests; a time that is none fails the payee."""
        date = self.business_date
        for request in payee.records():
            due_at = datetime.datetime.fromisoformat(request["due_at"])
            if due_at.tzinfo is None:
                raise ValueError(f"request {request['request']}: due_at {due_at} has no time zone")
            if has_expired(request["state"], due_at, date):
                yield {
                    "request": request["request"],
                    "amount": request["amount"],
                    "currency": request["currency"],
                    "days_late": (date - due_at.astimezone(datetime.UTC).date()).days,
                }

    def finish(self) -> beam.PTransform:
        """Publish a report with the results."""
        return ExpiredByCurrency()


class ExpiredByCurrency(beam.PTransform):
    """From tables of expired requests to `expired.csv`: a line a currency."""

    def expand(self, tables: beam.PCollection) -> beam.PCollection:
        """Count and add up by currency; amounts are decimals all the way."""
        return (
            tables
            | "Amounts" >> beam.FlatMap(_amounts)
            | "AddUp" >> beam.CombinePerKey(_add_up)
            | "AsLines" >> beam.combiners.ToList()
            | "Write" >> beam.Map(_as_csv)
        )


def _amounts(table: pa.Table) -> Iterator[tuple[str, tuple[int, Decimal]]]:
    for row in table.select(["currency", "amount"]).to_pylist():
        yield row["currency"], (1, row["amount"])


def _add_up(parts: Iterable[tuple[int, Decimal]]) -> tuple[int, Decimal]:
    count, total = 0, Decimal(0)
    for number, amount in parts:
        count += number
        total += amount
    return count, total


def _as_csv(lines: list[tuple[str, tuple[int, Decimal]]]) -> tuple[str, bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["currency", "requests", "amount"])
    writer.writerows([currency, count, amount] for currency, (count, amount) in sorted(lines))
    return "expired.csv", text.getvalue().encode()


if __name__ == "__main__":
    sys.exit(lb.main(ExpirePaymentRequests))
