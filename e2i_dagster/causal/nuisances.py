"""Cross-fitted propensity and outcome regressions on one set of folds, shared by all libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from e2i_dagster.causal.rows import CausalRows

#: CausalML's doubly robust learner rotates three parts; the folds of all libraries are those.
FOLDS = 3
Family = Literal["linear", "boosting"]
#: On everyone, or on those who were treated.
Estimand = Literal["ate", "att"]


@dataclass(frozen=True)
class Nuisances:
    """What is fitted before the effect; predictions are for rows that the model has not seen.

    Attributes:
        folds: three disjoint arrays of row numbers.
        raw_propensity: P(T = 1 | x) as estimated. propensity: clipped. Each (n,).
        outcome_control, outcome_treated: E[Y | x, T = 0] and E[Y | x, T = 1], (n,).
        treatment_family, outcome_family: model that had the lower cross-fitted loss.
    """

    folds: tuple[np.ndarray, ...]
    raw_propensity: np.ndarray
    propensity: np.ndarray
    outcome_control: np.ndarray
    outcome_treated: np.ndarray
    treatment_family: Family
    outcome_family: Family

    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(training rows, held-out rows) of each fold."""
        everyone = np.arange(len(self.propensity))
        return [(np.setdiff1d(everyone, fold), fold) for fold in self.folds]

    def scores(self, rows: CausalRows, estimand: Estimand = "ate") -> np.ndarray:
        """Doubly robust scores (n,) whose mean estimates the effect: treated minus control of :meth:`arm_scores`."""
        treated, control = self.arm_scores(rows, estimand)
        return treated - control

    def arm_scores(self, rows: CausalRows, estimand: Estimand = "ate") -> tuple[np.ndarray, np.ndarray]:
        """Doubly robust scores of the mean outcome under treatment and under control, each (n,).

        ATE: of everyone (Robins, Rotnitzky and Zhao 1994). ATT: of the treated (Hahn 1998), linearised around their
        means, so that the deviation of the scores is that of the estimate; no row is divided by its propensity.
        """
        t, e, y = rows.t, self.propensity, rows.y
        if estimand == "ate":
            treated = self.outcome_treated + t * (y - self.outcome_treated) / e
            return treated, self.outcome_control + (1 - t) * (y - self.outcome_control) / (1 - e)
        share = t.mean()
        mean_treated = y[t == 1].mean()
        counterfactual = (
            t * self.outcome_control + (1 - t) * (y - self.outcome_control) * e / (1 - e)
        ) / share
        mean_control = counterfactual.mean()
        treated = mean_treated + t * (y - mean_treated) / share
        return treated, mean_control + counterfactual - t * mean_control / share


class ConditionalMean:
    """E[Y | x] by a classifier for a binary outcome, by a regressor otherwise; ``predict`` gives means."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, x: Any, y: Any) -> ConditionalMean:
        self.model.fit(x, y)
        return self

    def predict(self, x: Any) -> np.ndarray:
        if hasattr(self.model, "predict_proba"):
            return self.model.predict_proba(x)[:, 1]
        return self.model.predict(x)


def classifier(family: Family, seed: int) -> Any:
    """An unfitted classifier of the family."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if family == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1_000))
    return HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=20, random_state=seed
    )


