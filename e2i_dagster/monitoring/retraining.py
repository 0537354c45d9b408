"""Whether a retraining is proposed: a pure decision by performance first, by drift second, and its record."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy, Severity
from e2i_dagster.monitoring.drift_report import DriftReport
from e2i_dagster.monitoring.performance import PerformanceReport
from e2i_dagster.tables.description.monitoring import ml_retraining_history as table

Trigger = Literal["performance_degradation", "concept_drift", "data_drift"]


class Evidence(BaseModel):
    """What was measured for a scope on a day, as a decision needs it.

    Attributes:
        severity: of the alarm (:func:`alarm_level`).
        findings: what changed, in words, the likely cause first.
        basis, metric, loss, loss_severity: performance against the reference; None and ``none``: not known.
    """

    model_config = ConfigDict(frozen=True)

    scope: str
    day: dt.date
    model_id: str
    run_id: str
    severity: Severity = "none"
    composite_score: float | None
    worst_features: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    basis: Literal["realised", "estimated"] | None = None
    metric: str = ""
    loss: float | None = None
    loss_severity: Severity = "none"
    concept_drift: bool = False


class RetrainingDecision(BaseModel):
    """What follows, with the reason in words. ``wait``: a retraining would help, and its labels are not there yet."""

    model_config = ConfigDict(frozen=True)

    action: Literal["none", "wait", "propose", "request"]
    reason: str
    trigger: Trigger | None = None


def alarm_level(drift: DriftReport, performance: PerformanceReport) -> Severity:
    """The severity that people are told.

    A loss of performance comes first. A feature's drift counts as far as it can move the model. Drift of the
    predictions, of the labels and of all features together is a note while performance is known: what it does is in
    the loss.
    Concept drift is a warning at least: the patients have another outcome than the model says.
    """
    known = performance.basis is not None
    levels: list[Severity] = ["none", performance.severity]
    for feature in drift.features:
        noted = known and feature.kind != "data" and feature.severity != "none"
        levels.append("low" if noted else feature.severity)
    if performance.concept_drift:
        levels.append("medium")
    return max(levels, key=SEVERITIES.index)


def alarm_score(drift: DriftReport, performance: PerformanceReport, policy: DriftPolicy) -> float | None:
    """The alarm as a number in [0, 1] for ranking days; None: neither performance nor drift is known.

    Where performance is known the loss as a share of a critical one, otherwise the composite drift score.
    """
    if performance.loss is None:
        return drift.composite_score
    return min(max(performance.loss / policy.performance.loss.critical, 0.0), 1.0)


def decide_retraining(
    evidence: Evidence,
    policy: DriftPolicy,
    *,
    last_decision: dt.datetime | None,
    in_flight: str | None,
    new_labels: int,
    labels_enough_from: dt.date | None,
    now: dt.datetime,
) -> RetrainingDecision:
    """Propose or request a retraining, or say why not.

    Args:
        last_decision: when a retraining of the scope was last proposed or requested.
        in_flight: run that trains the scope now; None when none does.
        new_labels: closed labels that are newer than the training data.
        labels_enough_from: from which date enough labels are expected; None when unknown.
    """
    rule = policy.retraining
    trigger, reason = _trigger(evidence, policy)
    if trigger is None:
        return RetrainingDecision(action="none", reason=reason)
    if evidence.findings:
        reason += f"; likely cause: {'; '.join(evidence.findings[:3])}"
    if in_flight is not None:
        said = f"run {in_flight} is training the scope already ({reason})"
        return RetrainingDecision(action="none", reason=said, trigger=trigger)
    if last_decision is not None and now - last_decision < dt.timedelta(days=rule.cool_down_days):
        until = (last_decision + dt.timedelta(days=rule.cool_down_days)).date()
        said = f"cool-down until {until} after the last decision ({reason})"
        return RetrainingDecision(action="none", reason=said, trigger=trigger)
    if new_labels < rule.minimum_new_labels:
        when = (
            f"expected from {labels_enough_from}" if labels_enough_from else "not expected from open windows"
        )
        reason += (
            f"; not yet: {new_labels} closed labels newer than the training data, "
            f"{rule.minimum_new_labels} needed, {when}"
        )
        return RetrainingDecision(action="wait", reason=reason, trigger=trigger)
    return RetrainingDecision(
        action="request" if rule.mode == "request" else "propose", reason=reason, trigger=trigger
    )


def _trigger(evidence: Evidence, policy: DriftPolicy) -> tuple[Trigger | None, str]:
    rule = policy.retraining
    known = evidence.loss is not None
    loss = (
        f"{evidence.basis} loss of {evidence.metric} {evidence.loss:.3f}" if evidence.loss is not None else ""
    )
    if known and evidence.loss_severity != "none" and (evidence.loss or 0.0) >= rule.loss_threshold:
        if evidence.basis == "realised" and evidence.concept_drift:
            return (
                "concept_drift",
                f"{loss} reaches {rule.loss_threshold}, which the estimate did not foresee",
            )
        return "performance_degradation", f"{loss} reaches {rule.loss_threshold}"
    said = f"{loss} is no reason" if known else "performance is not known yet"
    if evidence.composite_score is None:
        return None, f"{said}; no test had enough live values"
    if evidence.composite_score < rule.composite_threshold:
        return (
            None,
            f"{said}; composite score {evidence.composite_score:.2f} is below {rule.composite_threshold}",
        )
    changed = f"; most changed: {', '.join(evidence.worst_features)}" if evidence.worst_features else ""
    reaches = f"composite score {evidence.composite_score:.2f} reaches {rule.composite_threshold}"
    return "data_drift", f"{reaches}{changed}; {said}"


def last_decision_at(connection: sa.Connection, scope: str) -> dt.datetime | None:
    """When a retraining of ``scope`` was last proposed or requested."""
    return connection.execute(
        sa.select(sa.func.max(table.c.triggered_at)).where(table.c.scope == scope)
    ).scalar()


def record_decision(connection: sa.Connection, evidence: Evidence, decision: RetrainingDecision) -> None:
    """Enter a proposal or request into ``ml_retraining_history``; ``none`` and ``wait`` are not entered."""
    if decision.action in ("none", "wait"):
        return
    connection.execute(
        table.insert().values(
            scope=evidence.scope,
            model_id=evidence.model_id,
            trigger_type=decision.trigger,
            trigger_reason=decision.reason,
            composite_score=evidence.composite_score,
            status={"propose": "proposed", "request": "requested"}[decision.action],
            run_id=evidence.run_id,
            details={
                "day": evidence.day.isoformat(),
                "worst_features": list(evidence.worst_features),
                "basis": evidence.basis,
                "loss": evidence.loss,
            },
        )
    )
