"""Whether other training patients would give the same important features: importances of bootstrap refits."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.modelling.estimators import one_thread
from e2i_dagster.modelling.preprocessing import column_origins
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.shap_values import exact_values, method_for, sum_to_features
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.fit import TrainedModel
from e2i_dagster.training.refit import refit

#: A feature leads when it is among so many.
LEADING = 5
#: Validation patients whose values are computed in each refit.
_EXPLAINED = 500


class FeatureStability(BaseModel):
    """The importance of one feature over the refits.

    Attributes:
        low, high: smallest and largest share of the sum of all importances.
        leading: part of the refits in which the feature is among the five most important ones.
        refits: how many there were.
    """

    model_config = ConfigDict(frozen=True)

    feature: str
    low: float
    high: float
    leading: float
    refits: int


def importance_stability(
    model: TrainedModel, rows: VisibleRows, policy: OptunaPolicy
) -> tuple[tuple[FeatureStability, ...], str]:
    """Fit preprocessing and estimator again on bootstrap samples of the training patients, with the same parameters.

    Returns:
        The features, the steadiest leading ones first, and an empty text; or no feature, and why not. A sample that
        lacks an outcome is left out.
    """
    rules, train = policy.explanations, rows.train
    if method_for(model.algorithm) == "permutation":
        return (), f"the SHAP values of {model.algorithm} are not exact"
    if len(train) > rules.maximum_rows:
        return (), f"more than {rules.maximum_rows} training rows (explanations.maximum_rows)"
    if not rules.bootstrap_refits:
        return (), "explanations.bootstrap_refits is 0 in optuna_config.yaml"
    explained = rows.validation.features.iloc[:_EXPLAINED]
    patients = int(train.whose.max(initial=-1)) + 1
    draw = np.random.default_rng(policy.evaluation.seed)
    shares = []
    for _ in range(rules.bootstrap_refits):
        drawn = np.bincount(draw.integers(0, patients, patients), minlength=patients)
        part = np.repeat(np.arange(len(train)), drawn[train.whose])
        target = train.target[part]
        outcomes = target if model.problem_type in CLASSIFICATION else target > 0
        if model.problem_type != "regression" and len(np.unique(outcomes)) < max(len(model.classes), 2):
            continue
        with one_thread():
            again = refit(model, train, part, policy)
            explainer = exact_values(
                again.estimator, model.algorithm, model.problem_type, again.learned.mean(axis=0)
            )
            values = explainer(again.matrix(explained)).values
        origins = column_origins(again.preprocessor)
        importance = sum(
            np.abs(sum_to_features(values[:, :, output], origins, model.features)).mean(axis=0)
            for output in range(values.shape[2])
        )
        shares.append(importance / max(float(np.sum(importance)), 1e-300))
    if not shares:
        return (), "no bootstrap sample has every outcome"
    found = np.array(shares)
    ranks = (-found).argsort(axis=1, kind="stable").argsort(axis=1)
    leading = (ranks < LEADING).mean(axis=0)
    features = [
        FeatureStability(
            feature=name,
            low=float(found[:, place].min()),
            high=float(found[:, place].max()),
            leading=float(leading[place]),
            refits=len(found),
        )
        for place, name in enumerate(model.features)
    ]
    return tuple(sorted(features, key=lambda each: (-each.leading, -each.low, each.feature))), ""
