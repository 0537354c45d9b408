"""Alerts: a row in ``ml_monitoring_alerts`` always, and the channels that are configured.

A *critical* alert is sent at once, to the channels of its severity. A *warning* waits: the warnings of a day are one
message, the digest. What goes on is counted and sent again once, escalated. A person acknowledges an alert, or
silences a kind of them, with a reason and an end.

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
from e2i_dagster.monitoring.channels import Channels, Message
from e2i_dagster.monitoring.retraining import Evidence, RetrainingDecision
from e2i_dagster.tables.description.monitoring import ml_alert_silences as silences
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
    channels: Channels,
    now: dt.datetime | None = None,
) -> str:
    """Record ``alert`` and send it to the channels of its severity; returns what became of the notification.

    The same critical alert (type, subject, partition, title) within ``policy.deduplicate_seconds`` only counts up,
    and so does a warning that no digest has sent yet. After ``policy.escalate_after`` times it is sent once more, to
    the channels of an escalation. One that a person has acknowledged counts up in silence, whatever its partition,
    until the acknowledgement ends. A channel that does not answer is recorded as ``failed: ...`` and never raises:
    the alert is in the table, and losing the caller's work over it would be worse.
    """
    now = now or dt.datetime.now(dt.UTC)
    level = policy.level(alert.severity)
    owner = policy.owners.get(alert.alert_type, "ml-ops")
    silent_until = _silent_until(connection, alert, now)
    known = _same(connection, alert, level, policy, now)
    if known is not None:
        times = known.occurrences + 1
        changed: dict[str, Any] = {"occurrences": times, "updated_at": now, "message": alert.message}
        outcome = "deduplicated"
        acknowledged = known.acknowledged_until is not None and known.acknowledged_until > now
        quiet = acknowledged or silent_until is not None or known.escalated_at is not None
        if level == "critical" and times >= policy.escalate_after and not quiet:
            body = _message(alert, level, owner, known.created_at, times)
            outcome = f"escalated: {channels.send(body, policy.escalation, policy.timeout_seconds)}"
            changed |= {"escalated_at": now, "notification": outcome}
        connection.execute(table.update().where(table.c.id == known.id).values(**changed))
        return outcome
    if silent_until is not None:
        outcome = f"silenced until {silent_until:%Y-%m-%d %H:%M}"
    elif level == "warning":
        outcome = "waits_for_digest"
    else:
        body = _message(alert, level, owner, now, 1)
        outcome = channels.send(body, policy.routes[alert.severity], policy.timeout_seconds)
    connection.execute(
        table.insert().values(
            **alert.model_dump(),
            level=level,
            owner=owner,
            notification=outcome,
            created_at=now,
            updated_at=now,
            # A silenced warning is in no digest.
            **({"digested_at": now} if silent_until is not None and level == "warning" else {}),
        )
    )
    return outcome


def _same(
    connection: sa.Connection, alert: Alert, level: str, policy: AlertsPolicy, now: dt.datetime
) -> Any | None:
    """The row that ``alert`` repeats."""
    about = [
        table.c.alert_type == alert.alert_type,
        table.c.subject == alert.subject,
        table.c.title == alert.title,
        table.c.level == level,
    ]
    recent = (
        table.c.digested_at.is_(None)
        if level == "warning"
        else table.c.updated_at > now - dt.timedelta(seconds=policy.deduplicate_seconds)
    )
    query = (
        sa.select(table)
        .where(
            *about,
            sa.or_(table.c.acknowledged_until > now, sa.and_(table.c.partition == alert.partition, recent)),
        )
        .order_by(table.c.created_at.desc())
        .limit(1)
    )
    return connection.execute(query).one_or_none()


def _silent_until(connection: sa.Connection, alert: Alert, now: dt.datetime) -> dt.datetime | None:
    return connection.execute(
        sa.select(sa.func.max(silences.c.ends_at)).where(
            silences.c.alert_type == alert.alert_type,
            silences.c.subject.in_(["", alert.subject]),
            silences.c.created_at <= now,
            silences.c.ends_at > now,
        )
    ).scalar()


def _message(alert: Alert, level: str, owner: str, since: dt.datetime, times: int) -> Message:
    again = f"still going on, {times} times: " if times > 1 else ""
    fields = {
        **alert.model_dump(),
        "level": level,
        "owner": owner,
        "since": since.isoformat(),
        "occurrences": times,
    }
    return Message(title=f"[{alert.severity}] {again}{alert.title}", text=alert.message, fields=fields)


class Digest(BaseModel):
    """One daily message over all warnings that no digest has told yet."""

    model_config = ConfigDict(frozen=True)

    warnings: int
    notification: str
    text: str


def send_digest(
    connection: sa.Connection,
    policy: AlertsPolicy,
    channels: Channels,
    now: dt.datetime | None = None,
) -> Digest:
    """Send all open warnings in one message (the caller commits).

    A warning that was sent is not sent again, nor is one that a person has acknowledged until that ends. When no
    channel takes the message, all of them wait for the next digest. Nothing is sent when there is nothing to send.
    """
    now = now or dt.datetime.now(dt.UTC)
    rows = connection.execute(
        sa.select(table)
        .where(
            table.c.level == "warning",
            table.c.digested_at.is_(None),
            sa.or_(table.c.acknowledged_until.is_(None), table.c.acknowledged_until <= now),
        )
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
    fields = {"alert_type": "digest", "level": "warning", "warnings": len(rows)}
    message = Message(title=f"{len(rows)} warnings", text="\n".join(lines), fields=fields)
    outcome = channels.send(message, policy.routes["medium"], policy.timeout_seconds)
    delivered = {"digested_at": now} if "sent" in outcome or outcome == "not_configured" else {}
    ids = [row.id for row in rows]
    connection.execute(table.update().where(table.c.id.in_(ids)).values(notification=outcome, **delivered))
    return Digest(warnings=len(rows), notification=outcome, text=text)


def model_alert(evidence: Evidence, decision: RetrainingDecision) -> Alert:
    """What was measured of a model, for people: performance first, then the likely cause, then what follows."""
    said = []
    if evidence.loss is not None:
        said.append(f"{evidence.basis} loss of {evidence.metric} {evidence.loss:.3f}")
    if evidence.concept_drift:
        said.append("measured performance has left the estimate (concept drift)")
    said.append(
        f"likely cause: {'; '.join(evidence.findings[:3])}" if evidence.findings else "no drift was found"
    )
    said.append(f"retraining: {decision.action}: {decision.reason}")
    losing = evidence.loss_severity != "none" or evidence.concept_drift
    return Alert(
        alert_type="drift",
        title=f"{'Loss of performance' if losing else 'Drift'} in {evidence.scope}",
        severity=evidence.severity,
        subject=evidence.scope,
        partition=evidence.day.isoformat(),
        message=f"{evidence.severity}: {'. '.join(said)}",
        next_command=f"e2i run --scope {evidence.scope}",
        link=f"/runs/{evidence.run_id}",
    )


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