def regressor(family: Family, seed: int) -> Any:
    """An unfitted regressor of the family."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if family == "linear":
        return make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    return HistGradientBoostingRegressor(
        max_iter=60, learning_rate=0.1, max_leaf_nodes=8, min_samples_leaf=20, random_state=seed
    )


def outcome_model(family: Family, binary: bool, seed: int) -> Any:
    """Classifier for a binary outcome, else regressor."""
    return classifier(family, seed) if binary else regressor(family, seed)


def folds_of(size: int, seed: int) -> tuple[np.ndarray, ...]:
    """The three common folds of ``size`` rows."""
    from sklearn.model_selection import KFold

    parts = KFold(n_splits=FOLDS, shuffle=True, random_state=seed).split(np.zeros(size))
    return tuple(held_out for _, held_out in parts)


def fit_nuisances(rows: CausalRows, *, floor: float, seed: int) -> Nuisances:
    """Fit both families on each fold's complement and keep the one with the lower held-out loss.

    Loss: logarithmic for treatment and binary outcomes, squared error else; of both arms together.
    """
    folds = folds_of(rows.size, seed)
    families: tuple[Family, ...] = ("linear", "boosting")
    with quiet_libraries():
        propensities = {name: _propensity(rows, folds, name, seed) for name in families}
        outcomes = {name: _outcomes(rows, folds, name, seed) for name in families}
    treatment_family = min(families, key=lambda name: _log_loss(rows.t, propensities[name]))
    outcome_family = min(families, key=lambda name: _outcome_loss(rows, *outcomes[name]))
    raw = propensities[treatment_family]
    return Nuisances(
        folds,
        raw,
        np.clip(raw, floor, 1 - floor),
        *outcomes[outcome_family],
        treatment_family,
        outcome_family,
    )


def fit_family(
    rows: CausalRows, treatment_family: Family, outcome_family: Family, *, floor: float, seed: int
) -> Nuisances:
    """As :func:`fit_nuisances` with families that are chosen already."""
    folds = folds_of(rows.size, seed)
    with quiet_libraries():
        raw = _propensity(rows, folds, treatment_family, seed)
        outcomes = _outcomes(rows, folds, outcome_family, seed)
    return Nuisances(
        folds,
        raw,
        np.clip(raw, floor, 1 - floor),
        *outcomes,
        treatment_family,
        outcome_family,
    )


def apply_family(
    rows: CausalRows,
    seen: np.ndarray,
    held_out: np.ndarray,
    treatment_family: Family,
    outcome_family: Family,
    *,
    floor: float,
    seed: int,
) -> Nuisances:
    """Nuisances of the rows ``held_out`` by models fitted on the rows ``seen`` (both row numbers)."""
    x = rows.x[held_out]
    with quiet_libraries():
        treatment = classifier(treatment_family, seed).fit(rows.x[seen], rows.t[seen])
        raw = treatment.predict_proba(x)[:, 1]
        control, treated = (
            arm_mean(rows, seen[rows.t[seen] == arm], outcome_family, seed).predict(x) for arm in (0, 1)
        )
    return Nuisances(
        (np.arange(len(held_out)),),
        raw,
        np.clip(raw, floor, 1 - floor),
        control,
        treated,
        treatment_family,
        outcome_family,
    )


def _propensity(rows: CausalRows, folds: tuple[np.ndarray, ...], family: Family, seed: int) -> np.ndarray:
    found = np.empty(rows.size)
    for held_out in folds:
        seen = np.ones(rows.size, dtype=bool)
        seen[held_out] = False
        model = classifier(family, seed).fit(rows.x[seen], rows.t[seen])
        found[held_out] = model.predict_proba(rows.x[held_out])[:, 1]
    return found


def _outcomes(
    rows: CausalRows, folds: tuple[np.ndarray, ...], family: Family, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    found = (np.empty(rows.size), np.empty(rows.size))
    for held_out in folds:
        seen = np.ones(rows.size, dtype=bool)
        seen[held_out] = False
        for arm in (0, 1):
            chosen = seen & (rows.t == arm)
            found[arm][held_out] = arm_mean(rows, chosen, family, seed).predict(rows.x[held_out])
    return found


def arm_mean(rows: CausalRows, chosen: np.ndarray, family: Family, seed: int) -> Any:
    """E[Y | x] fitted on the ``chosen`` rows; their mean where they all have the same outcome."""
    from sklearn.dummy import DummyRegressor

    y = rows.y[chosen]
    if np.ptp(y) == 0:
        return DummyRegressor().fit(rows.x[chosen], y)
    return ConditionalMean(outcome_model(family, rows.binary, seed)).fit(rows.x[chosen], y)


def _log_loss(observed: np.ndarray, predicted: np.ndarray) -> float:
    p = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(-np.mean(observed * np.log(p) + (1 - observed) * np.log(1 - p)))


def _outcome_loss(rows: CausalRows, control: np.ndarray, treated: np.ndarray) -> float:
    predicted = np.where(rows.t == 1, treated, control)
    if rows.binary:
        return _log_loss(rows.y, predicted)
    return float(np.mean(np.square(rows.y - predicted)))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """One thread, no warnings or log lines of the third-party libraries, and matplotlib left as it was.

    Results of forests and linear algebra must not depend on the number of cores; the libraries' notes on
    their own internals are nothing that a user can act on. What fails is raised all the same.
    """
    import matplotlib as mpl
    from threadpoolctl import threadpool_limits

    noisy = [logging.getLogger(name) for name in ("dowhy", "causalml", "econml", "shap")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), threadpool_limits(limits=1), mpl.rc_context():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)
