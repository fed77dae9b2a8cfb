"""Differences between two tables whose rows stand for the same things, column by column."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Flags, Integers, array_of
from ledgerbeam.rules.components import Components

_WIDEST = 38


class RowStatus(StrEnum):
    """What the comparison of a row has found.

    Attributes:
        SAME: both sides have the row, with equal values.
        CHANGED: both sides have it, with different values.
        KNOWN: likewise, and each difference is known.
        ONLY_BEFORE: only the first side has it.
        ONLY_AFTER: only the second side has it.
    """

    SAME = "same"
    CHANGED = "changed"
    KNOWN = "known"
    ONLY_BEFORE = "only_before"
    ONLY_AFTER = "only_after"


class _Pairs(NamedTuple):
    """The keys that both sides have: int64 `(pairs,)`, and which rows these are on each side."""

    keys: Integers
    before: pa.BooleanArray | None
    after: pa.BooleanArray | None


@dataclass(frozen=True)
class Sides:
    """Two tables side by side, in the order of a key of which each side has at most one row.

    Rows of both sides are in the order of the key, too.

    Attributes:
        before: int64 `(keys,)`, the number of the key's row on the first side, or -1.
        after: int64 `(keys,)`, likewise on the second side.
        before_rows: the rows of the first side.
        after_rows: the rows of the second side.
    """

    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    before_rows: pa.Table
    after_rows: pa.Table
    _differing: dict[str, Flags] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, before: Components, after: Components) -> "Sides":
        """The sides of components that have at most one row on each side."""
        return cls(_numbers(before), _numbers(after), before.table, after.table)

    def differing(self, column: str) -> Flags:
        """Bool `(keys,)`: both sides have a row of the key, and its values differ.

        Nothing equals nothing only, decimals are compared by value whatever their scales, and NaN
        equals NaN. Values of types that have no common one are compared as text.
        """
        if column not in self._differing:
            keys, *chosen = self._pairs
            found = np.zeros(len(self.before), bool)
            if len(keys):
                sides = [
                    _chosen(array_of(rows.column(column)), is_chosen)
                    for rows, is_chosen in zip(
                        (self.before_rows, self.after_rows), chosen, strict=True
                    )
                ]
                found[keys[_differ(*sides)]] = True
            self._differing[column] = found
        return self._differing[column]

    @cached_property
    def _pairs(self) -> _Pairs:
        keys = np.flatnonzero((self.before >= 0) & (self.after >= 0))
        return _Pairs(
            keys,
            _flags_of(self.before[keys], self.before_rows.num_rows),
            _flags_of(self.after[keys], self.after_rows.num_rows),
        )

    def values(self, column: str) -> pa.Array:
        """`(keys,)`: the value of the second side, or of the first where there is no second."""
        sides = _comparable(
            array_of(self.before_rows.column(column)), array_of(self.after_rows.column(column))
        )
        rows = np.where(self.after >= 0, self.after + len(sides[0]), self.before)
        return pa.concat_arrays(sides).take(pa.array(rows))

    def change(self, column: str) -> pa.Array:
        """Decimal `(keys,)`: the second side's amount less the first side's; no amount counts 0."""
        is_alone = (self.before < 0) | (self.after < 0)
        changed = self.differing(column) | is_alone
        amounts = [
            _taken(rows, column, numbers[changed]).cast(_widest(rows.schema.field(column).type))
            for rows, numbers in (
                (self.before_rows, self.before),
                (self.after_rows, self.after),
            )
        ]
        scale = max(array.type.scale for array in amounts)
        # decimal256 holds any difference; amounts of 38 digits would overflow in decimal128.
        before, after = (
            pc.fill_null(array.cast(pa.decimal256(_WIDEST + 20, scale)), 0) for array in amounts
        )
        changes = pc.subtract(after, before).cast(pa.decimal128(_WIDEST, scale))
        none = pa.repeat(pa.scalar(Decimal(0), changes.type), len(changed))
        return pc.replace_with_mask(none, pa.array(changed), changes)


def change_scale(before: pa.DataType, after: pa.DataType) -> int:
    """The decimals that `Sides.change` has for a column of these types."""
    return max(_widest(type_).scale for type_ in (before, after))


def names_of_columns(differing: Mapping[str, Flags], keys: int) -> pa.DictionaryArray:
    """String `(keys,)`: the columns in which a row differs, in their order, joined by commas.

    Args:
        differing: bool `(keys,)` by column.
        keys: how many keys there are.
    """
    texts = {"": 0}
    numbers = np.zeros(keys, np.int32)
    names = np.array([*differing], object)
    changed = np.flatnonzero(np.logical_or.reduce([*differing.values(), np.zeros(keys, bool)]))
    if len(changed):
        flags = np.column_stack([column[changed] for column in differing.values()])
        packed = np.packbits(flags, axis=1)
        # One value a row, so that equal rows are found by one sort.
        rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, firsts, of_row = np.unique(rows, return_index=True, return_inverse=True)
        for first in firsts.tolist():
            texts[",".join(names[flags[first]])] = len(texts)
        numbers[changed] = of_row + 1
    return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array([*texts], pa.string()))


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Values as text, as people read them, with the dictionary that they have; null stays null."""
    column = array_of(column)
    if column.type == pa.dictionary(pa.int32(), pa.string()):
        return column
    return _plain(column).cast(pa.string())


