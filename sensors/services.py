"""Supervisors of services that were killed."""

import dagster as dg


@dg.sensor(
    name="service_watch",
    minimum_interval_seconds=5,
    description="Starts the supervisor of a service again when it was killed; one that was stopped stays so.",
)
def service_watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    from e2i_dagster.policy_files.environment import state_folder
    from e2i_dagster.serving.watch import note_sensor, restart_killed

    note_sensor(state_folder())
    started = restart_killed()
    for service in started:
        context.log.warning("The supervisor of %s was killed and is started again.", service)
    return dg.SkipReason(f"started again: {', '.join(started)}" if started else "no supervisor was killed")
