"""``config/feature_selection.yaml``: limits of the rules that drop features before training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from e2i_dagster.policy_files.base import PolicyModel, read_yaml


class FeatureSelectionPolicy(PolicyModel):
    """Limits of missingness, variance, shift with time, correlation and mutual information."""

    max_missing_share: float = Field(gt=0, le=1)
    max_same_value_share: float = Field(gt=0, le=1)
    max_time_shift: float = Field(gt=0)
    max_correlation: float = Field(gt=0, le=1)
    max_p_value: float = Field(gt=0, le=1)
    bins: int = Field(ge=2, le=100)

    @classmethod
    def load(cls, folder: Path) -> FeatureSelectionPolicy:
        """Read ``feature_selection.yaml`` of the configuration ``folder``.

        Raises:
            ConfigError: the file is missing or a field is wrong.
        """
        return read_yaml(folder / "feature_selection.yaml", cls)
