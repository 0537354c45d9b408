"""Tables of models: experiments, searches, training runs, registered versions, explanations.

Names and columns follow the data dictionary; a column that nothing fills is not there. ``data_split``
of the dictionary is kept where rows differ by it.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from e2i_dagster.tables.description.base import column, metadata

_ID = UUID(as_uuid=True)
_NUMBER = sa.Double
#: Also of a study that is kept in memory, by SQLite.
_JSON = JSONB().with_variant(sa.JSON(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)
_NOW = sa.text("now()")

#: Tables whose rows are never changed or deleted, by whatever role: triggers refuse it.
APPEND_ONLY: tuple[str, ...] = ("ml_model_stage_history",)
#: What can happen to a registered version.
STAGE_ACTIONS = ("registered", "proposed", "approved", "rejected", "promoted", "rolled_back", "archived")
_actions = ", ".join(f"'{action}'" for action in STAGE_ACTIONS)


def _reference(table: str, *, required: bool = False) -> tuple[object, ...]:
    return (sa.ForeignKey(f"{table}.id", ondelete="RESTRICT" if required else "SET NULL"),)


ml_experiments = sa.Table(
    "ml_experiments",
    metadata,
    column("id", _ID, "Key, derived from the experiment's name.", primary_key=True),
    column("experiment_name", sa.String(255), "Name of the MLflow experiment.", nullable=False, unique=True),
    column("mlflow_experiment_id", sa.String(100), "Key of the MLflow experiment."),
    column("description", sa.Text, "The question in words."),
    column("prediction_target", sa.String(100), "What is predicted.", nullable=False),
    column("target_population", sa.Text, "Key of the cohort."),
    column("prediction_horizon_days", sa.Integer, "Last day of the outcome window.", unit="days"),
    column("minimum_auc", _NUMBER, "ROC-AUC that a model must reach, where the scope asks for one."),
    column("brand", sa.String(100), "Brand of the scope.", vocabulary="brand"),
    column("scope", sa.String(100), "Key of the scope.", nullable=False),
    column("problem_type", sa.String(50), "Problem type of the scope.", nullable=False),
    column(
        "scope_digest", sa.String(16), "Digest of the scope's definition at the newest run.", nullable=False
    ),
    column("created_by", sa.String(100), "Who ran it first."),
    column("created_at", _MOMENT, "When it was first run.", nullable=False, server_default=_NOW),
    column("updated_at", _MOMENT, "When it was last run.", nullable=False, server_default=_NOW),
)

ml_hpo_studies = sa.Table(
    "ml_hpo_studies",
    metadata,
    column("id", _ID, "Key, derived from the study's name.", primary_key=True),
    column("study_name", sa.String(255), "Name in the study database.", nullable=False, unique=True),
    column("experiment_id", _ID, "Experiment it belongs to.", *_reference("ml_experiments")),
    column("algorithm_name", sa.String(100), "Algorithm that was searched.", nullable=False),
    column("problem_type", sa.String(50), "Problem type.", nullable=False),
    column("direction", sa.String(20), "maximize: larger values are better.", nullable=False),
    column("sampler_name", sa.String(50), "Sampler.", nullable=False),
    column("pruner_name", sa.String(50), "Pruner.", nullable=False),
    column("metric", sa.String(50), "Metric on validation rows.", nullable=False),
    column("search_space", JSONB, "Ranges and choices.", nullable=False),
    column("fixed_params", JSONB, "Parameters that are not searched.", nullable=False),
    column("n_trials", sa.Integer, "Trials in the study.", nullable=False),
    column("n_completed", sa.Integer, "Trials that ran to their end.", nullable=False),
    column("n_pruned", sa.Integer, "Trials that the pruner stopped.", nullable=False),
    column("n_failed", sa.Integer, "Trials whose process was killed.", nullable=False),
    column("best_trial_number", sa.Integer, "Number of the best trial."),
    column("best_value", _NUMBER, "Metric of the best trial."),
    column("best_params", JSONB, "Complete parameters of the best trial.", nullable=False),
    column("duration_seconds", _NUMBER, "Time of the newest call.", unit="s"),
    column("status", sa.String(50), "completed, or timeout.", nullable=False),
    column("created_at", _MOMENT, "When it was first written.", nullable=False, server_default=_NOW),
    column("updated_at", _MOMENT, "When it was last written.", nullable=False, server_default=_NOW),
)

ml_hpo_trials = sa.Table(
    "ml_hpo_trials",
    metadata,
    column(
        "study_name",
        sa.String(255),
        "Study: scope, algorithm, digest of rows and settings.",
        primary_key=True,
    ),
    column("number", sa.Integer, "Number in the study, from 0.", primary_key=True, autoincrement=False),
    column("point", sa.String(16), "Digest of the parameters; a study tries no point twice.", nullable=False),
    column("state", sa.String(20), "waiting, running, complete or pruned.", nullable=False),
    column(
        "origin",
        sa.Text,
        "drawn, defaults, or the earlier study and trial that it comes from.",
        nullable=False,
    ),
    column("parameters", _JSON, "Values of the searched parameters.", nullable=False),
    column("value", _NUMBER, "Metric on validation rows of a complete trial."),
    column("steps", _JSON, "Pairs of trees and metric, as reported on the way.", nullable=False),
    column("sampler_state", _JSON, "What sampler and pruner keep of the trial.", nullable=False),
    column("rounds", sa.Integer, "Trees that were kept, when boosting ended early."),
    column("worker", sa.Text, "Process that runs it: host, process, its start."),
    column("restarts", sa.Integer, "Times that its process was lost and it began anew.", nullable=False),
    column("seconds", _NUMBER, "Time of its run.", unit="s"),
    column("started_at", _MOMENT, "When it was last begun."),
    sa.UniqueConstraint("study_name", "point"),
    sa.CheckConstraint("state IN ('waiting', 'running', 'complete', 'pruned')", name="state_known"),
    comment="Trials of the hyperparameter searches: what several processes share and a stopped search resumes from.",
)

hpo_pattern_memory = sa.Table(
    "hpo_pattern_memory",
    metadata,
    column("study_name", sa.String(255), "Finished study.", primary_key=True),
    column("scope", sa.String(100), "Scope that was searched for.", nullable=False),
    column("algorithm_name", sa.String(100), "Algorithm.", nullable=False),
    column("problem_type", sa.String(50), "Problem type.", nullable=False),
    column("metric", sa.String(50), "Metric on validation rows.", nullable=False),
    column("training_rows", sa.Integer, "Training patients.", nullable=False, unit="patients"),
    column("n_features", sa.Integer, "Features.", nullable=False),
    column("trials", JSONB, "Best trials, best first: number, parameters, value.", nullable=False),
    column("updated_at", _MOMENT, "When it was last written.", nullable=False, server_default=_NOW),
    sa.Index("ix_hpo_pattern_memory_algorithm_name_problem_type", "algorithm_name", "problem_type"),
    comment="What earlier searches found best: later ones of the same algorithm and problem type begin there.",
)

ml_model_registry = sa.Table(
    "ml_model_registry",
    metadata,
    column("id", _ID, "Key, derived from name and version.", primary_key=True),
    column("experiment_id", _ID, "Experiment it belongs to.", *_reference("ml_experiments")),
    column("model_name", sa.String(255), "Name in the MLflow registry.", nullable=False),
    column("model_version", sa.String(50), "Version in the MLflow registry.", nullable=False),
    column("mlflow_run_id", sa.String(100), "MLflow run that made it."),
    column("mlflow_model_uri", sa.Text, "Address of the stored model."),
    column("algorithm", sa.String(100), "Algorithm.", nullable=False),
    column("hyperparameters", JSONB, "Complete parameters.", nullable=False),
    column("feature_count", sa.Integer, "Number of features."),
    column("training_samples", sa.Integer, "Training patients.", unit="patients"),
    column("auc", _NUMBER, "ROC-AUC on test.", minimum=0, maximum=1),
    column("pr_auc", _NUMBER, "PR-AUC on test.", minimum=0, maximum=1),
    column("brier_score", _NUMBER, "Brier score on test.", minimum=0),
    column("calibration_slope", _NUMBER, "Calibration slope on test."),
    column("stage", sa.String(50), "Stage it has reached.", nullable=False),
    column("model_digest", sa.String(16), "Digest of what the model computes.", nullable=False),
    column("trained_at", _MOMENT, "When it was trained."),
    column("registered_at", _MOMENT, "When it was registered.", nullable=False, server_default=_NOW),
    column("promoted_at", _MOMENT, "When it reached its stage."),
    sa.UniqueConstraint("model_name", "model_version"),
    sa.CheckConstraint("auc BETWEEN 0 AND 1", name="auc"),
)

ml_model_stage_history = sa.Table(
    "ml_model_stage_history",
    metadata,
    column("id", sa.BigInteger, "Key, rising with time.", sa.Identity(always=True), primary_key=True),
    column("model_name", sa.String(255), "Name in the MLflow registry.", nullable=False, index=True),
    column("model_version", sa.String(50), "Version in the MLflow registry.", nullable=False),
    column(
        "action",
        sa.String(20),
        "What happened to the version.",
        sa.CheckConstraint(f"action IN ({_actions})", name="action"),
        nullable=False,
    ),
    column("from_stage", sa.String(50), "Stage before."),
    column("to_stage", sa.String(50), "Stage that was asked for or reached.", nullable=False),
    column("actor", sa.String(255), "Who acted.", nullable=False),
    column(
        "authentication",
        sa.String(20),
        "authenticated by the proxy, self-declared, or automatic (a rule acted).",
        sa.CheckConstraint(
            "authentication IN ('authenticated', 'self-declared', 'automatic')", name="authentication"
        ),
        nullable=False,
    ),
    column("reason", sa.Text, "Why, in the actor's words.", nullable=False),
    column("evidence_digest", sa.String(16), "Digest of the measured evidence."),
    column("evidence", JSONB, "The measured evidence."),
    column("rules", JSONB, "Each rule of the transition, whether it was met, and what was found."),
    column(
        "simulated_days",
        _NUMBER,
        "Days in the stage before that were simulated; 0: none.",
        nullable=False,
        unit="days",
        minimum=0,
        server_default=sa.text("0"),
    ),
    column("deployment_id", sa.String(36), "Deployment that serves the version in the slot of the stage."),
    column("run_id", sa.String(36), "Dagster run that did it."),
    column(
        "recorded_at",
        _MOMENT,
        "When it was recorded.",
        nullable=False,
        server_default=sa.func.clock_timestamp(),
    ),
    comment="What happened to registered versions, in order; rows are only added.",
)

ml_training_runs = sa.Table(
    "ml_training_runs",
    metadata,
    column("id", _ID, "Key, derived from the MLflow run.", primary_key=True),
    column("experiment_id", _ID, "Experiment it belongs to.", *_reference("ml_experiments")),
    column("model_registry_id", _ID, "Registered version, when accepted.", *_reference("ml_model_registry")),
    column("run_name", sa.String(255), "Name of the run."),
    column("mlflow_run_id", sa.String(100), "MLflow run.", nullable=False, unique=True),
    column("algorithm", sa.String(100), "Algorithm.", nullable=False),
    column("hyperparameters", JSONB, "Complete parameters.", nullable=False),
    column("training_samples", sa.Integer, "Training patients.", nullable=False, unit="patients"),
    column("validation_samples", sa.Integer, "Validation patients.", unit="patients"),
    column("test_samples", sa.Integer, "Test patients, when opened.", unit="patients"),
    column("feature_names", JSONB, "Features in order.", nullable=False),
    column("train_metrics", JSONB, "Metrics on train, with intervals.", nullable=False),
    column("validation_metrics", JSONB, "Metrics on validation, with intervals.", nullable=False),
    column("test_metrics", JSONB, "Metrics on test, with intervals; empty when not opened.", nullable=False),
    column("criteria", JSONB, "Each success criterion with value, interval, distance.", nullable=False),
    column("data_digests", JSONB, "Digests of what it was trained on.", nullable=False),
    column("model_digest", sa.String(16), "Digest of what the model computes.", nullable=False),
    column("status", sa.String(50), "accepted or rejected by the success criteria.", nullable=False),
    column("error_message", sa.Text, "Why it was rejected."),
    column("completed_at", _MOMENT, "When it was evaluated.", nullable=False, server_default=_NOW),
    column("duration_seconds", _NUMBER, "Time of fit and evaluation.", unit="s"),
    column("optuna_study_name", sa.String(255), "Study that found the parameters."),
    column("optuna_trial_number", sa.Integer, "Trial that found the parameters."),
)

ml_shap_analyses = sa.Table(
    "ml_shap_analyses",
    metadata,
    column("id", _ID, "Key, derived from model digest, kind and split.", primary_key=True),
    column(
        "model_registry_id", _ID, "Registered version, when there is one.", *_reference("ml_model_registry")
    ),
    column("model_digest", sa.String(16), "Digest of the explained model.", nullable=False),
    column("analysis_type", sa.String(50), "global: over all explained patients.", nullable=False),
    column("global_importance", JSONB, "Feature -> mean absolute SHAP value.", nullable=False),
    column("base_value", _NUMBER, "Output of the model for nobody in particular."),
    column("natural_language_explanation", sa.Text, "The explanation in words."),
    column("key_drivers", ARRAY(sa.Text), "Features that move the output most."),
    column("sample_size", sa.Integer, "Patients explained.", unit="patients"),
    column("computation_method", sa.String(50), "tree, linear or permutation."),
    column("additivity_error", _NUMBER, "Largest difference between sum and output."),
    column("computed_at", _MOMENT, "When it was computed.", nullable=False, server_default=_NOW),
    column("computation_duration_seconds", _NUMBER, "Time taken.", unit="s"),
    column("data_split", sa.String(50), "Split of the explained patients.", nullable=False),
)
