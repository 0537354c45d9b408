"""The reference of drift: training rows and what the model says of them, beside a day's prediction log."""

from __future__ import annotations

import datetime as dt

import pandas as pd

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.modelling.model_input import model_input
from e2i_dagster.monitoring.drift import DriftReport, detect_drift
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training import TrainedModel


def compare_with_training(
    model: TrainedModel,
    rows: VisibleRows,
    log: pd.DataFrame,
    *,
    policy: DriftPolicy,
    scope: str,
    day: dt.date,
    model_id: str,
) -> DriftReport:
    """Drift of a day's requests and answers against the training reference.

    Features are compared with the training rows. Predictions are compared with those for the validation
    rows: a model is surer of the rows that it was fitted on, which would look like drift.

    Args:
        rows: those that ``model`` was fitted on, and its validation rows.
        log: prediction log of the day: ``prediction`` and the model's features.
    """
    return detect_drift(
        model_input(rows.train.features, model.kinds),
        model_input(log, model.kinds),
        policy=policy,
        scope=scope,
        day=day,
        model_id=model_id,
        predictions=(pd.Series(model.logged_values(rows.validation.features)), log["prediction"]),
    )
