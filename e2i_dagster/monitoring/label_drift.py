"""Drift of the outcome itself: closed labels beside those of the training rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift import measure
from e2i_dagster.monitoring.drift_report import FeatureDrift
from e2i_dagster.monitoring.profile import ModelReference, NumberProfile, TextProfile
from e2i_dagster.training.evaluate import Estimate

_LEVEL = 0.95


def label_values(labels: np.ndarray | pd.Series, *, binary: bool) -> pd.Series:
    """``labels`` as drift compares them: those of an event (0 and 1) as truth values."""
    values = pd.Series(labels, dtype="float64").reset_index(drop=True)
    return values > 0.5 if binary else values


def measure_labels(model: ModelReference, closed: pd.Series, policy: DriftPolicy) -> FeatureDrift | None:
    """Drift of ``closed`` labels against the training rows, not yet judged; None where the profile has no labels.

    The difference of shares has Newcombe's interval (Statistics in Medicine 17:873, 1998), that of means Welch's.
    """
    if model.label is None:
        return None
    values = label_values(closed, binary=isinstance(model.label, TextProfile))
    found = measure("label", "label", model.label, values, policy)[0]
    if found.state == "skipped":
        reason = (
            f"needs {policy.minimum_sample.psi} closed labels of one window and of training, found {len(values)} "
            f"and {model.label.rows}"
        )
        return found.model_copy(update={"reason": reason})
    return found.model_copy(update={"difference": _difference(model.label, values)})


def _difference(before: NumberProfile | TextProfile, now: pd.Series) -> Estimate:
    if isinstance(before, TextProfile):
        from statsmodels.stats.proportion import confint_proportions_2indep

        positive, then = int(now.sum()), before.counts.get("True", 0)
        low, high = confint_proportions_2indep(
            positive, len(now), then, before.rows, compare="diff", method="newcomb", alpha=1 - _LEVEL
        )
        return Estimate(value=positive / len(now) - then / before.rows, low=float(low), high=float(high))
    from scipy.stats import t

    errors = np.array([now.var(ddof=1) / len(now), before.deviation**2 / (before.rows - 1)])
    sizes = np.array([len(now), before.rows])
    difference, total = float(now.mean() - before.mean), float(errors.sum())
    if total == 0:
        return Estimate(value=difference, low=difference, high=difference)
    freedom = total**2 / (errors**2 / (sizes - 1)).sum()
    reach = float(t.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(total))
    return Estimate(value=difference, low=difference - reach, high=difference + reach)
