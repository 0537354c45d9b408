"""Metrics with the influence of each patient on them, from which intervals follow without resamples.

The influences sum to 0, and the sum of their squares is the variance of the metric (the infinitesimal jackknife:
Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6). Those of two metrics of the same
patients may be subtracted: the variance of a paired difference is the sum of the squared differences.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from e2i_dagster.modelling.survival import concordance_counts
from e2i_dagster.training.estimates import Estimate

#: A value and the influence of each patient on it, shape (n,).
Influence = tuple[float, np.ndarray]


def roc_auc(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Area under the ROC curve; the variance is that of DeLong et al., Biometrics 44, 1988.

    Placements are found by ranks (Sun and Xu, IEEE Signal Processing Letters 21, 2014).

    Args:
        target: 0/1, shape (n,).
        scores: the higher, the likelier 1, shape (n,).

    Returns:
        NaN where an outcome is missing.
    """
    from scipy.stats import rankdata

    hit = target == 1
    positives, negatives = int(hit.sum()), int((~hit).sum())
    if not positives or not negatives:
        return _undefined(len(target))
    placed = np.empty(len(target))
    overall = rankdata(scores)
    placed[hit] = (overall[hit] - rankdata(scores[hit])) / negatives
    placed[~hit] = 1 - (overall[~hit] - rankdata(scores[~hit])) / positives
    value = float(placed[hit].mean())
    count = np.where(hit, positives, negatives).astype("float64")
    return value, (placed - value) / np.sqrt(count * np.maximum(count - 1, 1))


def mean_roc_auc(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Mean over the classes of the area under the ROC curve of each against the rest.

    Args:
        target: codes 0 to K - 1, shape (n,).
        scores: probability of each class, shape (n, K).
    """
    areas = [roc_auc((target == code).astype("int64"), scores[:, code]) for code in range(scores.shape[1])]
    return float(np.mean([value for value, _ in areas])), np.mean([each for _, each in areas], axis=0)


def c_index(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Harrell's C-index; the variance is that of a ratio of two U-statistics (Kang et al., Statistics in Medicine 34,
    2015).

    Args:
        target: signed times, see :mod:`e2i_dagster.modelling.survival`, shape (n,).
        scores: the higher, the sooner, shape (n,).
    """
    concordant, pairs = concordance_counts(target, scores)
    # Each pair is counted at both of its patients.
    total = pairs.sum() / 2
    if not total:
        return _undefined(len(target))
    value = float(concordant.sum() / 2 / total)
    return value, (concordant - value * pairs) / total


def mean(values: np.ndarray) -> Influence:
    """Mean of ``values``, shape (n,)."""
    value = float(values.mean())
    return value, (values - value) / len(values)


def r2(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Share of the variance that is explained; NaN where the target is constant."""
    error, spread = mean((scores - target) ** 2), mean((target - target.mean()) ** 2)
    if not spread[0]:
        return _undefined(len(target))
    ratio = error[0] / spread[0]
    return 1 - ratio, (ratio * spread[1] - error[1]) / spread[0]


def brier(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Brier score summed over the classes; see :func:`mean_roc_auc`."""
    return mean(((scores - np.eye(scores.shape[1])[target]) ** 2).sum(axis=1))


def mean_absolute_error(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Mean absolute error."""
    return mean(np.abs(scores - target))


def bias(target: np.ndarray, scores: np.ndarray) -> Influence:
    """Mean of prediction minus truth."""
    return mean(scores - target)


#: Problem type -> metric -> its function. The first is that of ``modelling.problem.HEADLINE``.
METRICS: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], Influence]]] = {
    "binary_classification": {"roc_auc": roc_auc},
    "multiclass_classification": {"roc_auc": mean_roc_auc, "brier": brier},
    "regression": {"r2": r2, "mae": mean_absolute_error, "bias": bias},
    "survival": {"c_index": c_index},
}

_BOUNDS = {
    "roc_auc": (0.0, 1.0),
    "c_index": (0.0, 1.0),
    "brier": (0.0, 2.0),
    "mae": (0.0, np.inf),
    "r2": (-np.inf, 1.0),
}


def normal_interval(
    metric: str, measured: Influence, level: float, patients: np.ndarray | None = None
) -> Estimate:
    """``measured`` with its interval by normal approximation, cut where ``metric`` can have no value."""
    value, influence = measured
    low, high = _BOUNDS.get(metric, (-np.inf, np.inf))
    width = half_width(influence, level, patients)
    return Estimate.of(value, max(value - width, low), min(value + width, high))


def half_width(influence: np.ndarray, level: float, patients: np.ndarray | None = None) -> float:
    """Half of the width of the interval at ``level`` of what has this influence.

    Args:
        influence: of each row, shape (n,).
        patients: whose row each is, as a number from 0 on, shape (n,): those of a patient are added up. None: every
            row is a patient of its own.
    """
    if patients is not None:
        influence = np.bincount(patients, weights=influence)
    return NormalDist().inv_cdf((1 + level) / 2) * float(np.sqrt((influence**2).sum()))


def _undefined(n: int) -> Influence:
    return float("nan"), np.full(n, np.nan)
