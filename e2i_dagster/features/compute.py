"""Feature values as of a day: one DuckDB statement per view over the raw tables.

Each statement sees only the columns that :mod:`e2i_dagster.config.feature_views` declares for its
view (no other column is handed to DuckDB) and joins rows known at the end of the ``as_of`` day: a
dated row is known from its arrival (``source_timestamp``) where that is on record, else so many days
after its date as the source needs to deliver, and never before its date. Windows go by the date. The
patient's own row in ``patient_journeys`` counts when it had arrived by the day after ``as_of``, the day on
which the values are used: it is the row that makes the patient known, and sources write it on the index
date. One without an arrival time counts as always known. A
window of n days is the n days that end with ``as_of``; with ``as_of`` the day before the index date it
is ``[index - n, index - 1]``. Means are rounded to nine decimals, so that their
digest does not depend on the order in which rows are added.

Counts are 0 where an entity is known and has no such row, and null where the entity is unknown (a
patient without a journey, a professional without a profile). A feature over a window of which its tables do not
cover every day (it reaches before the first one, or into a month that was never loaded) is null for everybody: what
happened then is unknown. So is a feature of what is on record where the days from the first covered one on are not
all covered; rows dated before that one are no part of the record.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.feature_views import (
    ARRIVAL,
    TIMESTAMP,
    Feature,
    FeatureViewDefinition,
    dtypes,
    source_columns,
    view_named,
)
from e2i_dagster.errors import InputError
from e2i_dagster.versions.coverage import EVERY_DAY, Coverage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_PATIENT_SQL = """
WITH journey AS (
    SELECT e.row, j.*
    FROM entities e
    JOIN patient_journeys j ON j.patient_id = e.patient_id AND j.known_on <= e.as_of + 1
    QUALIFY row_number() OVER (
        PARTITION BY e.row
        ORDER BY coalesce(j.patient_journey_id = e.patient_journey_id, false) DESC,
                 coalesce(j.journey_start_date <= e.as_of, false) DESC,
                 CASE WHEN j.journey_start_date <= e.as_of THEN j.journey_start_date END DESC,
                 j.journey_start_date, j.patient_journey_id
    ) = 1
), care AS (
    SELECT e.row,
        count(*) AS events,
        count(*) FILTER (t.event_type = 'prescription') AS prescriptions,
        count(*) FILTER (t.event_type = 'consultation') AS consultations,
        count(*) FILTER (t.event_type = 'lab_test') AS lab_tests,
        min(t.event_date) FILTER (t.event_type = 'diagnosis') AS diagnosed,
        max(t.event_date) AS last_event,
        coalesce(bool_or(t.event_type = 'hospitalization') FILTER (t.event_date > e.as_of - 365), false)::BIGINT
        + coalesce(bool_or(t.event_type = 'procedure') FILTER (t.event_date > e.as_of - 365), false)::BIGINT
        + coalesce(
            bool_or(t.event_type = 'prescription' AND t.event_subtype = 'switch')
                FILTER (t.event_date > e.as_of - 365), false)::BIGINT
        + (count(*) FILTER (t.event_type = 'lab_test' AND t.event_date > e.as_of - 365) >= 3)::BIGINT
            AS risk_factors
    FROM entities e
    JOIN treatment_events t ON t.patient_id = e.patient_id AND t.known_on <= e.as_of
    GROUP BY e.row
)
SELECT e.row,
    j.age_at_diagnosis, j.gender, j.insurance_type, j.geographic_region, j.disease_severity, j.academic_hcp,
    e.as_of - c.diagnosed AS days_since_diagnosis,
    CASE WHEN known THEN coalesce(c.events, 0) END AS treatment_count,
    CASE WHEN known THEN coalesce(c.prescriptions, 0) END AS prior_prescriptions,
    CASE WHEN known THEN coalesce(c.consultations, 0) END AS prior_consultations,
    CASE WHEN known THEN coalesce(c.lab_tests, 0) END AS prior_lab_tests,
    e.as_of - c.last_event AS days_since_last_event,
    CASE WHEN known THEN coalesce(c.risk_factors, 0) END AS risk_factors
