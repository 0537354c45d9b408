"""Rows of the model tables. Each write is an upsert by a key derived from what the row is about, so that a
repeated run changes its row and adds none."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.explain import Explanation
from e2i_dagster.tables.description.models import (
    ml_experiments,
    ml_hpo_studies,
    ml_model_registry,
    ml_shap_analyses,
    ml_training_runs,
)
from e2i_dagster.training import Evaluation, SearchResult, TrainedModel

_NAMESPACE = uuid.UUID("5d0b7d2e-0f4a-5f0c-9a51-6f7d3a3f4c11")


def key_of(table: str, *parts: str) -> uuid.UUID:
    """The key of the row of ``table`` that is about ``parts``."""
    return uuid.uuid5(_NAMESPACE, "\x1f".join((table, *parts)))


def experiment_key(experiment_name: str) -> uuid.UUID:
    """Key in ``ml_experiments``."""
    return key_of("ml_experiments", experiment_name)


def model_key(model_name: str, version: str) -> uuid.UUID:
    """Key in ``ml_model_registry``."""
    return key_of("ml_model_registry", model_name, version)


def write_experiment(
    engine: sa.Engine,
    scope: ScopeSpec,
    *,
    experiment_name: str,
    mlflow_experiment_id: str,
    created_by: str,
) -> uuid.UUID:
    """Write the experiment of ``scope``; returns its key."""
    minimum = scope.success_criteria.min_auc
    key = experiment_key(experiment_name)
    values = {
        "id": key,
        "experiment_name": experiment_name,
        "mlflow_experiment_id": mlflow_experiment_id,
        "description": " ".join(scope.sentences()),
        "prediction_target": scope.target,
        "target_population": scope.cohort,
        "prediction_horizon_days": scope.horizon_days,
        "minimum_auc": None if minimum is None else minimum.value,
        "brand": scope.brand,
        "scope": scope.key,
        "problem_type": scope.problem_type,
        "scope_digest": scope.digest(),
        "created_by": created_by,
    }
    _upsert(engine, ml_experiments, values, keep=("created_by", "created_at"))
    return key


def write_study(engine: sa.Engine, search: SearchResult, *, experiment_id: uuid.UUID | None) -> uuid.UUID:
    """Write the study; returns its key."""
    key = key_of("ml_hpo_studies", search.study_name)
    _upsert(
        engine,
        ml_hpo_studies,
        {"id": key, "experiment_id": experiment_id, **search.to_record()},
        keep=("created_at",),
    )
    return key


def write_training_run(
    engine: sa.Engine,
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    run_name: str,
    mlflow_run_id: str,
    experiment_id: uuid.UUID | None,
    search: SearchResult | None = None,
    digests: Mapping[str, str] | None = None,
    model_registry_id: uuid.UUID | None = None,
) -> uuid.UUID:
    """Write one training run, accepted or rejected; returns its key."""
    key = key_of("ml_training_runs", mlflow_run_id)
    record = evaluation.to_record()
    metrics = {
        name: record["splits"].get(name, {}).get("metrics", {}) for name in ("train", "validation", "test")
    }
    test = evaluation.splits.get("test")
    _upsert(
        engine,
        ml_training_runs,
        {
            "id": key,
            "experiment_id": experiment_id,
            "model_registry_id": model_registry_id,
            "run_name": run_name,
            "mlflow_run_id": mlflow_run_id,
            "algorithm": model.algorithm,
            "hyperparameters": model.parameters,
            "training_samples": model.training_rows,
            "validation_samples": model.validation_rows,
            "test_samples": None if test is None else test.n,
            "feature_names": list(model.features),
            "train_metrics": metrics["train"],
            "validation_metrics": metrics["validation"],
            "test_metrics": metrics["test"],
            "criteria": record["criteria"],
            "data_digests": {**model.data_digests, **(digests or {})},
            "model_digest": model.digest,
            "status": "accepted" if evaluation.accepted else "rejected",
            "error_message": None if evaluation.accepted else " ".join(evaluation.reasons()),
            "duration_seconds": model.seconds + evaluation.seconds,
            "optuna_study_name": None if search is None else search.study_name,
            "optuna_trial_number": None if search is None else search.best_trial,
        },
    )
    return key


def write_model(
    engine: sa.Engine,
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    model_name: str,
    version: str,
    mlflow_run_id: str,
    model_uri: str,
    stage: str,
    experiment_id: uuid.UUID | None,
) -> uuid.UUID:
    """Write a registered version and link its training run to it; returns its key."""
    key = model_key(model_name, version)
    _upsert(
        engine,
        ml_model_registry,
        {
            "id": key,
            "experiment_id": experiment_id,
            "model_name": model_name,
            "model_version": version,
            "mlflow_run_id": mlflow_run_id,
            "mlflow_model_uri": model_uri,
            "algorithm": model.algorithm,
            "hyperparameters": model.parameters,
            "feature_count": len(model.features),
            "training_samples": model.training_rows,
            "auc": evaluation.metric("test", "roc_auc"),
            "pr_auc": evaluation.metric("test", "pr_auc"),
            "brier_score": evaluation.metric("test", "brier"),
            "calibration_slope": evaluation.metric("test", "calibration_slope"),
            "stage": stage,
            "model_digest": model.digest,
        },
        keep=("registered_at",),
    )
    with engine.begin() as connection:
        connection.execute(
            sa.update(ml_training_runs)
            .where(ml_training_runs.c.mlflow_run_id == mlflow_run_id)
            .values(model_registry_id=key)
        )
    return key


def write_stage(engine: sa.Engine, model_name: str, version: str, stage: str) -> None:
    """Record the stage that a registered version has reached."""
    with engine.begin() as connection:
        connection.execute(
            sa.update(ml_model_registry)
            .where(ml_model_registry.c.id == model_key(model_name, version))
            .values(stage=stage, promoted_at=sa.func.now())
        )


def write_explanation(
    engine: sa.Engine, explanation: Explanation, *, model_registry_id: uuid.UUID | None = None
) -> uuid.UUID:
    """Write the explanation; returns its key. Written again with the registered version, it is linked."""
    record = explanation.to_record()
    key = key_of("ml_shap_analyses", explanation.model_digest, record["analysis_type"], record["data_split"])
    _upsert(
        engine,
        ml_shap_analyses,
        {
            "id": key,
            "model_registry_id": model_registry_id,
            "model_digest": explanation.model_digest,
            **record,
        },
    )
    return key


def performance_history(
    engine: sa.Engine, experiment_name: str, metric: str = "roc_auc"
) -> dict[str, list[float]]:
    """Validation values of ``metric`` of earlier runs of the experiment by algorithm, oldest first."""
    table = ml_training_runs
    value = table.c.validation_metrics[metric]["value"].as_float()
    query = (
        sa.select(table.c.algorithm, value)
        .where(table.c.experiment_id == experiment_key(experiment_name), value.is_not(None))
        .order_by(table.c.completed_at)
    )
    found: dict[str, list[float]] = {}
    with engine.connect() as connection:
        for algorithm, measured in connection.execute(query):
            found.setdefault(algorithm, []).append(float(measured))
    return found


def _upsert(
    engine: sa.Engine, table: sa.Table, values: Mapping[str, Any], keep: tuple[str, ...] = ()
) -> None:
    statement = insert(table).values(**values)
    changed: dict[str, Any] = {name: statement.excluded[name] for name in values if name not in ("id", *keep)}
    if "updated_at" in table.c:
        changed["updated_at"] = sa.func.now()
    with engine.begin() as connection:
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))
