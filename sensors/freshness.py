"""Online features that nobody has renewed for too long."""

import datetime as dt

import dagster as dg

from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import config_folder
from resources.alerts import Alerts
from resources.warehouse import Warehouse


@dg.sensor(
    name="feature_freshness",
    minimum_interval_seconds=600,
    description=(
        "Judges how long ago the online features of each scope were made or found up to date "
        "(config/feast_materialization.yaml: freshness), and alerts once when a scope gets older than a limit."
    ),
)
def feature_freshness(
    context: dg.SensorEvaluationContext, warehouse: Warehouse, alerts: Alerts
) -> dg.SensorResult:
    from e2i_dagster.features.records import watch_freshness
    from e2i_dagster.monitoring.alerts import Alert

    limits = FeastMaterializationPolicy.load(config_folder()).freshness
    said = []
    for scope in sorted(current_policy().scopes):
        with warehouse.engine().begin() as connection:
            seen = watch_freshness(connection, scope, limits, dt.datetime.now(dt.UTC))
        if seen is None:
            continue
        report, news = seen
        said.append(f"{scope}: {report.status}")
        if news and report.status != "fresh":
            alerts.send(
                Alert(
                    alert_type="data_quality",
                    title=f"Online features of {scope} are {report.words}",
                    severity="low" if report.status == "warning" else "medium",
                    subject=scope,
                    message=report.sentence(),
                    next_command=f"e2i run --scope {scope}",
                )
            )
    return dg.SensorResult(skip_reason="; ".join(said) or "no scope has features online yet")
