"""The rule table as Narwhals expressions: layer 1 on an engine, and the masks that layer 2 counts.

Here belongs how a rule is asked of a frame that Narwhals knows (DuckDB, pandas, PySpark). What the rules
are is in ``rules``; how Pandera asks them of a pandas frame is in ``schemas``. Both give the same findings.

Nulls are handled by explicit masks: engines differ in what a comparison with null is.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.codes import npi_holds
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality.rules import Rule, families, rules_for
from e2i_dagster.quality.schemas import SAMPLE, TypedFrame, typed
from e2i_dagster.warehouse.tables import primary_key

Engine = Literal["duckdb", "pandas"]
_ROW = "row count of the frame"


@dataclass(frozen=True)
class EngineFrame:
    """A raw table on its engine.

    Attributes:
        native: Narwhals frame, one row per row of the table.
        absent: described columns that it does not have.
        unreadable: column to the name of the boolean column that marks its unreadable cells.
        foreign: columns of another type family than described; all their filled cells are invalid.
        known: column with a vocabulary to the name of a column that is null where the value is not in it
            (:func:`with_vocabularies`; empty where the engine has no quicker way than to compare).
    """

    native: Any
    absent: frozenset[str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    known: Mapping[str, str] = field(default_factory=dict)


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


def with_vocabularies(on: EngineFrame, rules: Sequence[Rule]) -> EngineFrame:
    """``on`` with every text of a ``vocabulary`` rule looked up, on DuckDB; any other engine's as it is.

    DuckDB asks a function of one column once for each entry where a column is stored as a dictionary, which
    it does of no comparison (Narwhals has this function not). Elsewhere both cost the same (measured).
    """
    import narwhals as nw

    schema = on.native.collect_schema()
    listed = {
        rule.column: rule.values
        for rule in rules
        if rule.kind == "vocabulary" and schema.get(rule.column) == nw.String
    }
    if not listed or not _on_duckdb(on):
        return on
    from duckdb import ColumnExpression, ConstantExpression, FunctionExpression, StarExpression

    known = {name: f"known {position}" for position, name in enumerate(listed)}
    looked_up = [
        FunctionExpression("list_position", ConstantExpression(list(values)), ColumnExpression(name)).alias(
            known[name]
        )
        for name, values in listed.items()
    ]
    relation = on.native.to_native().project(StarExpression(), *looked_up)
    return dataclasses.replace(on, native=nw.from_native(relation), known=known)


def distinct(on: EngineFrame, column: str) -> int | None:
    """Number of distinct values in ``column`` on DuckDB, null not counted; None on another engine.

    Values are told apart by their 64-bit hashes, which takes half the time of the engine's own count. Two of n
    different values share one with a probability below n**2 / 2**65 (1,000,000: 3 in 100,000,000), and then
    the number is too low by one, never too high.
    """
    if not _on_duckdb(on):
        return None
    from duckdb import ColumnExpression, FunctionExpression

    key = ColumnExpression(column)
    hashed = FunctionExpression("hash", key).alias("hashed")
    values = on.native.to_native().filter(key.isnotnull()).project(hashed)
    hashes = np.sort(values.fetchnumpy()["hashed"])
    return int(np.count_nonzero(hashes[1:] != hashes[:-1])) + (len(hashes) > 0)


def _on_duckdb(on: EngineFrame) -> bool:
    import narwhals as nw

    return on.native.implementation is nw.Implementation.DUCKDB


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


def value(name: str, dtype: Any) -> Any:
    """The values of a column, null in the cells without one: what an engine's own count counts."""
    import narwhals as nw

    column = nw.col(name)
    return nw.when(~column.is_nan()).then(column) if dtype.is_float() else column


def either(masks: list[Any]) -> Any:
    """Plain disjunction: null or not, the mask it is joined with by "and" decides."""
    return functools.reduce(operator.or_, masks)


