"""The estimators behind an analysis: one comparison of an arm with the control from sufficient statistics.

Formulas and sources: docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.comparison_results import Comparison
from e2i_dagster.experiments.statistics.permutation import (
    FEWEST_RATIO_OTHERS,
    Pool,
    few_others,
    needs_permutation,
    permutation_test,
)
from e2i_dagster.experiments.statistics.rates import (
    MOST_SKEWNESS,
    MOST_SKEWNESS_STUDENTIZED,
    SMALLEST_ADJUSTED_CELL,
    SMALLEST_LOG_RANK_CELL,
    Counts,
    Draw,
    attainable_z,
    conditional_test,
    rate_test,
    score_interval,
)
from e2i_dagster.experiments.statistics.stopping import checked_number
from e2i_dagster.experiments.statistics.sufficient_statistics import Kind, Moments, SufficientStatistics
from e2i_dagster.experiments.statistics.survival import (
    LogRank,
    RiskTable,
    hazard_ratio,
    last_time,
    log_rank,
    restricted_mean,
    risk_tables,
)

#: Fewer clusters in an arm leave the clustered standard error unknown; planning reads it too.
FEWEST_CLUSTERS = 5
#: Where one cluster is a larger share of its arm, the others say too little of how clusters differ: with one of 0.91
#: among 5, a true null is rejected in 9 % instead of 5 %; up to 0.75 never in more than 4 %.
MOST_OF_ONE_CLUSTER = 0.75
#: From so many degrees of freedom in each arm on its own variance is good enough.
MANY_CLUSTERS = 30
#: A spread that is smaller relative to its mean is the rounding of a constant.
_ROUNDING = 1e-12
#: Fewer events in both arms together give a test but no hazard ratio.
FEWEST_EVENTS = 10


def point_of_arm(kind: Kind, moments: Moments) -> tuple[float, np.ndarray] | None:
    """Estimate of one arm and the weights of its linearization; None when a ratio has no denominator."""
    if kind != "ratio":
        return float(moments.mean[0]), np.array([1.0])
    if moments.mean[1] == 0:
        return None
    ratio = float(moments.mean[0] / moments.mean[1])
    return ratio, np.array([1.0, -ratio]) / moments.mean[1]


def _refused(arm: str, control: str, reason: str, kind: Kind) -> Comparison:
    return Comparison(
        arm=arm,
        control=control,
        status="not_estimable",
        reason=reason,
        effect_type="hazard_ratio" if kind == "survival" else "difference",
    )


class _NotEstimableError(Exception):
    """Why a comparison has no figures; ends in the comparison's ``reason``."""


class _HelperError(Exception):
    """Why a covariate or the strata cannot serve a comparison, which is then made without them."""

    def __init__(self, helper: Literal["covariate", "strata"], reason: str) -> None:
        super().__init__(reason)
        self.helper = helper


def compare(
    statistics: SufficientStatistics,
    arm: str,
    control: str,
    confidence: float,
    limits: tuple[float, float] | None,
    horizon: float | None,
    min_per_arm: int,
) -> Comparison:
    """One arm against the control. A covariate or strata that cannot serve are left out, and ``note`` says why."""
    notes: list[str] = []
    while True:
        try:
            found = _estimated(statistics, arm, control, confidence, horizon, min_per_arm)
            break
        except _HelperError as failure:
            # Each is taken away once, so this ends.
            if failure.helper == "covariate":
                statistics = statistics.without_covariate()
                notes.append(f"without the covariate: {failure}")
            else:
                statistics = statistics.pooled()
                notes.append(f"pooled over the strata: {failure}")
        except _NotEstimableError as reason:
            return _refused(arm, control, str(reason), statistics.kind)
    if notes:
        found = found.model_copy(update={"note": "; ".join(notes)})
    if limits is not None and statistics.kind != "survival":
        found = found.model_copy(update={"bounds": _bounds(statistics, arm, control, limits)})
    return found


