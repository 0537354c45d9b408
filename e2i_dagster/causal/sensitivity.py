"""How strong an unobserved confounder would have to be: E-value, robustness value, adjusted estimates."""

from __future__ import annotations

import math

import numpy as np

from e2i_dagster.causal.nuisances import Estimand, Nuisances
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.policy_files.base import PolicyModel


class EValue(PolicyModel):
    """VanderWeele and Ding (2017).

    Attributes:
        risk_ratio, lower, upper: of the effect. point: association with both treatment and outcome, as risk
            ratios, that an unobserved confounder needs to explain the effect away. limit: the same for the end of
            the interval that is nearer to 1; 1 when the interval holds 1 already.
        scale: ``risk_ratio``, or ``approximate`` (from a standardized difference of a continuous outcome).
    """

    risk_ratio: float
    lower: float
    upper: float
    point: float
    limit: float
    scale: str


class ConfounderBound(PolicyModel):
    """What is left under an unobserved confounder ``multiple`` times as strong as an observed one.

    Attributes:
        r2_treatment, r2_outcome: partial R2 of the unobserved one with treatment and outcome.
        unadjusted: the linear effect. estimate, lower, upper: adjusted for it, moved against the sign of
            the effect; None when no confounder can be that strong.
    """

    confounder: str
    multiple: float
    r2_treatment: float
    r2_outcome: float
    unadjusted: float
    estimate: float | None
    lower: float | None
    upper: float | None

    @property
    def survives(self) -> bool:
        """The adjusted interval excludes zero, on the side of the unadjusted estimate."""
        if self.lower is None or self.upper is None:
            return False
        return self.lower > 0 if self.unadjusted > 0 else self.upper < 0


class Sensitivity(PolicyModel):
    """Robustness to what was not measured.

    Attributes:
        e_value: None where the outcome has no mean above zero.
        linear_effect: ordinary least squares coefficient, on which the rest is computed (Cinelli and
            Hazlett 2020). robustness_value: partial R2 with both treatment and outcome that brings it to
            zero. robustness_value_significant: that makes its interval include zero.
        bounds: for the observed confounder that is strongest, at several multiples.
    """

    e_value: EValue | None
    linear_effect: float
    robustness_value: float
    robustness_value_significant: float
    bounds: tuple[ConfounderBound, ...]


def e_value(risk_ratio: float, lower: float, upper: float, *, scale: str = "risk_ratio") -> EValue:
    """E-value of a risk ratio and of its interval.

    Raises:
        ValueError: a ratio is not above zero or not inside its interval.
    """
    if not 0 < lower <= risk_ratio <= upper:
        raise ValueError(
            f"expected 0 < lower <= risk ratio <= upper (found {lower:g}, {risk_ratio:g}, {upper:g})"
        )

    def needed(ratio: float) -> float:
        above = ratio if ratio >= 1 else 1 / ratio
        return above + math.sqrt(above * (above - 1))

    limit = 1.0 if lower <= 1 <= upper else needed(lower if risk_ratio > 1 else upper)
    return EValue(
        risk_ratio=risk_ratio, lower=lower, upper=upper, point=needed(risk_ratio), limit=limit, scale=scale
    )


def robustness_value(t_statistic: float, degrees: float, *, q: float = 1.0, alpha: float = 1.0) -> float:
    """Robustness value of Cinelli and Hazlett (2020), equations 17 and 18.

    Args:
        t_statistic, degrees: of the treatment's coefficient and its residual degrees of freedom.
        q: share of the estimate to be explained away. alpha: below 1, until it is not significant at this level.
    """
    from scipy.stats import t as student

    strength = q * abs(t_statistic) / math.sqrt(degrees)
    if alpha < 1:
        strength -= abs(float(student.ppf(alpha / 2, degrees - 1))) / math.sqrt(degrees - 1)
    if strength <= 0:
        return 0.0
    return 0.5 * (math.sqrt(strength**4 + 4 * strength**2) - strength**2)


def adjusted_estimate(
    estimate: float, error: float, degrees: float, *, r2_treatment: float, r2_outcome: float
) -> tuple[float, float]:
    """Estimate and standard error had a confounder of that strength been adjusted for (moved towards zero).

    Cinelli and Hazlett (2020), equations 11 and 14.
    """
    bias = error * math.sqrt(degrees) * math.sqrt(r2_outcome * r2_treatment / (1 - r2_treatment))
    moved = (abs(estimate) - bias) * math.copysign(1.0, estimate)
    adjusted_error = error * math.sqrt((1 - r2_outcome) / (1 - r2_treatment) * degrees / (degrees - 1))
    return moved, adjusted_error


def benchmark_strength(r2_treatment: float, r2_outcome: float, multiple: float) -> tuple[float, float] | None:
    """Partial R2 of a confounder ``multiple`` times as strong as an observed one with those partial R2.

    Cinelli and Hazlett (2020), section 4.4; None when that is impossible.
    """
    if multiple * r2_treatment >= 1:
        return None
    with_treatment = multiple * r2_treatment / (1 - r2_treatment)
    overlap = multiple * r2_treatment**2 / ((1 - multiple * r2_treatment) * (1 - r2_treatment))
    if with_treatment >= 1 or overlap >= 1:
        return None
    share = (math.sqrt(multiple) + math.sqrt(overlap)) / math.sqrt(1 - overlap)
    with_outcome = share**2 * r2_outcome / (1 - r2_outcome)
    return None if with_outcome >= 1 else (with_treatment, with_outcome)


