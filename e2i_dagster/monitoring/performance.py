"""Performance of a deployed model: measured with the labels that are closed, estimated before (:mod:`.estimate`).

The estimate holds while the outcome depends on the features as before. That is why a measurement outside its interval
is called concept drift.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.drift_monitoring import DriftPolicy, PerformanceRule, Severity
from e2i_dagster.display import Table
from e2i_dagster.monitoring.drift_report import FeatureDrift
from e2i_dagster.monitoring.estimate import (
    FAILURE_MODE,
    estimate_of,
    estimate_performance,
    why_no_estimate,
)
from e2i_dagster.monitoring.impact import loss_against
from e2i_dagster.monitoring.label_drift import measure_labels
from e2i_dagster.monitoring.labels import SettledLabels
from e2i_dagster.monitoring.profile import ModelReference
from e2i_dagster.reports import drawn, new_figure
from e2i_dagster.training.evaluate import Estimate
from e2i_dagster.training.metrics import binary_metrics, interval, regression_metrics, resamples

Concept = Literal["within", "outside", "not_estimable"]

_SEED = 42


class WindowPerformance(BaseModel):
    """One window of predictions.

    Attributes:
        predictions, closed: how many, and how many of them have a label that counts.
        estimated: of all predictions, without labels; the interval holds what will be measured.
        expected: the same of the closed predictions alone, at the level of the test for concept drift.
        realised: measured with the closed labels.
        concept: whether ``realised`` lies in ``expected``.
        reason: why something is not estimable.
    """

    model_config = ConfigDict(frozen=True)

    first_day: dt.date
    last_day: dt.date
    predictions: int
    closed: int
    estimated: Estimate | None
    expected: Estimate | None
    realised: Estimate | None
    concept: Concept
    reason: str = ""


class PerformanceReport(BaseModel):
    """Performance of a scope's model up to a day.

    Attributes:
        reference: performance before deployment, on ``reference_split``.
        windows: oldest first; days without a prediction are windows with none.
        labels: predictions by state and labels by result (:attr:`.labels.SettledLabels.counts`).
        basis, loss: of the newest window, measured or estimated; of the newest measured one while that lies outside
            its estimate. None: neither is known.
        severity: of a loss that is not chance.
        concept_drift: the newest measured window lies outside its estimate.
        label: drift of the outcome in the newest window with enough closed labels, not yet judged.
        unavailable: why performance of this kind of model is neither measured nor estimated; empty when it is.
    """

    model_config = ConfigDict(frozen=True)

    scope: str
    day: dt.date
    model_id: str
    metric: str
    reference: Estimate
    reference_split: str
    windows: tuple[WindowPerformance, ...]
    labels: dict[str, int]
    basis: Literal["realised", "estimated"] | None
    loss: float | None
    severity: Severity
    concept_drift: bool
    label: FeatureDrift | None = None
    unavailable: str = ""

    @property
    def note(self) -> str:
        """What is not known, and why."""
        if not self.windows:
            return f"performance is unavailable: {self.unavailable}"
        reasons = [window.reason for window in self.windows[-1:] if window.reason]
        return "; ".join(reasons)

    def to_metadata(self) -> dict[str, Any]:
        """Values for people, the newest window first, with the chart."""
        return {
            "metric": self.metric,
            "reference": Table((self.reference_split,), [(self.reference.with_interval,)]),
            "loss": self.loss,
            "rests_on": self.basis or "nothing: neither estimated nor measured",
            "severity": self.severity,
            "concept_drift": self.concept_drift,
            "predictions_and_labels": Table(("state", "rows"), self.labels.items()),
            "windows": Table(
                ("from", "to", "predictions", "closed labels", "estimated", "realised", "concept", "note"),
                [
                    (
                        window.first_day,
                        window.last_day,
                        window.predictions,
                        window.closed,
                        window.estimated and window.estimated.with_interval,
                        window.realised and window.realised.with_interval,
                        window.concept.replace("_", " "),
                        window.reason,
                    )
                    for window in reversed(self.windows)
                    if window.predictions
                ],
                note=FAILURE_MODE,
                empty="no predictions yet",
            ),
            "chart": drawn(performance_figure(self), "estimated and realised performance by window"),
        }

    def to_record(self) -> list[dict[str, Any]]:
        """Rows for ``ml_performance_history``, without the run id; windows without a prediction are left out."""
        return [
            {
                "scope": self.scope,
                "day": self.day,
                "model_id": self.model_id,
                "metric": self.metric,
                "first_day": window.first_day,
                "last_day": window.last_day,
                "predictions": window.predictions,
                "closed_labels": window.closed,
                **_ends("estimated", window.estimated),
                **_ends("realised", window.realised),
                "concept": window.concept,
                "reason": window.reason,
            }
            for window in self.windows
            if window.predictions
        ]


class PerformanceHistory:
    """Performance of the predictions of ``model_id``, day by day; a window of several days is measured once.

    Args:
        model: None for a kind of problem whose performance is not measured; ``unavailable`` says why not.
    """

    def __init__(
        self,
        model: ModelReference | None,
        labels: SettledLabels,
        *,
        unavailable: str = "",
        policy: DriftPolicy,
        scope: str,
        model_id: str,
    ) -> None:
        self.model, self.labels, self.unavailable = model, labels, unavailable
        self.policy, self.scope, self.model_id = policy, scope, model_id
        rows = labels.predictions
        self._rows = rows[(rows["model_id"] == model_id) & (rows["state"] != "repeated")]
        self._days = pd.to_datetime(self._rows["predicted_at"], utc=True).dt.date
        self._windows: dict[tuple[dt.date, dt.date], tuple[WindowPerformance, pd.Series]] = {}

    def report(self, day: dt.date) -> PerformanceReport:
        """The report of ``day``, in windows that end with it; later predictions are not known in it."""
        model, rule = self.model, self.policy.performance
        known = self.labels.until(day).counts
        about: dict[str, Any] = {"scope": self.scope, "day": day, "model_id": self.model_id, "labels": known}
        if model is None:
            nothing = Estimate(value=None, low=None, high=None)
            return PerformanceReport(
                **about, metric="unavailable", reference=nothing, reference_split="none", windows=(),
                basis=None, loss=None, severity="none", concept_drift=False, unavailable=self.unavailable,
            )  # fmt: skip
        windows, closed = [], self._rows["label"].iloc[:0]
        for number in reversed(range(rule.windows)):
            last = day - dt.timedelta(days=number * rule.window_days)
            first = last - dt.timedelta(days=rule.window_days - 1)
            if (first, last) not in self._windows:
                inside = self._rows[(self._days >= first) & (self._days <= last)]
                measured = _window(model, inside, rule, first, last)
                self._windows[first, last] = measured, inside.loc[inside["state"] == "closed", "label"]
            window, labelled = self._windows[first, last]
            windows.append(window)
            closed = labelled if len(labelled) >= min(rule.minimum_labels, len(closed)) else closed
        basis, loss, severity = _loss(model, windows, self.policy)
        measured = [window.concept for window in windows if window.concept != "not_estimable"]
        return PerformanceReport(
            **about,
            metric=model.metric,
            reference=model.performance,
            reference_split=model.split,
            windows=tuple(windows),
            basis=basis,
            loss=loss,
            severity=severity,
            concept_drift=bool(measured) and measured[-1] == "outside",
            label=measure_labels(model, closed, self.policy),
        )


def performance_report(
    model: ModelReference | None, labels: SettledLabels, *, day: dt.date, **about: Any
) -> PerformanceReport:
    """The report of one ``day`` (:class:`PerformanceHistory`, whose arguments ``about`` are)."""
    return PerformanceHistory(model, labels, **about).report(day)


def realised(
    model: ModelReference, scores: np.ndarray, target: np.ndarray, rule: PerformanceRule
) -> Estimate | None:
    """Performance of ``scores`` with their labels, with a bootstrap interval; None when it is not defined."""

    def metric(weights: np.ndarray | None = None) -> np.ndarray:
        if model.threshold is None:
            return regression_metrics(target, scores, weights)[model.metric]
        return binary_metrics(target, scores, model.threshold, weights)[model.metric]

    value = float(metric()[0])
    drawn_values = np.concatenate([metric(block) for block in resamples(len(target), rule.resamples, _SEED)])
    low, high = interval(drawn_values, rule.level)
    return estimate_of(value, low, high)


def performance_figure(report: PerformanceReport) -> Any:
    """Estimated and realised performance of each window with their intervals, and the reference."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    shown = [window for window in report.windows if window.predictions]
    for name, colour, marker, shift in (
        ("estimated", "#2e86c1", "s", -0.1),
        ("realised", "#1b1f24", "o", 0.1),
    ):
        points = [
            (place, found)
            for place, window in enumerate(shown)
            if (found := getattr(window, name)) is not None
        ]
        if points:
            at = [place + shift for place, _ in points]
            values = [found.value for _, found in points]
            ends = [[abs(found.value - (found.value if end is None else end)) for _, found in points
                     for end in [getattr(found, side)]] for side in ("low", "high")]  # fmt: skip
            axes.errorbar(
                at, values, yerr=ends, fmt=marker, color=colour, capsize=2, markersize=4, label=name
            )
    outside = [
        (place, window.realised)
        for place, window in enumerate(shown)
        if window.concept == "outside" and window.realised
    ]
    if outside:
        axes.scatter(
            [place + 0.1 for place, _ in outside], [found.value for _, found in outside],
            s=110, facecolors="none", edgecolors="#b03a2e", label="outside the estimate",
        )  # fmt: skip
    if report.reference.value is not None:
        axes.axhline(report.reference.value, color="#7f8c8d", linestyle=":", label=report.reference_split)
    axes.set_xticks(
        range(len(shown)), [f"{window.last_day:%d %b}" for window in shown], rotation=60, fontsize=7
    )
    axes.set_ylabel(report.metric)
    axes.set_xlabel("last day of the window")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
    return figure


