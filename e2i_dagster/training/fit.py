"""Training: one scikit-learn pipeline of preprocessing, estimator and calibration.

Preprocessing and estimator see training rows only, the threshold validation rows only. Calibration sees validation
rows, or training rows by cross-fitting where validation has too few of an outcome.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.display import Table
from e2i_dagster.modelling.estimators import build_estimator, one_thread, raw_scores, uncalibrated
from e2i_dagster.modelling.model_input import Kind, feature_kinds, model_input
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.shap_values import method_for
from e2i_dagster.modelling.survival import RiskAtHorizon, cox_slope, cumulative_hazard
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.search import require_both_outcomes, rows_digest

Calibrated = Literal["temperature", "sigmoid", "cox", "none"]


@dataclass(frozen=True)
class TrainedModel:
    """A fitted pipeline and what is needed to use it.

    Attributes:
        pipeline: ``Pipeline`` with the steps ``preprocess`` and ``model``; reads the frame of
            :func:`~.model_input.model_input`. ``model`` is the calibrated classifier, or the estimator.
        kinds: feature -> ``number`` or ``string``, in the order of training.
        nullable: features that were missing for somebody in training.
        threshold: probability from which on the positive class is predicted; None for numbers.
        calibration: how probabilities were calibrated, or why not (``calibration_note``).
        seen_ranges: feature -> smallest and largest number in training, rounded outwards to two significant
            digits; text has none.
        input_example: one invented row, made of column averages and most frequent levels.
        classes: names of the classes of a multiclass model, in the order of its probabilities.
        risk: of a model of times, how its hazard ratio becomes the risk at the horizon.
        training_means: of a linear model, the average of each column of its matrix over the training rows, which
            its SHAP values are counted from; empty for other models.
        digest: digest of what the model computes on its training and validation rows, to the last bit,
            and of its parameters. Equal inputs and library versions give equal digests.
    """

    pipeline: Any
    algorithm: str
    problem_type: str
    parameters: dict[str, Any]
    kinds: dict[str, Kind]
    nullable: tuple[str, ...]
    threshold: float | None
    calibration: Calibrated
    calibration_note: str
    training_rows: int
    validation_rows: int
    prevalence: float | None
    input_example: pd.DataFrame
    data_digests: dict[str, str]
    digest: str
    seconds: float = field(compare=False)
    seen_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    risk: RiskAtHorizon | None = None
    training_means: tuple[float, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Feature names in the order of training."""
        return tuple(self.kinds)

    @property
    def estimator(self) -> Any:
        """The fitted estimator before calibration."""
        return uncalibrated(self.pipeline)

    def scores(self, frame: pd.DataFrame) -> np.ndarray:
        """Probability of the positive class, the predicted number or the risk at the horizon, shape (n,); of
        several classes the probability of each, shape (n, classes).

        Raises:
            InputError: a feature is missing or has the wrong type.
        """
        found = raw_scores(self.pipeline, model_input(frame, self.kinds), self.problem_type)  # type: ignore[arg-type]
        return found if self.risk is None else self.risk.risk(found)

    def logged_values(self, frame: pd.DataFrame) -> np.ndarray:
        """What the prediction log calls the value, shape (n,): the score, of several classes that of the most
        probable one."""
        scores = self.scores(frame)
        return scores.max(axis=1) if self.classes else scores

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        return {
            "algorithm": self.algorithm,
            "problem_type": self.problem_type,
            "training_rows": self.training_rows,
            "validation_rows": self.validation_rows,
            "features": len(self.kinds),
            "classes": ", ".join(self.classes) or None,
            "horizon_days": None if self.risk is None else self.risk.horizon_days,
            "positive_share": self.prevalence,
            "calibration": f"{self.calibration}: {self.calibration_note}",
            "threshold": self.threshold,
            "model_digest": self.digest,
            "seconds": self.seconds,
            "parameters": Table(("parameter", "value"), self.parameters.items()),
            "feature_kinds": Table(
                ("feature", "kind", "missing in training"),
                [(name, kind, name in self.nullable) for name, kind in self.kinds.items()],
            ),
        }


