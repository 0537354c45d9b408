"""Probabilities of group sequential tests by recursive numerical integration.

The standardized statistics ``Z_1..Z_K`` at information ``I_1 < .. < I_K`` have the canonical joint
distribution: ``Z_k ~ N(theta * sqrt(I_k), 1)`` and ``Z_k * sqrt(I_k)`` has independent increments. The
density of ``Z_k`` on the paths that have not stopped follows from that of ``Z_{k-1}`` by one integral
(Armitage, McPherson and Rowe, JRSS A 132, 1969), taken here by Simpson's rule on the grid of Jennison and
Turnbull (Group Sequential Methods with Applications to Clinical Trials, 2000, chapter 19).

Information is in units of the planned maximum, so that ``theta`` is the *drift*: the expectation of ``Z``
at full information.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

#: Grid parameter ``r`` of Jennison and Turnbull: 12 r - 3 points; 16 gives errors below 1e-6 in z.
GRID = 18
#: Simpson's rule needs a step below the width of the kernel: more points for looks close to each other.
POINTS_PER_KERNEL = 1.6
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class Density:
    """Sub-density of ``Z`` at one look on the paths still running: ``mass[i]`` at ``points[i]``."""

    information: float
    points: np.ndarray
    mass: np.ndarray


def _grid_size(information: np.ndarray) -> int:
    if len(information) < 2:
        return GRID
    width = float(np.sqrt(np.diff(information) / information[1:]).min())
    return max(GRID, math.ceil(POINTS_PER_KERNEL / width))


def _nodes(mean: float, lower: float, upper: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and Simpson weights over ``[lower, upper]``, dense where ``N(mean, 1)`` has its mass."""
    inner = np.arange(1, size)
    centre = np.arange(size, 5 * size + 1)
    tail = 3.0 + 4.0 * np.log(size / inner)
    x = np.concatenate([-tail, -3.0 + 3.0 * (centre - size) / (2.0 * size), tail[::-1]]) + mean
    if lower >= upper or lower >= x[-1] or upper <= x[0]:
        return np.empty(0), np.empty(0)
    low, high = max(lower, x[0]), min(upper, x[-1])
    x = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    points = np.empty(2 * len(x) - 1)
    points[::2] = x
    points[1::2] = 0.5 * (x[:-1] + x[1:])
    step = np.diff(x)
    weights = np.empty_like(points)
    weights[1::2] = 4.0 * step / 6.0
    weights[::2] = (np.concatenate([[0.0], step]) + np.concatenate([step, [0.0]])) / 6.0
    return points, weights


def first_density(information: float, lower: float, upper: float, drift: float, size: int) -> Density:
    """Density at the first look inside the continuation region ``(lower, upper)``."""
    mean = drift * math.sqrt(information)
    points, weights = _nodes(mean, lower, upper, size)
    return Density(information, points, weights * np.exp(-0.5 * (points - mean) ** 2) / _ROOT_TWO_PI)


def next_density(
    before: Density, information: float, lower: float, upper: float, drift: float, size: int
) -> Density:
    """Density at the next look inside ``(lower, upper)`` from that of the look before."""
    points, weights = _nodes(drift * math.sqrt(information), lower, upper, size)
    step = information - before.information
    shift = before.points * math.sqrt(before.information) + drift * step
    # On the scale of the increments: score at this look less the expected score, per standard deviation.
    deviation = points[:, None] * (math.sqrt(information / step)) - (shift / math.sqrt(step))[None, :]
    np.square(deviation, out=deviation)
    deviation *= -0.5
    np.exp(deviation, out=deviation)
    mass = deviation @ before.mass
    return Density(information, points, weights * mass * math.sqrt(information / step) / _ROOT_TWO_PI)


def above(before: Density | None, information: float, z: float, drift: float) -> float:
    """Probability that the trial is still running and ``Z`` at this look is above ``z``."""
    from scipy.special import ndtr

    if before is None:
        return float(ndtr(drift * math.sqrt(information) - z))
    step = information - before.information
    score = before.points * math.sqrt(before.information) + drift * step - z * math.sqrt(information)
    return float(before.mass @ ndtr(score / math.sqrt(step)))


def below(before: Density | None, information: float, z: float, drift: float) -> float:
    """Probability that the trial is still running and ``Z`` at this look is below ``z``."""
    from scipy.special import ndtr

    if before is None:
        return float(ndtr(z - drift * math.sqrt(information)))
    step = information - before.information
    score = z * math.sqrt(information) - before.points * math.sqrt(before.information) - drift * step
    return float(before.mass @ ndtr(score / math.sqrt(step)))


class Walk:
    """The density of the running trials, look by look, under one drift.

    A boundary for the next look is found from ``above`` and ``below``; ``advance`` then takes the
    boundaries of that look and moves on.
    """

    def __init__(self, information: Sequence[float] | np.ndarray, drift: float = 0.0) -> None:
        self.information = np.asarray(information, dtype=float)
        self.drift = drift
        self.look = 0
        self._size = _grid_size(self.information)
        self._density: Density | None = None

    def above(self, z: float) -> float:
        """Probability of running until the next look and being above ``z`` there."""
        return above(self._density, float(self.information[self.look]), z, self.drift)

    def below(self, z: float) -> float:
        """Probability of running until the next look and being below ``z`` there."""
        return below(self._density, float(self.information[self.look]), z, self.drift)

    def advance(self, lower: float, upper: float) -> None:
        """Go on inside ``(lower, upper)`` at the next look."""
        information = float(self.information[self.look])
        if self._density is None:
            self._density = first_density(information, lower, upper, self.drift, self._size)
        else:
            self._density = next_density(self._density, information, lower, upper, self.drift, self._size)
        self.look += 1


@dataclass(frozen=True)
class Crossing:
    """Probability of stopping at each look, above and below; arrays of length K."""

    upper: np.ndarray
    lower: np.ndarray


def crossing_probabilities(
    information: Sequence[float] | np.ndarray,
    lower: Sequence[float] | np.ndarray,
    upper: Sequence[float] | np.ndarray,
    drift: float = 0.0,
) -> Crossing:
    """Probability of the first crossing at each look under ``drift``.

    Args:
        information: increasing, in units of the planned maximum, shape (K,).
        lower, upper: boundaries in z, shape (K,); infinite where there is none.
    """
    walk = Walk(information, drift)
    up, down = np.zeros(len(walk.information)), np.zeros(len(walk.information))
    for look, (low, high) in enumerate(zip(lower, upper, strict=True)):
        up[look] = walk.above(float(high))
        down[look] = walk.below(float(low))
        if look + 1 < len(walk.information):
            walk.advance(float(low), float(high))
    return Crossing(upper=up, lower=down)


def solve(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a monotone function between ``low`` and ``high`` (Brent), to 1e-9."""
    from scipy.optimize import brentq

    return cast(float, brentq(function, low, high, xtol=1e-9))