def _window(
    model: ModelReference, rows: pd.DataFrame, rule: PerformanceRule, first: dt.date, last: dt.date
) -> WindowPerformance:
    closed = rows[rows["state"] == "closed"]
    reasons = []
    estimated = expected = measured = None
    scores = rows["score"].to_numpy("float64")
    if not len(rows):
        reasons.append("no predictions")
    elif len(rows) < rule.minimum_predictions:
        reasons.append(f"an estimate needs {rule.minimum_predictions} predictions, found {len(rows)}")
    else:
        estimated = estimate_performance(model, scores, rule, level=rule.level)
        if reason := why_no_estimate(model, scores):
            reasons.append(reason)
    target = closed["label"].to_numpy("float64")
    rarer = 0 if model.threshold is None or not len(closed) else int(min(target.sum(), (1 - target).sum()))
    if len(closed) < rule.minimum_labels:
        if len(rows):
            reasons.append(f"a measurement needs {rule.minimum_labels} closed labels, found {len(closed)}")
    elif model.threshold is not None and rarer < rule.minimum_per_class:
        reasons.append(
            f"a measurement needs {rule.minimum_per_class} labels of the rarer outcome, found {rarer}"
        )
    else:
        known = closed["score"].to_numpy("float64")
        measured = realised(model, known, target, rule)
        expected = estimate_performance(model, known, rule, level=rule.concept_level)
    return WindowPerformance(
        first_day=first,
        last_day=last,
        predictions=len(rows),
        closed=len(closed),
        estimated=estimated,
        expected=expected,
        realised=measured,
        concept=_concept(measured, expected),
        reason="; ".join(reasons),
    )


