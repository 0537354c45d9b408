"""Whose effect is larger, whether that is more than noise, and who to treat.

Every row's predicted effect comes from models that did not see the row; groups and curves are then judged by the
doubly robust scores, so that a model's optimism cannot show (Chernozhukov et al. 2018; Yadlowsky et al. 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from e2i_dagster.causal.libraries import forest_of
from e2i_dagster.causal.nuisances import Family, Nuisances, outcome_model, quiet_libraries, regressor
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.cohorts.disclosure import is_small
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.policy_files.base import PolicyModel

GROUPS = 5


class EffectGroup(PolicyModel):
    """One fifth (or other part) of the rows by predicted effect, smallest first; effect by doubly robust scores."""

    group: int
    rows: int
    predicted: float
    effect: float
    lower: float
    upper: float


class Contrast(PolicyModel):
    """Mean of a confounder in the fifth with the smallest and the largest predicted effect.

    Left out are indicators that 1 to 10 patients of such a fifth have, or have not.
    """

    confounder: str
    smallest: float
    largest: float
    standardized_difference: float


class UpliftPoint(PolicyModel):
    """Gain per unit of the population when the ``share`` with the largest predicted effect is treated.

    ``gain`` and its interval are above treating nobody; ``random`` treats the same share by lot.
    """

    share: float
    gain: float
    lower: float
    upper: float
    random: float


class PolicyValue(PolicyModel):
    """Mean outcome gained over treating nobody, the cost of treatment taken off."""

    policy: str
    share_treated: float
    value: float
    lower: float
    upper: float


class EffectHeterogeneity(PolicyModel):
    """Heterogeneous effects of one treatment.

    Attributes:
        state: ``estimated`` or ``not_estimable`` with ``reason``.
        model: whose predicted effects were judged. losses: by model, mean squared difference of held-out
            effect and doubly robust score (lower is better; most of it is noise common to all).
        calibration_slope, slope_p_value: of the scores on the predicted effects: 1 is calibrated, 0 no
            heterogeneity found; one-sided p.
        qini, qini_lower, qini_upper: area between uplift curve and random treatment.
        groups, contrasts, curve, policies: as their types say. cost: of treating one unit.
    """

    treatment: str
    outcome: str
    state: str
    reason: str = ""
    rows: int = 0
    model: str = ""
    losses: dict[str, float] = {}
    calibration_slope: float | None = None
    slope_p_value: float | None = None
    qini: float | None = None
    qini_lower: float | None = None
    qini_upper: float | None = None
    groups: tuple[EffectGroup, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    curve: tuple[UpliftPoint, ...] = ()
    policies: tuple[PolicyValue, ...] = ()
    cost: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """All fields as plain values."""
        return self.model_dump(mode="json")

    def to_metadata(self) -> dict[str, Any]:
        """Findings, tables and the uplift curve for the UI."""
        from e2i_dagster.causal.pages import heterogeneity_metadata

        return heterogeneity_metadata(self)


def forest_effects(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> np.ndarray:
    """Out-of-bag effects of EconML's CausalForestDML, (n,)."""
    with quiet_libraries():
        forest = forest_of(rows, nuisances, policy, seed)
        return np.ravel(forest.model_cate.oob_predict(rows.x))


def dr_learner_effects(rows: CausalRows, nuisances: Nuisances, family: Family, seed: int) -> np.ndarray:
    """Cross-fitted effects of a DR-learner: scores regressed on confounders (Kennedy 2023), (n,)."""
    scores = nuisances.scores(rows)
    effects = np.empty(rows.size)
    with quiet_libraries():
        for seen, held_out in nuisances.splits():
            effects[held_out] = (
                regressor(family, seed).fit(rows.x[seen], scores[seen]).predict(rows.x[held_out])
            )
    return effects


