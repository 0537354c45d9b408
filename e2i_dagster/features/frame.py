"""Point-in-time frames made by the engine: one ASOF join for each view over the same files that Feast reads.

For each row, of each view the newest values stamped at or before the row's time. Feast's own join gives the same
cells (:meth:`~e2i_dagster.features.store.ScopeStore.equals_store_join` proves it on a sample), at a cost that grows
faster than the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from upath import UPath

from e2i_dagster.config.feature_views import TIMESTAMP, FeatureView, feature_names
from e2i_dagster.errors import InputError
from e2i_dagster.features.snapshots import FeatureFiles


def index_stamps(index_dates: pd.Series) -> pd.Series:
    """The last microsecond before each index date, as ``datetime64[us, UTC]``."""
    days = pd.to_datetime(index_dates).dt.normalize().dt.tz_localize("UTC").astype("datetime64[us, UTC]")
    return days - pd.Timedelta(microseconds=1).as_unit("us")


def training_frame(rows: pd.DataFrame, files: FeatureFiles) -> pd.DataFrame:
    """Values of every feature one microsecond before each index date.

    Args:
        rows: the frame of :func:`~e2i_dagster.features.snapshots.spine` (all of it, or the
            labelled or the scoring patients).
        files: the version to read.

    Returns:
        patient_id, patient_journey_id, index_date, ``label`` if ``rows`` has it, and all features;
        one row for each row of ``rows``, in its order. Patients without history have nulls.

    Raises:
        InputError: a key column is missing.
        DamagedError: a file is missing or damaged.
    """
    joined = point_in_time(rows, index_stamps(rows["index_date"]), files, files.views)
    kept = ["patient_id", "patient_journey_id", "index_date", *(["label"] if "label" in rows else [])]
    return pd.concat([rows[kept].reset_index(drop=True), joined], axis=1)


def point_in_time(
    rows: pd.DataFrame, stamps: pd.Series, files: FeatureFiles, views: Sequence[FeatureView]
) -> pd.DataFrame:
    """The features of ``views`` for each row, newest at or before its stamp; nulls where a key is null or unknown.

    Args:
        rows: the keys of the views as columns.
        stamps: ``datetime64[us, UTC]``, one for each row.

    Raises:
        InputError: a key column is missing.
        DamagedError: a file is missing or damaged.
    """
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = list(dict.fromkeys(key for view in views for key in view.keys))
    absent = [key for key in keys if key not in rows.columns]
    if absent:
        raise InputError(
            f"The rows to join lack the keys {', '.join(absent)}.",
            field=", ".join(absent),
            remedy="Make them with spine().",
        )
    files.require_whole()
    asked = pa.table(
        {
            "row": pa.array(range(len(rows)), pa.int64()),
            "stamp": pa.Array.from_pandas(stamps, type=pa.timestamp("us", tz="UTC")),
            **{
                key: pa.Array.from_pandas(rows[key].astype("string[pyarrow]"), type=pa.string())
                for key in keys
            },
        }
    )
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.register("asked", asked)
        joins = []
        for view in views:
            with UPath(files.of(view.name).path).open("rb") as stored:
                connection.register(view.name, pq.read_table(stored))
            met = " AND ".join(f'asked."{key}" = "{view.name}"."{key}"' for key in view.keys)
            joins.append(
                f'ASOF LEFT JOIN "{view.name}" ON {met} AND asked.stamp >= "{view.name}".{TIMESTAMP}'
            )
        names = ", ".join(f'"{view.name}"."{name}"' for view in views for name in view.feature_names)
        found = connection.sql(
            f"SELECT {names} FROM asked {' '.join(joins)} ORDER BY asked.row"
        ).to_arrow_table()
    dtypes = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype("pyarrow")}
    return found.to_pandas(types_mapper=dtypes.get, self_destruct=True)[list(feature_names(views))]
