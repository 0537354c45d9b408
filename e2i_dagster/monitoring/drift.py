"""Drift between the training reference and what a model was asked today.

A feature's severity needs both: an effect (population stability index) and significance after
false-discovery control over all features, because with many features and many rows one of the two
alone raises false alarms. A test without enough values is skipped and says so.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.binning import quantile_bins, stability_index
from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy, Severity
from e2i_dagster.display import Table
from e2i_dagster.reports import drawn, new_figure

MAX_CATEGORIES = 50


class FeatureDrift(BaseModel):
    """What was measured for one feature, or why nothing was.

    ``psi`` in nats; ``statistic`` and ``p_value`` of the two-sample Kolmogorov-Smirnov test (numeric)
    or of the chi-square test (categories); ``adjusted_p_value`` after Benjamini-Hochberg.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["data", "prediction"]
    state: Literal["executed", "skipped"]
    reason: str = ""
    psi: float | None = None
    test: Literal["ks", "chi_square"] | None = None
    statistic: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    severity: Severity = "none"
    reference_count: int
    current_count: int


class DriftReport(BaseModel):
    """Drift of all features and of the predictions of one scope on one day."""

    model_config = ConfigDict(frozen=True)

    scope: str
    day: dt.date
    model_id: str
    features: tuple[FeatureDrift, ...]
    composite_score: float | None
    retraining: str

    @property
    def worst(self) -> Severity:
        """Highest severity of any feature or of the predictions."""
        ranks = [SEVERITIES.index(feature.severity) for feature in self.features]
        return SEVERITIES[max(ranks, default=0)]

    @property
    def tested(self) -> tuple[FeatureDrift, ...]:
        """Features that had enough values to be tested."""
        return tuple(feature for feature in self.features if feature.state == "executed")

    def to_metadata(self) -> dict[str, Any]:
        """Scores and a table for people, worst feature first."""
        order = sorted(self.features, key=lambda f: (-SEVERITIES.index(f.severity), -(f.psi or 0.0), f.name))
        return {
            "worst_severity": self.worst,
            "composite_score": self.composite_score,
            "features_tested": len(self.tested),
            "features_skipped": len(self.features) - len(self.tested),
            "retraining": self.retraining,
            "drift": Table(
                ("feature", "severity", "PSI", "test", "adjusted p", "note"),
                [(f.name, f.severity, f.psi, f.test, f.adjusted_p_value, f.reason) for f in order],
            ),
            "figure": drawn(_figure(self.tested), "stability of each feature") if self.tested else None,
        }

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
                "test_type": feature.test,
                "test_statistic": feature.statistic,
                "p_value": feature.p_value,
                "adjusted_p_value": feature.adjusted_p_value,
                "severity": feature.severity,
                "baseline_count": feature.reference_count,
                "current_count": feature.current_count,
            }
            for feature in self.features
        ]


def population_stability_index(reference: pd.Series, current: pd.Series, bins: int = 10) -> float:
    """Population stability index in nats (:func:`~e2i_dagster.binning.stability_index`).

    Numbers are binned at the reference's quantiles with open outer bins, so that values far outside the
    reference count, and a frequent value of the reference is a bin of its own; text and booleans by value.
    A boolean beside a number is 0 or 1. Missing values are a bin of their own.
    """
    reference, current = _alike(reference, current)
    if _is_numeric(reference):
        own = quantile_bins(_numbers(reference), bins)
        counts = [
            np.append(own.counts(numbers := _numbers(values)), len(values) - len(numbers)).astype(float)
            for values in (reference, current)
        ]
    else:
        counts = list(_category_counts(reference, current))
    return stability_index(*counts)


def detect_drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    policy: DriftPolicy,
    scope: str,
    day: dt.date,
    model_id: str,
    predictions: tuple[pd.Series, pd.Series] | None = None,
) -> DriftReport:
    """Compare every column of ``reference`` with the same column of ``current``.

    Args:
        reference: features of the training rows, one row per patient.
        current: what the endpoint was asked on ``day``, the same columns.
        predictions: the model's scores on reference rows and its answers on ``day``.

    Raises:
        KeyError: ``current`` lacks a column of ``reference``.
    """
    measured = [_measure(name, "data", reference[name], current[name], policy) for name in reference.columns]
    if predictions is not None:
        measured.append(_measure("prediction", "prediction", *predictions, policy))
    judged = _judge(measured, policy)
    tested = [feature for feature in judged if feature.state == "executed"]
    composite = float(np.mean([policy.severity_weight[f.severity] for f in tested])) if tested else None
    if composite is None:
        decision = f"not decided: no test had enough live values ({len(current)} rows)"
    elif composite >= policy.retraining.composite_threshold:
        threshold = policy.retraining.composite_threshold
        decision = f"{policy.retraining.mode}: composite score {composite:.2f} reaches {threshold}"
    else:
        decision = f"none: composite score {composite:.2f} is below {policy.retraining.composite_threshold}"
    return DriftReport(
        scope=scope,
        day=day,
        model_id=model_id,
        features=tuple(judged),
        composite_score=composite,
        retraining=decision,
    )


