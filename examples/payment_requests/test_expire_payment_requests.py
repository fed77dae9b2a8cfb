"""Run by `pytest` in this folder, with ledgerbeam installed."""

import datetime
from decimal import Decimal

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from expire_payment_requests import (
    ExpiredByCurrency,
    ExpirePaymentRequests,
    ExpiryParameters,
    has_expired,
)

import ledgerbeam as lb

DATE = datetime.date(2026, 11, 20)
PROCESS = ExpirePaymentRequests(
    ExpiryParameters(business_date=DATE, region="eu", requests="unused", output="unused")
)


def request(number: str, **changes: str) -> dict[str, str]:
    usual = {"payee": "P1", "state": "open", "amount": "9.99", "currency": "EUR"}
    return usual | {"request": number, "due_at": "2026-11-19T12:00:00+00:00"} | changes


@pytest.mark.parametrize(
    ("due_at", "expired"),
    [
        ("2026-11-20T23:59:59+00:00", True),
        ("2026-11-21T00:00:00+00:00", False),
        ("2026-11-21T00:30:00+01:00", True),
    ],
)
def test_days_end_by_utc(due_at: str, expired: bool) -> None:
    assert has_expired("open", datetime.datetime.fromisoformat(due_at), DATE) is expired


def test_open_requests_expire_and_no_others() -> None:
    rows = [request("1"), request("2", state="paid"), request("3", payee="P2", state="withdrawn")]
    assert lb.run_components(PROCESS, requests=rows).results == [
        {
            "payee": "P1",
            "request": "1",
            "amount": Decimal("9.99"),
            "currency": "EUR",
            "days_late": 1,
        }
    ]


def test_a_due_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="request 1: due_at 2026-11-19 12:00:00 has no time zone"):
        lb.run_components(PROCESS, requests=[request("1", due_at="2026-11-19T12:00:00")])


def test_the_report_adds_up_by_currency() -> None:
    def table(*rows: tuple[str, str]) -> pa.Table:
        return pa.table(
            {"currency": [c for c, _ in rows], "amount": [Decimal(amount) for _, amount in rows]}
        )

    with lb.local_pipeline() as pipeline:
        tables = pipeline | beam.Create([table(("USD", "1.10"), ("EUR", "2.00")), table()])
        tables2 = pipeline | "More" >> beam.Create([table(("USD", "0.01"))])
        reports = (tables, tables2) | beam.Flatten() | ExpiredByCurrency()
        expected = b"currency,requests,amount\nEUR,1,2.00\nUSD,2,1.11\n"
        assert_that(reports, equal_to([("expired.csv", expected)]))
