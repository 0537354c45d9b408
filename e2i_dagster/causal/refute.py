"""Refuters: tests that a sound estimate passes and that can fail.

All work on one estimator, ``EffectFunction``: the doubly robust mean by default. Each says what it did, what was
expected, what came out, and whether the estimate stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from e2i_dagster.causal.nuisances import Estimand, Family, Nuisances, fit_family
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.causal.sensitivity import Sensitivity
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.policy_files.base import PolicyModel


class Refutation(PolicyModel):
    """What one refuter gave.

    Attributes:
        name: placebo_treatment, dummy_outcome, random_common_cause, subset, unobserved_confounder.
        expected: the effect that a sound estimator finds. found: mean over the repetitions; lower and upper:
            their range. Of the unobserved confounder: the adjusted effect and its interval, None when no
            confounder can be that strong.
        passed: the estimate stands. meaning: what was done and what follows, for people.
    """

    name: str
    expected: float
    found: float | None
    lower: float | None
    upper: float | None
    passed: bool
    meaning: str


@dataclass(frozen=True)
class PointAndError:
    """An estimate and its standard error."""

    point: float
    error: float


EffectFunction = Callable[[CausalRows, int], PointAndError]


def doubly_robust(
    treatment_family: Family, outcome_family: Family, floor: float, estimand: Estimand = "ate"
) -> EffectFunction:
    """The mean of cross-fitted doubly robust scores, with nuisance models of the given families."""

    def effect(rows: CausalRows, seed: int) -> PointAndError:
        nuisances = fit_family(rows, treatment_family, outcome_family, floor=floor, seed=seed)
        scores = nuisances.scores(rows, estimand)
        return PointAndError(float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(rows.size)))

    return effect


def refute(
    rows: CausalRows,
    nuisances: Nuisances,
    sensitivity: Sensitivity,
    policy: CausalPolicy,
    *,
    seed: int,
    effect: EffectFunction | None = None,
) -> tuple[Refutation, ...]:
    """Every refuter on ``rows``.

    Args:
        nuisances: of the rows; placebo treatments and dummy outcomes are drawn from them.
        effect: estimator under test; doubly robust with the nuisances' families by default.
    """
    effect = effect or doubly_robust(
        nuisances.treatment_family, nuisances.outcome_family, policy.propensity_floor
    )
    original = effect(rows, seed)
    return (
        placebo_treatment(rows, nuisances, effect, policy, seed),
        dummy_outcome(rows, nuisances, effect, policy, seed),
        random_common_cause(rows, effect, original, policy, seed),
        subset(rows, effect, original, policy, seed),
        unobserved_confounder(sensitivity, policy),
    )


def _repeat(
    rows_of: Callable[[np.random.Generator], CausalRows],
    effect: EffectFunction,
    policy: CausalPolicy,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for k in range(policy.refutation.repetitions):
        generator = np.random.default_rng([seed, k])
        found.append(effect(rows_of(generator), seed))
    return np.array([estimate.point for estimate in found]), np.array([estimate.error for estimate in found])


def _zero_expected(
    name: str, points: np.ndarray, errors: np.ndarray, level: float, meaning: str
) -> Refutation:
    """Passed when the interval of a single estimate, put around the mean of the repetitions, holds zero.

    The repetitions share their rows, so that their mean scatters around zero nearly as one estimate does.
    """
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + level / 2))
    return Refutation(
        name=name, expected=0.0, found=float(points.mean()),
        lower=float(points.min()), upper=float(points.max()),
        passed=bool(abs(points.mean()) <= quantile * errors.mean()), meaning=meaning,
    )  # fmt: skip


def placebo_treatment(
    rows: CausalRows, nuisances: Nuisances, effect: EffectFunction, policy: CausalPolicy, seed: int
) -> Refutation:
    """A treatment drawn anew from the propensity: as confounded as the real one, without any effect.

    The estimated effect is taken out of the outcome first. Cross-fitted propensities run against the real
    treatment, and with them the placebo: a share of any effect left in the outcome would be found with the
    sign turned round, more of it the larger the effect.
    """
    relieved = rows.with_outcome(rows.y - effect(rows, seed).point * rows.t)

    def placebo(generator: np.random.Generator) -> CausalRows:
        return relieved.with_treatment((generator.random(rows.size) < nuisances.propensity).astype(float))

    points, errors = _repeat(placebo, effect, policy, seed)
    return _zero_expected(
        "placebo_treatment", points, errors, policy.level,
        "Treatment drawn anew from the propensity, confounded but without effect, on the outcome less the "
        "estimated effect: the estimate must be zero.",
    )  # fmt: skip


def dummy_outcome(
    rows: CausalRows, nuisances: Nuisances, effect: EffectFunction, policy: CausalPolicy, seed: int
) -> Refutation:
    """An outcome drawn from what the untreated would have: confounded, but the treatment does nothing."""
    residuals = (rows.y - nuisances.outcome_control)[rows.t == 0]

    def dummy(generator: np.random.Generator) -> CausalRows:
        if rows.binary:
            drawn = generator.random(rows.size) < np.clip(nuisances.outcome_control, 0, 1)
            return rows.with_outcome(drawn.astype(float))
        return rows.with_outcome(nuisances.outcome_control + generator.choice(residuals, rows.size))

    points, errors = _repeat(dummy, effect, policy, seed)
    return _zero_expected(
        "dummy_outcome", points, errors, policy.level,
        "Outcome drawn from the regression of the untreated, confounded but without effect: the estimate must be "
        "zero.",
    )  # fmt: skip


def random_common_cause(
    rows: CausalRows, effect: EffectFunction, original: PointAndError, policy: CausalPolicy, seed: int
) -> Refutation:
    """One confounder more that is pure noise: the estimate must not move by its own standard error."""
    points, _ = _repeat(
        lambda generator: rows.with_confounder("noise", generator.normal(size=rows.size)),
        effect,
        policy,
        seed,
    )
    return Refutation(
        name="random_common_cause", expected=original.point, found=float(points.mean()),
        lower=float(points.min()), upper=float(points.max()),
        passed=bool(np.abs(points - original.point).max() <= original.error),
        meaning="Noise added as a confounder: no repetition may move the estimate by its standard error.",
    )  # fmt: skip


def subset(
    rows: CausalRows, effect: EffectFunction, original: PointAndError, policy: CausalPolicy, seed: int
) -> Refutation:
    """Random subsets: the estimates must not scatter more than sampling explains.

    A subset of share f of independent rows differs from the whole by standard error times
    sqrt((1 - f) / f); what refitting on other folds adds is measured. The sum of squares over that variance is
    compared with a chi-square; rows that carry the effect alone make it larger.
    """
    from scipy.stats import chi2

    share = policy.refutation.subset_share
    size = round(share * rows.size)
    points, _ = _repeat(
        lambda generator: rows.take(np.sort(generator.choice(rows.size, size, replace=False))),
        effect, policy, seed,
    )  # fmt: skip
    # Other folds alone move the estimate, of the whole and of each subset: that is no matter of the rows.
    refitted = [effect(rows, seed + 1 + k).point for k in range(len(points))]
    variance = original.error**2 * (1 - share) / share + 2 * float(np.var(refitted, ddof=1))
    statistic = float(np.square(points - original.point).sum() / variance)
    # Fewer rows make worse nuisance models: twice that variance is allowed for.
    limit = 2.0 * float(chi2.ppf(policy.level, len(points)))
    shown = float(points.std(ddof=1))
    return Refutation(
        name="subset", expected=original.point, found=float(points.mean()),
        lower=float(points.min()), upper=float(points.max()), passed=statistic <= limit,
        meaning=f"Random {share:.0%} of the rows: the estimates scatter by {shown:.4f}, sampling and refitting give "
        f"{np.sqrt(variance):.4f}.",
    )  # fmt: skip


def unobserved_confounder(sensitivity: Sensitivity, policy: CausalPolicy) -> Refutation:
    """A confounder nobody measured, as strong as the strongest observed one: the effect must outlast it."""
    strength = policy.refutation.unobserved_strength
    bound = min(sensitivity.bounds, key=lambda bound: abs(bound.multiple - strength))
    return Refutation(
        name="unobserved_confounder", expected=sensitivity.linear_effect, found=bound.estimate,
        lower=bound.lower, upper=bound.upper,
        passed=bound.survives,
        meaning=f"Adjusted for an unobserved confounder {bound.multiple:g} times as strong as {bound.confounder} "
        "(Cinelli and Hazlett 2020): the interval must exclude zero.",
    )  # fmt: skip
