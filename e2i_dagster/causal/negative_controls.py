"""Negative-control outcomes: what the treatment cannot have caused measures the bias that is left.

Empirical calibration of Schuemie et al. (Statistics in Medicine 2014; PNAS 2018): the errors of the estimates on
negative controls follow a normal distribution whose mean and deviation are fitted by maximum likelihood; the
estimate of interest is moved by the mean, and its error widened by the deviation. Effects are in standard
deviations of their outcome, so that outcomes of different units can be put together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from e2i_dagster.causal.refute import EffectFunction, PointAndError
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.policy_files.base import PolicyModel


class NegativeControl(PolicyModel):
    """Estimated effect on one outcome that the treatment cannot change, in its standard deviations."""

    outcome: str
    effect: float
    error: float
    covers_zero: bool


class Calibration(PolicyModel):
    """The systematic error that negative controls show, and the estimate after it.

    Attributes:
        controls: one per negative-control outcome. left_out: those with one value, or fewer than the
            smallest arm in a level.
        state: ``calibrated`` or ``not_estimable`` with ``reason`` (too few controls).
        bias, spread: mean and standard deviation of the systematic error, in deviations of the outcome.
        effect, lower, upper: calibrated estimate in units of the outcome. p_value: calibrated, two-sided.
    """

    controls: tuple[NegativeControl, ...]
    left_out: tuple[str, ...] = ()
    state: str
    reason: str = ""
    bias: float | None = None
    spread: float | None = None
    effect: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None


def fit_systematic_error(effects: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the systematic error by maximum likelihood.

    Estimate k is normal with that mean and variance ``spread^2 + errors[k]^2``.
    """
    from scipy.optimize import minimize_scalar

    def given(spread: float) -> tuple[float, float]:
        variance = spread**2 + np.square(errors)
        bias = float(np.average(effects, weights=1 / variance))
        loss = 0.5 * float(np.sum(np.log(variance) + np.square(effects - bias) / variance))
        return bias, loss

    highest = 5.0 * float(np.abs(effects).max() + errors.max())
    found: Any = minimize_scalar(lambda spread: given(spread)[1], bounds=(0.0, highest), method="bounded")
    spread = float(found.x) if given(float(found.x))[1] < given(0.0)[1] else 0.0
    return given(spread)[0], spread


def calibrate(
    estimate: PointAndError, bias: float, spread: float, *, level: float
) -> tuple[float, float, float, float]:
    """Calibrated effect, its interval and two-sided p-value; all on the scale of ``estimate``."""
    from scipy.stats import norm

    effect = estimate.point - bias
    error = math.hypot(estimate.error, spread)
    half = float(norm.ppf(0.5 + level / 2)) * error
    return effect, effect - half, effect + half, float(2 * norm.sf(abs(effect) / error))


def negative_controls(
    rows: CausalRows,
    outcomes: Mapping[str, np.ndarray],
    effect: EffectFunction,
    *,
    minimum: int,
    minimum_arm: int,
    level: float,
    seed: int,
) -> Calibration:
    """Estimate the effect on each control outcome and calibrate the effect on the outcome of ``rows``.

    Args:
        outcomes: by name, values (n,) of outcomes that the treatment cannot change.
        effect: the estimator. minimum: controls needed. minimum_arm: rows of a rare level needed.
    """
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + level / 2))
    controls, left_out = [], []
    for name, values in outcomes.items():
        rarer = min(int((values == values.max()).sum()), int((values == values.min()).sum()))
        if np.ptp(values) == 0 or (len(np.unique(values)) == 2 and rarer < minimum_arm):
            left_out.append(name)
            continue
        found = _standardized(rows.with_outcome(values.astype(float)), effect, seed)
        controls.append(
            NegativeControl(
                outcome=name, effect=found.point, error=found.error,
                covers_zero=abs(found.point) <= quantile * found.error,
            )
        )  # fmt: skip
    if len(controls) < minimum:
        return Calibration(
            controls=tuple(controls), left_out=tuple(left_out), state="not_estimable",
            reason=f"{len(controls)} negative controls, {minimum} are needed (config/causal.yaml)",
        )  # fmt: skip
    bias, spread = fit_systematic_error(
        np.array([control.effect for control in controls]), np.array([control.error for control in controls])
    )
    scale = float(rows.y.std(ddof=1))
    own = _standardized(rows, effect, seed)
    point, lower, upper, p_value = calibrate(own, bias, spread, level=level)
    return Calibration(
        controls=tuple(controls), left_out=tuple(left_out), state="calibrated", bias=bias, spread=spread,
        effect=point * scale, lower=lower * scale, upper=upper * scale, p_value=p_value,
    )  # fmt: skip


def _standardized(rows: CausalRows, effect: EffectFunction, seed: int) -> PointAndError:
    scale = float(rows.y.std(ddof=1))
    found = effect(rows, seed)
    return PointAndError(found.point / scale, found.error / scale)
