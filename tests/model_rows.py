"""Invented patients with a known signal, for the tests of selection, training, explain and registry."""

import numpy as np
import pandas as pd

from e2i_dagster.modelling.model_input import LabelledRows, feature_columns, feature_kinds, labelled_rows
from e2i_dagster.splits.rows import VisibleRows

TEXTS = ("region", "insurance")


def patients(n: int = 600, seed: int = 0, *, interaction: bool = False) -> pd.DataFrame:
    """A training frame with the types of the lake: text, nullable integers and booleans, missing numbers."""
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "patient_id": [f"PAT{i:08d}" for i in range(n)],
            "index_date": pd.Timestamp("2024-01-01"),
            "severity": draw.normal(size=n),
            "engagement": np.where(draw.random(n) < 0.2, np.nan, draw.uniform(0, 10, n)),
            "visits": draw.poisson(3, n),
            "academic": draw.random(n) < 0.4,
            "noise": draw.normal(size=n),
            "region": draw.choice(["northeast", "south", "west"], n),
            "insurance": draw.choice(["commercial", "medicare"], n),
        }
    )
    signal = 1.4 * frame["severity"] + 0.3 * (frame["engagement"].fillna(3) - 4) + 0.8 * frame["academic"]
    if interaction:
        signal = 4.0 * np.sign(frame["severity"]) * np.sign(frame["noise"])
    frame["label"] = (draw.random(n) < 1 / (1 + np.exp(-(signal - 0.4)))).astype("int64")
    frame = frame.astype({"visits": "Int64", "academic": "boolean", "label": "Int64"})
    return frame.astype({"patient_id": "string[pyarrow]", **dict.fromkeys(TEXTS, "string[pyarrow]")})


def rows(n: int = 600, seed: int = 0, **more: bool) -> LabelledRows:
    frame = patients(n, seed, **more)
    return labelled_rows(frame, feature_kinds(frame, feature_columns(frame)))


def visible(train: LabelledRows, validation: LabelledRows | None = None) -> VisibleRows:
    """``train`` and ``validation`` as the steps of training get them; other patients where none are given."""
    return VisibleRows(train, rows(150, 1) if validation is None else validation)


def numbers(source: LabelledRows, seed: int = 0) -> LabelledRows:
    """The same patients with a number as target."""
    noise = np.random.default_rng(seed + 1000).normal(scale=0.5, size=len(source))
    return LabelledRows(
        source.features, 10 + source.features[["severity", "academic"]].to_numpy() @ [2.0, 1.5] + noise
    )


CLASSES = ("adherent", "none", "switched")


def choices(source: LabelledRows, seed: int = 0) -> LabelledRows:
    """The same patients with one of three classes as target, drawn by a multinomial logit."""
    logits = np.column_stack(
        [
            1.5 * source.features["severity"],
            np.full(len(source), 0.3),
            1.2 * source.features["academic"] - source.features["severity"],
        ]
    )
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = np.random.default_rng(seed + 2000).random(len(source))[:, None] > chances.cumsum(axis=1)
    return LabelledRows(source.features, np.minimum(drawn.sum(axis=1), 2), CLASSES)


#: Last day of the times of :func:`times`.
HORIZON = 60


def times(source: LabelledRows, seed: int = 0, *, censoring: float = 150.0) -> LabelledRows:
    """The same patients with exponential times of a proportional hazard, censored uniformly and at the horizon."""
    draw = np.random.default_rng(seed + 3000)
    hazard = 0.008 * np.exp(source.features["severity"] + 0.8 * source.features["academic"]).to_numpy()
    event_day = np.ceil(draw.exponential(1 / hazard))
    until = np.minimum(np.ceil(draw.uniform(0, censoring, len(source))), HORIZON)
    signed = np.where(event_day <= until, event_day, -until)
    return LabelledRows(source.features, signed)


def target_of(source: LabelledRows, problem_type: str, seed: int = 0) -> LabelledRows:
    """The same patients with a target of ``problem_type``."""
    if problem_type == "binary_classification":
        return source
    return {"multiclass_classification": choices, "regression": numbers, "survival": times}[problem_type](
        source, seed
    )
