"""A design with looks for benefit and for futility: boundaries, drift, inflation, operating characteristics."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.designs.planning import drift_for_power, fixed_drift
from e2i_dagster.experiments.statistics.group_sequential import Walk, crossing_probabilities, solve
from e2i_dagster.experiments.statistics.stopping import (
    SPENDING_RULES,
    UNREACHABLE,
    Boundaries,
    Rule,
    boundaries,
    boundaries_by_spending,
    checked_probability,
    spending,
)


class Design(BaseModel):
    """Looks for benefit (``efficacy``) and, unless None, for ``futility`` (lower boundary in z per look).

    ``binding``: stopping below the futility boundary is obligatory, and alpha makes use of it.
    ``drift``: expectation of the final z at which the design has ``power``; ``inflation``: its maximum
    information relative to a single look. ``beta_spent``: cumulative type-II error at that drift.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    efficacy: Boundaries
    futility: tuple[float, ...] | None
    binding: bool
    beta_spending: str | None
    beta_gamma: float | None
    power: float
    drift: float
    inflation: float
    beta_spent: tuple[float, ...] | None

    def stopping_probabilities(self, drift: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Probability per look of stopping for benefit, and below (futility, or harm's mirror boundary)."""
        lower = self.efficacy.lower if self.futility is None else self.futility
        crossing = crossing_probabilities(self.efficacy.information_fractions, lower, self.efficacy.z, drift)
        return tuple(map(float, crossing.upper)), tuple(map(float, crossing.lower))

    def expected_information(self, drift: float) -> float:
        """Mean information at the end, in units of the planned maximum."""
        up, down = self.stopping_probabilities(drift)
        fractions = np.array(self.efficacy.information_fractions)
        stop = np.array(up) + np.array(down)
        stop[-1] = 1.0 - stop[:-1].sum()
        return float(stop @ fractions)

    def to_metadata(self) -> dict[str, Any]:
        efficacy = self.efficacy
        lower = self.futility or (None,) * efficacy.looks
        looks = range(1, efficacy.looks + 1)
        rows = zip(looks, efficacy.information_fractions, efficacy.z, lower, strict=True)
        return {
            "rule": efficacy.rule,
            "alpha": efficacy.alpha,
            "power": self.power,
            "inflation": self.inflation,
            "futility": "none" if self.futility is None else "binding" if self.binding else "non-binding",
            "design": Table(("look", "information", "stop for benefit z >=", "stop for futility z <"), rows),
        }

    def to_record(self) -> dict[str, Any]:
        return json.loads(self.model_dump_json())


def design(
    rule: Rule | str,
    information_fractions: Sequence[float] | np.ndarray,
    *,
    alpha: float = 0.05,
    sides: int = 2,
    power: float = 0.80,
    gamma: float | None = None,
    interim_z: float = 3.0,
    beta_spending: str | None = None,
    beta_gamma: float | None = None,
    binding: bool = False,
) -> Design:
    """A design with boundaries for benefit and, by ``beta_spending``, for futility.

    Futility lies on the side of benefit: with ``sides=2`` the test for benefit is one-sided at
    ``alpha / 2``. Non-binding futility leaves the boundary for benefit as it is without; binding futility
    lowers it, and ignoring a crossing then breaks the type-I error. The futility boundaries spend the
    type-II error under the drift that has ``power``, and meet the boundary for benefit at the last look
    (Pampallona, Tsiatis and Kim, Drug Information Journal 35, 2001).

    Args:
        beta_spending: one of the spending rules, or None for no futility looks; beta_gamma: its parameter.
        binding: needs a spending rule for benefit too.
        Others: as in ``boundaries``, for the whole plan (last fraction 1).

    Raises:
        InputError: an argument is out of its range, or the combination is none.
    """
    efficacy = boundaries(
        rule, information_fractions, alpha=alpha, sides=sides, gamma=gamma, interim_z=interim_z
    )
    fractions = np.array(efficacy.information_fractions)
    if fractions[-1] < 1.0:
        raise InputError(
            f"information_fractions: a design ends at 1, not at {fractions[-1]:g}.",
            field="information_fractions",
        )
    wanted = checked_probability(power, "power")
    per_side = efficacy.alpha / efficacy.sides
    if wanted <= per_side:
        raise InputError(
            f"power: {wanted:g} is not above the error of one side ({per_side:g}).", field="power"
        )
    single = fixed_drift(per_side, wanted)
    if beta_spending is None:
        if binding or beta_gamma is not None:
            raise InputError(
                "beta_spending: binding futility and beta_gamma need one of the spending rules.",
                field="beta_spending",
            )
        drift = drift_for_power(efficacy, wanted)
        return Design(
            efficacy=efficacy, futility=None, binding=False, beta_spending=None, beta_gamma=None,
            power=wanted, drift=drift, inflation=(drift / single) ** 2, beta_spent=None,
        )  # fmt: skip
    if beta_spending not in SPENDING_RULES:
        raise InputError(
            f"beta_spending: {beta_spending!r} is not one of {', '.join(SPENDING_RULES)}.",
            field="beta_spending",
        )
    if binding and rule not in SPENDING_RULES:
        raise InputError(
            f"binding: {rule} does not spend alpha; binding futility needs a spending rule.", field="binding"
        )
    beta = spending(beta_spending, fractions, 1.0 - wanted, beta_gamma)
    spent = spending(rule, fractions, per_side, gamma) if binding else None
    upper = boundaries_by_spending(
        fractions, np.array(efficacy.alpha_spent) / efficacy.sides, symmetric=False
    )
    if rule not in SPENDING_RULES:
        upper = np.array(efficacy.z)

    def miss(drift: float) -> float:
        return _lower(fractions, upper, spent, beta, drift)[2]

    drift = solve(miss, single, single * 2.0)
    lower, upper, _ = _lower(fractions, upper, spent, beta, drift)
    # At the last look the two boundaries meet; the solution is exact but for rounding.
    lower[-1] = upper[-1]
    crossing = crossing_probabilities(fractions, lower if binding else np.full_like(lower, -np.inf), upper)
    from scipy.special import ndtr

    return Design(
        efficacy=efficacy.model_copy(
            update={
                "z": tuple(map(float, upper)),
                "nominal_p": tuple(map(float, efficacy.sides * ndtr(-upper))),
                "alpha_spent": tuple(map(float, efficacy.sides * np.cumsum(crossing.upper))),
            }
        ),
        futility=tuple(map(float, lower)),
        binding=binding,
        beta_spending=beta_spending,
        beta_gamma=beta_gamma,
        power=wanted,
        drift=drift,
        inflation=(drift / single) ** 2,
        beta_spent=tuple(map(float, beta)),
    )


def _spends(walk: Walk, amount: float, upward: bool, z: float) -> float:
    probability = walk.above(z) if upward else walk.below(z)
    return math.log(max(probability, 1e-320) / amount)


def _boundary(walk: Walk, amount: float, *, upward: bool) -> float:
    """The z beyond which the next look has the probability ``amount``; infinite where that is next to none."""
    beyond = UNREACHABLE if upward else -UNREACHABLE
    least = walk.above(beyond) if upward else walk.below(beyond)
    most = walk.above(-beyond) if upward else walk.below(-beyond)
    if amount <= least:
        return math.copysign(math.inf, beyond)
    if amount >= most:
        return math.copysign(math.inf, -beyond)
    return solve(partial(_spends, walk, amount, upward), -UNREACHABLE, UNREACHABLE)


def _lower(
    fractions: np.ndarray, fixed_upper: np.ndarray, spent: np.ndarray | None, beta: np.ndarray, drift: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Boundaries under ``drift``, and by how much the lower one misses the upper one at the last look.

    ``spent`` (binding futility): the upper boundary is solved with the lower one in force; else it is
    ``fixed_upper``.
    """
    under_null, under_drift = Walk(fractions), Walk(fractions, drift)
    lower, upper = np.empty_like(fractions), fixed_upper.copy()
    for look in range(len(fractions)):
        if spent is not None:
            upper[look] = _boundary(under_null, spent[look] - (spent[look - 1] if look else 0.0), upward=True)
        share = float(beta[look] - (beta[look - 1] if look else 0.0))
        lower[look] = _boundary(under_drift, share, upward=False)
        if look + 1 < len(fractions):
            # Where both would cross, the look stops either way and nothing is left to go on.
            lower[look] = min(lower[look], upper[look] - 1e-6)
            under_drift.advance(lower[look], upper[look])
            if spent is not None:
                under_null.advance(lower[look], upper[look])
    return lower, upper, float(upper[-1] - min(max(lower[-1], -UNREACHABLE), UNREACHABLE))