FROM (SELECT e.*, j.row IS NOT NULL AS known FROM entities e LEFT JOIN journey j USING (row)) e
LEFT JOIN journey j USING (row)
LEFT JOIN care c USING (row)
"""

_ENGAGEMENT_SQL = """
WITH contact AS (
    SELECT e.row, e.as_of, c.engagement_date, c.channel, c.quality_score, c.duration_minutes
    FROM entities e
    JOIN patient_journeys j ON j.patient_id = e.patient_id AND j.known_on <= e.as_of + 1
    JOIN engagement_events c
        ON c.patient_journey_id = j.patient_journey_id AND c.known_on <= e.as_of
), summary AS (
    SELECT row,
        count(*) FILTER (engagement_date > as_of - 90) AS recent_touches,
        max(quality_score) FILTER (engagement_date > as_of - 180) AS best_contact_quality,
        round(fsum(quality_score) FILTER (engagement_date > as_of - 180)
            / count(quality_score) FILTER (engagement_date > as_of - 180), 9) AS mean_contact_quality,
        count(*) FILTER (engagement_date > as_of - 180) AS contacts,
        round(fsum(duration_minutes) FILTER (engagement_date > as_of - 180), 9) AS minutes,
        max(engagement_date) AS last_contact
    FROM contact GROUP BY row
), preferred AS (
    SELECT row, channel
    FROM (
        SELECT row, channel, count(*) AS uses, max(engagement_date) AS last_use
        FROM contact WHERE channel IS NOT NULL AND engagement_date > as_of - 365
        GROUP BY row, channel
    )
    QUALIFY row_number() OVER (PARTITION BY row ORDER BY uses DESC, last_use DESC, channel) = 1
)
SELECT e.row,
    CASE WHEN e.known THEN coalesce(s.recent_touches, 0) END AS recent_touches,
    s.best_contact_quality,
    s.mean_contact_quality,
    CASE WHEN e.known AND coalesce(s.contacts, 0) = 0 THEN 0.0 ELSE s.minutes END AS contact_minutes,
    e.as_of - s.last_contact AS days_since_last_contact,
    p.channel AS channel_preferences
FROM (
    SELECT *, EXISTS (
        SELECT 1 FROM patient_journeys j WHERE j.patient_id = e.patient_id AND j.known_on <= e.as_of + 1
    ) AS known
    FROM entities e
) e
LEFT JOIN summary s USING (row)
LEFT JOIN preferred p USING (row)
"""

_TRIGGER_SQL = """
WITH alert AS (
    SELECT e.row, e.as_of, t.trigger_timestamp::DATE AS day, t.priority, t.confidence_score
    FROM entities e
    JOIN triggers t ON t.patient_id = e.patient_id AND t.known_on <= e.as_of
), summary AS (
    SELECT row,
        count(*) FILTER (day > as_of - 180) AS triggers,
        count(*) FILTER (day > as_of - 180 AND priority IN ('critical', 'high')) AS urgent,
        round(fsum(confidence_score) FILTER (day > as_of - 180)
            / count(confidence_score) FILTER (day > as_of - 180), 9) AS trigger_confidence,
        max(day) AS last_trigger
    FROM alert GROUP BY row
)
SELECT e.row,
    CASE WHEN e.known THEN coalesce(s.triggers, 0) END AS triggers_180d,
    CASE WHEN e.known THEN coalesce(s.urgent, 0) END AS urgent_triggers_180d,
    s.trigger_confidence,
    e.as_of - s.last_trigger AS days_since_last_trigger