def s_learner_effects(rows: CausalRows, nuisances: Nuisances, seed: int) -> np.ndarray:
    """Cross-fitted effects of one outcome model with the treatment as a feature, (n,): the peer of the others."""
    effects = np.empty(rows.size)
    design = np.column_stack([rows.x, rows.t])
    with quiet_libraries():
        for seen, held_out in nuisances.splits():
            model = outcome_model("boosting", rows.binary, seed).fit(design[seen], rows.y[seen])
            predict = (lambda x: model.predict_proba(x)[:, 1]) if rows.binary else model.predict  # noqa: B023
            size = len(held_out)
            effects[held_out] = predict(np.column_stack([rows.x[held_out], np.ones(size)])) - predict(
                np.column_stack([rows.x[held_out], np.zeros(size)])
            )
    return effects


def assess_heterogeneity(
    rows: CausalRows,
    nuisances: Nuisances,
    policy: CausalPolicy,
    *,
    treatment: str,
    outcome: str,
    seed: int,
) -> EffectHeterogeneity:
    """Effects by forest and DR-learners; the one with the lowest held-out loss is judged further."""
    scores = nuisances.scores(rows)
    candidates = {
        "CausalForestDML": forest_effects(rows, nuisances, policy, seed),
        "DRLearner (linear)": dr_learner_effects(rows, nuisances, "linear", seed),
        "DRLearner (boosting)": dr_learner_effects(rows, nuisances, "boosting", seed),
    }
    losses = {name: float(np.mean(np.square(scores - effect))) for name, effect in candidates.items()}
    model = min(losses, key=lambda name: losses[name])
    return assess_predicted_effects(
        rows, scores, candidates[model], policy, treatment=treatment, outcome=outcome, model=model,
        losses=losses, seed=seed,
    )  # fmt: skip


def assess_predicted_effects(
    rows: CausalRows,
    scores: np.ndarray,
    predicted: np.ndarray,
    policy: CausalPolicy,
    *,
    treatment: str,
    outcome: str,
    model: str,
    losses: dict[str, float],
    seed: int,
    groups: int = GROUPS,
) -> EffectHeterogeneity:
    """Effects ``predicted`` (n,) for rows that their ``model`` has not seen, judged by doubly robust ``scores``.

    Args:
        losses: of the models that were candidates. groups: of equal size by predicted effect.
    """
    slope, p_value = calibration_slope(scores, predicted)
    qini, qini_lower, qini_upper = qini_area(scores, predicted, policy, seed)
    return EffectHeterogeneity(
        treatment=treatment,
        outcome=outcome,
        state="estimated",
        rows=rows.size,
        model=model,
        losses=losses,
        calibration_slope=slope,
        slope_p_value=p_value,
        qini=qini,
        qini_lower=qini_lower,
        qini_upper=qini_upper,
        groups=effect_groups(scores, predicted, policy.level, groups),
        contrasts=_contrasts(rows, predicted),
        curve=uplift_curve(scores, predicted, policy.level),
        policies=policy_values(scores, predicted, policy),
        cost=policy.treatment_cost,
    )


def calibration_slope(scores: np.ndarray, predicted: np.ndarray) -> tuple[float | None, float | None]:
    """Slope of the scores on the predicted effects and its one-sided p; None where effects do not vary.

    The best linear predictor of Chernozhukov et al. (2018), heteroscedasticity-robust (HC1).
    """
    from scipy.stats import norm

    slope, error = slope_and_error(scores, predicted)
    if slope is None or error is None:
        return None, None
    return slope, float(norm.sf(slope / error))


def slope_and_error(scores: np.ndarray, predicted: np.ndarray) -> tuple[float | None, float | None]:
    """The calibration slope and its standard error; None where effects do not vary."""
    centred = predicted - predicted.mean()
    total = float(np.square(centred).sum())
    if total < 1e-12 * len(predicted):
        return None, None
    slope = float(centred @ scores) / total
    residual = scores - scores.mean() - slope * centred
    size = len(scores)
    error = float(np.sqrt(np.square(centred * residual).sum() * size / (size - 2))) / total
    return slope, error


def effect_groups(
    scores: np.ndarray, predicted: np.ndarray, level: float, groups: int = GROUPS
) -> tuple[EffectGroup, ...]:
    """Equal parts of the rows by predicted effect, with effects and intervals from the scores."""
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + level / 2))
    found = []
    parts = np.array_split(np.argsort(predicted, kind="stable"), groups)
    for number, members in enumerate(parts, start=1):
        effect = float(scores[members].mean())
        half = quantile * float(scores[members].std(ddof=1)) / np.sqrt(len(members))
        found.append(
            EffectGroup(
                group=number, rows=len(members), predicted=float(predicted[members].mean()),
                effect=effect, lower=effect - half, upper=effect + half,
            )
        )  # fmt: skip
    return tuple(found)


