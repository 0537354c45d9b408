"""Time to an event with censoring: concordance, Kaplan-Meier and Cox estimates, the risk at a horizon.

A target is one number for each patient, as XGBoost reads it: the day of the event, or the day until which the
patient was observed without it as a negative number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

#: Cells of one block of comparisons of patients: bounds memory at about 50 MB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class RiskAtHorizon:
    """How the hazard ratio of a model becomes the risk of the event until the horizon.

    Attributes:
        horizon_days: last day of the outcome's window.
        center: log hazard ratio of the average training patient.
        slope: factor of the log hazard ratio's distance from ``center``.
        cumulative_hazard: until the horizon, of a patient at ``center``.
    """

    horizon_days: int
    center: float
    slope: float
    cumulative_hazard: float

    def risk(self, log_hazard_ratio: np.ndarray) -> np.ndarray:
        """Probability of the event until the horizon: 1 - exp(-H exp(slope (x - center)))."""
        relative = self.slope * (np.asarray(log_hazard_ratio, dtype="float64") - self.center)
        return -np.expm1(-self.cumulative_hazard * np.exp(relative))


def time_and_event(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Days and whether they end with the event, from a signed target."""
    return np.abs(target), target > 0


def concordance(target: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Harrell's C-index for each row of ``weights`` (Harrell et al., JAMA 247, 1982).

    A pair counts when the patient with the shorter time had the event; of equal times one with and one without it.
    Equal scores are half concordant.

    Args:
        target: signed times, shape (n,). scores: the higher, the sooner, shape (n,).
        weights: counts, shape (B, n); None means every patient once.

    Returns:
        Shape (B,); NaN where no pair counts.
    """
    weights = np.ones((1, len(target))) if weights is None else weights
    concordant, pairs = np.zeros((2, len(weights)))
    for mine, longer, above in _comparisons(target, scores):
        pairs += (weights[:, mine] * (weights @ longer.T)).sum(axis=1)
        concordant += (weights[:, mine] * (weights @ (longer * above).T)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return concordant / np.where(pairs > 0, pairs, np.nan)


def concordance_counts(target: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each patient the concordant pairs and the pairs that it is in and that count; see :func:`concordance`.

    Returns:
        Two of shape (n,); the sum of each is twice that of all patients.
    """
    concordant, pairs = np.zeros((2, len(target)))
    for mine, longer, above in _comparisons(target, scores):
        ordered = longer * above
        pairs[mine] += longer.sum(axis=1)
        pairs += longer.sum(axis=0)
        concordant[mine] += ordered.sum(axis=1)
        concordant += ordered.sum(axis=0)
    return concordant, pairs


def _comparisons(
    target: np.ndarray, scores: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of patients with the event: their positions, who was observed longer, and whose score is lower (1) or
    equal (0.5), the last two of shape (block, n)."""
    time, event = time_and_event(target)
    rows = np.flatnonzero(event)
    step = max(1, _BLOCK_CELLS // max(len(target), 1))
    for start in range(0, len(rows), step):
        mine = rows[start : start + step]
        longer = (time[mine, None] < time) | ((time[mine, None] == time) & ~event)
        yield mine, longer, (scores[mine, None] > scores) + 0.5 * (scores[mine, None] == scores)


def kaplan_meier(target: np.ndarray, until: float) -> tuple[float, float]:
    """Probability of the event until day ``until`` (included) and its standard error (Greenwood)."""
    time, event = time_and_event(target)
    days = np.unique(time[event & (time <= until)])
    at_risk = (time[None] >= days[:, None]).sum(axis=1)
    events = ((time[None] == days[:, None]) & event).sum(axis=1)
    survival = float(np.prod(1 - events / at_risk))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = survival**2 * np.sum(events / (at_risk * (at_risk - events)))
    return 1 - survival, float(np.sqrt(variance)) if np.isfinite(variance) else float("nan")


def known_at(target: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether the event came until the horizon, and the weight of each patient of whom that is known.

    Inverse probability of censoring weights by a Kaplan-Meier estimate of the censoring, an event preceding a
    censoring on the same day (Uno et al., JASA 102, 2007; Graf et al., Statistics in Medicine 18, 1999). A patient
    who was censored before the horizon weighs nothing.

    Returns:
        0 or 1 (int64), shape (n,), and weights, shape (n,).
    """
    time, event = time_and_event(target)
    censored = ~event & (time < horizon)
    days = np.unique(time[censored])
    left = (time[None] > days[:, None]).sum(axis=1) + (censored & (time[None] == days[:, None])).sum(axis=1)
    lost = (censored & (time[None] == days[:, None])).sum(axis=1)
    kept = np.append(1.0, np.cumprod(1 - lost / np.maximum(left, 1)))
    # Of an event what was kept before its day, of the others what was kept before the horizon.
    until = np.where(event & (time <= horizon), np.searchsorted(days, time, side="left"), len(days))
    with np.errstate(divide="ignore"):
        weights = np.where(censored, 0.0, 1 / kept[until])
    return (event & (time <= horizon)).astype("int64"), np.where(np.isfinite(weights), weights, 0.0)


def cox_slope(target: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Coefficient of ``x`` in a Cox regression and its standard error; NaN where the likelihood has no maximum.

    Breslow's form for ties (Biometrics 30, 1974), by Newton steps.
    """
    time, event = time_and_event(target)
    unknown = (float("nan"), float("nan"))
    if not event.any() or np.ptp(x) < 1e-9:
        return unknown
    order = np.argsort(-time, kind="stable")
    time, event, x = time[order], event[order], (x - x.mean())[order]
    # Everybody with the same or a longer time is at risk.
    last = np.searchsorted(-time, -time, side="right") - 1
    beta = 0.0
    for _ in range(50):
        hazard = np.exp(np.clip(beta * x, -500, 500))
        sums = [np.cumsum(hazard * x**power)[last][event] for power in (0, 1, 2)]
        mean = sums[1] / sums[0]
        information = float((sums[2] / sums[0] - mean**2).sum())
        if not information > 1e-10:
            return unknown
        step = float((x[event] - mean).sum()) / information
        beta += float(np.clip(step, -5, 5))
        if abs(step) < 1e-10:
            return beta, float(information**-0.5)
    return unknown


def cumulative_hazard(target: np.ndarray, log_hazard_ratio: np.ndarray, until: float) -> float:
    """Breslow's estimate of the hazard until day ``until`` of a patient with log hazard ratio 0."""
    time, event = time_and_event(target)
    hazard = np.exp(log_hazard_ratio)
    days = np.unique(time[event & (time <= until)])
    at_risk = (time[None] >= days[:, None]) @ hazard
    events = ((time[None] == days[:, None]) & event).sum(axis=1)
    return float((events / at_risk).sum())


__all__ = [
    "RiskAtHorizon",
    "concordance",
    "concordance_counts",
    "cox_slope",
    "cumulative_hazard",
    "kaplan_meier",
    "known_at",
    "time_and_event",
]
