"""Whether other training patients would give the same important features: importances of bootstrap refits."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.modelling.estimators import build_estimator, one_thread
from e2i_dagster.modelling.preprocessing import build_preprocessor, column_origins
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.shap_values import exact_values, method_for, sum_to_features
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.fit import TrainedModel

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
) -> tuple[FeatureStability, ...]:
    """Fit preprocessing and estimator again on bootstrap samples of the training patients, with the same parameters.

    Returns:
        The features, the steadiest leading ones first; none where the SHAP values are not exact, where there are more
        training patients than the policy allows, or where it asks for no refit. A sample that lacks an outcome is
        left out.
    """
    rules, train = policy.explanations, rows.train
    if method_for(model.algorithm) == "permutation" or len(train) > rules.maximum_rows:
        return ()
    draw = np.random.default_rng(policy.evaluation.seed)
    shares = []
    for _ in range(rules.bootstrap_refits):
        part = draw.integers(0, len(train), len(train))
        target = train.target[part]
        outcomes = target if model.problem_type in CLASSIFICATION else target > 0
        if model.problem_type != "regression" and len(np.unique(outcomes)) < max(len(model.classes), 2):
            continue
        with one_thread():
            preprocessor = build_preprocessor(model.kinds, policy.preprocessing.max_levels)
            learn = np.asarray(preprocessor.fit_transform(train.features.iloc[part]), dtype="float64")
            fitted = build_estimator(
                model.algorithm, model.problem_type, model.parameters, seed=policy.sampler.seed
            ).fit(learn, target)
            explained = rows.validation.features.iloc[:_EXPLAINED]
            matrix = np.asarray(preprocessor.transform(explained), dtype="float64")
            values = exact_values(fitted, model.algorithm, model.problem_type, learn.mean(axis=0))(
                matrix
            ).values
        origins = column_origins(preprocessor)
        importance = sum(
            np.abs(sum_to_features(values[:, :, output], origins, model.features)).mean(axis=0)
            for output in range(values.shape[2])
        )
        shares.append(importance / max(float(np.sum(importance)), 1e-300))
    if not shares:
        return ()
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
    return tuple(sorted(features, key=lambda each: (-each.leading, -each.low, each.feature)))
