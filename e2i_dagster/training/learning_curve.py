"""Learning curve: how well the same algorithm and hyperparameters do when they learn from fewer patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.display import Table
from e2i_dagster.modelling.estimators import raw_scores
from e2i_dagster.modelling.problem import CLASSIFICATION, HEADLINE
from e2i_dagster.reports import figure_png, new_figure
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.fit import TrainedModel
from e2i_dagster.training.influence import METRICS, normal_interval
from e2i_dagster.training.refit import refit


class LearningPoint(BaseModel):
    """What was learned from a part of the training patients.

    Attributes:
        fraction: part of the training patients.
        rows: how many those are.
        validation: the headline metric on the validation patients; None values where it was not fitted.
        reason: why it was not fitted.
    """

    model_config = ConfigDict(frozen=True)

    fraction: float
    rows: int
    validation: Estimate
    reason: str = ""


def learning_curve(model: TrainedModel, rows: VisibleRows, policy: OptunaPolicy) -> tuple[LearningPoint, ...]:
    """Fit preprocessing and estimator again on growing parts of the training patients.

    Each part holds the smaller ones. Nothing is searched and nothing calibrated: the metric is one of order, or of a
    number. The validation patients chose the hyperparameters, so that the values are optimistic; their course is not.

    Returns:
        A point for each fraction of the policy with its interval by normal approximation; none when the policy
        switches the curve off.
    """
    rules = policy.evaluation.learning_curve
    if not rules.enabled:
        return ()
    metric = HEADLINE[model.problem_type]
    whose = rows.train.whose
    order = np.random.default_rng(policy.evaluation.seed).permutation(int(whose.max(initial=-1)) + 1)
    points = []
    for fraction in rules.fractions:
        # In the order of the rows, so that all of them are fitted as the model was.
        part = np.flatnonzero(np.isin(whose, order[: round(fraction * len(order))]))
        target = rows.train.target[part]
        reason = _not_fitted(target, model, policy, rules.maximum_rows)
        measured = Estimate(value=None, low=None, high=None)
        if not reason:
            again = refit(model, rows.train, part, policy)
            scores = raw_scores(again.estimator, again.matrix(rows.validation.features), model.problem_type)
            found = METRICS[model.problem_type][metric](rows.validation.target, scores)
            measured = normal_interval(metric, found, policy.evaluation.level, rows.validation.patients)
        points.append(LearningPoint(fraction=fraction, rows=len(part), validation=measured, reason=reason))
    return tuple(points)


def learning_table(points: Sequence[LearningPoint], metric: str) -> Table:
    """A row for each point."""
    return Table(
        ("part of the training patients", "patients", f"{metric} on validation", "state"),
        [
            (
                *(point.fraction, point.rows, point.validation.with_interval),
                f"not fitted: {point.reason}" if point.reason else "fitted",
            )
            for point in points
        ],
        formats={"part of the training patients": ".0%"},
        note="The same hyperparameters on each part; parts are nested.",
        empty="skipped: evaluation.learning_curve.enabled is false in optuna_config.yaml",
    )


def learning_figure(points: Sequence[LearningPoint], metric: str) -> bytes:
    """The curve with its interval, as PNG."""
    figure = new_figure(6.0, 4.0)
    axis = figure.subplots()
    fitted = [point for point in points if point.validation.value is not None]
    values = np.array([point.validation.with_interval for point in fitted], dtype="float64").reshape(-1, 3)
    counts = [point.rows for point in fitted]
    axis.plot(counts, values[:, 0], "o-", color="#0969da", label="validation")
    axis.fill_between(counts, values[:, 1], values[:, 2], color="#0969da", alpha=0.15, linewidth=0)
    axis.set(title="Learning curve", xlabel="training patients", ylabel=metric)
    axis.legend(frameon=False)
    return figure_png(figure)


def _not_fitted(target: np.ndarray, model: TrainedModel, policy: OptunaPolicy, most: int) -> str:
    needed = policy.evaluation.minimum_per_class
    if len(target) > most:
        return f"more than {most} patients (evaluation.learning_curve.maximum_rows)"
    if model.problem_type in CLASSIFICATION:
        smallest, of = int(np.bincount(target, minlength=len(model.classes) or 2).min()), " of one outcome"
    elif model.problem_type == "survival":
        smallest, of = int((target > 0).sum()), " with the event"
    else:
        smallest, of = len(target), ""
    return f"fewer than {needed} patients{of}" if smallest < needed else ""
