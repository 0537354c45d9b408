"""Where a cohort is computed: pandas, DuckDB (Parquet files and relations), or Spark.

The plan is the same everywhere (:mod:`.plan`). Frames of pandas are brought into typed columns first;
files, relations and Spark frames are never read into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from e2i_dagster.cohorts.columns import Kind, TypedColumn, date_column, require_columns, typed_column
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.plan import (
    EVENT_DAY,
    JOURNEY,
    MASK,
    PATIENT,
    UNKNOWN_MASK,
    Source,
    cohort_plan,
)
from e2i_dagster.config.cohort import CohortDefinition

if TYPE_CHECKING:
    import duckdb
    import narwhals as nw

Engine = Literal["pandas", "duckdb"]
PERIOD_FIELDS = (PATIENT, "start_date", "end_date")
#: Columns that hold dates whatever a definition says of them.
_DATES = frozenset({EVENT_DAY, "start_date", "end_date", "first_observation_date", "last_observation_date"})
_KEYS = frozenset({PATIENT, JOURNEY})


@dataclass(frozen=True)
class Planned:
    """A plan that can be run, what it reads, and the counts of its keys."""

    rows: nw.LazyFrame
    records: int
    persons: int
    several_rows: bool
    connection: duckdb.DuckDBPyConnection | None


def planned(
    definition: CohortDefinition,
    patients: Any,
    events: Any = None,
    observation_periods: Any = None,
    *,
    data_end: date | None = None,
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
            f"Cohort {definition.key} has rules on events, but no events were given. Load the event tables, "
            "or give events=.",
        )
    connection = _connection([patients, events, observation_periods], engine)
    dates = {definition.index.after} if definition.index is not None and definition.index.after else set()
    if definition.index is None:
        dates.add(definition.temporal_requirements.index_date_field)
    source = _source(patients, definition.required_fields, connection, f"Cohort {definition.key}", dates)
    of_events = None
    if definition.reads_events:
        of_events = _source(
            events, definition.event_fields, connection, f"Cohort {definition.key}, events", set()
        )
        of_events = _dated(of_events)
    of_periods = None
    if observation_periods is not None:
        what = "The table observation_periods"
        of_periods = _source(observation_periods, PERIOD_FIELDS, connection, what, set())
    records, persons, several = _check_keys(source.frame)
    several = several or (definition.index is not None and definition.index.occurrence == "every")
    rows = cohort_plan(definition, source, of_events, of_periods, data_end=data_end, several_rows=several)
    return Planned(rows, records, persons, several, connection)


def collected(rows: nw.LazyFrame) -> pd.DataFrame:
    """The rows of a plan as a pandas frame, dates as ``datetime64[us]``."""
    frame = rows.collect(backend="pyarrow").to_arrow().to_pandas(types_mapper=_mapped)
    for name in frame.columns:
        if "date32" in str(frame[name].dtype):
            frame[name] = pd.to_datetime(frame[name]).astype("datetime64[us]")
    return frame


def histogram(rows: nw.LazyFrame) -> pd.DataFrame:
    """Index dates per (mask, unknown_mask): as many rows as there are combinations of failed rules."""
    import narwhals as nw

    return collected(rows.group_by(MASK, UNKNOWN_MASK).agg(nw.len().alias("records")))


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


def _mapped(arrow: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow):
        return pd.StringDtype("pyarrow")
    return pd.ArrowDtype(arrow) if pa.types.is_date(arrow) else None


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
            f"the frames are on several engines: {said}. Give all of them on one; pandas frames and Parquet "
            "files may be mixed.",
        )
    place = places["patients"]
    if engine is not None and place not in ("pandas", engine):
        raise CohortInputError(
            "CC_004",
            f"engine {engine} was asked for, but the frames are on {place}. Leave engine out: they are computed "
            "where they lie.",
        )


def _connection(sources: Iterable[Any], engine: Engine | None) -> duckdb.DuckDBPyConnection | None:
    given = [source for source in sources if source is not None]
    local = all(isinstance(source, (pd.DataFrame, str, Path)) for source in given)
    if not local or (engine == "pandas" and all(isinstance(source, pd.DataFrame) for source in given)):
        return None
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


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
        table, kinds = _typed(data, fields, dates)
        if connection is None:
            frame = nw.from_native(table.to_pandas(types_mapper=pd.ArrowDtype)).lazy()
        else:
            frame = nw.from_native(connection.from_arrow(table)).lazy()
        return Source(frame, kinds)
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
                "CC_005", f"{what}: column {name!r} must hold dates, but holds values of {kinds[name]}."
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
        f"{what}: column {name!r} holds values that cannot be compared ({dtype}); expected true/false, numbers, "
        "dates or texts. Give the column one type in the import mapping.",
    )


def _typed(data: pd.DataFrame, fields: Sequence[str], dates: set[str]) -> tuple[Any, dict[str, Kind]]:
    """The columns as an Arrow table of four types, whatever dtypes they arrived with."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    for name in fields:
        if name in _KEYS:
            columns[name] = pa.array(data[name].astype("string[pyarrow]"), type=pa.string())
            kinds[name] = "text"
            continue
        column = date_column(data[name], name) if name in _DATES | dates else typed_column(data[name], name)
        kinds[name] = column.kind
        columns[name] = _arrow(column)
    return pa.table(columns), kinds


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
            assert column.texts is not None
            texts = pa.array(column.texts, type=pa.string())
            return texts.take(pa.array(column.values, type=pa.int64(), mask=unknown))
        case _:
            return pa.nulls(len(column.values), type=pa.string())


