"""Totals of shards: typed objects for computing, and one flat JSON object for storing.

The flat names are `components`, `failed` and so on for counts; `rows`, `id_hash` and the names of
amounts for the first input; the same with the prefix `INPUT_` for any other input; and `failed_…`,
`refused_…` and `read_…` for the parts of an input. If a name of the workload's own could be
confused with one of these, it is stored as `=NUMBER.name` (an amount of that input) or `=.name`
(another total), so that no total is lost because of its name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, Self

from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.commit.total_names import ESCAPED, display_name
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals, add_totals

_COUNTS = ("components", "failed", "unknown", "retries", "result_rows", "result_components")
_PARTS = {"lost": "failed_", "rejected": "refused_", "read": "read_"}
_ROWS = ("rows", "id_hash")
_CURRENCY = re.compile("_[A-Z]{3}$")


class InputTotals(NamedTuple):
    """The totals that an input has.

    Attributes:
        name: the name of the input.
        amounts: columns that are added up.
        by_currency: whether there is a sum for each currency, as `amount_USD`.
        has_ids: whether its rows' ids are hashed.
    """

    name: str
    amounts: tuple[str, ...] = ()
    by_currency: bool = False
    has_ids: bool = True


@dataclass(frozen=True)
class TotalNames:
    """Flat names of the totals of a process.

    Attributes:
        inputs: the inputs of the process; names of the first one have no prefix.
    """

    inputs: tuple[InputTotals, ...]

    def prefix(self, number: int) -> str:
        """The prefix of an input's names: `INPUT_`, or nothing for the first input."""
        return f"{self.inputs[number].name}_" if number else ""

    def of_amount(self, number: int, name: str) -> str:
        """The flat name of an amount of an input."""
        flat = self.prefix(number) + name
        others = [self.prefix(n) for n in range(1, len(self.inputs)) if n != number]
        is_reserved = name in _ROWS or _is_reserved(flat, others)
        return f"={number}.{name}" if is_reserved else flat

    def own(self, name: str) -> str:
        """The flat name of one of the workload's own totals."""
        return f"=.{name}" if _is_reserved(name, ()) else name

    def find(self, flat: str) -> "_Found | None":
        """The input and the total that a flat name means; None for one of the workload's own."""
        escaped = ESCAPED.match(flat)
        if escaped:
            name = flat[escaped.end() :]
            return _Found(int(escaped[1]), name, True) if escaped[1] else None
        for number in reversed(range(len(self.inputs))):
            prefix = self.prefix(number)
            name = flat.removeprefix(prefix)
            if flat.startswith(prefix) and (
                name in _ROWS or self.column_of(number, name) is not None
            ):
                return _Found(number, name, name not in _ROWS)
        return None

    def column_of(self, number: int, name: str) -> str | None:
        """The column that an input's total adds up; None if it is not the sum of a column."""
        input_ = self.inputs[number]
        column = _CURRENCY.sub("", name) if input_.by_currency else name
        is_sum = column in input_.amounts and (not input_.by_currency or column != name)
        return column if is_sum else None

    def flat(self, number: int, totals: TableTotals, part: str = "") -> Totals:
        """An input's totals by their flat names, each with the prefix `part`."""
        start = part + self.prefix(number)
        flat = {f"{start}rows": totals.rows}
        for name, value in totals.amounts.items():
            flat[part + self.of_amount(number, name)] = value
        if self.inputs[number].has_ids:
            flat[f"{start}id_hash"] = totals.id_hash
        return flat


class _Found(NamedTuple):
    """A total of an input: `rows`, `id_hash`, or the amount with that name."""

    input: int
    name: str
    is_amount: bool

    def put(self, totals: TableTotals, value: int) -> TableTotals:
        if self.is_amount:
            return replace(totals, amounts={**totals.amounts, self.name: value})
        return replace(totals, **{self.name: value})  # type: ignore[arg-type]


