"""The rows of another cohort: its patients, labelled and described by what is recorded with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from e2i_dagster.cohorts.outcome import Labels, cohort_frame, label_outcome
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.feature_views import TIMESTAMP, FeatureView
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import InputError
from e2i_dagster.features.compute import compute_view
from e2i_dagster.features.explore import Setting, with_only
from e2i_dagster.features.frame import index_stamps
from e2i_dagster.features.snapshots import labelled_spine
from e2i_dagster.versions.coverage import Coverage


def views_with(views: Sequence[FeatureView], wanted: Sequence[str]) -> tuple[FeatureView, ...]:
    """``views`` reduced to the features called ``wanted`` and those that they are made of."""
    parts = (with_only(view, set(wanted) & set(view.feature_names)) for view in views)
    return tuple(part for part in parts if part.features)


def labels_of(
    scope: ScopeSpec, cohort: Cohort, tables: Mapping[str, pd.DataFrame], covered: Coverage
) -> Labels:
    """The patients of ``cohort`` labelled by the outcome of ``scope``, with its rules of eligibility and censoring.

    Args:
        tables: raw tables of the outcome, and ``patient_journeys``. covered: the days that the former cover.

    Raises:
        CohortInputError: a table or column is missing.
    """
    assert covered.end is not None
    return label_outcome(
        scope,
        cohort_frame(cohort),
        tables,
        data_start=covered.start,
        data_end=covered.end,
        unobserved=covered.unobserved,
        lookback_days=cohort.definition.temporal_requirements.lookback_days,
    )


def described(
    labels: pd.DataFrame,
    views: Sequence[FeatureView],
    tables: Mapping[str, pd.DataFrame],
    *,
    scope: ScopeSpec,
    covered: Mapping[str, Coverage],
) -> pd.DataFrame:
    """Labelled patients with the features of ``views`` known before their index dates.

    Args:
        labels: frame of :class:`.Labels`.
        views: as they are recorded with the model.
        tables: raw tables that the views read. covered: days that each covers.

    Returns:
        patient_id, index_date, label and features; one row for each labelled index date.

    Raises:
        InputError: a table or column is missing.
    """
    rows = labelled_spine(labels, tables["patient_journeys"], brand=scope.brand)
    setting = Setting(rows, tables, covered, scope.source_lag_days)
    parts = [rows[["patient_id", "index_date", "label"]]]
    for view in views:
        keys = list(view.keys)
        values = compute_view(view, setting.entities(view), **setting.known)
        asked = rows[keys].astype("string[pyarrow]").assign(**{TIMESTAMP: index_stamps(rows["index_date"])})
        found = asked.merge(values, on=[*keys, TIMESTAMP], how="left", validate="many_to_one")
        parts.append(found[list(view.feature_names)])
    return pd.concat(parts, axis=1)


def require_defined(features: Sequence[str], views: Sequence[FeatureView]) -> None:
    """Refuse a model with a feature that no recorded definition tells how to compute.

    Raises:
        InputError: names each.
    """
    known = {name for view in views for name in view.feature_names}
    absent = [name for name in features if name not in known]
    if absent:
        raise InputError(
            f"The definitions recorded with the model do not have {', '.join(absent)}.",
            field="features",
            value=absent[0],
            remedy="Train the model again with `e2i run`.",
        )


__all__ = ["described", "labels_of", "require_defined", "views_with"]
