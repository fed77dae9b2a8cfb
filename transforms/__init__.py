"""Beam transforms over Arrow tables, for any pipeline; each has a pure function for its work.

| transform | what it does |
| --- | --- |
| `ReadTables` | reads files by contract, with the rejected rows as a second output |
| `ShuffleByKey` | brings rows together by key, as whole components in sorted tables |
| `ExecuteComponents` | executes components, many in a call; failed ones are a second output |
| `ExecuteEach` | the same by a plain function of one component |
| `PublishTables` | publishes tables as one dataset: all rows, or nothing |
| `MarkDeliveries` | how much of each trade goes to delivery |
| `CloseLoans` | closes the days of loans through a business date |
| `RepaymentSchedules` | the instalments of loans |
| `RemittanceLines` | what is owed to investors for a month, loan by loan |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerbeam.transforms.concurrency.executor import current_fence as current_fence
    from ledgerbeam.transforms.concurrency.retry import Retry as Retry
    from ledgerbeam.transforms.concurrency.retry import RetryAfter as RetryAfter
    from ledgerbeam.transforms.execute import ExecuteComponents as ExecuteComponents
    from ledgerbeam.transforms.execute import ExecuteEach as ExecuteEach
    from ledgerbeam.transforms.publish import PublishTables as PublishTables
    from ledgerbeam.transforms.read import ReadTables as ReadTables
    from ledgerbeam.transforms.rules import CloseLoans as CloseLoans
    from ledgerbeam.transforms.rules import MarkDeliveries as MarkDeliveries
    from ledgerbeam.transforms.rules import RemittanceLines as RemittanceLines
    from ledgerbeam.transforms.rules import RepaymentSchedules as RepaymentSchedules
    from ledgerbeam.transforms.shuffle import ShuffleByKey as ShuffleByKey

# Imported on first use, since other modules of this package are used without Beam.
_MODULES = {
    "CloseLoans": "rules",
    "ExecuteComponents": "execute",
    "ExecuteEach": "execute",
    "MarkDeliveries": "rules",
    "PublishTables": "publish",
    "ReadTables": "read",
    "RemittanceLines": "rules",
    "RepaymentSchedules": "rules",
    "Retry": "concurrency.retry",
    "RetryAfter": "concurrency.retry",
    "ShuffleByKey": "shuffle",
    "current_fence": "concurrency.executor",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