def assess_sensitivity(
    rows: CausalRows,
    nuisances: Nuisances,
    *,
    level: float,
    strength: float = 1.0,
    estimand: Estimand = "ate",
) -> Sensitivity:
    """E-value of the doubly robust risk ratio; robustness values and bounds of the linear model.

    ``strength``: a multiple of the strongest observed confounder beside 1, 2 and 3. ``estimand``: of the risk ratio;
    the linear model has one effect.
    """
    from scipy.stats import t as student

    kept = rows.x[:, _independent(rows.x)]
    names = [rows.names[k] for k in _independent(rows.x)]
    design = np.column_stack([np.ones(rows.size), rows.t, kept])
    coefficients, errors, degrees = _least_squares(design, rows.y)
    estimate, error = float(coefficients[1]), float(errors[1])
    outcome_r2 = _partial_r2(coefficients, errors, degrees)[2:]
    treatment_design = np.column_stack([np.ones(rows.size), kept])
    fitted, fitted_errors, treatment_degrees = _least_squares(treatment_design, rows.t)
    treatment_r2 = _partial_r2(fitted, fitted_errors, treatment_degrees)[1:]
    strongest = int(np.argmax(treatment_r2 * outcome_r2))
    quantile = float(student.ppf(0.5 + level / 2, degrees))
    bounds = []
    for multiple in sorted({1.0, 2.0, 3.0, strength}):
        implied = benchmark_strength(float(treatment_r2[strongest]), float(outcome_r2[strongest]), multiple)
        if implied is None:
            bounds.append(
                ConfounderBound(
                    confounder=names[strongest], multiple=multiple, r2_treatment=1.0, r2_outcome=1.0,
                    unadjusted=estimate, estimate=None, lower=None, upper=None,
                )
            )  # fmt: skip
            continue
        moved, moved_error = adjusted_estimate(
            estimate, error, degrees, r2_treatment=implied[0], r2_outcome=implied[1]
        )
        bounds.append(
            ConfounderBound(
                confounder=names[strongest], multiple=multiple, r2_treatment=implied[0], r2_outcome=implied[1],
                unadjusted=estimate, estimate=moved,
                lower=moved - quantile * moved_error, upper=moved + quantile * moved_error,
            )
        )  # fmt: skip
    statistic = estimate / error
    return Sensitivity(
        e_value=_e_value_of(rows, nuisances, level, estimand),
        linear_effect=estimate,
        robustness_value=robustness_value(statistic, degrees),
        robustness_value_significant=robustness_value(statistic, degrees, alpha=1 - level),
        bounds=tuple(bounds),
    )


def _e_value_of(rows: CausalRows, nuisances: Nuisances, level: float, estimand: Estimand) -> EValue | None:
    from scipy.stats import norm

    treated, control = nuisances.arm_scores(rows, estimand)
    quantile = float(norm.ppf(0.5 + level / 2))
    mean_treated, mean_control = float(treated.mean()), float(control.mean())
    if rows.binary:
        if mean_treated <= 0 or mean_control <= 0:
            return None
        ratio = math.log(mean_treated / mean_control)
        # Delta method on the log of the ratio of two correlated means.
        influence = (treated - mean_treated) / mean_treated - (control - mean_control) / mean_control
        half = quantile * float(influence.std(ddof=1)) / math.sqrt(rows.size)
        return e_value(math.exp(ratio), math.exp(ratio - half), math.exp(ratio + half))
    deviation = float(rows.y.std(ddof=1))
    difference = (mean_treated - mean_control) / deviation
    half = quantile * float((treated - control).std(ddof=1)) / math.sqrt(rows.size) / deviation
    return e_value(  # VanderWeele and Ding (2017): RR is about exp(0.91 d)
        *(math.exp(0.91 * d) for d in (difference, difference - half, difference + half)), scale="approximate"
    )


def _independent(x: np.ndarray) -> list[int]:
    """Columns of ``x`` that are no linear combination of those before them and a constant."""
    kept: list[int] = []
    basis = np.ones((len(x), 1))
    for k in range(x.shape[1]):
        column = x[:, [k]]
        residual = column - basis @ np.linalg.lstsq(basis, column, rcond=None)[0]
        if np.square(residual).sum() > 1e-9 * max(1.0, float(np.square(column).sum())):
            kept.append(k)
            basis = np.column_stack([basis, column])
    return kept


def _least_squares(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    degrees = len(y) - design.shape[1]
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    variance = float(np.square(y - design @ coefficients).sum()) / degrees
    return coefficients, np.sqrt(variance * np.diag(inverse)), degrees


def _partial_r2(coefficients: np.ndarray, errors: np.ndarray, degrees: int) -> np.ndarray:
    squared = np.square(coefficients / errors)
    return squared / (squared + degrees)
