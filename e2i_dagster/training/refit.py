"""A model's preprocessing and estimator fitted again on other training rows, with its algorithm and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.modelling.estimators import build_estimator
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.training.fit import TrainedModel


@dataclass(frozen=True)
class Refit:
    """What was fitted, and the matrix that it was fitted on, shape (rows, columns)."""

    preprocessor: Any
    estimator: Any
    learned: np.ndarray

    def matrix(self, features: pd.DataFrame) -> np.ndarray:
        """``features`` as the estimator reads them."""
        return np.asarray(self.preprocessor.transform(features), dtype="float64")


def refit(model: TrainedModel, rows: LabelledRows, part: np.ndarray, policy: OptunaPolicy) -> Refit:
    """Fit on the rows at the positions ``part``; nothing is searched and nothing calibrated."""
    preprocessor = build_preprocessor(model.kinds, policy.preprocessing.max_levels)
    learned = np.asarray(preprocessor.fit_transform(rows.features.iloc[part]), dtype="float64")
    estimator = build_estimator(
        model.algorithm, model.problem_type, model.parameters, seed=policy.sampler.seed
    ).fit(learned, rows.target[part])
    return Refit(preprocessor, estimator, learned)


__all__ = ["Refit", "refit"]
