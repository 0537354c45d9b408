"""Tests and intervals of rates that hold their level with few events and with arms of unequal size.

Which test is used when, and the enumeration behind it: docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from e2i_dagster.experiments.statistics.group_sequential import solve

#: Below this smallest expected cell the score test's one-sided error may be above 0.025 by more than 0.002.
SMALLEST_SCORE_CELL = 200.0
#: Units of both arms up to which the exact unconditional test is computed; above, Fisher's, which errs on the safe side
#: more.
MOST_EXACT_UNITS = 10_000
#: A normal approximation is off by ``phi(z) (z^2 - 1) / 6`` (null variance) or ``phi(z) (2 z^2 + 1) / 6`` (estimated
#: variance) times the skewness of the statistic (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 2.6);
#: at z 1.96 these skewnesses add 0.002.
MOST_SKEWNESS = 0.072
MOST_SKEWNESS_STUDENTIZED = 0.0237
#: The smallest expected cell from which a rate is adjusted for a covariate or strata by the t test.
SMALLEST_ADJUSTED_CELL = 50.0
#: The smallest number of events expected in an arm from which the log-rank statistic is taken as normal.
SMALLEST_LOG_RANK_CELL = 10.0
#: A p-value that suffices for every usual level: whether a smaller one could be had need not be asked more exactly.
FAR_TAIL = 1e-3
#: Equal tables are equal although their probabilities were summed in another order.
_TIE = 1.0 + 1e-9


@dataclass(frozen=True)
class Counts:
    """Units with the outcome (``events``) and all ``units``, of the treated arm (1) and the control (0)."""

    events_1: int
    units_1: int
    events_0: int
    units_0: int

    @property
    def units(self) -> int:
        return self.units_1 + self.units_0

    @property
    def events(self) -> int:
        return self.events_1 + self.events_0

    @property
    def difference(self) -> float:
        return self.events_1 / self.units_1 - self.events_0 / self.units_0

    @property
    def smallest_expected_cell(self) -> float:
        """Of the four cells, under one rate for both arms."""
        return (
            min(self.units_1, self.units_0) * min(self.events, self.units - self.events) / max(self.units, 1)
        )

    @property
    def skewness(self) -> float:
        """Of the difference of rates, under one rate for both arms; 0 where the arms are of equal size."""
        rate = self.events / self.units
        if not 0.0 < rate < 1.0:
            return math.inf if self.units_1 != self.units_0 else 0.0
        shares = self.units_1**-2 - self.units_0**-2
        spread = (1 / self.units_1 + 1 / self.units_0) ** 1.5
        return (1 - 2 * rate) / math.sqrt(rate * (1 - rate)) * shares / spread


@dataclass(frozen=True)
class RateTest:
    """``statistic`` is the score statistic; ``z`` the one-sided p-value of the test used, as a normal value."""

    statistic: float
    z: float
    method: str


def z_of_tail(tail: float, otherwise: float) -> float:
    """The normal value above which ``tail`` lies; ``otherwise`` where the tail is below what a double holds."""
    from scipy.special import ndtri, ndtri_exp

    if tail <= 0.0:
        return otherwise
    return -float(ndtri(tail) if tail > 1e-300 else ndtri_exp(math.log(tail)))


def _z_of_tails(up: float, down: float, statistic: float) -> float:
    """z of the smaller of two one-sided p-values, with the sign of its side; 0 where neither speaks."""
    tail, sign = (up, 1.0) if up <= down else (down, -1.0)
    return sign * max(0.0, z_of_tail(tail, abs(statistic)))


def score_statistic(counts: Counts, difference: float = 0.0) -> float:
    """Score statistic against ``difference`` of the rates (Farrington and Manning, Statistics in Medicine 9, 1990).

    At 0 it is the test with the pooled rate. 0 where nothing varies.
    """
    gap = counts.difference - difference
    rate_1, rate_0 = _restricted(counts, difference)
    variance = rate_1 * (1 - rate_1) / counts.units_1 + rate_0 * (1 - rate_0) / counts.units_0
    if variance <= 0.0:
        return 0.0 if abs(gap) < 1e-12 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _restricted(counts: Counts, difference: float) -> tuple[float, float]:
    """Most likely rates whose difference is ``difference`` (the cubic of Farrington and Manning, appendix I)."""
    if difference == 0.0:
        rate = counts.events / counts.units
        return rate, rate
    p1, p0 = counts.events_1 / counts.units_1, counts.events_0 / counts.units_0
    theta = counts.units_0 / counts.units_1
    a = 1.0 + theta
    b = -(1.0 + theta + p1 + theta * p0 + difference * (theta + 2.0))
    c = difference**2 + difference * (2.0 * p1 + theta + 1.0) + p1 + theta * p0
    d = -p1 * difference * (1.0 + difference)
    v = (b / (3.0 * a)) ** 3 - b * c / (6.0 * a**2) + d / (2.0 * a)
    u = math.copysign(math.sqrt(max((b / (3.0 * a)) ** 2 - c / (3.0 * a), 0.0)), v)
    angle = 0.0 if u == 0.0 else min(1.0, max(-1.0, v / u**3))
    rate_1 = 2.0 * u * math.cos((math.pi + math.acos(angle)) / 3.0) - b / (3.0 * a)
    rate_1 = min(1.0, 1.0 + difference, max(0.0, difference, rate_1))
    return rate_1, rate_1 - difference


def rate_test(counts: Counts) -> RateTest:
    """Test of equal rates: score test where every expected cell is large, else exact.

    Exact is Boschloo's test (Biometrika 57, 1970): the probability, at the common rate for which it is largest,
    that Fisher's one-sided p-value is as small as the observed one. Both one-sided tests hold their level.
    """
    statistic = score_statistic(counts)
    if counts.smallest_expected_cell >= SMALLEST_SCORE_CELL:
        return RateTest(statistic, statistic, "score test")
    up, down = _exact_tails(counts)
    method = "Boschloo's exact test" if counts.units <= MOST_EXACT_UNITS else "Fisher's exact test"
    return RateTest(statistic, _z_of_tails(up, down, statistic), method)


def attainable_z(counts: Counts) -> tuple[float, float]:
    """Smallest and largest z that the observed events can give, whichever arm each of them falls to.

    What the most extreme table cannot reach no table can (Tarone, Biometrics 46, 1990). Where Fisher's test of that
    table already reaches ``FAR_TAIL`` its z is taken, which the test that is used does not undercut.
    """
    from scipy.stats import hypergeom

    found = []
    for events_1, sign in (
        (max(0, counts.events - counts.units_0), -1.0),
        (min(counts.events, counts.units_1), 1.0),
    ):
        tail = float(hypergeom.pmf(events_1, counts.units, counts.events, counts.units_1))
        if tail <= FAR_TAIL:
            found.append(sign * z_of_tail(tail, math.inf))
            continue
        extreme = Counts(events_1, counts.units_1, counts.events - events_1, counts.units_0)
        found.append(sign * max(0.0, sign * rate_test(extreme).z))
    return found[0], found[1]


@lru_cache(maxsize=4096)
def _exact_tails(counts: Counts) -> tuple[float, float]:
    """One-sided exact p-values for more and for fewer events in the treated arm."""
    from scipy.stats import hypergeom

    law = hypergeom(counts.units, counts.events, counts.units_1)
    up, down = float(law.sf(counts.events_1 - 1)), float(law.cdf(counts.events_1))
    if counts.units > MOST_EXACT_UNITS:
        return up, down
    return (
        _boschloo(counts.units_1, counts.units_0, up),
        # Fewer events in the treated arm are more of them in the control.
        _boschloo(counts.units_0, counts.units_1, down),
    )


def _boschloo(units_1: int, units_0: int, observed: float) -> float:
    """Largest probability, over the common rate, that Fisher's p-value for more events is at most ``observed``.

    Given the number of events in both arms, Fisher's p-value is at most ``observed`` with a probability that
    does not depend on the rate; over that number the mean is taken by its binomial law. The rates tried are an eighth
    of a standard error apart on the scale of the arcsine.
    """
    from scipy.special import gammaln
    from scipy.stats import hypergeom

    if observed >= 1.0:
        return 1.0
    total = units_1 + units_0
    events = np.arange(total + 1)
    # The fewest events of the treated arm that are as extreme, by bisection for all totals at once.
    low, high = np.maximum(0, events - units_0), np.minimum(units_1, events) + 1
    most = high.copy()
    while (low < high).any():
        middle = (low + high) // 2
        extreme = hypergeom.sf(middle - 1, total, events, units_1) <= observed * _TIE
        extreme |= low >= high
        low, high = np.where(extreme, low, middle + 1), np.where(extreme, middle, high)
        high = np.maximum(low, high)
    chance = np.where(high < most, hypergeom.sf(high - 1, total, events, units_1), 0.0)
    rates = np.sin(np.arange(1, math.ceil(4 * math.pi * math.sqrt(total))) / (8 * math.sqrt(total))) ** 2
    reach = math.ceil(4.5 * math.sqrt(total)) + 40
    near = np.rint(rates * total).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    inside = np.clip(near, 0, total)
    log_choose = gammaln(total + 1) - gammaln(events + 1) - gammaln(total - events + 1)
    weight = np.exp(
        log_choose[inside] + inside * np.log(rates)[:, None] + (total - inside) * np.log1p(-rates)[:, None]
    )
    found = float(np.where(near == inside, weight * chance[inside], 0.0).sum(axis=1).max())
    # It is never above Fisher's own p-value.
    return min(observed, found)


def score_interval(counts: Counts, z: float, correction: float = 0.0) -> tuple[float, float]:
    """Score interval of the difference of rates, with the critical value ``z``.

    Args:
        correction: what the score statistic overstates (``statistic - z`` of the test used, positive where the
            treated arm has more): added to the critical value towards no effect, so that 0 lies outside exactly where
            the test used rejects at ``z``; on the other side only where it widens.
    """
    overstated = correction if score_statistic(counts) >= 0 else -correction
    towards, away = max(0.0, z + overstated), z + max(0.0, overstated)
    below, above = (towards, away) if score_statistic(counts) >= 0 else (away, towards)
    middle = counts.difference
    edge = 1.0 - 1e-12

    def limit(sign: float, critical: float) -> float:
        if critical <= 0.0:
            return middle
        last = sign * edge

        def excess(difference: float) -> float:
            return critical - abs(score_statistic(counts, difference))

        if sign * (last - middle) <= 1e-12 or not math.isfinite(critical) or excess(last) >= 0:
            return sign
        return solve(excess, middle, last)

    return limit(-1.0, below), limit(1.0, above)


@dataclass(frozen=True)
class Draw:
    """``drawn`` of ``units`` are taken at random; ``marked`` of them belong to the treated arm."""

    units: int
    marked: int
    drawn: int


@dataclass(frozen=True)
class ConditionalTest:
    """``z`` of the observed events; ``attainable``: smallest and largest z that the same draws can give."""

    z: float
    attainable: tuple[float, float]


def conditional_test(draws: Iterable[Draw], observed: int, statistic: float) -> ConditionalTest:
    """The exact conditional test: the treated arm has ``observed`` events in all ``draws`` together.

    Independent tables with given margins (strata of rates: Gart, Biometrika 57, 1970; times of a log-rank test: its
    tables of numbers at risk). The law of the sum is the convolution.
    """
    from scipy.stats import hypergeom

    law, start = np.ones(1), 0
    for draw in draws:
        least = max(0, draw.drawn - (draw.units - draw.marked))
        values = np.arange(least, min(draw.marked, draw.drawn) + 1)
        law = np.convolve(law, hypergeom.pmf(values, draw.units, draw.marked, draw.drawn))
        start += least
    place = observed - start
    ends = tuple(max(0.0, z_of_tail(float(law[end]), math.inf)) for end in (0, -1))
    return ConditionalTest(
        _z_of_tails(float(law[place:].sum()), float(law[: place + 1].sum()), statistic), (-ends[0], ends[1])
    )
