"""Drift between the training reference and what a model was asked on a day.

A feature's severity needs both: an effect (population stability index) and significance after
false-discovery control over all features, because with many features and many rows one of the two
alone raises false alarms. A test without enough values is skipped and says so. Where the model is known,
a drift that cannot move it is a note (:mod:`.impact`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.binning import stability_index
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift_report import DriftReport, FeatureDrift, Kind, Test
from e2i_dagster.monitoring.impact import expected_losses, severity_with_impact
from e2i_dagster.monitoring.multivariate import joint_drift
from e2i_dagster.monitoring.profile import (
    FeatureProfile,
    NumberCounts,
    NumberProfile,
    ParquetColumns,
    ReferenceProfile,
    TextProfile,
    bin_counts,
    count_numbers,
    is_numeric,
    present_numbers,
    profile_frame,
    profile_values,
    text_counts,
)

#: Values of a text that are tested apart.
_TESTED_VALUES = 50
#: Values of fewer rows are counted, never named: they may say who somebody is.
_SMALL = 11
_NAMED = 5
#: Groups of values that a distribution shows.
_GROUPS = 24


def population_stability_index(reference: pd.Series, current: pd.Series, bins: int = 10) -> float:
    """Population stability index in nats (:func:`~e2i_dagster.binning.stability_index`).

    Numbers are binned at the reference's quantiles with open outer bins, so that values far outside the
    reference count, and a frequent value of the reference is a bin of its own; text and booleans by value.
    A boolean beside a number is 0 or 1. Missing values are a bin of their own.
    """
    profile, values = _alike(profile_values(reference, bins=bins), current)
    return stability_index(*_binned(profile, values)[:2])


def detect_drift(
    reference: pd.DataFrame | ReferenceProfile,
    current: pd.DataFrame | ParquetColumns,
    *,
    policy: DriftPolicy,
    scope: str,
    day: dt.date,
    model_id: str,
    predictions: tuple[pd.Series | None, pd.Series] | None = None,
    label: FeatureDrift | None = None,
) -> DriftReport:
    """Compare every column of ``reference`` with the same column of ``current``.

    Args:
        reference: features of the training rows, one row per patient, or their profile. With a profile that knows
            its model, severities say what the drift does to the model; with one that has sample rows, the features
            are compared together, too.
        current: what the endpoint was asked on ``day``, the same columns; of a file each column is read once, and the
            features are not compared together. A column that is not there, or is text
            where the reference has numbers, is a finding.
        predictions: the model's scores on reference rows, None where the profile has them, and its answers on
            ``day``.
        label: what :func:`.label_drift.measure_labels` found, judged with the others.

    Raises:
        ValueError: neither the profile nor ``predictions`` has scores on reference rows.
    """
    profile = (
        reference
        if isinstance(reference, ReferenceProfile)
        else profile_frame(reference, bins=policy.psi_bins)
    )
    measured: list[FeatureDrift] = []
    shares: dict[str, np.ndarray] = {}
    for name, feature in profile.features.items():
        if name not in current.columns:
            measured.append(_gone(name, feature, len(current)))
            continue
        drift, now = measure(name, "data", feature, current[name], policy)
        measured.append(drift)
        if now is not None:
            shares[name] = now
    if predictions is not None:
        scores, answers = predictions
        before = profile.prediction if scores is None else profile_values(scores, bins=policy.psi_bins)
        if before is None:
            raise ValueError("no scores on reference rows")
        measured.append(measure("prediction", "prediction", before, answers, policy)[0])
    if label is not None:
        measured.append(label)
    if profile.sample and isinstance(current, pd.DataFrame):
        measured.extend(joint_drift(profile, current, policy))
    assessed = _assess(measured, policy)
    if profile.model is not None:
        losses = expected_losses(profile.model, shares, policy)
        assessed = [severity_with_impact(feature, profile.model, losses, policy) for feature in assessed]
    return DriftReport(
        scope=scope,
        day=day,
        model_id=model_id,
        features=tuple(assessed),
        composite_score=_composite(assessed, policy),
    )


def _composite(features: Sequence[FeatureDrift], policy: DriftPolicy) -> float | None:
    """Mean weight of the severities of what was tested, features by their importance where that is known."""
    tested = [feature for feature in features if feature.state == "executed"]
    if not tested:
        return None
    weights = [policy.severity_weight[f.severity] for f in tested]
    shares = np.array([np.nan if f.importance is None else f.importance for f in tested])
    if np.isnan(shares).all() or np.nansum(shares) == 0:
        return float(np.mean(weights))
    # What is no feature (predictions, all features together) weighs as the average feature.
    return float(np.average(weights, weights=np.where(np.isnan(shares), np.nanmean(shares), shares)))


def _gone(name: str, profile: FeatureProfile, rows: int) -> FeatureDrift:
    return FeatureDrift(
        name=name,
        kind="data",
        state="executed",
        reason="the column is no longer there",
        missing=(profile.missing / max(profile.rows, 1), 1.0),
        effect_severity="critical",
        severity="critical",
        reference_count=profile.rows,
        current_count=rows,
    )


def measure(
    name: str, kind: Kind, profile: FeatureProfile, values: pd.Series, policy: DriftPolicy
) -> tuple[FeatureDrift, np.ndarray | None]:
    """The drift of one column, not yet judged, and its current rows by bin of the reference (missing last)."""
    sizes = (profile.rows, len(values))
    needed = policy.minimum_sample.psi
    if min(sizes) < needed:
        reason = f"needs {needed} values on both sides, found {sizes[0]} and {sizes[1]}"
        return _skipped(name, kind, reason, sizes), None
    if profile.rows == profile.missing:
        return _skipped(name, kind, "no value in the reference", sizes), None
    profile, values = _alike(profile, values)
    if isinstance(profile, NumberProfile) and not (is_numeric(values) or values.notna().sum() == 0):
        changed = FeatureDrift(
            name=name, kind=kind, state="executed", reason=f"is {values.dtype} where the reference has numbers",
            effect_severity="critical", severity="critical", reference_count=sizes[0], current_count=sizes[1],
        )  # fmt: skip
        return changed, None
    before, now, new, lost, counted = _binned(profile, values)
    test, statistic, p_value = _test(profile, before, now, counted, policy)
    missing = (profile.missing / profile.rows, float(now[-1] / sizes[1]))
    drift = FeatureDrift(
        name=name,
        kind=kind,
        state="executed",
        psi=stability_index(before, now),
        jensen_shannon=_jensen_shannon(before, now),
        wasserstein=counted.distance if counted else None,
        missing=missing,
        test=test,
        statistic=statistic,
        p_value=p_value,
        new_categories=new,
        lost_categories=lost,
        distribution=_distribution(profile, before, now),
        reference_count=sizes[0],
        current_count=sizes[1],
    )
    return drift, now


def _binned(
    profile: FeatureProfile, values: pd.Series
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...], NumberCounts | None]:
    """Rows by bin in the reference and now, missing last; new and lost values; the counts of a number."""
    if isinstance(profile, NumberProfile):
        if not is_numeric(values):
            values = pd.Series(np.full(len(values), np.nan), index=values.index)
        counted = count_numbers(profile, present_numbers(values), len(values))
        points = np.asarray(profile.points)
        now = bin_counts(profile.bins, points, counted.below, counted.at_most, counted.values)
        before = np.append(np.asarray(profile.counts, dtype="float64"), profile.missing)
        return before, np.append(now, counted.missing), (), (), counted
    counts = text_counts(values)
    kept = counts.reindex(list(profile.counts), fill_value=0).to_numpy(dtype="float64")
    missing = float(values.isna().sum())
    before = np.array([*profile.counts.values(), profile.other, profile.missing], dtype="float64")
    now = np.append(kept, [len(values) - missing - kept.sum(), missing])
    new = counts[~counts.index.isin(list(profile.counts))] if not profile.other else counts[:0]
    expected = before[: len(kept)] / max(profile.rows, 1) * len(values)
    lost = [
        name for name, count, awaited in zip(profile.counts, kept, expected, strict=True)
        if count == 0 and awaited >= _SMALL and profile.counts[name] >= _SMALL
    ]  # fmt: skip
    return before, now, tuple(new[new >= _SMALL].index), tuple(lost), None


def _test(
    profile: FeatureProfile,
    before: np.ndarray,
    now: np.ndarray,
    counted: NumberCounts | None,
    policy: DriftPolicy,
) -> tuple[Test, float, float]:
    """Test, statistic and p of the difference.

    Numbers: Kolmogorov-Smirnov of the values and chi-square of being missing, the smaller p times two
    (Bonferroni), because values that stop arriving are drift as well. Text: chi-square by value.
    """
    if not isinstance(profile, NumberProfile) or counted is None:
        # Rare values of the reference are tested together.
        tested = min(_TESTED_VALUES, len(before) - 2)
        table = [
            np.concatenate([side[:tested], [side[tested:-1].sum()], side[-1:]]) for side in (before, now)
        ]
        return "chi_square", *_chi_square(np.array(table))
    present = (profile.rows - profile.missing, counted.values)
    missing = _chi_square(
        np.array([[profile.missing, present[0]], [counted.missing, present[1]]], dtype="float64")
    )
    if present[1] < policy.minimum_sample.ks:
        return "chi_square", *missing
    statistic, p_value = _kolmogorov_smirnov(profile, counted)
    if not (profile.missing or counted.missing):
        return "ks", statistic, p_value
    if missing[1] < p_value:
        return "chi_square", missing[0], min(1.0, 2 * missing[1])
    return "ks", statistic, min(1.0, 2 * p_value)


def _kolmogorov_smirnov(profile: NumberProfile, counted: NumberCounts) -> tuple[float, float]:
    """Largest difference of the distribution functions, and its p by the asymptotic distribution.

    With all distinct values of the reference as points it is exact. With quantiles it is taken at them alone: at
    most the distance of two of them, about a thousandth, too small, which makes no false alarm.
    """
    from scipy.stats import kstwo

    n, m = profile.rows - profile.missing, counted.values
    then = np.asarray(profile.at_most) / n
    statistic = float(np.abs(then - counted.at_most / m).max())
    if profile.exact:
        below = np.concatenate([[0.0], then[:-1]])
        statistic = max(statistic, float(np.abs(below - counted.below / m).max()))
    return statistic, float(np.clip(kstwo.sf(statistic, np.round(n * m / (n + m))), 0, 1))


def _chi_square(table: np.ndarray) -> tuple[float, float]:
    from scipy.stats import chi2_contingency

    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    result: Any = chi2_contingency(table)
    return float(result.statistic), float(result.pvalue)


def _jensen_shannon(before: np.ndarray, now: np.ndarray) -> float:
    """Square root of the Jensen-Shannon divergence in bits (Endres and Schindelin 2003), in [0, 1]."""
    from scipy.spatial.distance import jensenshannon

    return float(np.nan_to_num(jensenshannon(before, now, base=2)))


def _distribution(
    profile: FeatureProfile, before: np.ndarray, now: np.ndarray
) -> tuple[tuple[str, float, float], ...]:
    """Share of each group of values then and now; small groups, and those beyond the largest, are together."""
    then, today = before / before.sum(), now / now.sum()
    largest = np.argsort(-np.maximum(then, today), kind="stable")[:_GROUPS]
    kept = sorted(place for place in largest if max(before[place], now[place]) >= _SMALL)
    names = _bin_names(profile)
    groups = [(names[place], float(then[place]), float(today[place])) for place in kept]
    rest = [float(max(1 - side[kept].sum(), 0.0)) for side in (then, today)]
    if max(rest) > 1e-9:
        groups.append(("all others", rest[0], rest[1]))
    return tuple(groups)


def _bin_names(profile: FeatureProfile) -> list[str]:
    if isinstance(profile, TextProfile):
        others = "other values" if profile.other else "new values"
        return [*(f"= {name}" for name in profile.counts), others, "missing"]
    edges = [f"{edge:.4g}" for edge in profile.edges]
    if not edges:
        return ["any value", "missing"]
    spans = [f"{low} to {high}" for low, high in pairwise(edges)]
    single = [f"= {value:.4g}" for value in profile.single]
    return [f"up to {edges[0]}", *spans, f"above {edges[-1]}", *single, "missing"]


def _skipped(name: str, kind: Kind, reason: str, sizes: tuple[int, int]) -> FeatureDrift:
    return FeatureDrift(
        name=name,
        kind=kind,
        state="skipped",
        reason=reason,
        reference_count=sizes[0],
        current_count=sizes[1],
    )


def _assess(measured: Sequence[FeatureDrift], policy: DriftPolicy) -> list[FeatureDrift]:
    """Adjusted p and severity by the size of the drift."""
    from scipy.stats import false_discovery_control

    tested = [feature for feature in measured if feature.p_value is not None]
    adjusted = false_discovery_control([feature.p_value for feature in tested]) if tested else []
    by_name = {feature.name: float(p) for feature, p in zip(tested, adjusted, strict=True)}
    return [_with_severity(feature, by_name, policy) for feature in measured]


def _with_severity(feature: FeatureDrift, adjusted: Mapping[str, float], policy: DriftPolicy) -> FeatureDrift:
    if feature.name not in adjusted:
        return feature
    found = {"adjusted_p_value": adjusted[feature.name]}
    significant = adjusted[feature.name] < policy.false_discovery_rate
    if feature.test in ("domain_classifier", "pca_reconstruction"):
        bounds = (
            policy.multivariate.auc
            if feature.test == "domain_classifier"
            else policy.multivariate.reconstruction
        )
        severity = bounds.severity_of(feature.statistic or 0.0) if significant else "none"
    else:
        severity = policy.severity_psi.severity_of(feature.psi or 0.0) if significant else "none"
    drift = feature.model_copy(update={**found, "effect_severity": severity, "severity": severity})
    return drift.model_copy(update={"reason": "" if severity == "none" else _words(drift)})


def _words(drift: FeatureDrift) -> str:
    """What was found: the likely cause first."""
    said = []
    if drift.difference is not None:
        said.append(drift.label_words)
    if drift.new_categories:
        said.append(f"new values {_some(drift.new_categories)}")
    if drift.lost_categories:
        said.append(f"no more {_some(drift.lost_categories)}")
    if drift.missing and abs(drift.missing[1] - drift.missing[0]) >= 0.05:
        said.append(f"missing {drift.missing[0]:.0%} before, {drift.missing[1]:.0%} now")
    if not said and drift.changes:
        said += [f"{words}: {then:.0%} before, {now:.0%} now" for words, then, now in drift.changes[:1]]
    return "; ".join([*said, *([drift.reason] if drift.reason else [])])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _alike(profile: FeatureProfile, values: pd.Series) -> tuple[FeatureProfile, pd.Series]:
    """Both as numbers where one is a number and the other a boolean."""
    if isinstance(profile, NumberProfile):
        return profile, values.astype("Float64") if pd.api.types.is_bool_dtype(values) else values
    if is_numeric(values) and profile.counts and set(profile.counts) <= {"True", "False"}:
        repeated = np.repeat(
            [float(name == "True") for name in profile.counts], list(profile.counts.values())
        )
        numbers = np.concatenate([repeated, np.full(profile.missing, np.nan)])
        return profile_values(pd.Series(numbers), bins=10), values
    return profile, values