def _estimated(
    statistics: SufficientStatistics,
    arm: str,
    control: str,
    confidence: float,
    horizon: float | None,
    min_per_arm: int,
) -> Comparison:
    for name in (control, arm):
        cell = statistics.cell(name)
        observed = cell.complete.count + cell.bare.count
        if cell.units == 0:
            raise _NotEstimableError(f"arm {name} has no unit")
        if observed < min_per_arm:
            count = shown_count(observed)
            raise _NotEstimableError(
                f"arm {name} has {count} units with outcome; at least {min_per_arm} are needed"
            )
    if statistics.kind == "survival":
        return _compare_survival(statistics, arm, control, confidence, horizon)
    if statistics.clusters is not None:
        return _compare_clusters(statistics, arm, control, confidence)
    if statistics.kind == "proportion" and _few_events(statistics, arm, control):
        return _compare_rates(statistics, arm, control, confidence)
    pools = _pools(statistics, arm, control)
    if statistics.kind == "ratio" and (few_others(pools) or FEWEST_RATIO_OTHERS) < FEWEST_RATIO_OTHERS:
        raise _NotEstimableError(
            "too few units have another numerator than most: no test of a ratio holds its level"
        )
    if statistics.kind == "mean" and pools and _vary(pools) and needs_permutation(pools):
        return _compare_values(statistics, pools, arm, control, confidence)
    return _compare_means(statistics, arm, control, confidence)


def _pools(statistics: SufficientStatistics, arm: str, control: str) -> list[Pool]:
    """The values of both arms by stratum; of strata that have units of both. None where they are not kept."""
    if statistics.values is None:
        return []
    found = []
    kept = statistics.values[statistics.values["arm"].isin([arm, control])]
    for _, part in kept.groupby("stratum", sort=True):
        sides = part.pivot_table(index="v0", columns="arm", values="units", aggfunc="sum", fill_value=0)
        if {arm, control} <= set(sides.columns):
            counts = sides[[arm, control]].to_numpy(dtype=np.int64)
            found.append(Pool(sides.index.to_numpy(dtype=float), counts.sum(axis=1), counts[:, 0]))
    return found


def _vary(pools: list[Pool]) -> bool:
    return any(pool.others for pool in pools)


def _compare_values(
    statistics: SufficientStatistics, pools: list[Pool], arm: str, control: str, confidence: float
) -> Comparison:
    """Difference of means by the permutation test within strata, of 0 and 1 by the test of rates; no covariate.

    The interval is that of the permutation variance, widened by what it overstates, so that it holds 0 exactly where
    the test does not reject.
    """
    from scipy.special import ndtr

    if all(np.isin(pool.values, (0.0, 1.0)).all() for pool in pools):
        return _compare_rates(statistics, arm, control, confidence)
    test = permutation_test(pools)
    weights = np.array([pool.units for pool in pools], dtype=float)
    weights /= weights.sum()
    effect = float(weights @ [pool.difference for pool in pools])
    spread = math.sqrt(float(weights**2 @ [pool.difference_variance for pool in pools]))
    lower, upper = _widened(effect, spread, test.z, _normal_quantile(confidence))
    base = statistics.cell(control).moments(statistics.covariate_fill((arm, control)))
    note = "without the covariate: too few outcomes differ to adjust for it" if statistics.covariate else None
    return Comparison(
        arm=arm, control=control, status="estimated", note=note,
        method=test.method + (", stratified" if statistics.stratified else ""), effect=effect,
        standard_error=(effect - lower if effect > 0 else upper - effect) / _normal_quantile(confidence),
        lower=lower, upper=upper, statistic=test.statistic, z=test.z,
        p_value=min(1.0, float(2 * ndtr(-abs(test.z)))), attainable=test.attainable,
        relative_effect=effect / float(base.mean[0]) if base.mean[0] else None,
    )  # fmt: skip


def _widened(effect: float, spread: float, found: float, z: float) -> tuple[float, float]:
    """Limits of ``effect`` with the standard error ``spread``, widened by what that overstates against ``found``."""
    side = math.copysign(1.0, effect)
    overstated = effect / spread - found
    towards, away = max(0.0, z + side * overstated) * spread, (z + max(0.0, side * overstated)) * spread
    return (effect - towards, effect + away) if side > 0 else (effect - away, effect + towards)


def _no_variation(statistics: SufficientStatistics, what: str) -> Exception:
    """The outcome does not vary as it is analysed: without its helpers it may."""
    if statistics.covariate:
        return _HelperError("covariate", "it leaves the outcome without variation")
    if statistics.stratified:
        return _HelperError("strata", "the outcome does not vary within them")
    return _NotEstimableError(what)


def _of_stratum(stratified: bool, reason: str) -> Exception:
    """A stratum that cannot be analysed stops the adjustment for strata, and nothing without them."""
    return _HelperError("strata", reason) if stratified else _NotEstimableError(reason)


def _varies(variance: float, level: float) -> bool:
    """Whether there is more than the rounding of a constant ``level``."""
    return (_ROUNDING * level) ** 2 < variance < math.inf


