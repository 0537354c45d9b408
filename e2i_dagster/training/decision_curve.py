"""Decision curve of a model of an event: what acting on its predictions gains against acting on all or on nobody."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import SMALLEST_SHOWN
from e2i_dagster.config.optuna_config import EvaluationPolicy
from e2i_dagster.display import Table
from e2i_dagster.reports import figure_png, new_figure
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.metrics import interval, net_benefit, resamples

#: Thresholds of the curve, and the rows of its table.
_THRESHOLDS = np.arange(1, 100) / 100
_TABLE_STEP = 5


class DecisionPoint(BaseModel):
    """Net benefit at one threshold; acting on nobody has none (0).

    Attributes:
        net_benefit: of acting on patients whose probability reaches the threshold.
        treat_all: of acting on everybody.
        gain: ``net_benefit`` minus the better of acting on everybody and on nobody, in the same resamples.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float
    net_benefit: Estimate
    treat_all: float
    gain: Estimate


def decision_curve(
    target: np.ndarray, scores: np.ndarray, rules: EvaluationPolicy, patients: np.ndarray | None = None
) -> tuple[DecisionPoint, ...]:
    """Net benefit at thresholds of 1 % to 99 %, without those that fewer than 11 patients reach.

    Args:
        target: 0/1, shape (n,).
        scores: probability of 1, shape (n,).
        patients: see :func:`~.metrics.resamples`.

    Returns:
        The points with percentile bootstrap intervals over patients; see :func:`~.metrics.net_benefit`.
    """
    reached = (scores[:, None] >= _THRESHOLDS).sum(axis=0)
    thresholds = _THRESHOLDS[reached >= SMALLEST_SHOWN]
    everybody = np.ones(len(target))
    model, treat_all = (net_benefit(target, values, thresholds)[0] for values in (scores, everybody))
    drawn, gains = [], []
    for block in resamples(len(target), rules.bootstrap, rules.seed, patients):
        drawn.append(net_benefit(target, scores, thresholds, block))
        gains.append(drawn[-1] - np.maximum(net_benefit(target, everybody, thresholds, block), 0))
    model_drawn, gain_drawn = np.concatenate(drawn), np.concatenate(gains)
    return tuple(
        DecisionPoint(
            threshold=float(threshold),
            net_benefit=Estimate.of(model[place], *interval(model_drawn[:, place], rules.level)),
            treat_all=float(treat_all[place]),
            gain=Estimate.of(
                model[place] - max(treat_all[place], 0), *interval(gain_drawn[:, place], rules.level)
            ),
        )
        for place, threshold in enumerate(thresholds)
    )


def decision_table(points: Sequence[DecisionPoint]) -> Table:
    """The points at every fifth percent."""
    rows = [point for point in points if round(point.threshold * 100) % _TABLE_STEP == 0]
    return Table(
        ("threshold", "net benefit", "treat all", "treat none", "minus the better of the two"),
        [
            (
                *(point.threshold, point.net_benefit.with_interval, point.treat_all, 0.0),
                point.gain.with_interval,
            )
            for point in rows
        ],
        formats={"threshold": ".0%"},
        note=f"Test rows. Thresholds that fewer than {SMALLEST_SHOWN} patients reach are left out.",
        empty=f"no threshold is reached by {SMALLEST_SHOWN} patients",
    )


def decision_figure(points: Sequence[DecisionPoint]) -> bytes:
    """The curve with its interval beside treat-all and treat-none, as PNG."""
    figure = new_figure(6.0, 4.0)
    axis = figure.subplots()
    thresholds = [point.threshold for point in points]
    values = np.array([point.net_benefit.with_interval for point in points], dtype="float64").reshape(-1, 3)
    treat_all = [point.treat_all for point in points]
    axis.axhline(0, color="#8c959f", linewidth=1, label="treat none")
    axis.plot(thresholds, treat_all, color="#0969da", linewidth=1, label="treat all")
    axis.plot(thresholds, values[:, 0], color="#cf222e", label="model, test")
    axis.fill_between(thresholds, values[:, 1], values[:, 2], color="#cf222e", alpha=0.15, linewidth=0)
    highest = float(np.nanmax([0.01, *treat_all, *values.ravel()]))
    axis.set(
        title="Decision curve",
        xlabel="threshold probability",
        ylabel="net benefit",
        xlim=(0, 1),
        ylim=(-0.2 * highest, 1.05 * highest),
    )
    axis.legend(frameon=False)
    return figure_png(figure)
