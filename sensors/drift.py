"""Drift -> alert, and retraining proposed (default) or requested."""

import datetime as dt

import dagster as dg

from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy
from e2i_dagster.policy_files.environment import config_folder
from resources.alerts import Alerts
from resources.warehouse import Warehouse


@dg.sensor(
    name="drift_sensor",
    job_name="scope_pipeline",
    minimum_interval_seconds=60,
    description=(
        "Reads new drift reports: raises an alert from the configured severity on, and proposes a retraining, or "
        "requests scope_pipeline when config/drift_monitoring.yaml says `mode: request` and enough new labels exist."
    ),
)
def drift_sensor(
    context: dg.SensorEvaluationContext, warehouse: Warehouse, alerts: Alerts
) -> dg.SensorResult:
    from e2i_dagster.monitoring.alerts import Alert
    from e2i_dagster.monitoring.history import summaries_after
    from e2i_dagster.monitoring.retraining import decide_retraining, last_decision_at, record_decision
    from e2i_dagster.versions.staleness import labels_since_training

    policy = DriftPolicy.load(config_folder())
    after = dt.datetime.fromisoformat(context.cursor) if context.cursor else None
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    with warehouse.engine().begin() as connection:
        summaries = summaries_after(connection, after)
        for measured_at, severity, drift in summaries:
            decision = decide_retraining(
                drift,
                policy,
                last_decision=last_decision_at(connection, drift.scope),
                new_labels=labels_since_training(connection, drift.scope),
                labels_enough_from=None,
                now=measured_at,
            )
            record_decision(connection, drift, decision)
            reasons.append(f"{drift.scope} {drift.day}: {decision.action}: {decision.reason}")
            if SEVERITIES.index(severity) >= SEVERITIES.index(policy.alerts.from_severity):
                alerts.send(
                    Alert(
                        alert_type="drift",
                        title=f"Drift in {drift.scope}",
                        severity=severity,
                        subject=drift.scope,
                        partition=drift.day.isoformat(),
                        message=f"{severity}: {', '.join(drift.worst_features)}. Retraining: {decision.reason}",
                        next_command=f"e2i run --scope {drift.scope}",
                        link=f"/runs/{drift.run_id}",
                    )
                )
            if decision.action == "request":
                requests.append(
                    dg.RunRequest(run_key=f"{drift.scope}:{drift.run_id}", partition_key=drift.scope)
                )
    cursor = summaries[-1][0].isoformat() if summaries else context.cursor
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(
        skip_reason="; ".join(reasons) or "no drift report is newer than the last one seen", cursor=cursor
    )
