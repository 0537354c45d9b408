"""Size of an experiment: units, power, smallest detectable effect, inflation by interim looks.

Formulas and sources: docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.comparisons import (
    FEWEST_CLUSTERS,
    MOST_OF_ONE_CLUSTER,
    cluster_error,
    satterthwaite_clusters,
)
from e2i_dagster.experiments.statistics.group_sequential import crossing_probabilities, solve
from e2i_dagster.experiments.statistics.sample_ratio import checked_ratio
from e2i_dagster.experiments.statistics.stopping import (
    Boundaries,
    checked_number,
    checked_probability,
)

#: Allocation as people write it.
Ratio = float | str | Sequence[float] | Mapping[str, float]
Kind = Literal["mean", "proportion", "ratio", "survival"]
KINDS = ("mean", "proportion", "ratio", "survival")
#: Quantiles of each arm's variance over which the power of a cluster design is averaged.
_GRID = 60
#: More units than this are no experiment: the effect asked for is too near to zero.
MOST_UNITS = 10**12


class SampleSize(BaseModel):
    """Units to be enrolled, and how they came about.

    ``total`` and ``per_arm`` are whole units to enrol, after design effect, interim looks and loss.
    ``fixed_total`` is the (unrounded) number of a single look at independent units without loss.
    ``clusters``: whole clusters per arm, where those are randomized.
    ``events`` are the events of the final look, for kind ``survival`` alone.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    total: int
    per_arm: dict[str, int]
    clusters: dict[str, int] | None = None
    events: int | None
    fixed_total: float
    alpha: float
    alpha_per_comparison: float
    power: float
    sides: Literal[1, 2]
    effect: float
    design_effect: float
    inflation: float
    variance_share: float
    dropout: float

    def to_metadata(self) -> dict[str, Any]:
        shown = {"kind": self.kind, "total": self.total, "power": self.power, "alpha": self.alpha}
        shown |= {"effect": self.effect, "design_effect": self.design_effect, "inflation": self.inflation}
        per_arm = Table(("arm", "units"), self.per_arm.items())
        if self.clusters:
            rows = [(arm, self.clusters[arm], n) for arm, n in self.per_arm.items()]
            per_arm = Table(("arm", "clusters", "units"), rows)
        return shown | {"per_arm": per_arm} | ({"events": self.events} if self.events else {})

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def _quantile(tail: float) -> float:
    from scipy.special import ndtri

    return float(-ndtri(tail))


def _normal(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(z))


