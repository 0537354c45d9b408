"""Which features a model is given, and why the others are not. Looks at training rows only.

Five rules in this order: missingness, variance, shift with time, mutual information with the label, correlation. A
feature that a rule dropped is not looked at by the next. Every drop says rule, value and limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.binning import quantile_bins, stability_index
from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.feature_views import feature_names
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError, VerdictError

#: A shift of a chance below this is one.
_CHANCE = 0.001
Rule = Literal["missingness", "variance", "time_shift", "mutual_information", "correlation"]


class DroppedFeature(BaseModel):
    """A feature that the model is not given. ``value`` is what the rule measured."""

    model_config = ConfigDict(frozen=True)

    feature: str
    rule: Rule
    value: float
    limit: float
    reason: str


class FeatureSelection(BaseModel):
    """What was kept and what was dropped.

    ``mutual_information`` is in nats, for the features that came to that rule.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    kept: tuple[str, ...]
    dropped: tuple[DroppedFeature, ...]
    mutual_information: dict[str, float]

    def to_metadata(self) -> dict[str, Any]:
        """Counts and a table with a line per feature."""
        measured = self.mutual_information
        ranked = sorted(self.kept, key=lambda name: -measured[name])
        rows = [(name, True, measured[name], None) for name in ranked]
        rows += [(drop.feature, False, measured.get(drop.feature), drop.reason) for drop in self.dropped]
        return {
            "training_rows": self.rows,
            "features_kept": len(self.kept),
            "features_dropped": len(self.dropped),
            "features": Table(("feature", "kept", "mutual information (nats)", "reason"), rows),
        }


def select_features(
    frame: pd.DataFrame,
    label: str = "label",
    *,
    train: pd.Series | np.ndarray,
    policy: FeatureSelectionPolicy,
    features: Sequence[str] | None = None,
) -> FeatureSelection:
    """Drop features without use, by what the training rows say.

    * missingness: share of null cells above ``max_missing_share``;
    * variance: share of the most frequent value (null is a value) above ``max_same_value_share``;
    * shift with time: stability index between the two thirds of the rows with the earlier index dates and
      the third with the later ones above ``max_time_shift``, and more than chance makes of it (times n1 n2 / (n1 + n2)
      about chi-squared with (bins - 1) degrees of freedom, p below 0.001; Yurdakul, Western Michigan University
      2018): what moves within the training rows moves on. Frames without ``index_date`` are not asked;
    * mutual information with the label over quantile bins or categories, null being one of them:
      kept if the G test (2 n MI against chi-squared with (bins - 1)(classes - 1) degrees of freedom;
      Sokal and Rohlf, Biometry, chapter 17) has p at most ``max_p_value``;
    * correlation of ranks (Spearman) of two numeric features above ``max_correlation``: the one
      with less mutual information goes.

    Args:
        frame: a training frame.
        label: its label column (two or more classes).
        train: True for rows of the training split; no other row is looked at.
        policy: the limits.
        features: candidates; by default every declared feature that ``frame`` has.

    Raises:
        InputError: the mask does not fit, there are no labelled training rows or one class only.
        VerdictError: no feature is left.
    """
    mask = np.asarray(train, dtype=bool)
    if len(mask) != len(frame):
        raise InputError(
            f"train: found {len(mask)} values for {len(frame)} rows; expected one per row.", field="train"
        )
    rows = frame[mask]
    rows = rows[rows[label].notna()]
    if rows[label].nunique() < 2:
        raise InputError(
            f"Feature selection: found {len(rows)} labelled training rows with {rows[label].nunique()} "
            "classes; expected two classes or more.",
            field=label,
            value=len(rows),
            remedy="Load more patients, or choose an outcome and split with both classes in train.",
        )
    left = [name for name in (features or feature_names(feature_views())) if name in frame.columns]
    dropped: list[DroppedFeature] = []

    def drop(name: str, rule: Rule, value: float, limit: float, reason: str) -> None:
        dropped.append(DroppedFeature(feature=name, rule=rule, value=value, limit=limit, reason=reason))
        left.remove(name)

    for name in list(left):
        missing = float(rows[name].isna().mean())
        same = float(rows[name].value_counts(normalize=True, dropna=False).iloc[0])
        if missing > policy.max_missing_share:
            reason = f"{missing:.1%} of the values are missing (limit {policy.max_missing_share:.1%})"
            drop(name, "missingness", missing, policy.max_missing_share, reason)
        elif same > policy.max_same_value_share:
            reason = f"{same:.1%} of the rows have the same value (limit {policy.max_same_value_share:.1%})"
            drop(name, "variance", same, policy.max_same_value_share, reason)

    limit = policy.max_time_shift
    for name, shift in _shifting(rows, left, policy).items():
        reason = f"shifts with time within the training rows (stability index {shift:.2f}, limit {limit:g})"
        drop(name, "time_shift", shift, limit, reason)

    information: dict[str, float] = {}
    for name in list(left):
        information[name], p_value = _mutual_information(rows[name], rows[label], policy.bins)
        if p_value > policy.max_p_value:
            reason = f"no relation with the label (G test p = {p_value:.2f}, limit {policy.max_p_value:g})"
            drop(name, "mutual_information", p_value, policy.max_p_value, reason)

    for first, second, correlation in _correlated(rows[left], policy.max_correlation):
        if first in left and second in left:
            worse, better = sorted((first, second), key=lambda name: (information[name], name))
            reason = f"correlation {correlation:.3f} with {better} (limit {policy.max_correlation:g})"
            drop(worse, "correlation", correlation, policy.max_correlation, reason)

    if not left:
        raise VerdictError(
            f"No feature is left after selection on {len(rows)} training rows: "
            + "; ".join(f"{item.feature}: {item.reason}" for item in dropped)
            + ". Check that the events before the index dates are loaded, or relax config/feature_selection.yaml."
        )
    return FeatureSelection(
        rows=len(rows), kept=tuple(left), dropped=tuple(dropped), mutual_information=information
    )


