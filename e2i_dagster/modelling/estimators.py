"""The unfitted estimator behind each algorithm's name.

Only classes of scikit-learn, XGBoost and LightGBM are used, so that a stored model loads without pickle
and without this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from e2i_dagster.errors import ConfigError
from e2i_dagster.modelling.problem import CLASSIFICATION

#: Problem types whose models can be built here.
TRAINABLE = ("binary_classification", "multiclass_classification", "regression", "survival")


@contextmanager
def one_thread() -> Iterator[None]:
    """Native libraries on one thread: sums in the same order, so the same model on every machine."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def build_estimator(
    algorithm: str,
    problem_type: str,
    parameters: Mapping[str, Any],
    *,
    seed: int = 42,
) -> Any:
    """Unfitted estimator.

    Args:
        algorithm: a name of ``config/algorithms.yaml``.
        parameters: values of its search space and defaults. Classes are never weighted: weights move every
            probability of a rare outcome and leave the ranking as it is.

    Raises:
        ConfigError: the algorithm does not solve ``problem_type``, or its models are not built here.
    """
    builder = _BUILDERS.get((algorithm, problem_type))
    if builder is None:
        able = sorted(name for name, kind in _BUILDERS if kind == problem_type)
        raise ConfigError(
            f"no model of {algorithm!r} can be trained for {problem_type!r}.",
            field="algorithm",
            value=algorithm,
            remedy=f"Possible: {', '.join(able)}."
            if able
            else f"Possible problem types: {', '.join(TRAINABLE)}.",
        )
    return builder(dict(parameters), seed)


def _xgboost(kind: str, **fixed: Any) -> Any:
    fixed = fixed or {"tree_method": "hist"}

    def build(values: dict[str, Any], seed: int) -> Any:
        import xgboost

        return getattr(xgboost, kind)(**values, **fixed, n_jobs=1, random_state=seed)

    return build


def _lightgbm(kind: str) -> Any:
    def build(values: dict[str, Any], seed: int) -> Any:
        import lightgbm

        fixed = {"deterministic": True, "force_row_wise": True, "n_jobs": 1, "verbose": -1}
        return getattr(lightgbm, kind)(**values, **fixed, random_state=seed)

    return build


def _ensemble(kind: str, **fixed: Any) -> Any:
    def build(values: dict[str, Any], seed: int) -> Any:
        from sklearn import ensemble

        return getattr(ensemble, kind)(**values, **fixed, random_state=seed)

    return build


def _linear(kind: str) -> Any:
    def build(values: dict[str, Any], seed: int) -> Any:
        from sklearn import linear_model

        if kind != "LogisticRegression":
            return getattr(linear_model, kind)(**values, random_state=seed)
        # lbfgs knows no l1 penalty; saga does. A looser tolerance for saga: on standardised
        # columns the probabilities agree to three digits and the fit takes a tenth of the time.
        solver, tolerance = ("lbfgs", 1e-6) if values.get("l1_ratio", 0) == 0 else ("saga", 1e-3)
        return linear_model.LogisticRegression(
            **values, solver=solver, tol=tolerance, max_iter=2000, random_state=seed
        )

    return build


def _classifier(algorithm: str, builder: Any) -> dict[tuple[str, str], Any]:
    """One class of estimator for two outcomes and for several."""
    return {(algorithm, problem): builder for problem in CLASSIFICATION}


_BUILDERS = {
    **_classifier("XGBoost", _xgboost("XGBClassifier")),
    ("XGBoost", "regression"): _xgboost("XGBRegressor"),
    **_classifier("LightGBM", _lightgbm("LGBMClassifier")),
    ("LightGBM", "regression"): _lightgbm("LGBMRegressor"),
    **_classifier("HistGradientBoosting", _ensemble("HistGradientBoostingClassifier", early_stopping=False)),
    ("HistGradientBoosting", "regression"): _ensemble("HistGradientBoostingRegressor", early_stopping=False),
    **_classifier("RandomForest", _ensemble("RandomForestClassifier", n_jobs=1)),
    ("RandomForest", "regression"): _ensemble("RandomForestRegressor", n_jobs=1),
    **_classifier("ExtraTrees", _ensemble("ExtraTreesClassifier", n_jobs=1)),
    ("ExtraTrees", "regression"): _ensemble("ExtraTreesRegressor", n_jobs=1),
    **_classifier("LogisticRegression", _linear("LogisticRegression")),
    ("XGBoost", "survival"): _xgboost("XGBRegressor", objective="survival:cox", tree_method="hist"),
    # XGBoost's linear booster maximises the penalised partial likelihood, coordinate by coordinate.
    ("CoxPH", "survival"): _xgboost(
        "XGBRegressor", objective="survival:cox", booster="gblinear", updater="coord_descent"
    ),
    ("Ridge", "regression"): _linear("Ridge"),
    ("Lasso", "regression"): _linear("Lasso"),
}


def trained_algorithms() -> dict[str, tuple[str, ...]]:
    """The algorithms whose models are trained here, and the problem types of each."""
    names = dict.fromkeys(name for name, _ in _BUILDERS)
    return {name: tuple(kind for other, kind in _BUILDERS if other == name) for name in names}


def parameters_of(algorithm: str) -> tuple[str, ...]:
    """Parameters of the estimator that may be set; those that the product fixes are none."""
    builder = _BUILDERS[algorithm, trained_algorithms()[algorithm][0]]

    def free(name: str) -> bool:
        try:
            builder({name: None}, 0)
        except TypeError:  # given twice: the product sets it
            return False
        return True

    return tuple(sorted(name for name in builder({}, 0).get_params() if free(name)))


def raw_scores(estimator: Any, matrix: np.ndarray, problem_type: str) -> np.ndarray:
    """Probability of the positive class, the predicted number or the log hazard ratio, shape (n,); of several classes
    the probability of each, shape (n, classes)."""
    if problem_type == "multiclass_classification":
        return np.asarray(estimator.predict_proba(matrix), dtype="float64")
    if problem_type == "survival":
        return np.log(np.asarray(estimator.predict(matrix), dtype="float64"))
    if problem_type == "binary_classification":
        return np.asarray(estimator.predict_proba(matrix)[:, 1], dtype="float64")
    return np.asarray(estimator.predict(matrix), dtype="float64")


def uncalibrated(pipeline: Any) -> Any:
    """The fitted estimator inside a pipeline of :func:`train`."""
    model = pipeline.named_steps["model"]
    calibrated = getattr(model, "calibrated_classifiers_", None)
    return (
        model
        if calibrated is None
        else getattr(calibrated[0].estimator, "estimator", calibrated[0].estimator)
    )


__all__ = [
    "TRAINABLE",
    "build_estimator",
    "one_thread",
    "parameters_of",
    "raw_scores",
    "trained_algorithms",
    "uncalibrated",
]
