"""One question answered whole: effect, refuters, negative controls, sensitivity, heterogeneity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from e2i_dagster.causal.effects import CrossValidation
from e2i_dagster.causal.estimate import cross_validate, estimate_rows
from e2i_dagster.causal.heterogeneity import EffectHeterogeneity, assess_heterogeneity
from e2i_dagster.causal.negative_controls import Calibration, negative_controls
from e2i_dagster.causal.nuisances import Estimand, Nuisances, fit_nuisances, quiet_libraries
from e2i_dagster.causal.refute import Refutation, doubly_robust, refute
from e2i_dagster.causal.rows import (
    CausalRows,
    MissingOutcome,
    causal_rows,
    days_of,
    require_few_levels,
    require_named,
)
from e2i_dagster.causal.sensitivity import Sensitivity, assess_sensitivity
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import PolicyModel


class CausalEstimates(PolicyModel):
    """An effect with everything that speaks for it and against it.

    Attributes:
        question: in words. found: libraries, agreement, consensus.
        refutations, calibration, sensitivity: absent when the effect is not estimable.
        balanced_difference: absolute standardized mean difference that counts as balanced.
    """

    #: Durations are no result.
    volatile_fields: ClassVar[dict[str, Any]] = {
        "found": {"effects": {"estimates": {"__all__": {"seconds"}}}}
    }

    question: str
    found: CrossValidation
    refutations: tuple[Refutation, ...] = ()
    calibration: Calibration | None = None
    sensitivity: Sensitivity | None = None
    balanced_difference: float

    @property
    def unbalanced(self) -> tuple[str, ...]:
        """Confounders whose difference after weighting is above the bound."""
        overlap = self.found.effects.overlap
        rows = overlap.balance if overlap else ()
        return tuple(row.confounder for row in rows if abs(row.after) > self.balanced_difference)

    @property
    def refuted_by(self) -> tuple[str, ...]:
        """Names of the refuters that the estimate did not pass."""
        return tuple(refutation.name for refutation in self.refutations if not refutation.passed)

    def to_record(self) -> dict[str, Any]:
        """All fields as plain values."""
        return self.model_dump(mode="json")

    def to_metadata(self) -> dict[str, Any]:
        """Findings, tables, forest plot and love plot for the UI."""
        from e2i_dagster.causal.pages import estimates_metadata

        return estimates_metadata(self)


@dataclass(frozen=True)
class Population:
    """The rows that a study is of.

    Attributes:
        frame: its rows. without_outcome: rows left out for want of an outcome. trim: bounds of the propensity
            outside which rows were left out. outside: how many.
    """

    frame: pd.DataFrame
    without_outcome: int = 0
    trim: tuple[float, float] | None = None
    outside: int = 0

    def note(self, study: CausalEstimates) -> CausalEstimates:
        """``study`` with what was left out before it."""
        effects = study.found.effects.model_copy(
            update={"dropped": self.without_outcome, "trim": self.trim, "trimmed": self.outside}
        )
        return study.model_copy(update={"found": study.found.model_copy(update={"effects": effects})})


def study_population(
    frame: pd.DataFrame,
    *,
    treatment: str,
    outcome: str,
    confounders: Sequence[str],
    policy: CausalPolicy,
    missing_outcome: MissingOutcome = "refuse",
    trim: tuple[float, float] | None = None,
    seed: int = 42,
) -> Population:
    """Leave out the rows without outcome, if so asked, and those whose cross-fitted propensity is outside ``trim``.

    Trimming: Crump, Hotz, Imbens and Mitnik (2009). The effect is then that on the rows that stay.

    Raises:
        InputError: as :func:`e2i_dagster.causal.rows.causal_rows`; or no row, or no row of an arm, stays.
    """
    if missing_outcome == "drop" and outcome in frame.columns:
        kept = frame[frame[outcome].notna()].reset_index(drop=True)
    else:
        kept = frame
    dropped = len(frame) - len(kept)
    if trim is None:
        return Population(kept, dropped)
    raw = nuisances_of(_rows(kept, treatment, outcome, confounders, policy), policy, seed).raw_propensity
    inside = (raw >= trim[0]) & (raw <= trim[1])
    return Population(kept[inside].reset_index(drop=True), dropped, trim, int((~inside).sum()))


def study_effect(
    frame: pd.DataFrame,
    *,
    question: str,
    treatment: str,
    outcome: str,
    confounders: Sequence[str],
    controls: Sequence[str] = (),
    policy: CausalPolicy,
    estimand: Estimand = "ate",
    seed: int = 42,
) -> CausalEstimates:
    """Estimate by all libraries, cross-validate, refute, calibrate, and bound what was not measured.

    Args:
        frame: one row per unit. controls: columns that the treatment cannot change; each level of a
            category is a negative-control outcome of its own. estimand: on everyone, or on the treated (``att``).

    Raises:
        InputError: as :func:`e2i_dagster.causal.estimate_effects`; or a control is absent or has a part in
            the question.
    """
    rows = _rows(frame, treatment, outcome, confounders, policy)
    _check_controls(frame, controls, (treatment, outcome, *confounders))
    effects = estimate_rows(
        rows,
        treatment=treatment,
        outcome=outcome,
        confounders=tuple(confounders),
        policy=policy,
        estimand=estimand,
        seed=seed,
    )
    found = cross_validate(effects, policy=policy)
    if found.state != "estimated":
        return CausalEstimates(question=question, found=found, balanced_difference=policy.balanced_difference)
    with quiet_libraries():
        nuisances = fit_nuisances(rows, floor=policy.propensity_floor, seed=seed)
        effect = doubly_robust(
            nuisances.treatment_family, nuisances.outcome_family, policy.propensity_floor, estimand
        )
        sensitivity = assess_sensitivity(
            rows,
            nuisances,
            level=policy.level,
            strength=policy.refutation.unobserved_strength,
            estimand=estimand,
        )
        refutations = refute(rows, nuisances, sensitivity, policy, seed=seed, effect=effect)
        calibration = negative_controls(
            rows,
            control_outcomes(frame, controls, policy.maximum_levels),
            effect,
            minimum=policy.minimum_negative_controls,
            minimum_arm=policy.minimum_arm,
            level=policy.level,
            seed=seed,
        )
    return CausalEstimates(
        question=question,
        found=found,
        refutations=refutations,
        calibration=calibration,
        sensitivity=sensitivity,
        balanced_difference=policy.balanced_difference,
    )


def study_heterogeneity(
    frame: pd.DataFrame,
    *,
    treatment: str,
    outcome: str,
    confounders: Sequence[str],
    policy: CausalPolicy,
    estimable: bool,
    reason: str = "",
    seed: int = 42,
) -> EffectHeterogeneity:
    """Whose effect is larger; not estimable where the average effect is not."""
    if not estimable:
        return EffectHeterogeneity(treatment=treatment, outcome=outcome, state="not_estimable", reason=reason)
    rows = _rows(frame, treatment, outcome, confounders, policy)
    nuisances = nuisances_of(rows, policy, seed)
    return assess_heterogeneity(rows, nuisances, policy, treatment=treatment, outcome=outcome, seed=seed)


def nuisances_of(rows: CausalRows, policy: CausalPolicy, seed: int) -> Nuisances:
    """The common nuisances of ``rows``."""
    with quiet_libraries():
        return fit_nuisances(rows, floor=policy.propensity_floor, seed=seed)


def _rows(
    frame: pd.DataFrame, treatment: str, outcome: str, confounders: Sequence[str], policy: CausalPolicy
) -> CausalRows:
    return causal_rows(
        frame,
        treatment=treatment,
        outcome=outcome,
        confounders=confounders,
        maximum_levels=policy.maximum_levels,
    )


def _check_controls(frame: pd.DataFrame, controls: Sequence[str], asked: Sequence[str]) -> None:
    require_named(frame, controls, " for a negative control")
    both = [name for name in controls if name in asked]
    if both:
        raise InputError(
            f"{', '.join(both)}: named as negative control, and as treatment, outcome or confounder. A negative "
            "control is an outcome that the treatment cannot have changed.",
            field=both[0],
            remedy="Leave it out of one of the two.",
        )


def control_outcomes(
    frame: pd.DataFrame, controls: Sequence[str], maximum_levels: int
) -> dict[str, np.ndarray]:
    """Outcomes (n,) of the negative controls: numbers as they are, days since the first, an indicator for each level.

    Raises:
        InputError: a category has more than ``maximum_levels`` levels.
    """
    outcomes: dict[str, np.ndarray] = {}
    for name in controls:
        column = frame[name]
        dated = pd.api.types.is_datetime64_any_dtype(column)
        if dated or (pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)):
            values = (
                days_of(column) if dated else column.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
            )
            outcomes[name] = np.where(np.isnan(values), np.nanmedian(values), values)
        else:
            text = column.astype("string").fillna("missing")
            levels = sorted(text.unique())
            require_few_levels(name, levels, maximum_levels, "Negative control")
            # Of two levels the second says nothing that the first does not.
            for level in levels[1:] if len(levels) == 2 else levels:
                outcomes[f"{name}={level}"] = (text == level).to_numpy(dtype=float)
    return outcomes