def train(
    rows: VisibleRows,
    *,
    algorithm: str,
    parameters: Mapping[str, Any],
    problem_type: str = "binary_classification",
    policy: OptunaPolicy | None = None,
    horizon_days: int | None = None,
) -> TrainedModel:
    """Fit the pipeline.

    Args:
        rows: its training rows are for preprocessing and estimator, never weighted by outcome; its
            validation rows for threshold and calibration. With too few validation rows of either outcome,
            calibration is cross-fitted on the training rows.
        parameters: complete parameters, as ``SearchResult.parameters``.
        horizon_days: of a time to an event, until when its risk is predicted.

    Raises:
        VerdictError: an outcome is missing in train or validation.
        InputError: a feature is infinite or of the wrong type.
    """
    from sklearn.pipeline import Pipeline

    started = time.perf_counter()
    policy = policy or OptunaPolicy.load()
    train_rows, validation_rows = rows.train, rows.validation
    require_both_outcomes(train_rows, validation_rows, problem_type)
    kinds = feature_kinds(train_rows.features, list(train_rows.features.columns))
    binary, classes = problem_type == "binary_classification", problem_type in CLASSIFICATION
    risk = None
    with one_thread():
        preprocessor = build_preprocessor(kinds, policy.preprocessing.max_levels).fit(train_rows.features)
        unfitted = build_estimator(algorithm, problem_type, parameters, seed=policy.sampler.seed)
        learn = preprocessor.transform(train_rows.features)
        if classes:
            shares = np.bincount(train_rows.target, minlength=2) / len(train_rows)
            # Averages of trees are not fitted by log loss, and a temperature moves the mean of a rare outcome
            # towards or away from one half: a sigmoid keeps it.
            shifted = algorithm in ("RandomForest", "ExtraTrees") or (
                float(shares.min()) < policy.calibration.rare_below
            )
            check = preprocessor.transform(validation_rows.features)
            model, calibration, note = _calibrated(
                unfitted, (learn, train_rows.target), (check, validation_rows.target), shifted, policy
            )
        elif problem_type == "survival":
            if horizon_days is None:
                raise ValueError("a model of times needs horizon_days")
            check = preprocessor.transform(validation_rows.features)
            model, risk, note = _risk_model(
                unfitted, (learn, train_rows.target), (check, validation_rows.target), horizon_days, policy
            )
            calibration = "cox"
        else:
            model, calibration, note = unfitted.fit(learn, train_rows.target), "none", "not a probability"
        pipeline = Pipeline([("preprocess", preprocessor), ("model", model)])
        scores = [
            raw_scores(pipeline, part.features, problem_type)  # type: ignore[arg-type]
            for part in (train_rows, validation_rows)
        ]
        if risk is not None:
            scores = [risk.risk(part) for part in scores]
    cut = THRESHOLDS[policy.threshold.rule]
    threshold = cut(validation_rows.target, scores[1]) if binary else None
    nullable = tuple(name for name in kinds if train_rows.features[name].isna().any())
    return TrainedModel(
        pipeline=pipeline,
        algorithm=algorithm,
        problem_type=problem_type,
        parameters=dict(parameters),
        kinds=kinds,
        nullable=nullable,
        threshold=threshold,
        calibration=calibration,  # type: ignore[arg-type]
        calibration_note=note,
        training_rows=len(train_rows),
        validation_rows=len(validation_rows),
        prevalence=float(train_rows.target.mean()) if binary else None,
        input_example=invented_example(train_rows.features, kinds),
        data_digests={"train": rows_digest(train_rows), "validation": rows_digest(validation_rows)},
        digest=computed_digest(
            scores,
            algorithm=algorithm,
            problem_type=problem_type,
            parameters=parameters,
            kinds=kinds,
            threshold=threshold,
        ),
        seconds=time.perf_counter() - started,
        seen_ranges=seen_ranges(train_rows.features, kinds),
        classes=train_rows.classes,
        risk=risk,
        training_means=tuple(learn.mean(axis=0).tolist()) if method_for(algorithm) == "linear" else (),
    )


