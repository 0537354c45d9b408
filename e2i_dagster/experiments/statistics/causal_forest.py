"""Does the effect differ between units, and along what? By a causal forest, judged on units it did not see.

The forest (Athey, Tibshirani and Wager, Annals of Statistics 47, 2019; EconML's CausalForestDML) is fitted on
part of the units and predicts the others. What is reported comes from the outcomes of those others, compared
by assignment: effects by predicted third, and the calibration test of Chernozhukov, Demirer, Duflo and
Fernandez-Val (Generic Machine Learning Inference, 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.comparison_results import Status

#: Fewer units in an arm teach a forest nothing that a subgroup analysis does not say better.
SMALLEST_FOREST_ARM = 200
FOLDS = 3
GROUPS = 3


class EffectGroup(BaseModel):
    """Units by predicted effect (1 the smallest third): difference of observed means by assignment."""

    model_config = ConfigDict(frozen=True)

    group: int
    units: int
    predicted: float
    effect: float
    lower: float
    upper: float


class Heterogeneity(BaseModel):
    """What the forest found.

    ``calibration_slope``: 1 where predicted differences in effect are the real ones, 0 where they are noise;
    ``p_value`` is one-sided, against no heterogeneity that the forest found. ``importance``: share of the
    forest's splits by covariate, which says where it looked, not that the effect differs there.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    control: str
    status: Status
    reason: str | None
    units: int
    average_effect: float | None = None
    calibration_slope: float | None = None
    calibration_standard_error: float | None = None
    p_value: float | None = None
    groups: tuple[EffectGroup, ...] = ()
    importance: dict[str, float] | None = None

    def to_metadata(self) -> dict[str, Any]:
        shown = {"status": self.status, "units": shown_count(self.units), "reason": self.reason}
        if self.status == "not_estimable":
            return shown
        ranked = sorted((self.importance or {}).items(), key=lambda item: -item[1])
        return shown | {
            "p_value": self.p_value,
            "calibration_slope": self.calibration_slope,
            "groups": self.groups_table,
            "importance": Table(("covariate", "share"), ranked, {"share": ".3f"}),
        }

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @property
    def groups_table(self) -> Table:
        """Effect by third of the predicted effect."""
        return Table(
            ("third by predicted effect", "units", "predicted", "effect", "interval"),
            [(g.group, shown_count(g.units), g.predicted, g.effect, (g.lower, g.upper)) for g in self.groups],
        )


def heterogeneity(
    frame: pd.DataFrame,
    *,
    arm: str,
    outcome: str,
    control: str,
    treated: str,
    covariates: Sequence[str],
    confidence: float = 0.95,
    trees: int = 200,
    seed: int = 42,
    min_per_arm: int = SMALLEST_FOREST_ARM,
) -> Heterogeneity:
    """Heterogeneity of the effect of ``treated`` against ``control`` along ``covariates``.

    Args:
        frame: one row per unit of a randomized experiment; rows of other arms are not used.
        covariates: columns from before the assignment: numbers, truth values, or text (one column per value).
        trees: of each forest, a multiple of 4. min_per_arm: fewer units in an arm are not estimable.

    Returns:
        Figures, or ``not_estimable`` with the reason: too few units, an outcome or covariates that do not vary,
        missing values.

    Raises:
        InputError: a column is absent or the outcome is not a number.
    """
    for name in (arm, outcome, *covariates):
        if name not in frame.columns:
            raise InputError(f"heterogeneity: the frame has no column {name!r}.", field="heterogeneity")
    if not covariates:
        raise InputError(
            "covariates: name at least one column from before the assignment.", field="covariates"
        )
    if not (pd.api.types.is_numeric_dtype(frame[outcome]) or pd.api.types.is_bool_dtype(frame[outcome])):
        raise InputError(
            f"outcome: column {outcome!r} is {frame[outcome].dtype}; a number is needed.", field="outcome"
        )
    labels = frame[arm].astype("string")
    units = frame[labels.isin([str(treated), str(control)]) & frame[outcome].notna()]
    treatment = (units[arm].astype("string") == str(treated)).to_numpy(dtype=int)
    y = units[outcome].to_numpy(dtype=float)
    x = pd.get_dummies(units[list(covariates)], dtype=float).astype(float)
    reason = _cannot(treatment, y, x, str(treated), str(control), min_per_arm)
    shared: dict[str, Any] = {"arm": str(treated), "control": str(control), "units": len(units)}
    if reason is not None:
        return Heterogeneity(**shared, status="not_estimable", reason=reason)
    predicted, importance = _cross_fitted(x.to_numpy(), treatment, y, trees, seed)
    slope, error, average = _calibration(predicted, treatment, y)
    if error is None:
        return Heterogeneity(
            **shared, status="not_estimable", reason="the forest predicts the same effect for every unit"
        )
    from scipy.special import ndtr

    return Heterogeneity(
        **shared, status="estimated", reason=None, average_effect=average, calibration_slope=slope,
        calibration_standard_error=error, p_value=float(ndtr(-slope / error)),
        groups=_groups(predicted, treatment, y, confidence),
        importance=dict(zip(map(str, x.columns), map(float, importance), strict=True)),
    )  # fmt: skip


