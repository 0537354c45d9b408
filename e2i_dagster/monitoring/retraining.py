"""Whether measured drift leads to a retraining: a pure decision, and its record."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.tables.description.monitoring import ml_retraining_history as table


class DriftSummary(BaseModel):
    """What a decision needs to know of the newest drift report of a scope."""

    model_config = ConfigDict(frozen=True)

    scope: str
    day: dt.date
    model_id: str
    run_id: str
    composite_score: float | None
    worst_features: tuple[str, ...] = ()


class RetrainingDecision(BaseModel):
    """What follows from a drift report, with the reason in words."""

    model_config = ConfigDict(frozen=True)

    action: Literal["none", "propose", "request"]
    reason: str


def decide_retraining(
    drift: DriftSummary,
    policy: DriftPolicy,
    *,
    last_decision: dt.datetime | None,
    new_labels: int,
    labels_enough_from: dt.date | None,
    now: dt.datetime,
) -> RetrainingDecision:
    """Propose or request a retraining, or say why not.

    Args:
        last_decision: when a retraining of the scope was last proposed or requested.
        new_labels: matured labels that are newer than the training data.
        labels_enough_from: from which date enough labels are expected; None when unknown.
    """
    rule = policy.retraining
    if drift.composite_score is None:
        return RetrainingDecision(action="none", reason="no test had enough live values")
    if drift.composite_score < rule.composite_threshold:
        reason = f"composite score {drift.composite_score:.2f} is below {rule.composite_threshold}"
        return RetrainingDecision(action="none", reason=reason)
    if last_decision is not None and now - last_decision < dt.timedelta(days=rule.cool_down_days):
        until = (last_decision + dt.timedelta(days=rule.cool_down_days)).date()
        return RetrainingDecision(action="none", reason=f"cool-down until {until} after the last decision")
    reason = f"composite score {drift.composite_score:.2f} reaches {rule.composite_threshold}" + (
        f"; most changed: {', '.join(drift.worst_features)}" if drift.worst_features else ""
    )
    if rule.mode == "request" and new_labels >= rule.minimum_new_labels:
        return RetrainingDecision(action="request", reason=reason)
    if rule.mode == "request":
        when = f", expected from {labels_enough_from}" if labels_enough_from else ""
        reason += (
            f"; not requested: {new_labels} matured labels newer than the training data, "
            f"{rule.minimum_new_labels} needed{when}"
        )
    return RetrainingDecision(action="propose", reason=reason)


def last_decision_at(connection: sa.Connection, scope: str) -> dt.datetime | None:
    """When a retraining of ``scope`` was last proposed or requested."""
    return connection.execute(
        sa.select(sa.func.max(table.c.triggered_at)).where(table.c.scope == scope)
    ).scalar()


def record_decision(connection: sa.Connection, drift: DriftSummary, decision: RetrainingDecision) -> None:
    """Enter a proposal or request into ``ml_retraining_history``; ``none`` is not entered."""
    if decision.action == "none":
        return
    connection.execute(
        table.insert().values(
            scope=drift.scope,
            model_id=drift.model_id,
            trigger_type="data_drift",
            trigger_reason=decision.reason,
            composite_score=drift.composite_score,
            status={"propose": "proposed", "request": "requested"}[decision.action],
            run_id=drift.run_id,
            details={"day": drift.day.isoformat(), "worst_features": list(drift.worst_features)},
        )
    )
