"""Files that were expected and have not arrived."""

import datetime as dt
from pathlib import Path

import dagster as dg

from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.sources import FileSource
from resources.alerts import Alerts


@dg.sensor(
    name="missing_deliveries",
    minimum_interval_seconds=3600,
    description="Alerts on files that config/sources.yaml expects (`expected:`) and that did not arrive by their day.",
)
def missing_deliveries(context: dg.SensorEvaluationContext, alerts: Alerts) -> dg.SensorResult:
    from e2i_dagster.monitoring.alerts import Alert
    from e2i_dagster.sources.arrivals import overdue_files

    sources = current_policy().sources
    if not isinstance(sources.source, FileSource) or not sources.expected:
        return dg.SensorResult(skip_reason="config/sources.yaml expects no files")
    present = {path.name for path in Path(sources.source.folder).glob("*")}
    overdue = overdue_files(sources, present, dt.datetime.now(dt.UTC).date())
    reported = set((context.cursor or "").split(",")) - {""}
    for late in overdue:
        if late.file not in reported:
            alerts.send(
                Alert(
                    alert_type="data_quality",
                    title=f"{late.file} has not arrived",
                    severity="medium",
                    subject=late.table,
                    partition=late.month,
                    message=f"Expected in {sources.source.folder} until {late.due}.",
                    next_command="e2i load",
                )
            )
    names = sorted(late.file for late in overdue)
    return dg.SensorResult(
        skip_reason=f"overdue: {', '.join(names)}" if names else "every expected file has arrived",
        cursor=",".join(names),
    )