def _numbers(components: Components) -> npt.NDArray[np.int64]:
    sizes = components.ends() - components.starts
    return np.where(sizes > 0, components.starts, -1)


def _flags_of(numbers: Integers, rows: int) -> pa.BooleanArray | None:
    """Bool `(rows,)`: which rows have one of these numbers; None if all have."""
    if len(numbers) == rows:
        return None
    flags = np.zeros(rows, bool)
    flags[numbers] = True
    return pa.array(flags)


def _chosen(array: pa.Array, is_chosen: pa.BooleanArray | None) -> pa.Array:
    # Most rows are: a filter copies whole stretches of them, where `take` copies one by one.
    return array if is_chosen is None else array.filter(is_chosen)


def _taken(rows: pa.Table, column: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """The values of rows, null where a number is -1."""
    return _plain(array_of(rows.column(column)).take(pa.array(numbers, mask=numbers < 0)))


def _differ(before: pa.Array, after: pa.Array) -> Flags:
    left, right = _comparable(before, after)
    if pa.types.is_dictionary(left.type):
        left, right = left.indices, right.indices
    unequal = pc.not_equal(left, right)
    if pa.types.is_floating(left.type):
        unequal = pc.and_(unequal, pc.invert(pc.and_(pc.is_nan(left), pc.is_nan(right))))
    if left.null_count or right.null_count:
        is_null = pc.is_null(left), pc.is_null(right)
        unequal = pc.if_else(pc.or_(*is_null), pc.xor(*is_null), unequal)
    return np.asarray(unequal.to_numpy(zero_copy_only=False), bool)


def _comparable(before: pa.Array, after: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Both in one type; if that has dictionaries, with the same one."""
    if before.type == after.type and pa.types.is_dictionary(before.type):
        if before.dictionary.equals(after.dictionary):
            return before, after
        unified = pa.chunked_array([before, after]).unify_dictionaries()
        return unified.chunk(0), unified.chunk(1)
    before, after = _plain(before), _plain(after)
    if before.type == after.type:
        return before, after
    if _is_number(before.type) and _is_number(after.type):
        types = [_widest(side.type) for side in (before, after)]
        common = pa.decimal256(_WIDEST + 38, max(type_.scale for type_ in types))
        return tuple(
            side.cast(type_).cast(common)
            for side, type_ in zip((before, after), types, strict=True)
        )
    return before.cast(pa.string()), after.cast(pa.string())


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_decimal(type_)


def _widest(type_: pa.DataType) -> pa.DataType:
    """The decimal type that holds all values of integers or decimals."""
    if pa.types.is_decimal(type_):
        return type_
    return pa.decimal128(20, 0)


def _plain(array: pa.Array) -> pa.Array:
    """The array without a dictionary."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
