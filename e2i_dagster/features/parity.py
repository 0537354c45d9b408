"""Which entities the comparisons of values made in two ways look at."""

from __future__ import annotations

import pandas as pd

from e2i_dagster.features.snapshots import FeatureFiles


def sample_of(files: FeatureFiles, rows: int = 200) -> pd.DataFrame:
    """The first ``rows`` patients of the patient view, in order of their key: column patient_id."""
    import pyarrow.parquet as pq

    keys = pq.read_table(files.of("patient_features").path, columns=["patient_id"]).to_pandas()
    return keys.drop_duplicates().sort_values("patient_id").head(rows).reset_index(drop=True)


def sample_rows(rows: pd.DataFrame, count: int = 500) -> pd.DataFrame:
    """``count`` of ``rows`` spread over all of them, in their order."""
    return rows.iloc[:: max(1, -(-len(rows) // count))].reset_index(drop=True)
