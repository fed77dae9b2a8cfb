"""Delivery marking: a day's trades in, each with its delivery quantity out.

    ledgerbeam run delivery-marking --trades='trades/*' --trade-date=2026-11-20 --output=results

The rule is in `ledgerbeam.rules.delivery.deliver`. The output holds every trade of the date with
all its input columns and `delivery_quantity`, sorted by the key and the order of allocation within
each part; and how it settles, where its series, its settlement type or an auction mark tells.
"""

import datetime
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import pyarrow as pa
from pydantic import Field, field_validator

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, Lookup, RowInput
from ledgerbeam.io.commit.records import Control, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.pipelines.delivery_inputs import (
    DELIVERY_QUANTITY,
    INSTRUMENTS,
    PRODUCT,
    PRODUCT_TYPE,
    PRODUCTS,
    SETTLEMENT_RULES,
    SHIPPED_RULES,
    TIME,
    TRADES,
    why_rejected,
    with_derived,
)
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery.deliver import (
    SETTLES,
    deliver_each,
    deliver_many,
    obligations,
    product_type_many,
)
from ledgerbeam.rules.money import decimals, unscaled
from ledgerbeam.transforms.columnar.totals import exact_sum, id_hash

_BY_RULE = ("series", "settlement_type")
_BY_NET = "net"
_CONTROL = "delivery quantity = net quantity of the components"
_ORDERS = {"id": "id", "time": TIME, "price": "price"}
_NO_KEYS = ("id", "side", "quantity", "price", "trade_date", SETTLES)
_SHIPPED = ",".join(SHIPPED_RULES)


class IdType(StrEnum):
    """Type of the trades' ids, which also decides how they are sorted."""

    INTEGER = "integer"
    STRING = "string"


class Rule(StrEnum):
    """Which form of the rule runs; both give the same result."""

    VECTORISED = "vectorised"
    PER_COMPONENT = "per-component"


class DeliveryParameters(FileParameters):
    """Parameters of delivery marking."""

    trades: Annotated[
        str, RowInput(TRADES, order="id", date_column="trade_date", amounts=("quantity",))
    ] = Field(
        description="URI or glob of the trades: CSV, JSON lines (gzip, zstd), Parquet or Avro; "
        "several are separated by commas"
    )
    trade_date: datetime.date = Field(
        description="the day to mark; trades of other days are left out"
    )
    id_type: IdType = Field(
        default=IdType.INTEGER, description="integer or string: ids sort as such"
    )
    quantity_decimals: int = Field(
        default=0,
        ge=0,
        le=9,
        description="decimals that quantities have, where fractions of a unit are traded",
    )
    group_by: str = Field(
        default="",
        description="columns that name a component, such as client_code,isin; by default "
        "client_code, symbol and those of exchange, segment, series, settlement_number that the "
        "trades have; with --instruments client_code, isin and segment",
    )
    settlement_rules: Annotated[str, SETTLEMENT_RULES] = Field(
        default=_SHIPPED,
        description="which series settle net and which gross: nse, bse, or files, separated by "
        "commas; for trades with a series or settlement_type",
    )
    instruments: Annotated[str, INSTRUMENTS] = Field(
        default="",
        description="file of ISINs by symbol or by exchange and symbol: what is one ISIN nets over "
        "exchanges",
    )
    products: Annotated[str, PRODUCTS] = Field(
        default="",
        description="marks trades as delivery, intraday or both: net, by what is delivered; or a "
        "file that says of each product whether it is to be delivered first",
    )
    allocate_by: str = Field(
        default="id",
        description="in which order trades get delivery quantity: id, time, price, several with "
        "commas, the largest first with - in front",
    )
    rule: Rule = Field(
        default=Rule.VECTORISED,
        description="vectorised or per-component: the same rule as kernels over whole tables, or "
        "as plain Python for one component at a time",
    )

    @field_validator("group_by")
    @classmethod
    def _check_group_by(cls, text: str) -> str:
        names = text.split(",") if text else []
        wrong = [name for name in names if not name or name in _NO_KEYS or names.count(name) > 1]
        if wrong:
            raise ValueError(
                f"{wrong[0] or 'an empty name'} can't be in the key, or is there twice: name "
                "columns that all trades of a component have in common"
            )
        return text

    @field_validator("allocate_by")
    @classmethod
    def _check_allocate_by(cls, text: str) -> str:
        names = [name.removeprefix("-") for name in text.split(",")]
        for name in names:
            if name not in _ORDERS or names.count(name) > 1:
                raise ValueError(
                    f"{name!r} is none of {', '.join(_ORDERS)}, or is there twice: name each once"
                )
        return text


