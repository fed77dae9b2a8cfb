"""Once a day: prices of a shop's products raised, page by page of its table.

The Variable `ledgerbeam_shop` is the database's URL, which refers to its password and doesn't hold
it, such as `postgresql+psycopg://batch:${env:SHOP_PASSWORD}@db/shop`. `ledgerbeam_data` is where
results go.
"""

import datetime

import pendulum
from airflow.sdk import DAG, Param
from ledgerbeam_airflow import BatchProcessOperator, BatchProcessSensor

ZONE = "Europe/Berlin"
DAY = "{{ logical_date.in_timezone('" + ZONE + "').date() }}"

with DAG(
    "ledgerbeam_prices",
    schedule="30 3 * * *",
    start_date=pendulum.datetime(2026, 11, 1, tz=ZONE),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": datetime.timedelta(minutes=2)},
    params={"percent": Param("2.5", type="string", description="by how much prices are raised")},
    tags=["ledgerbeam"],
    doc_md=__doc__,
):
    migrate = BatchProcessOperator(
        task_id="price_migration",
        workload="price-migration",
        parameters={
            "database": "{{ var.value.ledgerbeam_shop }}",
            "business_date": DAY,
            "percent": "{{ params.percent }}",
            "output": "{{ var.value.ledgerbeam_data }}/results",
        },
    )
    published = BatchProcessSensor(
        task_id="prices_are_published",
        run=f"price-migration/{DAY}",
        execution_timeout=datetime.timedelta(hours=2),
    )
    migrate >> published
