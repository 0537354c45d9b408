"""The conversion of frames for models, shared by training and serving (see ``selection.frame``)."""

from e2i_dagster.modelling.model_input import (
    NOT_FEATURES,
    Kind,
    LabelledRows,
    feature_columns,
    feature_kinds,
    labelled_rows,
    model_input,
)

__all__ = [
    "NOT_FEATURES",
    "Kind",
    "LabelledRows",
    "feature_columns",
    "feature_kinds",
    "labelled_rows",
    "model_input",
]
