"""Case mix: how far the rows of a validation are from those that a model was fitted on."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import is_small
from e2i_dagster.config.optuna_config import EvaluationPolicy, OptunaPolicy
from e2i_dagster.modelling.estimators import build_estimator, one_thread
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.survival import time_and_event
from e2i_dagster.training import TrainedModel
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.metrics import binary_metrics, interval, resamples
from e2i_dagster.validation.records import CaseMix, Distribution, FeatureComparison, LinearPredictor

_TINY = 1e-12
_FOLDS = 5
_NONE = Estimate(value=None, low=None, high=None)


def case_mix(
    model: TrainedModel, development: LabelledRows, validation: LabelledRows, policy: OptunaPolicy
) -> CaseMix:
    """Compare the rows that ``model`` was fitted on with those that it is judged on.

    Features and linear predictor: mean, standard deviation and standardized difference, that of the membership
    model: Debray et al., Journal of Clinical Epidemiology 68:279 (2015), steps 1 and 2.

    Args:
        development: the training rows of the model.
        validation: rows of other patients, with the same features.
    """
    rules = policy.evaluation
    return CaseMix(
        features=tuple(
            comparison
            for name, kind in model.kinds.items()
            for comparison in _compare(
                name, kind == "number", development.features[name], validation.features[name], rules.level
            )
        ),
        linear_predictor=_linear_predictors(model, development, validation, rules),
        membership=_membership(model, development, validation, policy),
    )


def standardized_difference(
    first: tuple[float, float, int], second: tuple[float, float, int], level: float
) -> Estimate:
    """Difference of two means, second minus first, in units of the root of the mean variance.

    Austin, Statistics in Medicine 28:3083 (2009), with the large-sample interval of Hedges and Olkin (1985).

    Args:
        first, second: mean, standard deviation and number of values of each group.

    Returns:
        Not estimable where neither group varies.
    """
    (mean, sd, n), (other_mean, other_sd, other_n) = first, second
    spread = np.sqrt((sd**2 + other_sd**2) / 2)
    if not (n and other_n and spread > 0):
        return _NONE
    value = (other_mean - mean) / spread
    error = np.sqrt((n + other_n) / (n * other_n) + value**2 / (2 * (n + other_n)))
    width = NormalDist().inv_cdf((1 + level) / 2)
    return Estimate.of(value, value - width * error, value + width * error)


def _compare(
    name: str, number: bool, development: pd.Series, validation: pd.Series, level: float
) -> list[FeatureComparison]:
    """One comparison of a number, one for each level of a text that is frequent enough to be shown."""
    groups = (development, validation)
    if number:
        seen = [group.dropna() for group in groups]
        parts = [(float(group.mean()), float(group.std(ddof=0)), len(group)) for group in seen]
        hidden = any(_tells_of_few(group) for group in seen)
        return [
            FeatureComparison(
                feature=name,
                development=_distribution(parts[0], development, hidden),
                validation=_distribution(parts[1], validation, hidden),
                difference=_NONE if hidden else standardized_difference(parts[0], parts[1], level),
            )
        ]
    found = []
    for value in sorted({*development.dropna().unique(), *validation.dropna().unique()}):
        counts = [int((group == value).sum()) for group in groups]
        # The rest is a cell, too.
        rests = [len(group) - count for group, count in zip(groups, counts, strict=True)]
        if any(map(is_small, counts + rests)):
            continue
        shares = [count / len(group) for count, group in zip(counts, groups, strict=True)]
        parts = [
            (share, float(np.sqrt(share * (1 - share))), len(group))
            for share, group in zip(shares, groups, strict=True)
        ]
        found.append(
            FeatureComparison(
                feature=name,
                level=str(value),
                development=Distribution(mean=shares[0]),
                validation=Distribution(mean=shares[1]),
                difference=standardized_difference(parts[0], parts[1], level),
            )
        )
    return found


def _tells_of_few(values: pd.Series) -> bool:
    """Whether the mean of these numbers tells how few patients have one of two values, or is of few patients."""
    counts = values.value_counts()
    return is_small(len(values)) or (len(counts) == 2 and bool(counts.map(is_small).any()))


def _distribution(part: tuple[float, float, int], group: pd.Series, hidden: bool) -> Distribution:
    mean, sd, n = part
    missing = len(group) - n
    known = not hidden and n > 0
    return Distribution(
        mean=mean if known else None,
        sd=sd if known else None,
        missing=None if is_small(missing) or is_small(n) else missing / len(group),
    )


def _linear_predictors(
    model: TrainedModel, development: LabelledRows, validation: LabelledRows, rules: EvaluationPolicy
) -> tuple[LinearPredictor, ...]:
    groups = (development, validation)
    with one_thread():
        scores = [model.scores(rows.features) for rows in groups]
    scale = "log odds"
    if model.risk is not None:
        scale = "log cumulative hazard"
        scores = [np.log(-np.log1p(-np.clip(score, _TINY, 1 - _TINY))) for score in scores]
    elif model.problem_type in CLASSIFICATION:
        clipped = [np.clip(score, _TINY, 1 - _TINY) for score in scores]
        scores = [np.log(score) - np.log1p(-score) for score in clipped]
    else:
        scale = "predicted number"
    found = []
    for place, name in enumerate(model.classes or ("",)):
        values = [score[:, place] if model.classes else score for score in scores]
        means, deviations = zip(
            *(_moments(score, rows, rules) for score, rows in zip(values, groups, strict=True)), strict=True
        )
        parts = [(float(score.mean()), float(score.std()), len(score)) for score in values]
        found.append(
            LinearPredictor(
                name=name,
                scale=scale,
                development_mean=means[0],
                development_sd=deviations[0],
                validation_mean=means[1],
                validation_sd=deviations[1],
                difference=standardized_difference(parts[0], parts[1], rules.level),
            )
        )
    return tuple(found)


def _moments(values: np.ndarray, rows: LabelledRows, rules: EvaluationPolicy) -> tuple[Estimate, Estimate]:
    """Mean and standard deviation with percentile intervals of the bootstrap over patients."""
    center = values.mean()
    means, deviations = [], []
    for block in resamples(len(values), rules.bootstrap, rules.seed, rows.patients):
        n = block.sum(axis=1)
        mean = block @ (values - center) / n
        means.append(mean + center)
        deviations.append(np.sqrt(np.maximum(block @ (values - center) ** 2 / n - mean**2, 0.0)))
    return (
        Estimate.of(float(center), *interval(np.concatenate(means), rules.level)),
        Estimate.of(float(values.std()), *interval(np.concatenate(deviations), rules.level)),
    )


def _membership(
    model: TrainedModel, development: LabelledRows, validation: LabelledRows, policy: OptunaPolicy
) -> Estimate:
    """c statistic of a logistic regression that tells validation from development rows by features and outcome.

    Its predictions are cross-fitted, so that chance alone gives one half; no patient is in two folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rules = policy.evaluation
    groups = (development, validation)
    features = pd.concat([rows.features for rows in groups], ignore_index=True)
    outcome = np.concatenate([_outcome_columns(model, rows) for rows in groups])
    member = np.repeat([0, 1], [len(rows) for rows in groups])
    whose = np.concatenate([development.whose, validation.whose + len(development)])
    chance = np.zeros(len(member))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=rules.seed)
    with one_thread():
        for learn, held_out in folds.split(features, member, whose):
            preprocessor = build_preprocessor(model.kinds, policy.preprocessing.max_levels).fit(
                features.iloc[learn]
            )
            center, scale = outcome[learn].mean(axis=0), outcome[learn].std(axis=0)
            scaled = (outcome - center) / np.where(scale > 0, scale, 1.0)

            def matrix(
                rows: np.ndarray, preprocessor: Any = preprocessor, scaled: Any = scaled
            ) -> np.ndarray:
                return np.column_stack([preprocessor.transform(features.iloc[rows]), scaled[rows]])

            fitted = build_estimator(
                "LogisticRegression",
                "binary_classification",
                {"C": 1.0, "l1_ratio": 0.0},
                seed=policy.sampler.seed,
            ).fit(matrix(learn), member[learn])
            chance[held_out] = fitted.predict_proba(matrix(held_out))[:, 1]
    repeated = any(rows.patients is not None for rows in groups)
    numbered = np.unique(whose, return_inverse=True)[1] if repeated else None
    blocks = resamples(len(member), rules.bootstrap, rules.seed, numbered)
    drawn = np.concatenate([binary_metrics(member, chance, 0.5, block)["roc_auc"] for block in blocks])
    value = binary_metrics(member, chance, 0.5)["roc_auc"][0]
    return Estimate.of(float(value), *interval(drawn, rules.level))


def _outcome_columns(model: TrainedModel, rows: LabelledRows) -> np.ndarray:
    """The outcome as columns of a regression: shape (n, columns)."""
    if model.classes:
        return np.eye(len(model.classes))[rows.target][:, 1:]
    if model.risk is not None:
        return np.column_stack(time_and_event(rows.target)).astype("float64")
    return rows.target.astype("float64")[:, None]
