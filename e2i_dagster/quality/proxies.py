"""How well one column alone tells the label: the numbers behind the leakage audit.

Here belongs arithmetic on arrays. Which columns are looked at and what a number means is in ``leakage``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from e2i_dagster.binning import quantile_bins

MOST_BINS = 32
MOST_CLASSES = 20
_ROWS_PER_BIN = 20


def is_text(column: pd.Series) -> bool:
    """True for columns whose cells are text or any other Python value."""
    return column.dtype == object or isinstance(column.dtype, pd.StringDtype | pd.CategoricalDtype)


def as_numbers(column: pd.Series) -> np.ndarray | None:
    """The column as floats with NaN for empty cells; None if it does not hold numbers or booleans."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy(dtype="float64")
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
    return None


def hashable(column: pd.Series) -> pd.Series:
    """The column with Python values as text, so that mixed types and lists can be grouped."""
    return column.map(str, na_action="ignore") if column.dtype == object else column


def groups_of(column: pd.Series) -> np.ndarray:
    """Small integer group of each cell, empty is group 0.

    Categories as they are, numbers by quantile with a group of its own for a frequent value.
    """
    number = as_numbers(column)
    if number is None and pd.api.types.is_datetime64_any_dtype(column.dtype):
        number = column.astype("int64").astype("float64").where(column.notna()).to_numpy(dtype="float64")
    bins = int(np.clip(len(column) // _ROWS_PER_BIN, 4, MOST_BINS))
    if number is not None:
        finite = np.isfinite(number)
        if len(np.unique(number[finite])) > bins:
            groups = np.zeros(len(number), dtype=np.int64)
            groups[finite] = quantile_bins(number[finite], bins).place(number[finite]) + 1
            return groups
    codes, _ = pd.factorize(hashable(column), use_na_sentinel=True)
    return np.asarray(codes) + 1


def pieces_of_text(column: pd.Series) -> dict[str, np.ndarray]:
    """Groups by what a free text begins and ends with and by its length; nothing for other columns.

    A text with a value for each row cannot be grouped as a whole, but a part of it may tell the label.
    """
    if not is_text(column) or column.dtype == "category":
        return {}
    text = column.map(str, na_action="ignore").astype("string")
    if text.nunique() <= len(text) / 2:
        return {}
    parts = {
        "its first characters": text.str[:3],
        "its last characters": text.str[-3:],
        "its length": text.str.len(),
    }
    return {name: groups_of(part) for name, part in parts.items()}


def questions(target: pd.Series) -> list[np.ndarray]:
    """The label as yes/no questions: one for two classes, one a class for several.

    A number is asked by quartile, and whether it is far from its median (a square or an absolute value
    of the label keeps the size and loses the sign).
    """
    number = as_numbers(target)
    if number is not None and target.nunique() > MOST_CLASSES:
        distance = np.abs(number - np.median(number))
        limits = np.unique(np.quantile(number, [0.25, 0.5, 0.75]))
        above = [number > limit for limit in limits]
        # Where a frequent value is the limit, the rows below it and those above it are two questions.
        below = [number < limit for limit in limits if (number == limit).sum() * MOST_CLASSES > len(number)]
        return [*above, *below, distance > np.median(distance)]
    codes, values = pd.factorize(hashable(target.astype(object)))
    kept = pd.Series(codes).value_counts().index[:MOST_CLASSES]
    asked = [codes == code for code in kept]
    return asked[:1] if len(values) == 2 else asked


def correlation(first: np.ndarray | None, second: np.ndarray | None) -> float | None:
    """Pearson's r over rows where both are finite; None where it is not defined."""
    if first is None or second is None:
        return None
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 3 or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return None
    return float(np.corrcoef(first[both], second[both])[0, 1])


def out_of_fold_auc(groups: np.ndarray, answer: np.ndarray, halves: np.ndarray) -> float:
    """AUC of the label's rate by group, learned on one half of the rows and judged on the other, both ways.

    A feature with a group for each row (an identifier) has nothing to learn and comes out at 0.5.
    """
    size = int(groups.max(initial=0)) + 1
    judged = []
    for learn in (halves, ~halves):
        totals = np.bincount(groups[learn], minlength=size)
        hits = np.bincount(groups[learn], weights=answer[learn], minlength=size)
        # One pseudo-row at the overall rate: groups that were not seen get the overall rate.
        rate = (hits + answer[learn].mean()) / (totals + 1)
        positive = np.bincount(groups[~learn], weights=answer[~learn], minlength=size)
        negative = np.bincount(groups[~learn], weights=~answer[~learn], minlength=size)
        judged.append(_auc(rate, positive, negative))
    return sum(judged) / 2


def _auc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """AUC from the counts of both classes at each score; ties count half."""
    if not positive.sum() or not negative.sum():
        return 0.5
    _, level = np.unique(score, return_inverse=True)
    above = np.bincount(level, weights=positive)
    below = np.bincount(level, weights=negative)
    lower = np.cumsum(below) - below
    return float((above * (lower + below / 2)).sum() / (positive.sum() * negative.sum()))


def indicator_auc(flag: np.ndarray, answer: np.ndarray) -> float:
    """AUC of a yes/no feature in whichever direction is better."""
    if answer.all() or not answer.any():
        return 0.5
    return 0.5 + abs(float(flag[answer].mean()) - float(flag[~answer].mean())) / 2


def lower_bound(auc: float, answer: np.ndarray) -> float:
    """``auc`` less three standard errors (Hanley and McNeil, Radiology 143, 1982, equation 1)."""
    positive = int(answer.sum())
    negative = len(answer) - positive
    if not positive or not negative:
        return 0.5
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (positive - 1) * (first - auc**2) + (negative - 1) * (second - auc**2)) / (
        positive * negative
    )
    return auc - 3 * float(np.sqrt(max(variance, 0.0)))
