"""Watches running experiments."""

import datetime as dt
import json

import dagster as dg

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import config_folder
from resources.alerts import Alerts
from resources.warehouse import Warehouse


@dg.sensor(
    name="experiment_monitor",
    job_name="run_experiment",
    minimum_interval_seconds=300,
    description=(
        "Watches open experiments: alerts on slow enrolment, a sample ratio mismatch, uneven arms (weekly), stale "
        "data, poor fidelity of the twin, overdue approvals and long pauses, and requests run_experiment when a look "
        "is due, once for each look."
    ),
)
def experiment_monitor(
    context: dg.SensorEvaluationContext, warehouse: Warehouse, alerts: Alerts
) -> dg.SensorResult:
    from e2i_dagster.experiments.conduct.monitor import observe
    from e2i_dagster.monitoring.alerts import Alert

    policy = LifecyclePolicy.load(config_folder())
    with warehouse.engine().begin() as connection:
        observed = observe(connection, policy, now=dt.datetime.now(dt.UTC), actor="experiment_monitor")
    # What is said once only (a week's balance, an overdue approval) is remembered here.
    mentioned = set(json.loads(context.cursor)) if context.cursor else set()
    requests, reasons = [], []
    for experiment in observed:
        for finding in (new for new in experiment.findings if new.once not in mentioned):
            alerts.send(
                Alert(
                    alert_type="experiment",
                    title=f"{finding.kind} of experiment {experiment.name}",
                    severity=finding.severity,
                    subject=experiment.name,
                    partition=experiment.name,
                    message=finding.message,
                    next_command=finding.next_command,
                )
            )
            reasons.append(f"{experiment.name}: {finding.message}")
            mentioned |= {finding.once} - {""}
        if experiment.due is not None and experiment.name in current_policy().experiments:
            requests.append(
                dg.RunRequest(
                    run_key=f"{experiment.name}:look:{experiment.due}", partition_key=experiment.name
                )
            )
    cursor = json.dumps(sorted(mentioned))
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    names = ", ".join(experiment.name for experiment in observed) or "none"
    return dg.SensorResult(
        skip_reason="; ".join(reasons) or f"nothing to say; experiments looked at: {names}", cursor=cursor
    )