def _relative(
    effect: float, base: float, variance: float, base_variance: float, covariance: float, confidence: float
) -> dict[str, Any]:
    """Effect as a share of the control's mean, with its delta-method interval; nothing when that is 0."""
    if base == 0:
        return {}
    share = effect / base
    # Gradient of effect / base in (effect, base); covariance of the two.
    spread = (variance - 2 * share * covariance + share**2 * base_variance) / base**2
    half = _normal_quantile(confidence) * math.sqrt(max(spread, 0.0))
    return {"relative_effect": share, "relative_lower": share - half, "relative_upper": share + half}


def _normal_quantile(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2.0))


def _t_result(effect: float, variance: float, freedom: float, confidence: float) -> dict[str, Any]:
    """Statistic, p-value and interval with Student's t distribution."""
    from scipy.special import ndtri, ndtri_exp, stdtr, stdtrit

    error = math.sqrt(variance)
    statistic = effect / error
    tail = float(stdtr(freedom, -abs(statistic)))
    half = float(stdtrit(freedom, 0.5 + confidence / 2.0)) * error
    # Beyond what a double holds as a tail, t itself is the best that can be said.
    z = abs(statistic) if tail == 0.0 else -float(ndtri(tail) if tail > 1e-300 else ndtri_exp(math.log(tail)))
    return {
        "effect": effect, "standard_error": error, "lower": effect - half, "upper": effect + half,
        "statistic": statistic, "degrees_of_freedom": freedom, "z": math.copysign(z, effect),
        "p_value": min(1.0, 2.0 * tail),
    }  # fmt: skip


def _compare_means(statistics: SufficientStatistics, arm: str, control: str, confidence: float) -> Comparison:
    """Difference of means or ratios, with CUPED and strata; Welch's degrees of freedom.

    The strata are weighted by their units in the two arms. CUPED (Deng et al., WSDM 2013): the linearized
    outcome less ``theta`` times the covariate, ``theta`` pooled within arms and strata.
    """
    strata = statistics.strata if statistics.stratified else (None,)
    fill = statistics.covariate_fill((arm, control))
    if statistics.covariate and fill is None:
        raise _HelperError("covariate", "no unit has it")
    parts: list[tuple[float, dict[str, Moments]]] = []
    for stratum in strata:
        pair = {name: statistics.cell(name, stratum).moments(fill) for name in (arm, control)}
        count = sum(moments.count for moments in pair.values())
        if not count:
            continue
        for name, moments in pair.items():
            if moments.count < 2:
                where = f" in stratum {stratum}" if stratum is not None else ""
                raise _of_stratum(
                    stratum is not None, f"arm {name} has fewer than 2 units with outcome{where}"
                )
        parts.append((float(count), pair))
    weights = np.array([count for count, _ in parts])
    weights /= weights.sum()
    points = [_points(statistics, pair) for _, pair in parts]
    theta = _theta(parts, points) if statistics.covariate else 0.0
    effect = variance = plain_effect = plain_variance = base = base_variance = 0.0
    freedom_terms = 0.0
    for weight, (_, pair), point in zip(weights, parts, points, strict=True):
        centre = None
        if statistics.covariate:
            centre = sum(m.count * m.mean[-1] for m in pair.values()) / sum(m.count for m in pair.values())
        for name, sign in ((arm, 1.0), (control, -1.0)):
            value, gradient = point[name]
            moments = pair[name]
            covariance = moments.covariance()
            size = len(gradient)
            plain = float(gradient @ covariance[:size, :size] @ gradient) / moments.count
            plain_effect += weight * sign * value
            plain_variance += weight**2 * plain
            share = plain
            if centre is not None:
                value -= theta * float(moments.mean[-1] - centre)
                wide = np.append(gradient, -theta)
                share = float(wide @ covariance @ wide) / moments.count
            effect += weight * sign * value
            variance += weight**2 * share
            freedom_terms += (weight**2 * share) ** 2 / (moments.count - 1)
            if name == control:
                base += weight * value
                base_variance += weight**2 * share
    if not _varies(variance, base):
        raise _no_variation(statistics, "the outcome does not vary in either arm, so its error is unknown")
    freedom = variance**2 / freedom_terms
    extra: dict[str, Any] = {}
    if statistics.covariate:
        extra = {
            "unadjusted_effect": plain_effect,
            "variance_reduction": 1.0 - variance / plain_variance if plain_variance > 0 else 0.0,
        }
    name = {"mean": "Welch t", "proportion": "Welch t of rates", "ratio": "delta method"}[statistics.kind]
    method = (
        name + (", stratified" if statistics.stratified else "") + (", CUPED" if statistics.covariate else "")
    )
    return Comparison(
        arm=arm, control=control, status="estimated", method=method, **extra,
        **_t_result(effect, variance, freedom, confidence),
        **_relative(effect, base, variance, base_variance, -base_variance, confidence),
    )  # fmt: skip


