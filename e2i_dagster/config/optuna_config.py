"""``config/optuna_config.yaml``: hyperparameter search, training and evaluation."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from e2i_dagster.config.subgroups import SubgroupPolicy
from e2i_dagster.policy_files.base import PolicyModel, read_yaml
from e2i_dagster.policy_files.environment import config_folder


class Sampler(PolicyModel):
    """How points are drawn: tree-structured Parzen estimator, at random, or covariance matrix adaptation."""

    name: Literal["tpe", "random", "cmaes"]
    seed: int = Field(ge=0)
    n_startup_trials: int = Field(ge=1)
    multivariate: bool


class Pruner(PolicyModel):
    """When a trial is stopped early. A step is one tree, for boosting one round.

    Attributes:
        n_startup_trials, n_warmup_steps: of the median pruner.
        interval: trees between two reports.
        reduction_factor: of hyperband.
    """

    name: Literal["median", "hyperband", "none"]
    n_startup_trials: int = Field(ge=0)
    n_warmup_steps: int = Field(ge=0)
    interval: int = Field(ge=1)
    reduction_factor: int = Field(default=3, ge=2)


class Optimization(PolicyModel):
    """Budget of one study.

    Attributes:
        n_trials_by_scope: instead of ``n_trials`` for the scopes that it names.
        n_jobs: trials that run at once.
    """

    n_trials: int = Field(ge=1, le=500)
    n_trials_by_scope: dict[str, Annotated[int, Field(ge=1, le=500)]] = {}
    timeout_seconds: float = Field(gt=0, le=7200)
    n_jobs: int = Field(default=1, ge=1, le=64)

    def trials_of(self, scope: str) -> int:
        """Number of trials of a study of ``scope``."""
        return self.n_trials_by_scope.get(scope, self.n_trials)


class EarlyStopping(PolicyModel):
    """Rounds without a lower loss on validation rows after which boosting ends."""

    rounds: int = Field(ge=1)


class WarmStart(PolicyModel):
    """What a study takes over from earlier ones of the same algorithm and problem type."""

    maximum_trials: int = Field(ge=0, le=20)
    minimum_similarity: float = Field(ge=0, le=1)


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


class ChancePolicy(PolicyModel):
    """Permutation test of a model.

    Attributes:
        maximum_p_value: a model with a larger one is not registered.
        gate: False: the test is shown, and is no criterion.
    """

    permutations: int = Field(ge=99, le=9999)
    maximum_p_value: float = Field(gt=0, lt=1)
    gate: bool

    @model_validator(mode="after")
    def _permutations_can_reach_it(self) -> Self:
        if 1 / (1 + self.permutations) > self.maximum_p_value:
            raise ValueError(
                f"{self.permutations} permutations reach no p-value below {1 / (1 + self.permutations):.3g}; "
                f"maximum_p_value {self.maximum_p_value:g} needs {ceil(1 / self.maximum_p_value) - 1}"
            )
        return self


class LearningCurvePolicy(PolicyModel):
    """Fits of the evaluation on parts of the training patients.

    Attributes:
        enabled: False: the page says that the curve is skipped.
        fractions: parts of the training patients, ascending; each is one fit.
        maximum_rows: a part with more patients is not fitted.
    """

    enabled: bool
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=2, max_length=10)
    maximum_rows: int = Field(ge=100)

    @field_validator("fractions")
    @classmethod
    def _fractions_ascend(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(fractions)):
            raise ValueError(f"fractions ascend (found: {', '.join(f'{part:g}' for part in fractions)})")
        return fractions


class EvaluationPolicy(PolicyModel):
    """Intervals and minimum counts of the evaluation."""

    bootstrap: int = Field(ge=100)
    seed: int = Field(ge=0)
    level: float = Field(gt=0.5, lt=1)
    minimum_per_class: int = Field(ge=2)
    logistic_margin: float = Field(ge=0, le=0.1)
    better_than_chance: ChancePolicy
    learning_curve: LearningCurvePolicy
    subgroups: SubgroupPolicy = SubgroupPolicy()


class ExplanationPolicy(PolicyModel):
    """Bounds of the explanation.

    Attributes:
        bootstrap_refits: fits that show whether importances are stable; 0: none.
        maximum_rows: with more training patients there are no refits.
    """

    bootstrap_refits: int = Field(ge=0, le=100)
    maximum_rows: int = Field(ge=100)


class OptunaPolicy(PolicyModel):
    """The whole file."""

    sampler: Sampler
    pruner: Pruner
    optimization: Optimization
    early_stopping: EarlyStopping
    warm_start: WarmStart
    metric: Metric
    preprocessing: Preprocessing
    calibration: Calibration
    threshold: Threshold
    evaluation: EvaluationPolicy
    explanations: ExplanationPolicy

    @classmethod
    def load(cls, folder: Path | None = None) -> OptunaPolicy:
        """Read ``optuna_config.yaml`` of ``folder`` (default: the configuration folder)."""
        return read_yaml((folder or config_folder()) / "optuna_config.yaml", cls)
