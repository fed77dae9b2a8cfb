"""The package's rules as transforms over tables; each applies the function that it names."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.closing.close_book import close_book
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery.deliver import deliver_many
from ledgerbeam.rules.loans.loan import Policy
from ledgerbeam.rules.loans.read_book import Book, read_book
from ledgerbeam.rules.loans.tables import with_state_columns
from ledgerbeam.rules.remittance.remit import Investor
from ledgerbeam.rules.remittance.report_line_many import report_line_many
from ledgerbeam.rules.schedules.schedule_many import schedule_many
from ledgerbeam.transforms.read import Collections
from ledgerbeam.transforms.shuffle import ShuffleByKey

DELIVERY_QUANTITY = "delivery_quantity"


class MarkDeliveries(beam.PTransform):
    """Marks how much of each trade goes to delivery, by client and instrument.

    The input is tables of trades, with `side` (`B` or `S`) and `quantity` (int64). The output is
    the same rows in one table per shard, with `delivery_quantity` (int64). The rule is
    `ledgerbeam.rules.delivery.deliver.deliver_many`.

        marked = trades | MarkDeliveries(TRADES, key=("client_code", "isin"), order=("id",))

    All trades of a client in an instrument for the day must be in the collection.
    """

    def __init__(
        self, schema: pa.Schema, key: Sequence[str], order: Sequence[str], shards: int = 1
    ) -> None:
        """Make the transform.

        Args:
            schema: the schema of the tables.
            key: columns that identify the trades that are netted with each other.
            order: columns in whose order trades are assigned delivery quantity.
            shards: the number of shards; about 300,000 trades per shard work well.

        Raises:
            ValueError: a column isn't in the schema.
        """
        super().__init__()
        needed = (*(name.removeprefix("-") for name in order), "side", "quantity")
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise ValueError(f"the schema has no column {missing[0]}: trades must have one")
        self._shuffle = ShuffleByKey(key, shards, schema, order)

    def expand(self, trades: beam.PCollection) -> beam.PCollection:
        """Build the graph."""
        shuffled = trades | "ShuffleByKey" >> self._shuffle
        return shuffled.components | "Mark" >> beam.MapTuple(_marked)


def _marked(_: int, components: Components) -> pa.Table:
    return components.table.append_column(DELIVERY_QUANTITY, deliver_many(components))


class RepaymentSchedules(beam.PTransform):
    """Schedules the instalments of loans.

    The input is tables of loans, as `ledgerbeam.rules.schedules.schedule_many.schedule_many` takes
    them. The output is collections by name: `instalments`, with one row per instalment, and
    `rejected`, the loans that can't be scheduled, with a column `reason`.

        schedules = loans | RepaymentSchedules()
        _ = schedules.instalments | PublishTables(…)
    """

    def __init__(
        self,
        calendar: BusinessCalendar | None = None,
        convention: BusinessDayConvention = BusinessDayConvention.NONE,
    ) -> None:
        """Make the transform.

        Args:
            calendar: the calendar of business days, for `BUS/252` and for the convention.
            convention: how due dates that aren't business days are moved.

        Raises:
            ValueError: the convention needs a calendar, and there is none.
        """
        super().__init__()
        if convention is not BusinessDayConvention.NONE and calendar is None:
            raise ValueError(f"the convention {convention} needs a calendar of business days")
        self._schedule = _Schedule(calendar, convention)

    def expand(self, loans: beam.PCollection) -> Collections:
        """Build the graph."""
        found = loans | "Schedule" >> beam.FlatMap(self._schedule).with_outputs(
            "rejected", main="instalments"
        )
        return Collections(instalments=found.instalments, rejected=found.rejected)


@dataclass(frozen=True)
class _Schedule:
    calendar: BusinessCalendar | None
    convention: BusinessDayConvention

    def __call__(self, loans: pa.Table) -> Iterator[Any]:
        instalments, rejected = schedule_many(
            loans, calendar=self.calendar, convention=self.convention
        )
        yield instalments
        if rejected:
            reasons = pa.array([rejected[row] for row in sorted(rejected)], pa.string())
            rows = loans.take(pa.array(sorted(rejected)))
            yield TaggedOutput("rejected", rows.append_column("reason", reasons))


class _OverLoans(beam.PTransform):
    """Groups loans and all transactions since their boarding by `loan_id`."""

    def __init__(
        self, policy: Policy, loans: pa.Schema, transactions: pa.Schema, shards: int
    ) -> None:
        policy.check()
        super().__init__()
        self._shuffle = ShuffleByKey(
            ["loan_id"],
            shards,
            {"loans": loans, "transactions": transactions},
            order={"loans": ["loan_id"], "transactions": ["transaction_id"]},
            ids={"loans": ["loan_id"], "transactions": ["transaction_id"]},
        )


def _read(components: Components, calendar: BusinessCalendar | None) -> tuple[pa.Table, Book]:
    loans = with_state_columns(components.table)
    return loans, read_book(loans, components.related["transactions"], calendar)


class CloseLoans(_OverLoans):
    """Closes the days of loans through a business date.

    It is applied to tables of loans and of all transactions since they were boarded, as the
    workload `loan-close-of-business` reads them. It outputs collections by name: `loans` in their
    new states, the ledger's `entries`, `receipts` (where the money of the transactions is), and
    `rejected` (duplicate loans and transactions, and transactions without a loan). The rule is
    `ledgerbeam.rules.closing.close_book.close_book`.

        closed = {"loans": loans, "transactions": transactions} | CloseLoans(
            datetime.date(2026, 11, 20), Policy(), LOANS, TRANSACTIONS, shards=16
        )

    A loan that contradicts itself fails the pipeline; the workload locks such loans instead.
    """

    def __init__(
        self,
        business_date: datetime.date,
        policy: Policy,
        loans: pa.Schema,
        transactions: pa.Schema,
        shards: int = 1,
        calendar: BusinessCalendar | None = None,
    ) -> None:
        """Make the transform.

        Args:
            business_date: the last day to close.
            policy: the rules of the lender for its loans.
            loans: schema of the tables of loans.
            transactions: schema of the tables of transactions.
            shards: the number of shards.
            calendar: the calendar of business days; needed if terms or policy use one.

        Raises:
            ValueError: the policy contradicts itself.
        """
        super().__init__(policy, loans, transactions, shards)
        self._close = _Close(business_date, policy, calendar)

    def expand(self, tables: Mapping[str, beam.PCollection]) -> Collections:
        """Build the graph."""
        shuffled = tables | "ShuffleByKey" >> self._shuffle
        closed = shuffled.components | "Close" >> beam.FlatMapTuple(self._close).with_outputs(
            "entries", "receipts", main="loans"
        )
        return Collections(
            loans=closed.loans,
            entries=closed.entries,
            receipts=closed.receipts,
            rejected=shuffled.rejected,
        )


@dataclass(frozen=True)
class _Close:
    business_date: datetime.date
    policy: Policy
    calendar: BusinessCalendar | None

    def __call__(self, _: int, components: Components) -> Iterator[Any]:
        loans, book = _read(components, self.calendar)
        closed = close_book(loans, book, self.business_date, self.policy)
        yield closed.loans
        yield TaggedOutput("entries", closed.entries)
        yield TaggedOutput("receipts", closed.receipts)


class RemittanceLines(_OverLoans):
    """What the servicer of loans owes their investors for a month, one line per loan.

    It is applied to tables of loans and of all transactions since they were boarded, as the
    workload `investor-report` reads them. It outputs collections by name: `lines`, with the columns
    of `ledgerbeam.rules.remittance.report_line_many.REPORT_SCHEMA`, and `rejected`. The rule is
    `report_line_many`.

        report = {"loans": loans, "transactions": transactions} | RemittanceLines(
            datetime.date(2026, 11, 30), investors, Policy(), LOANS, TRANSACTIONS, shards=16
        )
    """

    def __init__(
        self,
        business_date: datetime.date,
        investors: Mapping[str, Investor],
        policy: Policy,
        loans: pa.Schema,
        transactions: pa.Schema,
        shards: int = 1,
        calendar: BusinessCalendar | None = None,
    ) -> None:
        """Make the transform.

        Args:
            business_date: the day of the report.
            investors: the investors by their ids.
            policy: the rules of the lender for its loans.
            loans: schema of the tables of loans.
            transactions: schema of the tables of transactions.
            shards: the number of shards.
            calendar: the calendar of business days; needed if terms or policy use one.

        Raises:
            ValueError: the policy contradicts itself.
        """
        super().__init__(policy, loans, transactions, shards)
        self._report = _Report(business_date, dict(investors), policy, calendar)

    def expand(self, tables: Mapping[str, beam.PCollection]) -> Collections:
        """Build the graph."""
        shuffled = tables | "ShuffleByKey" >> self._shuffle
        lines = shuffled.components | "Report" >> beam.MapTuple(self._report)
        return Collections(lines=lines, rejected=shuffled.rejected)


@dataclass(frozen=True)
class _Report:
    business_date: datetime.date
    investors: dict[str, Investor]
    policy: Policy
    calendar: BusinessCalendar | None

    def __call__(self, _: int, components: Components) -> pa.Table:
        loans, book = _read(components, self.calendar)
        return report_line_many(book, loans, self.investors, self.business_date, self.policy)
