"""``config/registry.yaml``: names and stages of registered models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from e2i_dagster.policy_files.base import PolicyModel, read_yaml
from e2i_dagster.policy_files.environment import config_folder

Stage = Literal["development", "staging", "shadow", "production", "archived"]
#: The way up; ``archived`` is beside it.
WAY_UP: tuple[Stage, ...] = ("development", "staging", "shadow", "production")


class StageRules(PolicyModel):
    """What must be shown before a version reaches the stage. Absent rules are not checked."""

    split: Literal["validation", "test", "holdout"] = "test"
    min_auc: float | None = Field(default=None, ge=0.5, le=1)
    criteria_met: bool = False
    cohort_approved: bool = False
    min_days_in_previous: float | None = Field(default=None, ge=0)
    approval: bool = False
    min_days_superseded: float | None = Field(default=None, ge=0)


class Stages(PolicyModel):
    """One entry for each stage."""

    development: StageRules
    staging: StageRules
    shadow: StageRules
    production: StageRules
    archived: StageRules


class RegistryPolicy(PolicyModel):
    """The whole file."""

    prefix: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    stages: Stages

    @classmethod
    def load(cls, folder: Path | None = None) -> RegistryPolicy:
        """Read ``registry.yaml`` of ``folder`` (default: the configuration folder)."""
        return read_yaml((folder or config_folder()) / "registry.yaml", cls)

    def rules(self, stage: Stage) -> StageRules:
        """The rules of ``stage``."""
        return getattr(self.stages, stage)