def youden_threshold(target: np.ndarray, scores: np.ndarray) -> float:
    """The cut that maximises sensitivity + specificity - 1 (Youden 1950); ties take the largest cut."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], target[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    sensitivity = np.cumsum(hits) / hits.sum()
    false_alarms = np.cumsum(1 - hits) / (len(hits) - hits.sum())
    gain = np.where(last_of_tie, sensitivity - false_alarms, -np.inf)
    return float(ranked[int(np.argmax(gain))])


#: How the cut between the classes is found, by the name of the rule in ``optuna_config.yaml``.
THRESHOLDS = {"youden": youden_threshold}


def invented_example(features: pd.DataFrame, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    """One row that no patient has: averages of numbers, most frequent levels of text.

    Averages are rounded to two significant digits, and to whole numbers where the column has only
    those. A row that some patient happens to have is moved by one unit in its first number until none
    has it; with text alone, level by level.
    """
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        column = features[name].dropna()
        if kind == "number":
            mean = float(column.mean()) if len(column) else 0.0
            whole = bool((column == column.round()).all())
            values[name] = float(round(mean)) if whole else float(f"{mean:.2g}")
        else:
            # Sorted levels, so that a tie is settled by name.
            values[name] = str(column.value_counts().sort_index().idxmax()) if len(column) else "unknown"
    first = next((name for name, kind in kinds.items() if kind == "number"), None)
    rows = features.drop_duplicates()
    while _is_row(values, rows):
        if first is not None:
            values[first] += 1.0
        else:
            name = next(iter(kinds))
            values[name] = f"example {values[name]}"
    return pd.DataFrame({name: pd.Series([values[name]], dtype=_dtype(kind)) for name, kind in kinds.items()})


def seen_ranges(features: pd.DataFrame, kinds: Mapping[str, Kind]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each number, rounded outwards to two significant digits."""
    found: dict[str, tuple[float, float]] = {}
    for name, kind in kinds.items():
        column = features[name].dropna()
        if kind == "number" and len(column):
            found[name] = (
                _outwards(float(column.min()), math.floor),
                _outwards(float(column.max()), math.ceil),
            )
    return found


def _outwards(value: float, rounded: Callable[[float], int]) -> float:
    if value == 0:
        return 0.0
    digits = math.floor(math.log10(abs(value))) - 1
    # A whole number times a power of ten; dividing by the inverse power keeps 0.12 at 0.12.
    whole = rounded(value * 10.0**-digits if digits < 0 else value / 10.0**digits)
    return float(whole * 10**digits) if digits >= 0 else whole / 10.0**-digits


def _dtype(kind: Kind) -> Any:
    return "float64" if kind == "number" else object


def _is_row(values: Mapping[str, Any], rows: pd.DataFrame) -> bool:
    same = np.ones(len(rows), dtype=bool)
    for name, value in values.items():
        same &= (rows[name] == value).to_numpy()
    return bool(same.any())


