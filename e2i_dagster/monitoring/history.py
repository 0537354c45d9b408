"""Writing reports to the warehouse, reading them again, and what a sensor has not seen yet."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from e2i_dagster.config.drift_monitoring import SEVERITIES
from e2i_dagster.monitoring.drift_report import DriftReport
from e2i_dagster.monitoring.performance import PerformanceReport
from e2i_dagster.monitoring.retraining import Evidence, alarm_level
from e2i_dagster.tables.description.monitoring import (
    ml_drift_history,
    ml_monitoring_alerts,
    ml_monitoring_runs,
    ml_performance_history,
)

#: Days in which an alert about data is taken for the cause of drift.
_CAUSE_DAYS = 7


def record_performance(connection: sa.Connection, report: PerformanceReport, run_id: str) -> None:
    """Enter ``report`` into ``ml_performance_history``, a row per window with predictions.

    A window of which the newest row of that day says the same already is not entered again.
    """
    history = ml_performance_history
    entered = connection.execute(
        sa.select(history)
        .where(history.c.scope == report.scope, history.c.day == report.day)
        .order_by(history.c.created_at)
    ).mappings()
    newest = {_window_of(row): row for row in entered}
    rows = [
        {**row, "run_id": run_id}
        for row in report.to_record()
        if (last := newest.get(_window_of(row))) is None or row != {name: last[name] for name in row}
    ]
    if rows:
        connection.execute(ml_performance_history.insert(), rows)


def _window_of(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return row["model_id"], row["metric"], row["first_day"], row["last_day"]


def record_drift(
    connection: sa.Connection, report: DriftReport, performance: PerformanceReport, run_id: str
) -> None:
    """Enter ``report`` into ``ml_drift_history`` (a row per feature), and both into ``ml_monitoring_runs``."""
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
            worst_severity=alarm_level(report, performance),
            worst_features=worst_features(report),
            composite_score=report.composite_score,
            findings=[*data_findings(connection, report.scope, report.day), *report.findings],
            basis=performance.basis or "",
            metric=performance.metric,
            loss=performance.loss,
            loss_severity=performance.severity,
            concept_drift=performance.concept_drift,
            run_id=run_id,
        )
    )


def data_findings(connection: sa.Connection, scope: str, day: dt.date) -> list[str]:
    """Alerts about data of the week up to ``day``: loads and quality first, then features of ``scope``.

    They come before drift as its cause: a broken delivery looks like other patients.
    """
    alerts = ml_monitoring_alerts
    end = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), dt.UTC)
    found = connection.execute(
        sa.select(alerts.c.title, alerts.c.partition, alerts.c.subject)
        .where(
            alerts.c.alert_type == "data_quality",
            alerts.c.updated_at >= end - dt.timedelta(days=_CAUSE_DAYS + 1),
            alerts.c.updated_at < end,
            alerts.c.severity.in_(SEVERITIES[SEVERITIES.index("medium") :]),
        )
        .order_by(alerts.c.subject == scope, alerts.c.updated_at.desc())
        .limit(3)
    )
    return list(
        dict.fromkeys(f"{row.title}{f' [{row.partition}]' if row.partition else ''}" for row in found)
    )


def worst_features(report: DriftReport, most: int = 5) -> list[str]:
    """Names of the features with a severity, the most changed first."""
    return [feature.name for feature in report.ordered if feature.severity != "none"][:most]


def evidence_after(
    connection: sa.Connection, after: dt.datetime | None
) -> list[tuple[dt.datetime, Evidence]]:
    """What was measured after ``after``, oldest first, with the time."""
    table = ml_monitoring_runs
    query = sa.select(table).order_by(table.c.created_at)
    if after is not None:
        query = query.where(table.c.created_at > after)
    return [
        (
            row["created_at"],
            Evidence(
                scope=row["scope"],
                day=row["day"],
                model_id=row["model_id"],
                run_id=row["run_id"],
                severity=row["worst_severity"],
                composite_score=row["composite_score"],
                worst_features=tuple(row["worst_features"]),
                findings=tuple(row["findings"]),
                basis=row["basis"] or None,
                metric=row["metric"],
                loss=row["loss"],
                loss_severity=row["loss_severity"],
                concept_drift=row["concept_drift"],
            ),
        )
        for row in connection.execute(query).mappings()
    ]
