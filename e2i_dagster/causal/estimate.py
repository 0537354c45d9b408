"""``estimate_effects`` and ``cross_validate``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.causal.effects import (
    CrossValidation,
    EffectEstimates,
    LibraryEstimate,
    Unadjusted,
    agreement_score,
    median_interval,
)
from e2i_dagster.causal.libraries import ESTIMATORS, TREATED_ESTIMATORS, run_estimator
from e2i_dagster.causal.nuisances import Estimand, fit_nuisances, quiet_libraries
from e2i_dagster.causal.overlap import assess_overlap
from e2i_dagster.causal.rows import CausalRows, MissingOutcome, causal_rows
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import config_folder


def estimate_effects(
    frame: pd.DataFrame,
    *,
    treatment: str,
    outcome: str,
    confounders: Sequence[str],
    missing_outcome: MissingOutcome = "refuse",
    estimators: Collection[str] | None = None,
    estimand: Estimand = "ate",
    policy: CausalPolicy | None = None,
    seed: int = 42,
) -> EffectEstimates:
    """The average effect of ``treatment`` on ``outcome`` by every library, adjusted for ``confounders``.

    All libraries get the same rows, folds, clipped propensities and families of nuisance models. The
    effect is a difference of means, treated minus control; of a binary outcome a difference of probabilities.
    It is causal only if the confounders are all of them and were measured before the treatment.

    Args:
        frame: one row per unit; not changed. treatment: column of 0/1 or false/true.
        outcome: numeric or boolean column. confounders: at least one column.
        missing_outcome: ``refuse``, or ``drop`` rows without outcome and count them.
        estimators: names of those to run (``LinearDRLearner``, ``DRLearner``, ``CausalForestDML``,
            ``propensity_score_weighting``, ``BaseDRLearner``, ``LinearDML``; of the ATT ``doubly_robust``,
            ``propensity_score_weighting``); all by default.
        estimand: effect on everyone (``ate``) or on the treated (``att``), which does without overlap where nobody
            is treated.
        policy: thresholds; ``config/causal.yaml`` by default. seed: of folds and models.

    Returns:
        One result per estimator; a library that cannot be imported is ``unavailable``, by name. Too few
        rows, a treatment that the confounders separate, or too little overlap give ``state =
        "not_estimable"`` with the reason and the measured overlap, and no estimate.

    Raises:
        InputError: see :func:`e2i_dagster.causal.rows.causal_rows`; or an estimator is unknown.
    """
    policy = policy or CausalPolicy.load(config_folder())
    rows = causal_rows(
        frame,
        treatment=treatment,
        outcome=outcome,
        confounders=confounders,
        missing_outcome=missing_outcome,
        maximum_levels=policy.maximum_levels,
    )
    return estimate_rows(
        rows,
        treatment=treatment,
        outcome=outcome,
        confounders=tuple(confounders),
        estimators=estimators,
        estimand=estimand,
        policy=policy,
        seed=seed,
    )


def estimate_rows(
    rows: CausalRows,
    *,
    treatment: str,
    outcome: str,
    confounders: tuple[str, ...],
    policy: CausalPolicy,
    estimators: Collection[str] | None = None,
    estimand: Estimand = "ate",
    seed: int = 42,
) -> EffectEstimates:
    """As :func:`estimate_effects`, of rows that are checked and encoded already."""
    known = ESTIMATORS if estimand == "ate" else TREATED_ESTIMATORS
    wanted = [estimator for estimator in known if estimators is None or estimator.name in estimators]
    unknown = sorted(set(estimators or ()) - {estimator.name for estimator in known})
    if unknown:
        raise InputError(
            f"Unknown estimator {', '.join(unknown)}.",
            field="estimators",
            value=unknown[0],
            remedy=f"Known: {', '.join(estimator.name for estimator in known)}.",
        )
    about = {
        "treatment": treatment,
        "outcome": outcome,
        "confounders": confounders,
        "rows": rows.size,
        "treated": int(rows.t.sum()),
        "dropped": rows.dropped,
        "level": policy.level,
        "seed": seed,
        "estimand": estimand,
        "outcome_is_binary": rows.binary,
        "constant_confounders": rows.constant,
    }
    reason = _too_little(rows, policy)
    if reason:
        return EffectEstimates(**about, state="not_estimable", reason=reason)
    about["unadjusted"] = unadjusted_difference(rows, policy.level)
    with quiet_libraries():
        nuisances = fit_nuisances(rows, floor=policy.propensity_floor, seed=seed)
        overlap = assess_overlap(rows, nuisances, policy, estimand)
    if overlap.refusal:
        return EffectEstimates(**about, state="not_estimable", reason=overlap.refusal, overlap=overlap)
    results = [run_estimator(estimator, rows, nuisances, policy, seed) for estimator in wanted]
    estimates = _counted_once(tuple(estimate for estimate, _ in results))
    estimated = any(estimate.state == "estimated" for estimate in estimates)
    return EffectEstimates(
        **about,
        state="estimated" if estimated else "not_estimable",
        reason=""
        if estimated
        else "; ".join(f"{estimate.label}: {estimate.reason}" for estimate in estimates),
        estimates=estimates,
        overlap=overlap,
        families={"treatment": nuisances.treatment_family, "outcome": nuisances.outcome_family},
        scores={estimate.label: scores for estimate, scores in results if scores is not None},
    )


def unadjusted_difference(rows: CausalRows, level: float) -> Unadjusted:
    """Difference of the arms' mean outcomes, with Welch's interval."""
    from scipy.stats import ttest_ind

    treated, control = rows.y[rows.t == 1], rows.y[rows.t == 0]
    difference = float(treated.mean() - control.mean())
    if np.ptp(treated) == 0 and np.ptp(control) == 0:
        return Unadjusted(difference=difference, lower=None, upper=None)
    compared: Any = ttest_ind(treated, control, equal_var=False)
    reach = compared.confidence_interval(level)
    return Unadjusted(difference=difference, lower=float(reach.low), upper=float(reach.high))


def _counted_once(estimates: tuple[LibraryEstimate, ...]) -> tuple[LibraryEstimate, ...]:
    """Takes the vote from an estimator that gives another one's mean again: it would only add weight to it."""
    there = {estimate.name for estimate in estimates if estimate.state == "estimated"}
    repeats = {estimator.name: estimator.repeats for estimator in ESTIMATORS if estimator.repeats in there}
    return tuple(
        estimate.model_copy(
            update={
                "in_consensus": False,
                "reason": f"the mean of {repeats[estimate.name]} again, counted once",
            }
        )
        if estimate.name in repeats and estimate.state == "estimated"
        else estimate
        for estimate in estimates
    )


