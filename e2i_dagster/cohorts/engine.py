"""Where a cohort is computed: pandas, DuckDB (Parquet files and relations), or Spark.

The plan is the same everywhere (:mod:`.narwhals_plan`). Frames of pandas are brought into typed columns first;
files, relations and Spark frames are never read into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from e2i_dagster.cohorts.attrition import PAST, Counts
from e2i_dagster.cohorts.columns import (
    Kind,
    TypedColumn,
    date_column,
    key_column,
    require_columns,
    typed_column,
)
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.moments import second_of
from e2i_dagster.cohorts.narwhals_plan import (
    EVENT_DAY,
    EVENT_SECOND,
    EVENT_TIME,
    JOURNEY,
    MASK,
    PATIENT,
    UNKNOWN_MASK,
    Source,
    cohort_plan,
)
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.tables.codes import EVENT_CODE_COLUMNS
from e2i_dagster.versions.coverage import Coverage

if TYPE_CHECKING:
    import duckdb
    import narwhals as nw

Engine = Literal["pandas", "duckdb"]
PERIOD_FIELDS = (PATIENT, "start_date", "end_date")
#: Columns that hold dates whatever a definition says of them.
_DATES = frozenset(
    {EVENT_DAY, EVENT_TIME, "start_date", "end_date", "first_observation_date", "last_observation_date"}
)
_KEYS = frozenset({PATIENT, JOURNEY})


@dataclass(frozen=True)
class Planned:
    """A plan that can be run, and the rows that it reads."""

    rows: nw.LazyFrame
    records: int
    several_rows: bool
    connection: duckdb.DuckDBPyConnection | None


def planned(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    observation_periods: Any = None,
    *,
    covered: Coverage,
    engine: Engine | None = None,
) -> Planned:
    """The plan of ``definition`` over its sources.

    Args:
        patients, events, observation_periods: pandas frames, paths of Parquet files, DuckDB relations, or
            Spark frames; all on one engine, except that pandas frames and paths may be mixed.
        engine: for pandas frames, where to compute; DuckDB by default.

    Raises:
        CohortInputError: CC_002 a column or the events are missing, CC_004 keys or values are wrong,
            CC_005 dates are no dates.
    """
    _on_one_engine(
        {"patients": patients, "events": events, "observation_periods": observation_periods}, engine
    )
    if definition.reads_events and events is None:
        raise CohortInputError(
            "CC_002",
            f"Cohort {definition.key} has rules on events, but no events were given.",
            remedy="Load the event tables, or give events=.",
        )
    connection = _connection([patients, events, observation_periods])
    dates = {definition.index.after} if definition.index is not None and definition.index.after else set()
    if definition.index is None:
        dates.add(definition.temporal_requirements.index_date_field)
    source = _source(patients, definition.required_fields, connection, f"Cohort {definition.key}", dates)
    of_events = None
    if definition.reads_events:
        of_events = _source(
            _with_code_columns(events, definition.event_fields, connection),
            definition.event_fields,
            connection,
            f"Cohort {definition.key}, events",
            set(),
        )
        of_events = _dated(of_events, covered)
    of_periods = None
    if observation_periods is not None:
        what = "The table observation_periods"
        of_periods = _source(observation_periods, PERIOD_FIELDS, connection, what, set())
    keys = _checked_keys(source.frame.to_native())
    several = keys.persons != keys.rows or (
        definition.index is not None and definition.index.occurrence == "every"
    )
    rows = cohort_plan(
        definition,
        source,
        of_events,
        of_periods,
        covered=covered,
        several_rows=several,
    )
    return Planned(rows, keys.rows, several, connection)


def counts_of_plan(rows: nw.LazyFrame, *, several_rows: bool) -> Counts:
    """What the attrition needs, counted where the rows are: no key of a person leaves the engine."""
    import narwhals as nw

    of_masks = rows.group_by(MASK, UNKNOWN_MASK).agg(nw.len().alias("records"))
    masks = _integers(of_masks.to_native(), MASK, UNKNOWN_MASK, "records")
    if not several_rows:
        return Counts.of_single(*masks)
    # Of each person's rows: see the attributes of Counts. DuckDB and Spark read the same SQL here.
    first = f"CASE WHEN {MASK} = 0 THEN {PAST} ELSE {MASK} & -{MASK} END"
    failed = _projected(rows.to_native(), PATIENT, MASK, UNKNOWN_MASK, f"{first} AS first_failed")
    reached = f"bit_or({UNKNOWN_MASK} & (first_failed | (first_failed - 1)))"
    alone = f"bit_or(CASE WHEN {MASK} = first_failed THEN {MASK} ELSE 0 END)"
    of_persons = _grouped(failed, [PATIENT], furthest="max(first_failed)", reached=reached, alone=alone)
    persons = ["furthest", "reached", "alone"]
    of_combinations = _grouped(of_persons, persons, persons="count(*)")
    return Counts(*masks, *_integers(of_combinations, *persons, "persons"))


def _projected(native: Any, *expressions: str) -> Any:
    return native.selectExpr(*expressions) if _on_spark(native) else native.project(", ".join(expressions))


def _grouped(native: Any, keys: list[str], **aggregates: str) -> Any:
    if _on_spark(native):
        from pyspark.sql.functions import expr

        return native.groupBy(*keys).agg(*(expr(sql).alias(name) for name, sql in aggregates.items()))
    named = (f"{sql} AS {name}" for name, sql in aggregates.items())
    return native.aggregate(", ".join([*keys, *named]), ", ".join(keys))


def _integers(native: Any, *names: str) -> tuple[Any, ...]:
    """Columns of a small result as arrays of int64."""
    import narwhals as nw

    table = nw.from_native(native).lazy().collect(backend="pyarrow").to_arrow()
    return tuple(table[name].to_numpy().astype("int64", copy=False) for name in names)


def _on_spark(native: Any) -> bool:
    return hasattr(native, "sparkSession")


def written_rows(
    rows: nw.LazyFrame, path: Path, connection: duckdb.DuckDBPyConnection | None
) -> nw.LazyFrame:
    """Write the rows as Parquet where they are computed; returns them as read back from there."""
    import narwhals as nw

    native = rows.to_native()
    if hasattr(native, "write_parquet"):
        native.write_parquet(str(path))
        import duckdb

        return nw.from_native((connection or duckdb).read_parquet(str(path))).lazy()
    native.write.mode("overwrite").parquet(str(path))
    return nw.from_native(native.sparkSession.read.parquet(str(path))).lazy()


def _on_one_engine(sources: dict[str, Any], engine: Engine | None) -> None:
    """Frames are joined where they lie: all of them in memory or in files, in DuckDB, or in Spark."""
    import narwhals as nw

    places = {
        name: "pandas"
        if isinstance(data, (pd.DataFrame, str, Path))
        else nw.from_native(data).implementation.name.lower()
        for name, data in sources.items()
        if data is not None
    }
    places = {name: "spark" if "spark" in place else place for name, place in places.items()}
    if len(set(places.values())) > 1:
        said = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise CohortInputError(
            "CC_004",
            f"the frames are on several engines: {said}.",
            remedy="Give all of them on one; pandas frames and Parquet files may be mixed.",
        )
    place = places["patients"]
    if engine is not None and place not in ("pandas", engine):
        raise CohortInputError(
            "CC_004",
            f"engine {engine} was asked for, but the frames are on {place}.",
            remedy="Leave engine out: they are computed where they lie.",
        )


def _connection(sources: Iterable[Any]) -> duckdb.DuckDBPyConnection | None:
    given = [source for source in sources if source is not None]
    local = all(isinstance(source, (pd.DataFrame, str, Path)) for source in given)
    if not local:
        return None
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _with_code_columns(
    events: Any, fields: Sequence[str], connection: duckdb.DuckDBPyConnection | None
) -> Any:
    """Events that carry one code, in ``code``, have it in the column of each system that is asked for."""
    import narwhals as nw

    if isinstance(events, (str, Path)):
        assert connection is not None
        events = connection.read_parquet(str(events))
    frame = nw.from_native(events)
    have = frame.collect_schema().names()
    wanted = [name for name in fields if name in EVENT_CODE_COLUMNS and name not in have]
    if not wanted or "code" not in have:
        return events
    return frame.with_columns(nw.col("code").alias(name) for name in wanted).to_native()


def _source(
    data: Any,
    fields: Sequence[str],
    connection: duckdb.DuckDBPyConnection | None,
    what: str,
    dates: set[str],
) -> Source:
    import narwhals as nw

    if isinstance(data, pd.DataFrame):
        require_columns(data, tuple(fields), what=what)
        assert connection is not None
        table, kinds = _typed(data, fields, dates)
        return Source(nw.from_native(connection.from_arrow(table)).lazy(), kinds)
    if isinstance(data, (str, Path)):
        assert connection is not None
        data = connection.read_parquet(str(data))
    frame = nw.from_native(data).lazy()
    schema = frame.collect_schema()
    require_columns(pd.DataFrame(columns=list(schema)), tuple(fields), what=what)
    kinds: dict[str, Kind] = {name: _kind_of(name, schema[name], what) for name in fields}
    for name in fields:
        if name in _DATES | dates and kinds[name] != "date":
            raise CohortInputError(
                "CC_005",
                f"{what}: column {name!r} must hold dates, but holds values of {kinds[name]}.",
                field=name,
                value=kinds[name],
                remedy="Give days as YYYY-MM-DD.",
            )
    return Source(frame.select(list(fields)), kinds)


def _kind_of(name: str, dtype: Any, what: str) -> Kind:
    import narwhals as nw

    if dtype == nw.Boolean:
        return "boolean"
    if dtype in (nw.Date, nw.Datetime):
        return "date"
    if dtype in (nw.String, nw.Categorical, nw.Enum):
        return "text"
    if dtype.is_numeric():
        return "number"
    raise CohortInputError(
        "CC_004",
        f"{what}: column {name!r} holds values that cannot be compared ({dtype}); expected true/false, "
        f"numbers, dates or texts.",
        remedy="Give the column one type in the import mapping.",
    )


def _typed(data: pd.DataFrame, fields: Sequence[str], dates: set[str]) -> tuple[Any, dict[str, Kind]]:
    """The columns as an Arrow table of four types, whatever dtypes they arrived with."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    for name in fields:
        if name in _KEYS:
            columns[name] = key_column(data[name])
            kinds[name] = "text"
            continue
        if name == EVENT_TIME:
            columns[name], kinds[name] = _timestamps(data[name]), "date"
            continue
        column = date_column(data[name], name) if name in _DATES | dates else typed_column(data[name], name)
        kinds[name] = column.kind
        columns[name] = _arrow(column)
    return pa.table(columns), kinds


