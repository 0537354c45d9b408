"""The one list of what a raw table's rows must satisfy, and the one mask of each kind of rule.

The list is derived from the table description. The masks are Narwhals expressions, so that the loader (Arrow),
layer 1 of quality control, any engine (DuckDB, PySpark) and a user's Pandera schema run the same ones. What a
cell says at all is said by :mod:`.cells`; what a row is against the rows of other tables is asked by the loader
and by plausibility.

Nulls are handled by explicit masks: engines differ in what a comparison with null is.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import sqlalchemy as sa

from e2i_dagster.config.quality import SchemaKind
from e2i_dagster.tables import facts, frame_columns, raw_table
from e2i_dagster.tables.cells import Kind, kind_of
from e2i_dagster.tables.codes import npi_holds
from e2i_dagster.tables.moments import not_earlier

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from e2i_dagster.tables.vocabulary import VocabularyPolicy

#: Under which reason a load rejects what breaks a rule on values (``.rules.REASONS``). What cannot be read
#: (``type``) has the reason of the reader, an infinite number (``finite``) that of what is no number; repeated
#: keys are judged by what the rows hold besides; the shape of a key is a finding and rejects nothing.
REJECTED_AS: Mapping[SchemaKind, str] = {
    "not_null": "missing_value",
    "range": "out_of_range",
    "vocabulary": "unknown_value",
    "check_digit": "npi_check_digit",
    "order": "end_before_start",
}


_NPI = r"^[0-9]{10}$"


@dataclass(frozen=True)
class Constraint:
    """One rule on one column (``order``: on two).

    Attributes:
        kind: what is asked.
        family: how the cells of the column are read.
        other: for ``order`` the column that must not be earlier (or smaller) than ``column``.
        minimum, maximum: closed range of ``range``.
        values: accepted values of ``vocabulary``.
        pattern: regular expression of ``key_format``.
    """

    kind: SchemaKind
    table: str
    column: str
    family: Kind
    other: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    pattern: str | None = None


def families(table: str) -> dict[str, Kind]:
    """How the cells of every column that a frame of ``table`` has are read, in the described order."""
    columns = raw_table(table).columns
    return {name: kind_of(columns[name]) for name in frame_columns(table)}


def limits(column: sa.Column[Any], *, signed: bool = False) -> tuple[float | None, float | None]:
    """The closed range of a column's numbers: what is described, and what its digits have room for.

    Args:
        signed: the described minimum is not asked, as for the amounts of a reversal.
    """
    about = facts(column)
    least, most = None if signed else about.minimum, about.maximum
    precision, scale = getattr(column.type, "precision", None), getattr(column.type, "scale", None)
    if isinstance(column.type, sa.Numeric) and precision is not None:
        room = math.nextafter(10.0 ** (precision - (scale or 0)), 0)
        least, most = (
            max(-room, -math.inf if least is None else least),
            min(room, math.inf if most is None else most),
        )
    return least, most


def of_column(table: str, name: str, vocabulary: VocabularyPolicy) -> Iterator[Constraint]:
    """The rules on the cells of one column."""
    column = raw_table(table).columns[name]
    about, family = facts(column), kind_of(column)
    rule = functools.partial(Constraint, table=table, column=name, family=family)
    yield rule("type")
    if not column.nullable and column.server_default is None:
        yield rule("not_null")
    if column.primary_key or column.unique:
        yield rule("unique_key")
    if family == "number":
        yield rule("finite")
    least, most = limits(column)
    if least is not None or most is not None:
        yield rule("range", minimum=least, maximum=most)
    if about.vocabulary is not None:
        yield rule("vocabulary", values=vocabulary.values(about.vocabulary))
    if about.check_digit is not None:
        yield rule("check_digit")
    elif about.pattern is not None:
        yield rule("key_format", pattern=about.pattern)


def spans(table: str) -> tuple[Constraint, ...]:
    """The pairs of columns that bound a span: the second must not be earlier (or smaller) than the first."""
    kinds = families(table)
    ends = {name: facts(raw_table(table).columns[name]).not_before for name in kinds}
    return tuple(
        Constraint("order", table, start, kinds[start], other=end)
        for end, start in ends.items()
        if start is not None
    )


# --- masks -----------------------------------------------------------------------------------------


def filled(name: str, dtype: Any) -> Any:
    """Mask of the cells with a value; a float NaN is an empty cell, as engines know both NaN and null."""
    import narwhals as nw

    column = nw.col(name)
    return ~(column.is_null() | column.is_nan()) if dtype.is_float() else ~column.is_null()


def missing(constraint: Constraint, dtype: Any) -> Any:
    """Mask of the cells that violate ``not_null``: an empty text is as good as none."""
    import narwhals as nw

    empty = ~filled(constraint.column, dtype)
    return empty | (nw.col(constraint.column) == "") if constraint.family == "text" else empty


def repeated(constraint: Constraint, dtype: Any) -> Any:
    """Mask of the cells that violate ``unique_key``: every one of the rows that have the same."""
    import narwhals as nw

    return filled(constraint.column, dtype) & (nw.len().over(constraint.column) > 1)


def broken(constraint: Constraint, schema: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Any:
    """Mask of the rows that violate a rule on values (:func:`conforms`); an empty cell violates none."""
    present = filled(constraint.column, schema[constraint.column])
    if constraint.other is not None:
        present = present & filled(constraint.other, schema[constraint.other])
    return present & violates(constraint, known)


def sound(asked: Sequence[Constraint], known: Mapping[str, str] | None = None) -> Any:
    """Mask of the filled cells of one column that satisfy all rules on its values; nowhere else true."""
    # What lies between two bounds is finite.
    bounded = any(
        rule.kind == "range" and rule.minimum is not None and rule.maximum is not None for rule in asked
    )
    left = [rule for rule in asked if not (bounded and rule.kind == "finite")]
    return functools.reduce(operator.and_, [conforms(rule, known) for rule in left])


def violates(constraint: Constraint, known: Mapping[str, str] | None = None) -> Any:
    """Mask of the filled cells that violate a rule on values; elsewhere it may be anything."""
    import narwhals as nw

    wrong = ~conforms(constraint, known)
    if constraint.family != "number" or constraint.kind not in ("range", "order"):
        return wrong
    # An infinite number is said by "finite" alone.
    named = [name for name in (constraint.column, constraint.other) if name is not None]
    return functools.reduce(operator.and_, [nw.col(name).is_finite() for name in named]) & wrong


def conforms(constraint: Constraint, known: Mapping[str, str] | None = None) -> Any:
    """Mask of the filled cells that satisfy a rule on values; false or null in empty cells.

    ``order`` of two numbers is for rows that have both: to some engines NaN is the largest number.

    Args:
        known: column to the name of one with what is known of it, where that is quicker: null where a value is not
            in the vocabulary, or the number that is to hold a check digit.
    """
    import narwhals as nw

    column = nw.col(constraint.column)
    match constraint.kind:
        case "finite":
            return column.is_finite()
        case "range":
            return _in_range(constraint)
        case "vocabulary":
            looked_up = (known or {}).get(constraint.column)
            return ~nw.col(looked_up).is_null() if looked_up else column.is_in(list(constraint.values))
        case "key_format":
            return _shaped(column, constraint.pattern or "")
        case "check_digit":
            shaped = _shaped(column, _NPI)
            number = (
                nw.col(known[constraint.column]) if known and constraint.column in known else _number(column)
            )
            return shaped & npi_holds([number // 10**place % 10 for place in reversed(range(10))])
        case _:
            other = cast(str, constraint.other)
            timed = constraint.family == "timestamp"
            return not_earlier(other, constraint.column) if timed else column <= nw.col(other)


def _in_range(constraint: Constraint) -> Any:
    import narwhals as nw

    column = nw.col(constraint.column)
    low = column >= constraint.minimum if constraint.minimum is not None else None
    high = column <= constraint.maximum if constraint.maximum is not None else None
    if low is not None and high is not None:
        return low & high
    # NaN and infinity are on one side of any single bound.
    limit = low if low is not None else high
    return column.is_finite() & limit if constraint.family == "number" else limit


def _shaped(column: Any, pattern: str) -> Any:
    # "$" also matches before a final line break, and engines spell the very end differently.
    return column.str.contains(pattern) & ~column.str.contains("\n", literal=True)


def _number(npi: Any) -> Any:
    """The ten digits of an NPI as one number, 0 where it has another shape."""
    import narwhals as nw

    return nw.when(_shaped(npi, _NPI)).then(npi).otherwise(nw.lit("0")).cast(nw.Int64())


def mask_of(constraint: Constraint, schema: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Any:
    """Mask of the rows that violate a rule on the cells of a frame that has its columns (any kind but ``type``).

    Args:
        schema: Narwhals types of the columns of the frame.
        known: as for :func:`conforms`.
    """
    match constraint.kind:
        case "not_null":
            return missing(constraint, schema[constraint.column])
        case "unique_key":
            return repeated(constraint, schema[constraint.column])
        case _:
            return broken(constraint, schema, known)


def violating(asked: Sequence[Constraint], cells: pa.Table | pd.DataFrame) -> dict[Constraint, np.ndarray]:
    """The masks of rules over cells in memory as boolean arrays, all of them in one pass."""
    import narwhals as nw

    if not asked:
        return {}
    frame: Any = nw.from_native(cells, eager_only=True)
    # In memory an expression that occurs ten times is computed ten times.
    known = {rule.column: f"number of {rule.column}" for rule in asked if rule.kind == "check_digit"}
    frame = frame.with_columns(**{alias: _number(nw.col(name)) for name, alias in known.items()})
    schema = frame.schema
    found = frame.select(**{str(place): mask_of(rule, schema, known) for place, rule in enumerate(asked)})
    return {
        rule: found[str(place)].fill_null(False).to_numpy().astype(bool) for place, rule in enumerate(asked)
    }
