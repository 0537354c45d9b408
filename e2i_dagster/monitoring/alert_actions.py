"""What people do with alerts: list, acknowledge, silence."""

from __future__ import annotations

import datetime as dt
from typing import Any, get_args

import sqlalchemy as sa

from e2i_dagster.config.alerts import AlertsPolicy, AlertType
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.tables.description.monitoring import ml_alert_silences as silences
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts as table

#: Characters of an alert's key that people see and type.
SHORT = 8


def list_alerts(
    connection: sa.Connection, *, since: dt.datetime, everything: bool = False
) -> list[dict[str, Any]]:
    """Alerts raised after ``since``, the newest first; acknowledged ones only with ``everything``."""
    query = sa.select(table).where(table.c.updated_at > since).order_by(table.c.updated_at.desc())
    if not everything:
        query = query.where(table.c.status == "active")
    return [{**row, "id": str(row["id"])[:SHORT]} for row in connection.execute(query).mappings()]


def list_silences(connection: sa.Connection, *, now: dt.datetime) -> list[dict[str, Any]]:
    """Silences that hold, the next to end first."""
    query = sa.select(silences).where(silences.c.ends_at > now).order_by(silences.c.ends_at)
    return [{**row, "id": str(row["id"])[:SHORT]} for row in connection.execute(query).mappings()]


def acknowledge(
    connection: sa.Connection,
    key: str,
    *,
    person: str,
    reason: str,
    days: float,
    policy: AlertsPolicy,
    now: dt.datetime,
) -> dict[str, Any]:
    """A person looks after the alert whose key begins with ``key``; its repetitions are only counted for ``days``.

    Raises:
        InputError: no alert or several have such a key, no reason, or more days than the policy allows.
    """
    until = _end(reason, days, policy, now)
    found = connection.execute(
        sa.select(table.c.id).where(sa.cast(table.c.id, sa.Text).startswith(key.lower(), autoescape=True)).limit(2)
    ).scalars().all()  # fmt: skip
    if not key or len(found) != 1:
        many = "several alerts have" if len(found) > 1 else "no alert has"
        raise InputError(
            f"{key!r}: {many} such a key.",
            field="alert",
            value=key,
            remedy="`e2i alerts list` shows the keys.",
        )
    changed = connection.execute(
        table.update()
        .where(table.c.id == found[0])
        .values(
            status="acknowledged", acknowledged_by=person, acknowledged_at=now, acknowledged_until=until,
            acknowledgement=reason,
        )
        .returning(table)
    )  # fmt: skip
    row = changed.mappings().one()
    return {**row, "id": str(row["id"])[:SHORT]}


def silence(
    connection: sa.Connection,
    *,
    alert_type: str,
    subject: str,
    person: str,
    authentication: str,
    reason: str,
    days: float,
    policy: AlertsPolicy,
    now: dt.datetime,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Nobody is told of alerts of ``alert_type`` about ``subject`` (empty: any) for ``days``; they are recorded.

    Raises:
        InputError: an unknown kind of alerts, no reason, or more days than the policy allows.
    """
    known = get_args(AlertType)
    if alert_type not in known:
        raise InputError(
            f"{alert_type!r} is no kind of alerts. {did_you_mean(alert_type, known)}".strip(),
            field="alert_type",
            value=alert_type,
            remedy=f"Kinds: {', '.join(known)}.",
        )
    until = _end(reason, days, policy, now)
    made = connection.execute(
        silences.insert()
        .values(
            alert_type=alert_type, subject=subject, reason=reason, silenced_by=person,
            authentication=authentication, created_at=now, ends_at=until, run_id=run_id,
        )
        .returning(silences)
    )  # fmt: skip
    row = made.mappings().one()
    return {**row, "id": str(row["id"])[:SHORT]}


def _end(reason: str, days: float, policy: AlertsPolicy, now: dt.datetime) -> dt.datetime:
    if not reason.strip():
        raise InputError(
            "reason: empty.", field="reason", value=reason, remedy="Say why, for the next person."
        )
    if not 0 < days <= policy.most_quiet_days:
        raise InputError(
            f"days: {days:g}; more than 0 and at most {policy.most_quiet_days} (most_quiet_days in alerts.yaml).",
            field="days",
            value=days,
            remedy="Give fewer days; it can be given again.",
        )
    return now + dt.timedelta(days=days)