def _too_little(rows: CausalRows, policy: CausalPolicy) -> str:
    treated = int(rows.t.sum())
    smaller = min(treated, rows.size - treated)
    if smaller < policy.minimum_arm:
        return (
            f"{rows.size:,} rows, of which the smaller arm has {smaller}; at least {policy.minimum_arm} are needed "
            "in each (config/causal.yaml: minimum_arm)"
        )
    if np.ptp(rows.y) == 0:
        return "the outcome has one value in all rows"
    return ""


def cross_validate(
    given: pd.DataFrame | EffectEstimates,
    *,
    treatment: str | None = None,
    outcome: str | None = None,
    confounders: Sequence[str] | None = None,
    missing_outcome: MissingOutcome = "refuse",
    estimators: Collection[str] | None = None,
    estimand: Estimand = "ate",
    policy: CausalPolicy | None = None,
    seed: int = 42,
) -> CrossValidation:
    """Agreement of the libraries, and the consensus effect with its interval.

    The target is the ATE, or the ATT if asked: doubly robust and weighting estimates count, LinearDML
    (overlap-weighted) and libraries that are not there are left out by name. Point: median of the points.
    Interval: percentile bootstrap of the median over one common set of cross-fitted scores, rows resampled
    jointly. Agreement: share of pairs whose intervals overlap and whose signs agree.

    Args:
        given: a frame, with the arguments of :func:`estimate_effects`; or what that function returned.

    Raises:
        InputError: as :func:`estimate_effects`; or treatment, outcome and confounders are not all named; or
            the estimates were read back from storage, where scores are not kept.
    """
    policy = policy or CausalPolicy.load(config_folder())
    if isinstance(given, EffectEstimates):
        effects = given
    elif treatment is None or outcome is None or confounders is None:
        raise InputError(
            "A frame is given without saying which of its columns are what.",
            field="treatment, outcome, confounders",
            remedy="Name treatment=, outcome= and confounders=.",
        )
    else:
        effects = estimate_effects(
            given,
            treatment=treatment,
            outcome=outcome,
            confounders=confounders,
            missing_outcome=missing_outcome,
            estimators=estimators,
            estimand=estimand,
            policy=policy,
            seed=seed,
        )
    counted = tuple(
        estimate for estimate in effects.estimates if estimate.in_consensus and estimate.state == "estimated"
    )
    left_out = {
        estimate.label: estimate.reason or f"estimand {estimate.estimand}, not the {effects.estimand.upper()}"
        for estimate in effects.estimates
        if estimate not in counted
    }
    if counted and not all(estimate.label in effects.scores for estimate in counted):
        raise InputError(
            "These estimates carry no scores (they are not stored).",
            field="given",
            remedy="Estimate from the frame again.",
        )
    point, interval = None, None
    if counted:
        point = float(np.median([estimate.point for estimate in counted if estimate.point is not None]))
        interval = median_interval(
            np.column_stack([effects.scores[estimate.label] for estimate in counted]),
            level=effects.level,
            draws=policy.bootstrap_draws,
            seed=effects.seed,
        )
    return CrossValidation(
        effects=effects,
        agreement_score=agreement_score(counted),
        consensus_effect=point,
        consensus_interval=interval,
        libraries=tuple(estimate.label for estimate in counted),
        left_out=left_out,
        bootstrap_draws=policy.bootstrap_draws if counted else 0,
    )