@dataclass(frozen=True)
class ShardTotals:
    """Totals of one or several shards.

    Attributes:
        components: number of components.
        failed: number of components that failed.
        unknown: number of components whose outcome is unknown.
        retries: number of calls after the first call of each component.
        result_rows: number of rows of the results.
        result_components: number of components with rows of results.
        results: by input, totals of the rows of components that succeeded.
        lost: by input, totals of the rows of components that failed or are unknown.
        rejected: by input, totals of the rows rejected while the shard was executed.
        read: by input, totals of the rows read; only if the shard itself reads them.
        own: the workload's own totals, by name; those whose name ends with `_hash` are added
            modulo 2^64.
    """

    components: int = 0
    failed: int = 0
    unknown: int = 0
    retries: int = 0
    result_rows: int = 0
    result_components: int = 0
    results: tuple[TableTotals, ...] = ()
    lost: tuple[TableTotals, ...] = ()
    rejected: tuple[TableTotals, ...] = ()
    read: tuple[TableTotals, ...] = ()
    own: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        sums: dict[str, object] = {n: getattr(self, n) + getattr(other, n) for n in _COUNTS}
        for part in ("results", *_PARTS):
            sums[part] = _added(getattr(self, part), getattr(other, part))
        sums["own"] = add_totals([dict(self.own), dict(other.own)])
        return replace(self, **sums)  # type: ignore[arg-type]

    @classmethod
    def sum(cls, totals: Iterable[Self]) -> Self:
        """The sum of all the totals."""
        result = cls()
        for each in totals:
            result = result + each
        return result

    def with_own(self, given: Totals, names: TotalNames) -> Self:
        """A copy with totals that the workload computes from its results.

        A total with the name of an input's total replaces that one in `results`, so that the output
        is compared with the input.
        """
        results = list(self.results)
        own = dict(self.own)
        for name, value in given.items():
            found = names.find(name)
            if found is None:
                own[name] = value
            else:
                results[found.input] = found.put(results[found.input], value)
        return replace(self, results=tuple(results), own=own)

    def named(self, names: TotalNames) -> Totals:
        """Totals of the results and the workload's own, by the names that the workload uses."""
        found: Totals = {}
        for number, totals in enumerate(self.results):
            values = {"rows": totals.rows, **totals.amounts, "id_hash": totals.id_hash}
            found |= {names.prefix(number) + name: value for name, value in values.items()}
        return {**found, **self.own}

    def published(self, names: TotalNames) -> Totals:
        """The totals that a manifest shows, by flat name: amounts, hashes, the workload's own."""
        flat = self.to_json(names)
        read = _PARTS["read"]
        parts = ("", *_PARTS.values())
        numbers = range(len(names.inputs))
        rows = {f"{part}{names.prefix(number)}rows" for part in parts for number in numbers}
        return {
            name: value
            for name, value in flat.items()
            if name not in _COUNTS and name not in rows and not name.startswith(read)
        }

    def to_json(self, names: TotalNames) -> Totals:
        """The stored form."""
        flat: Totals = {name: getattr(self, name) for name in _COUNTS if name != "retries"}
        if self.retries:
            flat["retries"] = self.retries
        for number, totals in enumerate(self.results):
            flat |= names.flat(number, totals)
        flat |= {names.own(name): value for name, value in self.own.items()}
        for part, start in _PARTS.items():
            for number, totals in enumerate(getattr(self, part)):
                if totals.rows or (part == "lost" and (self.failed or self.unknown)):
                    flat |= names.flat(number, totals, start)
        return flat

    @classmethod
    def from_json(cls, flat: Totals, names: TotalNames) -> Self:
        """The totals that `to_json` stored."""
        counts = {name: flat.get(name, 0) for name in _COUNTS}
        parts = {part: [NO_ROWS] * len(names.inputs) for part in ("results", *_PARTS)}
        own: dict[str, int] = {}
        for name, value in flat.items():
            if name in _COUNTS:
                continue
            part, found = _find_part(name, names)
            if found is None:
                own[display_name(name)] = value
            else:
                parts[part][found.input] = found.put(parts[part][found.input], value)
        return cls(**counts, **{p: tuple(t) for p, t in parts.items()}, own=own)  # type: ignore[arg-type]


class ReadTotals(NamedTuple):
    """The totals of reading an input.

    Attributes:
        rows: its `rows` counts all rows; its amounts and ids are those of rows that are sent to
            their shard.
        rejected: number of rows that break the contract.
        other_dates: number of rows of another business date, which are left out.
    """

    rows: TableTotals = NO_ROWS
    rejected: int = 0
    other_dates: int = 0

    def add(self, other: "ReadTotals") -> "ReadTotals":
        """The sum of both."""
        return ReadTotals(
            self.rows + other.rows,
            self.rejected + other.rejected,
            self.other_dates + other.other_dates,
        )


def read_to_json(read: Sequence[ReadTotals], names: TotalNames) -> Totals:
    """The stored form of the totals of reading all inputs."""
    flat: Totals = {}
    for number, totals in enumerate(read):
        prefix = names.prefix(number)
        flat |= names.flat(number, totals.rows)
        flat[f"{prefix}refused"] = totals.rejected
        flat[f"{prefix}other_dates"] = totals.other_dates
    return flat


def read_from_json(flat: Totals, names: TotalNames) -> list[ReadTotals]:
    """The totals that `read_to_json` stored; totals that belong to no input are left out."""
    rows = [NO_ROWS] * len(names.inputs)
    for name, value in flat.items():
        found = names.find(name)
        if found is not None:
            rows[found.input] = found.put(rows[found.input], value)
    prefixes = [names.prefix(number) for number in range(len(names.inputs))]
    return [
        ReadTotals(totals, flat[f"{prefix}refused"], flat[f"{prefix}other_dates"])
        for prefix, totals in zip(prefixes, rows, strict=True)
    ]


def _find_part(flat: str, names: TotalNames) -> tuple[str, _Found | None]:
    for part, start in _PARTS.items():
        if flat.startswith(start):
            found = names.find(flat.removeprefix(start))
            if found is not None:
                return part, found
    return "results", names.find(flat)


def _is_reserved(flat: str, prefixes: Sequence[str]) -> bool:
    return (
        flat in (*_COUNTS, *_ROWS, "refused", "other_dates")
        or flat.startswith(("=", *_PARTS.values()))
        or any(flat.startswith(prefix) for prefix in prefixes)
    )


def _added(one: tuple[TableTotals, ...], other: tuple[TableTotals, ...]) -> tuple[TableTotals, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


assert {*_COUNTS, *_PARTS, "results", "own"} == {each.name for each in fields(ShardTotals)}
