"""Somebody is woken: every failed run becomes an alert."""

from collections.abc import Mapping

import dagster as dg

from resources.alerts import Alerts


@dg.run_failure_sensor(
    name="alert_on_run_failure",
    description="Records each failed run in ml_monitoring_alerts and sends it to the channels of config/alerts.yaml.",
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def alert_on_run_failure(context: dg.RunFailureSensorContext, alerts: Alerts) -> None:
    from e2i_dagster.monitoring.alerts import Alert

    run = context.dagster_run
    alerts.send(
        Alert(
            alert_type="run_failure",
            title=f"{run.job_name} failed",
            severity="high",
            subject=run.job_name,
            partition=partition_of(run.tags),
            message=failure_message(context),
            next_command="e2i status",
            link=f"/runs/{run.run_id}",
        )
    )


def partition_of(tags: Mapping[str, str]) -> str:
    """The partition key, or the range of a single-run backfill, as people write it."""
    if "dagster/asset_partition_range_start" in tags:
        return f"{tags['dagster/asset_partition_range_start']}..{tags['dagster/asset_partition_range_end']}"
    return tags.get("dagster/partition", "")


def failure_message(context: dg.RunFailureSensorContext) -> str:
    """What each failed step said; errors of the product carry no values of patients."""
    texts = []
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        described = data.user_failure_data.description if data.user_failure_data else None
        texts.append(
            f"{event.step_key}: {described or (data.error.cls_name if data.error else event.message)}"
        )
    return "; ".join(texts) or context.failure_event.message or "no step said why"
