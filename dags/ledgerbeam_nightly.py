"""Every night: the day's trades marked for delivery, the loans closed, the investors' report.

The business date is that of the logical date, in the time zone of the DAG. The Variable
`ledgerbeam_data` names the folder, `gs://` or `s3://` URI under which everything is:

    trades/DATE/*.parquet            the day's trades, on days of trading
    loans/loans-*.parquet            the loans, as they were boarded
    loans/transactions-*.parquet     all that came in for them since
    loans/investors.parquet
    results/                         what is published

Days of trading are the business days of the exchange that the parameter `exchange` names, special
sessions on weekends included: `ledgerbeam days` lists them. The loans that are closed are those
that the night before has published; the first night they are those boarded, as of the date that
the parameter `boarded` gives. The report begins with the loans as boarded, at the end of a month,
so that a payment of any month since may still be reversed.
"""

import datetime
import logging
import os

import ledgerbeam_runs as runs
import pendulum
from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference, Param, task
from ledgerbeam_airflow import BatchProcessOperator

ZONE = "Europe/Berlin"
HOURS = "LEDGERBEAM_NIGHT_HOURS"
"""Environment variable: hours that a night may take before on-call hears of it."""

DATA = "{{ var.value.ledgerbeam_data }}"
DAY = "{{ business_date(logical_date) }}"


def business_date(logical_date: pendulum.DateTime) -> datetime.date:
    """The date of a time in the zone of the DAG."""
    date: datetime.date = logical_date.in_timezone(ZONE).date()
    return date


def loans_at(data: str, day: datetime.date, boarded: str) -> str:
    """The loans as they stood at the close of a day: as published then, or as boarded."""
    if day <= datetime.date.fromisoformat(boarded):
        return f"{data}/loans/loans-*.parquet"
    return f"{data}/results/loan-close-of-business/{day}"


def day_before(day: datetime.date) -> datetime.date:
    """The calendar day before."""
    return day - datetime.timedelta(days=1)


def deadline_after(hours: str | None) -> DeadlineAlert | None:
    """The alert at so many hours after the night has begun; None for none."""
    if not hours:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=datetime.timedelta(hours=float(hours)),
        callback=AsyncCallback(tell_late),
    )


async def tell_late(**details: object) -> None:
    """What happens at a missed deadline: put the way to your on-call here."""
    logging.getLogger(__name__).error("the night isn't done by its deadline: %s", details)


with DAG(
    "ledgerbeam_nightly",
    schedule="0 22 * * *",
    start_date=pendulum.datetime(2026, 11, 1, tz=ZONE),
    catchup=False,
    max_active_runs=1,  # a night's loans are those of the night before
    default_args={
        "retries": 3,
        "retry_delay": datetime.timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": datetime.timedelta(minutes=30),
    },
    params={
        "boarded": Param("2026-10-31", format="date", description="loans are boarded as of"),
        "exchange": Param("XNSE", description="code of the calendar of the trades' exchange"),
    },
    user_defined_macros={
        "business_date": business_date,
        "day_before": day_before,
        "loans_at": loans_at,
    },
    deadline=deadline_after(os.environ.get(HOURS)),
    tags=["ledgerbeam"],
    doc_md=__doc__,
):

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def is_trading_day(
        logical_date: pendulum.DateTime | None = None, params: dict[str, str] | None = None
    ) -> bool:
        """Whether there are trades: on the business days of the exchange."""
        assert logical_date is not None
        assert params is not None
        return runs.is_business_day(params["exchange"], business_date(logical_date))

    mark = BatchProcessOperator(
        task_id="delivery_marking",
        workload="delivery-marking",
        parameters={
            "trades": f"{DATA}/trades/{DAY}/*.parquet",
            "trade_date": DAY,
            "output": f"{DATA}/results",
        },
    )
    close = BatchProcessOperator(
        task_id="loan_close_of_business",
        workload="loan-close-of-business",
        parameters={
            "loans": "{{ loans_at(var.value.ledgerbeam_data, "
            "day_before(business_date(logical_date)), params.boarded) }}",
            "transactions": f"{DATA}/loans/transactions-*.parquet",
            "business_date": DAY,
            "output": f"{DATA}/results",
        },
    )
    report = BatchProcessOperator(
        task_id="investor_report",
        workload="investor-report",
        parameters={
            "loans": f"{DATA}/loans/loans-*.parquet",
            "transactions": f"{DATA}/loans/transactions-*.parquet",
            "investors": f"{DATA}/loans/investors.parquet",
            "business_date": DAY,
            "output": f"{DATA}/results",
        },
    )

    @task(trigger_rule="all_done")
    def expire() -> list[str]:
        """Delete the results that are due, whatever became of the night."""
        return [str(run["name"]) for run in runs.expire()]

    is_trading_day() >> mark
    close >> report
    [mark, report] >> expire()
