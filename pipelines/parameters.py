"""Parameters that several workloads share: decimals of amounts, and business days.

A workload's own parameters extend these classes. `MoneyParameters.with_decimals` gives its inputs
the requested decimals; `CalendarParameters.business_days` gives the business days to code that
executes components.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.define.keyed_process import FileParameters, Lookup, RowInput
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import InputError, ParameterError
from ledgerbeam.rules.calendar.business_days import (
    BusinessCalendar,
    business_calendar,
    known_years,
)
from ledgerbeam.rules.calendar.changes import CLOSED, OPEN, CalendarChange, calendar_changes
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.loans.columns import BASE
from ledgerbeam.rules.loans.loan import BASE_SCALE
from ledgerbeam.rules.money import AMOUNT_DIGITS


class MoneyParameters(FileParameters):
    """Parameters of a workload whose amounts may be in currencies of more than two decimals."""

    decimals: int = Field(
        default=2,
        ge=0,
        le=4,
        description="of the columns of amounts, in and out: 3 for KWD and its like, 4 for CLF or "
        "UYW; what an amount may have is its currency's",
    )

    def with_decimals(self, inputs: Iterable[RowInput]) -> tuple[RowInput, ...]:
        """The inputs with `decimals` decimals for the amounts of their contracts.

        Columns that hold the sums on which interest is computed have more.
        """
        return tuple(replace(rows, contract=self._contract(rows.contract)) for rows in inputs)

    def _contract(self, contract: Contract) -> Contract:
        base = pa.decimal128(AMOUNT_DIGITS, self.decimals + BASE_SCALE)
        for column in contract.columns:
            if column.type == BASE:
                contract = contract.with_type(column.name, base)
        return contract.with_decimals(self.decimals)


CALENDAR_CHANGES = Lookup(
    Contract(
        (
            Column("calendar", pa.string()),
            Column("date", pa.date32()),
            Column("status", pa.string(), dictionary_encoded=True, one_of=(OPEN, CLOSED)),
            Column("reason", pa.string(), nullable=True),
        )
    ),
    key=("calendar", "date"),
)
"""Changes of calendars; see `ledgerbeam.rules.calendar.changes.CalendarChange`."""


class CalendarParameters(FileParameters):
    """Parameters of a workload that uses business days."""

    calendar: str = Field(
        default="",
        description="business days: a market (XFED, XECB, XNSE), a country (US, BR, US-CA) or "
        "ANBIMA",
    )
    calendar_changes: Annotated[str, CALENDAR_CHANGES] = Field(
        default="",
        description="URI of a file of days that calendars have wrong: calendar (XNSE, US), date, "
        "status (open or closed), reason",
    )
    due_dates: BusinessDayConvention = Field(
        default=BusinessDayConvention.NONE,
        description="following, modifiedfollowing, preceding or none: where a due date goes that "
        "is no business day; interest stays as it is",
    )

    def check_calendar(self, *conventions: str) -> None:
        """Check that the calendar is known, and that there is one if dates are to be moved.

        Args:
            conventions: names of the parameters, besides `due_dates`, that say where dates go.

        Raises:
            ParameterError: the calendar is unknown or missing.
        """
        for name in ("due_dates", *conventions):
            convention = getattr(self, name)
            if convention is not BusinessDayConvention.NONE and not self.calendar:
                flag = name.replace("_", "-")
                raise ParameterError(
                    f"--{flag}={convention} needs a calendar of business days: name it by "
                    "--calendar",
                    parameter=f"--{flag}",
                    value=str(convention),
                )
        if self.calendar:
            try:
                known_years(self.calendar)
            except ValueError as error:
                raise ParameterError(
                    f"--calendar={self.calendar}: {error}",
                    parameter="--calendar",
                    value=self.calendar,
                ) from error

    def business_days(self, lookup_tables: Mapping[str, pa.Table]) -> BusinessCalendar | None:
        """The calendar for all known years, with the changes of the user's file.

        Args:
            lookup_tables: the workload's lookup tables; `calendar_changes` is used if it is there.

        Returns:
            The calendar; None if the parameter names none.

        Raises:
            InputError: a code in the file is unknown.
        """
        if not self.calendar:
            return None
        table = lookup_tables.get("calendar_changes")
        changes = () if table is None else tuple(calendar_changes(table))
        try:
            return _calendar(self.calendar, changes)
        except ValueError as error:
            raise InputError(f"{error}: see the codes of the library `holidays`") from error


# Cached, because making a calendar takes a second.
@lru_cache(2)
def _calendar(code: str, changes: tuple[CalendarChange, ...]) -> BusinessCalendar:
    years = known_years(code)
    return business_calendar(code, years[0], years[-1], changes)
