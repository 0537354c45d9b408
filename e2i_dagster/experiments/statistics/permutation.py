"""Permutation test of a difference of means from few different values, where Welch's t does not hold its level.

Given the values of both arms together, every way of giving them to the units was as likely if the arm does nothing
(Fisher, The Design of Experiments, 1935): the sum of the treated arm has a known law. Which test is used when:
docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e2i_dagster.experiments.statistics.rates import (
    MOST_SKEWNESS,
    MOST_SKEWNESS_STUDENTIZED,
    SMALLEST_ADJUSTED_CELL,
    z_of_tail,
)

#: Units of the smaller arm that are expected beside the most frequent numerator, below which a ratio has no test.
FEWEST_RATIO_OTHERS = 10.0
#: Units beside the most frequent value, in a stratum, up to which the law of the sum is computed as it is.
MOST_EXACT_OTHERS = 100
#: Steps that the sum of those units takes at most: values are rounded to a grid of so many.
_GRID = 2_000


@dataclass(frozen=True)
class Pool:
    """The values of both arms in one stratum.

    Attributes:
        values: the different ones, shape (k,). counts, counts_1: units of both arms, and of the treated, with each.
    """

    values: np.ndarray
    counts: np.ndarray
    counts_1: np.ndarray

    @property
    def units(self) -> int:
        return int(self.counts.sum())

    @property
    def units_1(self) -> int:
        return int(self.counts_1.sum())

    @property
    def difference(self) -> float:
        """Mean of the treated arm less that of the control."""
        of_0 = self.counts - self.counts_1
        return float(self.counts_1 @ self.values / self.units_1 - of_0 @ self.values / of_0.sum())

    @property
    def difference_variance(self) -> float:
        """Of :attr:`difference`, over the ways of giving the values to the units."""
        units_0 = self.units - self.units_1
        return float(self.cumulants()[1]) * (self.units / (self.units_1 * units_0)) ** 2

    @property
    def mode(self) -> float:
        """The most frequent value."""
        return float(self.values[self.counts.argmax()])

    @property
    def others(self) -> int:
        """Units that have another value than the most frequent one."""
        return self.units - int(self.counts.max())

    def cumulants(self) -> np.ndarray:
        """Mean, variance and third central moment of the treated arm's sum (sampling without replacement)."""
        n, n1 = self.units, self.units_1
        mean = float(self.counts @ self.values) / n
        gaps = self.values - mean
        shares = n1 * (n - n1) / (n * (n - 1))
        third = shares * (n - 2 * n1) / (n - 2) if n > 2 else 0.0
        return np.array([n1 * mean, shares * (self.counts @ gaps**2), third * (self.counts @ gaps**3)])


@dataclass(frozen=True)
class PermutationTest:
    """``statistic``: the sum in its standard deviations; ``z``: the smaller one-sided p-value as a normal value.

    ``attainable``: smallest and largest z that the same values can give; None where it has no bound.
    """

    statistic: float
    z: float
    method: str
    attainable: tuple[float, float] | None


def needs_permutation(pools: Sequence[Pool]) -> bool:
    """Whether Welch's t would not hold its level: few units beside a value that most have, or a skewed sum."""
    skewness = abs(_skewness(_cumulants(pools)))
    if (few := few_others(pools)) is None:
        return skewness > MOST_SKEWNESS
    return few < SMALLEST_ADJUSTED_CELL or skewness > MOST_SKEWNESS_STUDENTIZED


def few_others(pools: Sequence[Pool]) -> float | None:
    """Units expected in the smaller arm beside the most frequent value; None where most units have another one."""
    units = sum(pool.units for pool in pools)
    others = sum(pool.others for pool in pools)
    units_1 = sum(pool.units_1 for pool in pools)
    return min(units_1, units - units_1) * others / units if 2 * others <= units else None


