"""The local history of runs, kept short."""

import dagster as dg

from resources.private_dagster import forget_old_runs


@dg.sensor(
    name="run_history_retention",
    minimum_interval_seconds=3_600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Deletes ended runs that the local history no longer keeps (dagster.yaml: keep_runs, keep_megabytes). "
        "Data versions, reuse and the newest figures of each asset do not depend on them."
    ),
)
def run_history_retention(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    return dg.SkipReason(f"{forget_old_runs(context.instance)} old runs were deleted")
