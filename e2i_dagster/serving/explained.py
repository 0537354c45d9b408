"""Contributions of the features of a row to a served model's output, where their values are exact.

They are the SHAP values of ``modelling/shap_values.py``, of the estimator before calibration. Models whose values
would only be approximated are not explained.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from e2i_dagster.modelling.estimators import uncalibrated
from e2i_dagster.modelling.preprocessing import column_origins
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.shap_values import (
    EXACT,
    SINGLE_PRECISION,
    ShapValues,
    exact_values,
    method_for,
    sum_to_features,
)
from e2i_dagster.serving.request_schema import ModelExplanation, Signature, to_frame

#: Largest difference between an output and what its contributions add up to, for outputs of size 1: rounding of
#: 64-bit numbers, and of 32-bit numbers added over hundreds of trees.
ROUNDING = 1e-9
SINGLE_ROUNDING = 1e-4


class NotExplainedError(Exception):
    """The rows of a model have no exact explanation; says why."""


class RowExplainer:
    """Explains rows of one model. What the values are computed with is made at the first row and kept.

    Args:
        pipeline: fitted, with the steps ``preprocess`` and ``model`` of training.
        metadata: of the stored model: ``algorithm``, ``problem_type`` and, of a linear model, ``training_means``.
        class_names: of the classes, in the order of the probabilities; empty without classes.

    Raises:
        NotExplainedError: the model's values would be approximate, or what they need was not stored.
    """

    def __init__(
        self, pipeline: Any, metadata: Mapping[str, Any], signature: Signature, class_names: Sequence[str]
    ) -> None:
        algorithm, problem_type = metadata.get("algorithm"), metadata.get("problem_type")
        if not algorithm or not problem_type:
            raise NotExplainedError("the model was stored without its algorithm or problem type")
        method = method_for(algorithm)
        if method == "permutation":
            raise NotExplainedError(
                f"contributions of {algorithm} can only be approximated; exact ones are given of {', '.join(EXACT)}"
            )
        try:
            self._preprocess = pipeline.named_steps["preprocess"]
            estimator = uncalibrated(pipeline)
            self._origins = column_origins(self._preprocess)
            columns = len(self._preprocess.get_feature_names_out())
        except (AttributeError, KeyError) as error:
            raise NotExplainedError("the model has not the steps of a trained one") from error
        if len(self._origins) != columns or not set(self._origins) <= set(signature.names):
            raise NotExplainedError("the columns that the estimator reads cannot be assigned to features")
        model = pipeline.named_steps["model"]
        if len(getattr(model, "calibrated_classifiers_", ())) > 1:
            raise NotExplainedError("the model is an average of several estimators")
        self._average = metadata.get("training_means") or ()
        if method == "linear" and len(self._average) != columns:
            raise NotExplainedError(
                "the model was stored without the averages of its training rows, which contributions of a linear "
                "model are counted from; train and register it again"
            )
        self.method: Literal["tree", "linear"] = method
        # XGBoost's linear booster may be asked by one thread at a time, and predictions ask it on others.
        self._estimator = copy.deepcopy(estimator) if algorithm == "CoxPH" else estimator
        self._algorithm, self._problem_type = algorithm, problem_type
        self._signature = signature
        self._outputs = _explained_classes(class_names)
        self._calibration = "risk_at_horizon" if problem_type == "survival" else None
        if estimator is not model:
            self._calibration = model.method
        self._values: Callable[[np.ndarray], ShapValues] | None = None
        self._one_at_a_time = threading.Lock()

    def explain(self, columns: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Explain rows; one call at a time is worked on.

        Args:
            columns: the values of each feature of the signature, in order; missing as None.

        Returns:
            The fields of :class:`~.request_schema.ExplanationResponse`, with an entry for each row, in order.

        Raises:
            ArithmeticError: contributions do not add up to the model's output, or are not finite.
        """
        frame = to_frame(self._signature, columns)
        with self._one_at_a_time:
            if self._values is None:
                self._values = exact_values(
                    self._estimator, self._algorithm, self._problem_type, self._average
                )
            found = self._values(np.asarray(self._preprocess.transform(frame), dtype="float64"))
        difference = found.output - found.base - found.values.sum(axis=1)
        rounding = SINGLE_ROUNDING if self._algorithm in SINGLE_PRECISION else ROUNDING
        # Not a number is no small difference either.
        if not (np.abs(difference) <= rounding * np.maximum(1.0, np.abs(found.output))).all():
            raise ArithmeticError("contributions do not add up to the output")
        names = self._signature.names
        contributions = [
            sum_to_features(found.values[:, :, place], self._origins, tuple(names))
            for place in range(len(self._outputs))
        ]
        rows = [
            [
                {
                    "class_name": name,
                    "expected_value": float(found.base[place]),
                    "contributions": dict(zip(names, contributions[place][row].tolist(), strict=True)),
                    "margin": float(found.output[row, place]),
                    "difference": float(difference[row, place]),
                }
                for place, name in enumerate(self._outputs)
            ]
            for row in range(len(frame))
        ]
        return {**self._about(found.scale).model_dump(), "rows": rows}

    def _about(self, scale: str) -> ModelExplanation:
        adds_up_to = "margin"
        if self._problem_type not in CLASSIFICATION and self._problem_type != "survival":
            adds_up_to = "prediction"
        elif scale == "probability" and self._calibration is None:
            adds_up_to = "probability"
        return ModelExplanation(
            method=self.method, scale=cast("Any", scale), calibration=self._calibration, adds_up_to=adds_up_to
        )


def _explained_classes(class_names: Sequence[str]) -> tuple[str | None, ...]:
    if not class_names:
        return (None,)
    return (class_names[1],) if len(class_names) == 2 else tuple(class_names)
