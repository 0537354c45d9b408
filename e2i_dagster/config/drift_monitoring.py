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


class SeverityBounds(PolicyModel):
    """Lower bound of each severity; must increase."""

    low: float = Field(gt=0)
    medium: float
    high: float
    critical: float

    @model_validator(mode="after")
    def _increasing(self) -> SeverityBounds:
        if not self.low < self.medium < self.high < self.critical:
            raise ValueError("low < medium < high < critical must hold")
        return self

    def severity_of(self, value: float) -> Severity:
        """The highest severity whose bound ``value`` reaches."""
        reached: list[Severity] = [name for name in SEVERITIES[1:] if value >= getattr(self, name)]
        return reached[-1] if reached else "none"


class MultivariateRule(PolicyModel):
    """Drift of all features together.

    Attributes:
        sample: rows of each side that the domain classifier learns from, at most.
        folds: of its cross-fitting.
        auc: severity by the area under its ROC curve (0.5: the two sides cannot be told apart).
        explained_variance: share of the reference's variance that the principal components keep.
        reconstruction: severity by the change of the mean reconstruction error, in standard deviations.
    """

    sample: int = Field(ge=100)
    folds: int = Field(ge=2, le=20)
    auc: SeverityBounds
    explained_variance: float = Field(gt=0, lt=1)
    reconstruction: SeverityBounds

    @model_validator(mode="after")
    def _above_chance(self) -> MultivariateRule:
        if not 0.5 < self.auc.low < self.auc.critical <= 1:
            raise ValueError("auc: bounds lie above 0.5 and up to 1")
        return self


class ImpactRule(PolicyModel):
    """Which drift can move the model.

    Attributes:
        minimum_importance: share of the model's importance below which a feature cannot.
        minimum_effective_share: share of the validation rows that must remain, as effective sample size, once
            they are weighted like the current rows; below it the effect on performance is not estimable.
    """

    minimum_importance: float = Field(ge=0, lt=1)
    minimum_effective_share: float = Field(gt=0, lt=1)


class PerformanceRule(PolicyModel):
    """Performance with labels and before them.

    Attributes:
        window_days, windows: length of a window, and how many of them a report shows.
        minimum_predictions: predictions of a window that an estimate needs.
        minimum_labels: closed labels of a window that a measurement needs; minimum_per_class: of the rarer class.
        level: of intervals. concept_level: of the interval that a measurement must leave to be concept drift.
        resamples: draws behind the intervals.
        loss: severity by the loss of ROC-AUC, or by the relative increase of the error of a regression.
    """

    window_days: int = Field(ge=1)
    windows: int = Field(ge=1, le=366)
    minimum_predictions: int = Field(ge=10)
    minimum_labels: int = Field(ge=10)
    minimum_per_class: int = Field(ge=2)
    level: float = Field(gt=0.5, lt=1)
    concept_level: float = Field(gt=0.5, lt=1)
    resamples: int = Field(ge=100)
    loss: SeverityBounds


class AlertRule(PolicyModel):
    """From which severity on an alert is raised."""

    from_severity: Severity


class RetrainingRule(PolicyModel):
    """When a retraining is proposed or requested.

    Attributes:
        loss_threshold: loss of performance, measured or estimated, from which on it is (as ``performance.loss``).
        composite_threshold: composite drift score from which on it is where performance is not known.
        minimum_new_labels: closed labels, newer than the training data, that it needs.
    """

    mode: Literal["propose", "request"]
    loss_threshold: float = Field(gt=0, lt=1)
    composite_threshold: float = Field(ge=0, le=1)
    cool_down_days: int = Field(ge=0)
    minimum_new_labels: int = Field(ge=0)


class DriftPolicy(PolicyModel):
    """When a difference counts, and what follows."""

    false_discovery_rate: float = Field(gt=0, lt=1)
    minimum_sample: MinimumSample
    psi_bins: int = Field(ge=4, le=50)
    severity_psi: SeverityBounds
    severity_weight: dict[Severity, float]
    multivariate: MultivariateRule
    impact: ImpactRule
    performance: PerformanceRule
    alerts: AlertRule
    retraining: RetrainingRule

    @classmethod
    def load(cls, folder: Path) -> DriftPolicy:
        """Read ``drift_monitoring.yaml`` in ``folder``."""
        return read_yaml(folder / "drift_monitoring.yaml", cls)
