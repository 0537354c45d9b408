"""The queue of runs of a deployment behind the proxy: a run carries the name of who launched it."""

import dagster as dg

from e2i_dagster.policy_files.actors import tags_of_user, user_of_request


class AuthenticatedRunCoordinator(dg.QueuedRunCoordinator):
    """Dagster's queue; a run that was launched through the proxy is tagged with its authenticated user."""

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        """Tag the run when its request comes from the proxy, and queue it."""
        user = user_of_request(context.get_request_header)
        if user is not None:
            run_id = context.dagster_run.run_id
            self._instance.add_run_tags(run_id, tags_of_user(run_id, user))
        return super().submit_run(context)
