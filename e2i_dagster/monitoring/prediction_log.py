"""What an endpoint was asked and answered: the live rows of ``ml_predictions``."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

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
    logged = [json.loads(row[5]) if isinstance(row[5], str) else row[5] for row in rows]
    # What is no object has no feature; the answers beside it are whole.
    received = [document if isinstance(document, dict) else {} for document in logged]
    asked = pd.DataFrame(
        {name: _column([row.get(name) for row in received]) for name in features}, index=keys.index
    )
    return pd.concat([keys, asked], axis=1)


def _column(values: Sequence[Any]) -> pd.Series:
    """Logged values of one feature as a column that can be stored, whatever single rows hold.

    The database writes 1e30 as a whole number, which no integer type takes: such a number becomes a float, and
    missing when no float can hold it. Of values of several kinds, the kind of most rows stays and the others are
    missing.
    """
    kinds = Counter(_kind(value) for value in values if value is not None)
    most = kinds.most_common(1)[0][0] if kinds else None
    kept = [value if value is not None and _kind(value) == most else None for value in values]
    if most == "number" and any(isinstance(value, int) and abs(value) >= 2**63 for value in kept):
        return pd.Series([_float(value) for value in kept], dtype="float64")
    return pd.Series(kept, dtype=None if most else "object")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__


def _float(value: float | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
