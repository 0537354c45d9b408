"""A model of individual effects that can be registered and served: a DR-learner of plain scikit-learn parts.

Doubly robust scores of the training patients, by nuisance models that have not seen them, are regressed on the
confounders (Kennedy 2023). The final stage is one pipeline of the same preprocessing as every other model here
and a linear or boosted regression, whichever has the lower cross-fitted loss. Validation patients, which neither
nuisances nor final stage have seen, judge it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.causal.heterogeneity import EffectHeterogeneity, assess_predicted_effects, slope_and_error
from e2i_dagster.causal.nuisances import Nuisances, apply_family, fit_nuisances, quiet_libraries
from e2i_dagster.causal.pages import uplift_plot
from e2i_dagster.causal.question import SPLIT
from e2i_dagster.causal.rows import CausalRows, causal_rows
from e2i_dagster.causal.study import CausalEstimates
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds, model_input
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.reports import figure_png
from e2i_dagster.training import Evaluation, TrainedModel
from e2i_dagster.training.evaluate import CriterionResult, Estimate, SplitMetrics
from e2i_dagster.training.fit import computed_digest, invented_example, seen_ranges
from e2i_dagster.training.search import rows_digest

PROBLEM_TYPE = "causal"


@dataclass(frozen=True)
class FittedEffects:
    """A model of individual effects with its judgement.

    Attributes:
        model: its pipeline predicts the effect from the confounders. evaluation: on validation patients, one
            criterion for each rule of ``config/causal.yaml``.
        served: what an answer carries beside the predicted effect, for the stored model's metadata.
    """

    model: TrainedModel
    evaluation: Evaluation
    served: dict[str, Any]


def why_not_fitted(frame: pd.DataFrame, study: CausalEstimates, policy: CausalPolicy) -> str:
    """Why no model of effects can be fitted and judged on ``frame``; empty when it can.

    Args:
        frame: with the column ``split``.

    Raises:
        InputError: the frame has no column ``split``.
    """
    if study.found.state != "estimated":
        return f"the effect is not estimable: {study.found.reason}"
    if SPLIT not in frame.columns:
        raise InputError(
            f"The frame has no column {SPLIT!r}.",
            field=SPLIT,
            remedy="Say of each row whether it is for train or validation.",
        )
    treatment = study.found.effects.treatment
    for part in ("train", "validation"):
        treated = frame.loc[frame[SPLIT] == part, treatment].astype(bool)
        smaller = int(min(treated.sum(), (~treated).sum()))
        # Three folds of the training arms, and each group of the validation patients has to hold both arms.
        if smaller < policy.minimum_arm:
            return (
                f"{len(treated):,} {part} patients, of whom the smaller arm has {smaller}; at least "
                f"{policy.minimum_arm} are needed in each (config/causal.yaml: minimum_arm)"
            )
    return ""


def fit_effect_model(
    frame: pd.DataFrame, study: CausalEstimates, *, policy: CausalPolicy, seed: int = 42
) -> FittedEffects:
    """Fit the model on the training rows of ``frame`` and judge it on the validation rows.

    Args:
        frame: one row per patient with treatment, outcome, confounders of the study and ``split``.
        study: the average effect with its refuters. seed: of folds and models.

    Raises:
        InputError: as :func:`e2i_dagster.causal.rows.causal_rows`.
    """
    started = time.perf_counter()
    effects = study.found.effects
    confounders = list(effects.confounders)
    rows = causal_rows(
        frame,
        treatment=effects.treatment,
        outcome=effects.outcome,
        confounders=confounders,
        maximum_levels=policy.maximum_levels,
    )
    features = model_input(frame, feature_kinds(frame, confounders))
    train, validation = (np.flatnonzero(frame[SPLIT] == part) for part in ("train", "validation"))
    nuisances = fit_nuisances(rows.take(train), floor=policy.propensity_floor, seed=seed)
    scores = nuisances.scores(rows.take(train))
    seen = features.iloc[train].reset_index(drop=True)
    losses = _cross_fitted_losses(seen, scores, nuisances, policy, seed)
    final_stage = min(("linear", "boosting"), key=lambda name: losses[name])
    with quiet_libraries():
        pipeline = _final_stage(final_stage, seen, policy, seed).fit(seen, scores)
        predicted = {
            "train": pipeline.predict(seen),
            "validation": pipeline.predict(features.iloc[validation]),
        }
    held_out = _held_out_scores(rows, train, validation, nuisances, policy, seed)
    judged = assess_predicted_effects(
        rows.take(validation),
        held_out,
        predicted["validation"],
        policy,
        treatment=effects.treatment,
        outcome=effects.outcome,
        model=f"DRLearner ({final_stage})",
        losses=losses,
        seed=seed,
        groups=policy.effect_model.groups,
    )
    model = _trained(
        pipeline,
        LabelledRows(seen, scores),
        LabelledRows(features.iloc[validation].reset_index(drop=True), held_out),
        predicted,
        parameters={
            "final_stage": final_stage,
            **(policy.effect_model.boosting.model_dump() if final_stage == "boosting" else {}),
            "treatment_family": nuisances.treatment_family,
            "outcome_family": nuisances.outcome_family,
            "propensity_floor": policy.propensity_floor,
            "seed": seed,
        },
        seconds=time.perf_counter() - started,
    )
    return FittedEffects(
        model,
        _evaluation(model, study, judged, held_out, predicted["validation"], policy),
        {
            "treatment": effects.treatment,
            "effect_level": policy.level,
            "effect_groups": effect_groups_served(judged, predicted["validation"]),
        },
    )


def effect_groups_served(judged: EffectHeterogeneity, predicted: np.ndarray) -> list[dict[str, float | None]]:
    """Groups by predicted effect as a service reads them, smallest first.

    ``above`` is the predicted effect from which on a row belongs to the group, None for the first; effect,
    lower and upper are what was measured among the validation patients of the group.
    """
    ordered = np.sort(predicted)
    starts = np.cumsum([0, *(group.rows for group in judged.groups[:-1])])
    return [
        {
            "above": float(ordered[start]) if start else None,
            "effect": group.effect,
            "lower": group.lower,
            "upper": group.upper,
        }
        for start, group in zip(starts, judged.groups, strict=True)
    ]


def _final_stage(name: str, features: pd.DataFrame, policy: CausalPolicy, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import Pipeline

    kinds = feature_kinds(features, list(features.columns))
    fixed: dict[str, Any] = {"early_stopping": False, "random_state": seed}
    model = (
        LinearRegression()
        if name == "linear"
        else HistGradientBoostingRegressor(**policy.effect_model.boosting.model_dump(), **fixed)
    )
    return Pipeline([("preprocess", build_preprocessor(kinds, policy.maximum_levels)), ("model", model)])


def _cross_fitted_losses(
    features: pd.DataFrame, scores: np.ndarray, nuisances: Nuisances, policy: CausalPolicy, seed: int
) -> dict[str, float]:
    """Mean squared difference of held-out effect and score: of one effect for all, and of each final stage."""
    found = {name: np.empty(len(scores)) for name in ("constant", "linear", "boosting")}
    with quiet_libraries():
        for seen, held_out in nuisances.splits():
            found["constant"][held_out] = scores[seen].mean()
            for name in ("linear", "boosting"):
                stage = _final_stage(name, features, policy, seed).fit(features.iloc[seen], scores[seen])
                found[name][held_out] = stage.predict(features.iloc[held_out])
    return {name: float(np.mean(np.square(scores - effect))) for name, effect in found.items()}


def _held_out_scores(
    rows: CausalRows,
    train: np.ndarray,
    validation: np.ndarray,
    nuisances: Nuisances,
    policy: CausalPolicy,
    seed: int,
) -> np.ndarray:
    applied = apply_family(
        rows,
        train,
        validation,
        nuisances.treatment_family,
        nuisances.outcome_family,
        floor=policy.propensity_floor,
        seed=seed,
    )
    return applied.scores(rows.take(validation))


def _trained(
    pipeline: Any,
    train: LabelledRows,
    validation: LabelledRows,
    predicted: dict[str, np.ndarray],
    *,
    parameters: dict[str, Any],
    seconds: float,
) -> TrainedModel:
    kinds = feature_kinds(train.features, list(train.features.columns))
    return TrainedModel(
        pipeline=pipeline,
        algorithm="DRLearner",
        problem_type=PROBLEM_TYPE,
        parameters=parameters,
        kinds=kinds,
        nullable=tuple(name for name in kinds if train.features[name].isna().any()),
        threshold=None,
        calibration="none",
        calibration_note="not a probability",
        training_rows=len(train),
        validation_rows=len(validation),
        prevalence=None,
        input_example=invented_example(train.features, kinds),
        data_digests={"train": rows_digest(train), "validation": rows_digest(validation)},
        digest=computed_digest(
            [predicted["train"], predicted["validation"]],
            algorithm="DRLearner",
            problem_type=PROBLEM_TYPE,
            parameters=parameters,
            kinds=kinds,
            threshold=None,
        ),
        seconds=seconds,
        seen_ranges=seen_ranges(train.features, kinds),
    )


def _evaluation(
    model: TrainedModel,
    study: CausalEstimates,
    judged: EffectHeterogeneity,
    scores: np.ndarray,
    predicted: np.ndarray,
    policy: CausalPolicy,
) -> Evaluation:
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + policy.level / 2))

    def around(value: float | None, error: float | None) -> Estimate:
        if value is None or error is None:
            return Estimate(value=None, low=None, high=None)
        return Estimate(value=value, low=value - quantile * error, high=value + quantile * error)

    slope = around(*slope_and_error(scores, predicted))
    everyone, chosen = judged.policies
    metrics = {
        "average_effect": around(float(scores.mean()), float(scores.std(ddof=1)) / np.sqrt(len(scores))),
        "calibration_slope": slope,
        "qini": Estimate(value=judged.qini, low=judged.qini_lower, high=judged.qini_upper),
        "policy_value": Estimate(value=chosen.value, low=chosen.lower, high=chosen.upper),
        "policy_value_everyone": Estimate(value=everyone.value, low=everyone.lower, high=everyone.upper),
    }
    losses = {
        f"cross_fitted_loss_{name}": Estimate(value=value, low=None, high=None)
        for name, value in judged.losses.items()
    }
    criteria = (
        _overlap(study, policy),
        _refuters(study, policy),
        _heterogeneity(slope, judged.slope_p_value, policy),
    )
    return Evaluation(
        algorithm=model.algorithm,
        problem_type=model.problem_type,
        model_digest=model.digest,
        threshold=None,
        level=policy.level,
        bootstrap=policy.bootstrap_draws,
        splits={
            "train": SplitMetrics(n=model.training_rows, positives=None, metrics=losses),
            "validation": SplitMetrics(n=model.validation_rows, positives=None, metrics=metrics),
        },
        baselines=(),
        criteria=criteria,
        accepted=all(criterion.passed for criterion in criteria),
        test_opened=False,
        figure=figure_png(uplift_plot(judged)),
        seconds=model.seconds,
    )


def _overlap(study: CausalEstimates, policy: CausalPolicy) -> CriterionResult:
    found = study.found.effects.overlap
    if found is None:
        raise ValueError("an effect that was estimated has an overlap")
    limit = policy.overlap.maximum_auc
    return CriterionResult(
        name="overlap", rule=f"ROC-AUC of the propensity below {limit:g}", split="train and validation",
        value=found.auc, low=None, high=None, threshold=limit, distance=limit - found.auc,
        passed=not found.refusal, reason=found.refusal,
    )  # fmt: skip


def _refuters(study: CausalEstimates, policy: CausalPolicy) -> CriterionResult:
    required = policy.effect_model.required_refuters
    passed = {refutation.name for refutation in study.refutations if refutation.passed}
    failed = [name for name in required if name not in passed]
    return CriterionResult(
        name="refuters", rule=f"passes {', '.join(required)}", split="train and validation",
        value=float(len(required) - len(failed)), low=None, high=None,
        threshold=float(len(required)), distance=-float(len(failed)),
        passed=not failed, reason=f"the average effect is refuted by {', '.join(failed)}." if failed else "",
    )  # fmt: skip


def _heterogeneity(slope: Estimate, p_value: float | None, policy: CausalPolicy) -> CriterionResult:
    limit = policy.effect_model.maximum_slope_p_value
    passed = p_value is not None and p_value <= limit
    reason = "the model predicts the same effect for every validation patient."
    if p_value is not None:
        reason = (
            f"effects are not shown to differ as predicted: calibration slope {slope.value:.2f} "
            f"({slope.low:.2f} to {slope.high:.2f}) on validation patients, p {p_value:.3f}, at most {limit:g}. "
            "Use the average effect."
        )
    return CriterionResult(
        name="heterogeneity", rule=f"p of the calibration slope at most {limit:g}", split="validation",
        value=p_value, low=None, high=None, threshold=limit,
        distance=None if p_value is None else limit - p_value, passed=passed, reason="" if passed else reason,
    )  # fmt: skip
