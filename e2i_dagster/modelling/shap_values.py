"""Exact SHAP values of a fitted estimator: tree and linear models.

What is explained is the estimator before calibration, on the matrix it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from e2i_dagster.modelling.problem import CLASSIFICATION

Method = Literal["tree", "linear", "permutation"]

_TREES = ("XGBoost", "LightGBM", "HistGradientBoosting", "RandomForest", "ExtraTrees")
_LINEAR = ("LogisticRegression", "Ridge", "Lasso", "CoxPH")

#: Algorithms whose values are exact.
EXACT = (*_TREES, *_LINEAR)
#: Algorithms whose library adds up 32-bit numbers; the others use 64 bits.
SINGLE_PRECISION = ("XGBoost", "CoxPH")


class ShapValues(NamedTuple):
    """SHAP values of n rows for k outputs: one for each of several classes, else 1.

    Attributes:
        values: of the columns of the matrix, shape (n, columns, k).
        base: what the values are counted from, shape (k,).
        output: what base and values add up to, as the estimator itself gives it, shape (n, k).
        scale: ``log-odds``, ``probability``, ``outcome`` or ``log hazard ratio``.
    """

    values: np.ndarray
    base: np.ndarray
    output: np.ndarray
    scale: str


def method_for(algorithm: str) -> Method:
    """Tree values for tree models, linear ones for linear models, permutation for anything else."""
    if algorithm in _TREES:
        return "tree"
    return "linear" if algorithm in _LINEAR else "permutation"


def exact_values(
    estimator: Any, algorithm: str, problem_type: str, average: Sequence[float] | np.ndarray
) -> Callable[[np.ndarray], ShapValues]:
    """A function from a matrix (n, columns) to its SHAP values.

    Trees: path-dependent tree SHAP (Lundberg et al. 2020), counted from the average over the training rows that the
    trees hold. Linear models: weight times distance from ``average``, exact for independent columns (Lundberg and Lee
    2017, corollary 1).

    Args:
        estimator: fitted, not calibrated.
        average: of the columns, which linear values are counted from, shape (columns,); trees do not read it.

    Raises:
        ValueError: values of ``algorithm`` are not exact.
    """
    method = method_for(algorithm)
    if method == "permutation":
        raise ValueError(f"SHAP values of {algorithm} are not exact")
    if method == "linear":
        return _linear(estimator, problem_type, np.asarray(average, dtype="float64"))
    return _tree(estimator, algorithm, problem_type)


def sum_to_features(values: np.ndarray, origins: tuple[str, ...], features: tuple[str, ...]) -> np.ndarray:
    """SHAP values of matrix columns (n, columns) summed to those of features (n, features)."""
    place = {name: position for position, name in enumerate(features)}
    belongs = np.zeros((len(origins), len(features)))
    belongs[np.arange(len(origins)), [place[name] for name in origins]] = 1
    return values @ belongs


def by_output(output: np.ndarray) -> np.ndarray:
    """(n,) or (n, k) as (n, k)."""
    return np.asarray(output, dtype="float64").reshape(len(output), -1)


def _linear(estimator: Any, problem_type: str, average: np.ndarray) -> Callable[[np.ndarray], ShapValues]:
    weights = np.atleast_2d(estimator.coef_)
    intercepts = np.ravel(estimator.intercept_)
    if problem_type == "survival":
        # XGBoost adds its base score to the intercept.
        intercepts = np.log(estimator.predict(np.zeros((1, len(average)))))
    base = weights @ average + intercepts

    def explained(matrix: np.ndarray) -> ShapValues:
        values = (matrix - average)[:, :, None] * weights.T[None]
        if problem_type in CLASSIFICATION:
            return ShapValues(values, base, by_output(estimator.decision_function(matrix)), "log-odds")
        output = by_output(estimator.predict(matrix))
        if problem_type == "survival":
            return ShapValues(values, base, np.log(output), "log hazard ratio")
        return ShapValues(values, base, output, "outcome")

    return explained


def _tree(estimator: Any, algorithm: str, problem_type: str) -> Callable[[np.ndarray], ShapValues]:
    import shap

    explainer = shap.TreeExplainer(estimator)

    def explained(matrix: np.ndarray) -> ShapValues:
        found = explainer(matrix, check_additivity=False)
        values, base = np.asarray(found.values), np.asarray(found.base_values, dtype="float64")
        output, scale = _tree_output(estimator, matrix, algorithm, problem_type)
        output = by_output(output)
        if values.ndim == 2:
            values, base = values[:, :, None], np.ravel(base)[:1]
        else:
            base = np.atleast_2d(base)[0]
        if problem_type == "binary_classification" and values.shape[2] == 2:
            values, base, output = values[:, :, 1:], base[1:], output[:, 1:]
        return ShapValues(values.astype("float64"), base, output, scale)

    return explained


def _tree_output(
    estimator: Any, matrix: np.ndarray, algorithm: str, problem_type: str
) -> tuple[np.ndarray, str]:
    """What tree SHAP adds up to: the margin of boosted trees, the probability of averaged ones."""
    if problem_type == "survival":
        return np.log(estimator.predict(matrix).astype("float64")), "log hazard ratio"
    if problem_type not in CLASSIFICATION:
        return estimator.predict(matrix), "outcome"
    if algorithm == "XGBoost":
        return estimator.predict(matrix, output_margin=True), "log-odds"
    if algorithm == "LightGBM":
        return estimator.predict(matrix, raw_score=True), "log-odds"
    if algorithm == "HistGradientBoosting":
        return estimator.decision_function(matrix), "log-odds"
    return estimator.predict_proba(matrix), "probability"