def _measure(
    name: str,
    kind: Literal["data", "prediction"],
    reference: pd.Series,
    current: pd.Series,
    policy: DriftPolicy,
) -> FeatureDrift:
    reference, current = _alike(reference, current)
    sizes = (len(reference), len(current))
    needed = policy.minimum_sample.psi
    if min(sizes) < needed:
        reason = f"needs {needed} values on both sides, found {sizes[0]} and {sizes[1]}"
        return _skipped(name, kind, reason, sizes)
    if reference.notna().sum() == 0:
        return _skipped(name, kind, "no value in the reference", sizes)
    test, statistic, p_value = _test(reference, current, policy)
    return FeatureDrift(
        name=name,
        kind=kind,
        state="executed",
        psi=population_stability_index(reference, current, policy.psi_bins),
        test=test,
        statistic=statistic,
        p_value=p_value,
        reference_count=sizes[0],
        current_count=sizes[1],
    )


def _test(
    reference: pd.Series, current: pd.Series, policy: DriftPolicy
) -> tuple[Literal["ks", "chi_square"], float, float]:
    """Test, statistic and p of the difference.

    Numbers: Kolmogorov-Smirnov of the values and chi-square of being missing, the smaller p times two
    (Bonferroni), because values that stop arriving are drift as well. Text: chi-square by value.
    """
    from scipy import stats

    def chi_square(first: pd.Series, second: pd.Series) -> tuple[float, float]:
        table = np.array(_category_counts(first, second))
        table = table[:, table.sum(axis=0) > 0]
        if table.shape[1] < 2:
            return 0.0, 1.0
        result: Any = stats.chi2_contingency(table)
        return float(result.statistic), float(result.pvalue)

    if not _is_numeric(reference):
        return "chi_square", *chi_square(reference, current)
    missing = chi_square(reference.isna().astype(str), current.isna().astype(str))
    if len(_numbers(current)) < policy.minimum_sample.ks:
        return "chi_square", *missing
    values: Any = stats.ks_2samp(_numbers(reference), _numbers(current), method="asymp")
    if not (reference.isna().any() or current.isna().any()):
        return "ks", float(values.statistic), float(values.pvalue)
    if missing[1] < values.pvalue:
        return "chi_square", missing[0], min(1.0, 2 * missing[1])
    return "ks", float(values.statistic), min(1.0, 2 * float(values.pvalue))


def _skipped(
    name: str, kind: Literal["data", "prediction"], reason: str, sizes: tuple[int, int]
) -> FeatureDrift:
    return FeatureDrift(
        name=name,
        kind=kind,
        state="skipped",
        reason=reason,
        reference_count=sizes[0],
        current_count=sizes[1],
    )


def _judge(measured: Sequence[FeatureDrift], policy: DriftPolicy) -> list[FeatureDrift]:
    from scipy.stats import false_discovery_control

    tested = [feature for feature in measured if feature.state == "executed"]
    adjusted = false_discovery_control([feature.p_value for feature in tested]) if tested else []
    by_name = {feature.name: float(p) for feature, p in zip(tested, adjusted, strict=True)}
    return [
        feature.model_copy(
            update={
                "adjusted_p_value": by_name[feature.name],
                "severity": _severity(feature.psi or 0.0, by_name[feature.name], policy),
            }
        )
        if feature.name in by_name
        else feature
        for feature in measured
    ]


def _severity(psi: float, adjusted_p_value: float, policy: DriftPolicy) -> Severity:
    if adjusted_p_value >= policy.false_discovery_rate:
        return "none"
    bounds = policy.severity_psi
    reached: Severity = "none"
    for severity, bound in (
        ("low", bounds.low),
        ("medium", bounds.medium),
        ("high", bounds.high),
        ("critical", bounds.critical),
    ):
        if psi >= bound:
            reached = severity  # type: ignore[assignment]
    return reached


def _alike(reference: pd.Series, current: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Both as numbers where one is a number and the other a boolean."""
    truths = [pd.api.types.is_bool_dtype(values) for values in (reference, current)]
    if sum(truths) != 1 or not _is_numeric(current if truths[0] else reference):
        return reference, current
    return reference.astype("Float64"), current.astype("Float64")


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _numbers(values: pd.Series) -> np.ndarray:
    return values.astype("float64").dropna().to_numpy()


def _category_counts(reference: pd.Series, current: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Counts by value, missing as a value of its own, rare values of the reference together."""
    texts = [values.astype("string").fillna("(missing)").astype(object) for values in (reference, current)]
    frequent = texts[0].value_counts().index[:MAX_CATEGORIES]
    names = [*frequent, "(other)"]
    counts = [
        text.where(text.isin(frequent), "(other)").value_counts().reindex(names, fill_value=0).to_numpy(float)
        for text in texts
    ]
    return counts[0], counts[1]


def _figure(features: Sequence[FeatureDrift]) -> Any:
    shown = sorted(features, key=lambda f: f.psi or 0.0)[-20:]
    figure = new_figure(7, 0.28 * len(shown) + 1.2)
    axes = figure.subplots()
    colours = {
        "none": "#7f8c8d",
        "low": "#2e86c1",
        "medium": "#d4ac0d",
        "high": "#ca6f1e",
        "critical": "#b03a2e",
    }
    axes.barh(
        [f.name for f in shown], [f.psi or 0.0 for f in shown], color=[colours[f.severity] for f in shown]
    )
    for bound in (0.1, 0.25):
        axes.axvline(bound, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel("population stability index (dotted: 0.10 and 0.25)")
    return figure
