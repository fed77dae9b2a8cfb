"""Definitions over rows of files that are grouped by a key."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.define.process import (
    BatchProcess,
    P,
    Parameters,
    Record,
    RetryMode,
    is_overridden,
)
from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.define.rules import executes_each_by
from ledgerbeam.batch.model.rules import RULE, of_rule
from ledgerbeam.batch.model.shadow import Shadow
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.datasets.contract import Contract
from ledgerbeam.io.datasets.inputs import TableName
from ledgerbeam.io.errors import DefinitionError, ParameterError
from ledgerbeam.io.secrets import check_url
from ledgerbeam.rules.components import Component, Components, NoColumnError, NoRowsError, Row
from ledgerbeam.rules.rollout import Rollout, check_rules
from ledgerbeam.transforms.columnar.shard_totals import InputTotals, TotalNames


class FileParameters(Parameters):
    """Parameters of workloads that read files."""

    columns: str = Field(
        default="",
        description="names of the columns in order, for CSV files without a header (id,side,_; "
        "_ leaves one out), or renames (id=trade_no,_=note)",
    )
    format: str | None = Field(
        default=None,
        pattern="^(csv|jsonl|parquet|avro)$",
        description="csv, jsonl, parquet or avro, where the files' names don't tell",
    )
    profile: str = Field(
        default="",
        description="settings for one kind of file: a profile's name, or a TOML file of your own; "
        "flags given beside it win",
    )
    constants: str = Field(
        default="",
        description="columns that the files don't have, with the value of all rows "
        "(client_code=AB1234)",
    )
    values: str = Field(
        default="",
        description="texts in the files that stand for other values, by column "
        "(side:buy=B,side:sell=S)",
    )
    delimiter: str = Field(
        default="", description="between the fields of CSV: a character, tab, pipe; else a comma"
    )
    quote: str = Field(
        default="",
        description="around fields of CSV: a character, or none where quotes are characters like "
        'others; else "',
    )
    comment: str = Field(default="", description="lines of text that begin with it are no rows")
    encoding: str = Field(
        default="", description="of text, by Python's name (cp1252, utf-16); else utf-8"
    )
    null: str = Field(
        default="", description="texts that stand for an empty value, separated by commas (NA,-)"
    )
    trim: bool | None = Field(
        default=None,
        description="true drops white space around texts; else a row with such a text is rejected",
    )
    date_format: str = Field(
        default="", description="how dates are written (%d-%b-%Y, %Y%m%d); else %Y-%m-%d"
    )
    decimal: str = Field(default="", description="the decimal mark of numbers; else a point")
    thousands: str = Field(
        default="", description="between groups of digits (a comma, blank); else nothing may be"
    )
    max_decompressed: int | None = Field(
        default=None,
        ge=1,
        description="MiB that a compressed file may unpack to; by default 200 times its size, and "
        "1,024 if that is more",
    )
    max_rejects: int = Field(
        default=0, ge=0, description="publish in spite of up to this many rejected rows"
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="parts of the output; by default one for about 320,000 rows",
    )
    only_key: str = Field(
        default="",
        description="only the component of this key, as `components` prints it: an instance of its "
        "own, that the whole day's knows nothing of",
    )
    shuffle: Literal["auto", "group", "spill"] = Field(
        default="auto",
        description="how rows get to their shard: through the runner's group-by-key (group), or by "
        "files in the driver's temporary folder, which all workers must share (spill); auto is "
        "spill on the local runner, else group",
    )


@dataclass(frozen=True)
class RowInput:
    """An input of rows with the columns of the key, declared at the parameter that locates it.

        loans: Annotated[str, RowInput(LOANS, order="number", amounts=("balance",))]

    Attributes:
        contract: what the columns must be.
        order: the column or columns that order the rows of a component; `-` in front of a name
            means descending.
        date_column: column of the business date; rows of another date are counted and left out.
        amounts: columns (int64 or decimal) that are added up, for control totals.
        currency: column of ISO 4217 codes; amounts are then added up for each currency, in minor
            units, which an int64 column must count already. A row is rejected if its code isn't
            one of ISO 4217, or if an amount has more decimals than its currency; so are rows with
            such amounts in a column of the contract that has a `currency`. Empty if all amounts
            are in one currency.
        ids: columns that identify a row within a component; by default key and order. Rows that
            share them are rejected, and their hashes are a control total.
        dated_by: column of dates by which the age of the input is judged, see `Expect.max_age`.
        row_locations: whether the rows that `execute_components` receives have the column
            `ROW_LOCATION`, which says where each was read. Results with that column (null where
            a result comes from no single row) are published with two others in its place: `file`,
            the file's URI, and `row`, the number from 1 of its line (text) or row (other formats).
        name: of the parameter, which is also what the rows are called, in plural. `inputs` of a
            process have it; a declaration leaves it out.
    """

    contract: Contract
    order: str | tuple[str, ...]
    date_column: str = ""
    amounts: tuple[str, ...] = ()
    currency: str = ""
    ids: tuple[str, ...] = field(default=())
    dated_by: str = ""
    row_locations: bool = False
    name: str = field(default="", kw_only=True)

    @property
    def currencies(self) -> dict[str, str]:
        """The column of the currency, by the name of each column of amounts that has one."""
        of_amounts = dict.fromkeys(self.amounts, self.currency) if self.currency else {}
        return of_amounts | {c.name: c.currency for c in self.contract.columns if c.currency}

    @property
    def orders(self) -> tuple[str, ...]:
        """The columns of `order`, each with its `-` if it has one."""
        return (self.order,) if isinstance(self.order, str) else self.order

    def identity(self, key: Sequence[str]) -> tuple[str, ...]:
        """The columns that identify a row, for components with the given key."""
        return self.ids or (*key, *(name.removeprefix("-") for name in self.orders))


@dataclass(frozen=True)
class Lookup:
    """A small table for all components, declared at the parameter that names its files.

        rates: Annotated[str, Lookup(RATES, key="product")]

    It must fit into the memory of each worker. The launcher reads all of it before anything runs;
    it is pinned like the inputs, and is sent to workers with the definition. A row that breaks the
    contract ends the run. If the parameter is empty, there is no such table.

    Attributes:
        contract: what the columns must be.
        key: the column or columns that identify a row; columns that the files don't have are
            ignored.
        shipped: paths of files that come with the package, by the name that the parameter takes.
        name: the name of the parameter. It is set in the `lookups` of a process; a declaration
            leaves it out.
    """

    contract: Contract
    key: str | tuple[str, ...]
    shipped: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default="", kw_only=True)


_Declaration = TypeVar("_Declaration", RowInput, Lookup)


def _declared(parameters: type[Parameters], kind: type[_Declaration]) -> tuple[_Declaration, ...]:
    """The declarations of one kind in a model's fields, in order, each named after its field."""
    return tuple(
        replace(declaration, name=name)
        for name, info in parameters.model_fields.items()
        for declaration in info.metadata
        if isinstance(declaration, kind)
    )


