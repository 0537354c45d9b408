"""From labelled patients and raw tables to the feature files of a scope, in one call."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pandas as pd

from e2i_dagster.config.feast_materialization import SnapshotPolicy
from e2i_dagster.features.compute import compute_views
from e2i_dagster.features.snapshots import (
    FeatureFiles,
    patient_keys,
    snapshot_entities,
    spine,
    write_views,
)
from e2i_dagster.versions.coverage import Coverage


def build_feature_files(
    labels: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    *,
    more: Mapping[str, pd.DataFrame] | None = None,
    brand: str,
    covered: Mapping[str, Coverage],
    data_end: dt.date,
    source_lag_days: int,
    policy: SnapshotPolicy,
    folder: Any,
) -> FeatureFiles:
    """Compute every view for the patients of ``labels`` and write one file for each into ``folder``.

    Args:
        labels: frame of the scope's labels: patient_id, patient_journey_id, hcp_id, index_date, set.
        tables: the raw tables of :data:`.FEATURE_TABLES`.
        more: those of :func:`.more_tables`.
        covered: days that each table covers; see :func:`.compute_view`. data_end: the last day of the data.
        source_lag_days: the scope's; see :func:`.compute_view`.
        folder: a path or address below the lake.

    Raises:
        InputError: a table or column is missing, or a patient is repeated.
        UnavailableError: the folder cannot be written to.
    """
    tables = {**tables, **(more or {})}
    rows = spine(labels, tables, brand=brand)
    entities = snapshot_entities(rows, tables, data_end=data_end, policy=policy)
    return write_views(
        compute_views(entities, tables, covered=covered, source_lag_days=source_lag_days),
        folder,
        keys=patient_keys(rows),
    )