def _shifting(rows: pd.DataFrame, names: Sequence[str], policy: FeatureSelectionPolicy) -> dict[str, float]:
    """Features that shift with time by more than the limit and by more than chance, and by how much."""
    if "index_date" not in rows:
        return {}
    by_date = rows.sort_values("index_date", kind="stable")
    found = {name: _time_shift(by_date[name], policy.bins) for name in names}
    return {
        name: shift for name, (shift, p) in found.items() if shift > policy.max_time_shift and p < _CHANCE
    }


def _time_shift(values: pd.Series, bins: int) -> tuple[float, float]:
    """Stability index of the last third of ``values`` against those before, and the p value of chance."""
    from scipy.stats import chi2

    levels = _levels(values, bins) + 1
    first = len(levels) * 2 // 3
    size = int(levels.max(initial=0)) + 1
    counts = [np.bincount(part, minlength=size).astype(float) for part in (levels[:first], levels[first:])]
    used = int(np.count_nonzero(counts[0] + counts[1]))
    if used < 2 or not first:
        return 0.0, 1.0
    shift = stability_index(*counts)
    sizes = first, len(levels) - first
    return shift, float(chi2.sf(shift * sizes[0] * sizes[1] / sum(sizes), used - 1))


def _mutual_information(values: pd.Series, label: pd.Series, bins: int) -> tuple[float, float]:
    """Mutual information in nats and the p value of its G test."""
    from scipy.stats import chi2

    table = pd.crosstab(_levels(values, bins), label.astype("string").to_numpy()).to_numpy(dtype=float)
    total = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(table > 0, table * np.log(table / expected), 0.0)
    information = max(float(terms.sum() / total), 0.0)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return information, float(chi2.sf(2 * total * information, freedom)) if freedom else 1.0


def _levels(values: pd.Series, bins: int) -> np.ndarray:
    """Codes of quantile bins (numbers; a frequent value is a bin) or categories (text); -1 for null."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        numbers = values.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
        present = ~np.isnan(numbers)
        levels = np.full(len(numbers), -1)
        levels[present] = quantile_bins(numbers[present], bins).place(numbers[present])
        return levels
    return pd.factorize(values)[0]


def _correlated(frame: pd.DataFrame, limit: float) -> list[tuple[str, str, float]]:
    """Pairs of numeric columns whose absolute rank correlation is above ``limit``, strongest first."""
    numeric = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name].dtype)]
    if len(numeric) < 2:
        return []
    matrix = frame[numeric].astype("Float64").astype("float64").corr(method="spearman").abs().to_numpy()
    rows, columns = np.triu_indices(len(numeric), k=1)
    found = [
        (numeric[i], numeric[j], float(matrix[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if matrix[i, j] > limit
    ]
    return sorted(found, key=lambda item: -item[2])