class _Setting(BaseModel):
    """Checked values of one comparison of a treatment with the control."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    baseline: float | None
    sd: float
    event_probability: float | None
    share: float
    tail: float
    sides: Literal[1, 2]
    variance_share: float
    design_effect: float
    clusters: _Clusters | None = None

    def cluster_power(self, effect: float, number: int, other: int) -> float:
        """Power of a single look at ``number`` treated clusters and ``other`` of the control.

        Sizes of clusters that an analysis refuses, as often as they are drawn, count as no success.
        """
        assert self.clusters is not None
        for count in (number, other):
            if count < FEWEST_CLUSTERS:
                raise InputError(
                    f"n: {count} clusters in an arm; an analysis needs at least {FEWEST_CLUSTERS} in each.",
                    field="n",
                )
            if (most := self.clusters.largest_share(count)) > MOST_OF_ONE_CLUSTER:
                raise InputError(
                    f"n: of {count} clusters in an arm one would be {most:.0%} of it; an analysis can judge at most "
                    f"{MOST_OF_ONE_CLUSTER:.0%}. Enrol more clusters, or leave that one out.",
                    field="n",
                    value=count,
                    remedy="Enrol more clusters, or leave that one out.",
                )
        treated = control = self.sd**2
        if self.kind == "proportion":
            control, treated = (rate * (1.0 - rate) for rate in self.rates(effect))
        factor = self.variance_share * self.design_effect
        judged = math.prod(1.0 - self.clusters.refused(count) for count in (number, other))
        arms = [(number, treated * factor), (other, control * factor)]
        return judged * self.clusters.power(effect, self.tail, arms)

    def fixed_total(self, effect: float, power: float) -> float:
        """Independent units in the two arms of the comparison at a single look."""
        za, zb = _quantile(self.tail), _quantile(1.0 - power)
        q1, q0 = self.share, 1.0 - self.share
        if self.kind == "survival":
            return self.events(effect, power) / self.mean_event_probability(effect)
        if self.kind == "proportion":
            p0, p1 = self.rates(effect)
            pooled = q0 * p0 + q1 * p1
            null = za * math.sqrt(pooled * (1 - pooled) / (q0 * q1))
            alternative = zb * math.sqrt(p0 * (1 - p0) / q0 + p1 * (1 - p1) / q1)
            return self.variance_share * ((null + alternative) / effect) ** 2
        size = self.variance_share * ((za + zb) * self.sd / effect) ** 2 / (q0 * q1)
        # Guenther's term for the estimated variance: within half a unit of the noncentral t.
        return size + za**2 / 2.0

    def events(self, effect: float, power: float) -> float:
        """Events of the two arms (Schoenfeld): effect is the hazard ratio."""
        za, zb = _quantile(self.tail), _quantile(1.0 - power)
        return ((za + zb) / math.log(effect)) ** 2 / (self.share * (1.0 - self.share))

    def mean_event_probability(self, effect: float) -> float:
        """Share of the units of both arms that have the event, under proportional hazards."""
        assert self.event_probability is not None
        treated = 1.0 - (1.0 - self.event_probability) ** effect
        return (1.0 - self.share) * self.event_probability + self.share * treated

    def rates(self, effect: float) -> tuple[float, float]:
        assert self.baseline is not None
        return self.baseline, self.baseline + effect

    def power(self, effect: float, total: float) -> float:
        """Power of a single look at ``total`` independent units in the two arms."""
        za = _quantile(self.tail)
        q1, q0 = self.share, 1.0 - self.share
        if self.kind == "survival":
            events = total * self.mean_event_probability(effect)
            return _normal(abs(math.log(effect)) * math.sqrt(events * q0 * q1) - za)
        if self.kind == "proportion":
            p0, p1 = self.rates(effect)
            pooled = q0 * p0 + q1 * p1
            null = za * math.sqrt(self.variance_share * pooled * (1 - pooled) / (q0 * q1) / total)
            spread = math.sqrt(self.variance_share * (p0 * (1 - p0) / q0 + p1 * (1 - p1) / q1) / total)
            return _normal((abs(effect) - null) / spread) if spread > 0 else 1.0
        from scipy.stats import nct
        from scipy.stats import t as student

        freedom = total - 2.0
        if freedom <= 0:
            raise InputError(
                f"n: {total:g} units in two arms leave nothing to estimate the variance from.", field="n"
            )
        shift = abs(effect) / self.sd * math.sqrt(total * q0 * q1 / self.variance_share)
        critical = float(student.isf(self.tail, freedom))
        value = float(nct.sf(critical, freedom, shift))
        # The noncentral t fails far in its tail, where the power is 1.
        return value if math.isfinite(value) else _normal(shift - critical)


def _setting(
    kind: str,
    *,
    baseline: float | None,
    sd: float | None,
    event_probability: float | None,
    allocation: dict[str, float],
    arm: str,
    control: str,
    alpha: float,
    sides: int,
    covariate_correlation: float,
    cluster_size: float | None,
    icc: float | None,
    cluster_size_cv: float,
    largest_cluster: float | None,
    lost: float,
) -> _Setting:
    if kind not in KINDS:
        raise InputError(f"kind: {kind!r} is not known; known are {', '.join(KINDS)}.", field="kind")
    if sides not in (1, 2):
        raise InputError(f"sides: {sides!r}; a test has 1 or 2 sides.", field="sides")
    if kind == "proportion":
        if baseline is None:
            raise InputError("baseline: kind proportion needs the rate of the control arm.", field="baseline")
        checked_probability(baseline, "baseline")
    if kind == "survival":
        if event_probability is None:
            raise InputError(
                "event_probability: kind survival needs the share of control units that have the event until "
                "the end of follow-up.",
                field="event_probability",
            )
        checked_probability(event_probability, "event_probability")
    if kind == "ratio" and sd is None:
        raise InputError(
            "sd: kind ratio needs the standard deviation of the linearized metric (linearized_sd).",
            field="sd",
        )
    spread = 1.0 if sd is None else checked_number(sd, "sd")
    if spread <= 0:
        raise InputError(f"sd: {spread:g} must be above 0.", field="sd")
    correlation = checked_number(covariate_correlation, "covariate_correlation")
    if not -1.0 < correlation < 1.0:
        raise InputError(
            f"covariate_correlation: {correlation:g} must lie between -1 and 1.",
            field="covariate_correlation",
        )
    if correlation and kind == "survival":
        raise InputError(
            "covariate_correlation: not for kind survival; its size follows from events alone.",
            field="covariate_correlation",
        )
    pair = allocation[arm] + allocation[control]
    inflated, clusters = design_effect(cluster_size, icc, cluster_size_cv), None
    if cluster_size is not None and icc is not None:
        if kind == "survival":
            raise InputError(
                "cluster_size: not for kind survival, which is not analysed by clusters.",
                field="cluster_size",
            )
        observed = max(cluster_size * (1.0 - lost), 1.0)
        clusters = _Clusters(cluster_size, observed, cluster_size_cv, largest_cluster)
        inflated = design_effect(observed, icc, cluster_size_cv)
    return _Setting(
        kind=kind,  # type: ignore[arg-type]
        baseline=None if baseline is None else checked_number(baseline, "baseline"),
        sd=spread,
        event_probability=event_probability,
        share=allocation[arm] / pair,
        tail=checked_probability(alpha, "alpha") / (len(allocation) - 1) / sides,
        sides=sides,  # type: ignore[arg-type]
        variance_share=1.0 - correlation**2,
        design_effect=inflated,
        clusters=clusters,
    )


@dataclass(frozen=True)
class _Clusters:
    """Clusters of ``observed`` units with outcome each (mean ``size`` enrolled), of sizes that vary by ``cv``.

    ``largest``: units of the largest one, where it is known.
    """

    size: float
    observed: float
    cv: float
    largest: float | None = None

    def __post_init__(self) -> None:
        if self.largest is not None and not self.size <= self.largest < math.inf:
            raise InputError(
                f"largest_cluster: {self.largest:g} units; it is at least the mean cluster_size {self.size:g}.",
                field="largest_cluster",
                value=self.largest,
                remedy="Give the units of the largest cluster.",
            )

    def shares(self, number: int) -> np.ndarray:
        """Share of the arm that each of ``number`` clusters is, the largest last: quantiles of a gamma law."""
        sizes = np.ones(number)
        if self.cv:
            from scipy.special import gammaincinv

            sizes = gammaincinv(self.cv**-2, (np.arange(number) + 0.5) / number)
        share = sizes / sizes.sum()
        known = 0.0 if self.largest is None else min(1.0, self.largest / (number * self.size))
        if known > share[-1]:
            share = np.append(share[:-1] * ((1.0 - known) / (1.0 - share[-1])), known)
        return share

    def largest_share(self, number: int) -> float:
        """Share of the arm that the largest of ``number`` clusters is."""
        return float(self.shares(number)[-1])

    def refused(self, number: int) -> float:
        """Probability that one of ``number`` clusters, drawn by the gamma law, is too much of the arm for an analysis.

        Shares of gamma sizes are Dirichlet, so that of one cluster is Beta(k, (number - 1) k) with k = 1 / cv**2, and
        no two exceed a half.
        """
        if not self.cv or self.largest is not None:
            return 0.0
        from scipy.special import betainc

        shape = self.cv**-2
        beyond = 1.0 - betainc(shape, (number - 1) * shape, MOST_OF_ONE_CLUSTER)
        return min(1.0, float(number * beyond))

    def of_arm(self, number: int, variance: float) -> tuple[float, float, float]:
        """Variance of the arm's mean, its degrees of freedom, and the variance for clusters of variance 1.

        ``variance``: of one unit times the design effect.
        """
        share = self.shares(number)
        return variance / (number * self.observed), satterthwaite_clusters(share), float(share @ share)

    def power(self, effect: float, tail: float, arms: Sequence[tuple[int, float]]) -> float:
        """Power of the test over clusters (:func:`cluster_error`); ``arms``: clusters, variance of a unit.

        The mean over both arms' estimated variances, each chi-squared about its expectation.
        """
        from scipy.special import chdtri, ndtr, stdtrit

        parts = np.array([self.of_arm(*arm) for arm in arms])
        middle = (np.arange(_GRID) + 0.5) / _GRID
        drawn = [v * chdtri(f, middle) / f for v, f, _ in parts]
        estimated = np.stack(np.meshgrid(*drawn, indexing="ij"))[..., None]
        freedom, unit = (parts[:, k].reshape(2, 1, 1, 1) for k in (1, 2))
        shape = np.ones_like(estimated)
        variance, degrees = cluster_error(estimated, freedom * shape, unit * shape, tail)
        error = math.sqrt(parts[:, 0].sum())
        return float(
            ndtr(abs(effect) / error - stdtrit(degrees, 1.0 - tail) * np.sqrt(variance) / error).mean()
        )


def design_effect(cluster_size: float | None, icc: float | None, cluster_size_cv: float = 0.0) -> float:
    """``1 + ((cv^2 + 1) m - 1) icc`` (Eldridge, Ashby and Kerry, Int J Epidemiol 35, 2006); 1 without clusters.

    Args:
        cluster_size: mean units per cluster ``m``; icc: intracluster correlation.
        cluster_size_cv: coefficient of variation of the cluster sizes.
    """
    if cluster_size is None and icc is None:
        return 1.0
    if cluster_size is None or icc is None:
        raise InputError(
            "A cluster design needs the size of a cluster and the intracluster correlation.",
            field="cluster_size, icc",
            remedy="Give both.",
        )
    size, correlation = checked_number(cluster_size, "cluster_size"), checked_number(icc, "icc")
    spread = checked_number(cluster_size_cv, "cluster_size_cv")
    if size < 1 or not 0.0 <= correlation <= 1.0 or spread < 0:
        raise InputError(
            f"cluster_size {size:g}, icc {correlation:g}, cluster_size_cv {spread:g}: a cluster has at least 1 "
            "unit, icc lies in [0, 1], the coefficient of variation is not negative.",
            field="cluster_size, icc, cluster_size_cv",
            value=(size, correlation, spread),
        )
    return 1.0 + ((spread**2 + 1.0) * size - 1.0) * correlation


def linearized_sd(
    *, numerator_sd: float, denominator_mean: float, denominator_sd: float, ratio: float, correlation: float
) -> float:
    """Standard deviation of ``(N - R D) / E[D]``, which decides the size for a ratio metric (delta method)."""
    mean = checked_number(denominator_mean, "denominator_mean")
    if mean == 0 or numerator_sd < 0 or denominator_sd < 0 or not -1 <= correlation <= 1:
        raise InputError(
            "linearized_sd: the mean of the denominator is not 0, standard deviations are not negative and "
            "the correlation lies in [-1, 1].",
            field="linearized_sd",
        )
    cross = 2.0 * ratio * correlation * numerator_sd * denominator_sd
    variance = numerator_sd**2 + ratio**2 * denominator_sd**2 - cross
    return math.sqrt(max(variance, 0.0)) / abs(mean)


def _allocation(ratio: Ratio, control: str) -> dict[str, float]:
    if isinstance(ratio, Mapping):
        shares = checked_ratio(ratio)
        if control not in shares:
            raise InputError(
                f"control: {control!r} is not an arm of the ratio ({', '.join(shares)}).", field="control"
            )
        return shares
    if isinstance(ratio, str) or hasattr(ratio, "__len__"):
        count = len(ratio.split(":")) if isinstance(ratio, str) else len(ratio)  # type: ignore[arg-type]
        treated = ["treatment"] if count <= 2 else [f"treatment_{k}" for k in range(1, count)]
        return checked_ratio(ratio, [*treated, control] if count != 1 else None)
    value = checked_number(ratio, "ratio")  # type: ignore[arg-type]
    if value <= 0:
        raise InputError(
            f"ratio: {value:g} treated units per control unit; it must be above 0.", field="ratio"
        )
    return {control: 1.0 / (1.0 + value), "treatment": value / (1.0 + value)}


def _checked_effect(setting: _Setting, effect: float, relative: bool) -> float:
    value = checked_number(effect, "effect")
    if setting.kind == "survival":
        if value <= 0 or value == 1.0:
            raise InputError(
                f"effect: {value:g}; for kind survival it is a hazard ratio above 0 and not 1.",
                field="effect",
            )
        return value
    if relative:
        if not setting.baseline:
            raise InputError("relative: a relative effect needs a baseline that is not 0.", field="relative")
        value *= setting.baseline
    if value == 0:
        raise InputError("effect: 0; no size detects an effect of nothing.", field="effect")
    if setting.kind == "proportion":
        rate = setting.rates(value)[1]
        if not 0.0 < rate < 1.0:
            raise InputError(
                f"effect: the treated rate would be {rate:g}; it must lie between 0 and 1.", field="effect"
            )
    return value


def sample_size(
    kind: Kind | str = "mean",
    *,
    effect: float,
    baseline: float | None = None,
    sd: float | None = None,
    relative: bool = False,
    event_probability: float | None = None,
    alpha: float = 0.05,
    power: float = 0.80,
    sides: int = 2,
    ratio: Ratio = 1.0,
    control: str = "control",
    cluster_size: float | None = None,
    icc: float | None = None,
    cluster_size_cv: float = 0.0,
    largest_cluster: float | None = None,
    covariate_correlation: float = 0.0,
    dropout: float = 0.0,
    boundaries: Boundaries | None = None,
) -> SampleSize:
    """Units to enrol for the power asked for.

    Args:
        kind: ``mean`` and ``ratio`` (``effect`` in the units of ``sd``; for a ratio metric ``sd`` is
            ``linearized_sd``), ``proportion`` (``effect`` is the difference of rates to ``baseline``),
            ``survival`` (``effect`` is the hazard ratio).
        sd: standard deviation of one unit; without it ``effect`` is in standard deviations.
        relative: ``effect`` is a share of ``baseline``.
        event_probability: share of control units with the event until the end of follow-up.
        ratio: treated units per control unit; or all arms, as shares that sum to 1 or as whole parts: by name, or
            the treated ones first and the control last (``"2:1"``, ``[2, 1]``: two treated for one control). Over
            several treated arms alpha is split (Bonferroni).
        cluster_size, icc, cluster_size_cv: clusters are randomized. largest_cluster: units of the largest one, where
            it is known; an arm of which it is more than an analysis can judge gets more clusters.
        covariate_correlation: correlation of outcome and CUPED covariate; the variance shrinks by its square.
        dropout: share of units without outcome.
        boundaries: the looks of the plan, whose inflation factor is applied.

    Raises:
        InputError: a value is missing or out of its range.
    """
    allocation = _allocation(ratio, control)
    power = checked_probability(power, "power")
    lost = checked_number(dropout, "dropout")
    if not 0.0 <= lost < 1.0:
        raise InputError(f"dropout: {lost:g} must lie in [0, 1).", field="dropout")
    if boundaries is not None:
        alpha, sides = boundaries.alpha, boundaries.sides
        if len(allocation) > 2:
            raise InputError(
                "boundaries: interim looks with more than two arms need one plan per comparison.",
                field="boundaries",
            )
    settings = {
        arm: _setting(
            kind, baseline=baseline, sd=sd, event_probability=event_probability, allocation=allocation,
            arm=arm, control=control, alpha=alpha, sides=sides, covariate_correlation=covariate_correlation,
            cluster_size=cluster_size, icc=icc, cluster_size_cv=cluster_size_cv, largest_cluster=largest_cluster,
            lost=lost,
        )
        for arm in allocation if arm != control
    }  # fmt: skip
    first = next(iter(settings.values()))
    value = _checked_effect(first, effect, relative)
    if power <= first.tail:
        raise InputError(
            f"power: {power:g} is not above the error of one side ({first.tail:g}).", field="power"
        )
    inflation = 1.0 if boundaries is None else inflation_factor(boundaries, power)
    totals = {
        arm: setting.fixed_total(value, power) / (allocation[arm] + allocation[control])
        for arm, setting in settings.items()
    }
    fixed = max(totals.values())
    if fixed > MOST_UNITS:
        raise InputError(
            f"effect: {value:g} would need {fixed:.3g} units; the effect is too near to none.", field="effect"
        )
    enrolled = fixed * inflation * first.design_effect / (1.0 - lost)
    per_arm = {arm: math.ceil(enrolled * share - 1e-9) for arm, share in allocation.items()}
    clusters = None
    if first.clusters is not None:
        clusters = _whole_clusters(settings, allocation, control, value, power, enrolled, boundaries)
        per_arm = {arm: math.ceil(count * first.clusters.size - 1e-9) for arm, count in clusters.items()}
    events = None
    if kind == "survival":
        events = max(
            math.ceil(s.events(value, power) * inflation * s.design_effect) for s in settings.values()
        )
    return SampleSize(
        kind=kind,  # type: ignore[arg-type]
        total=sum(per_arm.values()),
        per_arm=per_arm,
        clusters=clusters,
        events=events,
        fixed_total=fixed,
        alpha=alpha,
        alpha_per_comparison=first.tail * sides,
        power=power,
        sides=first.sides,
        effect=value,
        design_effect=first.design_effect,
        inflation=inflation,
        variance_share=first.variance_share,
        dropout=lost,
    )


def power(
    kind: Kind | str = "mean",
    *,
    n: float,
    effect: float,
    baseline: float | None = None,
    sd: float | None = None,
    relative: bool = False,
    event_probability: float | None = None,
    alpha: float = 0.05,
    sides: int = 2,
    ratio: Ratio = 1.0,
    control: str = "control",
    cluster_size: float | None = None,
    icc: float | None = None,
    cluster_size_cv: float = 0.0,
    largest_cluster: float | None = None,
    covariate_correlation: float = 0.0,
    dropout: float = 0.0,
    boundaries: Boundaries | None = None,
) -> float:
    """Power with ``n`` units enrolled in all arms together; arguments as ``sample_size``.

    With several treated arms it is the smallest power of the comparisons.
    """
    allocation = _allocation(ratio, control)
    units = checked_number(n, "n")
    lost = checked_number(dropout, "dropout")
    if not 0.0 <= lost < 1.0:
        raise InputError(f"dropout: {lost:g} must lie in [0, 1).", field="dropout")
    if units < 2:
        raise InputError(f"n: {units:g}; two arms need at least 2 units.", field="n")
    if boundaries is not None:
        alpha, sides = boundaries.alpha, boundaries.sides
        if len(allocation) > 2:
            raise InputError(
                "boundaries: interim looks with more than two arms need one plan per comparison.",
                field="boundaries",
            )
    found = []
    for arm in allocation:
        if arm == control:
            continue
        setting = _setting(
            kind, baseline=baseline, sd=sd, event_probability=event_probability, allocation=allocation,
            arm=arm, control=control, alpha=alpha, sides=sides, covariate_correlation=covariate_correlation,
            cluster_size=cluster_size, icc=icc, cluster_size_cv=cluster_size_cv, largest_cluster=largest_cluster,
            lost=lost,
        )  # fmt: skip
        value = _checked_effect(setting, effect, relative)
        if setting.clusters is not None:
            whole = _split(math.floor(units / setting.clusters.size + 1e-6), allocation)
            single = setting.cluster_power(value, whole[arm], whole[control])
        else:
            pair = units * (allocation[arm] + allocation[control]) * (1.0 - lost) / setting.design_effect
            single = setting.power(value, pair)
        found.append(single if boundaries is None else _with_looks(setting, single, boundaries))
    return min(found)


def _with_looks(setting: _Setting, single: float, boundaries: Boundaries) -> float:
    """Power of the looks of a plan whose final look alone, without them, has the power ``single``."""
    # The drift of the plan: the expectation of the final z with these units.
    drift = _quantile(setting.tail) - _quantile(min(max(single, 1e-15), 1 - 1e-15))
    return power_of_looks(boundaries, drift)


def _split(total: int, allocation: Mapping[str, float]) -> dict[str, int]:
    """``total`` clusters by arm, rounded to whole ones."""
    return {arm: math.floor(total * share + 0.5) for arm, share in allocation.items()}


def _whole_clusters(
    settings: Mapping[str, _Setting],
    allocation: Mapping[str, float],
    control: str,
    effect: float,
    power: float,
    enrolled: float,
    boundaries: Boundaries | None,
) -> dict[str, int]:
    """Fewest clusters per arm with the power asked for, never fewer than an analysis needs.

    ``enrolled``: units by the normal distribution, from which the search begins.
    """
    size = next(iter(settings.values())).clusters
    assert size is not None

    def enough(total: int) -> bool:
        counts = _split(total, allocation)
        fewest = min(counts.values())
        if fewest < FEWEST_CLUSTERS or size.largest_share(fewest) > MOST_OF_ONE_CLUSTER:
            return False
        for arm, setting in settings.items():
            single = setting.cluster_power(effect, counts[arm], counts[control])
            if (single if boundaries is None else _with_looks(setting, single, boundaries)) < power:
                return False
        return True

    low, high = len(allocation) - 1, max(len(allocation), math.ceil(enrolled / size.size))
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return _split(high, allocation)


def minimum_detectable_effect(
    kind: Kind | str = "mean", *, n: float, target_power: float = 0.80, **settings: Any
) -> float:
    """Smallest positive effect (for ``survival`` the hazard ratio below 1) found with ``target_power``.

    Args:
        n: units enrolled in all arms together; ``settings`` as in ``power`` without ``effect``.

    Raises:
        InputError: no effect is found with that many units.
    """
    wanted = checked_probability(target_power, "target_power")

    def reached(effect: float) -> float:
        return power(kind, n=n, effect=effect, **settings) - wanted

    if kind == "survival":
        low, high = 1e-6, 1.0 - 1e-9
    elif kind == "proportion":
        if settings.get("baseline") is None:
            raise InputError("baseline: kind proportion needs the rate of the control arm.", field="baseline")
        low, high = 1e-9, (1.0 - checked_probability(settings["baseline"], "baseline")) * (1 - 1e-9)
    else:
        low, high = 1e-9, 1e3
        spread = settings.get("sd")
        if spread is not None:
            low, high = low * checked_number(spread, "sd"), high * checked_number(spread, "sd")
    if settings.get("relative"):
        base = checked_number(settings.get("baseline") or 0.0, "baseline")
        if base == 0:
            raise InputError("relative: a relative effect needs a baseline that is not 0.", field="relative")
        low, high = low / abs(base), high / abs(base)
    if reached(low) * reached(high) > 0:
        raise InputError(f"n: no effect is found with power {wanted:g} by {n:g} units.", field="n")
    return solve(reached, low, high)


def power_of_looks(boundaries: Boundaries, drift: float, lower: np.ndarray | None = None) -> float:
    """Probability of stopping for benefit at any look when the final z has the expectation ``drift``."""
    floor = np.array(boundaries.lower) if lower is None else lower
    crossing = crossing_probabilities(boundaries.information_fractions, floor, boundaries.z, drift)
    return float(crossing.upper.sum())


def drift_for_power(boundaries: Boundaries, power: float = 0.80) -> float:
    """Expectation of the final z at which the looks have ``power``."""
    wanted = checked_probability(power, "power")
    if wanted <= boundaries.alpha / boundaries.sides:
        raise InputError(f"power: {wanted:g} is not above the error of one side.", field="power")
    return solve(lambda drift: power_of_looks(boundaries, drift) - wanted, 0.0, 30.0)


def inflation_factor(boundaries: Boundaries, power: float = 0.80) -> float:
    """Maximum information of the plan relative to a single look of the same error and power.

    ``(drift / (z_alpha + z_beta))^2``; Jennison and Turnbull's constants R(K, alpha, beta).
    """
    return (drift_for_power(boundaries, power) / fixed_drift(boundaries.alpha / boundaries.sides, power)) ** 2


def fixed_drift(tail: float, power: float) -> float:
    """Expectation of z at which a single one-sided look at ``tail`` has ``power``: ``z_alpha + z_beta``."""
    return _quantile(tail) + _quantile(1.0 - power)