def _points(
    statistics: SufficientStatistics, pair: dict[str, Moments]
) -> dict[str, tuple[float, np.ndarray]]:
    found = {}
    for name, moments in pair.items():
        point = point_of_arm(statistics.kind, moments)
        if point is None:
            raise _of_stratum(statistics.stratified, f"the denominator of arm {name} sums to 0")
        found[name] = point
    return found


def _theta(
    parts: list[tuple[float, dict[str, Moments]]], points: list[dict[str, tuple[float, np.ndarray]]]
) -> float:
    """Slope of the linearized outcome on the covariate, pooled within arms and strata."""
    cross = square = level = 0.0
    for (_, pair), point in zip(parts, points, strict=True):
        for name, moments in pair.items():
            gradient = point[name][1]
            cross += float(gradient @ moments.products[: len(gradient), -1])
            square += float(moments.products[-1, -1])
            level += moments.count * float(moments.mean[-1]) ** 2
    if not _varies(square, math.sqrt(level)):
        raise _HelperError("covariate", "it does not vary")
    return cross / square


def _counts(statistics: SufficientStatistics, arm: str, control: str, stratum: str | None = None) -> Counts:
    """Units with the outcome and all units with an observed one, of both arms."""
    sides = []
    for name in (arm, control):
        cell = statistics.cell(name, stratum)
        parts = (cell.complete, cell.bare)
        sides += [
            round(sum(part.count * float(part.mean[0]) for part in parts)),
            sum(part.count for part in parts),
        ]
    return Counts(*sides)


def _few_events(statistics: SufficientStatistics, arm: str, control: str) -> bool:
    """Whether rates are compared by :func:`_compare_rates`: always without covariate and strata, else where the
    t test would not hold its level."""
    if not statistics.covariate and not statistics.stratified:
        return True
    counts = _counts(statistics, arm, control)
    few = counts.smallest_expected_cell < SMALLEST_ADJUSTED_CELL
    return few or abs(counts.skewness) > MOST_SKEWNESS_STUDENTIZED


def _compare_rates(statistics: SufficientStatistics, arm: str, control: str, confidence: float) -> Comparison:
    """Difference of rates; the covariate is left out, strata enter by the exact conditional test.

    The interval is the score interval, widened by what the score statistic overstates (:func:`score_interval`), so that
    it holds 0 exactly where the test does not reject.
    """
    from scipy.special import ndtr

    counts, z = _counts(statistics, arm, control), _normal_quantile(confidence)
    test = rate_test(counts)
    statistic, found, method, effect = test.statistic, test.z, test.method, counts.difference
    attainable = None
    strata: list[Counts] = []
    if statistics.stratified:
        parts = (_counts(statistics, arm, control, stratum) for stratum in statistics.strata)
        strata = [part for part in parts if part.units_1 and part.units_0]
    if strata:
        units = sum(part.units for part in strata)
        weights = [part.units / units for part in strata]
        effect = sum(weight * part.difference for weight, part in zip(weights, strata, strict=True))
        exact = conditional_test(
            (Draw(part.units, part.units_1, part.events) for part in strata),
            sum(part.events_1 for part in strata),
            statistic,
        )
        found, attainable = exact.z, exact.attainable
        method = "exact conditional test, stratified"
    elif test.method != "score test":
        attainable = attainable_z(counts)
    lower, upper = score_interval(counts, z, statistic - found)
    null = sum(
        (part.units / counts.units) ** 2 * rate * (1 - rate) * (1 / part.units_1 + 1 / part.units_0)
        for part in strata
        for rate in [part.events / part.units]
    )
    if null > 0:
        # The same correction about the effect that is weighted by strata.
        lower, upper = _widened(effect, math.sqrt(null), found, z)
    p1, p0 = counts.events_1 / counts.units_1, counts.events_0 / counts.units_0
    v1, v0 = p1 * (1 - p1) / counts.units_1, p0 * (1 - p0) / counts.units_0
    relative: dict[str, Any] = {"relative_effect": effect / p0} if p0 else {}
    error = math.sqrt(v1 + v0)
    if test.method == "score test" and not strata:
        relative = _relative(effect, p0, v1 + v0, v0, -v0, confidence)
    else:
        # A plain variance of few events is nothing to go by (0 for a rate of 0): the side towards no effect tells.
        error = (effect - lower if effect > 0 else upper - effect) / z
    note = "without the covariate: the events are too few to adjust for it" if statistics.covariate else None
    return Comparison(
        arm=arm, control=control, status="estimated", method=f"{method}, score interval", note=note,
        effect=effect, standard_error=error, lower=lower, upper=upper, statistic=statistic, z=found,
        p_value=min(1.0, float(2 * ndtr(-abs(found)))), attainable=attainable,
        counts=None if strata else (counts.events_1, counts.units_1, counts.events_0, counts.units_0), **relative,
    )  # fmt: skip


