"""``config/optuna_config.yaml``: hyperparameter search, training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from e2i_dagster.policy_files.base import PolicyModel, read_yaml
from e2i_dagster.policy_files.environment import config_folder


class Sampler(PolicyModel):
    """Tree-structured Parzen estimator."""

    name: Literal["tpe"]
    seed: int = Field(ge=0)
    n_startup_trials: int = Field(ge=1)
    multivariate: bool


class Pruner(PolicyModel):
    """Median pruner; steps and checkpoints are percent of a model's trees."""

    name: Literal["median"]
    n_startup_trials: int = Field(ge=0)
    n_warmup_steps: int = Field(ge=0, lt=100)
    checkpoints: tuple[int, ...]

    @field_validator("checkpoints")
    @classmethod
    def _inside(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 < step < 100 for step in value) or list(value) != sorted(set(value)):
            raise ValueError("checkpoints are ascending percentages above 0 and below 100")
        return value


class Optimization(PolicyModel):
    """Budget of one study."""

    n_trials: int = Field(ge=1, le=500)
    timeout_seconds: float = Field(gt=0, le=7200)


class Metric(PolicyModel):
    """What the search maximises."""

    binary_classification: Literal["roc_auc"]
    multiclass_classification: Literal["roc_auc_ovr"]
    survival: Literal["concordance_index"]
    regression: Literal["neg_root_mean_squared_error"]


class Preprocessing(PolicyModel):
    """How features become a matrix."""

    max_levels: int = Field(ge=2)


class Calibration(PolicyModel):
    """Probability calibration.

    Attributes:
        minimum_per_class: rows of either outcome needed: of validation, else of training by cross-fitting.
        rare_below: share of the rarer outcome below which a sigmoid moves the mean too.
        folds: of the cross-fitting on training rows.
    """

    minimum_per_class: int = Field(ge=5)
    rare_below: float = Field(ge=0, le=0.5)
    folds: int = Field(ge=2, le=10)


class Threshold(PolicyModel):
    """How the cut between the classes is found on validation rows."""

    rule: Literal["youden"]


class EvaluationPolicy(PolicyModel):
    """Intervals and minimum counts of the evaluation."""

    bootstrap: int = Field(ge=100)
    seed: int = Field(ge=0)
    level: float = Field(gt=0.5, lt=1)
    minimum_per_class: int = Field(ge=2)
    logistic_margin: float = Field(ge=0, le=0.1)


class OptunaPolicy(PolicyModel):
    """The whole file."""

    sampler: Sampler
    pruner: Pruner
    optimization: Optimization
    metric: Metric
    preprocessing: Preprocessing
    calibration: Calibration
    threshold: Threshold
    evaluation: EvaluationPolicy

    @classmethod
    def load(cls, folder: Path | None = None) -> OptunaPolicy:
        """Read ``optuna_config.yaml`` of ``folder`` (default: the configuration folder)."""
        return read_yaml((folder or config_folder()) / "optuna_config.yaml", cls)
