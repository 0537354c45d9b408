"""Statistics of feature values, computed from the values.

Smallest and largest values are a single patient's; what is kept are means and quantiles, and
categories that at least eleven rows share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feature_views import Feature, FeatureView

SMALLEST_CELL = 11
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


class FeatureStatistics(BaseModel):
    """One feature over the rows of a frame.

    ``standard_deviation`` is that of the sample (n - 1). Numbers are None for text features and
    where there are fewer than eleven values. ``categories`` counts the values of a text feature;
    values of fewer than eleven rows are together under ``other`` (left out if even they are few).
    """

    model_config = ConfigDict(frozen=True)

    view: str
    feature: str
    dtype: str
    rows: int
    missing: int
    unique: int
    mean: float | None = None
    standard_deviation: float | None = None
    quantiles: dict[str, float] | None = None
    categories: dict[str, int] | None = None

    @property
    def missing_share(self) -> float | None:
        """Share of rows without a value; None without rows."""
        return self.missing / self.rows if self.rows else None


def feature_statistics(
    frame: pd.DataFrame, views: Sequence[FeatureView] | None = None
) -> tuple[FeatureStatistics, ...]:
    """Statistics of every declared feature that ``frame`` has, in declared order.

    Args:
        frame: one view, or a training frame (give training rows only where the statistics may
            inform a model).
        views: the views whose features are looked for; all by default.
    """
    return tuple(
        _of(view.name, feature, frame[feature.name])
        for view in (feature_views() if views is None else views)
        for feature in view.features
        if feature.name in frame.columns
    )


def _of(view: str, feature: Feature, values: pd.Series) -> FeatureStatistics:
    present = values.dropna()
    base: dict[str, Any] = {
        "view": view,
        "feature": feature.name,
        "dtype": feature.dtype,
        "rows": len(values),
        "missing": len(values) - len(present),
        "unique": int(present.nunique()),
    }
    if feature.dtype == "string":
        counts = present.astype("string").value_counts()
        shown = counts[counts >= SMALLEST_CELL]
        categories = {str(name): int(count) for name, count in sorted(shown.items(), key=_by_count)}
        other = int(counts.sum() - shown.sum())
        if other >= SMALLEST_CELL:
            categories["other"] = other
        return FeatureStatistics(**base, categories=categories)
    if len(present) < SMALLEST_CELL:
        return FeatureStatistics(**base)
    numbers = present.astype("float64")
    return FeatureStatistics(
        **base,
        mean=float(numbers.mean()),
        standard_deviation=float(numbers.std()),
        quantiles={name: float(numbers.quantile(share)) for name, share in _QUANTILES.items()},
    )


def _by_count(item: tuple[Any, Any]) -> tuple[int, str]:
    return -int(item[1]), str(item[0])