def permutation_test(pools: Sequence[Pool]) -> PermutationTest:
    """The sum of the treated arm against its law given the values of each stratum; these vary.

    Exact up to :data:`MOST_EXACT_OTHERS` units beside the most frequent value of each stratum, rounded to a grid
    (a statistic like any other, so that the level holds); else by the Pearson type III law of the same three moments
    (Mielke and Berry, Permutation Methods, 2007, section 2.3).
    """
    cumulants = _cumulants(pools)
    observed = sum(float(pool.counts_1 @ pool.values) for pool in pools)
    statistic = (observed - cumulants[0]) / math.sqrt(cumulants[1])
    if max(pool.others for pool in pools) > MOST_EXACT_OTHERS:
        # Whole numbers step: half a step is the usual correction of a smooth law.
        half, skewness = _whole_step(pools) / 2 / math.sqrt(cumulants[1]), _skewness(cumulants)
        up, down = (
            _pearson_tails(statistic - half, skewness)[0],
            _pearson_tails(statistic + half, skewness)[1],
        )
        z = _z(up, down, statistic)
        return PermutationTest(statistic, z, "permutation test (Pearson type III)", None)
    step = _step(pools)
    law, place = np.ones(1), 0
    for pool in pools:
        steps = np.rint((pool.values - pool.mode) / step).astype(np.int64)
        of_pool, least = _law(pool, steps)
        law = np.convolve(law, of_pool)
        place += int(pool.counts_1 @ steps) - least
    possible = np.flatnonzero(law)
    low, high = (max(0.0, z_of_tail(float(law[end]), math.inf)) for end in possible[[0, -1]])
    z = _z(float(law[place:].sum()), float(law[: place + 1].sum()), statistic)
    return PermutationTest(statistic, z, "exact permutation test", (-low, high))


def _cumulants(pools: Sequence[Pool]) -> np.ndarray:
    return np.sum([pool.cumulants() for pool in pools], axis=0)


def _skewness(cumulants: np.ndarray) -> float:
    return float(cumulants[2] / cumulants[1] ** 1.5) if cumulants[1] > 0 else 0.0


def _z(up: float, down: float, statistic: float) -> float:
    tail, sign = (up, 1.0) if up <= down else (down, -1.0)
    return sign * max(0.0, z_of_tail(tail, abs(statistic)))


def _pearson_tails(statistic: float, skewness: float) -> tuple[float, float]:
    """Above and below ``statistic``, of a Pearson type III law with mean 0, variance 1 and ``skewness``."""
    from scipy.special import gammainc, gammaincc, ndtr

    if abs(skewness) < 1e-6:
        return float(ndtr(-statistic)), float(ndtr(statistic))
    shape = 4.0 / skewness**2
    at = max(0.0, shape + math.copysign(statistic, statistic * skewness) * math.sqrt(shape))
    tails = float(gammaincc(shape, at)), float(gammainc(shape, at))
    return tails if skewness > 0 else (tails[1], tails[0])


def _step(pools: Sequence[Pool]) -> float:
    """The grid on which all values lie as steps from the most frequent one of their stratum; else a fine one."""
    reach = sum(float(pool.counts @ abs(pool.values - pool.mode)) for pool in pools)
    whole = _whole_step(pools)
    return whole if 0 < reach <= whole * _GRID else reach / _GRID


def _whole_step(pools: Sequence[Pool]) -> float:
    """The largest step of whole numbers that leads to every value; 0 where they are no whole numbers apart."""
    gaps = np.concatenate([pool.values - pool.mode for pool in pools])
    return float(np.gcd.reduce(gaps.astype(np.int64))) if np.array_equal(gaps, np.rint(gaps)) else 0.0


def _law(pool: Pool, steps: np.ndarray) -> tuple[np.ndarray, int]:
    """Probabilities of the treated arm's sum in steps, from the least one on.

    Of the units with a step, ``j`` are drawn; how many ways lead to each sum is counted value by value.
    """
    from scipy.special import comb, gammaln

    moving = steps != 0
    counts, moves = pool.counts[moving], steps[moving]
    others = int(counts.sum())
    least = int(counts @ np.minimum(moves, 0))
    ways = np.zeros((others + 1, int(counts @ abs(moves)) + 1))
    ways[0, -least] = 1.0
    for count, move in zip(counts.tolist(), moves.tolist(), strict=True):
        before, ways = ways, np.zeros_like(ways)
        for taken in range(count + 1):
            shift = taken * move
            source = before[: others + 1 - taken, max(0, -shift) : before.shape[1] - max(0, shift)]
            target = ways[taken:, max(0, shift) : before.shape[1] - max(0, -shift)]
            target += comb(count, taken, exact=False) * source
    drawn = np.arange(others + 1)
    rest = pool.units - others

    def log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
        return gammaln(n + 1) - gammaln(np.add(k, 1)) - gammaln(n - np.asarray(k) + 1)

    left = pool.units_1 - drawn
    possible = (left >= 0) & (left <= rest)
    chance = np.exp(log_choose(rest, left[possible]) - log_choose(pool.units, pool.units_1))
    return chance @ ways[possible], least
