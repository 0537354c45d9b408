"""MLflow in Dagster runs: dagster-mlflow's client, one MLflow run for each Dagster run and scope."""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dagster as dg

from e2i_dagster.config.scope import ScopeSpec


class MlflowResource(dg.ConfigurableResource):
    """Opens MLflow runs.

    dagster-mlflow finds the MLflow run of a Dagster run by the tag ``dagster_run_id`` inside one
    experiment. Each scope has an experiment of its own, so there is one MLflow run for each
    (Dagster run, scope): the steps of one run continue it, a backfill of several scopes keeps them apart.
    """

    tracking_uri: str = ""
    """Empty: ``MLFLOW_TRACKING_URI``, or the database ``mlflow`` in the warehouse's server."""

    artifact_root: str = ""
    """Empty: the folder ``mlflow`` in the lake. Not used with a tracking server (http)."""

    def uri(self) -> str:
        """The tracking address in use."""
        from e2i_dagster.registry import default_tracking_uri

        return self.tracking_uri or default_tracking_uri()

    @contextlib.contextmanager
    def run(self, context: Any, scope: ScopeSpec) -> Iterator[Any]:
        """The MLflow run of ``context``'s Dagster run and ``scope``, active inside the block.

        Yields dagster-mlflow's client (all functions of ``mlflow`` plus ``tracking_client``). The run is
        ended on the way out: FINISHED, FAILED when the block raised, KILLED when it was interrupted. Runs that a
        killed process left RUNNING in the scope's experiment are ended first.

        Raises:
            UnavailableError: the tracking store does not answer, at the beginning or on the way.
        """
        from e2i_dagster.registry import (
            default_artifact_root,
            end_abandoned_runs,
            ensure_experiment,
            experiment_name,
            run_tags,
            silence_telemetry,
            tracking_store_answers,
        )

        silence_telemetry()
        import mlflow

        tracking_uri, name = self.uri(), experiment_name(scope)
        experiment = ensure_experiment(
            name, tracking_uri=tracking_uri, artifact_root=self.artifact_root or default_artifact_root()
        )
        for run_id in end_abandoned_runs(experiment, context.run.run_id, tracking_uri=tracking_uri):
            context.log.warning(f"The MLflow run {run_id} of a process that was killed is ended as KILLED.")
        mlflow.set_registry_uri(tracking_uri)
        with warnings.catch_warnings():
            # dagster-mlflow announces itself as beta at each use.
            warnings.simplefilter("ignore", dg.BetaWarning)
            from dagster_mlflow.resources import MlFlow

            client = MlFlow(
                SimpleNamespace(
                    log=context.log,
                    run_id=context.run.run_id,
                    dagster_run=SimpleNamespace(job_name=f"{scope.key} {context.run.job_name}"),
                    resource_config={
                        "experiment_name": name,
                        "mlflow_tracking_uri": tracking_uri,
                        "env": {},
                        "extra_tags": run_tags(scope),
                    },
                )
            )
        status = "FAILED"
        try:
            with tracking_store_answers():
                yield client
            status = "FINISHED"
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            status = "KILLED"
            raise
        finally:
            _end_run(status, context.log)


def _end_run(status: str, log: Any) -> None:
    """End the active run. A store that does not answer any more hides no other error: the next run of the scope
    ends what is left."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.end_run(status)
    except (MlflowException, SQLAlchemyError) as error:
        if status == "FINISHED":
            raise
        log.warning(
            f"The MLflow run could not be ended as {status} ({type(error).__name__}); the next one ends it."
        )
