"""Every minute: runs brought to the truth, whatever has died; results deleted that are due.

A run's launcher and, on the local runner, its pipeline are processes of the worker that its task
began on. Where workers are several machines, each needs a `ledgerbeam reconcile` of its own: put it
into their cron instead, and leave this one out.
"""

import ledgerbeam_runs as runs
import pendulum
from airflow.sdk import DAG, task

with DAG(
    "ledgerbeam_upkeep",
    schedule="* * * * *",
    start_date=pendulum.datetime(2026, 11, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    tags=["ledgerbeam"],
    doc_md=__doc__,
):

    @task
    def reconcile() -> list[str]:
        """What was done."""
        return [f"{done['name']}: {done['action']}" for done in runs.reconcile()]

    reconcile()
