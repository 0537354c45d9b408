"""Choice of an algorithm: registry, filters, benchmark, ranking, rationale; and the parts models are made of."""

from e2i_dagster.modelling.model_input import (
    LabelledRows,
    feature_columns,
    feature_kinds,
    labelled_rows,
    model_input,
)
from e2i_dagster.selection.choose import AlgorithmChoice, Candidate, select_algorithm
from e2i_dagster.selection.request import SelectionRequest, request_of
from e2i_dagster.splits.rows import SealedRows, VisibleRows, sealed_test_rows, visible_rows

__all__ = [
    "AlgorithmChoice",
    "Candidate",
    "LabelledRows",
    "SealedRows",
    "SelectionRequest",
    "VisibleRows",
    "feature_columns",
    "feature_kinds",
    "labelled_rows",
    "model_input",
    "request_of",
    "sealed_test_rows",
    "select_algorithm",
    "visible_rows",
]
