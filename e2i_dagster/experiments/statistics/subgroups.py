"""Pre-registered subgroups: effects by level, test of interaction, adjustment for the number of tests.

A subgroup differs when its interaction test says so, never because one level is significant and another is
not (Wang et al., NEJM 357, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.analysis import SMALLEST_ARM, analyze_statistics
from e2i_dagster.experiments.statistics.comparison_results import Comparison, Status
from e2i_dagster.experiments.statistics.multiplicity import adjusted
from e2i_dagster.experiments.statistics.sufficient_statistics import summarize


class SubgroupLevel(BaseModel):
    """One level of a subgroup: its comparison, and its p-value adjusted over all levels of all subgroups."""

    model_config = ConfigDict(frozen=True)

    level: str
    units: int
    comparison: Comparison
    adjusted_p_value: float | None


class Subgroup(BaseModel):
    """One pre-registered subgroup.

    ``interaction_p_value``: Cochran's Q over the levels that could be estimated (for hazard ratios on the
    log scale), ``adjusted_interaction_p_value`` over all subgroups.
    """

    model_config = ConfigDict(frozen=True)

    subgroup: str
    status: Status
    reason: str | None
    levels: tuple[SubgroupLevel, ...]
    interaction_statistic: float | None
    degrees_of_freedom: int | None
    interaction_p_value: float | None
    adjusted_interaction_p_value: float | None


class SubgroupAnalysis(BaseModel):
    """All pre-registered subgroups of one comparison."""

    model_config = ConfigDict(frozen=True)

    arm: str
    control: str
    multiplicity: str
    subgroups: tuple[Subgroup, ...]

    def to_metadata(self) -> dict[str, Any]:
        levels = [
            (
                *(group.subgroup, level.level, shown_count(level.units), *level.comparison.estimate),
                *(level.adjusted_p_value, level.comparison.reason),
            )
            for group in self.subgroups
            for level in group.levels
        ]
        return {
            "levels": Table(
                ("subgroup", "level", "units", "effect", "interval", "adjusted p", "note"), levels
            ),
            "interaction": interaction_table([self]),
            "multiplicity": self.multiplicity,
        }

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def interaction_table(found: Sequence[SubgroupAnalysis]) -> Table:
    """Whether the effect of each arm differs between the levels of each subgroup."""
    return Table(
        ("arm", "subgroup", "interaction p", "adjusted p", "note"),
        [
            (
                *(
                    subgroup.arm,
                    group.subgroup,
                    group.interaction_p_value,
                    group.adjusted_interaction_p_value,
                ),
                group.reason,
            )
            for subgroup in found
            for group in subgroup.subgroups
        ],
    )


def analyze_subgroups(
    frame: Any,
    *,
    arm: str,
    outcome: str,
    control: str,
    subgroups: Sequence[str],
    treated: str | None = None,
    kind: str = "mean",
    confidence: float = 0.95,
    multiplicity: str = "holm",
    min_per_arm: int = SMALLEST_ARM,
    **options: Any,
) -> SubgroupAnalysis:
    """Effects in every level of the pre-registered ``subgroups``, with tests of interaction.

    Args:
        subgroups: columns named before the outcomes were seen; a missing value is a level ``missing``.
        treated: the arm to compare, needed with more than two.
        multiplicity: ``holm`` or ``benjamini_hochberg``, over the interaction tests and over the levels.
        options: as in ``analyze``, but ``strata``.

    Raises:
        InputError: no or a repeated subgroup, or as ``analyze``.
    """
    if not subgroups or len(set(subgroups)) != len(subgroups):
        raise InputError("subgroups: name every pre-registered subgroup once.", field="subgroups")
    if "strata" in options:
        raise InputError("strata: an analysis by subgroup takes none.", field="strata")
    analysis = {name: options.pop(name) for name in ("horizon", "outcome_range") if name in options}
    found: list[tuple[str, list[tuple[str, int, Comparison]]]] = []
    for name in subgroups:
        statistics = summarize(frame, arm=arm, outcome=outcome, kind=kind, strata=name, **options)
        names = [item for item in statistics.arms if item != str(control)]
        if treated is None and len(names) != 1:
            raise InputError(
                f"treated: name the arm to compare; there are {', '.join(names) or 'none'}.", field="treated"
            )
        treated = str(names[0] if treated is None else treated)
        levels = []
        for level in statistics.strata:
            part = statistics.of_stratum(level)
            result = analyze_statistics(
                part, control=control, arms=sorted({*statistics.arms, str(control), treated}), confidence=confidence,
                min_per_arm=min_per_arm, **analysis,
            )  # fmt: skip
            levels.append((level, sum(item.units for item in result.arms), result.comparison(treated)))
        found.append((name, levels))
    flat = [comparison.p_value for _, levels in found for _, _, comparison in levels]
    final = iter(adjusted(flat, multiplicity))
    tests = [_interaction([comparison for _, _, comparison in levels]) for _, levels in found]
    corrected = adjusted([test[2] for test in tests], multiplicity)
    groups = []
    for (name, levels), (statistic, freedom, p, reason), adjusted_p in zip(
        found, tests, corrected, strict=True
    ):
        groups.append(
            Subgroup(
                subgroup=name,
                status="estimated" if p is not None else "not_estimable",
                reason=reason,
                levels=tuple(
                    SubgroupLevel(level=level, units=units, comparison=item, adjusted_p_value=next(final))
                    for level, units, item in levels
                ),
                interaction_statistic=statistic,
                degrees_of_freedom=freedom,
                interaction_p_value=p,
                adjusted_interaction_p_value=adjusted_p,
            )
        )
    return SubgroupAnalysis(
        arm=str(treated), control=str(control), multiplicity=multiplicity, subgroups=tuple(groups)
    )


def _interaction(levels: list[Comparison]) -> tuple[float | None, int | None, float | None, str | None]:
    """Cochran's Q: weighted squares of the levels' effects about their weighted mean."""
    from scipy.special import chdtrc

    known = [item for item in levels if item.effect is not None and item.standard_error]
    left_out = len(levels) - len(known)
    note = f"{left_out} of {len(levels)} levels are not estimable and left out" if left_out else None
    if len(known) < 2:
        return None, None, None, f"{len(known)} of {len(levels)} levels can be estimated; a test needs two"
    effects = np.array([_scale(item) for item in known])
    weights = np.array([float(item.standard_error or 0.0) ** -2 for item in known])
    centre = float(weights @ effects / weights.sum())
    statistic = float(weights @ (effects - centre) ** 2)
    return statistic, len(known) - 1, float(chdtrc(len(known) - 1, statistic)), note


def _scale(item: Comparison) -> float:
    assert item.effect is not None
    return math.log(item.effect) if item.effect_type == "hazard_ratio" else item.effect
