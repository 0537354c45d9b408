"""Interim analysis: stopping boundaries, the decision at a look, conditional and predictive power.

Conventions: ``z`` is positive where the treatment does better. ``sides=2`` means two one-sided tests at
``alpha / 2`` each, so that the boundary is symmetric; efficacy stops for benefit only, harm is a rule of
its own. Sources: docs/experiments_statistics.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.group_sequential import Walk, crossing_probabilities, solve

Rule = Literal[
    "obrien_fleming",
    "pocock",
    "haybittle_peto",
    "lan_demets_obf",
    "lan_demets_pocock",
    "hwang_shih_decani",
]
RULES: tuple[str, ...] = get_args(Rule)
#: Rules that spend alpha as information arrives: looks need not be the planned ones.
SPENDING_RULES = ("lan_demets_obf", "lan_demets_pocock", "hwang_shih_decani")
#: A look that adds less than this share of information is no look of its own.
SMALLEST_STEP = 1e-4
#: A boundary beyond this z is never reached; the normal tail there is below 1e-300.
UNREACHABLE = 37.0
#: Beyond it the spending of Hwang, Shih and DeCani lies at one look alone (the limit of gsDesign too).
LARGEST_GAMMA = 40.0
Decision = Literal["continue", "stop_efficacy", "stop_futility"]


class Boundaries(BaseModel):
    """Stopping boundaries of one design, one value per look.

    ``z``: stop for benefit at or above it (for ``sides=2`` the boundary of harm is ``-z``). A look whose
    share of alpha is below what a double can hold has an infinite boundary: it cannot stop.
    ``nominal_p``: the p-value (two-sided for ``sides=2``) that reaches ``z`` at that look alone.
    ``alpha_spent``: cumulative type-I error over both sides up to and including that look.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    rule: Rule
    information_fractions: tuple[float, ...]
    alpha: float
    sides: Literal[1, 2]
    gamma: float | None = None
    interim_z: float | None = None
    spending_time: tuple[float, ...] | None = None
    z: tuple[float, ...]
    nominal_p: tuple[float, ...]
    alpha_spent: tuple[float, ...]

    @property
    def looks(self) -> int:
        """Number of looks."""
        return len(self.z)

    @property
    def planned_fractions_only(self) -> bool:
        """True when the constants hold for exactly these looks (no spending function)."""
        return self.rule not in SPENDING_RULES

    @property
    def complete(self) -> bool:
        """True when the last look is the trial's last: the whole of alpha is spent there."""
        return self.alpha_spent[-1] >= self.alpha * (1.0 - 1e-6)

    @property
    def final_z(self) -> float:
        """Boundary of the trial's last look; for looks so far, that of one more look at full information."""
        if self.complete:
            return self.z[-1]
        time = None if self.spending_time is None else (*self.spending_time, 1.0)
        whole = boundaries(
            self.rule, (*self.information_fractions, 1.0), alpha=self.alpha, sides=self.sides, gamma=self.gamma,
            spending_time=time,
        )  # fmt: skip
        return whole.z[-1]

    @property
    def lower(self) -> tuple[float, ...]:
        """Lower boundary: ``-z`` for two sides, minus infinity for one."""
        return tuple(-z if self.sides == 2 else -math.inf for z in self.z)

    def at(self, look: int) -> float:
        """The boundary in z of look number ``look`` (from 1).

        Raises:
            InputError: the design has no such look.
        """
        if isinstance(look, bool) or not isinstance(look, (int, np.integer)) or not 1 <= look <= self.looks:
            raise InputError(
                f"look {look!r}: the design has looks 1 to {self.looks}; no other may be taken.",
                field="look",
                value=look,
            )
        return self.z[int(look) - 1]

    def to_metadata(self) -> dict[str, Any]:
        looks = range(1, self.looks + 1)
        rows = zip(looks, self.information_fractions, self.z, self.nominal_p, self.alpha_spent, strict=True)
        return {
            "rule": self.rule,
            "alpha": self.alpha,
            "sides": self.sides,
            "looks": self.looks,
            "boundaries": Table(("look", "information", "z", "nominal p", "alpha spent"), rows),
        }

    def to_record(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def checked_fractions(information_fractions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Information fractions as an array: finite, in (0, 1], increasing by a real step.

    Raises:
        InputError: naming the fraction that is wrong.
    """
    try:
        fractions = np.asarray(information_fractions, dtype=float)
    except (TypeError, ValueError):
        raise InputError(
            f"information_fractions: {information_fractions!r} are not numbers; give e.g. [0.25, 0.5, 0.75, 1].",
            field="information_fractions",
        ) from None
    if fractions.ndim != 1 or fractions.size == 0:
        raise InputError(
            "information_fractions: at least one look is needed, e.g. [0.5, 1].",
            field="information_fractions",
        )
    for look, value in enumerate(fractions, start=1):
        if not (math.isfinite(value) and 0.0 < value <= 1.0 + 1e-12):
            raise InputError(
                f"information_fractions: look {look} is {value:g}; a fraction lies above 0 and at most 1. "
                "More information than planned: give fractions of what there is, and spending_time.",
                field="information_fractions",
            )
    steps = np.diff(fractions)
    if (steps <= 0).any():
        look = int(np.argmax(steps <= 0)) + 2
        raise InputError(
            f"information_fractions: look {look} ({fractions[look - 1]:g}) does not come after look "
            f"{look - 1} ({fractions[look - 2]:g}); fractions increase from look to look.",
            field="information_fractions",
        )
    small = steps < SMALLEST_STEP * fractions[1:]
    if small.any():
        look = int(np.argmax(small)) + 2
        raise InputError(
            f"information_fractions: look {look} adds less than {SMALLEST_STEP:.2%} of information to look "
            f"{look - 1}; take them as one look.",
            field="information_fractions",
        )
    return np.minimum(fractions, 1.0)


def checked_probability(value: float, name: str) -> float:
    """A probability strictly between 0 and 1.

    Raises:
        InputError: it is not.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{name}: {value!r} is not a number between 0 and 1.", field=name, value=value
        ) from None
    if not 0.0 < number < 1.0:
        raise InputError(f"{name}: {number:g} must lie strictly between 0 and 1.", field=name, value=number)
    return number


def checked_number(value: float, name: str) -> float:
    """A finite number.

    Raises:
        InputError: it is not.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: {value!r} is not a number.", field=name, value=value) from None
    if not math.isfinite(number):
        raise InputError(f"{name}: {number} is not a finite number.", field=name, value=number)
    return number


def spending(rule: str, fractions: np.ndarray, alpha: float, gamma: float | None = None) -> np.ndarray:
    """Cumulative one-sided error spent at each information fraction.

    Lan and DeMets, Biometrika 70 (1983): O'Brien-Fleming type ``2 - 2 Phi(z_{a/2} / sqrt(t))``, Pocock type
    ``a ln(1 + (e - 1) t)``; Hwang, Shih and DeCani, Statistics in Medicine 9 (1990):
    ``a (1 - exp(-g t)) / (1 - exp(-g))``, ``a t`` for ``g = 0``.
    """
    from scipy.special import ndtr, ndtri

    if rule == "lan_demets_obf":
        return 2.0 * ndtr(ndtri(alpha / 2.0) / np.sqrt(fractions))
    if rule == "lan_demets_pocock":
        return alpha * np.log1p((math.e - 1.0) * fractions)
    if rule != "hwang_shih_decani":
        raise InputError(f"spending: {rule!r} is not one of {', '.join(SPENDING_RULES)}.", field="spending")
    if gamma is None:
        raise InputError(
            "gamma: hwang_shih_decani needs it, e.g. -4 (like O'Brien-Fleming) or 1 (like Pocock).",
            field="gamma",
        )
    if abs(checked_number(gamma, "gamma")) > LARGEST_GAMMA:
        raise InputError(
            f"gamma: {gamma:g} lies outside -{LARGEST_GAMMA:g} to {LARGEST_GAMMA:g}.", field="gamma"
        )
    if abs(gamma) < 1e-12:
        return alpha * fractions
    return alpha * np.expm1(-gamma * fractions) / math.expm1(-gamma)


def boundaries(
    rule: Rule | str,
    information_fractions: Sequence[float] | np.ndarray,
    *,
    alpha: float = 0.05,
    sides: int = 2,
    gamma: float | None = None,
    interim_z: float = 3.0,
    spending_time: Sequence[float] | np.ndarray | None = None,
    final: bool = False,
) -> Boundaries:
    """Stopping boundaries for looks at the given information fractions.

    Args:
        rule: ``obrien_fleming`` (z proportional to 1/sqrt(t)), ``pocock`` (constant z) and
            ``haybittle_peto`` (``interim_z`` until the last look, which is solved exactly) hold for the
            whole plan, whose last fraction is 1. ``lan_demets_obf``, ``lan_demets_pocock`` and
            ``hwang_shih_decani`` spend alpha as information arrives and take any looks so far.
        information_fractions: shape (K,), increasing, in (0, 1].
        alpha: type-I error over both sides.
        sides: 1 or 2; 2 means two one-sided tests at ``alpha / 2``.
        gamma: parameter of ``hwang_shih_decani``, required there.
        interim_z: boundary of ``haybittle_peto`` before the last look.
        spending_time: where the spending function is read, when that is not the information fraction
            (a trial that ran over its planned information; calendar-time spending).
        final: spend the whole of alpha at the last look given, although its fraction is below 1
            (a trial that ends with less information than planned).

    Raises:
        InputError: an argument is out of its range, or the rule cannot do what is asked.
    """
    if rule not in RULES:
        raise InputError(f"rule: {rule!r} is not known; known are {', '.join(RULES)}.", field="rule")
    fractions = checked_fractions(information_fractions)
    alpha = checked_probability(alpha, "alpha")
    if sides not in (1, 2):
        raise InputError(f"sides: {sides!r}; a test has 1 or 2 sides.", field="sides")
    per_side = alpha / sides
    if per_side >= 0.5:
        raise InputError(
            f"alpha: {alpha:g} with sides={sides} is {per_side:g} a side; it must be below 0.5.",
            field="alpha",
        )
    spends = rule in SPENDING_RULES
    if not spends:
        if spending_time is not None:
            raise InputError(
                f"spending_time: {rule} does not spend; use one of {', '.join(SPENDING_RULES)}.",
                field="spending_time",
            )
        if fractions[-1] < 1.0 - 1e-9 and not final:
            raise InputError(
                f"information_fractions: {rule} holds for a whole plan, whose last look is at 1, not "
                f"{fractions[-1]:g}. For looks so far use one of {', '.join(SPENDING_RULES)}.",
                field="information_fractions",
            )
    if gamma is not None and rule != "hwang_shih_decani":
        raise InputError(f"gamma: only hwang_shih_decani has it, not {rule}.", field="gamma")
    if spends:
        time = fractions if spending_time is None else checked_fractions(spending_time)
        if len(time) != len(fractions):
            raise InputError(
                f"spending_time: {len(time)} values for {len(fractions)} looks.", field="spending_time"
            )
        spent = spending(rule, time, per_side, gamma)
        if final:
            spent[-1] = per_side
        z = boundaries_by_spending(fractions, spent, symmetric=sides == 2)
    elif rule == "haybittle_peto":
        z = _haybittle_peto(fractions, per_side, checked_number(interim_z, "interim_z"), sides == 2)
        spent = _spent(fractions, z, sides == 2)
    else:
        shape = np.ones_like(fractions) if rule == "pocock" else np.sqrt(fractions[-1] / fractions)
        z = _constant(fractions, shape, per_side, sides == 2) * shape
        spent = _spent(fractions, z, sides == 2)
    from scipy.special import ndtr

    return Boundaries(
        rule=rule,  # type: ignore[arg-type]
        information_fractions=tuple(map(float, fractions)),
        alpha=alpha,
        sides=sides,  # type: ignore[arg-type]
        gamma=gamma,
        interim_z=float(interim_z) if rule == "haybittle_peto" else None,
        spending_time=None if spending_time is None else tuple(map(float, spending_time)),
        z=tuple(map(float, z)),
        nominal_p=tuple(map(float, sides * ndtr(-z))),
        alpha_spent=tuple(map(float, sides * spent)),
    )


def _lower(z: np.ndarray, symmetric: bool) -> np.ndarray:
    return -z if symmetric else np.full_like(z, -np.inf)


def _spent(fractions: np.ndarray, z: np.ndarray, symmetric: bool) -> np.ndarray:
    return np.cumsum(crossing_probabilities(fractions, _lower(z, symmetric), z).upper)


def _constant(fractions: np.ndarray, shape: np.ndarray, per_side: float, symmetric: bool) -> float:
    """The constant that makes the boundary ``constant * shape`` spend ``per_side``."""
    from scipy.special import ndtri

    smallest = float(-ndtri(per_side))
    # One look alone needs the smallest constant, K independent looks (Bonferroni) the largest.
    largest = float(-ndtri(per_side / len(fractions))) * float(1.0 / shape.min()) + 1e-9

    def excess(constant: float) -> float:
        # The logarithm is nearly straight in the constant: half the steps.
        return math.log(_spent(fractions, constant * shape, symmetric)[-1] / per_side)

    if len(fractions) == 1:
        return smallest
    return solve(excess, smallest * 0.999, largest)


def _haybittle_peto(fractions: np.ndarray, per_side: float, interim_z: float, symmetric: bool) -> np.ndarray:
    if interim_z <= 0:
        raise InputError(f"interim_z: {interim_z:g} must be above 0 (3 is usual).", field="interim_z")
    walk = Walk(fractions)
    used = 0.0
    for _ in fractions[:-1]:
        used += walk.above(interim_z)
        walk.advance(-interim_z if symmetric else -math.inf, interim_z)
    if used >= per_side:
        raise InputError(
            f"interim_z: {interim_z:g} at {len(fractions) - 1} interim looks spends {used:.4f} a side, the "
            f"whole of {per_side:g}; nothing is left for the last look.",
            field="interim_z",
            remedy="Raise interim_z.",
        )
    last = solve(lambda z: walk.above(z) - (per_side - used), -10.0, UNREACHABLE)
    return np.append(np.full(len(fractions) - 1, interim_z), last)


def _excess(walk: Walk, amount: float, z: float) -> float:
    """Log ratio of what the boundary ``z`` spends to ``amount``: early looks spend next to nothing."""
    return math.log(max(walk.above(z), 1e-320) / amount)


def boundaries_by_spending(
    fractions: np.ndarray, spent: np.ndarray, *, symmetric: bool, lower: np.ndarray | None = None
) -> np.ndarray:
    """Upper boundaries in z that spend the cumulative one-sided error ``spent``.

    Args:
        fractions, spent: shape (K,), both increasing.
        symmetric: paths also end at ``-z``.
        lower: paths also end at these lower boundaries (binding futility), shape (K,).
    """
    walk = Walk(fractions)
    share = np.diff(spent, prepend=0.0)
    z = np.full(len(fractions), np.inf)
    for look, amount in enumerate(share):
        if walk.above(UNREACHABLE) < amount < walk.above(-UNREACHABLE):
            z[look] = solve(partial(_excess, walk, amount), -UNREACHABLE, UNREACHABLE)
        if look + 1 < len(fractions):
            floor = -z[look] if symmetric else (-math.inf if lower is None else float(lower[look]))
            walk.advance(floor, float(z[look]))
    return z


def _checked_interim(z: float, information_fraction: float) -> tuple[float, float]:
    value = checked_number(z, "z")
    fraction = checked_number(information_fraction, "information_fraction")
    if not 0.0 < fraction <= 1.0:
        raise InputError(
            f"information_fraction: {fraction:g} lies above 0 and at most 1.", field="information_fraction"
        )
    return value, fraction


def conditional_power(
    z: float, information_fraction: float, *, final_z: float, drift: float | None = None
) -> float:
    """Probability that the final z reaches ``final_z``, given ``z`` now.

    ``Phi((z sqrt(t) + drift (1 - t) - c) / sqrt(1 - t))`` (Lan and Wittes, Biometrics 44, 1988).

    Args:
        z: statistic at the look; information_fraction: share ``t`` of the planned information.
        final_z: boundary ``c`` of the last look.
        drift: expectation of the final z; None is the current trend ``z / sqrt(t)``.
    """
    value, fraction = _checked_interim(z, information_fraction)
    bound = checked_number(final_z, "final_z")
    trend = value / math.sqrt(fraction) if drift is None else checked_number(drift, "drift")
    if fraction == 1.0:
        return float(value >= bound)
    score = value * math.sqrt(fraction) + trend * (1.0 - fraction) - bound
    return _phi(score / math.sqrt(1.0 - fraction))


def z_of_conditional_power(power: float, information_fraction: float, *, final_z: float) -> float:
    """The z at which :func:`conditional_power` under the current trend is ``power``: a boundary of futility.

    ``sqrt(t) (c + Phi^-1(power) sqrt(1 - t))``, from solving the formula for z.
    """
    from scipy.special import ndtri

    wanted = checked_probability(power, "power")
    fraction = _checked_interim(0.0, information_fraction)[1]
    bound = checked_number(final_z, "final_z")
    return math.sqrt(fraction) * (bound + float(ndtri(wanted)) * math.sqrt(1.0 - fraction))


def predictive_power(
    z: float,
    information_fraction: float,
    *,
    final_z: float,
    prior_mean: float | None = None,
    prior_sd: float | None = None,
) -> float:
    """Conditional power averaged over what is known of the drift (Spiegelhalter et al., 1986).

    Args:
        z, information_fraction, final_z: as in ``conditional_power``.
        prior_mean, prior_sd: normal prior of the expectation of the final z; both None is the flat prior.
    """
    value, fraction = _checked_interim(z, information_fraction)
    bound = checked_number(final_z, "final_z")
    if (prior_mean is None) != (prior_sd is None):
        raise InputError(
            "prior_mean and prior_sd: one is given without the other.",
            field="prior_mean, prior_sd",
            remedy="Give both, or neither for the flat prior.",
        )
    if fraction == 1.0:
        return float(value >= bound)
    precision, weighted = fraction, value * math.sqrt(fraction)
    if prior_mean is not None and prior_sd is not None:
        spread = checked_number(prior_sd, "prior_sd")
        if spread <= 0:
            raise InputError(f"prior_sd: {spread:g} must be above 0.", field="prior_sd")
        precision += spread**-2
        weighted += checked_number(prior_mean, "prior_mean") / spread**2
    rest = 1.0 - fraction
    mean = value * math.sqrt(fraction) + rest * weighted / precision
    return _phi((mean - bound) / math.sqrt(rest + rest**2 / precision))


def _phi(value: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(value))


class Look(BaseModel):
    """What one look says.

    ``conditional_power_trend`` follows the current trend, ``conditional_power_design`` the drift of the
    design (None without one); ``nominal_p`` is that of ``z`` alone, to be compared with that of the boundary.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    look: int
    information_fraction: float
    z: float
    boundary_z: float
    futility_z: float | None
    nominal_p: float
    boundary_p: float
    alpha_spent: float
    alpha_spent_at_look: float
    conditional_power_trend: float
    conditional_power_design: float | None
    predictive_power: float
    decision: Decision
    rationale: str

    def to_metadata(self) -> dict[str, Any]:
        """Everything; where the trial is blinded only the unblinded report may show it."""
        return {key: value for key, value in self.to_record().items() if value is not None}

    def to_record(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def evaluate_look(
    boundaries: Boundaries,
    look: int,
    z: float,
    *,
    information_fraction: float | None = None,
    earlier_z: Sequence[float] = (),
    futility_z: Sequence[float] | None = None,
    drift: float | None = None,
    final_z: float | None = None,
) -> Look:
    """Decision of look number ``look``: stop for benefit at the boundary, for futility below its own.

    Args:
        boundaries: those of all looks so far (spending rules) or of the whole plan.
        look: number from 1; z: statistic of this look, positive where the treatment does better.
        information_fraction: what was reached, to be compared with the boundaries' fraction.
        earlier_z: statistics of the looks before, all of which must have gone on.
        futility_z: lower boundary per look (``designs``), or None.
        drift: expectation of the final z under the design.
        final_z: boundary of the last look, for the chances to reach it; by default ``boundaries.final_z``.

    Raises:
        InputError: the design has no such look, a look before it is missing, the trial has already
            stopped, or the information is not that for which the boundary was made.
    """
    bound = boundaries.at(look)
    index = int(look) - 1
    value = checked_number(z, "z")
    planned = boundaries.information_fractions[index]
    if information_fraction is not None:
        reached = _checked_interim(value, information_fraction)[1]
        if abs(reached - planned) > 1e-6:
            raise InputError(
                f"information_fraction: look {look} was reached at {reached:g}, its boundary holds at {planned:g}. "
                + (
                    f"{boundaries.rule} allows planned looks only; ask boundaries() for the fractions reached."
                    if boundaries.planned_fractions_only
                    else "Call boundaries() with the fractions reached so far; it spends alpha accordingly."
                ),
                field="information_fraction",
                value=reached,
            )
    if len(earlier_z) != index:
        raise InputError(
            f"earlier_z: look {look} follows {index} looks, {len(earlier_z)} statistics were given.",
            field="earlier_z",
        )
    lower = None if futility_z is None else [float(item) for item in futility_z]
    if lower is not None and len(lower) != boundaries.looks:
        raise InputError(
            f"futility_z: {len(lower)} boundaries for {boundaries.looks} looks.", field="futility_z"
        )
    for number, (before, limit) in enumerate(zip(earlier_z, boundaries.z, strict=False), start=1):
        if checked_number(before, f"earlier_z[{number - 1}]") >= limit:
            raise InputError(
                f"look {look}: the trial stopped for benefit at look {number}; no look follows.",
                field="look",
                value=look,
                remedy="Give the looks up to the one that stopped the trial.",
            )
    final = boundaries.final_z if final_z is None else checked_number(final_z, "final_z")
    last = index == boundaries.looks - 1 and boundaries.complete
    # A trial that ended with less than the planned information has all of it.
    share = planned / boundaries.information_fractions[-1] if boundaries.complete else planned
    floor = None if lower is None else lower[index]
    if value >= bound:
        decision: Decision = "stop_efficacy"
        why = f"z {value:.3f} reached the boundary {bound:.3f}."
    elif floor is not None and value < floor:
        decision = "stop_futility"
        why = f"z {value:.3f} is below the futility boundary {floor:.3f}."
    else:
        decision = "continue"
        why = f"z {value:.3f} is below the boundary {bound:.3f}" + (
            "; it was the last look: no benefit shown." if last else "; the trial goes on."
        )
    spent = boundaries.alpha_spent
    return Look(
        look=int(look),
        information_fraction=planned,
        z=value,
        boundary_z=bound,
        futility_z=floor,
        nominal_p=boundaries.sides * _phi(-abs(value) if boundaries.sides == 2 else -value),
        boundary_p=boundaries.nominal_p[index],
        alpha_spent=spent[index],
        alpha_spent_at_look=spent[index] - (spent[index - 1] if index else 0.0),
        conditional_power_trend=conditional_power(value, share, final_z=final),
        conditional_power_design=(
            None if drift is None else conditional_power(value, share, final_z=final, drift=drift)
        ),
        predictive_power=predictive_power(value, share, final_z=final),
        decision=decision,
        rationale=why,
    )
