"""Unfitted preprocessing of a model's input, and which feature each of its columns comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from e2i_dagster.modelling.model_input import Kind


def build_preprocessor(kinds: Mapping[str, Kind], max_levels: int = 50) -> Any:
    """Unfitted ``ColumnTransformer`` over the frame of :func:`~.model_input.model_input`.

    Numbers: mean imputation plus an indicator where values are missing, then scaling to mean 0 and
    deviation 1. Text: one column for each level, missing being a level of its own; levels beyond the
    ``max_levels`` most frequent, and levels never seen in training, share one column or are all zero.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = [name for name, kind in kinds.items() if kind == "number"]
    texts = [name for name, kind in kinds.items() if kind == "string"]
    number_steps = Pipeline(
        [
            ("impute", SimpleImputer(strategy="mean", add_indicator=True, keep_empty_features=True)),
            ("scale", StandardScaler()),
        ]
    )
    text_steps = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=max_levels, sparse_output=False
    )
    parts = [("number", number_steps, numbers), ("string", text_steps, texts)]
    return ColumnTransformer([part for part in parts if part[2]], sparse_threshold=0.0)


def column_origins(preprocessor: Any) -> tuple[str, ...]:
    """For each column of the fitted preprocessor's output, the feature that it comes from."""
    origins: list[str] = []
    for name, transformer, columns in preprocessor.transformers_:
        if name == "number":
            imputer = transformer.named_steps["impute"]
            origins += list(columns)
            if imputer.indicator_ is not None:
                origins += [columns[position] for position in imputer.indicator_.features_]
        elif name == "string":
            infrequent = getattr(transformer, "infrequent_categories_", [None] * len(columns))
            for column, levels, rare in zip(columns, transformer.categories_, infrequent, strict=True):
                width = len(levels) if rare is None or not len(rare) else len(levels) - len(rare) + 1
                origins += [column] * width
    return tuple(origins)


__all__ = ["build_preprocessor", "column_origins"]
