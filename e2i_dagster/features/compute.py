"""Feature values as of a day: the definitions of a view compiled to one DuckDB statement over the raw tables.

Of each raw table one pass is made: entities are joined with its rows on what all features ask of them in common,
and what each asks beside that is a filter of its aggregate. Conditions are those of the cohort language and mean what
they mean there (:func:`~e2i_dagster.cohorts.narwhals_plan.condition_truth`). The statement sees only the columns
that the features read (no other column is handed to DuckDB) and joins rows known at the end of the ``as_of`` day: a
dated row is known from its arrival (``source_timestamp``) where that is on record, else so many days
after its date as the source needs to deliver, and never before its date. Windows go by the date. The
patient's own row in ``patient_journeys`` counts when it had arrived by the day after ``as_of``, the day on
which the values are used: it is the row that makes the patient known, and sources write it on the index
date. One without an arrival time counts as always known; for others a journey counts from its beginning and
arrival on. ``as_of`` is the day before the index date, so that a window ``[-n, -1]`` is the n days that end with it.
Means, sums, slopes and ratios are rounded to nine decimals, so that their
digest does not depend on the order in which rows are added.

Counts are 0 where an entity is known and has no such row, and null where the entity is unknown (a
patient without a journey, a professional without a profile). A feature over a window of which its tables do not
cover every day (it reaches before the first one, or into a month that was never loaded) is null for everybody: what
happened then is unknown. So is a feature of what is on record where the days from the first covered one on are not
all covered; rows dated before that one are no part of the record.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.criteria import Criterion
from e2i_dagster.config.current_features import view_named
from e2i_dagster.config.feature_views import (
    ARRIVAL,
    JOURNEY,
    JOURNEYS,
    ROW_TABLES,
    TIMESTAMP,
    ZERO_WITHOUT_ROWS,
    Calculation,
    Feature,
    FeatureView,
    Leaf,
    Rows,
    dtypes,
    journey_keys,
    key_column,
    keys_of,
    source_columns,
)
from e2i_dagster.errors import InputError
from e2i_dagster.tables.own_types import OWN_TABLE
from e2i_dagster.versions.coverage import EVERY_DAY, Coverage

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

#: What a row is that does not count: of somebody else; not known yet.
OTHERS, LATER = "of another entity", "known later"
# The journey whose static columns count: the named one, else the one begun last, else the first to begin.
_JOURNEY_SQL = """journey AS (
    SELECT e.row AS of_row, j.*
    FROM entities e
    JOIN patient_journeys j ON j.patient_id = e.patient_id AND j.known_on <= e.as_of + 1
    QUALIFY row_number() OVER (
        PARTITION BY e.row
        ORDER BY coalesce(j.patient_journey_id = e.patient_journey_id, false) DESC,
                 coalesce(j.journey_start_date <= e.as_of, false) DESC,
                 CASE WHEN j.journey_start_date <= e.as_of THEN j.journey_start_date END DESC,
                 j.journey_start_date, j.patient_journey_id
    ) = 1
)"""


@dataclass
class Pass:
    """One pass over a raw table: for each aggregate its name, its SQL, and the conditions that its rows must meet."""

    table: str
    aggregates: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    firsts: list[int | None] = field(default_factory=list)

    def sql(self, name: str) -> str:
        """The common table expression ``name``: a line for each entity with a row."""
        conditions = [asked for _, asked in self.aggregates.values()]
        common = frozenset.intersection(*conditions)
        columns = []
        for alias, (sql, asked) in self.aggregates.items():
            own = " AND ".join(sorted(asked - common)) or "true"
            columns.append(f"{sql.replace('{filter}', f'FILTER (WHERE {own})')} AS {alias}")
        if None not in self.firsts:
            widest = min(first for first in self.firsts if first is not None)
            common |= {f"t.day > e.as_of - {-widest}"}
        return (
            f"{name} AS (SELECT e.row AS of_row, {', '.join(columns)} FROM entities e "
            f"JOIN {self.table}_dated t ON {' AND '.join(sorted(common))} GROUP BY e.row)"
        )


class Statement:
    """The statement of one view: passes over tables, and an expression for each feature.

    Attributes:
        patterns: of each table the conditions of the cohort language that its rows are marked with.
        journeys: tables whose rows are joined with their patient journey, and columns of it that are asked for.
    """

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.passes: dict[str, Pass] = {}
        self.patterns: dict[str, list[Rows]] = {}
        self.journeys: dict[str, set[str]] = {}
        self._frequent: dict[str, str] = {}
        self._expressions = {feature.name: self.expression(feature) for feature in view.features}

    def sql(self) -> str:
        """One row for each entity, in order: the features of the view."""
        view, values = (
            self.view,
            [part.value for feature in self.view.features for part in self.view.parts(feature)],
        )
        tables = [f"p_{table}" for table in self.passes]
        expressions = [self.passes[table].sql(f"p_{table}") for table in self.passes]
        expressions += [f"{name} AS ({sql})" for name, sql in self._frequent.items()]
        joins = [f"LEFT JOIN {name} ON {name}.of_row = e.row" for name in (*tables, *self._frequent)]
        known = "true"
        if view.keys == ("patient_id",):
            expressions.insert(0, _JOURNEY_SQL)
            joins.append("LEFT JOIN journey ON journey.of_row = e.row")
            known = "journey.of_row IS NOT NULL"
            if any(value and value.startswith(f"{OWN_TABLE}.") for value in values):
                joins.append(
                    f"LEFT JOIN {OWN_TABLE} ON {OWN_TABLE}.{JOURNEY} = journey.{JOURNEY} "
                    f"AND {OWN_TABLE}.diagnosis_date <= e.as_of + 1"
                )
        elif view.keys == ("hcp_id",):
            joins.append("LEFT JOIN hcp_profiles ON hcp_profiles.hcp_id = e.hcp_id")
            known = "hcp_profiles.hcp_id IS NOT NULL"
        columns = ", ".join(
            f"{sql.replace('{known}', known)} AS {_quoted(name)}" for name, sql in self._expressions.items()
        )
        begun = f"WITH {', '.join(expressions)} " if expressions else ""
        return f"{begun}SELECT {columns} FROM entities e {' '.join(joins)} ORDER BY e.row"

    def expression(self, calculation: Calculation) -> str:
        """SQL of the value of ``calculation`` for an entity ``e``; ``{known}`` stands for whether it is known."""
        kind = calculation.kind
        if calculation.value is not None:
            table, _, column = calculation.value.partition(".")
            value = f"{'journey' if table == JOURNEYS else table}.{_quoted(column)}"
        elif calculation.operands:
            left, right = (self._operand(operand) for operand in calculation.operands)
            divided = f"CAST({left} AS DOUBLE) / nullif({right}, 0)"
            value = f"round({divided if kind == 'ratio' else f'CAST({left} AS DOUBLE) - {right}'}, 9)"
        elif calculation.score is not None:
            value = self._score(calculation)
        else:
            (leaf,) = calculation.own_leaves
            value = self._leaf(leaf)
        missing = calculation.on_missing if isinstance(calculation, Feature) else None
        if missing is None and kind == "sum":
            (leaf,) = calculation.own_leaves
            rows = f"coalesce({self._aggregate(leaf.rows, 'count(*) {filter}')}, 0)"
            value = f"CASE WHEN {rows} = 0 THEN 0.0 ELSE {value} END"
        elif missing is not None or kind in ZERO_WITHOUT_ROWS:
            value = f"coalesce({value}, {_literal(0 if missing is None else missing)})"
        else:
            return value
        return f"CASE WHEN {{known}} THEN {value} END"

    def _operand(self, operand: str | Calculation) -> str:
        named = self.view.feature(operand) if isinstance(operand, str) else operand
        assert named is not None
        return self.expression(named)

    def _score(self, calculation: Calculation) -> str:
        assert calculation.score is not None
        holds = {
            line.name: f"coalesce({self._leaf(Leaf('any', line, ()))}, 0) = 1"
            for line in calculation.score.of
        }
        lines = []
        for line in calculation.score.of:
            met = " AND ".join([holds[line.name], *(f"NOT {holds[name]}" for name in line.unless)])
            lines.append(f"CASE WHEN {met} THEN {line.points} ELSE 0 END")
        return f"CAST({' + '.join(lines)} AS {'BIGINT' if calculation.dtype == 'int' else 'DOUBLE'})"

    def _leaf(self, leaf: Leaf) -> str:
        kind, rows, _ = leaf
        column = f"t.{_quoted(rows.column)}" if rows.column else ""
        if kind == "most_frequent":
            return self._most_frequent(rows, column)
        if kind == "days_since":
            day = "max" if rows.occurrence == "last" else "min"
            return f"e.as_of - {self._aggregate(rows, f'{day}(t.day) {{filter}}')}"
        if kind in ("first", "last"):
            from e2i_dagster.tables import primary_key

            # Of one day the row whose key is first.
            order = f"(t.day - DATE '1970-01-01') * {1 if kind == 'first' else -1}"
            ordered = f"{{'day': {order}, 'key': t.{_quoted(primary_key(rows.table))}}}"
            return self._aggregate(rows, f"arg_min({column}, {ordered}) {{filter}}", f"{column} IS NOT NULL")
        sql = {
            "count": "count(*) {filter}",
            "any": f"CAST(count(*) {{filter}} >= {rows.at_least} AS BIGINT)",
            "distinct": f"count(DISTINCT {column}) {{filter}}",
            "sum": f"round(fsum({column}) {{filter}}, 9)",
            "mean": f"round(fsum({column}) {{filter}} / count({column}) {{filter}}, 9)",
            "min": f"min({column}) {{filter}}",
            "max": f"max({column}) {{filter}}",
            "slope": f"round(regr_slope({column}, t.day - e.as_of) {{filter}}, 9)",
        }
        return self._aggregate(rows, sql[kind])

    def _aggregate(self, rows: Rows, sql: str, *more: str) -> str:
        """The column of the pass over the table of ``rows`` that holds the aggregate; equal ones are made once."""
        made = self.passes.setdefault(rows.table, Pass(rows.table))
        asked = (sql, frozenset([*self.conditions(rows), *more]))
        alias = next((name for name, known in made.aggregates.items() if known == asked), None)
        if alias is None:
            alias = f"a{len(made.aggregates)}"
            made.aggregates[alias] = asked
            made.firsts.append(rows.within[0])
        return f"p_{rows.table}.{alias}"

    def conditions(self, rows: Rows) -> dict[str, str]:
        """What rows ``t`` must meet to count for an entity ``e``, as SQL; and what one that does not is."""
        view, table = self.view, rows.table
        of_patient = "patient_id" in view.keys
        found = {}
        on_journey = journey_keys(rows, view)
        if on_journey:
            self.journeys.setdefault(table, set()).update(on_journey.values())
        for key in keys_of(rows, view):
            if (on_row := key_column(table, key)) is not None:
                found[f"t.{on_row} = e.{key}"] = OTHERS
            if key in on_journey:
                found[f"t.journey_{on_journey[key]} = e.{key}"] = OTHERS
        if on_journey and of_patient:
            found["t.journey_known_on <= e.as_of + 1"] = LATER
        elif on_journey:
            found["t.journey_begin_known_on <= e.as_of"] = LATER
        if table == JOURNEYS:
            found["t.known_on <= e.as_of + 1" if of_patient else "t.begin_known_on <= e.as_of"] = LATER
            found["t.day <= e.as_of"] = LATER
        else:
            found["t.known_on <= e.as_of"] = LATER
        first, last = rows.within
        if first is not None:
            found[f"t.day > e.as_of - {-first}"] = "outside the window"
        if last is not None and last < -1:
            found[f"t.day <= e.as_of - {-last - 1}"] = "outside the window"
        if rows.conditions if rows.event_column or rows.codes or rows.where else ():
            marked = self.patterns.setdefault(table, [])
            place = next(
                (n for n, pattern in enumerate(marked) if pattern.conditions == rows.conditions), len(marked)
            )
            if place == len(marked):
                marked.append(rows)
            found[f"t.is_{place}"] = "not what is asked for"
        return found

    def _most_frequent(self, rows: Rows, column: str) -> str:
        """The value of most rows; of equally many the one used last, then by name."""
        name = f"f{len(self._frequent)}"
        met = " AND ".join([*self.conditions(rows), f"{column} IS NOT NULL"])
        self._frequent[name] = (
            f"SELECT e.row AS of_row, {column} AS value FROM entities e JOIN {rows.table}_dated t ON {met} "
            f"GROUP BY e.row, {column} QUALIFY row_number() OVER (PARTITION BY e.row "
            f"ORDER BY count(*) DESC, max(t.day) DESC, {column}) = 1"
        )
        return f"{name}.value"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: float | str) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def compute_view(
    view: str | FeatureView,
    entities: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    covered: Mapping[str, Coverage] = MappingProxyType({}),
    source_lag_days: int = 0,
) -> pd.DataFrame:
    """Values of one view for every row of ``entities``, from what was known at the end of ``as_of``.

    Args:
        view: the view or its name.
        entities: the view's keys and ``as_of`` (a day), each combination once. For views of a patient
            ``patient_journey_id`` may name the journey whose static columns count; without it that is
            the journey begun last by ``as_of``, or the first one if none has begun.
        tables: raw tables by name; only those that the view reads are looked at.
        covered: days that each table covers; all of them where nothing is said of a table.
        source_lag_days: days after its date from which a row without an arrival time is known.

    Returns:
        One row per row of ``entities``, in its order: keys, ``event_timestamp`` (the last microsecond
        of the ``as_of`` day, UTC, in microseconds) and the features with their dtypes.

    Raises:
        InputError: a key or ``as_of`` is missing or repeated; a table or column is missing.
    """
    import duckdb

    definition = view_named(view) if isinstance(view, str) else view
    asked = _checked_entities(definition, entities)
    statement = Statement(definition)
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.register("entities", entity_table(definition, asked))
        prepare(connection, statement, tables, source_lag_days, covered)
        values = connection.sql(statement.sql()).to_arrow_table().to_pandas(integer_object_nulls=True)
    for feature in definition.features:
        seen = observed(definition, feature, asked["as_of"], covered)
        values[feature.name] = values[feature.name].where(seen)
    result = asked[list(definition.keys)].astype("string[pyarrow]").reset_index(drop=True)
    result[TIMESTAMP] = end_of_day(asked["as_of"]).reset_index(drop=True)
    return pd.concat([result, conform_features(values, (definition,))], axis=1)


def compute_views(
    entities: Mapping[str, pd.DataFrame],
    tables: Mapping[str, pd.DataFrame],
    *,
    covered: Mapping[str, Coverage] = MappingProxyType({}),
    source_lag_days: int = 0,
) -> dict[str, pd.DataFrame]:
    """:func:`compute_view` for each view in ``entities`` (by view name)."""
    return {
        name: compute_view(name, frame, tables, covered=covered, source_lag_days=source_lag_days)
        for name, frame in entities.items()
    }


def observed(
    view: FeatureView, feature: Feature, as_of: pd.Series, covered: Mapping[str, Coverage]
) -> np.ndarray:
    """Whether the tables of ``feature`` cover its windows, those without a first day from the first covered one on."""
    import numpy as np

    days = pd.to_datetime(as_of).to_numpy().astype("datetime64[D]")
    seen = np.ones(len(days), dtype=bool)
    for table, (first, last) in view.windows(feature):
        known = covered.get(table, EVERY_DAY)
        until = days if last is None else days + (last + 1)
        if first is not None:
            seen &= known.covers(days + (first + 1), until)
        else:
            seen &= known.covers(until if known.start is None else np.datetime64(known.start), until)
    return seen


def prepare(
    connection: duckdb.DuckDBPyConnection,
    statement: Statement,
    tables: Mapping[str, pd.DataFrame],
    source_lag_days: int,
    covered: Mapping[str, Coverage],
) -> None:
    """Make the raw tables and their dated rows (``TABLE_dated``) known to ``connection``, for ``statement``.

    Dated rows have ``day``, ``known_on``, the flags ``is_0``, ``is_1``, ... of the statement's patterns and, where it
    needs them, the columns of their journey.
    """
    view = statement.view
    for name, columns in source_columns(view).items():
        if name not in tables:
            raise InputError(
                f"{view.name} reads the table {name}, which was not given. "
                f"Given: {', '.join(sorted(tables)) or 'none'}.",
                field=view.name,
                value=name,
                remedy="Give the table.",
            )
        rows = raw_columns(name, _with_own(view, name, tables[name]), (*columns, *_own_types(view, name)))
        _register(connection, name, rows, source_lag_days, covered.get(name, EVERY_DAY).start)
    for table in {
        *statement.passes,
        *(rows.table for marked in statement.patterns.values() for rows in marked),
    }:
        _mark(connection, table, statement)


def _register(
    connection: Any, name: str, rows: pa.Table, source_lag_days: int, data_start: dt.date | None
) -> None:
    """Make ``rows`` the table ``name``, with the day ``known_on`` where rows have a date or an arrival.

    One that is kept by month begins on ``data_start``. Journeys also get ``begin_known_on``, from which on others
    count the journey, not only its patient.
    """
    from e2i_dagster.tables import date_column

    dated_by = date_column(name)
    if dated_by is None and ARRIVAL not in rows.column_names:
        connection.register(name, rows)
        return
    connection.register(f"{name}_rows", rows)
    if dated_by is None:
        connection.execute(
            f"CREATE VIEW {name} AS SELECT *, coalesce({ARRIVAL}::DATE, DATE '0001-01-01') AS known_on, "
            f"greatest(journey_start_date, coalesce({ARRIVAL}::DATE, journey_start_date + {source_lag_days:d})) "
            f"AS begin_known_on FROM {name}_rows"
        )
        return
    known = f"{dated_by}::DATE + {source_lag_days:d}"
    if ARRIVAL in rows.column_names:
        known = f"coalesce({ARRIVAL}::DATE, {known})"
    connection.execute(
        f"CREATE VIEW {name} AS SELECT *, greatest({dated_by}::DATE, {known}) AS known_on FROM {name}_rows "
        f"WHERE {dated_by}::DATE >= DATE '{data_start or dt.date.min}'"
    )


def _mark(connection: duckdb.DuckDBPyConnection, table: str, statement: Statement) -> None:
    import narwhals as nw

    from e2i_dagster.cohorts.narwhals_plan import condition_truth

    relation = connection.table(table)
    patterns = statement.patterns.get(table, [])
    if patterns:
        kinds = _kinds(table, (column for rows in patterns for column in rows.columns))
        relation, coded = _with_codes(connection, table, patterns, kinds)
        flags = {}
        for place, rows in enumerate(patterns):
            truths = [
                nw.col(f"code_{coded.index(criterion)}")
                if criterion in coded
                else condition_truth(criterion, kinds).true
                for criterion in rows.conditions
            ]
            flags[f"is_{place}"] = reduce(lambda left, right: left & right, truths)
        relation = nw.from_native(relation).with_columns(**flags).to_native()
    relation.create_view(f"{table}_marked")
    dated_by = ROW_TABLES[table][1]
    columns, joined = f"r.*, r.{dated_by}::DATE AS day", ""
    if table in statement.journeys:
        wanted = sorted({*statement.journeys[table], "known_on", "begin_known_on"})
        read = ", ".join(f"j.{name} AS journey_{name}" for name in wanted)
        columns += f", {read}"
        joined = f" LEFT JOIN {JOURNEYS} j ON j.{JOURNEY} = r.{JOURNEY}"
    connection.execute(f"CREATE VIEW {table}_dated AS SELECT {columns} FROM {table}_marked r{joined}")


def _with_codes(
    connection: duckdb.DuckDBPyConnection, table: str, patterns: list[Rows], kinds: Mapping[str, Any]
) -> tuple[duckdb.DuckDBPyRelation, list[Criterion]]:
    """The rows of ``table`` with ``code_0``, ``code_1``, ...: whether each condition on codes holds; and these.

    Few cells of codes differ: each is read once, however many rows have it.
    """
    import narwhals as nw

    from e2i_dagster.cohorts.narwhals_plan import Source, condition_truth, with_drug_codes

    coded: list[Criterion] = []
    for criterion in (condition for rows in patterns for condition in rows.conditions):
        if criterion.code_system is not None and criterion not in coded:
            coded.append(criterion)
    columns, joined = ["r.*"], ""
    for column in dict.fromkeys(criterion.field for criterion in coded):
        name = f"{table}_{column}"
        asked = {
            f"code_{place}": criterion for place, criterion in enumerate(coded) if criterion.field == column
        }
        flags = {mark: condition_truth(criterion, kinds).true for mark, criterion in asked.items()}
        cells = nw.from_native(connection.table(table).select(f'"{column}"').distinct())
        read = with_drug_codes(Source(cells, kinds), asked.values()).frame
        read.select(column, **flags).to_native().create(name)
        columns += [f"coalesce({name}.{mark}, false) AS {mark}" for mark in flags]
        joined += f' LEFT JOIN {name} ON {name}."{column}" = r."{column}"'
    return connection.sql(f"SELECT {', '.join(columns)} FROM {table} r{joined}"), coded


def _kinds(table: str, columns: Iterable[str]) -> dict[str, Any]:
    """Kinds of raw columns in the words of the cohort language."""
    from e2i_dagster.tables import raw_table

    def kind(type_: Any) -> str:
        if isinstance(type_, sa.Boolean):
            return "boolean"
        if isinstance(type_, sa.Integer | sa.Numeric | sa.Float):
            return "number"
        return "date" if isinstance(type_, sa.Date | sa.DateTime) else "text"

    return {column: kind(raw_table(table).columns[column].type) for column in columns}


def _own_types(view: FeatureView, table: str) -> dict[str, Any]:
    """Columns of one's own that ``view`` takes values of, and their declared types."""
    found = (
        part for feature in view.features for part in view.parts(feature) if part.own_type and part.value
    )
    own = {str(part.value).partition(".")[2]: part.own_type for part in found}
    return own if table == OWN_TABLE else {}