def _timestamps(series: pd.Series) -> Any:
    """Timestamps in UTC to the microsecond.

    Raises:
        CohortInputError: CC_005, the column holds something else (their number).
    """
    import pyarrow as pa

    times = pd.to_datetime(series.astype(object), format="ISO8601", errors="coerce", utc=True)
    wrong = int((times.isna() & series.notna()).sum())
    if wrong:
        raise CohortInputError(
            "CC_005",
            f"column {EVENT_TIME!r} must hold timestamps, but {wrong:,} of {len(series):,} values are none "
            "(expected YYYY-MM-DDTHH:MM:SS).",
            field=EVENT_TIME,
            remedy="Correct them in the import mapping.",
        )
    return pa.array(times.dt.tz_localize(None), type=pa.timestamp("us"), from_pandas=True)


def _arrow(column: TypedColumn) -> Any:
    import pyarrow as pa

    unknown = ~column.known
    match column.kind:
        case "boolean":
            return pa.array(column.values, type=pa.bool_(), mask=unknown)
        case "number":
            return pa.array(column.values, type=pa.float64(), mask=unknown)
        case "date":
            return pa.array(column.values.astype("datetime64[D]"), type=pa.date32(), mask=unknown)
        case "text":
            texts = pa.array(column.texts, type=pa.string())
            return texts.take(pa.array(column.values, type=pa.int64(), mask=unknown))
        case _:
            return pa.nulls(len(column.values), type=pa.string())


