"""One training attempt on record: MLflow and the warehouse, accepted or rejected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.policy_files.actors import Actor
from e2i_dagster.registry.history import StageEvent, record_events
from e2i_dagster.registry.mlflow_runs import experiment_name, log_training
from e2i_dagster.registry.model_files import ModelFiles
from e2i_dagster.registry.records import (
    write_experiment,
    write_model,
    write_study,
    write_training_run,
)
from e2i_dagster.registry.stages import Evidence
from e2i_dagster.registry.versions import RegisteredVersion, promote, register
from e2i_dagster.selection import AlgorithmChoice
from e2i_dagster.training import Evaluation, SearchResult, TrainedModel
from e2i_dagster.training.pattern_memory import write_pattern


class TrackedRun(BaseModel):
    """Where a training attempt is recorded.

    Attributes:
        files: those of the model; None of a run from before they were noted.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    experiment_id: str
    uri: str
    accepted: bool
    reasons: tuple[str, ...]
    files: ModelFiles | None = None

    def damage(self) -> str:
        """What is wrong with the stored model in words; empty when it is what was logged."""
        return self.files.damage() if self.files else ""

    def to_metadata(self) -> dict[str, Any]:
        """Run, model and verdict for the UI."""
        return {
            "mlflow_run_id": self.run_id,
            "mlflow_experiment_id": self.experiment_id,
            "model_uri": self.uri,
            "accepted": self.accepted,
            "reasons": "; ".join(self.reasons) or None,
        }


def track_training(
    engine: sa.Engine,
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    scope: ScopeSpec,
    search: SearchResult | None = None,
    choice: AlgorithmChoice | None = None,
    digests: Mapping[str, str],
    created_by: str,
    more: Mapping[str, Any] | None = None,
) -> TrackedRun:
    """Log the attempt to the active MLflow run and to ``ml_experiments``, ``ml_hpo_studies``, ``ml_training_runs``.

    Args:
        search, choice: absent for a model that was not searched for.
        more: further metadata of the stored model.

    Raises:
        UnavailableError: no MLflow run is active, or the tracking store does not answer.
    """
    logged = log_training(
        model, evaluation, scope=scope, search=search, choice=choice, digests=digests, more=more
    )
    experiment = write_experiment(
        engine,
        scope,
        experiment_name=experiment_name(scope),
        mlflow_experiment_id=logged.experiment_id,
        created_by=created_by,
    )
    if search is not None:
        write_study(engine, search, experiment_id=experiment)
        write_pattern(engine, search.to_pattern())
    write_training_run(
        engine,
        model,
        evaluation,
        run_name=f"{scope.key} {model.algorithm}",
        mlflow_run_id=logged.run_id,
        experiment_id=experiment,
        search=search,
        digests=dict(digests),
    )
    return TrackedRun(
        run_id=logged.run_id,
        experiment_id=logged.experiment_id,
        uri=logged.uri,
        accepted=evaluation.accepted,
        reasons=tuple(evaluation.reasons()),
        files=logged.files,
    )


def register_and_stage(
    engine: sa.Engine,
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    scope: ScopeSpec,
    cohort_approved: bool,
    tracked: TrackedRun,
    proposed_by: str,
    tracking_uri: str,
    name: str | None = None,
) -> RegisteredVersion:
    """Register an accepted model and move it to staging on its measured evidence.

    Args:
        name: in the registry; that of the scope's model by default.

    Raises:
        VerdictError: a success criterion or a rule of ``config/registry.yaml`` is not met, such as
            ``cohort_approved``; the version then stays in stage development.
    """
    from e2i_dagster.registry.records import experiment_key, write_stage

    version = register(
        model,
        evaluation,
        name=name or scope.model_name,
        model_uri=tracked.uri,
        run_id=tracked.run_id,
        tags={"e2i.scope": scope.key, "e2i.scope_digest": scope.digest()},
        tracking_uri=tracking_uri,
    )
    write_model(
        engine,
        model,
        evaluation,
        model_name=version.name,
        version=version.version,
        mlflow_run_id=tracked.run_id,
        model_uri=version.uri,
        stage=version.stage,
        experiment_id=experiment_key(experiment_name(scope)),
    )
    by = Actor(proposed_by, "self-declared")
    if version.new:
        first = StageEvent.of(
            "registered",
            version.name,
            version.version,
            by=by,
            to_stage=version.stage,
            reason="meets every success criterion of its scope",
        )
        record_events(engine, [first])
    if version.stage != "development":
        return version
    evidence = Evidence.from_evaluation(
        evaluation, proposed_by=proposed_by, cohort_approved=cohort_approved, scope_digest=scope.digest()
    )
    staged, verdict = promote(version, "staging", evidence, tracking_uri=tracking_uri)
    write_stage(engine, staged.name, staged.version, staged.stage)
    moved = StageEvent.of(
        "promoted",
        staged.name,
        staged.version,
        by=by,
        from_stage=version.stage,
        to_stage=staged.stage,
        reason="the pipeline promotes to staging when the rules are met",
        evidence=evidence,
        verdict=verdict,
    )
    record_events(engine, [moved])
    return staged
