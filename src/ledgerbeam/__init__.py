"""Batch workloads over loans and trades, as Apache Beam pipelines.

    import ledgerbeam as lb

The names in `__all__` are the public API, together with those of `ledgerbeam.transforms`; every
other module is private and may change at any time. A name is imported when it is first used, so
that a program pays only for what it needs: `lb.Runs` does without Beam.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerbeam.batch.alerts.webhook import EVENT_HEADER as EVENT_HEADER
    from ledgerbeam.batch.alerts.webhook import SIGNATURE_HEADER as SIGNATURE_HEADER
    from ledgerbeam.batch.alerts.webhook import verify_signature as verify_signature
    from ledgerbeam.batch.attempt.run import run as run
    from ledgerbeam.batch.attempt.verify import verify as verify
    from ledgerbeam.batch.cli.module import main as main
    from ledgerbeam.batch.define.expect import Expect as Expect
    from ledgerbeam.batch.define.keyed_process import FileParameters as FileParameters
    from ledgerbeam.batch.define.keyed_process import KeyedProcess as KeyedProcess
    from ledgerbeam.batch.define.keyed_process import Lookup as Lookup
    from ledgerbeam.batch.define.keyed_process import RowInput as RowInput
    from ledgerbeam.batch.define.page_process import CursorPage as CursorPage
    from ledgerbeam.batch.define.page_process import CursorPages as CursorPages
    from ledgerbeam.batch.define.page_process import Item as Item
    from ledgerbeam.batch.define.page_process import Page as Page
    from ledgerbeam.batch.define.page_process import PageProcess as PageProcess
    from ledgerbeam.batch.define.page_process import SqlPages as SqlPages
    from ledgerbeam.batch.define.page_process import SqlParameters as SqlParameters
    from ledgerbeam.batch.define.process import BatchProcess as BatchProcess
    from ledgerbeam.batch.define.process import FailureLimit as FailureLimit
    from ledgerbeam.batch.define.process import Parameters as Parameters
    from ledgerbeam.batch.define.process import Ramp as Ramp
    from ledgerbeam.batch.define.process import Record as Record
    from ledgerbeam.batch.define.process import Retry as Retry
    from ledgerbeam.batch.define.process import RetryAfter as RetryAfter
    from ledgerbeam.batch.define.process import RetryMode as RetryMode
    from ledgerbeam.batch.define.process import instance_uri as instance_uri
    from ledgerbeam.batch.define.results import Results as Results
    from ledgerbeam.batch.define.workloads import load_workload as load_workload
    from ledgerbeam.batch.define.workloads import workload_names as workload_names
    from ledgerbeam.batch.model.outcomes import Outcome as Outcome
    from ledgerbeam.batch.model.queue import QueuePolicy as QueuePolicy
    from ledgerbeam.batch.model.run import AttemptKind as AttemptKind
    from ledgerbeam.batch.model.run import AttemptOutcome as AttemptOutcome
    from ledgerbeam.batch.model.run import RecordedEvent as RecordedEvent
    from ledgerbeam.batch.model.run import RunAttempt as RunAttempt
    from ledgerbeam.batch.model.run import RunRecord as RunRecord
    from ledgerbeam.batch.model.sla import Sla as Sla
    from ledgerbeam.batch.model.status import ComponentStatus as ComponentStatus
    from ledgerbeam.batch.model.status import RunStatus as RunStatus
    from ledgerbeam.batch.observe.progress import Progress as Progress
    from ledgerbeam.batch.runs.client import Runs as Runs
    from ledgerbeam.batch.runs.reading import RunView as RunView
    from ledgerbeam.batch.settings import Settings as Settings
    from ledgerbeam.batch.testing import Executed as Executed
    from ledgerbeam.batch.testing import RunProcess as RunProcess
    from ledgerbeam.batch.testing import local_pipeline as local_pipeline
    from ledgerbeam.batch.testing import run_components as run_components
    from ledgerbeam.io.commit.attempts import load_manifest as load_manifest
    from ledgerbeam.io.commit.published import published_reports as published_reports
    from ledgerbeam.io.commit.published import read_published as read_published
    from ledgerbeam.io.commit.records import Control as Control
    from ledgerbeam.io.commit.records import Manifest as Manifest
    from ledgerbeam.io.commit.records import Totals as Totals
    from ledgerbeam.io.datasets.contract import Column as Column
    from ledgerbeam.io.datasets.contract import Contract as Contract
    from ledgerbeam.io.datasets.readers import ROW_LOCATION as ROW_LOCATION
    from ledgerbeam.io.errors import AlreadyPublishedError as AlreadyPublishedError
    from ledgerbeam.io.errors import AlreadyResolvedError as AlreadyResolvedError
    from ledgerbeam.io.errors import AmbiguousRunError as AmbiguousRunError
    from ledgerbeam.io.errors import ApprovalNeededError as ApprovalNeededError
    from ledgerbeam.io.errors import AttemptLostError as AttemptLostError
    from ledgerbeam.io.errors import AuditMismatchError as AuditMismatchError
    from ledgerbeam.io.errors import BugError as BugError
    from ledgerbeam.io.errors import CanceledError as CanceledError
    from ledgerbeam.io.errors import ComponentNotFoundError as ComponentNotFoundError
    from ledgerbeam.io.errors import ControlTotalMismatchError as ControlTotalMismatchError
    from ledgerbeam.io.errors import DamagedFileError as DamagedFileError
    from ledgerbeam.io.errors import DatabaseError as DatabaseError
    from ledgerbeam.io.errors import DeadlinePassedError as DeadlinePassedError
    from ledgerbeam.io.errors import DefinitionError as DefinitionError
    from ledgerbeam.io.errors import FencedError as FencedError
    from ledgerbeam.io.errors import IllegalMoveError as IllegalMoveError
    from ledgerbeam.io.errors import InputChangedError as InputChangedError
    from ledgerbeam.io.errors import InputError as InputError
    from ledgerbeam.io.errors import InputNotFoundError as InputNotFoundError
    from ledgerbeam.io.errors import LeaseLostError as LeaseLostError
    from ledgerbeam.io.errors import LedgerbeamError as LedgerbeamError
    from ledgerbeam.io.errors import MixedCurrenciesError as MixedCurrenciesError
    from ledgerbeam.io.errors import NoThreadFreeError as NoThreadFreeError
    from ledgerbeam.io.errors import NotPublishedError as NotPublishedError
    from ledgerbeam.io.errors import OnRecordError as OnRecordError
    from ledgerbeam.io.errors import OutcomeUnknownError as OutcomeUnknownError
    from ledgerbeam.io.errors import OutOfMemoryError as OutOfMemoryError
    from ledgerbeam.io.errors import OverdueError as OverdueError
    from ledgerbeam.io.errors import PageFetchError as PageFetchError
    from ledgerbeam.io.errors import ParameterError as ParameterError
    from ledgerbeam.io.errors import RegistryUnavailableError as RegistryUnavailableError
    from ledgerbeam.io.errors import ResultsExpiredError as ResultsExpiredError
    from ledgerbeam.io.errors import RunFailedError as RunFailedError
    from ledgerbeam.io.errors import RunnerError as RunnerError
    from ledgerbeam.io.errors import RunnerUnavailableError as RunnerUnavailableError
    from ledgerbeam.io.errors import RunNotFoundError as RunNotFoundError
    from ledgerbeam.io.errors import SamePersonError as SamePersonError
    from ledgerbeam.io.errors import SchemaError as SchemaError
    from ledgerbeam.io.errors import SecretError as SecretError
    from ledgerbeam.io.errors import ShardTooLargeError as ShardTooLargeError
    from ledgerbeam.io.errors import StaleInputError as StaleInputError
    from ledgerbeam.io.errors import StorageError as StorageError
    from ledgerbeam.io.errors import SubmissionConflictError as SubmissionConflictError
    from ledgerbeam.io.errors import TimeLimitExceededError as TimeLimitExceededError
    from ledgerbeam.io.errors import TooManyFailuresError as TooManyFailuresError
    from ledgerbeam.io.errors import TooManyRejectionsError as TooManyRejectionsError
    from ledgerbeam.io.errors import UnexpectedRowsError as UnexpectedRowsError
    from ledgerbeam.io.errors import UserError as UserError
    from ledgerbeam.io.errors import WaitTimeoutError as WaitTimeoutError
    from ledgerbeam.io.errors import WorkloadNotFoundError as WorkloadNotFoundError
    from ledgerbeam.io.secrets import DatabaseUrl as DatabaseUrl
    from ledgerbeam.io.secrets import Secret as Secret
    from ledgerbeam.io.secrets import resolve_url as resolve_url
    from ledgerbeam.io.sql.ranges import ByCount as ByCount
    from ledgerbeam.io.sql.ranges import ByNumber as ByNumber
    from ledgerbeam.io.sql.ranges import ByRange as ByRange
    from ledgerbeam.io.sql.source import SqlQuery as SqlQuery
    from ledgerbeam.io.sql.source import SqlTable as SqlTable
    from ledgerbeam.io.sql.write import ComponentTransaction as ComponentTransaction
    from ledgerbeam.pipelines.parameters import CalendarParameters as CalendarParameters
    from ledgerbeam.pipelines.parameters import MoneyParameters as MoneyParameters
    from ledgerbeam.rules.calendar.business_days import BusinessCalendar as BusinessCalendar
    from ledgerbeam.rules.calendar.business_days import business_calendar as business_calendar
    from ledgerbeam.rules.calendar.changes import calendar_changes as calendar_changes
    from ledgerbeam.rules.calendar.conventions import (
        BusinessDayConvention as BusinessDayConvention,
    )
    from ledgerbeam.rules.components import Component as Component
    from ledgerbeam.rules.components import Components as Components
    from ledgerbeam.rules.currency import format_money as format_money
    from ledgerbeam.rules.currency import minor_units as minor_units
    from ledgerbeam.rules.currency import to_decimal as to_decimal
    from ledgerbeam.rules.money import Rounding as Rounding
    from ledgerbeam.rules.money import round_money as round_money
    from ledgerbeam.rules.rollout import Rollout as Rollout
    from ledgerbeam.service.client import Client as Client
    from ledgerbeam.service.errors import AccessDeniedError as AccessDeniedError
    from ledgerbeam.service.errors import AnswerTimeoutError as AnswerTimeoutError
    from ledgerbeam.service.errors import BulkNotFoundError as BulkNotFoundError
    from ledgerbeam.service.errors import ChangedMeanwhileError as ChangedMeanwhileError
    from ledgerbeam.service.errors import IdempotencyConflictError as IdempotencyConflictError
    from ledgerbeam.service.errors import KindNotFoundError as KindNotFoundError
    from ledgerbeam.service.errors import RequestNotFoundError as RequestNotFoundError
    from ledgerbeam.service.errors import RequestRejectedError as RequestRejectedError
    from ledgerbeam.service.errors import RequestStateError as RequestStateError
    from ledgerbeam.service.errors import ServiceUnavailableError as ServiceUnavailableError
    from ledgerbeam.service.errors import UnauthenticatedError as UnauthenticatedError
    from ledgerbeam.service.model import RequestRecord as RequestRecord
    from ledgerbeam.service.model import RequestState as RequestState
    from ledgerbeam.transforms.columnar.totals import exact_sum as exact_sum
    from ledgerbeam.transforms.columnar.totals import id_hash as id_hash
    from ledgerbeam.transforms.columnar.totals import sums_by_currency as sums_by_currency

    __version__: str

# The same for `__getattr__`: the module of each public name.
_MODULES = {
    "AccessDeniedError": "service.errors",
    "AlreadyPublishedError": "io.errors",
    "AlreadyResolvedError": "io.errors",
    "AmbiguousRunError": "io.errors",
    "AttemptKind": "batch.model.run",
    "AnswerTimeoutError": "service.errors",
    "ApprovalNeededError": "io.errors",
    "AttemptLostError": "io.errors",
    "AuditMismatchError": "io.errors",
    "AttemptOutcome": "batch.model.run",
    "BatchProcess": "batch.define.process",
    "BugError": "io.errors",
    "BulkNotFoundError": "service.errors",
    "BusinessCalendar": "rules.calendar.business_days",
    "BusinessDayConvention": "rules.calendar.conventions",
    "ByCount": "io.sql.ranges",
    "ByNumber": "io.sql.ranges",
    "ByRange": "io.sql.ranges",
    "CalendarParameters": "pipelines.parameters",
    "CanceledError": "io.errors",
    "ChangedMeanwhileError": "service.errors",
    "Client": "service.client",
    "Column": "io.datasets.contract",
    "Component": "rules.components",
    "ComponentNotFoundError": "io.errors",
    "ComponentStatus": "batch.model.status",
    "ComponentTransaction": "io.sql.write",
    "Components": "rules.components",
    "Contract": "io.datasets.contract",
    "Control": "io.commit.records",
    "ControlTotalMismatchError": "io.errors",
    "CursorPage": "batch.define.page_process",
    "CursorPages": "batch.define.page_process",
    "DamagedFileError": "io.errors",
    "DatabaseError": "io.errors",
    "DatabaseUrl": "io.secrets",
    "DeadlinePassedError": "io.errors",
    "DefinitionError": "io.errors",
    "EVENT_HEADER": "batch.alerts.webhook",
    "Executed": "batch.testing",
    "Expect": "batch.define.expect",
    "FailureLimit": "batch.define.process",
    "FencedError": "io.errors",
    "FileParameters": "batch.define.keyed_process",
    "IdempotencyConflictError": "service.errors",
    "IllegalMoveError": "io.errors",
    "InputChangedError": "io.errors",
    "InputError": "io.errors",
    "InputNotFoundError": "io.errors",
    "Item": "batch.define.page_process",
    "KeyedProcess": "batch.define.keyed_process",
    "KindNotFoundError": "service.errors",
    "LeaseLostError": "io.errors",
    "LedgerbeamError": "io.errors",
    "Lookup": "batch.define.keyed_process",
    "Manifest": "io.commit.records",
    "MixedCurrenciesError": "io.errors",
    "MoneyParameters": "pipelines.parameters",
    "NoThreadFreeError": "io.errors",
    "NotPublishedError": "io.errors",
    "Outcome": "batch.model.outcomes",
    "OnRecordError": "io.errors",
    "OutOfMemoryError": "io.errors",
    "OutcomeUnknownError": "io.errors",
    "OverdueError": "io.errors",
    "Page": "batch.define.page_process",
    "PageFetchError": "io.errors",
    "PageProcess": "batch.define.page_process",
    "ParameterError": "io.errors",
    "Parameters": "batch.define.process",
    "Progress": "batch.observe.progress",
    "QueuePolicy": "batch.model.queue",
    "ROW_LOCATION": "io.datasets.readers",
    "Record": "batch.define.process",
    "RecordedEvent": "batch.model.run",
    "RegistryUnavailableError": "io.errors",
    "RequestNotFoundError": "service.errors",
    "RequestRecord": "service.model",
    "RequestRejectedError": "service.errors",
    "RequestState": "service.model",
    "RequestStateError": "service.errors",
    "Results": "batch.define.results",
    "ResultsExpiredError": "io.errors",
    "Ramp": "batch.define.process",
    "Retry": "batch.define.process",
    "RetryAfter": "batch.define.process",
    "RetryMode": "batch.define.process",
    "Rollout": "rules.rollout",
    "Rounding": "rules.money",
    "RowInput": "batch.define.keyed_process",
    "RunAttempt": "batch.model.run",
    "RunFailedError": "io.errors",
    "RunNotFoundError": "io.errors",
    "RunProcess": "batch.testing",
    "RunRecord": "batch.model.run",
    "RunStatus": "batch.model.status",
    "RunView": "batch.runs.reading",
    "RunnerError": "io.errors",
    "RunnerUnavailableError": "io.errors",
    "Runs": "batch.runs.client",
    "SIGNATURE_HEADER": "batch.alerts.webhook",
    "SchemaError": "io.errors",
    "Secret": "io.secrets",
    "SamePersonError": "io.errors",
    "SecretError": "io.errors",
    "ServiceUnavailableError": "service.errors",
    "Settings": "batch.settings",
    "ShardTooLargeError": "io.errors",
    "Sla": "batch.model.sla",
    "SqlPages": "batch.define.page_process",
    "SqlParameters": "batch.define.page_process",
    "SqlQuery": "io.sql.source",
    "SqlTable": "io.sql.source",
    "StaleInputError": "io.errors",
    "StorageError": "io.errors",
    "SubmissionConflictError": "io.errors",
    "TimeLimitExceededError": "io.errors",
    "TooManyFailuresError": "io.errors",
    "TooManyRejectionsError": "io.errors",
    "Totals": "io.commit.records",
    "UnauthenticatedError": "service.errors",
    "UnexpectedRowsError": "io.errors",
    "UserError": "io.errors",
    "WaitTimeoutError": "io.errors",
    "WorkloadNotFoundError": "io.errors",
    "business_calendar": "rules.calendar.business_days",
    "calendar_changes": "rules.calendar.changes",
    "exact_sum": "transforms.columnar.totals",
    "format_money": "rules.currency",
    "id_hash": "transforms.columnar.totals",
    "instance_uri": "batch.define.process",
    "load_manifest": "io.commit.attempts",
    "load_workload": "batch.define.workloads",
    "local_pipeline": "batch.testing",
    "main": "batch.cli.module",
    "minor_units": "rules.currency",
    "published_reports": "io.commit.published",
    "read_published": "io.commit.published",
    "resolve_url": "io.secrets",
    "round_money": "rules.money",
    "run": "batch.attempt.run",
    "run_components": "batch.testing",
    "sums_by_currency": "transforms.columnar.totals",
    "to_decimal": "rules.currency",
    "verify": "batch.attempt.verify",
    "verify_signature": "batch.alerts.webhook",
    "workload_names": "batch.define.workloads",
}

__all__ = ["__version__", *_MODULES]

# Beam logs this at every import where the BigQuery client isn't installed, which nothing here uses.
logging.getLogger().addFilter(
    lambda record: not record.getMessage().startswith("apitools not found")
)


# Type checkers would take any name for public otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name."""
        value: Any
        if name == "__version__":
            from importlib.metadata import version

            value = version("ledgerbeam")
        elif name in _MODULES:
            value = getattr(importlib.import_module(f"ledgerbeam.{_MODULES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """The public names, whether they are imported already or not."""
    return __all__