FROM (
    SELECT *, EXISTS (
        SELECT 1 FROM patient_journeys j WHERE j.patient_id = e.patient_id AND j.known_on <= e.as_of + 1
    ) AS known
    FROM entities e
) e
LEFT JOIN summary s USING (row)
"""

_HCP_SQL = """
WITH begun AS (
    SELECT e.row, e.as_of, j.patient_journey_id, j.patient_id, j.journey_start_date
    FROM entities e
    JOIN patient_journeys j
        ON j.hcp_id = e.hcp_id AND j.journey_start_date <= e.as_of AND j.begin_known_on <= e.as_of
), volume AS (
    SELECT row, count(*) AS journeys, count(DISTINCT patient_id) AS patients,
        count(*) FILTER (journey_start_date > as_of - 365) AS recent
    FROM begun GROUP BY row
), contact AS (
    SELECT e.row, e.as_of, c.patient_journey_id, c.engagement_date
    FROM entities e
    JOIN engagement_events c
        ON c.hcp_id = e.hcp_id AND c.known_on <= e.as_of AND c.engagement_date > e.as_of - 180
), contacts AS (
    SELECT row, count(*) FILTER (engagement_date > as_of - 90) AS recent FROM contact GROUP BY row
), reached AS (
    SELECT b.row, count(DISTINCT b.patient_journey_id) AS journeys
    FROM begun b JOIN contact c ON c.row = b.row AND c.patient_journey_id = b.patient_journey_id
    GROUP BY b.row
), scripts AS (
    SELECT e.row, count(*) AS prescriptions
    FROM entities e
    JOIN treatment_events t
        ON t.hcp_id = e.hcp_id AND t.known_on <= e.as_of AND t.event_date > e.as_of - 180
        AND t.event_type = 'prescription'
    GROUP BY e.row
)
SELECT e.row, h.specialty, h.practice_type,
    CASE WHEN h.hcp_id IS NOT NULL THEN coalesce(v.recent, 0) END AS patient_volume,
    CASE WHEN h.hcp_id IS NOT NULL THEN coalesce(v.patients, 0) END AS total_patients,
    round(coalesce(r.journeys, 0) / nullif(v.journeys, 0), 9) AS engagement_rate,
    CASE WHEN h.hcp_id IS NOT NULL THEN coalesce(c.recent, 0) END AS hcp_contacts_90d,
    CASE WHEN h.hcp_id IS NOT NULL THEN coalesce(s.prescriptions, 0) END AS hcp_prescriptions_180d
FROM entities e
LEFT JOIN hcp_profiles h ON h.hcp_id = e.hcp_id
LEFT JOIN volume v ON v.row = e.row
LEFT JOIN contacts c ON c.row = e.row
LEFT JOIN reached r ON r.row = e.row
LEFT JOIN scripts s ON s.row = e.row
"""

_MARKET_SQL = """
WITH prescription AS (
    SELECT j.geographic_region AS region, t.brand, t.patient_id, t.event_date,
        greatest(t.known_on, j.known_on) AS known_on
    FROM treatment_events t JOIN patient_journeys j USING (patient_journey_id)
    WHERE t.event_type = 'prescription'
), contact AS (
    SELECT j.geographic_region AS region, c.brand, c.engagement_date,
        greatest(c.known_on, j.known_on) AS known_on
    FROM engagement_events c JOIN patient_journeys j USING (patient_journey_id)
), scripts AS (
    SELECT e.row,
        count(*) AS prescriptions,
        count(*) FILTER (p.brand = e.brand) AS own,
        count(DISTINCT p.patient_id) FILTER (p.brand = e.brand) AS patients
    FROM entities e
    JOIN prescription p
        ON p.region = e.region AND p.known_on <= e.as_of AND p.event_date > e.as_of - 90
    GROUP BY e.row
), contacts AS (
    SELECT e.row, count(*) AS contacts
    FROM entities e
    JOIN contact c
        ON c.region = e.region AND c.brand = e.brand
        AND c.known_on <= e.as_of AND c.engagement_date > e.as_of - 90
    GROUP BY e.row
), reported AS (
    SELECT e.row, m.value AS share
    FROM entities e
    JOIN business_metrics m
        ON m.brand = e.brand AND m.region = e.region AND m.metric_type = 'market_share'
        AND m.value IS NOT NULL AND m.known_on <= e.as_of
    QUALIFY row_number() OVER (PARTITION BY e.row ORDER BY m.metric_date DESC, m.metric_id) = 1
)
SELECT e.row,
    coalesce(s.own, 0) AS brand_prescriptions_90d,
    coalesce(s.patients, 0) AS brand_patients_90d,
    round(s.own / nullif(s.prescriptions, 0), 9) AS brand_share_90d,
    coalesce(c.contacts, 0) AS brand_contacts_90d,
    r.share AS reported_market_share
FROM entities e
LEFT JOIN scripts s ON s.row = e.row
LEFT JOIN contacts c ON c.row = e.row
LEFT JOIN reported r ON r.row = e.row
"""

_STATEMENTS = {
    "patient_features": _PATIENT_SQL,
    "engagement_features": _ENGAGEMENT_SQL,
    "trigger_features": _TRIGGER_SQL,
    "hcp_features": _HCP_SQL,
    "market_features": _MARKET_SQL,
}


def compute_view(
    view: str | FeatureViewDefinition,
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
        tables: raw tables by name; only those that the view declares are read.
        covered: days that each table covers; all of them where nothing is said of a table.
        source_lag_days: days after its date from which a row without an arrival time is known.

    Returns:
        One row per row of ``entities``, in its order: keys, ``event_timestamp`` (the last microsecond
        of the ``as_of`` day, UTC, in microseconds) and the features with their declared dtypes.

    Raises:
        ConfigError: a declared source column is known only at the time of the extract.
        InputError: a key or ``as_of`` is missing or repeated; a table or column is missing.
    """
    import duckdb

    definition = view_named(view) if isinstance(view, str) else view
    asked = _checked_entities(definition, entities)
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.register("entities", _entity_table(definition, asked))
        for name, columns in source_columns(definition).items():
            if name not in tables:
                raise InputError(
                    f"{definition.name} reads the table {name}, which was not given. "
                    f"Given: {', '.join(sorted(tables)) or 'none'}.",
                    field=definition.name,
                    value=name,
                    remedy="Give the table.",
                )
            rows = raw_columns(name, tables[name], columns)
            _register(connection, name, rows, source_lag_days, covered.get(name, EVERY_DAY).start)
        found = connection.sql(f"{_STATEMENTS[definition.name]} ORDER BY e.row").to_arrow_table()
    values = found.select(list(definition.feature_names)).to_pandas()
    as_of = pd.to_datetime(asked["as_of"]).to_numpy().astype("datetime64[D]")
    for feature in definition.features:
        values[feature.name] = values[feature.name].where(_seen(feature, as_of, covered))
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


def _seen(feature: Feature, as_of: np.ndarray, covered: Mapping[str, Coverage]) -> np.ndarray:
    """Whether the tables of ``feature`` cover its window, or the record from its first day on."""
    import numpy as np

    from e2i_dagster.tables import date_column

    seen = np.ones(len(as_of), dtype=bool)
    for table in {source.split(".", 1)[0] for source in feature.sources} & set(covered):
        if feature.window_days is not None:
            seen &= covered[table].covers(as_of - feature.window_days + 1, as_of)
        elif date_column(table) is not None:
            start = covered[table].start
            seen &= covered[table].covers(as_of if start is None else np.datetime64(start), as_of)
    return seen


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
        known = f"coalesce({ARRIVAL}::DATE, DATE '0001-01-01') AS known_on"
        if "journey_start_date" in rows.column_names:
            known += (
                f", coalesce({ARRIVAL}::DATE, journey_start_date + {source_lag_days:d}) AS begin_known_on"
            )
        connection.execute(f"CREATE VIEW {name} AS SELECT *, {known} FROM {name}_rows")
        return
    known = f"{dated_by}::DATE + {source_lag_days:d}"
    if ARRIVAL in rows.column_names:
        known = f"coalesce({ARRIVAL}::DATE, {known})"
    connection.execute(
        f"CREATE VIEW {name} AS SELECT *, greatest({dated_by}::DATE, {known}) AS known_on FROM {name}_rows "
        f"WHERE {dated_by}::DATE >= DATE '{data_start or dt.date.min}'"
    )


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
    types = raw_table(table).columns
    arrays = {}
    for name in columns:
        try:
            arrays[name] = _as_arrow(frame[name], types[name].type)
        except (ValueError, TypeError, pa.ArrowInvalid):
            raise InputError(
                f"{table}.{name}: found {frame[name].dtype}, which cannot be read as {types[name].type}.",
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


def _checked_entities(view: FeatureViewDefinition, entities: pd.DataFrame) -> pd.DataFrame:
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


def _entity_table(view: FeatureViewDefinition, entities: pd.DataFrame) -> pa.Table:
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


def conform_features(
    frame: pd.DataFrame, views: tuple[FeatureViewDefinition, ...] | None = None
) -> pd.DataFrame:
    """``frame`` with its feature columns in their declared dtypes; other columns stay as they are."""
    declared = dtypes() if views is None else dtypes(views)
    result = frame.copy()
    for name, dtype in declared.items():
        if name in result.columns:
            column = result[name]
            if dtype == "Int64" and column.dtype == object:
                column = pd.to_numeric(column.astype("Float64"))
            result[name] = column.astype(pd.api.types.pandas_dtype(dtype))
    return result
