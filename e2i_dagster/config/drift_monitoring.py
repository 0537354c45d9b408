"""``config/drift_monitoring.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from e2i_dagster.policy_files.base import PolicyModel, read_yaml

Severity = Literal["none", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("none", "low", "medium", "high", "critical")


class MinimumSample(PolicyModel):
    """Live values below which a test is skipped."""

    psi: int = Field(ge=10)
    ks: int = Field(ge=5)


class SeverityPsi(PolicyModel):
    """Lower PSI bound of each severity; must increase."""

    low: float = Field(gt=0)
    medium: float
    high: float
    critical: float

    @model_validator(mode="after")
    def _increasing(self) -> SeverityPsi:
        if not self.low < self.medium < self.high < self.critical:
            raise ValueError("low < medium < high < critical must hold")
        return self


class AlertRule(PolicyModel):
    """From which severity on an alert is raised."""

    from_severity: Severity


class RetrainingRule(PolicyModel):
    """When a retraining is proposed or requested."""

    mode: Literal["propose", "request"]
    composite_threshold: float = Field(ge=0, le=1)
    cool_down_days: int = Field(ge=0)
    minimum_new_labels: int = Field(ge=0)


class DriftPolicy(PolicyModel):
    """When a difference counts, and what follows."""

    false_discovery_rate: float = Field(gt=0, lt=1)
    minimum_sample: MinimumSample
    psi_bins: int = Field(ge=4, le=50)
    severity_psi: SeverityPsi
    severity_weight: dict[Severity, float]
    alerts: AlertRule
    retraining: RetrainingRule

    @classmethod
    def load(cls, folder: Path) -> DriftPolicy:
        """Read ``drift_monitoring.yaml`` in ``folder``."""
        return read_yaml(folder / "drift_monitoring.yaml", cls)
