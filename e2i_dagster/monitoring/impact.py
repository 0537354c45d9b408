"""What a feature's drift is expected to do to the model's performance.

The validation rows, whose outcomes are known, are weighted so that the feature is distributed as it is now; the
change of the metric under these weights is the loss expected of that drift alone (importance weighting under
covariate shift: Shimodaira 2000). It does not hold when the outcome itself depends on the features in another way
than before: that is concept drift, which only labels show.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy
from e2i_dagster.monitoring.drift_report import FeatureDrift
from e2i_dagster.monitoring.profile import ModelReference

#: Current rows in bins without any validation row, above which nothing is expected of the weights.
_OUTSIDE = 0.05
#: Effective rows that a weighted metric needs.
_EFFECTIVE_ROWS = 100


def expected_losses(
    model: ModelReference, now: Mapping[str, np.ndarray], policy: DriftPolicy
) -> dict[str, float]:
    """Expected loss of performance for each feature, by its drift alone; what cannot be estimated is left out.

    Args:
        now: feature -> current rows by bin of the reference, in the order of ``model.places``.
    """
    names, weights = [], []
    for name, counts in now.items():
        weight = (
            None if name not in model.places else _weights(np.asarray(model.places[name]), counts, policy)
        )
        if weight is not None:
            names.append(name)
            weights.append(weight)
    if not names:
        return {}
    weighted = metric_values(model, np.array(weights))
    unweighted = metric_values(model, np.ones((1, len(model.target))))[0]
    return {
        name: loss_against(float(unweighted), float(value), model.metric)
        for name, value in zip(names, weighted, strict=True)
        if np.isfinite(value)
    }


def metric_values(model: ModelReference, weights: np.ndarray) -> np.ndarray:
    """The model's metric on its validation rows for each row of ``weights``, shape (B, n)."""
    from e2i_dagster.training.metrics import binary_metrics, regression_metrics

    target, scores = np.asarray(model.target), np.asarray(model.scores)
    if model.threshold is None:
        return regression_metrics(target, scores, weights)[model.metric]
    return binary_metrics(target, scores, model.threshold, weights)[model.metric]


def loss_against(reference: float, value: float, metric: str) -> float:
    """Loss of performance: the difference of an area or share, the relative increase of an error."""
    if metric in ("rmse", "mae"):
        return (value - reference) / reference if reference else 0.0
    return reference - value


def severity_with_impact(
    drift: FeatureDrift, model: ModelReference, losses: Mapping[str, float], policy: DriftPolicy
) -> FeatureDrift:
    """``drift`` with its importance, its expected loss and what of its severity remains.

    A feature that the model does not use, or whose drift is expected to cost nothing, is a note at most; where a
    loss is expected its size counts; where it cannot be estimated (values outside of what validation rows have), or
    no value arrives any more, the size of the drift does.
    """
    if drift.kind != "data":
        return drift
    share, loss = model.importance.get(drift.name), losses.get(drift.name)
    drift = drift.model_copy(update={"importance": share, "expected_loss": loss})
    if drift.effect_severity == "none":
        return drift
    if share is not None and share < policy.impact.minimum_importance:
        limit, why = "low", f"a note: {share:.1%} of the model's importance"
    elif loss is not None and not (drift.missing and drift.missing[1] == 1):
        limit = max("low", policy.performance.loss.severity_of(loss), key=SEVERITIES.index)
        why = f"expected loss of {model.metric} {loss:.3f}" + (", a note" if limit == "low" else "")
    else:
        return drift
    severity = min(drift.effect_severity, limit, key=SEVERITIES.index)
    reason = "; ".join(part for part in (drift.reason, why) if part)
    return drift.model_copy(update={"severity": severity, "reason": reason})


def _weights(places: np.ndarray, counts: np.ndarray, policy: DriftPolicy) -> np.ndarray | None:
    """Weight of each validation row: share of its bin now over its share among the rows; None: not estimable."""
    then = np.bincount(places, minlength=len(counts)).astype("float64")
    share = counts / counts.sum()
    if share[then == 0].sum() > _OUTSIDE:
        return None
    ratio = np.divide(share * len(places), then, out=np.zeros_like(share), where=then > 0)
    weights = ratio[places]
    effective = weights.sum() ** 2 / (weights**2).sum() if weights.any() else 0.0
    needed = max(policy.impact.minimum_effective_share * len(places), _EFFECTIVE_ROWS)
    return weights if effective >= needed else None