def _concept(measured: Estimate | None, expected: Estimate | None) -> Concept:
    if (
        measured is None
        or measured.value is None
        or expected is None
        or expected.low is None
        or expected.high is None
    ):
        return "not_estimable"
    return "within" if expected.low <= measured.value <= expected.high else "outside"


def _loss(
    model: ModelReference, windows: list[WindowPerformance], policy: DriftPolicy
) -> tuple[Literal["realised", "estimated"] | None, float | None, Severity]:
    """What the report's loss rests on, the loss, and its severity.

    The newest window that was measured or estimated, measured where both. But while the newest measurement lies
    outside its estimate, estimates are not to be believed, and the measurement holds for the windows after it.
    """
    at = {
        name: max(
            (place for place, window in enumerate(windows) if getattr(window, name) is not None), default=-1
        )
        for name in ("realised", "estimated")
    }
    if max(at.values()) < 0:
        return None, None, "none"
    measured = at["realised"] >= 0 and (
        at["realised"] >= at["estimated"] or windows[at["realised"]].concept == "outside"
    )
    basis = "realised" if measured else "estimated"
    loss, certain = _loss_of(model, getattr(windows[at[basis]], basis))
    if loss is None:
        return None, None, "none"
    return basis, loss, policy.performance.loss.severity_of(loss) if certain else "none"


def _loss_of(model: ModelReference, found: Estimate) -> tuple[float | None, bool]:
    """The loss against the reference, and whether it is more than the two intervals explain."""
    reference = model.performance
    if found.value is None or reference.value is None:
        return None, False
    loss = loss_against(reference.value, found.value, model.metric)
    # Half widths, added as those of independent figures.
    chance, at_deployment = (
        (scores.high - scores.low) / 2 if scores.low is not None and scores.high is not None else np.inf
        for scores in (found, reference)
    )
    return loss, bool(abs(found.value - reference.value) > np.hypot(chance, at_deployment))


def _ends(name: str, found: Estimate | None) -> dict[str, float | None]:
    return {
        name: found and found.value,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }
