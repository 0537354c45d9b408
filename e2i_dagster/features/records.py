"""What the feature stage enters in the warehouse: views, materializations, freshness, statistics.

Each function writes inside the caller's transaction.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feast_materialization import FreshnessLimits
from e2i_dagster.database.upsert import upsert
from e2i_dagster.features.freshness import FreshnessReport, freshness
from e2i_dagster.features.selection import FeatureSelection
from e2i_dagster.features.snapshots import FeatureFiles
from e2i_dagster.features.statistics import FeatureStatistics
from e2i_dagster.features.store import MaterializationReport
from e2i_dagster.tables.description.features import (
    ml_feast_feature_freshness,
    ml_feast_feature_views,
    ml_feast_materialization_jobs,
    ml_feature_store,
)
from e2i_dagster.versions import ledger

#: The stage that puts features online; its partitions are the scopes, each a Feast project.
ONLINE_STAGE = "online_features"


def record_views(connection: sa.Connection, project: str, files: FeatureFiles) -> None:
    """Enter the applied version of every view; ``applied_at`` moves only when the version changes."""
    rows = [
        {
            "id": _view_id(project, view.name),
            "name": view.name,
            "project": project,
            "description": view.description,
            "entity_join_keys": list(view.keys),
            "features": [
                {"name": feature.name, "dtype": feature.dtype, "meaning": feature.description}
                for feature in view.features
            ],
            "feature_count": len(view.features),
            "source_type": "parquet",
            "source_path": files.of(view.name).path,
            "source_digest": files.of(view.name).digest,
            "source_rows": files.of(view.name).rows,
        }
        for view in files.views
    ]
    table = ml_feast_feature_views
    applied_at = sa.case(
        (table.c.source_digest == insert(table).excluded.source_digest, table.c.applied_at),
        else_=sa.func.now(),
    )
    connection.execute(upsert(table, rows[0], change={"applied_at": applied_at}), rows)


def record_materialization(
    connection: sa.Connection, report: MaterializationReport, *, run_id: str | None = None
) -> None:
    """Enter one job per view. The views must be recorded."""
    connection.execute(
        sa.insert(ml_feast_materialization_jobs),
        [
            {
                "feature_view_id": _view_id(report.project, view.view),
                "feature_view_name": view.view,
                "source_digest": report.files.of(view.view).digest,
                "start_time": view.start,
                "end_time": view.end,
                "rows_materialized": view.rows,
                "online_entities": view.online_entities,
                "duration_seconds": view.seconds,
                "started_at": view.started_at,
                "completed_at": view.completed_at,
                "run_id": run_id,
            }
            for view in report.views
        ],
    )


def last_materializations(connection: sa.Connection, project: str) -> dict[str, dt.datetime]:
    """When each view of ``project`` was last materialized; views never materialized are absent."""
    jobs, views = ml_feast_materialization_jobs, ml_feast_feature_views
    found = connection.execute(
        sa.select(jobs.c.feature_view_name, sa.func.max(jobs.c.completed_at))
        .join(views, views.c.id == jobs.c.feature_view_id)
        .where(views.c.project == project)
        .group_by(jobs.c.feature_view_name)
    )
    return {name: completed for name, completed in found}


def watch_freshness(
    connection: sa.Connection, project: str, limits: FreshnessLimits, now: dt.datetime
) -> tuple[FreshnessReport, bool] | None:
    """How long ago the online features of ``project`` were made or found up to date, and whether that is news.

    A view counts from its last materialization, or from the last run that had nothing newer to put online. The
    report is entered when the status of a view is not the one that was entered last.

    Returns:
        None when no view of the project was applied yet.
    """
    views = ml_feast_feature_views
    if connection.scalar(sa.select(views.c.id).where(views.c.project == project).limit(1)) is None:
        return None
    completed = last_materializations(connection, project)
    looked = [
        state.at
        for state in ledger.states(connection, ONLINE_STAGE)
        if state.partition == project and state.state in ("executed", "reused")
    ]
    confirmed = {name: max([at, *(moment for moment in looked if moment)]) for name, at in completed.items()}
    report = freshness(confirmed, limits, now)
    news = {view.view: view.status for view in report.views} != _last_statuses(connection, project)
    if news:
        record_freshness(connection, project, report)
    return report, news


def _last_statuses(connection: sa.Connection, project: str) -> dict[str, str]:
    entered, views = ml_feast_feature_freshness, ml_feast_feature_views
    found = connection.execute(
        sa.select(entered.c.feature_view_name, entered.c.freshness_status)
        .join(views, views.c.id == entered.c.feature_view_id)
        .where(views.c.project == project)
        .ext(distinct_on(entered.c.feature_view_name))
        .order_by(entered.c.feature_view_name, entered.c.id.desc())
    )
    return {name: status for name, status in found}


def record_freshness(connection: sa.Connection, project: str, report: FreshnessReport) -> None:
    """Enter one line per view. The views must be recorded."""
    connection.execute(
        sa.insert(ml_feast_feature_freshness),
        [
            {
                "feature_view_id": _view_id(project, view.view),
                "feature_view_name": view.view,
                "recorded_at": report.at,
                "last_materialization_time": view.last_materialization,
                "staleness_seconds": view.age_seconds,
                "freshness_status": view.status,
                "staleness_threshold_seconds": report.warn_after_seconds,
                "critical_threshold_seconds": report.stale_after_seconds,
            }
            for view in report.views
        ],
    )


def record_features(
    connection: sa.Connection,
    scope: str,
    statistics: Sequence[FeatureStatistics],
    selection: FeatureSelection,
    *,
    data_digest: str,
) -> None:
    """Enter every feature of the training frame with its statistics and whether it was selected.

    Args:
        connection: inside a transaction.
        scope: the scope; its earlier rows are replaced.
        statistics: over training rows.
        selection: what :func:`~e2i_dagster.features.selection.select_features` decided.
        data_digest: digest of the feature files.
    """
    declared = {feature.name: (view, feature) for view in feature_views() for feature in view.features}
    reasons = {drop.feature: drop.reason for drop in selection.dropped}
    connection.execute(sa.delete(ml_feature_store).where(ml_feature_store.c.scope == scope))
    connection.execute(
        sa.insert(ml_feature_store),
        [
            {
                "scope": scope,
                "feature_name": item.feature,
                "feature_group": item.view,
                "feature_type": item.dtype,
                "description": feature.description,
                "unit": feature.unit,
                "source_columns": list(view.sources(feature)),
                "training_statistics": item.model_dump(exclude={"view", "feature", "dtype"}),
                "data_digest": data_digest,
                "selected": item.feature in selection.kept,
                "selection_reason": reasons.get(item.feature),
            }
            for item in statistics
            for view, feature in [declared[item.feature]]
        ],
    )


def _view_id(project: str, view: str) -> str:
    return f"{project}.{view}"
