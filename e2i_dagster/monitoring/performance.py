"""Performance of a deployed model: measured with the labels that are closed, estimated before.

The estimate takes each score for a probability, as far as the validation rows confirm that (confidence-based
estimation), and draws the labels that will come. It follows shifts of the patients, however large, while the outcome
depends on the features as before. It fails under concept drift: when the same patients come to have another outcome,
the estimate stays where it was. That is why a measurement outside its interval is called concept drift.

Guo et al., On Calibration of Modern Neural Networks (2017), for what a calibrated score is; Garg et al., Leveraging
Unlabeled Data to Predict Out-of-Distribution Performance (2022), for the estimate and its limits.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.drift_monitoring import DriftPolicy, PerformanceRule, Severity
from e2i_dagster.display import Table
from e2i_dagster.monitoring.impact import loss_against
from e2i_dagster.monitoring.labels import SettledLabels
from e2i_dagster.monitoring.profile import ModelReference, Recalibration
from e2i_dagster.reports import drawn, new_figure
from e2i_dagster.training.evaluate import Estimate
from e2i_dagster.training.metrics import binary_metrics, interval, regression_metrics, resamples

Concept = Literal["within", "outside", "not_estimable"]

_SEED = 42
#: Cells of one block of draws: bounds memory at about 100 MB.
_BLOCK_CELLS = 4_000_000
#: What the estimate cannot see; said wherever it is shown.
FAILURE_MODE = (
    "An estimate without labels holds while patients with the same features have the outcome as often as before. "
    "Under concept drift it stays where it was; only closed labels show that."
)


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

    @property
    def note(self) -> str:
        """What is not known, and why."""
        if not self.windows:
            return "performance of this kind of problem is not measured"
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


def performance_report(
    model: ModelReference | None,
    labels: SettledLabels,
    *,
    policy: DriftPolicy,
    scope: str,
    day: dt.date,
    model_id: str,
) -> PerformanceReport:
    """Performance of the predictions of ``model_id`` in windows that end with ``day``.

    ``model`` is None for a kind of problem whose performance is not measured; the report then says so.
    """
    about: dict[str, Any] = {"scope": scope, "day": day, "model_id": model_id, "labels": labels.counts}
    if model is None:
        nothing = Estimate(value=None, low=None, high=None)
        return PerformanceReport(
            **about, metric="unavailable", reference=nothing, reference_split="none", windows=(),
            basis=None, loss=None, severity="none", concept_drift=False,
        )  # fmt: skip
    rule = policy.performance
    rows = labels.predictions
    rows = rows[(rows["model_id"] == model_id) & (rows["state"] != "repeated")]
    days = pd.to_datetime(rows["predicted_at"], utc=True).dt.date
    windows = []
    for number in reversed(range(rule.windows)):
        last = day - dt.timedelta(days=number * rule.window_days)
        first = last - dt.timedelta(days=rule.window_days - 1)
        windows.append(_window(model, rows[(days >= first) & (days <= last)], rule, first, last))
    basis, loss, severity = _loss(model, windows, policy)
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
    )


def estimate_binary(
    model: ModelReference, scores: np.ndarray, rule: PerformanceRule, *, level: float, seed: int = _SEED
) -> Estimate | None:
    """Performance of ``scores`` without labels, with the interval in which the measured one will lie.

    The value is the metric with each score's probability as its label. The interval is that of ``rule.resamples``
    draws of labels, each with another draw of the recalibration, so that it holds the chance in the labels and how
    little the validation rows say of the probabilities. None when the scores are no probabilities (no recalibration).
    """
    if model.recalibration is None or model.threshold is None or not len(scores):
        return None
    twice, both = np.concatenate([scores, scores]), np.repeat([1, 0], len(scores))

    def metric(positive: np.ndarray) -> np.ndarray:
        weights = np.concatenate([positive, 1 - positive], axis=1)
        return binary_metrics(both, twice, model.threshold or 0.5, weights)[model.metric]

    value = float(metric(recalibrated(scores, model.recalibration)[None, :])[0])
    drawn_values = np.concatenate(
        [metric(block) for block in _drawn_labels(model, scores, rule.resamples, seed)]
    )
    low, high = interval(drawn_values, level)
    return _estimate(value, low, high)


def recalibrated(
    scores: np.ndarray, line: Recalibration, coefficients: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities of ``scores`` (n,) by the recalibration, or by each row of other coefficients (B, 2)."""
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    logit = np.log(clipped) - np.log1p(-clipped)
    if coefficients is None:
        return 1 / (1 + np.exp(-(line.intercept + line.slope * logit)))
    return 1 / (1 + np.exp(-(coefficients[:, :1] + coefficients[:, 1:] * logit)))


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
    return _estimate(value, low, high)


def recalibrate(target: np.ndarray, scores: np.ndarray) -> Recalibration | None:
    """Logistic regression of ``target`` on logit(score); None where the likelihood has no finite maximum."""
    from scipy.special import logit
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(target)) < 2 or len(np.unique(scores)) < 2:
        return None
    odds = logit(np.clip(scores, 1e-12, 1 - 1e-12))
    fitted = LogisticRegression(C=np.inf, max_iter=1_000).fit(odds[:, None], target)
    chance = fitted.predict_proba(odds[:, None])[:, 1]
    design = np.column_stack([np.ones_like(odds), odds])
    information = design.T @ (design * (chance * (1 - chance))[:, None])
    if not np.isfinite(information).all() or np.linalg.cond(information) > 1e12:
        return None
    (a, b), (c, d) = np.linalg.inv(information).tolist()
    return Recalibration(
        intercept=float(fitted.intercept_[0]), slope=float(fitted.coef_[0, 0]), covariance=((a, b), (c, d))
    )


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
        estimated = estimate_binary(model, scores, rule, level=rule.level)
        if estimated is None:
            reasons.append("no estimate without labels: the scores are no calibrated probabilities")
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
        expected = estimate_binary(model, known, rule, level=rule.concept_level)
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


def _drawn_labels(model: ModelReference, scores: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of drawn labels, shape (b, n)."""
    assert model.recalibration is not None
    line, generator = model.recalibration, np.random.default_rng(seed)
    block = max(1, min(draws, _BLOCK_CELLS // (2 * len(scores))))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        coefficients = generator.multivariate_normal([line.intercept, line.slope], line.covariance, size=size)
        chance = recalibrated(scores, line, coefficients)
        yield (generator.random(chance.shape) < chance).astype("float64")


def _estimate(value: float, low: float, high: float) -> Estimate | None:
    if not np.isfinite(value):
        return None
    return Estimate(
        value=value, low=low if np.isfinite(low) else None, high=high if np.isfinite(high) else None
    )


def _ends(name: str, found: Estimate | None) -> dict[str, float | None]:
    return {
        name: found and found.value,
        f"{name}_low": found and found.low,
        f"{name}_high": found and found.high,
    }
