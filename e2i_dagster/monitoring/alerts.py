"""Alerts: a row in ``ml_monitoring_alerts`` always, a webhook when one is configured.

A *critical* alert is sent at once. A *warning* waits: the warnings of a day are one message, the digest.

An alert says what failed, which partition, since when, who owns it, where to look and what to do.
It never carries a value of a patient.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.alerts import AlertsPolicy, AlertType
from e2i_dagster.config.drift_monitoring import Severity
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts as table

if TYPE_CHECKING:
    from e2i_dagster.quality.table_check import GateResult


class Alert(BaseModel):
    """Something a person should look at."""

    model_config = ConfigDict(frozen=True)

    alert_type: AlertType
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

    The same critical alert (type, subject, partition, title) within ``policy.deduplicate_seconds`` only
    counts up, and so does a warning that no digest has told yet. A webhook that does not answer is
    recorded as ``failed: ...`` and never raises: the alert is in the table, and losing the caller's work
    over it would be worse.
    """
    now = now or dt.datetime.now(dt.UTC)
    level = policy.level(alert.severity)
    same = [
        table.c.alert_type == alert.alert_type,
        table.c.subject == alert.subject,
        table.c.partition == alert.partition,
        table.c.title == alert.title,
        table.c.level == level,
    ]
    if level == "warning":
        same.append(table.c.digested_at.is_(None))
    else:
        same.append(table.c.updated_at > now - dt.timedelta(seconds=policy.deduplicate_seconds))
    known = connection.execute(sa.select(table.c.id).where(*same).limit(1)).scalar()
    if known is not None:
        connection.execute(
            table.update()
            .where(table.c.id == known)
            .values(occurrences=table.c.occurrences + 1, updated_at=now, message=alert.message)
        )
        return "deduplicated"
    owner = policy.owners.get(alert.alert_type, "ml-ops")
    if level == "warning":
        outcome = "waits_for_digest"
    else:
        body: dict[str, Any] = {
            **alert.model_dump(),
            "level": level,
            "owner": owner,
            "since": now.isoformat(),
        }
        body["text"] = f"[{alert.severity}] {alert.title}: {alert.message}"
        outcome = _post(body, policy, webhook_url)
    connection.execute(
        table.insert().values(
            **alert.model_dump(),
            level=level,
            owner=owner,
            notification=outcome,
            created_at=now,
            updated_at=now,
        )
    )
    return outcome


class Digest(BaseModel):
    """One daily message over all warnings that no digest has told yet."""

    model_config = ConfigDict(frozen=True)

    warnings: int
    notification: str
    text: str


def send_digest(
    connection: sa.Connection,
    policy: AlertsPolicy,
    webhook_url: str | None,
    now: dt.datetime | None = None,
) -> Digest:
    """Tell all open warnings in one message (the caller commits).

    A warning that was told is not told again. When the webhook does not answer, all of them wait for
    the next digest. Nothing is sent when there is nothing to tell.
    """
    now = now or dt.datetime.now(dt.UTC)
    rows = connection.execute(
        sa.select(table)
        .where(table.c.level == "warning", table.c.digested_at.is_(None))
        .order_by(table.c.alert_type, table.c.subject, table.c.partition, table.c.created_at)
    ).all()
    if not rows:
        return Digest(warnings=0, notification="nothing_to_tell", text="no open warnings")
    lines = [
        f"- {row.title}{f' [{row.partition}]' if row.partition else ''} x{row.occurrences}, since "
        f"{row.created_at:%Y-%m-%d %H:%M} ({row.owner}): {row.message}"
        for row in rows[: policy.digest_lists]
    ]
    if len(rows) > policy.digest_lists:
        lines.append(f"- and {len(rows) - policy.digest_lists} more in ml_monitoring_alerts")
    text = "\n".join([f"{len(rows)} warnings", *lines])
    outcome = _post(
        {"alert_type": "digest", "level": "warning", "warnings": len(rows), "text": text}, policy, webhook_url
    )
    told = {} if outcome.startswith("failed") else {"digested_at": now}
    connection.execute(
        table.update().where(table.c.id.in_([row.id for row in rows])).values(notification=outcome, **told)
    )
    return Digest(warnings=len(rows), notification=outcome, text=text)


def gate_alerts(subject: str, result: GateResult, *, run_id: str, partition: str = "") -> list[Alert]:
    """What the gate says, for people: a block is critical; waivers and conventions are warnings."""
    about: dict[str, Any] = {"subject": subject, "partition": partition, "link": f"/runs/{run_id}"}
    kind = "leakage" if result.report is not None else "data_quality"
    if not result.passed:
        return [
            Alert(
                alert_type=kind,
                title=f"The gate blocks {subject}",
                severity="critical",
                message=result.text,
                next_command="e2i gate show",
                **about,
            )
        ]
    found = []
    if result.waived:
        found.append(("is used under a waiver", "; ".join(result.waived), "e2i gate waivers"))
    if result.warned:
        found.append(("has warnings", f"partitions {', '.join(result.warned)}", "e2i gate show"))
    return [
        Alert(
            alert_type=kind,
            title=f"{subject} {what}",
            severity="medium",
            message=message,
            next_command=command,
            **about,
        )
        for what, message, command in found
    ]


def _post(body: dict[str, Any], policy: AlertsPolicy, webhook_url: str | None) -> str:
    if not webhook_url:
        return "not_configured"
    import httpx

    try:
        httpx.post(webhook_url, json=body, timeout=policy.timeout_seconds).raise_for_status()
    except httpx.HTTPError as error:
        return f"failed: {type(error).__name__}"
    return "sent"
