"""A small pipeline of the form that training makes, stored by MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest


@dataclass(frozen=True)
class Stored:
    """A logged model, rows it has not seen and what it says about them."""

    folder: Path
    pipeline: Any
    rows: pd.DataFrame
    scores: np.ndarray


def some_rows(n: int, seed: int) -> pd.DataFrame:
    """Rows with a number, a number that may be missing, a whole number, a flag and a text that may be missing."""
    rng = np.random.default_rng(seed)
    severity = rng.uniform(0, 10, n)
    contacts = rng.uniform(0, 5, n)
    contacts[rng.random(n) < 0.2] = np.nan
    region = rng.choice(np.array(["northeast", "south", "west"], dtype=object), n)
    region[rng.random(n) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "disease severity": severity,
            "contacts": contacts,
            "treatment_count": rng.integers(0, 8, n),
            "academic_hcp": rng.random(n) < 0.4,
            "region": region,
        }
    )


def fit(rows: pd.DataFrame, seed: int = 1) -> Any:
    """Preprocessing and model as one pipeline."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = ["disease severity", "contacts", "treatment_count", "academic_hcp"]
    chance = 1 / (1 + np.exp(5 - rows["disease severity"]))
    target = (np.random.default_rng(seed).random(len(rows)) < chance).astype("int64")
    preprocess = ColumnTransformer(
        [
            ("number", Pipeline([("impute", SimpleImputer()), ("scale", StandardScaler())]), numbers),
            ("string", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["region"]),
        ]
    )
    return Pipeline([("preprocess", preprocess), ("model", LogisticRegression())]).fit(rows, target)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The pipeline in an MLflow model folder, as registration downloads it."""
    import mlflow.sklearn
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    folder = tmp_path_factory.mktemp("mlflow") / "model"
    training = some_rows(400, seed=0)
    pipeline = fit(training)
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.double, "disease severity"),
                ColSpec(DataType.double, "contacts", required=False),
                ColSpec(DataType.long, "treatment_count"),
                ColSpec(DataType.boolean, "academic_hcp"),
                ColSpec(DataType.string, "region", required=False),
            ]
        )
    )
    mlflow.sklearn.save_model(
        pipeline,
        str(folder),
        signature=signature,
        serialization_format="skops",
        skops_trusted_types=["numpy.dtype"],
        pip_requirements=["scikit-learn", "skops"],
        metadata={
            "algorithm": "LogisticRegression",
            "problem_type": "binary_classification",
            "training_means": pipeline.named_steps["preprocess"].transform(training).mean(axis=0).tolist(),
        },
    )
    rows = some_rows(250, seed=7)
    return Stored(folder, pipeline, rows, pipeline.predict_proba(rows)[:, 1])
