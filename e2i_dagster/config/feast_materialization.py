"""``config/feast_materialization.yaml``: freshness limits, snapshots, size of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from e2i_dagster.policy_files.base import PolicyModel, read_yaml


class FreshnessLimits(PolicyModel):
    """Age of the last materialization from which a view warns and from which it is stale."""

    warn_after_seconds: int = Field(gt=0)
    stale_after_seconds: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> FreshnessLimits:
        if self.stale_after_seconds <= self.warn_after_seconds:
            raise ValueError("stale_after_seconds must be greater than warn_after_seconds")
        return self


class SnapshotPolicy(PolicyModel):
    """For which days feature rows are computed, besides the day before each index date."""

    hcp_month_ends: int = Field(ge=1)
    market_month_ends: int = Field(ge=1)
    scoring_patients_at: Literal["index", "data_end"]


class FeastMaterializationPolicy(PolicyModel):
    """The whole file."""

    freshness: FreshnessLimits
    snapshots: SnapshotPolicy
    online_write_batch_size: int = Field(gt=0)

    @classmethod
    def load(cls, folder: Path) -> FeastMaterializationPolicy:
        """Read ``feast_materialization.yaml`` of the configuration ``folder``.

        Raises:
            ConfigError: the file is missing or a field is wrong.
        """
        return read_yaml(folder / "feast_materialization.yaml", cls)