def _dated(events: Source) -> Source:
    """Events by day; one without a date lies in no window."""
    import narwhals as nw

    day = nw.col(EVENT_DAY).cast(nw.Date)
    frame = events.frame.with_columns(day.alias(EVENT_DAY)).filter(~nw.col(EVENT_DAY).is_null())
    return Source(frame, events.kinds)


def _check_keys(frame: nw.LazyFrame) -> tuple[int, int, bool]:
    """Rows and persons; whether a person has several rows."""
    found = _ascending_keys(frame) or _distinct_keys(frame)
    for key, empty in ((PATIENT, found["no_patient"]), (JOURNEY, found["no_journey"])):
        if empty:
            raise CohortInputError(
                "CC_004", f"{empty:,} row(s) have no {key}. Load the patients again with their keys."
            )
    rows, persons, repeated = found["rows"], found["persons"], found["rows"] - found["journeys"]
    if repeated:
        raise CohortInputError(
            "CC_004",
            f"{repeated:,} row(s) repeat a patient_journey_id; expected one row per journey. "
            "Aggregate the patient frame to journeys first.",
        )
    return rows, persons, persons != rows


def _distinct_keys(frame: nw.LazyFrame) -> dict[str, int]:
    import narwhals as nw

    counts = frame.select(
        nw.len().alias("rows"),
        nw.col(PATIENT).n_unique().alias("persons"),
        nw.col(JOURNEY).n_unique().alias("journeys"),
        nw.col(PATIENT).null_count().alias("no_patient"),
        nw.col(JOURNEY).null_count().alias("no_journey"),
    )
    # A sum over no rows is null.
    return {name: 0 if pd.isna(value) else int(value) for name, value in collected(counts).iloc[0].items()}  # pyright: ignore[reportReturnType]


def _ascending_keys(frame: nw.LazyFrame) -> dict[str, int] | None:
    """The counts when DuckDB finds both keys strictly ascending, which proves them unique without a hash table.

    None when they are not, when a key is null, or on another engine.
    """
    relation = frame.to_native()
    if not hasattr(relation, "project"):
        return None
    before = relation.project(
        f"{PATIENT} AS p, lag({PATIENT}) OVER () AS p0, {JOURNEY} AS j, lag({JOURNEY}) OVER () AS j0"
    )
    counts = before.aggregate(
        "count(*), count(*) FILTER (WHERE p IS NULL OR j IS NULL OR p <= p0 OR j <= j0)"
    ).fetchall()
    rows, out_of_order = counts[0]
    if out_of_order:
        return None
    return {"rows": rows, "persons": rows, "journeys": rows, "no_patient": 0, "no_journey": 0}
