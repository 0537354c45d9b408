"""Writing drift reports to the warehouse and reading what is new since a sensor last looked."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from e2i_dagster.config.drift_monitoring import SEVERITIES, Severity
from e2i_dagster.monitoring.drift import DriftReport
from e2i_dagster.monitoring.retraining import DriftSummary
from e2i_dagster.tables.description.monitoring import ml_drift_history, ml_monitoring_runs


def record_drift(connection: sa.Connection, report: DriftReport, run_id: str) -> None:
    """Enter ``report`` into ``ml_drift_history`` (a row per feature) and ``ml_monitoring_runs``."""
    if report.features:
        connection.execute(
            ml_drift_history.insert(), [{**row, "run_id": run_id} for row in report.to_record()]
        )
    connection.execute(
        ml_monitoring_runs.insert().values(
            scope=report.scope,
            day=report.day,
            model_id=report.model_id,
            features_tested=len(report.tested),
            features_skipped=len(report.features) - len(report.tested),
            worst_severity=report.worst,
            worst_features=worst_features(report),
            composite_score=report.composite_score,
            run_id=run_id,
        )
    )


def worst_features(report: DriftReport, most: int = 5) -> list[str]:
    """Names of the features with a severity, the most changed first."""
    changed = [feature for feature in report.tested if feature.severity != "none"]
    changed.sort(key=lambda feature: (-SEVERITIES.index(feature.severity), -(feature.psi or 0.0)))
    return [feature.name for feature in changed[:most]]


def summaries_after(
    connection: sa.Connection, after: dt.datetime | None
) -> list[tuple[dt.datetime, Severity, DriftSummary]]:
    """Drift reports measured after ``after``, oldest first: when, worst severity, summary."""
    table = ml_monitoring_runs
    query = sa.select(table).order_by(table.c.created_at)
    if after is not None:
        query = query.where(table.c.created_at > after)
    return [
        (
            row["created_at"],
            row["worst_severity"],
            DriftSummary(
                scope=row["scope"],
                day=row["day"],
                model_id=row["model_id"],
                run_id=row["run_id"],
                composite_score=row["composite_score"],
                worst_features=tuple(row["worst_features"]),
            ),
        )
        for row in connection.execute(query).mappings()
    ]
