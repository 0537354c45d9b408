"""Problem types: how their models are compared, and which patients are alike in their outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd

from e2i_dagster.binning import quantile_bins
from e2i_dagster.modelling.survival import concordance

#: Problem types whose models predict the probabilities of classes.
CLASSIFICATION = ("binary_classification", "multiclass_classification")
#: The figure by which models of a problem type are ranked and reported first.
HEADLINE = {
    "binary_classification": "roc_auc",
    "multiclass_classification": "roc_auc",
    "regression": "r2",
    "survival": "c_index",
}


def headline(problem_type: str, target: np.ndarray, scores: np.ndarray) -> float:
    """The figure of :data:`HEADLINE`; larger is better.

    Args:
        target: 0 and 1, class codes, numbers or signed times, shape (n,).
        scores: what :func:`~.estimators.raw_scores` returns for the same rows.

    Raises:
        ValueError: a class is missing in ``target``.
    """
    from sklearn.metrics import r2_score, roc_auc_score

    if problem_type == "survival":
        return float(concordance(target, scores)[0])
    if problem_type == "multiclass_classification":
        return float(roc_auc_score(target, scores, multi_class="ovr", average="macro"))
    return float((roc_auc_score if problem_type == "binary_classification" else r2_score)(target, scores))


def outcome_groups(label: pd.Series, problem_type: str, groups: int = 5) -> pd.Series:
    """The label where it is a class; of a number which part of its distribution it lies in, of a time whether it
    ended with the event.

    Numbers are cut at their quantiles into ``groups``; a frequent value, such as no cost, is a group of its own.
    Null stays null.
    """
    if problem_type in CLASSIFICATION:
        return label
    numbers = label.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
    known = ~np.isnan(numbers)
    found = pd.array(np.zeros(len(label), dtype=np.int64), dtype="Int64")
    found[~known] = pd.NA
    if problem_type == "survival":
        found[known] = (numbers[known] > 0).astype("int64")
    elif known.any():
        found[known] = quantile_bins(numbers[known], groups).place(numbers[known])
    return pd.Series(found, index=label.index, name=label.name)


__all__ = ["CLASSIFICATION", "HEADLINE", "headline", "outcome_groups"]