def _with_own(view: FeatureView, table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the columns of one's own that ``view`` reads, typed as declared; null where not delivered."""
    own = _own_types(view, table)
    if not own:
        return frame
    from e2i_dagster.tables.frames import extra_frame
    from e2i_dagster.tables.own_columns import read_as

    given = extra_frame(frame).reindex(columns=list(own))
    return frame.assign(**{name: read_as(given[name], kind)[0] for name, kind in own.items()})


def end_of_day(days: pd.Series) -> pd.Series:
    """The last microsecond of each day as ``datetime64[us, UTC]``."""
    starts = pd.to_datetime(days).dt.normalize().dt.tz_localize("UTC")
    ends = (
        starts.dt.as_unit("us")
        + pd.Timedelta(days=1).as_unit("us")
        - pd.Timedelta(microseconds=1).as_unit("us")
    )
    return ends.astype("datetime64[us, UTC]")


def raw_columns(table: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> pa.Table:
    """``columns`` of a raw frame as an Arrow table with the types of the warehouse.

    Timestamps become UTC without zone, so that no time zone setting can move them.

    Raises:
        InputError: the frame lacks a column, or a column cannot be read as its type.
    """
    import pyarrow as pa

    from e2i_dagster.tables import raw_table

    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(
            f"{table}: the columns {', '.join(missing)} are missing, which features are computed from.",
            remedy="Deliver them, or map them in the import mapping.",
        )
    types = {column.name: column.type for column in raw_table(table).columns}
    arrays = {}
    for name in columns:
        try:
            arrays[name] = _as_arrow(frame[name], types[name]) if name in types else _own_array(frame[name])
        except (ValueError, TypeError, pa.ArrowInvalid):
            raise InputError(
                f"{table}.{name}: found {frame[name].dtype}, which cannot be read as {types[name]}.",
                remedy="Load the table again; loading checks the types.",
            ) from None
    return pa.table(arrays)


def _as_arrow(series: pd.Series, type_: Any) -> pa.Array:
    import pyarrow as pa

    if isinstance(type_, sa.DateTime):
        stamps = pd.to_datetime(series, utc=True).dt.tz_localize(None)
        return pa.Array.from_pandas(stamps, type=pa.timestamp("us"), safe=False)
    if isinstance(type_, sa.Date):
        days = pd.to_datetime(series).dt.normalize()
        return pa.Array.from_pandas(days, type=pa.timestamp("us"), safe=False).cast(pa.date32())
    if isinstance(type_, sa.Integer):
        return pa.Array.from_pandas(pd.to_numeric(series).astype("Int64"))
    if isinstance(type_, sa.Numeric | sa.Float):
        return pa.Array.from_pandas(series.astype("Float64"), type=pa.float64())
    if isinstance(type_, sa.Boolean):
        return pa.Array.from_pandas(series.astype("boolean"))
    return pa.Array.from_pandas(series.astype("string[pyarrow]"), type=pa.string())


def _own_array(series: pd.Series) -> pa.Array:
    """A column of one's own under its declared type: a number, a yes or no, or text."""
    numeric = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
    boolean = pd.api.types.is_bool_dtype(series)
    return _as_arrow(series, sa.Double() if numeric else sa.Boolean() if boolean else sa.Text())


def _checked_entities(view: FeatureView, entities: pd.DataFrame) -> pd.DataFrame:
    needed = [*view.keys, "as_of"]
    absent = [name for name in needed if name not in entities.columns]
    if absent:
        raise InputError(
            f"{view.name}: the entities lack {', '.join(absent)}.",
            field=absent[0],
            remedy=f"Give the columns {', '.join(needed)}.",
        )
    empty = int(entities[needed].isna().any(axis=1).sum())
    if empty:
        raise InputError(
            f"{view.name}: {empty} entities have no value in one of {', '.join(needed)}.",
            field=needed[0],
            remedy="Give each entity its keys and time.",
        )
    repeated = int(entities.duplicated(needed).sum())
    if repeated:
        raise InputError(
            f"{view.name}: {repeated} entities repeat the same {', '.join(needed)}.",
            field=needed[0],
            remedy="Give each entity once.",
        )
    return entities


def entity_table(view: FeatureView, entities: pd.DataFrame) -> pa.Table:
    """The entities as the statement reads them: ``row``, keys, ``as_of``; for patients ``patient_journey_id``."""
    import pyarrow as pa

    names = list(view.keys)
    columns = {name: _as_arrow(entities[name], sa.Text()) for name in names}
    if "patient_id" in names:
        journeys = (
            entities["patient_journey_id"]
            if "patient_journey_id" in entities.columns
            else pd.Series(pd.NA, index=entities.index, dtype="string[pyarrow]")
        )
        columns["patient_journey_id"] = _as_arrow(journeys, sa.Text())
    return pa.table(
        {
            "row": pa.array(range(len(entities)), pa.int64()),
            **columns,
            "as_of": _as_arrow(entities["as_of"], sa.Date()),
        }
    )


def conform_features(frame: pd.DataFrame, views: Iterable[FeatureView]) -> pd.DataFrame:
    """``frame`` with its feature columns in their declared dtypes; other columns stay as they are."""
    declared = dtypes(views)
    result = frame.copy()
    for name, dtype in declared.items():
        if name in result.columns:
            column = result[name]
            if dtype == "Int64" and column.dtype == object:
                column = pd.to_numeric(column.astype("Float64"))
            result[name] = column.astype(pd.api.types.pandas_dtype(dtype))
    return result