class KeyedProcess(BatchProcess[P]):
    """A workload over rows that are grouped by a key.

    Its parameters declare its inputs, each a `RowInput` at the parameter that names the files, and
    its `Lookup`s in the same way. The first input defines which components there are. Rows of the
    other inputs are added to the components by key, and are rejected if the first input doesn't
    have their key.

        class InterestParameters(FileParameters):
            accounts: Annotated[str, RowInput(ACCOUNTS, order="opened_on")]
            business_date: datetime.date

        class Interest(KeyedProcess[InterestParameters]):
            name = "interest"
            date_parameter = "business_date"
            key = ("account",)
            results = pa.schema([("interest", pa.decimal128(18, 2))])

            def execute(self, component: Component) -> Iterator[Record]:
                yield {"interest": round_money(Fraction(component.first("balance")) / 36_500)}

    A definition gives `key`, and one of two ways to execute: `execute`, called once a component,
    or `execute_components`, called with a table of many whole components. Where an input depends
    on other parameters, the definition changes what is declared:

        @property
        def inputs(self) -> tuple[RowInput, ...]:
            (loans,) = super().inputs
            contract = loans.contract.with_decimals(self.parameters.decimals)
            return (replace(loans, contract=contract),)

    A new way to execute can stand beside the present one, and customers come to it in stages. The
    definition then has `rules` in place of `execute` or `execute_components`:

        def flat(self, component: Component) -> Iterator[Record]: …

        def by_amount(self, component: Component) -> Iterator[Record]: …

        rules = {1: flat, 2: by_amount}
        rollout = Rollout(stages=("1%", "10%", "100%"))

    Each row of the results then has the number of its rule in the column `rule`, and so has each
    outcome.

    Attributes:
        key: columns that identify a component; strings or integers.
        is_outer: whether a component is made of each key that any input has, as by a full outer
            join, and not only of those of the first input. The rows of all inputs are then beside
            the components (`related`), which themselves have the key only.
        optional: columns of the first input that the definition uses if they exist.
        present: the optional columns that the first input has, set once its files have been
            inspected. They are recorded with the attempt, so that later attempts and `verify` use
            the same ones.
        distinct: name of a count, and the column of the first input whose distinct values it
            counts.
        tables: names of extra tables that `execute_components` returns besides its results.
        rows_per_shard: rows of input per shard; choose fewer if a row gives many results.
        lookup_tables: the lookups' tables by the parameter's name, where components execute.
        rules: the present rule and the next one, by number: methods like `execute` or like
            `execute_components`, as the annotation of their argument says.
        rollout: how customers come from the lower number to the higher one.
        customer: the column of the key that names the customer; by default the first one.
        shadow: what this run is a shadow of, if it is one; what components do besides giving
            results must be left out then.
    """

    present: tuple[str, ...] = ()
    is_outer: ClassVar[bool] = False
    tables: ClassVar[tuple[str, ...]] = ()
    distinct: ClassVar[tuple[str, str] | None] = None
    rows_per_shard: ClassVar[int] = 320_000
    lookup_tables: Mapping[str, pa.Table] = MappingProxyType({})
    rules: ClassVar[Mapping[int, Callable[[Any, Any], Any]]] = MappingProxyType({})
    rollout: ClassVar[Rollout | None] = None
    shadow: Shadow | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that there are inputs, and exactly one of `execute` and `execute_components`."""
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            return
        if not _declared(cls.parameters_type, RowInput):
            raise DefinitionError(
                f"{cls.__name__}: {cls.parameters_type.__name__} declares no input: annotate the "
                "parameter that names the files, as in loans: Annotated[str, RowInput(…)]"
            )
        ways = ("execute", "execute_components")
        given = [way for way in ways if is_overridden(cls, KeyedProcess, way)]
        given += ["rules"] if cls.rules else []
        if len(given) != 1:
            has = f"both {' and '.join(given)}" if given else f"neither {' and '.join(ways)}"
            raise DefinitionError(f"{cls.__name__} has {has}: write one of them")
        check_rules(cls.__name__, cls.rules, cls.rollout)
        if cls.rollout is not None and not cls.rollout.salt:
            cls.rollout = replace(cls.rollout, salt=f"{cls.name}/{max(cls.rules)}")
        each = cls.executes_each()
        if each and cls.results is None:
            raise DefinitionError(
                f"{cls.__name__}: results is missing: give the columns that execute returns as a "
                "pyarrow.schema"
            )
        if each and cls.tables:
            raise DefinitionError(
                f"{cls.__name__}: execute gives rows of one table, and tables names "
                f"{', '.join(cls.tables)}: write execute_components"
            )
        if not each and cls.retry.mode is RetryMode.AT_MOST_ONCE:
            raise DefinitionError(
                f"{cls.__name__}: execute_components can't be AT_MOST_ONCE: where it fails it is "
                "called again with fewer components: write execute"
            )
        if not each and cls.retry.time_limit is not None:
            raise DefinitionError(
                f"{cls.__name__}: a time_limit is one for each component: write execute"
            )

    def __init__(self, parameters: P) -> None:
        """Check that the definition fits its parameters.

        Raises:
            DefinitionError: an input's contract lacks a column that the definition names.
            UserError: the URL of a table holds a literal password.
        """
        super().__init__(parameters)
        self._looked_up: dict[str, tuple[pa.Table | None, dict[tuple[Any, ...], Row]]] = {}
        self._check_inputs(self.optional)

    def bind(self, present: Iterable[str]) -> None:
        """Set which optional columns the first input has.

        Raises:
            UserError: the parameters need an optional column that the input doesn't have.
        """
        self.present = tuple(name for name in self.optional if name in set(present))
        self._check_inputs(self.present)

    def _check_inputs(self, there: Collection[str]) -> None:
        """Check the columns that are named, given the optional columns that exist."""
        inputs = self.inputs
        if self.expect.max_age is not None and not any(rows.dated_by for rows in inputs):
            raise DefinitionError(
                f"{type(self).__name__}: expect has a max_age, and no input is dated_by a column: "
                "name the column of dates in its RowInput"
            )
        for rows in inputs:
            self._check_input(rows, inputs[0], {*there, *rows.contract.reserved})
        if self.rules and self.customer not in self.key:
            raise DefinitionError(
                f"{type(self).__name__}: customer is {self.customer!r}, and the key has "
                f"{', '.join(self.key)}: name a column of it, so that a component has one customer"
            )
        if self.rules and RULE in (*self.key, *(self.results.names if self.results else ())):
            raise DefinitionError(
                f"{type(self).__name__}: {RULE} is the column that says by which rule a row was "
                "made: give yours another name"
            )

    def _check_input(self, rows: RowInput, first: RowInput, there: Collection[str]) -> None:
        where = f"{type(self).__name__}, input {rows.name}"
        if rows.name not in type(self.parameters).model_fields:
            raise DefinitionError(
                f"{type(self).__name__}: inputs has {rows.name or 'one without a name'}, which "
                f"{type(self.parameters).__name__} doesn't declare: change those of super().inputs "
                "with dataclasses.replace"
            )
        table = TableName.parse(str(getattr(self.parameters, rows.name)))
        if table is not None:
            check_url(table.url)
        columns = {
            column.name: column
            for column in rows.contract.columns
            if column.required or column.name in there or column.name.startswith("__")
        }
        currency = (rows.currency,) if rows.currency else ()
        orders = (name.removeprefix("-") for name in rows.orders)
        for name in (*self.key, *orders, *rows.ids, *currency):
            if name not in columns or columns[name].nullable:
                raise DefinitionError(
                    f"{where}: {name} must be a column of the contract, required and never empty: "
                    "rows are told apart by it"
                )
        for name in rows.amounts:
            type_ = columns[name].type if name in columns else None
            if type_ is None or not (pa.types.is_int64(type_) or pa.types.is_decimal(type_)):
                raise DefinitionError(
                    f"{where}: the amount {name} must be a required column of int64 or decimals, "
                    f"not of {type_}"
                )
        types = {column.name: column.type for column in rows.contract.columns}
        for attribute in ("date_column", "dated_by"):
            name = getattr(rows, attribute)
            if name and types.get(name) != pa.date32():
                raise DefinitionError(
                    f"{where}: {attribute} is {name!r}, and must be a column of dates of the "
                    "contract: date32"
                )
        for column in first.contract.columns:
            if column.name in self.key and column.type != columns[column.name].type:
                raise DefinitionError(
                    f"{where}: {column.name} is {columns[column.name].type}, and {column.type} in "
                    f"{first.name}: a key has the same type in all inputs"
                )

    @property
    def only(self) -> tuple[tuple[str, str], ...]:
        """Column and text of the key that alone is executed; empty for all.

        Raises:
            ParameterError: the key has another number of columns.
        """
        text = getattr(self.parameters, "only_key", "")
        if not text:
            return ()
        values = [part.replace("%2F", "/").replace("%25", "%") for part in text.split("/")]
        if len(values) != len(self.key):
            raise ParameterError(
                f"--only-key={text}: give {'/'.join(self.key)}, one value for each with a slash "
                "between them; %2F stands for a slash in a value, and %25 for %",
                parameter="--only-key",
                value=text,
            )
        return tuple(zip(self.key, values, strict=True))

    @classmethod
    def executes_each(cls) -> bool:
        """Whether components execute one by one."""
        if cls.rules:
            return executes_each_by(cls.__name__, cls.rules)
        return is_overridden(cls, KeyedProcess, "execute")

    @property
    def holds_interpreter(self) -> bool:
        """Whether executing is plain Python, of which one thread of a process runs at a time.

        Then other cores get processes of their own on the local runner, where input is large. By
        default it is so where components execute one by one. A definition whose
        `execute_components` is plain Python says so by `True`; one whose `execute` has to stay in
        one process, or waits most of the time, says `False`.
        """
        return self.executes_each()

    def execution(self, rule: int | None) -> Callable[[Any], Any]:
        """What is called to execute: a rule, or the one way that there is where there are none."""
        if rule is not None:
            return partial(self.rules[rule], self)
        return self.execute if self.executes_each() else self.execute_components

    @property
    def customer(self) -> str:
        """The column of the key that names the customer, by whom a rule is chosen."""
        return self.key[0]

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that identify a component: a class attribute, or a property of the parameters."""
        raise NotImplementedError(f"{type(self).__name__}: key is missing")

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns of the first input that are used if they exist."""
        return ()

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Small tables that components need besides their rows, as the parameters declare them."""
        return _declared(self.parameters_type, Lookup)

    def look_up(self, name: str, *key: Any) -> Mapping[str, Any]:
        """The row of a lookup, for rules that are written per component.

        Args:
            name: the lookup's name.
            *key: the values of the columns of its key that the files have.

        Raises:
            NoRowsError: there is no such row; it says of which key in which lookup.
        """
        of_table, by_key = self._looked_up.get(name, (None, {}))
        table = self.lookup_tables.get(name)
        if table is None or table is not of_table:
            by_key = self._rows_by_key(name)
            self._looked_up[name] = (table, by_key)
        try:
            return by_key[key]
        except KeyError:
            raise NoRowsError(f"there is no {', '.join(map(str, key))} in {name}") from None

    def _rows_by_key(self, name: str) -> dict[tuple[Any, ...], Row]:
        table = self.lookup_tables.get(name)
        lookup = next((each for each in self.lookups if each.name == name), None)
        if table is None or lookup is None:
            known = ", ".join(self.lookup_tables) or "none"
            raise NoColumnError(f"there is no lookup {name}: there is {known}")
        of_key = (lookup.key,) if isinstance(lookup.key, str) else lookup.key
        columns = [column for column in of_key if column in table.column_names]
        rows = map(Row, table.to_pylist())
        return {tuple(row[column] for column in columns): row for row in rows}

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The inputs, as the parameters declare them, in the order of their fields."""
        return _declared(self.parameters_type, RowInput)

    def source(self, name: str) -> str | TableName:
        """What an input is read from: as its parameter says, unless a definition changes that.

        Args:
            name: the input's name.

        Returns:
            A table, or names of files as `plan_input` takes them.
        """
        given = str(getattr(self.parameters, name))
        return TableName.parse(given) or given

    @property
    def rows_label(self) -> str:
        """Rows of the first input, in plural."""
        return self.inputs[0].name.replace("_", " ")

    @property
    def total_decimals(self) -> Mapping[str, int]:
        """Includes the inputs' `amounts` that have no column of currencies."""
        of_inputs = {
            self.total_names.prefix(number) + column.name: column.type.scale
            for number, rows in enumerate(self.inputs)
            for column in rows.contract.columns
            if column.name in rows.amounts
            and not rows.currency
            and pa.types.is_decimal(column.type)
        }
        found = {**super().total_decimals, **of_inputs}
        return found | {of_rule(n, name): d for n in self.rules for name, d in found.items()}

    def derived(self, name: str, rows: pa.Table) -> pa.Table:
        """Rows of an input with columns added, each computed from its row alone.

        It is called before rows are grouped, so that added columns may be part of the key or of the
        order; they must not be null. They must be in the input's contract as columns that aren't
        required, and either be among its `reserved` names or begin with `__`. The latter aren't
        shown in rejected rows, and the definition itself drops them from its results.

        Args:
            name: the input's name.
            rows: rows that fit the contract; there may be none.
        """
        return rows

    def rejections(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Rows of an input that are wrong in ways that no contract can express.

        Args:
            name: the input's name.
            rows: the rows of one shard that fit the contract.

        Returns:
            The reasons for rejected rows, by the row's number in the table. Judge each row by
            itself: which others are in the same shard depends on the number of shards.
        """
        return {}

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Totals that need both the executed components and their results.

        They are for `controls`. Where the results are enough, prefer `result_totals`, which
        `verify` can compute again from what is published.

        Args:
            executed: the components that succeeded.
            results: their results, with a start for each of them; some may have no row.
        """
        return {}

    def execute(self, component: Component) -> Iterable[Record]:
        """Execute one component.

        Returns:
            Rows of results, with the columns of `results`. The key is added to each.
        """
        raise NotImplementedError

    def execute_components(self, components: Components) -> pa.Table | Results:
        """Execute many components in one call, which is the fastest way.

        A call that fails is repeated with fewer components until those that fail are found.

        Returns:
            The results, with the columns of the key; the rows of a component stand together, and
            components stand in their order. If `tables` names extra tables, a `Results` with them.
        """
        raise NotImplementedError

    @property
    def total_names(self) -> TotalNames:
        """The names of the totals over its inputs."""
        return TotalNames(
            tuple(InputTotals(rows.name, rows.amounts, bool(rows.currency)) for rows in self.inputs)
        )

    def results_of_failed(
        self, components: Components, errors: Sequence[str]
    ) -> pa.Table | Results | None:
        """Results that stand for failed components, such as loans in their states of before.

        If the run publishes, they are published with the rest. If the components succeed in a later
        attempt, their own results take the place of these.

        Args:
            components: the failed components.
            errors: the error of each, one line.

        Returns:
            Results like those of `execute_components`; None for no such results.
        """
        return None
