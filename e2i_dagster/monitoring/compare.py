"""The reference profile of a model, and a day's prediction log beside it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import numpy as np
import pandas as pd

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.modelling.model_input import Kind, model_input
from e2i_dagster.monitoring.drift import detect_drift
from e2i_dagster.monitoring.drift_report import DriftReport, FeatureDrift
from e2i_dagster.monitoring.estimate import fit_error_size, recalibrate
from e2i_dagster.monitoring.label_drift import label_values
from e2i_dagster.monitoring.profile import (
    ModelReference,
    ReferenceProfile,
    places_in,
    profile_frame,
    profile_values,
    sample_rows,
)
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training import Evaluation, TrainedModel
from e2i_dagster.training.evaluate import Estimate

#: What performance is measured by, for each kind of problem.
METRICS = {"binary_classification": "roc_auc", "regression": "rmse"}
#: Why it is not measured of other kinds.
UNAVAILABLE = {
    "survival": (
        "of a time to an event, follow-up ends early for some patients, and neither the log nor a label says for whom "
        "it will; without the outcome at the horizon no estimate of the concordance can be confirmed"
    ),
    "multiclass_classification": (
        "of several classes, the log holds the probability of the most probable class and not which class it is, so "
        "that no label can be compared with it"
    ),
}
_NOT_EVALUATED = "the model was not evaluated on rows that it was not fitted on"
_SEED = 42


def profile_model(
    model: TrainedModel,
    rows: VisibleRows,
    *,
    policy: DriftPolicy,
    evaluation: Evaluation | None = None,
    importance: Mapping[str, float] | None = None,
) -> ReferenceProfile:
    """The reference of ``model``: its training rows, its scores, and what it reached.

    Features are those of the training rows. Predictions are those for the validation rows: a model is surer of the
    rows that it was fitted on, which would look like drift.

    Args:
        rows: those that ``model`` was fitted on, and its validation rows.
        evaluation: gives the performance that later days are compared with: on test, or on validation where test
            was not opened. Without it nothing is said of performance.
        importance: feature -> share of the model's importance.
    """
    features = model_input(rows.train.features, model.kinds)
    profile = profile_frame(features, bins=policy.psi_bins)
    scores = np.asarray(model.logged_values(rows.validation.features))
    binary = model.problem_type == "binary_classification"
    metric = METRICS.get(model.problem_type)
    reference = None
    reached = None if evaluation is None or metric is None else _performance(evaluation, metric)
    if reached is not None and metric is not None:
        judged = model_input(rows.validation.features, model.kinds)
        reference = ModelReference(
            metric=metric,
            performance=reached[1],
            split=reached[0],
            threshold=model.threshold,
            scores=tuple(scores.tolist()),
            target=tuple(np.asarray(rows.validation.target, dtype="float64").tolist()),
            places={
                name: tuple(places_in(feature, judged[name]).tolist())
                for name, feature in profile.features.items()
            },
            importance=dict(importance or {}),
            recalibration=recalibrate(rows.validation.target, scores) if binary else None,
            label=profile_values(label_values(rows.train.target, binary=binary), bins=policy.psi_bins),
            error_size=None if binary else fit_error_size(rows.validation.target, scores),
        )
    return profile.model_copy(
        update={
            "model_digest": model.digest,
            "prediction": profile_values(pd.Series(scores), bins=policy.psi_bins),
            "model": reference,
            "unavailable": "" if reference else UNAVAILABLE.get(model.problem_type, _NOT_EVALUATED),
            "sample": sample_rows(features, policy.multivariate.sample, _SEED),
        }
    )


def compare_with_profile(
    profile: ReferenceProfile,
    log: pd.DataFrame,
    *,
    kinds: Mapping[str, Kind],
    policy: DriftPolicy,
    scope: str,
    day: dt.date,
    model_id: str,
    label: FeatureDrift | None = None,
) -> DriftReport:
    """Drift of a day's requests and answers against the reference of the model.

    Args:
        log: prediction log of the day: ``prediction_id``, ``prediction`` and the model's features. The same
            prediction twice counts once.
        kinds: the model's features (:attr:`~e2i_dagster.training.TrainedModel.kinds`).
        label: of closed labels against training (:attr:`.performance.PerformanceReport.label`).
    """
    once = log.drop_duplicates("prediction_id") if "prediction_id" in log else log
    return detect_drift(
        profile,
        model_input(once, kinds),
        policy=policy,
        scope=scope,
        day=day,
        model_id=model_id,
        predictions=(None, once["prediction"]),
        label=label,
    )


def _performance(evaluation: Evaluation, metric: str) -> tuple[str, Estimate] | None:
    """The split and the value that later days are compared with."""
    for split in ("test", "validation"):
        measured = evaluation.splits.get(split)
        if measured is not None and metric in measured.metrics:
            return split, measured.metrics[metric]
    return None
