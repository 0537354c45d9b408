"""In the UI the next job of the plan is requested for the keys whose inputs changed."""

import dagster as dg

from e2i_dagster.config.policy import current_policy
from jobs.all_jobs import build_cohorts, load_and_qc, scope_pipeline
from resources.warehouse import Warehouse


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="cohorts_after_load",
    monitored_jobs=[load_and_qc],
    request_jobs=[build_cohorts],
    description="After a load, requests build_cohorts for each cohort that is older than the raw tables.",
)
def cohorts_after_load(context: dg.RunStatusSensorContext, warehouse: Warehouse) -> list[dg.RunRequest]:
    from e2i_dagster.tables import RAW_TABLES
    from e2i_dagster.versions.staleness import older_than

    with warehouse.engine().connect() as connection:
        stale = older_than(connection, "cohort", sorted(current_policy().cohorts), RAW_TABLES)
    return [
        dg.RunRequest(
            run_key=f"{context.dagster_run.run_id}:{key}", job_name="build_cohorts", partition_key=key
        )
        for key in stale
    ]


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="scopes_after_cohorts",
    monitored_jobs=[build_cohorts],
    request_jobs=[scope_pipeline],
    description="After a cohort was built, requests scope_pipeline for each of its scopes that is older.",
)
def scopes_after_cohorts(context: dg.RunStatusSensorContext, warehouse: Warehouse) -> list[dg.RunRequest]:
    from e2i_dagster.versions.staleness import older_than

    cohort = context.dagster_run.tags.get("dagster/partition", "")
    scopes = [name for name, scope in current_policy().scopes.items() if scope.cohort == cohort]
    with warehouse.engine().connect() as connection:
        stale = older_than(connection, "deployment", scopes, ("cohort",), upstream_partition=cohort)
    return [
        dg.RunRequest(
            run_key=f"{context.dagster_run.run_id}:{key}", job_name="scope_pipeline", partition_key=key
        )
        for key in stale
    ]
