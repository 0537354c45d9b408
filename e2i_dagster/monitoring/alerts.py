"""Alerts: a row in ``ml_monitoring_alerts`` always, a webhook when one is configured.

An alert says what failed, which partition, since when, who owns it, where to look and what to do.
It never carries a value of a patient.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.drift_monitoring import SEVERITIES, Severity
from e2i_dagster.warehouse.tables.monitoring import ml_monitoring_alerts as table


class Alert(BaseModel):
    """Something a person should look at."""

    model_config = ConfigDict(frozen=True)

    alert_type: Literal["run_failure", "drift", "data_quality"]
    title: str
    severity: Severity
    subject: str
    partition: str = ""
    message: str
    next_command: str = ""
    link: str = ""


def send(
    connection: sa.Connection,
    alert: Alert,
    policy: AlertsPolicy,
    webhook_url: str | None,
    now: dt.datetime | None = None,
) -> str:
    """Record ``alert`` and post it to the webhook; returns what became of the notification.

    The same alert (type, subject, partition, title) within ``policy.deduplicate_seconds`` only counts
    up. A webhook that does not answer is recorded as ``failed: ...`` and never raises: the alert is
    in the table, and losing the caller's work over it would be worse.
    """
    now = now or dt.datetime.now(dt.UTC)
    known = connection.execute(
        sa.select(table.c.id)
        .where(
            table.c.alert_type == alert.alert_type,
            table.c.subject == alert.subject,
            table.c.partition == alert.partition,
            table.c.title == alert.title,
            table.c.updated_at > now - dt.timedelta(seconds=policy.deduplicate_seconds),
        )
        .limit(1)
    ).scalar()
    if known is not None:
        connection.execute(
            table.update()
            .where(table.c.id == known)
            .values(occurrences=table.c.occurrences + 1, updated_at=now)
        )
        return "deduplicated"
    owner = policy.owners.get(alert.alert_type, "ml-ops")
    outcome = _notify(alert, owner, policy, webhook_url, now)
    connection.execute(
        table.insert().values(
            **alert.model_dump(), owner=owner, notification=outcome, created_at=now, updated_at=now
        )
    )
    return outcome


def _notify(alert: Alert, owner: str, policy: AlertsPolicy, webhook_url: str | None, now: dt.datetime) -> str:
    if not webhook_url:
        return "not_configured"
    if SEVERITIES.index(alert.severity) < SEVERITIES.index(policy.webhook_from_severity):
        return "below_severity"
    import httpx

    body: dict[str, Any] = {**alert.model_dump(), "owner": owner, "since": now.isoformat()}
    body["text"] = f"[{alert.severity}] {alert.title}: {alert.message}"
    try:
        httpx.post(webhook_url, json=body, timeout=policy.timeout_seconds).raise_for_status()
    except httpx.HTTPError as error:
        return f"failed: {type(error).__name__}"
    return "sent"