def _contrasts(rows: CausalRows, predicted: np.ndarray) -> tuple[Contrast, ...]:
    parts = np.array_split(np.argsort(predicted, kind="stable"), GROUPS)
    smallest, largest = rows.x[parts[0]].mean(axis=0), rows.x[parts[-1]].mean(axis=0)
    deviation = rows.x.std(axis=0, ddof=1)
    differences = (largest - smallest) / np.where(deviation > 0, deviation, 1.0)
    order = np.argsort(-np.abs(differences), kind="stable")
    return tuple(
        Contrast(
            confounder=rows.names[k], smallest=float(smallest[k]), largest=float(largest[k]),
            standardized_difference=float(differences[k]),
        )
        for k in order
        if not any(_shows_small_cell(rows.x[part, k]) for part in (parts[0], parts[-1]))
    )  # fmt: skip


def _shows_small_cell(values: np.ndarray) -> bool:
    """The mean of an indicator would give away a count of 1 to 10."""
    if not np.isin(values, (0.0, 1.0)).all():
        return False
    ones = int(values.sum())
    return is_small(ones) or is_small(len(values) - ones)


def uplift_curve(scores: np.ndarray, predicted: np.ndarray, level: float) -> tuple[UpliftPoint, ...]:
    """Gain of treating the share with the largest predicted effects, at 21 shares from 0 to 1."""
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + level / 2))
    size, ordered = len(scores), scores[np.argsort(-predicted, kind="stable")]
    points = []
    for share in np.linspace(0, 1, 21):
        contribution = np.where(np.arange(size) < round(share * size), ordered, 0.0)
        gain = float(contribution.mean())
        half = quantile * float(contribution.std(ddof=1)) / np.sqrt(size)
        points.append(
            UpliftPoint(
                share=float(share), gain=gain, lower=gain - half, upper=gain + half,
                random=float(share * scores.mean()),
            )
        )  # fmt: skip
    return tuple(points)


def qini_area(
    scores: np.ndarray, predicted: np.ndarray, policy: CausalPolicy, seed: int
) -> tuple[float, float, float]:
    """Area between the uplift curve and random treatment, with its percentile bootstrap interval.

    Equal to the mean of ``(score - mean score) * (1 - rank / n)``, rank 0 for the largest predicted effect.
    """
    order = np.argsort(-predicted, kind="stable")
    ordered = scores[order]
    size = len(scores)
    generator = np.random.default_rng(seed)

    def area(sample: np.ndarray) -> float:
        return float(np.mean((sample - sample.mean()) * (1 - np.arange(size) / size)))

    # Sorting the drawn positions keeps the order by predicted effect.
    drawn = [area(ordered[np.sort(generator.integers(0, size, size))]) for _ in range(policy.bootstrap_draws)]
    lower, upper = np.quantile(drawn, [(1 - policy.level) / 2, (1 + policy.level) / 2])
    return area(ordered), float(lower), float(upper)


def policy_values(scores: np.ndarray, predicted: np.ndarray, policy: CausalPolicy) -> tuple[PolicyValue, ...]:
    """Value of treating everyone, and of treating whose predicted effect exceeds the cost."""
    from scipy.stats import norm

    quantile = float(norm.ppf(0.5 + policy.level / 2))
    chosen = {
        "everyone": np.ones(len(scores), dtype=bool),
        "effect above cost": predicted > policy.treatment_cost,
    }
    found = []
    for name, treated in chosen.items():
        gains = np.where(treated, scores - policy.treatment_cost, 0.0)
        value = float(gains.mean())
        half = quantile * float(gains.std(ddof=1)) / np.sqrt(len(scores))
        found.append(
            PolicyValue(
                policy=name, share_treated=float(treated.mean()), value=value,
                lower=value - half, upper=value + half,
            )
        )  # fmt: skip
    return tuple(found)