def _dated(events: Source, covered: Coverage) -> Source:
    """Events by day; one without a date lies in no window, one outside the covered days was not observed."""
    import narwhals as nw

    day = nw.col(EVENT_DAY).cast(nw.Date)
    frame = events.frame.with_columns(day.alias(EVENT_DAY)).filter(~nw.col(EVENT_DAY).is_null())
    if EVENT_TIME in events.kinds:
        second = second_of(nw.col(EVENT_TIME), nw.col(EVENT_DAY))
        frame = frame.with_columns(second.alias(EVENT_SECOND))
    if covered.start is not None:
        frame = frame.filter(nw.col(EVENT_DAY) >= nw.lit(covered.start))
    if covered.end is not None:
        frame = frame.filter(nw.col(EVENT_DAY) <= nw.lit(covered.end))
    return Source(frame, events.kinds)


@dataclass(frozen=True)
class Keys:
    """How many rows, persons and journeys there are, and how many rows lack a key."""

    rows: int
    persons: int
    journeys: int
    no_patient: int
    no_journey: int


def count_keys(path: Path) -> Keys:
    """The keys of a Parquet file of patients that are known not to be in their order.

    Raises:
        CohortInputError: CC_004, a key is empty or a journey comes twice.
    """
    connection = _connection([path])
    assert connection is not None
    with connection:
        return _checked_keys(connection.read_parquet(str(path)), ordered=False)


