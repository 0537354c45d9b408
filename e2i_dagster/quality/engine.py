"""Layer 1 on an engine: the masks of the rules on a frame that Narwhals knows (DuckDB, pandas, PySpark).

Here belongs how a table lies on its engine and how its violations are counted there. The masks are those of
:mod:`e2i_dagster.tables.constraints`, which ``schemas`` asks of a frame in memory: both give the same findings.
On an engine nothing is read: its columns have their described types, or are refused whole.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.quality.rules import Rule, rules_for
from e2i_dagster.quality.typed import SAMPLE, TypedFrame, typed
from e2i_dagster.tables import primary_key
from e2i_dagster.tables.constraints import families, filled, mask_of

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

    Raises:
        InputError: the moments of a frame are in another zone than UTC, or its engine's session is.
    """
    import narwhals as nw

    if not isinstance(frame, pd.DataFrame | TypedFrame):
        native = nw.from_native(frame)
        _require_utc(native)
        described = set(native.collect_schema().names())
        absent = frozenset(name for name in families(table) if name not in described)
        return EngineFrame(native, absent, {}, wrong_families(native, table, absent))
    import pyarrow as pa

    read = frame if isinstance(frame, TypedFrame) else typed(frame, table)
    unreadable = {name: f"unreadable {position}" for position, name in enumerate(read.faults)}
    added = {unreadable[name]: pa.array(mask) for name, mask in read.faults.items()}
    added |= {name: pa.array(values, pa.large_string()) for name, values in (labels or {}).items()}
    present = {name: read.cells.column(name) for name in read.cells.column_names if name not in read.absent}
    if engine == "pandas" or not read.cells.num_rows:
        data = read.frame[list(present)].assign(
            **{name: cells.to_numpy(zero_copy_only=False) for name, cells in added.items()}
        )
        return EngineFrame(nw.from_native(data), read.absent, unreadable)
    import duckdb

    if not present:
        added[_ROW] = pa.array(np.ones(read.cells.num_rows, bool))  # engines count the rows of columns
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")  # a moment belongs to its UTC day
    relation = connection.from_arrow(pa.table(present | added))
    return EngineFrame(nw.from_native(relation), read.absent, unreadable)


def _require_utc(native: Any) -> None:
    """A moment belongs to its UTC day, and an engine knows days by the zone of its session only."""
    for name, dtype in native.collect_schema().items():
        zone = getattr(dtype, "time_zone", None)
        if zone not in (None, "UTC", "Etc/UTC", "+00:00"):
            remedy = (
                "Set the session's time zone to UTC (DuckDB: SET TimeZone = 'UTC'), or convert the column."
            )
            raise InputError(
                f"Column {name} has moments of the zone {zone}. {remedy}",
                field=name,
                value=zone,
                remedy=remedy,
            )


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

    Values are distinguished by their 64-bit hashes, which takes half the time of the engine's own count. Two of n
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
        "integer": lambda dtype: dtype.is_integer(),
        "number": lambda dtype: dtype.is_numeric(),
        "boolean": lambda dtype: dtype == boolean,
        "date": lambda dtype: dtype.is_temporal(),
        "timestamp": lambda dtype: dtype.is_temporal(),
    }

    def plain(dtype: Any) -> bool:
        return not (dtype.is_numeric() or dtype.is_temporal() or dtype == boolean)

    schema = native.collect_schema()
    return frozenset(
        name
        for name, kind in families(table).items()
        if name not in absent and not fits.get(kind, plain)(schema[name])
    )


def value(name: str, dtype: Any) -> Any:
    """The values of a column, null in the cells without one: what an engine's own count counts."""
    import narwhals as nw

    column = nw.col(name)
    return nw.when(~column.is_nan()).then(column) if dtype.is_float() else column


def either(masks: list[Any]) -> Any:
    """Plain disjunction: null or not, the mask it is joined with by "and" decides."""
    return functools.reduce(operator.or_, masks)


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
    unreadable = nw.col(on.unreadable[rule.column]) if rule.column in on.unreadable else None
    if rule.kind == "type":
        return filled(rule.column, schema[rule.column]) if rule.column in on.foreign else unreadable
    if named & on.foreign and rule.kind != "not_null":
        return None
    mask = mask_of(rule, schema, on.known)
    # What cannot be read is said by "type" alone.
    return mask & ~unreadable if rule.kind == "not_null" and unreadable is not None else mask


def _keys(on: EngineFrame, mask: Any, table: str) -> tuple[str, ...]:
    import narwhals as nw

    key = primary_key(table)
    if key in on.absent or key in on.foreign:
        return ()
    listed = on.native.filter(mask, ~nw.col(key).is_null()).select(key).sort(key).head(SAMPLE)
    if isinstance(listed, nw.LazyFrame):
        listed = listed.collect()
    return tuple(np.asarray(listed[key].to_list(), dtype=object).tolist())