def limits_at(found: Comparison, z: float) -> tuple[float, float]:
    """Confidence limits of an estimated comparison with the critical value ``z``, for example a boundary."""
    assert found.effect is not None and found.standard_error is not None
    if found.counts is not None and found.statistic is not None and found.z is not None:
        return score_interval(Counts(*found.counts), z, found.statistic - found.z)
    half = z * found.standard_error
    if found.effect_type == "hazard_ratio":
        middle = math.log(found.effect)
        return math.exp(middle - half), math.exp(middle + half)
    return found.effect - half, found.effect + half


@dataclass(frozen=True)
class _ClusterArm:
    """Clusters of one arm in one stratum: ``line`` are the linearized totals of the outcome, whose sum is 0;
    ``shift`` the totals of the covariate less its overall mean, per unit of the arm, whose sum is what the arm
    differs by; ``leverage`` each cluster's share of the arm; ``codes`` number the clusters of the experiment.
    """

    codes: np.ndarray
    value: float
    line: np.ndarray
    shift: np.ndarray
    units: np.ndarray
    leverage: np.ndarray

    def totals(self, values: np.ndarray, clusters: int) -> np.ndarray:
        """``values`` at the places of their clusters, 0 elsewhere; shape (clusters,)."""
        return np.bincount(self.codes, weights=values, minlength=clusters)

    @property
    def centred(self) -> np.ndarray:
        return self.shift - self.units * (self.shift.sum() / self.units.sum())

    @property
    def inflation(self) -> np.ndarray:
        """What makes the residual of each cluster as large as its error (CR2)."""
        return 1.0 / np.sqrt(1.0 - self.leverage)


def satterthwaite_clusters(leverage: np.ndarray) -> float:
    """Degrees of freedom of the CR2 variance of one arm's mean (Bell and McCaffrey, Survey Methodology 28, 2002).

    ``trace(B)^2 / trace(B^2)`` of the residuals' covariance ``B``, under units that are independent and under
    clusters that are all alike inside; the smaller of the two, as the correlation is not known. ``g - 1`` for
    clusters of one size.

    Args:
        leverage: each cluster's share of the units of the arm, shape (clusters,), sum 1.
    """
    found = []
    scale = 1.0 / np.sqrt(1.0 - leverage)
    for variance in (leverage, leverage**2):
        # Residuals are (I - h 1') times the totals, whose covariance is diagonal.
        shared = np.outer(variance, leverage)
        covariance = np.diag(variance) - shared - shared.T + variance.sum() * np.outer(leverage, leverage)
        covariance *= np.outer(scale, scale)
        found.append(float(np.trace(covariance)) ** 2 / float((covariance**2).sum()))
    return min(found)


def _cluster_arm(
    kind: Kind, name: str, part: pd.DataFrame, codes: np.ndarray, fill: float | None, where: str
) -> _ClusterArm:
    if len(codes) < 2:
        raise _of_stratum(bool(where), f"arm {name} has fewer than 2 clusters{where}")
    units = part["units"].to_numpy(dtype=float)
    top = part["v0"].to_numpy(dtype=float)
    bottom = part["v1"].to_numpy(dtype=float) if kind == "ratio" else units
    if bottom.sum() == 0:
        raise _of_stratum(bool(where), f"the denominator of arm {name} sums to 0{where}")
    leverage = bottom / bottom.sum()
    if leverage.max() >= 1.0 or leverage.min() < 0.0:
        raise _of_stratum(
            bool(where), f"one cluster of arm {name} has all of the denominator, or one is negative{where}"
        )
    value = float(top.sum() / bottom.sum())
    shift = np.zeros(len(part))
    if fill is not None:
        totals = part["x"].to_numpy(dtype=float) + fill * part["x_missing"].to_numpy(dtype=float)
        shift = (totals - units * fill) / units.sum()
    return _ClusterArm(codes, value, (top - value * bottom) / float(bottom.sum()), shift, units, leverage)


