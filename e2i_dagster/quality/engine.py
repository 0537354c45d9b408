"""The rule table as Narwhals expressions: layer 1 on an engine, and the masks that layer 2 counts.

Here belongs how a rule is asked of a frame that Narwhals knows (DuckDB, pandas, PySpark). What the rules
are is in ``rules``; how Pandera asks them of a pandas frame is in ``schemas``. Both give the same findings.

Nulls are handled by explicit masks: engines differ in what a comparison with null is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality.rules import Rule, families, rules_for
from e2i_dagster.quality.schemas import SAMPLE, TypedFrame, typed
from e2i_dagster.warehouse.tables import primary_key

Engine = Literal["duckdb", "pandas"]
_ROW = "row count of the frame"
#: Values up to which an engine compares one by one in half the time of a look-up (measured on DuckDB).
_COMPARED = 16


@dataclass(frozen=True)
class EngineFrame:
    """A raw table on its engine.

    Attributes:
        native: Narwhals frame, one row per row of the table.
        absent: described columns that it does not have.
        unreadable: column to the name of the boolean column that marks its unreadable cells.
        foreign: columns of another type family than described; all their filled cells are invalid.
    """

    native: Any
    absent: frozenset[str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()


@dataclass(frozen=True)
class EngineFault:
    """One violated rule: how many of how many rows, and the smallest keys of some of them."""

    rule: Rule
    count: int
    checked: int
    keys: tuple[str, ...]


def engine_frame(
    frame: Any, table: str, *, engine: Engine = "duckdb", labels: Mapping[str, Any] | None = None
) -> EngineFrame:
    """``frame`` on its engine.

    Args:
        frame: pandas frame or :class:`TypedFrame` (brought to its described types first), or a DuckDB
            relation or any other frame that Narwhals knows (columns of described types expected).
        table: raw table that describes the columns.
        engine: where a pandas frame goes.
        labels: for a pandas frame, further text columns by name.
    """
    import narwhals as nw

    if not isinstance(frame, pd.DataFrame | TypedFrame):
        native = nw.from_native(frame)
        described = set(native.collect_schema().names())
        absent = frozenset(name for name in families(table) if name not in described)
        return EngineFrame(native, absent, {}, wrong_families(native, table, absent))
    read = frame if isinstance(frame, TypedFrame) else typed(frame, table)
    data = read.frame.drop(columns=list(read.absent))
    unreadable = {}
    for position, (name, mask) in enumerate(read.faults.items()):
        unreadable[name] = f"unreadable {position}"
        data[unreadable[name]] = mask
    for name, values in (labels or {}).items():
        data[name] = pd.Series(values, index=data.index, dtype="string[pyarrow]")
    if not len(data.columns):
        data[_ROW] = True  # engines count the rows of columns
    if engine == "pandas" or data.empty:
        return EngineFrame(nw.from_native(data), read.absent, unreadable)
    import duckdb
    import pyarrow as pa

    relation = duckdb.connect().from_arrow(pa.Table.from_pandas(data, preserve_index=False))
    return EngineFrame(nw.from_native(relation), read.absent, unreadable)


def wrong_families(native: Any, table: str, absent: frozenset[str]) -> frozenset[str]:
    """Columns of another type family than described."""
    import narwhals as nw

    boolean = nw.Boolean()
    fits = {
        "text": lambda dtype: not (dtype.is_numeric() or dtype.is_temporal() or dtype == boolean),
        "integer": lambda dtype: dtype.is_integer(),
        "number": lambda dtype: dtype.is_numeric(),
        "boolean": lambda dtype: dtype == boolean,
        "date": lambda dtype: dtype.is_temporal(),
        "timestamp": lambda dtype: dtype.is_temporal(),
    }
    schema = native.collect_schema()
    return frozenset(
        name for name, kind in families(table).items() if name not in absent and not fits[kind](schema[name])
    )


def filled(name: str, dtype: Any) -> Any:
    """Mask of the cells with a value; a float NaN is an empty cell, as engines know both NaN and null."""
    import narwhals as nw

    column = nw.col(name)
    return ~(column.is_null() | column.is_nan()) if dtype.is_float() else ~column.is_null()


def either(masks: list[Any]) -> Any:
    """Plain disjunction: null or not, the mask it is joined with by "and" decides."""
    return functools.reduce(operator.or_, masks)


def violates(rule: Rule) -> Any:
    """Mask of the filled cells that violate a rule on values; elsewhere it may be anything."""
    import narwhals as nw

    column = nw.col(rule.column)
    match rule.kind:
        case "finite":
            return ~column.is_finite()
        case "range":
            low = column < rule.minimum if rule.minimum is not None else None
            high = column > rule.maximum if rule.maximum is not None else None
            outside = either([limit for limit in (low, high) if limit is not None])
            # An infinite number is said by "finite" alone.
            return column.is_finite() & outside if rule.family == "number" else outside
        case "vocabulary":
            few = len(rule.values) <= _COMPARED
            return ~(either([column == v for v in rule.values]) if few else column.is_in(list(rule.values)))
        case "key_format":
            return ~_shaped(column, rule.pattern or "")
        case "check_digit":
            return ~_luhn(column)
        case _:
            return column > nw.col(cast(str, rule.other))


def _shaped(column: Any, pattern: str) -> Any:
    # "$" also matches before a final line break, and engines spell the very end differently.
    return column.str.contains(pattern) & ~column.str.contains("\n", literal=True)


def _luhn(npi: Any) -> Any:
    import narwhals as nw

    shaped = _shaped(npi, r"^[0-9]{10}$")
    digits = nw.when(shaped).then(npi).otherwise(nw.lit("0000000000"))
    total = nw.lit(24)  # what the prefix 80840 adds to the sum
    for place in range(10):
        digit = digits.str.slice(place, 1).cast(nw.Int64())
        if place % 2 == 0:
            digit = digit * 2 - nw.when(digit > 4).then(nw.lit(9)).otherwise(nw.lit(0))
        total = total + digit
    return shaped & (total % 10 == 0)


def check_on_engine(
    frame: Any, table: str, policy: QualityPolicy, *, engine: Engine = "duckdb"
) -> tuple[EngineFault, ...]:
    """Layer 1 on an engine: every violated rule of ``table``, counted in one pass.

    The findings are those of :func:`schemas.check_schema` on the same rows: rule, column, rows that
    violate it, rows that were looked at, and at most a few keys (the smallest). A second, short query
    fetches the keys of each violated rule.

    Args:
        frame: as for :func:`engine_frame`. A column of another type family than described is a ``type``
            fault in every filled cell, and nothing else is asked of it.
        table: raw table that describes the columns.
        policy: severities, vocabularies, pairs.
        engine: where a pandas frame goes.
    """
    import narwhals as nw

    on = engine_frame(frame, table, engine=engine)
    rules = rules_for(table, policy)
    masks = {rule: mask for rule in rules if (mask := _mask(rule, on)) is not None}
    present = [name for name in families(table) if name not in on.absent]
    schema = on.native.collect_schema()
    flags = {f"violated {position}": mask for position, mask in enumerate(masks.values())}
    flags |= {f"filled {name}": filled(name, schema[name]) for name in present}
    marked = on.native.with_columns(
        nw.lit(1).alias(_ROW), *[nw.when(mask).then(nw.lit(1)).alias(alias) for alias, mask in flags.items()]
    )
    counted = marked.select(nw.len().alias(_ROW), *[nw.col(alias).count() for alias in flags])
    row = (counted.collect() if isinstance(counted, nw.LazyFrame) else counted).to_pandas().iloc[0]
    counts = {rule: int(row[f"violated {position}"]) for position, rule in enumerate(masks)}
    rows = int(row[_ROW])
    found = []
    for rule in rules:
        if _is_absent(rule, on):
            found.append(EngineFault(rule, rows, rows, ()))
        elif counts.get(rule):
            whole = rule.kind in ("not_null", "type")
            readable = 0 if rule.column in on.foreign else int(row[f"filled {rule.column}"])
            found.append(
                EngineFault(rule, counts[rule], rows if whole else readable, _keys(on, masks[rule], table))
            )
    return tuple(found)


def _is_absent(rule: Rule, on: EngineFrame) -> bool:
    return rule.kind in ("required_column", "expected_column") and rule.column in on.absent


def _mask(rule: Rule, on: EngineFrame) -> Any:
    """Mask of the rows that violate ``rule``; None where it asks nothing of the rows."""
    import narwhals as nw

    named = {rule.column} | ({rule.other} if rule.other else set())
    if rule.kind in ("required_column", "expected_column") or named & on.absent:
        return None
    schema = on.native.collect_schema()
    value = filled(rule.column, schema[rule.column])
    unreadable = nw.col(on.unreadable[rule.column]) if rule.column in on.unreadable else None
    if rule.kind == "type":
        return value if rule.column in on.foreign else unreadable
    if rule.kind == "not_null":
        return ~value if unreadable is None else ~value & ~unreadable
    if named & on.foreign:
        return None
    if rule.kind == "unique_key":
        return value & (nw.len().over(rule.column) > 1)
    if rule.other is not None:
        value = value & filled(rule.other, schema[rule.other])
    return value & violates(rule)


def _keys(on: EngineFrame, mask: Any, table: str) -> tuple[str, ...]:
    import narwhals as nw

    key = primary_key(table)
    if key in on.absent or key in on.foreign:
        return ()
    listed = on.native.filter(mask, ~nw.col(key).is_null()).select(key).sort(key).head(SAMPLE)
    if isinstance(listed, nw.LazyFrame):
        listed = listed.collect()
    return tuple(np.asarray(listed[key].to_list(), dtype=object).tolist())
