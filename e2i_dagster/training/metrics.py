"""Metrics with bootstrap intervals, over many resamples at once.

A resample of n patients is a vector of n counts (multinomial). All metrics of a split are functions of
weighted sums, so that B resamples are one (B, n) matrix and no loop over patients or resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from e2i_dagster.modelling.survival import concordance, cox_slope, kaplan_meier, known_at

#: Cells of one block of resamples: bounds memory at about 100 MB.
_BLOCK_CELLS = 4_000_000
_TINY = 1e-15


def binary_metrics(
    target: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of a binary outcome for each row of ``weights``.

    Args:
        target: 0/1, shape (n,).
        scores: probability of 1, shape (n,).
        threshold: the positive class is predicted from here on.
        weights: counts, shape (B, n); None means every patient once.

    Returns:
        Name -> shape (B,): accuracy, precision, recall, f1, roc_auc, pr_auc, brier, log_loss. Undefined
        values (for example precision when nobody is predicted positive) are NaN.
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], target[order].astype("float64")
    counted = weights[:, order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = np.add.reduceat(counted * hit, starts, axis=1)
        total = np.add.reduceat(counted, starts, axis=1)
        negative = total - positive
        positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
        above = np.cumsum(positive, axis=1)
        # Mann-Whitney: each negative is beaten by the positives ranked above it, and half of those tied.
        auc = ((above - positive / 2) * negative).sum(axis=1) / (positives * negatives)
        # Average precision: precision at each level, weighted by the recall gained there.
        precision_at = above / np.cumsum(total, axis=1)
        pr_auc = np.nansum(precision_at * positive, axis=1) / positives
        called = ranked >= threshold
        true_positive = (counted * (hit * called)).sum(axis=1)
        called_positive = counted[:, called].sum(axis=1)
        n = counted.sum(axis=1)
        true_negative = n - positives - called_positive + true_positive
        clipped = np.clip(ranked, _TINY, 1 - _TINY)
        loss = -(hit * np.log(clipped) + (1 - hit) * np.log1p(-clipped))
        return {
            "accuracy": (true_positive + true_negative) / n,
            "precision": true_positive / called_positive,
            "recall": true_positive / positives,
            "f1": 2 * true_positive / (called_positive + positives),
            "roc_auc": auc,
            "pr_auc": np.where(positives > 0, pr_auc, np.nan),
            "brier": counted @ (ranked - hit) ** 2 / n,
            "log_loss": counted @ loss / n,
        }


def multiclass_metrics(
    target: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of one of K classes for each row of ``weights``; see binary_metrics.

    The most probable class is predicted.

    Args:
        target: codes 0 to K - 1, shape (n,).
        scores: probability of each class, shape (n, K).

    Returns:
        Name -> shape (B,): accuracy; roc_auc and f1 (means over the classes, each against the rest: Hand and
        Till, Machine Learning 45, 2001, section 2, for the ROC-AUC); brier (summed over the classes: Brier,
        Monthly Weather Review 78, 1950); log_loss. Undefined values, such as a resample without a class, are NaN.
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    count = scores.shape[1]
    n = weights.sum(axis=1)
    predicted = scores.argmax(axis=1)
    areas, f1 = [], []
    with np.errstate(divide="ignore", invalid="ignore"):
        for code in range(count):
            mine = (target == code).astype("int64")
            areas.append(binary_metrics(mine, scores[:, code], 0.5, weights)["roc_auc"])
            called = predicted == code
            both = weights @ (mine * called)
            f1.append(2 * both / (weights @ mine + weights @ called))
        true = np.eye(count)[target]
        own = np.clip(scores[np.arange(len(target)), target], _TINY, 1.0)
        return {
            "accuracy": weights @ (predicted == target) / n,
            "f1": np.mean(f1, axis=0),
            "roc_auc": np.mean(areas, axis=0),
            "brier": weights @ ((scores - true) ** 2).sum(axis=1) / n,
            "log_loss": weights @ -np.log(own) / n,
        }


def regression_metrics(
    target: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of numbers for each row of ``weights``; see binary_metrics.

    Returns:
        Name -> shape (B,): rmse, mae, r2, mape (NaN when a true value is 0), bias (mean of prediction minus truth)
        and calibration_slope (least-squares slope of the truth on the prediction, 1 is perfect; NaN for constant
        predictions).
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    n = weights.sum(axis=1)
    error = scores - target
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = weights @ target / n
        squares = weights @ error**2
        spread = weights @ target**2 - n * mean**2
        predicted = weights @ scores / n
        variance = weights @ scores**2 - n * predicted**2
        shared = weights @ (scores * target) - n * predicted * mean
        share = np.where((target == 0).any(), np.nan, weights @ np.abs(error / target) / n)
        return {
            "rmse": np.sqrt(squares / n),
            "mae": weights @ np.abs(error) / n,
            "r2": 1 - squares / np.where(spread > 0, spread, np.nan),
            "mape": share,
            "bias": predicted - mean,
            "calibration_slope": shared / np.where(variance > 1e-12 * n * predicted**2, variance, np.nan),
        }


def survival_metrics(
    target: np.ndarray, risk: np.ndarray, horizon_days: int, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of times to an event for each row of ``weights``; see binary_metrics.

    Args:
        target: signed times, see :mod:`e2i_dagster.modelling.survival`, shape (n,).
        risk: of the event until the horizon, shape (n,).

    Returns:
        Name -> shape (B,): c_index (Harrell), and of the status at the horizon, weighted by the inverse probability
        of not being censored, roc_auc (cumulative cases against who is without the event at the horizon: Uno et
        al., JASA 102, 2007) and brier (Graf et al., Statistics in Medicine 18, 1999).
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    happened, known = known_at(target, horizon_days)
    at_horizon = binary_metrics(happened, risk, 0.5, weights * known)
    return {
        "c_index": concordance(target, risk, weights),
        "roc_auc": at_horizon["roc_auc"],
        "brier": at_horizon["brier"],
    }


def survival_calibration(
    target: np.ndarray, risk: np.ndarray, horizon_days: int
) -> dict[str, tuple[float, float]]:
    """Calibration slope and intercept of a risk at the horizon with their standard errors.

    Slope: coefficient of the log cumulative hazard log(-log(1 - risk)) in a Cox regression. Intercept: log of the
    observed (Kaplan-Meier) over the mean predicted risk. 1 and 0 are perfect. McLernon et al., Annals of Internal
    Medicine 176:105 (2023).

    Returns:
        ``calibration_slope`` and ``calibration_intercept`` -> (value, standard error); NaN where not estimable.
    """
    clipped = np.clip(risk, 1e-12, 1 - 1e-12)
    observed, error = kaplan_meier(target, horizon_days)
    unknown = (float("nan"), float("nan"))
    return {
        "calibration_slope": cox_slope(target, np.log(-np.log1p(-clipped))),
        "calibration_intercept": (float(np.log(observed / clipped.mean())), error / observed)
        if observed > 0
        else unknown,
    }


def incidence_bins(
    target: np.ndarray, risk: np.ndarray, horizon_days: int, groups: int = 10, smallest: int = 11
) -> list[dict[str, Any]]:
    """As :func:`calibration_bins`; ``observed`` is the Kaplan-Meier risk at the horizon."""
    groups = min(groups, len(risk) // smallest)
    if groups < 1:
        return []
    order = np.argsort(risk, kind="stable")
    return [
        {
            "n": len(part),
            "predicted": float(risk[part].mean()),
            "observed": kaplan_meier(target[part], horizon_days)[0],
        }
        for part in np.array_split(order, groups)
    ]


def resamples(n: int, count: int, seed: int, patients: np.ndarray | None = None) -> list[np.ndarray]:
    """``count`` bootstrap resamples of ``n`` rows as blocks of shape (b, n): how often each row is drawn.

    Patients are drawn, each with all rows (Field and Welsh, Journal of the Royal Statistical Society B 69:369, 2007).

    Args:
        patients: whose row each is, as a number from 0 on, shape (n,); None: every row is a patient of its own.
    """
    if patients is not None:
        drawn = resamples(int(patients.max(initial=-1)) + 1, count, seed)
        return [block[:, patients] for block in drawn]
    generator = np.random.default_rng(seed)
    block = max(1, min(count, _BLOCK_CELLS // max(n, 1)))
    sizes = [block] * (count // block) + ([count % block] if count % block else [])
    equal = np.full(n, 1 / n)
    return [generator.multinomial(n, equal, size=size).astype("float64") for size in sizes]


def calibration_line(target: np.ndarray, scores: np.ndarray) -> dict[str, tuple[float, float]]:
    """Calibration slope and intercept with their standard errors.

    Slope: coefficient of logit(score) in a logistic regression of the outcome. Intercept: constant of
    the same with the slope fixed at 1 (calibration in the large). 1 and 0 are perfect. Cox 1958;
    Van Calster et al., BMC Medicine 17:230 (2019).

    Returns:
        ``calibration_slope`` and ``calibration_intercept`` -> (value, standard error); NaN where the
        likelihood has no maximum (separated or constant scores).
    """
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    logit = np.log(clipped) - np.log1p(-clipped)
    free = _newton(np.column_stack([np.ones_like(logit), logit]), target, np.zeros_like(logit))
    fixed = _newton(np.ones((len(logit), 1)), target, logit)
    return {"calibration_slope": free[-1], "calibration_intercept": fixed[0]}


def _newton(design: np.ndarray, target: np.ndarray, offset: np.ndarray) -> list[tuple[float, float]]:
    """Logistic regression by Newton steps; (value, standard error) of each coefficient."""
    beta = np.zeros(design.shape[1])
    unknown = [(float("nan"), float("nan"))] * len(beta)
    for _ in range(50):
        mean = 1 / (1 + np.exp(-np.clip(design @ beta + offset, -500, 500)))
        information = design.T @ (design * (mean * (1 - mean))[:, None])
        if np.linalg.cond(information) > 1e12:
            return unknown
        step = np.linalg.solve(information, design.T @ (target - mean))
        # Half steps keep Newton inside its region on steep likelihoods.
        beta += step if np.abs(step).max() < 5 else step * (5 / np.abs(step).max())
        if np.abs(step).max() < 1e-10:
            errors = np.sqrt(np.diag(np.linalg.inv(information)))
            return [(float(value), float(error)) for value, error in zip(beta, errors, strict=True)]
    return unknown


def jackknife_errors(
    statistics: Callable[[np.ndarray], Sequence[float]], patients: np.ndarray, groups: int = 50, seed: int = 0
) -> np.ndarray:
    """Standard errors of statistics of rows of which several belong to one patient.

    Delete-a-group jackknife: ``sqrt((G - 1) / G * sum((t_g - mean(t))^2))`` over random groups of patients. Kott,
    Journal of Official Statistics 17:521 (2001).

    Args:
        statistics: takes which rows are kept, shape (n,), and gives k numbers.
        patients: whose row each is, as a number from 0 on, shape (n,).

    Returns:
        Shape (k,); NaN where a statistic is not estimable without one of the groups.
    """
    number = int(patients.max()) + 1
    groups = min(groups, number)
    group = np.random.default_rng(seed).permutation(number) % groups
    values = np.array([statistics(group[patients] != left_out) for left_out in range(groups)])
    return np.sqrt((groups - 1) / groups * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def net_benefit(
    target: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Net benefit of acting on patients whose score reaches a threshold, for each row of ``weights``.

    ``TP / n - FP / n * t / (1 - t)``: Vickers and Elkin, Medical Decision Making 26:565 (2006). With scores of 1 it is
    that of acting on everybody; that of acting on nobody is 0.

    Args:
        target: 0/1, shape (n,).
        scores: probability of 1, shape (n,).
        thresholds: above 0 and below 1, shape (T,).
        weights: counts, shape (B, n); None means every patient once.

    Returns:
        Shape (B, T).
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    called = scores[:, None] >= thresholds
    worth = np.where(target[:, None] == 1, 1.0, -thresholds / (1 - thresholds))
    return weights @ (called * worth) / weights.sum(axis=1, keepdims=True)


def interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Percentile interval of bootstrap values; NaN when more than one in twenty is undefined."""
    if np.isnan(values).mean() > 0.05:
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def roc_points(target: np.ndarray, scores: np.ndarray, points: int = 51) -> tuple[np.ndarray, np.ndarray]:
    """False-alarm rates on a fixed grid and the sensitivity at each (no step shows a single patient)."""
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], target[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    sensitivity = np.append(0.0, np.cumsum(hit)[last] / max(hit.sum(), 1))
    alarms = np.append(0.0, np.cumsum(1 - hit)[last] / max((1 - hit).sum(), 1))
    grid = np.linspace(0, 1, points)
    return grid, np.interp(grid, alarms, sensitivity)


def calibration_bins(target: np.ndarray, scores: np.ndarray, smallest: int = 11) -> list[dict[str, Any]]:
    """Up to ten groups of equal size by score, none smaller than ``smallest`` patients."""
    groups = min(10, len(scores) // smallest)
    if groups < 1:
        return []
    order = np.argsort(scores, kind="stable")
    return [
        {"n": len(part), "predicted": float(scores[part].mean()), "observed": float(target[part].mean())}
        for part in np.array_split(order, groups)
    ]