@dataclass(frozen=True)
class _ClusterTotals:
    """One arm over all strata: weighted value, and per cluster the linearized outcome and covariate.

    ``cells``: the weight of each stratum and the arm's clusters in it.
    """

    value: float
    shift: float
    lines: np.ndarray
    shifts: np.ndarray
    cells: tuple[tuple[float, _ClusterArm], ...]

    def adjusted(self, theta: float, clusters: int, *, corrected: bool) -> np.ndarray:
        """Errors per cluster less ``theta`` times the covariate's; ``corrected`` for their leverage."""
        if not corrected:
            return self.lines - theta * self.shifts
        found = np.zeros(clusters)
        for weight, side in self.cells:
            found += weight * side.totals((side.line - theta * side.centred) * side.inflation, clusters)
        return found

    def variances(self, theta: float) -> np.ndarray:
        """Per stratum: variance, its degrees of freedom, and the variance for clusters of variance 1; (strata, 3)."""
        found = []
        for weight, side in self.cells:
            errors = weight * (side.line - theta * side.centred) * side.inflation
            unit = weight**2 * float(side.leverage @ side.leverage)
            found.append((float(errors @ errors), satterthwaite_clusters(side.leverage), unit))
        return np.array(found)


def cluster_error(
    variance: np.ndarray, freedom: np.ndarray, unit: np.ndarray, tail: float, ratio: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of an effect over randomized clusters, and its degrees of freedom: of two the one that says less.

    Each arm's variance for itself with Satterthwaite's degrees of freedom, or one variance of clusters in both
    arms: with few clusters in one arm alone the first is too often too small, the second is wrong where the arms
    differ. Taken is the one with the longer interval, while an arm has few clusters or none that differ.

    Args:
        variance: of each arm (and stratum), shape (2, ..., strata). freedom, unit: likewise, as
            :meth:`_ClusterTotals.variances` has them. tail: error of one side, for the interval.
        ratio: of the whole variance to the sum of ``variance`` (clusters may lie in several strata).
    """
    from scipy.special import stdtrit

    arms = variance.sum(axis=(0, -1))
    own = arms**2 / (variance**2 / freedom).sum(axis=(0, -1))
    together = freedom.sum(axis=0)
    within = (variance / unit * freedom).sum(axis=0) / together
    shared = (within * unit.sum(axis=0)).sum(axis=-1)
    both = together.sum(axis=-1)
    longer = stdtrit(both, 1.0 - tail) ** 2 * shared > stdtrit(own, 1.0 - tail) ** 2 * arms
    # An arm that does not vary (every cluster without an event) says nothing of its error.
    longer &= (freedom.sum(axis=-1).min(axis=0) < MANY_CLUSTERS) | (variance.sum(axis=-1).min(axis=0) == 0.0)
    return ratio * np.where(longer, shared, arms), np.where(longer, both, own)


def _cluster_totals_of(
    statistics: SufficientStatistics,
    name: str,
    other: str,
    codes: np.ndarray,
    clusters: int,
    fill: float | None,
) -> _ClusterTotals:
    """Strata are weighted by their units in both arms; a cluster's errors add up over strata."""
    assert statistics.clusters is not None
    table = statistics.clusters
    both = table[table["arm"].isin([name, other])]
    mine = (both["arm"] == name).to_numpy()
    number = len(set(codes[mine]))
    if number < FEWEST_CLUSTERS:
        raise _NotEstimableError(f"arm {name} has {number} clusters; at least {FEWEST_CLUSTERS} are needed")
    value = shift = 0.0
    lines, shifts = np.zeros(clusters), np.zeros(clusters)
    cells, shares = [], np.zeros(clusters)
    total = float(both["units"].sum())
    for stratum, part in both.groupby("stratum", sort=True):
        inside = mine & (both["stratum"] == stratum).to_numpy()
        where = f" in stratum {stratum}" if statistics.stratified else ""
        side = _cluster_arm(statistics.kind, name, both[inside], codes[inside], fill, where)
        weight = float(part["units"].sum()) / total
        cells.append((weight, side))
        value += weight * side.value
        shift += weight * float(side.shift.sum())
        shares += weight * side.totals(side.leverage, clusters)
        lines += weight * side.totals(side.line, clusters)
        shifts += weight * side.totals(side.centred, clusters)
    if shares.max() > MOST_OF_ONE_CLUSTER:
        raise _of_stratum(
            statistics.stratified,
            f"one cluster is {shares.max():.0%} of arm {name}, so that the others cannot tell its error; at most "
            f"{MOST_OF_ONE_CLUSTER:.0%} can be judged",
        )
    return _ClusterTotals(value, shift, lines, shifts, tuple(cells))


def _compare_clusters(
    statistics: SufficientStatistics, arm: str, control: str, confidence: float
) -> Comparison:
    """Means or ratios with standard errors over clusters: the linearized totals of each cluster.

    Randomized clusters: each residual corrected for its leverage (CR2) and Satterthwaite's degrees of freedom
    (:func:`cluster_error`), so that few clusters, unequal numbers and unequal sizes keep the level. A covariate
    costs one degree of freedom.
    A cluster that holds units of both arms has errors that are not independent: factor G / (G - 1), G - 1 degrees.
    """
    assert statistics.clusters is not None
    table = statistics.clusters
    both = table[table["arm"].isin([arm, control])]
    fill = statistics.covariate_fill((arm, control))
    if statistics.covariate and fill is None:
        raise _HelperError("covariate", "no unit has it")
    codes, labels = pd.factorize(both["cluster"].to_numpy(), sort=True)
    groups = len(labels)
    base_side = _cluster_totals_of(statistics, control, arm, codes, groups, fill)
    side = _cluster_totals_of(statistics, arm, control, codes, groups, fill)
    theta = 0.0
    if statistics.covariate:
        # The slope that leaves least of the variance over clusters, which is the one that counts here.
        across = side.shifts - base_side.shifts
        square = float(across @ across)
        if not _varies(square, fill or 0.0):
            raise _HelperError("covariate", "it does not vary between clusters")
        theta = float((side.lines - base_side.lines) @ across) / square
    arms = {name: set(codes[(both["arm"] == name).to_numpy()]) for name in (arm, control)}
    apart = not arms[arm] & arms[control]
    base = base_side.adjusted(theta, groups, corrected=apart)
    change = side.adjusted(theta, groups, corrected=apart) - base
    factor, freedom = 1.0 if apart else groups / (groups - 1), groups - 1.0
    base_value = base_side.value - theta * base_side.shift
    if not _varies(factor * float(change @ change), base_value):
        raise _no_variation(statistics, "the outcome does not vary between clusters, so its error is unknown")
    if apart:
        parts = np.stack([side.variances(theta), base_side.variances(theta)])
        own = float(parts[..., 0].sum())
        total, degrees = cluster_error(
            parts[..., 0],
            parts[..., 1],
            parts[..., 2],
            (1.0 - confidence) / 2.0,
            float(change @ change) / own,
        )
        factor, freedom = float(total) / float(change @ change), float(degrees)
    if statistics.covariate:
        if freedom <= 2.0:
            raise _HelperError("covariate", "there are too few clusters to estimate its slope")
        factor, freedom = factor * freedom / (freedom - 1.0), freedom - 1.0
    variance = factor * float(change @ change)
    effect = side.value - theta * side.shift - base_value
    extra: dict[str, Any] = {}
    if statistics.covariate:
        plain = side.adjusted(0.0, groups, corrected=apart) - base_side.adjusted(0.0, groups, corrected=apart)
        spread = (1.0 if apart else groups / (groups - 1)) * float(plain @ plain)
        extra = {
            "unadjusted_effect": side.value - base_side.value,
            "variance_reduction": 1.0 - variance / spread if spread > 0 else 0.0,
        }
    method = "cluster-robust t" + (", stratified" if statistics.stratified else "")
    # Units of a cluster are alike, so that clusters say no more than as many units by themselves would.
    attainable = attainable_z(_counts(statistics, arm, control)) if statistics.kind == "proportion" else None
    return Comparison(
        arm=arm, control=control, status="estimated", attainable=attainable,
        method=method + (", CUPED" if statistics.covariate else ""), **extra,
        **_t_result(effect, variance, freedom, confidence),
        **_relative(
            effect, base_value, variance, factor * float(base @ base), factor * float(change @ base), confidence
        ),
    )  # fmt: skip


def _bounds(
    statistics: SufficientStatistics, arm: str, control: str, limits: tuple[float, float]
) -> tuple[float, float]:
    """Least and largest effect when missing outcomes are anything in ``limits`` (Horowitz and Manski, 2000)."""

    def mean(name: str, value: float) -> float:
        cell = statistics.cell(name)
        observed = cell.moments(0.0 if statistics.covariate else None)
        return float((observed.mean[0] * observed.count + value * cell.missing) / cell.units)

    low, high = limits
    return mean(arm, low) - mean(control, high), mean(arm, high) - mean(control, low)


def _compare_survival(
    statistics: SufficientStatistics, arm: str, control: str, confidence: float, horizon: float | None
) -> Comparison:
    from scipy.special import ndtr

    assert statistics.life is not None
    tables = risk_tables(statistics.life, arm, control)
    events = {
        name: int(statistics.life.loc[statistics.life["arm"] == name, "events"].sum())
        for name in (arm, control)
    }
    together = sum(events.values())
    test = log_rank(tables)
    if not together:
        raise _NotEstimableError("no event in either arm")
    if not test.variance > 0:
        raise _of_stratum(statistics.stratified, "at no event time were units of both arms at risk")
    value, method, attainable = _log_rank_z(tables, test)
    shared: dict[str, Any] = {
        "arm": arm, "control": control, "effect_type": "hazard_ratio", "statistic": test.statistic, "z": value,
        "p_value": min(1.0, float(2 * ndtr(-abs(value)))),
        "method": method + (", stratified" if statistics.stratified else ""), "attainable": attainable,
    }  # fmt: skip
    without = [name for name, count in events.items() if not count]
    ratio = None if without or together < FEWEST_EVENTS else hazard_ratio(tables)
    why = ""
    if together < FEWEST_EVENTS:
        why = f"both arms together have fewer than {FEWEST_EVENTS} events"
    elif without:
        why = f"arm {without[0]} has no event: the hazard ratio has no finite estimate"
    elif ratio is None:
        if statistics.stratified:
            raise _HelperError(
                "strata", "the partial likelihood within them has no maximum (perfect separation)"
            )
        why = "the partial likelihood of the hazard ratio has no maximum (perfect separation)"
    z = _normal_quantile(confidence)
    longest = min(last_time(statistics.life, name) for name in (arm, control))
    if horizon is not None and not 0 < checked_number(horizon, "horizon") <= longest:
        raise InputError(
            f"horizon: {horizon:g} must lie above 0 and at most {longest:g}, the shorter follow-up.",
            field="horizon",
        )
    until = longest if horizon is None else float(horizon)
    treated, base = (restricted_mean(statistics.life, name, until) for name in (arm, control))
    difference, spread = treated.mean - base.mean, treated.variance + base.variance
    area: dict[str, Any] = {"horizon": until}
    if spread > 0:
        half = z * math.sqrt(spread)
        area |= {
            "restricted_mean_difference": difference,
            "restricted_mean_lower": difference - half,
            "restricted_mean_upper": difference + half,
            "restricted_mean_p_value": float(2 * ndtr(-abs(difference) / math.sqrt(spread))),
        }
    if ratio is None:
        return Comparison(status="tested", reason=why, **shared, **area)
    shared["method"] += ", Cox hazard ratio"
    return Comparison(
        status="estimated", effect=math.exp(ratio.log_ratio), standard_error=ratio.standard_error,
        lower=math.exp(ratio.log_ratio - z * ratio.standard_error),
        upper=math.exp(ratio.log_ratio + z * ratio.standard_error), **shared, **area,
    )  # fmt: skip


def _log_rank_z(tables: list[RiskTable], test: LogRank) -> tuple[float, str, tuple[float, float] | None]:
    """The log-rank statistic where it is close to normal, else the exact test over the same tables, with the z that
    it can attain."""
    third = smallest = 0.0
    for table in tables:
        events, share = table.events_0 + table.events_1, table.risk_1 / (table.risk_0 + table.risk_1)
        third += float((events * share * (1 - share) * (1 - 2 * share)).sum())
        smallest += float(events.sum())
    smallest = min(test.expected, smallest - test.expected)
    if smallest >= SMALLEST_LOG_RANK_CELL and abs(third) / test.variance**1.5 <= MOST_SKEWNESS:
        return test.statistic, "log-rank test", None
    draws = (
        Draw(int(risk_0 + risk_1), int(risk_1), int(events_0 + events_1))
        for table in tables
        for risk_0, risk_1, events_0, events_1 in zip(
            table.risk_0, table.risk_1, table.events_0, table.events_1, strict=True
        )
    )
    exact = conditional_test(draws, round(test.observed), test.statistic)
    return exact.z, "exact log-rank test", exact.attainable