def _checked_keys(native: Any, *, ordered: bool = True) -> Keys:
    """The keys by the cheapest proof; ``ordered``: they may be in ascending order."""
    keys = None
    if not _on_spark(native):
        keys = (_ascending_keys(native) if ordered else None) or _unlike_keys(native)
    keys = keys or _distinct_keys(native)
    for key, empty in ((PATIENT, keys.no_patient), (JOURNEY, keys.no_journey)):
        if empty:
            raise CohortInputError(
                "CC_004",
                f"{empty:,} row(s) have no {key}.",
                remedy="Load the patients again with their keys.",
            )
    repeated = keys.rows - keys.journeys
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} row(s) repeat a patient_journey_id; expected one row per journey.",
            field="patient_journey_id",
            remedy="Aggregate the patient frame to journeys first.",
        )
    return keys


def _distinct_keys(native: Any) -> Keys:
    import narwhals as nw

    counts = (
        nw.from_native(native)
        .lazy()
        .select(
            nw.len().alias("rows"),
            nw.col(PATIENT).n_unique().alias("persons"),
            nw.col(JOURNEY).n_unique().alias("journeys"),
            nw.col(PATIENT).null_count().alias("no_patient"),
            nw.col(JOURNEY).null_count().alias("no_journey"),
        )
    )
    found = counts.collect(backend="pyarrow").to_arrow().to_pylist()[0]
    # A sum over no rows is null.
    return Keys(**{name: int(value or 0) for name, value in found.items()})


def _unlike_keys(relation: duckdb.DuckDBPyRelation) -> Keys | None:
    """The counts when all keys differ by their hashes: then the keys differ, for less than comparing them.

    None when two hashes are the same, which proves nothing, or when a key is null.
    """
    counts = relation.aggregate(
        f"count(*), count({PATIENT}), count({JOURNEY}), "
        f"count(DISTINCT hash({PATIENT})), count(DISTINCT hash({JOURNEY}))"
    ).fetchall()
    rows, *others = counts[0]
    return Keys(rows, rows, rows, 0, 0) if set(others) == {rows} else None


def _ascending_keys(relation: duckdb.DuckDBPyRelation) -> Keys | None:
    """The counts when both keys are strictly ascending, which proves them unique without a hash table.

    None when they are not, or when a key is null.
    """
    before = relation.project(
        f"{PATIENT} AS p, lag({PATIENT}) OVER () AS p0, {JOURNEY} AS j, lag({JOURNEY}) OVER () AS j0"
    )
    counts = before.aggregate(
        "count(*), count(*) FILTER (WHERE p IS NULL OR j IS NULL OR p <= p0 OR j <= j0)"
    ).fetchall()
    rows, out_of_order = counts[0]
    return None if out_of_order else Keys(rows, rows, rows, 0, 0)