def _calibrated(
    unfitted: Any,
    learn: tuple[np.ndarray, np.ndarray],
    check: tuple[np.ndarray, np.ndarray],
    shifted: bool,
    policy: OptunaPolicy,
) -> tuple[Any, Calibrated, str]:
    """Fitted on ``learn`` (matrix, target), calibrated on ``check`` where it holds enough of both outcomes."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    needed, folds = policy.calibration.minimum_per_class, policy.calibration.folds
    method: Calibrated = "sigmoid" if shifted else "temperature"
    classes = max(2, int(learn[1].max()) + 1)
    if np.bincount(check[1], minlength=classes).min() >= needed:
        frozen = FrozenEstimator(unfitted.fit(*learn))
        where = f"on {len(check[1])} validation rows"
        fitted = CalibratedClassifierCV(frozen, method=method).fit(*check)
        if method == "temperature" and classes == 2:
            with_intercept = CalibratedClassifierCV(frozen, method="sigmoid").fit(*check)
            if _fits_better(with_intercept, fitted, check):
                return with_intercept, "sigmoid", f"{where}, which a temperature alone does not fit"
        return fitted, method, where
    few = f"fewer than {needed} validation patients of one outcome"
    if np.bincount(learn[1], minlength=classes).min() < needed:
        return unfitted.fit(*learn), "none", f"{few}, and of the training patients"
    # One estimator of all training rows; the map is fitted on its predictions for rows held out.
    single: Any = False  # the library's types know only the text "auto"
    crossed = CalibratedClassifierCV(unfitted, method=method, cv=folds, ensemble=single).fit(*learn)
    return crossed, method, f"cross-fitted on {len(learn[1])} training rows: {few}"


def _fits_better(larger: Any, smaller: Any, rows: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether a calibration with one parameter more is worth it: likelihood ratio test at 5 % (Wilks 1938).

    A temperature stretches log-odds about zero. Those of a strongly shrunk model lie around the log-odds of the mean,
    which it would move: such a model needs an intercept.
    """
    from scipy.stats import chi2
    from sklearn.metrics import log_loss

    features, target = rows
    lost = [
        log_loss(target, model.predict_proba(features)[:, 1].astype("float64"), normalize=False)
        for model in (smaller, larger)
    ]
    return bool(2 * (lost[0] - lost[1]) > chi2.ppf(0.95, 1))


def _risk_model(
    unfitted: Any,
    learn: tuple[np.ndarray, np.ndarray],
    check: tuple[np.ndarray, np.ndarray],
    horizon_days: int,
    policy: OptunaPolicy,
) -> tuple[Any, RiskAtHorizon, str]:
    """Fitted on ``learn`` (matrix, signed times); slope and hazard on ``check`` where it holds enough events.

    With too few, they are those of the training rows, each predicted by a model of the other folds.
    """
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold

    def centred(model: Any, seen: np.ndarray, asked: np.ndarray) -> tuple[float, np.ndarray]:
        center = float(raw_scores(model, seen, "survival").mean())
        return center, raw_scores(model, asked, "survival") - center

    needed, folds = policy.calibration.minimum_per_class, policy.calibration.folds
    model = unfitted.fit(*learn)
    center, values = centred(model, learn[0], check[0])
    target, note = check[1], f"slope and hazard on {len(check[1])} validation rows"
    if (target > 0).sum() < needed:
        target, values = learn[1], np.zeros(len(learn[1]))
        few = f"fewer than {needed} validation patients with the event"
        note = f"slope and hazard cross-fitted on {len(target)} training rows: {few}"
        cut = StratifiedKFold(folds, shuffle=True, random_state=policy.sampler.seed)
        for fit_on, asked in cut.split(learn[0], target > 0):
            again: Any = clone(unfitted)
            folded = again.fit(learn[0][fit_on], target[fit_on])
            _, values[asked] = centred(folded, learn[0][fit_on], learn[0][asked])
    slope, _ = cox_slope(target, values)
    # Without a relation on those rows there is nothing to stretch: everybody has the average risk.
    slope = max(slope, 0.0) if np.isfinite(slope) else 0.0
    hazard = cumulative_hazard(target, slope * values, horizon_days)
    return model, RiskAtHorizon(horizon_days, center, slope, hazard), note


def computed_digest(
    scores: list[np.ndarray],
    *,
    algorithm: str,
    problem_type: str,
    parameters: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    threshold: float | None,
) -> str:
    """Digest of what a model computes, ``scores`` of given rows to the last bit, and of how it was made."""
    computed = hashlib.sha256()
    for values in scores:
        computed.update(np.ascontiguousarray(values, dtype="float64").tobytes())
    return digest_of(
        {
            "algorithm": algorithm,
            "problem_type": problem_type,
            "parameters": dict(parameters),
            "features": list(kinds.items()),
            "threshold": threshold,
            "computes": computed.hexdigest(),
        }
    )
