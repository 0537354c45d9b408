"""One trial: an estimator fitted tree by tree, reported on the way, and stopped when it is pointless to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2i_dagster.modelling.estimators import raw_scores

#: Takes the number of trees and the metric; true when the pruner stops the trial there.
Report = Callable[[int, float], bool]
#: Takes predictions for the validation rows, as :func:`raw_scores` gives them; larger is better.
Metric = Callable[[np.ndarray], float]
#: Parameters that count trees or rounds.
TREES = ("n_estimators", "max_iter")


@dataclass(frozen=True)
class TrialRows:
    """Preprocessed rows of a study: shapes (n, p) and (n,)."""

    train: np.ndarray
    train_target: np.ndarray
    validation: np.ndarray
    validation_target: np.ndarray


@dataclass(frozen=True)
class FittedTrial:
    """How a trial ended.

    Attributes:
        value: metric on the validation rows; None when it was pruned.
        rounds: boosting rounds that were kept, when fewer than asked for; else None.
    """

    value: float | None
    rounds: int | None = None


def fit_trial(
    estimator: Any,
    rows: TrialRows,
    report: Report,
    metric: Metric,
    *,
    problem_type: str,
    interval: int,
    patience: int,
) -> FittedTrial:
    """Fit ``estimator`` on the training rows and score it on the validation rows.

    XGBoost and LightGBM grow in one call, with reports from inside; they end when the loss on the validation rows
    has not fallen for ``patience`` rounds, and the best round counts. Ensembles of scikit-learn grow ``interval``
    trees at a time. Linear models have no steps.

    Args:
        interval: trees between two reports.
    """

    def score() -> float:
        return metric(raw_scores(estimator, rows.validation, problem_type))

    match type(estimator).__module__.split(".")[0], tree_parameter(estimator):
        case "xgboost", str():
            return _fit_xgboost(estimator, rows, report, metric, score, interval, patience)
        case "lightgbm", str():
            return _fit_lightgbm(estimator, rows, report, metric, score, interval, patience)
        case "sklearn", str() as name:
            return _grow(estimator, rows, report, score, interval, name)
        case _:
            estimator.fit(rows.train, rows.train_target)
            return FittedTrial(score())


def tree_parameter(estimator: Any) -> str | None:
    """Name of the parameter that counts the trees of ``estimator``; None for one that is no ensemble of trees.

    A linear model of scikit-learn also has ``max_iter``, which counts no trees.
    """
    if ".linear_model" in type(estimator).__module__:
        return None
    return next((name for name in TREES if name in estimator.get_params()), None)


def _fit_xgboost(
    estimator: Any,
    rows: TrialRows,
    report: Report,
    metric: Metric,
    score: Callable[[], float],
    interval: int,
    patience: int,
) -> FittedTrial:
    import xgboost
    from xgboost.callback import TrainingCallback

    judged, total = xgboost.DMatrix(rows.validation), estimator.get_params()["n_estimators"]

    class Reporter(TrainingCallback):
        """Reports every ``interval`` rounds, also the state that the estimator does not show yet."""

        pruned = False

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            done = epoch + 1
            if done % interval == 0 and done < total:
                self.pruned = report(done, metric(model.predict(judged)))
            return self.pruned

    reporter = Reporter()
    estimator.set_params(callbacks=[reporter], early_stopping_rounds=patience)
    estimator.fit(
        rows.train,
        rows.train_target,
        eval_set=[(rows.validation, rows.validation_target)],
        verbose=False,
    )
    return FittedTrial(None) if reporter.pruned else _kept(score(), estimator.best_iteration + 1, total)


def _fit_lightgbm(
    estimator: Any,
    rows: TrialRows,
    report: Report,
    metric: Metric,
    score: Callable[[], float],
    interval: int,
    patience: int,
) -> FittedTrial:
    import lightgbm
    import optuna

    total = estimator.get_params()["n_estimators"]

    def reporter(state: Any) -> None:
        done = state.iteration + 1
        if (
            done % interval == 0
            and done < total
            and report(done, metric(state.model.predict(rows.validation)))
        ):
            raise optuna.TrialPruned

    try:
        estimator.fit(
            rows.train,
            rows.train_target,
            eval_X=rows.validation,
            eval_y=rows.validation_target,
            callbacks=[reporter, lightgbm.early_stopping(patience, verbose=False)],
        )
    except optuna.TrialPruned:
        return FittedTrial(None)
    return _kept(score(), estimator.best_iteration_ or total, total)


def _grow(
    estimator: Any, rows: TrialRows, report: Report, score: Callable[[], float], interval: int, name: str
) -> FittedTrial:
    total = estimator.get_params()[name]
    estimator.set_params(warm_start=True)
    for done in range(interval, total, interval):
        estimator.set_params(**{name: done}).fit(rows.train, rows.train_target)
        if report(done, score()):
            return FittedTrial(None)
    estimator.set_params(**{name: total}).fit(rows.train, rows.train_target)
    return FittedTrial(score())


def _kept(value: float, rounds: int, total: int) -> FittedTrial:
    return FittedTrial(value, rounds if rounds < total else None)
