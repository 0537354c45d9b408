"""Tracking, registration, stages and their evidence."""

from e2i_dagster.registry.mlflow_runs import (
    TRUSTED_TYPES,
    LoggedModel,
    default_artifact_root,
    default_tracking_uri,
    ensure_experiment,
    experiment_name,
    load_pipeline,
    log_explanation,
    log_training,
    run_tags,
    silence_telemetry,
)
from e2i_dagster.registry.records import (
    experiment_key,
    model_key,
    performance_history,
    write_experiment,
    write_explanation,
    write_model,
    write_stage,
    write_study,
    write_training_run,
)
from e2i_dagster.registry.stages import Approval, Evidence, Transition, check_transition
from e2i_dagster.registry.versions import RegisteredVersion, promote, register, version_at

__all__ = [
    "TRUSTED_TYPES",
    "Approval",
    "Evidence",
    "LoggedModel",
    "RegisteredVersion",
    "Transition",
    "check_transition",
    "default_artifact_root",
    "default_tracking_uri",
    "ensure_experiment",
    "experiment_key",
    "experiment_name",
    "load_pipeline",
    "log_explanation",
    "log_training",
    "model_key",
    "performance_history",
    "promote",
    "register",
    "run_tags",
    "silence_telemetry",
    "version_at",
    "write_experiment",
    "write_explanation",
    "write_model",
    "write_stage",
    "write_study",
    "write_training_run",
]
