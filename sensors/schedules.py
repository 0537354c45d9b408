"""Schedules. All are off until switched on in the UI."""

import datetime as dt

import dagster as dg

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import config_folder
from jobs.gate import alert_digest

_sources = current_policy().sources


@dg.schedule(
    name="monthly_load",
    job_name="load_and_qc",
    cron_schedule=_sources.load_cron,
    execution_timezone="UTC",
    description="Loads and checks the month before the scheduled day (config/sources.yaml: load_cron).",
)
def monthly_load(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    month = month_before(context.scheduled_execution_time)
    if month not in _sources.months:
        return dg.SkipReason(
            f"{month} is outside {_sources.months[0]}..{_sources.months[-1]}; "
            "set first_month and data_end in config/sources.yaml"
        )
    return dg.RunRequest(run_key=month, partition_key=month)


def month_before(moment: dt.datetime) -> str:
    """``YYYY-MM`` of the month before ``moment``."""
    return (moment.date().replace(day=1) - dt.timedelta(days=1)).strftime("%Y-%m")


daily_digest = dg.ScheduleDefinition(
    name="daily_digest",
    job=alert_digest,
    cron_schedule=AlertsPolicy.load(config_folder()).digest_cron,
    execution_timezone="UTC",
    description="One message a day over all warnings (config/alerts.yaml: digest_cron).",
)
