"""What a drift report says: values, words, tables and figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.drift_monitoring import SEVERITIES, Severity
from e2i_dagster.display import Table, Words
from e2i_dagster.reports import drawn, new_figure
from e2i_dagster.training.evaluate import Estimate

Kind = Literal["data", "prediction", "multivariate", "label"]
Test = Literal["ks", "chi_square", "domain_classifier", "pca_reconstruction"]


class FeatureDrift(BaseModel):
    """What was measured for one feature, or why nothing was.

    ``psi`` in nats; ``jensen_shannon`` distance over the same bins, base 2, in [0, 1]; ``wasserstein`` distance in
    standard deviations of the reference (numbers); ``statistic`` and ``p_value`` of the two-sample
    Kolmogorov-Smirnov test (numbers) or of the chi-square test (categories); ``adjusted_p_value`` after
    Benjamini-Hochberg. ``missing``: share in the reference and now.

    Attributes:
        effect_severity: by the size of the drift alone. severity: what remains of it when the model is known.
        importance: share of the model's importance. expected_loss: of performance, by this drift alone.
        difference: of labels: share of positives, or mean, now minus in training, with its 95 % interval.
        new_categories, lost_categories: values that only one side has, of at least 11 rows.
        reason: why it was skipped, or what was found, in words.
        distribution: groups of values: words, share in the reference, share now. Groups that have fewer than 11 rows
            on both sides are together.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    state: Literal["executed", "skipped"]
    reason: str = ""
    psi: float | None = None
    jensen_shannon: float | None = None
    wasserstein: float | None = None
    missing: tuple[float, float] | None = None
    test: Test | None = None
    statistic: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    effect_severity: Severity = "none"
    severity: Severity = "none"
    importance: float | None = None
    expected_loss: float | None = None
    difference: Estimate | None = None
    new_categories: tuple[str, ...] = ()
    lost_categories: tuple[str, ...] = ()
    distribution: tuple[tuple[str, float, float], ...] = ()
    reference_count: int
    current_count: int

    @property
    def label_words(self) -> str:
        """How the closed labels differ from those of training; empty where that is not known."""
        if self.difference is None or self.difference.value is None:
            return ""
        what = "share of positives" if self.test == "chi_square" else "mean"
        low, high = self.difference.low, self.difference.high
        ends = "" if low is None or high is None else f" (95 % interval {low:+.3g} to {high:+.3g})"
        return f"{what} of the closed labels minus that of training {self.difference.value:+.3g}{ends}"

    @property
    def changes(self) -> tuple[tuple[str, float, float], ...]:
        """The three groups of values whose share changed most."""
        changed = [cell for cell in self.distribution if cell[1] != cell[2]]
        return tuple(sorted(changed, key=lambda cell: -round(abs(cell[2] - cell[1]), 9))[:3])


class DriftReport(BaseModel):
    """Drift of the features, alone and together, of the predictions and of the labels, of one scope on one day."""

    model_config = ConfigDict(frozen=True)

    scope: str
    day: dt.date
    model_id: str
    features: tuple[FeatureDrift, ...]
    composite_score: float | None

    @property
    def worst(self) -> Severity:
        """Highest severity of anything that was tested."""
        ranks = [SEVERITIES.index(feature.severity) for feature in self.features]
        return SEVERITIES[max(ranks, default=0)]

    @property
    def tested(self) -> tuple[FeatureDrift, ...]:
        """Features that had enough values to be tested."""
        return tuple(feature for feature in self.features if feature.state == "executed")

    @property
    def ordered(self) -> tuple[FeatureDrift, ...]:
        """All features, the most severe first."""
        return tuple(
            sorted(
                self.features,
                key=lambda f: (
                    -SEVERITIES.index(f.severity),
                    -SEVERITIES.index(f.effect_severity),
                    -(f.psi or 0.0),
                    f.name,
                ),
            )
        )

    @property
    def findings(self) -> tuple[str, ...]:
        """What was found, in words, the most severe first; nothing of features that did not drift."""
        return tuple(
            f"{f.name}: {f.reason}" for f in self.ordered if f.reason and f.effect_severity != "none"
        )

    @property
    def _labels(self) -> str:
        """How the closed labels differ from those of training, or why that is not known."""
        label = next((feature for feature in self.features if feature.kind == "label"), None)
        if label is None:
            return "the model's kind of outcome is not compared"
        return label.label_words if label.difference else label.reason

    def to_metadata(self) -> dict[str, Any]:
        """Scores and a table for people, worst feature first."""
        return {
            "worst_severity": self.worst,
            "composite_score": self.composite_score,
            "features_tested": len(self.tested),
            "features_skipped": len(self.features) - len(self.tested),
            "labels_against_training": self._labels,
            "findings": Words(self.findings or ("nothing has drifted",), "list"),
            "drift": Table(
                (
                    "feature", "severity", "by size alone", "PSI", "Jensen-Shannon", "Wasserstein", "test",
                    "adjusted p", "missing then", "missing now", "importance", "expected loss", "note",
                ),
                [
                    (
                        f.name, f.severity, f.effect_severity, f.psi, f.jensen_shannon, f.wasserstein, f.test,
                        f.adjusted_p_value, *(f.missing or (None, None)), f.importance, f.expected_loss, f.reason,
                    )
                    for f in self.ordered
                ],
                {"missing then": ".1%", "missing now": ".1%", "importance": ".1%"},
            ),
            "figure": drawn(stability_figure(self.tested), "stability of each feature") if self.tested else None,
        }  # fmt: skip

    def to_record(self) -> list[dict[str, Any]]:
        """Rows for ``ml_drift_history``, without the run id."""
        return [
            {
                "scope": self.scope,
                "day": self.day,
                "model_id": self.model_id,
                "drift_type": feature.kind,
                "feature_name": feature.name,
                "state": feature.state,
                "reason": feature.reason,
                "psi": feature.psi,
                "jensen_shannon": feature.jensen_shannon,
                "wasserstein": feature.wasserstein,
                "missing_before": feature.missing and feature.missing[0],
                "missing_now": feature.missing and feature.missing[1],
                "test_type": feature.test,
                "test_statistic": feature.statistic,
                "p_value": feature.p_value,
                "adjusted_p_value": feature.adjusted_p_value,
                "effect_severity": feature.effect_severity,
                "severity": feature.severity,
                "importance": feature.importance,
                "expected_loss": feature.expected_loss,
                "baseline_count": feature.reference_count,
                "current_count": feature.current_count,
            }
            for feature in self.features
        ]


def stability_figure(features: Sequence[FeatureDrift]) -> Any:
    """Bars of the stability index, the largest twenty."""
    shown = sorted((f for f in features if f.psi is not None), key=lambda f: f.psi or 0.0)[-20:]
    figure = new_figure(7, 0.28 * len(shown) + 1.2)
    axes = figure.subplots()
    axes.barh(
        [f.name for f in shown], [f.psi or 0.0 for f in shown], color=[COLOURS[f.severity] for f in shown]
    )
    for bound in (0.1, 0.25):
        axes.axvline(bound, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("population stability index (dotted: 0.10 and 0.25)")
    return figure


#: Of each severity in figures.
COLOURS: Mapping[Severity, str] = {
    "none": "#7f8c8d",
    "low": "#2e86c1",
    "medium": "#d4ac0d",
    "high": "#ca6f1e",
    "critical": "#b03a2e",
}
