"""``config/causal.yaml``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from e2i_dagster.config.base import PolicyModel, read_yaml


class OverlapRule(PolicyModel):
    """When an effect is refused for want of overlap.

    Attributes:
        maximum_share_outside: share of rows whose propensity may lie outside the clipping bounds.
        maximum_auc: cross-fitted ROC-AUC of the propensity from which treatment counts as separated.
    """

    maximum_share_outside: float = Field(ge=0, lt=1)
    maximum_auc: float = Field(gt=0.5, lt=1)


class CausalPolicy(PolicyModel):
    """How effects are estimated and when they are refused.

    Attributes:
        minimum_arm: rows of each arm below which nothing is estimated.
        level: level of every interval. bootstrap_draws: of the consensus interval.
        propensity_floor: propensities are clipped to [floor, 1 - floor].
        balanced_difference: absolute standardized mean difference that counts as balanced.
        forest_trees: of the causal forest. maximum_levels: of a categorical confounder.
    """

    minimum_arm: int = Field(ge=10)
    level: float = Field(gt=0.5, lt=1)
    bootstrap_draws: int = Field(ge=200)
    propensity_floor: float = Field(gt=0, lt=0.2)
    overlap: OverlapRule
    balanced_difference: float = Field(gt=0, lt=1)
    forest_trees: int = Field(ge=20, multiple_of=4)
    maximum_levels: int = Field(ge=2)

    @classmethod
    def load(cls, folder: Path) -> CausalPolicy:
        """Read ``causal.yaml`` in ``folder``."""
        return read_yaml(folder / "causal.yaml", cls)
