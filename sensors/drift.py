"""What was measured of a model -> alert, and retraining proposed (default) or requested."""

import datetime as dt

import dagster as dg

from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy
from e2i_dagster.policy_files.environment import config_folder
from resources.alerts import Alerts
from resources.warehouse import Warehouse

#: A run in one of these trains the scope now, or is about to.
IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(
    name="drift_sensor",
    job_name="scope_pipeline",
    minimum_interval_seconds=60,
    description=(
        "Reads new reports: raises an alert from the configured severity on, and proposes a retraining by loss of "
        "performance first, by drift second, or requests scope_pipeline when config/drift_monitoring.yaml says "
        "`mode: request`. The cursor is the time of the newest report that was read."
    ),
)
def drift_sensor(
    context: dg.SensorEvaluationContext, warehouse: Warehouse, alerts: Alerts
) -> dg.SensorResult:
    from e2i_dagster.monitoring.alerts import model_alert
    from e2i_dagster.monitoring.history import evidence_after
    from e2i_dagster.monitoring.labels import labels_enough_from
    from e2i_dagster.monitoring.retraining import decide_retraining, last_decision_at, record_decision
    from e2i_dagster.versions.staleness import labels_since_training

    policy = DriftPolicy.load(config_folder())
    after = dt.datetime.fromisoformat(context.cursor) if context.cursor else None
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    raised = []
    with warehouse.engine().begin() as connection:
        measured = evidence_after(connection, after)
        for at, evidence in measured:
            labels = labels_since_training(connection, evidence.scope)
            missing = policy.retraining.minimum_new_labels - labels
            decision = decide_retraining(
                evidence,
                policy,
                last_decision=last_decision_at(connection, evidence.scope),
                in_flight=training_run(context.instance, evidence.scope),
                new_labels=labels,
                labels_enough_from=labels_enough_from(
                    connection, evidence.scope, missing=missing, after=at.date()
                ),
                now=at,
            )
            record_decision(connection, evidence, decision)
            reasons.append(f"{evidence.scope} {evidence.day}: {decision.action}: {decision.reason}")
            if SEVERITIES.index(evidence.severity) >= SEVERITIES.index(policy.alerts.from_severity):
                raised.append(model_alert(evidence, decision))
            if decision.action == "request":
                key = f"{evidence.scope}:{evidence.run_id}"
                requests.append(dg.RunRequest(run_key=key, partition_key=evidence.scope))
    # What was decided is stored first: a channel that is slow holds no transaction open.
    alerts.send_all(raised)
    cursor = measured[-1][0].isoformat() if measured else context.cursor
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    return dg.SensorResult(
        skip_reason="; ".join(reasons) or "no report is newer than the last one seen", cursor=cursor
    )


def training_run(instance: dg.DagsterInstance, scope: str) -> str | None:
    """The run that trains ``scope`` now, or is about to; None when there is none."""
    runs = instance.get_runs(
        dg.RunsFilter(job_name="scope_pipeline", statuses=IN_FLIGHT, tags={"dagster/partition": scope}),
        limit=1,
    )
    return runs[0].run_id if runs else None