class DeliveryMarking(KeyedProcess[DeliveryParameters]):
    """The definition of delivery marking."""

    name = "delivery-marking"
    date_parameter = "trade_date"
    distinct = ("clients", "client_code")

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a client's trades in an instrument that settle together."""
        names = ["client_code", "symbol", "exchange", "segment", "series", "settlement_number"]
        if self.parameters.instruments:
            names = ["client_code", "isin", "segment"]
        known = {"client_code", "symbol", "isin", *self.present}
        names = self._asked or [name for name in names if name in known]
        return (*names, *((SETTLES,) if self._settles else ()))

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that say how trades settle, and columns that the parameters need."""
        by_time, by_price = ("time" in self._allocated), ("price" in self._allocated)
        names = [
            *("exchange", "segment", "series", "settlement_number", "settlement_type", "auction"),
            *(name for name in self._asked if name not in ("client_code", "symbol")),
            *(("trade_time",) if by_time else ()),
            *(("price",) if by_price else ()),
            *(("product",) if self._has_products else ()),
        ]
        return tuple(dict.fromkeys(names))

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The tables that the parameters name, and the settlement rules if they are needed."""
        is_needed = {
            "settlement_rules": bool({*_BY_RULE} & {*self.present}),
            "products": self._has_products,
        }
        return tuple(it for it in super().lookups if is_needed.get(it.name, True))

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The trades, with ids of the requested type, in the requested order."""
        (trades,) = super().inputs
        orders = [
            ("-" if name.startswith("-") else "") + _ORDERS[name.removeprefix("-")]
            for name in self.parameters.allocate_by.split(",")
        ]
        return (
            replace(
                trades,
                contract=self._contract(trades.contract),
                order=(*((PRODUCT,) if self._has_products else ()), *orders),
                ids=(*(n for n in ("exchange", "segment") if n in self.present), "id"),
            ),
        )

    @property
    def holds_interpreter(self) -> bool:
        """Whether the rule runs as plain Python."""
        return self.parameters.rule is Rule.PER_COMPONENT

    def bind(self, present: Iterable[str]) -> None:
        """Take note of the trades' columns; refuse parameters that need missing ones."""
        found = set(present)
        parameters = self.parameters
        always = {"client_code", "symbol", *(("isin",) if parameters.instruments else ())}
        needed: dict[str, list[str]] = {
            "group-by": [name for name in self._asked if name not in always],
            "allocate-by": [n for n in ("trade_time", "price") if n in self.optional],
            "products": ["product"] if self._has_products else [],
        }
        for flag, names in needed.items():
            missing = [name for name in names if name not in found]
            if missing:
                value = getattr(parameters, flag.replace("-", "_"))
                raise ParameterError(
                    f"--{flag}={value}: the trades have no column {missing[0]}: name one that they "
                    f"have by --columns={missing[0]}=NAME_IN_THE_FILE, or leave --{flag} out",
                    parameter=f"--{flag}",
                    value=value,
                )
        if parameters.settlement_rules != _SHIPPED and not found & {*_BY_RULE}:
            raise ParameterError(
                f"--settlement-rules={parameters.settlement_rules}: the trades have neither of the "
                f"columns {', '.join(_BY_RULE)}, by which rules are chosen: name one by "
                "--columns=series=NAME_IN_THE_FILE, or leave --settlement-rules out",
                parameter="--settlement-rules",
                value=parameters.settlement_rules,
            )
        super().bind(found)

    def derived(self, name: str, rows: pa.Table) -> pa.Table:
        """How trades settle, their ISINs, and what allocation is ordered by."""
        by_time = "time" in self._allocated
        return with_derived(rows, self.lookup_tables, self._settles, by_time)

    def rejections(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Trades whose derived columns can't be determined."""
        return why_rejected(rows, self.lookup_tables)

    def execute_components(self, components: Components) -> pa.Table:
        """Mark the trades of each component."""
        is_vectorised = self.parameters.rule is Rule.VECTORISED
        mark = deliver_many if is_vectorised else deliver_each
        in_units = self._in_units(components)
        delivered = mark(in_units)
        own = [n for n in components.table.column_names if n.startswith("__")]
        column = delivered if self._is_whole else decimals(delivered.to_numpy(), self._quantity)
        table = components.table.drop_columns(own).append_column(DELIVERY_QUANTITY, column)
        if self.parameters.products:
            types = product_type_many(in_units.column("quantity"), delivered)
            table = table.append_column(PRODUCT_TYPE, types)
        return table

    def result_totals(self, results: Components) -> Totals:
        """Number of trades, a hash of their ids, and quantities traded, delivered and net."""
        owed = obligations(self._in_units(results))
        if isinstance(owed, list):
            net_total = sum(owed)
        else:
            net_total = exact_sum(pa.chunked_array([pa.array(owed)]))
        return {
            "rows": results.table.num_rows,
            "quantity": exact_sum(results.table.column("quantity")),
            "id_hash": id_hash(results.table, self.inputs[0].ids),
            "delivery_quantity": exact_sum(results.table.column(DELIVERY_QUANTITY)),
            "net_quantity": net_total,
        }

    def controls(self, totals: Totals) -> list[Control]:
        """The delivered quantity equals the net quantity."""
        return [
            Control(
                name=_CONTROL,
                expected=totals["net_quantity"],
                actual=totals["delivery_quantity"],
            )
        ]

    @property
    def total_decimals(self) -> Mapping[str, int]:
        """Includes the quantities of the results, where they have decimals."""
        if self._is_whole:
            return super().total_decimals
        names = (DELIVERY_QUANTITY, "net_quantity", _CONTROL)
        return {**super().total_decimals, **dict.fromkeys(names, self._quantity.scale)}

    @property
    def _is_whole(self) -> bool:
        return self.parameters.quantity_decimals == 0

    @property
    def _quantity(self) -> pa.Decimal128Type:
        """Type of quantities with decimals; 18 digits are what int64 holds."""
        return pa.decimal128(18, self.parameters.quantity_decimals)

    def _in_units(self, components: Components) -> Components:
        """The components with their quantities in units of the last decimal."""
        if self._is_whole:
            return components
        table = components.table
        in_units, _ = unscaled(table.column("quantity"))
        place = table.schema.get_field_index("quantity")
        return components._replace(table=table.set_column(place, "quantity", pa.array(in_units)))

    @property
    def _asked(self) -> list[str]:
        return self.parameters.group_by.split(",") if self.parameters.group_by else []

    @property
    def _allocated(self) -> list[str]:
        return [name.removeprefix("-") for name in self.parameters.allocate_by.split(",")]

    @property
    def _has_products(self) -> bool:
        return self.parameters.products not in ("", _BY_NET)

    @property
    def _settles(self) -> bool:
        """Whether the trades have columns that say how they settle."""
        return bool({*_BY_RULE, "auction"} & {*self.present})

    def _contract(self, contract: Contract) -> Contract:
        parameters = self.parameters
        id_type = pa.string() if parameters.id_type is IdType.STRING else pa.int64()
        contract = contract.with_type("id", id_type)
        if not self._is_whole:
            contract = contract.with_type("quantity", self._quantity)
        known = {column.name for column in contract.columns}
        names = [*self._asked, *(("isin",) if parameters.instruments else ())]
        columns = [
            replace(column, nullable=column.nullable and column.name not in self._allocated)
            for column in contract.columns
        ] + [
            Column(name, pa.string(), required=False, dictionary_encoded=True)
            for name in dict.fromkeys(names)
            if name not in known
        ]
        reserved = (
            *contract.reserved,
            *(("isin",) if parameters.instruments else ()),
            *((PRODUCT_TYPE,) if parameters.products else ()),
        )
        return Contract(tuple(columns), reserved)


if __name__ == "__main__":
    sys.exit(main(DeliveryMarking))
