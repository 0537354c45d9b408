"""Sample size looked at again at an interim: by the blinded variance, or by conditional power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import ExperimentSpec, Metric
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.group_sequential import solve
from e2i_dagster.experiments.statistics.stopping import (
    Boundaries,
    boundaries,
    checked_number,
    checked_probability,
    conditional_power,
)

Zone = Literal["efficacy", "favourable", "promising", "unfavourable"]


class Reestimation(BaseModel):
    """The size from now on, and why.

    ``conditional_power`` is that of the current trend with the planned size, ``conditional_power_after`` with
    the new one; both None for the blinded rule, which looks at no effect.
    """

    model_config = ConfigDict(frozen=True)

    rule: Literal["blinded_variance", "promising_zone"]
    planned: int
    size: int
    zone: Zone | None = None
    conditional_power: float | None = None
    conditional_power_after: float | None = None
    variance_ratio: float | None = None
    rationale: str

    def to_metadata(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_record().items() if value is not None}

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class NoReestimation(BaseModel):
    """A review of the size that proposes none, and why."""

    model_config = ConfigDict(frozen=True)

    rule: Literal["blinded_variance", "promising_zone"]
    planned: int
    size: None = None
    rationale: str


def blinded_reestimation(
    planned: int,
    *,
    planned_variance: float,
    pooled_variance: float,
    assumed_effect: float = 0.0,
    treated_share: float = 0.5,
    trigger: float = 1.0,
    most: float = 2.0,
    least: float = 1.0,
) -> Reestimation:
    """New size from the variance of all units together, arms not known (Gould and Shih, 1992).

    The pooled variance holds the effect too: ``share (1 - share) effect^2`` of the assumed effect is taken
    off (Kieser and Friede, Statistics in Medicine 22, 2003). It spends no alpha.

    Args:
        planned: units planned; planned_variance: variance the plan assumed.
        pooled_variance: sample variance of all outcomes so far.
        trigger: the variance ratio above which the size changes; most, least: limits of the factor.

    Raises:
        InputError: a value is out of its range.
    """
    _checked_size(planned)
    before, seen = (
        checked_number(planned_variance, "planned_variance"),
        checked_number(pooled_variance, "pooled_variance"),
    )
    share = checked_probability(treated_share, "treated_share")
    if before <= 0 or seen <= 0:
        raise InputError(
            "planned_variance and pooled_variance: both must be above 0.",
            field="planned_variance, pooled_variance",
            value=(before, seen),
        )
    if not 0 < least <= 1.0 <= most:
        raise InputError(
            f"least {least:g} and most {most:g}: 0 < least <= 1 <= most.",
            field="least, most",
            value=(least, most),
        )
    within = seen - share * (1.0 - share) * checked_number(assumed_effect, "assumed_effect") ** 2
    if within <= 0:
        raise InputError(
            f"assumed_effect: {assumed_effect:g} alone explains more variance than was seen ({seen:g}); "
            "it is too large.",
            field="assumed_effect",
        )
    ratio = within / before
    if ratio > trigger or (least < 1.0 and ratio < 1.0):
        factor = min(most, max(least, ratio))
        why = f"the variance is {ratio:.3f} of the planned one; the size is multiplied by {factor:.3f}."
    else:
        factor = 1.0
        why = f"the variance is {ratio:.3f} of the planned one, not above {trigger:g}: the size stays."
    return Reestimation(
        rule="blinded_variance", planned=planned, size=math.ceil(planned * factor - 1e-9),
        variance_ratio=ratio, rationale=why,
    )  # fmt: skip


def promising_zone(
    boundaries: Boundaries,
    look: int,
    z: float,
    *,
    planned: int,
    most: int,
    target_power: float = 0.80,
) -> Reestimation:
    """New size from the conditional power of the current trend (Mehta and Pocock, Statistics in Medicine 30, 2011).

    The size grows only in the promising zone, where conditional power with the planned size lies between the
    least value for which the unadjusted final test keeps its error and ``target_power``. That least value is
    solved for the plan (Chen, DeMets and Lan, 2004; Gao, Ware and Mehta, 2008): there the adjusted final
    boundary is not above the planned one, whatever size is taken.

    Args:
        boundaries: of the plan; look, z: the interim look, the last but one.
        planned, most: units planned and at most.

    Raises:
        InputError: the look is not the last but one, or a value is out of its range.
    """
    bound = boundaries.at(look)
    _checked_size(planned)
    if look != boundaries.looks - 1 or boundaries.information_fractions[-1] != 1.0:
        raise InputError(
            f"look {look}: the size is looked at again at the last look but one, of a whole plan.",
            field="look",
            value=look,
            remedy=f"Give look {boundaries.looks - 1} of a plan whose last look has all information.",
        )
    if most < planned:
        raise InputError(f"most: {most} is below the {planned} units planned.", field="most")
    target = checked_probability(target_power, "target_power")
    value = checked_number(z, "z")
    fraction, final = boundaries.information_fractions[look - 1], boundaries.z[-1]
    now = conditional_power(value, fraction, final_z=final)
    shared = {"rule": "promising_zone", "planned": planned, "conditional_power": now}
    if value >= bound:
        return Reestimation(
            **shared, size=planned, zone="efficacy", conditional_power_after=now,
            rationale=f"z {value:.3f} reached the boundary {bound:.3f}: the trial stops.",
        )  # fmt: skip
    if now >= target:
        return Reestimation(
            **shared, size=planned, zone="favourable", conditional_power_after=now,
            rationale=f"conditional power {now:.3f} is enough; the size stays.",
        )  # fmt: skip
    size, after = _size_for(value, fraction, final, planned, most, target)
    if _adjusted_bound(value, fraction, final, size / planned) > final + 1e-9 or size == planned:
        return Reestimation(
            **shared, size=planned, zone="unfavourable", conditional_power_after=now,
            rationale=f"conditional power {now:.3f} is too low for a larger size to keep the type-I error; it stays.",
        )  # fmt: skip
    return Reestimation(
        **shared, size=size, zone="promising", conditional_power_after=after,
        rationale=f"conditional power {now:.3f} is promising; {size} units give {after:.3f}.",
    )  # fmt: skip


def _checked_size(planned: int) -> None:
    if isinstance(planned, bool) or planned != int(planned) or planned < 2:
        raise InputError(f"planned: {planned!r} is no number of units.", field="planned")


def _power_with(z: float, fraction: float, final: float, factor: float) -> float:
    """Conditional power of the trend when the information becomes ``factor`` times the planned one."""
    return conditional_power(z, fraction / factor, final_z=final)


def _size_for(
    z: float, fraction: float, final: float, planned: int, most: int, target: float
) -> tuple[int, float]:
    largest = most / planned
    if z <= 0 or _power_with(z, fraction, final, largest) < target:
        return most, _power_with(z, fraction, final, largest)
    factor = solve(lambda f: _power_with(z, fraction, final, f) - target, 1.0, largest)
    size = min(most, math.ceil(planned * factor - 1e-9))
    return size, _power_with(z, fraction, final, size / planned)


def _adjusted_bound(z: float, fraction: float, final: float, factor: float) -> float:
    """Final boundary with ``factor`` times the information that keeps the conditional type-I error.

    The conditional error of the plan, ``1 - Phi((c - z sqrt(t)) / sqrt(1 - t))``, is kept (Gao et al., eq. 2).
    """
    needed = (final - z * math.sqrt(fraction)) / math.sqrt(1.0 - fraction)
    share = fraction / factor
    return z * math.sqrt(share) + needed * math.sqrt(1.0 - share)


def propose_size(
    spec: ExperimentSpec, frame: pd.DataFrame, reached: Sequence[float], z: float | None
) -> Reestimation | NoReestimation | None:
    """What the review declared in the plan of ``spec`` proposes at this look; None at every other look.

    Args:
        frame: one row per assigned unit with the primary metric. reached: fractions of the looks up to this one.
        z: of this look, positive for benefit; None where it is not estimable.
    """
    review = spec.looks.reestimation
    number = len(reached)
    if review is None or number != review.look:
        return None
    planned, primary = spec.information_target, spec.metrics.primary
    try:
        if review.rule == "blinded_variance":
            return blinded_reestimation(
                planned,
                planned_variance=_planned_variance(spec, primary),
                pooled_variance=float(frame[primary.name].var(ddof=1)),
                assumed_effect=primary.minimum_effect or 0.0,
                treated_share=1.0 - spec.ratios[spec.control],
                trigger=review.variance_above,
                most=review.most / planned,
            )
        if z is None:
            raise InputError(
                "the look has no statistic",
                field="z",
                remedy="Look at the size again at a look that has a statistic.",
            )
        later = [fraction for fraction in spec.looks.information_fractions[number:] if fraction > reached[-1]]
        plan = boundaries(
            spec.looks.rule, [*reached, *later], alpha=spec.looks.alpha, sides=spec.looks.sides,
            gamma=spec.looks.gamma,
        )  # fmt: skip
        return promising_zone(
            plan, number, z, planned=planned, most=review.most, target_power=spec.sample_size.power
        )
    except InputError as error:
        return NoReestimation(rule=review.rule, planned=planned, rationale=str(error))


def _planned_variance(spec: ExperimentSpec, primary: Metric) -> float:
    """Variance of one unit within its arm that the plan assumed, averaged over the arms."""
    if primary.kind == "mean":
        return (primary.sd or 0.0) ** 2
    base = primary.baseline or 0.0
    treated = base + primary.sign * abs(primary.minimum_effect or 0.0)
    share = 1.0 - spec.ratios[spec.control]
    return (1.0 - share) * base * (1.0 - base) + share * treated * (1.0 - treated)