def _cannot(
    treatment: np.ndarray, y: np.ndarray, x: pd.DataFrame, treated: str, control: str, least: int
) -> str | None:
    for name, count in ((treated, int(treatment.sum())), (control, int(len(treatment) - treatment.sum()))):
        if count < least:
            return f"arm {name} has {shown_count(count)} units with outcome; a forest needs at least {least}"
    if np.ptp(y) == 0:
        return "the outcome does not vary"
    gaps = [str(name) for name in x.columns if x[name].isna().any()]
    if gaps:
        return f"covariates {', '.join(gaps)} have missing values"
    if all(x[name].nunique() < 2 for name in x.columns):
        return "no covariate varies"
    return None


def _folds(treatment: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each unit, balanced by arm."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(treatment), dtype=int)
    for value in (0, 1):
        place = np.flatnonzero(treatment == value)
        fold[rng.permutation(place)] = np.arange(len(place)) % FOLDS
    return fold


def _cross_fitted(
    x: np.ndarray, treatment: np.ndarray, y: np.ndarray, trees: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted effect of each unit by a forest that did not see it, and the mean importance."""
    from econml.dml import CausalForestDML
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    fold = _folds(treatment, seed)
    predicted = np.empty(len(y))
    importance = np.zeros(x.shape[1])
    # One thread: results do not depend on the machine, and many small fits are quicker so.
    with threadpool_limits(1):
        for number in range(FOLDS):
            seen = fold != number
            forest = CausalForestDML(
                model_y=cast(Any, HistGradientBoostingRegressor(max_iter=60, max_depth=4, random_state=seed)),
                # The assignment is random: its probability is that of the arm, and there is nothing to learn.
                model_t=cast(Any, DummyClassifier(strategy="prior")),
                discrete_treatment=True,
                n_estimators=trees,
                min_samples_leaf=20,
                cv=2,
                n_jobs=1,
                random_state=seed,
            )
            forest.fit(y[seen], treatment[seen], X=x[seen], inference=cast(Any, None))
            effects = np.asarray(forest.effect(x[~seen])).ravel()
            # Only the order within a fold is comparable: each forest has its own mean.
            predicted[~seen] = effects - effects.mean()
            importance += np.asarray(forest.feature_importances_).ravel() / FOLDS
    return predicted, importance


def _calibration(
    predicted: np.ndarray, treatment: np.ndarray, y: np.ndarray
) -> tuple[float, float | None, float]:
    """Slope of the real on the predicted differences in effect, its robust error, and the mean effect.

    Least squares of y on 1, the prediction, ``w - p`` and ``(w - p)`` times the centred prediction.
    """
    share = treatment.mean()
    signed = treatment - share
    difference = y[treatment == 1].mean() - y[treatment == 0].mean()
    if np.ptp(predicted) < 1e-12 * max(1.0, float(np.abs(y).max())):
        return 0.0, None, float(difference)
    design = np.column_stack([np.ones(len(y)), predicted, signed, signed * predicted])
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ y
    residual = y - design @ weights
    meat = (design * residual[:, None] ** 2).T @ design
    covariance = inverse @ meat @ inverse
    return float(weights[3]), float(np.sqrt(covariance[3, 3])), float(difference)


def _groups(
    predicted: np.ndarray, treatment: np.ndarray, y: np.ndarray, confidence: float
) -> tuple[EffectGroup, ...]:
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2.0))
    rank = predicted.argsort(kind="stable").argsort(kind="stable")
    group = rank * GROUPS // len(rank)
    found = []
    for number in range(GROUPS):
        inside = group == number
        on, off = y[inside & (treatment == 1)], y[inside & (treatment == 0)]
        effect = float(on.mean() - off.mean())
        half = z * float(np.sqrt(on.var(ddof=1) / len(on) + off.var(ddof=1) / len(off)))
        found.append(
            EffectGroup(
                group=number + 1,
                units=int(inside.sum()),
                predicted=float(predicted[inside].mean()),
                effect=effect,
                lower=effect - half,
                upper=effect + half,
            )
        )
    return tuple(found)