def sound(rules: Sequence[Rule], on: EngineFrame) -> Any:
    """Mask of the filled cells of one column that satisfy all ``rules`` on its values; nowhere else true."""
    # What lies between two bounds is finite.
    bounded = any(
        rule.kind == "range" and rule.minimum is not None and rule.maximum is not None for rule in rules
    )
    asked = [rule for rule in rules if not (bounded and rule.kind == "finite")]
    return functools.reduce(operator.and_, [conforms(rule, on) for rule in asked])


def violates(rule: Rule, on: EngineFrame) -> Any:
    """Mask of the filled cells that violate a rule on values; elsewhere it may be anything."""
    import narwhals as nw

    wrong = ~conforms(rule, on)
    # An infinite number is said by "finite" alone.
    alone = rule.kind == "range" and rule.family == "number"
    return nw.col(rule.column).is_finite() & wrong if alone else wrong


def conforms(rule: Rule, on: EngineFrame) -> Any:
    """Mask of the filled cells that satisfy a rule on values; false or null in empty cells.

    ``order`` of two numbers is for rows that have both: to some engines NaN is the largest number.
    """
    import narwhals as nw

    column = nw.col(rule.column)
    match rule.kind:
        case "finite":
            return column.is_finite()
        case "range":
            return _in_range(rule)
        case "vocabulary":
            return _in_vocabulary(rule, on)
        case "key_format":
            return _shaped(column, rule.pattern or "")
        case "check_digit":
            return _npi_holds(column)
        case _:
            return column <= nw.col(cast(str, rule.other))


def _in_vocabulary(rule: Rule, on: EngineFrame) -> Any:
    import narwhals as nw

    if rule.column in on.known:
        return ~nw.col(on.known[rule.column]).is_null()
    return nw.col(rule.column).is_in(list(rule.values))


def _in_range(rule: Rule) -> Any:
    import narwhals as nw

    column = nw.col(rule.column)
    low = column >= rule.minimum if rule.minimum is not None else None
    high = column <= rule.maximum if rule.maximum is not None else None
    if low is not None and high is not None:
        return low & high
    # NaN and infinity are on one side of any single bound.
    limit = low if low is not None else high
    return column.is_finite() & limit if rule.family == "number" else limit


def _shaped(column: Any, pattern: str) -> Any:
    # "$" also matches before a final line break, and engines spell the very end differently.
    return column.str.contains(pattern) & ~column.str.contains("\n", literal=True)


def _npi_holds(npi: Any) -> Any:
    import narwhals as nw

    shaped = _shaped(npi, r"^[0-9]{10}$")
    digits = nw.when(shaped).then(npi).otherwise(nw.lit("0000000000"))
    return shaped & npi_holds([digits.str.slice(place, 1).cast(nw.Int64()) for place in range(10)])


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

    rules = rules_for(table, policy)
    on = with_vocabularies(engine_frame(frame, table, engine=engine), rules)
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
    present = filled(rule.column, schema[rule.column])
    unreadable = nw.col(on.unreadable[rule.column]) if rule.column in on.unreadable else None
    if rule.kind == "type":
        return present if rule.column in on.foreign else unreadable
    if rule.kind == "not_null":
        return ~present if unreadable is None else ~present & ~unreadable
    if named & on.foreign:
        return None
    if rule.kind == "unique_key":
        return present & (nw.len().over(rule.column) > 1)
    if rule.other is not None:
        present = present & filled(rule.other, schema[rule.other])
    return present & violates(rule, on)


def _keys(on: EngineFrame, mask: Any, table: str) -> tuple[str, ...]:
    import narwhals as nw

    key = primary_key(table)
    if key in on.absent or key in on.foreign:
        return ()
    listed = on.native.filter(mask, ~nw.col(key).is_null()).select(key).sort(key).head(SAMPLE)
    if isinstance(listed, nw.LazyFrame):
        listed = listed.collect()
    return tuple(np.asarray(listed[key].to_list(), dtype=object).tolist())
