"""Airflow's provider for a ledgerbeam service: a connection, an operator and a sensor."""

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """What Airflow shows of it, and the type of connection that it brings."""
    package = "airflow-provider-ledgerbeam"
    return {
        "package-name": package,
        "name": "ledgerbeam",
        "description": "Has a ledgerbeam service run batch processes, and waits for their ends",
        "versions": [version(package)],
        "connection-types": [
            {
                "connection-type": "ledgerbeam",
                "hook-name": "ledgerbeam",
                "hook-class-name": "ledgerbeam_provider.service.ServiceHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "extra"],
                    "relabeling": {"host": "Server", "schema": "http or https", "password": "Key"},
                    "placeholders": {"host": "https://batch.example.com"},
                },
            }
        ],
    }
