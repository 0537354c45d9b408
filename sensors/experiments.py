"""Running experiments watched, and the job of the commands that change one."""

import datetime as dt
import json

import dagster as dg

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import actor, config_folder
from resources.alerts import Alerts
from resources.stages import refusal
from resources.warehouse import Warehouse


@dg.op(
    name="change",
    config_schema=dict,
    description="One change of an experiment, with who and why: transition, approval, amendment, rows, simulated days.",
)
def change_op(context: dg.OpExecutionContext, warehouse: Warehouse) -> None:
    from e2i_dagster.errors import E2IError
    from e2i_dagster.experiments.conduct.actions import Change, perform

    change = Change.model_validate(context.op_config)
    try:
        with warehouse.engine().begin() as connection:
            lifecycle = LifecyclePolicy.load(config_folder())
            done = perform(connection, change, current_policy(), lifecycle, actor=actor()[0])
    except E2IError as error:
        # What a person can mend is said in one sentence; trying again cannot help.
        raise refusal(error) from error
    context.add_output_metadata({"experiment": change.experiment, "action": change.action, **done})


@dg.job(
    name="change_experiment",
    description="The job of the commands that change an experiment. Launch it with the fields of a Change.",
)
def change_experiment() -> None:
    change_op()


EXPERIMENT_JOBS = [
    dg.define_asset_job(
        "run_experiment",
        selection=dg.AssetSelection.groups("experiments"),
        description="One experiment: assigns who waits, makes the look that is due, fills the pages.",
    ),
    dg.define_asset_job(
        "simulate_twin",
        selection=dg.AssetSelection.groups("digital_twin"),
        description="Predicts one experiment from its cohort.",
    ),
    change_experiment,
]


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
    # What is told once only (a week's balance, an overdue approval) is remembered here.
    told = set(json.loads(context.cursor)) if context.cursor else set()
    requests, reasons = [], []
    for one in observed:
        for finding in (finding for finding in one.findings if finding.once not in told):
            alerts.send(
                Alert(
                    alert_type="experiment",
                    title=f"{finding.kind} of experiment {one.name}",
                    severity=finding.severity,
                    subject=one.name,
                    partition=one.name,
                    message=finding.message,
                    next_command=finding.next_command,
                )
            )
            reasons.append(f"{one.name}: {finding.message}")
            told |= {finding.once} - {""}
        if one.due is not None and one.name in current_policy().experiments:
            requests.append(dg.RunRequest(run_key=f"{one.name}:look:{one.due}", partition_key=one.name))
    cursor = json.dumps(sorted(told))
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    names = ", ".join(one.name for one in observed) or "none"
    return dg.SensorResult(
        skip_reason="; ".join(reasons) or f"nothing to say; experiments looked at: {names}", cursor=cursor
    )
