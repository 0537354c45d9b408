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
        ended on the way out: FINISHED, FAILED when the block raised, KILLED when it was interrupted. Runs of
        the scope whose process was killed are ended first.
        """
        from e2i_dagster.registry import (
            PROCESS_TAG,
            default_artifact_root,
            end_abandoned_runs,
            ensure_experiment,
            experiment_name,
            run_tags,
            silence_telemetry,
            this_process,
        )

        silence_telemetry()
        import mlflow

        tracking_uri, name = self.uri(), experiment_name(scope)
        experiment = ensure_experiment(
            name, tracking_uri=tracking_uri, artifact_root=self.artifact_root or default_artifact_root()
        )
        for run_id in end_abandoned_runs(experiment, tracking_uri=tracking_uri):
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
        mlflow.set_tag(PROCESS_TAG, this_process())
        status = "FAILED"
        try:
            yield client
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            mlflow.end_run(status)
