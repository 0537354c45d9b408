"""SHAP values of a trained model: exact for trees and linear models, bounded permutation otherwise.

What is explained is the estimator before calibration (calibration is monotone and changes no order), on
the matrix it reads; the values of a feature's columns (levels, missing indicator) are summed back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.display import Figure, Table
from e2i_dagster.errors import InputError
from e2i_dagster.explain.stability import LEADING, FeatureStability, importance_stability
from e2i_dagster.modelling.estimators import one_thread
from e2i_dagster.modelling.model_input import LabelledRows, model_input
from e2i_dagster.modelling.preprocessing import column_origins
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.modelling.shap_values import (
    Method,
    ShapValues,
    by_output,
    exact_values,
    method_for,
    sum_to_features,
)
from e2i_dagster.reports import figure_png, new_figure
from e2i_dagster.splits.rows import VisibleRows
from e2i_dagster.training.fit import TrainedModel

#: Groups of patients smaller than this are not shown.
_SMALL = 11
#: Features in the figure at most.
_SHOWN = 20
#: Features shown of each class where there are several.
_LEADING = 5
#: Rows for which permutation values are affordable.
_PERMUTATION_ROWS = 50
#: Rows whose values stand for a feature that is left out.
_PERMUTATION_REFERENCES = 50


class FeatureEffect(BaseModel):
    """How one feature moves the model's output over the explained rows.

    Attributes:
        importance: mean absolute SHAP value. share: its part of the sum over all features.
        direction: rank correlation between value and SHAP value in [-1, 1]; None for text and constants.
        highest, lowest: level of a text feature with the highest and lowest mean SHAP value, among levels
            of at least 11 rows.
    """

    model_config = ConfigDict(frozen=True)

    feature: str
    importance: float
    share: float
    direction: float | None = None
    highest: str | None = None
    lowest: str | None = None


class ClassEffects(BaseModel):
    """What drives the output of one of several classes."""

    model_config = ConfigDict(frozen=True)

    name: str
    base_value: float
    effects: tuple[FeatureEffect, ...]


class Explanation(BaseModel):
    """Global explanation of one model. ``figure`` is a PNG; no value of a single patient is kept.

    Of several classes ``effects`` are summed over them, without a direction or base value; ``classes`` has each.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")
    volatile_fields: ClassVar[set[str]] = {"figure", "seconds"}

    algorithm: str
    model_digest: str
    split: str
    method: Method
    scale: str
    rows: int
    base_value: float | None
    additivity_error: float
    effects: tuple[FeatureEffect, ...]
    classes: tuple[ClassEffects, ...] = ()
    stability: tuple[FeatureStability, ...] = ()
    stability_skipped: str = ""
    narrative: str
    figure: bytes
    seconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Feature -> its part of the sum of all importances."""
        return {effect.feature: effect.share for effect in self.effects}

    def to_metadata(self) -> dict[str, Any]:
        """What the asset page shows."""
        return {
            "method": self.method,
            "scale": self.scale,
            "rows_explained": self.rows,
            "split": self.split,
            "largest_additivity_error": self.additivity_error,
            "narrative": self.narrative,
            "seconds": self.seconds,
            "importance": Table(
                ("feature", "mean absolute SHAP", "share", "direction"),
                [
                    (effect.feature, effect.importance, effect.share, _direction(effect))
                    for effect in self.effects
                ],
                {"share": ".1%"},
            ),
            **(
                {
                    "by_class": Table(
                        ("class", "feature", "mean absolute SHAP", "share", "direction"),
                        [
                            (label.name, item.feature, item.importance, item.share, _direction(item))
                            for label in self.classes
                            for item in label.effects[:_LEADING]
                        ],
                        {"share": ".1%"},
                    )
                }
                if self.classes
                else {}
            ),
            "stability": Table(
                ("feature", "smallest share", "largest share", f"among the first {LEADING}"),
                [(each.feature, each.low, each.high, each.leading) for each in self.stability],
                {"smallest share": ".1%", "largest share": ".1%", f"among the first {LEADING}": ".0%"},
                note=f"{self.stability[0].refits} fits on bootstrap samples of the training patients."
                if self.stability
                else "",
                empty=f"skipped: {self.stability_skipped or 'not asked for'}",
            ),
            "summary": Figure.png(self.figure, "mean absolute SHAP value of each feature"),
        }

    def to_record(self) -> dict[str, Any]:
        """Values of the row in ``ml_shap_analyses``."""
        return {
            "analysis_type": "global",
            "global_importance": {item.feature: item.importance for item in self.effects},
            "base_value": self.base_value,
            "natural_language_explanation": self.narrative,
            "key_drivers": [item.feature for item in self.effects[:5] if item.importance > 0],
            "sample_size": self.rows,
            "computation_method": self.method,
            "additivity_error": self.additivity_error,
            "computation_duration_seconds": self.seconds,
            "data_split": self.split,
        }


def explain(
    model: TrainedModel,
    rows: LabelledRows | pd.DataFrame,
    *,
    background: LabelledRows | pd.DataFrame | None = None,
    split: str = "validation",
    max_rows: int = 1000,
    seed: int = 42,
) -> Explanation:
    """Explain ``model`` on ``rows``.

    Args:
        rows: frame with the model's features; more than ``max_rows`` are thinned by a fixed draw.
        background: rows whose average is the reference of linear and permutation values (training
            rows); the explained rows when None. Trees need none: their own training counts are it.
        split: name of the split the rows are from, for the record.

    Raises:
        InputError: no rows, or a feature is missing.
        ArithmeticError: base value plus SHAP values do not add up to the model's output.
    """
    started = time.perf_counter()
    frame = model_input(rows.features if isinstance(rows, LabelledRows) else rows, model.kinds)
    if frame.empty:
        raise InputError("there are no rows to explain.", field="rows", remedy="Give at least one.")
    if len(frame) > max_rows:
        frame = frame.sample(max_rows, random_state=seed).sort_index()
    reference = frame
    if background is not None:
        reference = model_input(
            background.features if isinstance(background, LabelledRows) else background, model.kinds
        )
    preprocessor = model.pipeline.named_steps["preprocess"]
    method = method_for(model.algorithm)
    if method == "permutation" and len(frame) > _PERMUTATION_ROWS:
        frame = frame.sample(_PERMUTATION_ROWS, random_state=seed).sort_index()
    with one_thread():
        matrix = np.asarray(preprocessor.transform(frame), dtype="float64")
        against = np.asarray(preprocessor.transform(reference), dtype="float64")
        values, base, output, scale = _shap_values(model, method, matrix, against, seed)
    error = float(np.abs(base + values.sum(axis=1) - output).max())
    origins = column_origins(preprocessor)
    # XGBoost and LightGBM add up hundreds of 32-bit numbers.
    allowed = 1e-3 * max(1.0, float(np.abs(output).max()))
    if error > allowed:
        raise ArithmeticError(
            f"SHAP values do not add up to the output of {model.algorithm}: largest difference {error:.2g}, "
            f"allowed {allowed:.2g}. Do not use them."
        )
    classes = tuple(
        ClassEffects(
            name=name,
            base_value=float(base[code]),
            effects=_effects(sum_to_features(values[:, :, code], origins, model.features), frame, model),
        )
        for code, name in enumerate(model.classes)
    )
    effects = (
        _summed_over_classes(classes)
        if classes
        else _effects(sum_to_features(values[:, :, 0], origins, model.features), frame, model)
    )
    return Explanation(
        algorithm=model.algorithm,
        model_digest=model.digest,
        split=split,
        method=method,
        scale=scale,
        rows=len(frame),
        base_value=None if classes else float(base[0]),
        additivity_error=error,
        effects=effects,
        classes=classes,
        narrative=_narrative(effects, classes, model, scale, len(frame), split),
        figure=_figure(effects, scale),
        seconds=time.perf_counter() - started,
    )


def explain_validation(
    model: TrainedModel, rows: VisibleRows, policy: OptunaPolicy | None = None
) -> Explanation:
    """Explain ``model`` on the validation rows, which it was not fitted on, against the training rows."""
    found = explain(model, rows.validation, background=rows.train, split="validation")
    stability, skipped = importance_stability(model, rows, policy or OptunaPolicy.load())
    return found.model_copy(update={"stability": stability, "stability_skipped": skipped})


def _shap_values(
    model: TrainedModel, method: Method, matrix: np.ndarray, against: np.ndarray, seed: int
) -> ShapValues:
    estimator, probabilities = model.estimator, model.problem_type in CLASSIFICATION
    if method != "permutation":
        return exact_values(estimator, model.algorithm, model.problem_type, against.mean(axis=0))(matrix)

    import shap
    import shap.utils

    def output_of(inputs: np.ndarray) -> np.ndarray:
        if not probabilities:
            return estimator.predict(inputs)
        found = estimator.predict_proba(inputs)
        return found if model.classes else found[:, 1]

    references = shap.utils.sample(against, _PERMUTATION_REFERENCES, random_state=seed)

    # A plain function: shap's own masker is compiled by Numba, which takes longer than these rows.
    def masked(shown: np.ndarray, row: np.ndarray) -> np.ndarray:
        return np.where(shown, row, references)

    explained = shap.PermutationExplainer(output_of, masked, seed=seed)(
        matrix, max_evals=2 * matrix.shape[1] + 1, silent=True
    )
    output = by_output(output_of(matrix))
    values = np.asarray(explained.values).reshape(*matrix.shape, output.shape[1])
    base = np.asarray(explained.base_values, dtype="float64").reshape(len(matrix), -1)[0]
    return ShapValues(values, base, output, "probability" if probabilities else "outcome")


def _summed_over_classes(classes: Sequence[ClassEffects]) -> tuple[FeatureEffect, ...]:
    importance: dict[str, float] = {}
    for label in classes:
        for effect in label.effects:
            importance[effect.feature] = importance.get(effect.feature, 0.0) + effect.importance
    total = sum(importance.values())
    effects = [
        FeatureEffect(feature=name, importance=value, share=value / total if total else 0.0)
        for name, value in importance.items()
    ]
    return tuple(sorted(effects, key=lambda effect: (-effect.importance, effect.feature)))


def _effects(values: np.ndarray, frame: pd.DataFrame, model: TrainedModel) -> tuple[FeatureEffect, ...]:
    importance = np.abs(values).mean(axis=0)
    total = float(importance.sum())
    effects = []
    for position, (name, kind) in enumerate(model.kinds.items()):
        direction = highest = lowest = None
        if kind == "number":
            direction = _rank_correlation(frame[name].to_numpy(), values[:, position])
        else:
            groups = pd.Series(values[:, position]).groupby(frame[name].to_numpy())
            means = groups.mean()[groups.size() >= _SMALL].sort_values(kind="stable")
            if len(means) > 1:
                highest, lowest = str(means.index[-1]), str(means.index[0])
        effects.append(
            FeatureEffect(
                feature=name,
                importance=float(importance[position]),
                share=float(importance[position] / total) if total else 0.0,
                direction=direction,
                highest=highest,
                lowest=lowest,
            )
        )
    return tuple(sorted(effects, key=lambda effect: (-effect.importance, effect.feature)))


def _rank_correlation(feature: np.ndarray, values: np.ndarray) -> float | None:
    known = ~np.isnan(feature)
    ranks = pd.DataFrame({"feature": feature[known], "value": values[known]}).rank()
    if len(ranks) < _SMALL or (ranks.nunique() < 2).any():
        return None
    return float(np.corrcoef(ranks["feature"], ranks["value"])[0, 1])


def _direction(effect: FeatureEffect) -> str:
    if effect.highest is not None:
        return f"highest for {effect.highest}, lowest for {effect.lowest}"
    if effect.direction is None:
        return "–"
    if effect.direction > 0.3:
        return "more raises"
    return "more lowers" if effect.direction < -0.3 else "no single direction"


def _narrative(
    effects: tuple[FeatureEffect, ...],
    classes: Sequence[ClassEffects],
    model: TrainedModel,
    scale: str,
    rows: int,
    split: str,
) -> str:
    leading = [effect for effect in effects[:3] if effect.importance > 0]
    if not leading:
        return f"No feature moves the predictions of this {model.algorithm} model on {rows} {split} patients."
    together = sum(effect.share for effect in leading)
    what = "predicted probability" if model.problem_type in CLASSIFICATION else "prediction"
    if model.risk is not None:
        what = f"predicted risk in {model.risk.horizon_days} days"
    sentences = [
        f"On {rows} {split} patients, {_list([effect.feature for effect in leading])} "
        f"account{'s' if len(leading) == 1 else ''} for {together:.0%} of what moves the model's predictions."
    ]
    # Of several classes each has its own leading feature.
    driven = [(f"the {what} of {label.name}", label.effects[0]) for label in classes] or [
        (f"the {what}", effect) for effect in leading
    ]
    for output, effect in driven:
        size = f"it moves the output by {effect.importance:.3g} on average ({scale})"
        if effect.highest is not None:
            sentences.append(
                f"{effect.feature}: {output} is highest for {effect.highest} and lowest for {effect.lowest}; {size}."
            )
        elif effect.direction is None or abs(effect.direction) <= 0.3:
            of_class = f" for {output}" if classes else ""
            sentences.append(f"{effect.feature}: no single direction{of_class}; {size}.")
        else:
            way = "higher" if effect.direction > 0 else "lower"
            lower = output.removeprefix("the ")
            sentences.append(f"{effect.feature}: larger values go with a {way} {lower}; {size}.")
    unused = sum(effect.importance == 0 for effect in effects)
    if unused:
        sentences.append(f"{unused} of {len(effects)} features are not used.")
    sentences.append("These are associations in the model, not effects of a treatment.")
    return " ".join(sentences)


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _figure(effects: tuple[FeatureEffect, ...], scale: str) -> bytes:
    shown = list(reversed(effects[:_SHOWN]))
    figure = new_figure(8.0, 1.2 + 0.28 * len(shown))
    axis = figure.subplots()
    colours = [
        "#57606a" if item.direction is None or abs(item.direction) <= 0.3
        else "#cf222e" if item.direction > 0 else "#0969da"
        for item in shown
    ]  # fmt: skip
    axis.barh([item.feature for item in shown], [item.importance for item in shown], color=colours)
    axis.set(
        xlabel=f"mean absolute SHAP value ({scale})",
        title="red: more raises, blue: more lowers, grey: text or no single direction",
    )
    axis.title.set_fontsize(9)
    return figure_png(figure)
