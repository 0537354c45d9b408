"""Estimates after a group sequential trial: what the stopping did to p-value, estimate and interval.

At the end: stagewise ordering (Tsiatis, Rosner and Mehta, Biometrics 40, 1984; Jennison and Turnbull 2000,
section 8.4). At any look, stopped or not: repeated confidence intervals (Jennison and Turnbull, JRSS B 51,
1989). After no plan at all: a confidence sequence (``always_valid``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.group_sequential import Walk, solve
from e2i_dagster.experiments.statistics.stopping import Boundaries, checked_number, checked_probability

#: Farther than this many standard errors from the observed value no limit is searched.
REACH = 12.0


class FinalEstimate(BaseModel):
    """Estimate of a trial that ended at ``look``, in the units of the effect.

    ``p_value`` has the sides of the design; ``median_unbiased`` lies above the truth as often as below;
    ``naive`` is the plain estimate, whose bias is away from zero.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    look: int
    z: float
    p_value: float
    naive: float
    median_unbiased: float
    lower: float
    upper: float
    confidence: float

    def to_metadata(self) -> dict[str, Any]:
        return self.to_record()

    def to_record(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def stagewise_p_value(
    boundaries: Boundaries,
    look: int,
    z: float,
    *,
    drift: float = 0.0,
    lower: Sequence[float] | None = None,
) -> float:
    """One-sided probability, under ``drift``, of a result at least as far up as ``z`` at ``look``.

    Stagewise ordering: an upper boundary crossed earlier is farther up, a lower one farther down; at the
    same look the larger z is farther up. Only looks up to ``look`` matter, not those never made.

    Args:
        boundaries: of the looks made; lower: lower boundaries in force (binding futility), else the mirror
            boundaries of a two-sided design, else none.
    """
    return _stagewise(boundaries, look, z, drift, lower)[0]


def _stagewise(
    boundaries: Boundaries, look: int, z: float, drift: float, lower: Sequence[float] | None
) -> tuple[float, float]:
    """Probabilities of a result at least as far up, and at least as far down. They sum to 1; each is summed
    for itself, since the smaller one would be lost in the difference."""
    value = checked_number(z, "z")
    boundaries.at(look)
    floor = boundaries.lower if lower is None else tuple(float(item) for item in lower)
    if len(floor) < look:
        raise InputError(f"lower: {len(floor)} boundaries for look {look}.", field="lower")
    walk = Walk(boundaries.information_fractions[:look], drift)
    up = down = 0.0
    for index in range(look - 1):
        up += walk.above(boundaries.z[index])
        down += walk.below(floor[index])
        walk.advance(floor[index], boundaries.z[index])
    return min(1.0, up + walk.above(value)), min(1.0, down + walk.below(value))


def final_estimate(
    boundaries: Boundaries,
    look: int,
    z: float,
    *,
    standard_error: float,
    lower: Sequence[float] | None = None,
    confidence: float | None = None,
) -> FinalEstimate:
    """P-value, median-unbiased estimate and interval of a trial that ended at ``look``.

    Args:
        boundaries: of the looks made, with the information fractions reached.
        look, z: where it ended (at a boundary, or at the last look).
        standard_error: of the effect at that look, which sets the scale; the plain estimate is
            ``z * standard_error``.
        lower: binding futility boundaries, if any.
        confidence: of the interval, by default ``1 - alpha`` (two sides) or ``1 - 2 alpha`` (one side).

    Raises:
        InputError: the trial did not end there, or a value is out of its range.
    """
    value, error = checked_number(z, "z"), checked_number(standard_error, "standard_error")
    if error <= 0:
        raise InputError(f"standard_error: {error:g} must be above 0.", field="standard_error")
    bound = boundaries.at(look)
    floor = boundaries.lower if lower is None else tuple(float(item) for item in lower)
    last = look == boundaries.looks and boundaries.complete
    if not last and floor[look - 1] < value < bound:
        raise InputError(
            f"look {look}: z {value:.3f} crosses no boundary, so the trial goes on and has no final estimate yet.",
            field="look",
            value=look,
            remedy="Ask for repeated_intervals.",
        )
    per_side = boundaries.alpha / boundaries.sides
    level = 1.0 - 2.0 * per_side if confidence is None else checked_probability(confidence, "confidence")
    root = math.sqrt(boundaries.information_fractions[look - 1])
    # The drift is the expectation of z at full information; the effect is drift * root * standard error.
    centre = value / root

    def limit(probability: float) -> float:
        def miss(drift: float) -> float:
            return stagewise_p_value(boundaries, look, value, drift=drift, lower=lower) - probability

        low, high = centre - REACH / root, centre + REACH / root
        if miss(low) >= 0:
            return -math.inf
        if miss(high) <= 0:
            return math.inf
        return solve(miss, low, high)

    up, down = _stagewise(boundaries, look, value, 0.0, lower)
    scale = root * error
    return FinalEstimate(
        look=look,
        z=value,
        p_value=min(1.0, 2.0 * min(up, down)) if boundaries.sides == 2 else up,
        naive=value * error,
        median_unbiased=limit(0.5) * scale,
        lower=limit((1.0 - level) / 2.0) * scale,
        upper=limit((1.0 + level) / 2.0) * scale,
        confidence=level,
    )


def repeated_intervals(
    boundaries: Boundaries, estimates: Sequence[float], standard_errors: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Intervals that hold at all looks at once, whatever is decided: ``estimate +- z_k * standard error``.

    Args:
        estimates, standard_errors: of the looks made so far, first to last.
    """
    if len(estimates) != len(standard_errors) or not 1 <= len(estimates) <= boundaries.looks:
        raise InputError(
            f"estimates: {len(estimates)} and {len(standard_errors)} standard errors for {boundaries.looks} looks.",
            field="estimates",
        )
    result = []
    for estimate, error, z in zip(estimates, standard_errors, boundaries.z, strict=False):
        centre, spread = checked_number(estimate, "estimates"), checked_number(error, "standard_errors")
        if spread <= 0:
            raise InputError(f"standard_errors: {spread:g} must be above 0.", field="standard_errors")
        result.append((centre - z * spread, centre + z * spread))
    return tuple(result)


class AlwaysValid(BaseModel):
    """Interval and p-value that hold at every time at once, however often one looks."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    estimate: float
    lower: float
    upper: float
    p_value: float
    confidence: float
    tuning_variance: float

    def to_metadata(self) -> dict[str, Any]:
        return self.to_record()

    def to_record(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def mixture_variance(planned_standard_error: float, *, alpha: float = 0.05) -> float:
    """Prior variance of the effect for which the confidence sequence is tightest at a standard error.

    Minimizes the half-width at ``planned_standard_error`` (Howard et al., Annals of Statistics 49, 2021,
    section 3.5): with ``x = 1 + tau^2 / se^2``, ``x - 1 - ln x = -2 ln alpha``.
    """
    error, level = (
        checked_number(planned_standard_error, "planned_standard_error"),
        checked_probability(alpha, "alpha"),
    )
    if error <= 0:
        raise InputError(
            f"planned_standard_error: {error:g} must be above 0.", field="planned_standard_error"
        )
    ratio = solve(
        lambda x: x - 1.0 - math.log(x) + 2.0 * math.log(level), 1.0 + 1e-9, 10.0 - 4.0 * math.log(level)
    )
    return (ratio - 1.0) * error**2


def always_valid(
    estimate: float,
    standard_error: float,
    *,
    tuning_variance: float,
    confidence: float = 0.95,
    before: AlwaysValid | None = None,
) -> AlwaysValid:
    """Confidence sequence by the normal mixture (Robbins, 1970; Johari et al., Operations Research 70, 2022).

    With ``v = se^2`` and the mixture ``N(0, tau^2)``: ``estimate +- sqrt(v (v + tau^2) / tau^2 *
    ln((v + tau^2) / (v alpha^2)))``. Exact for a normal estimate of known variance, asymptotic otherwise.

    Args:
        tuning_variance: ``tau^2``, fixed before the first look; ``mixture_variance`` gives one.
        before: the result of the look before: p-value and interval never get weaker (running intersection).

    Raises:
        InputError: a value is out of its range, or the options changed since the look before.
    """
    value, error = checked_number(estimate, "estimate"), checked_number(standard_error, "standard_error")
    tuning = checked_number(tuning_variance, "tuning_variance")
    level = checked_probability(confidence, "confidence")
    if error <= 0 or tuning <= 0:
        raise InputError(
            "standard_error and tuning_variance: both must be above 0.",
            field="standard_error, tuning_variance",
        )
    if before is not None and (before.confidence, before.tuning_variance) != (level, tuning):
        raise InputError(
            "before: confidence and tuning_variance are fixed before the first look.", field="before"
        )
    variance = error**2
    total = variance + tuning
    half = math.sqrt(variance * total / tuning * (math.log(total / variance) - 2.0 * math.log(1.0 - level)))
    # The likelihood ratio of the mixture against no effect; its inverse is the p-value.
    log_ratio = 0.5 * math.log(variance / total) + value**2 * tuning / (2.0 * variance * total)
    p_value = math.exp(min(0.0, -log_ratio))
    lower, upper = value - half, value + half
    if before is not None:
        p_value = min(p_value, before.p_value)
        lower, upper = max(lower, before.lower), min(upper, before.upper)
        if lower > upper:
            # The sequence contradicts itself, which under its assumptions happens at most once in 1/alpha trials.
            raise InputError(
                "always_valid: this interval and those before have nothing in common; the effect drifts "
                "over time or the standard errors are wrong.",
                field="always_valid",
                remedy="Look at the effect by period.",
            )
    return AlwaysValid(
        estimate=value, lower=lower, upper=upper, p_value=p_value, confidence=level, tuning_variance=tuning
    )
