"""What an endpoint was asked and answered: the live rows of ``ml_predictions``."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.tables import raw_table


def read_prediction_log(
    connection: sa.Connection, *, day: dt.date, model_name: str, features: Sequence[str]
) -> pd.DataFrame:
    """Live predictions of all versions of ``model_name`` on ``day`` (UTC).

    Returns:
        One row per answer: prediction_id, request_id, model_id, prediction_timestamp, prediction, and
        one column per feature as the endpoint received it (missing: null). The patient is not in it.
    """
    table = raw_table("ml_predictions")
    start = dt.datetime.combine(day, dt.time(), dt.UTC)
    rows = connection.execute(
        sa.select(
            table.c.prediction_id,
            table.c.request_id,
            table.c.model_id,
            table.c.prediction_timestamp,
            table.c.prediction_value,
            table.c.features_available_at_prediction,
        )
        .where(
            table.c.origin == "live",
            table.c.model_id.startswith(f"{model_name}/", autoescape=True),
            table.c.prediction_timestamp >= start,
            table.c.prediction_timestamp < start + dt.timedelta(days=1),
        )
        .order_by(table.c.prediction_timestamp, table.c.prediction_id)
    ).all()
    keys = pd.DataFrame(
        [row[:5] for row in rows],
        columns=["prediction_id", "request_id", "model_id", "prediction_timestamp", "prediction"],
    ).astype(
        {
            "prediction_id": "string",
            "request_id": "string",
            "model_id": "string",
            "prediction_timestamp": "datetime64[us, UTC]",
            "prediction": "float64",
        }
    )
    asked = pd.DataFrame(
        [json.loads(row[5]) if isinstance(row[5], str) else (row[5] or {}) for row in rows],
        columns=list(features),
    )
    return pd.concat([keys, asked], axis=1)
