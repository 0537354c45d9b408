"""``config/causal.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from e2i_dagster.config.names import question_problems
from e2i_dagster.policy_files.base import PolicyModel, read_yaml


class OverlapRule(PolicyModel):
    """When an effect is refused for want of overlap.

    Attributes:
        maximum_share_outside: share of rows whose propensity may lie outside the clipping bounds.
        maximum_auc: cross-fitted ROC-AUC of the propensity from which treatment counts as separated.
    """

    maximum_share_outside: float = Field(ge=0, lt=1)
    maximum_auc: float = Field(gt=0.5, lt=1)


class RefutationRule(PolicyModel):
    """How refuters work.

    Attributes:
        repetitions: of each refuter that draws. subset_share: rows kept by the subset refuter.
        unobserved_strength: strength of the confounder that the effect must survive, in multiples of
            the strongest observed one.
    """

    repetitions: int = Field(ge=3)
    subset_share: float = Field(ge=0.5, lt=1)
    unobserved_strength: float = Field(gt=0)


Refuter = Literal[
    "placebo_treatment", "dummy_outcome", "random_common_cause", "subset", "unobserved_confounder"
]


class BoostingRule(PolicyModel):
    """Parameters of the boosted final stage: weak and slow, since its target is mostly noise."""

    max_iter: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=1)
    max_leaf_nodes: int = Field(ge=2)
    min_samples_leaf: int = Field(ge=5)


class EffectModelRule(PolicyModel):
    """How a model of individual effects is fitted, and when it may be served.

    Attributes:
        required_refuters: that the average effect must pass. maximum_slope_p_value: one-sided p of the
            calibration slope on validation patients. groups: equal parts of the validation patients by
            predicted effect, whose measured effects an answer carries. boosting: of the final stage.
    """

    required_refuters: tuple[Refuter, ...] = Field(min_length=1)
    maximum_slope_p_value: float = Field(gt=0, lt=0.5)
    groups: int = Field(ge=2, le=10)
    boosting: BoostingRule


class QuestionRule(PolicyModel):
    """Which effect is estimated for each scope; the outcome is the scope's label.

    Attributes:
        treatment: its name. window_days: days before the index date in which contacts count.
        threshold: quality_score of the best contact from which a patient counts as treated.
        confounders: features, fixed before the treatment. negative_controls: features that it cannot change.
    """

    treatment: str = Field(min_length=1, pattern=r"^[a-z0-9_]+$")
    window_days: int = Field(ge=1)
    threshold: float
    confounders: tuple[str, ...] = Field(min_length=1)
    negative_controls: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _apart(self) -> QuestionRule:
        both = sorted(set(self.confounders) & set(self.negative_controls))
        if both:
            raise ValueError(f"both confounder and negative control: {', '.join(both)}")
        return self


class CausalPolicy(PolicyModel):
    """How effects are estimated and when they are refused.

    Attributes:
        minimum_arm: rows of each arm below which nothing is estimated.
        level: level of every interval. bootstrap_draws: of the consensus interval.
        propensity_floor: propensities are clipped to [floor, 1 - floor].
        balanced_difference: absolute standardized mean difference that counts as balanced.
        forest_trees: of the causal forest. maximum_levels: of a categorical confounder.
        minimum_negative_controls: below this an estimate is not calibrated by them.
        treatment_cost: of treating one more unit, in units of the outcome.
        effect_model: the model of individual effects that is served. question: asked of each scope.
    """

    minimum_arm: int = Field(ge=10)
    level: float = Field(gt=0.5, lt=1)
    bootstrap_draws: int = Field(ge=200)
    propensity_floor: float = Field(gt=0, lt=0.2)
    overlap: OverlapRule
    balanced_difference: float = Field(gt=0, lt=1)
    forest_trees: int = Field(ge=20, multiple_of=4)
    maximum_levels: int = Field(ge=2)
    refutation: RefutationRule
    minimum_negative_controls: int = Field(ge=3)
    treatment_cost: float = Field(ge=0)
    effect_model: EffectModelRule
    question: QuestionRule

    @classmethod
    def load(cls, folder: Path) -> CausalPolicy:
        """Read ``causal.yaml`` in ``folder``."""
        from e2i_dagster.config.feature_files import names_in

        return read_yaml(
            folder / "causal.yaml", cls, lambda read: question_problems(read.question, names_in(folder))
        )
