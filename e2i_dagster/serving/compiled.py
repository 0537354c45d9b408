"""A stored pipeline as plain array operations, for the answers of a service.

scikit-learn looks at names, types and shapes of a frame at every step of a pipeline. A request was checked against
the signature already, so that for one row 3 of 4 ms would go there. What the steps compute is read from their fitted
attributes here: imputation, indicators, scaling, levels of text, calibration. The estimator itself is asked through
its own library. Whatever is not known here is left to the stored pipeline, and :func:`compile_pipeline` keeps
nothing that does not give the pipeline's own answers on rows made for the comparison.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from e2i_dagster.serving.request_schema import Signature, to_frame

logger = logging.getLogger(__name__)

#: Largest difference to the stored pipeline: what the order of a sum may change in a probability.
TOLERANCE = 1e-12

#: Rows of the comparison.
_COMPARED = 64

#: The values of each feature in the order of the signature, missing as None or NaN: all columns of one length.
Columns = Sequence[Sequence[Any]]
Block = Callable[[Columns], np.ndarray]
Compiled = Callable[[Columns], np.ndarray]


class NotCompiledError(Exception):
    """A step that is not known here; says which."""


def compile_pipeline(pipeline: Any, signature: Signature) -> Compiled | None:
    """A function from values to what ``pipeline`` answers; None when there is none that answers the same.

    Args:
        pipeline: fitted, with the steps ``preprocess`` (a ``ColumnTransformer``) and ``model``.

    Returns:
        Takes :data:`Columns` and gives the probabilities of the classes, shape (n, classes), or the predicted
        numbers, shape (n,).
    """
    try:
        matrix = _preprocessing(pipeline, signature)
        answer = _estimator(pipeline)
    except (NotCompiledError, AttributeError, ValueError) as error:
        logger.info("The stored pipeline answers itself: %s.", error)
        return None

    def compiled(columns: Columns) -> np.ndarray:
        return answer(matrix(columns))

    compared = _rows_to_compare(pipeline, signature)
    columns = [[row[name] for row in compared] for name in signature.names]
    offline = getattr(pipeline, "predict_proba", None) or pipeline.predict
    expected = np.asarray(offline(to_frame(signature, columns)))
    together = compiled(columns)
    alone = np.concatenate([compiled([[column[row]] for column in columns]) for row in range(8)])
    same = together.shape == expected.shape and (
        np.allclose(together, expected, rtol=TOLERANCE, atol=TOLERANCE)
        and np.allclose(alone, expected[:8], rtol=TOLERANCE, atol=TOLERANCE)
    )
    if not same:
        logger.warning("The stored pipeline answers itself: its compiled form differs.")
        return None
    return compiled


# -- preprocessing -----------------------------------------------------------------------------------


def _preprocessing(pipeline: Any, signature: Signature) -> Block:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    steps = getattr(pipeline, "named_steps", {})
    if list(steps) != ["preprocess", "model"] or not isinstance(steps["preprocess"], ColumnTransformer):
        raise NotCompiledError("its steps are not a ColumnTransformer `preprocess` and a `model`")
    blocks: list[Block] = []
    for name, transformer, columns in steps["preprocess"].transformers_:
        if isinstance(transformer, str) and (transformer == "drop" or not len(columns)):
            continue
        if isinstance(columns, str) or not all(isinstance(column, str) for column in columns):
            raise NotCompiledError(f"the columns of {name} have no names")
        places = [signature.names.index(column) for column in columns]
        if isinstance(transformer, Pipeline):
            blocks.append(_numbers(transformer, places))
        elif isinstance(transformer, OneHotEncoder):
            blocks.append(_levels(transformer, columns, places))
        else:
            raise NotCompiledError(f"{name} is a {type(transformer).__name__}")
    if len(blocks) == 1:
        return blocks[0]
    return lambda columns: np.concatenate([block(columns) for block in blocks], axis=1)


def _numbers(steps: Any, places: list[int]) -> Block:
    """Mean imputation with indicators, then scaling."""
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    kinds = [type(step) for _, step in steps.steps]
    if kinds != [SimpleImputer, StandardScaler]:
        raise NotCompiledError(f"numbers pass {', '.join(kind.__name__ for kind in kinds)}")
    (_, imputer), (_, scaler) = steps.steps
    missing = imputer.missing_values
    if not (isinstance(missing, float) and math.isnan(missing)) or np.isnan(imputer.statistics_).any():
        raise NotCompiledError("missing numbers are not NaN, or a number was never seen")
    fill = np.asarray(imputer.statistics_, dtype="float64")
    flagged = None if imputer.indicator_ is None else imputer.indicator_.features_
    mean, scale = scaler.mean_, scaler.scale_

    def block(columns: Columns) -> np.ndarray:
        given = np.array([columns[place] for place in places], dtype="float64").T
        absent = np.isnan(given)
        numbers = np.where(absent, fill, given)
        if flagged is not None:
            numbers = np.concatenate([numbers, absent[:, flagged]], axis=1)
        if mean is not None:
            numbers -= mean
        if scale is not None:
            numbers /= scale
        return numbers

    return block


def _levels(encoder: Any, columns: Sequence[str], places: list[int]) -> Block:
    """Columns of each text's levels: what the encoder gives for each level, and for one that it does not know."""
    import pandas as pd

    def encoded(column: str, levels: list[Any]) -> np.ndarray:
        frame = pd.DataFrame(
            {
                name: pd.Series(levels if name == column else [known[0]] * len(levels), dtype="object")
                for name, known in zip(columns, encoder.categories_, strict=True)
            }
        )
        return np.asarray(encoder.transform(frame), dtype="float64")

    if encoder.sparse_output or encoder.handle_unknown == "error":
        raise NotCompiledError("the levels of text are sparse, or an unknown one is an error")
    start, tables = 0, []
    infrequent = getattr(encoder, "infrequent_categories_", [None] * len(columns))
    for place, column, known, rare in zip(places, columns, encoder.categories_, infrequent, strict=True):
        levels = list(known)
        width = _width(rare, len(levels))
        table = encoded(column, [*levels, "\ufffe unknown"])[:, start : start + width]
        codes = {None if _absent(level) else level: code for code, level in enumerate(levels)}
        tables.append((place, codes, table))
        start += width

    def block(columns: Columns) -> np.ndarray:
        parts = [
            table[[codes.get(level, len(table) - 1) for level in columns[place]]]
            for place, codes, table in tables
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    return block


def _width(rare: Any, levels: int) -> int:
    """Columns of one text; its ``rare`` levels share one."""
    return levels if rare is None or not len(rare) else levels - len(rare) + 1


def _absent(level: Any) -> bool:
    return level is None or (isinstance(level, float) and math.isnan(level))


# -- estimator ---------------------------------------------------------------------------------------


def _estimator(pipeline: Any) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.calibration import CalibratedClassifierCV

    model = pipeline.named_steps["model"]
    if not hasattr(pipeline, "predict_proba"):
        return _regressor(model)
    if not isinstance(model, CalibratedClassifierCV):
        return model.predict_proba
    fitted: Any = pipeline.named_steps["model"]
    if len(fitted.calibrated_classifiers_) != 1 or len(fitted.classes_) != 2:
        return fitted.predict_proba
    return _calibrated(fitted.calibrated_classifiers_[0], fitted.method)


def _calibrated(calibrated: Any, method: str) -> Callable[[np.ndarray], np.ndarray]:
    """What ``CalibratedClassifierCV.predict_proba`` computes of a binary classifier."""
    from scipy.special import expit, softmax
    from sklearn.frozen import FrozenEstimator

    inner = calibrated.estimator
    inner = inner.estimator if isinstance(inner, FrozenEstimator) else inner
    probability = not hasattr(inner, "decision_function")
    raw = _positive(inner) if probability else inner.decision_function
    calibrator = calibrated.calibrators[0]

    def sigmoid(matrix: np.ndarray) -> np.ndarray:
        positive = expit(-(calibrator.a_ * raw(matrix) + calibrator.b_))
        return np.column_stack([1.0 - positive, positive])

    def temperature(matrix: np.ndarray) -> np.ndarray:
        value = raw(matrix)
        logits = (
            np.log(np.column_stack([1 - value, value]) + 1e-12)
            if probability
            else np.column_stack([-value, value])
        )
        # The sum over the calibrated classifiers, of which there is one, is a double.
        return softmax(calibrator.beta_ * logits, axis=1).astype("float64")

    if method == "sigmoid":
        return sigmoid
    if method == "temperature":
        return temperature
    raise NotCompiledError(f"calibration by {method}")


def _positive(classifier: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Probability of the second of two classes, shape (n,)."""
    package = type(classifier).__module__.partition(".")[0]
    if package == "xgboost":
        return _booster(classifier)
    if package == "lightgbm":
        booster = classifier.booster_
        return lambda matrix: booster.predict(matrix, num_threads=1)
    return lambda matrix: classifier.predict_proba(matrix)[:, 1]


def _regressor(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    package = type(model).__module__.partition(".")[0]
    if package == "xgboost":
        return _booster(model)
    if package == "lightgbm":
        booster = model.booster_
        return lambda matrix: booster.predict(matrix, num_threads=1)
    return model.predict


def _booster(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    booster = model.get_booster()
    return lambda matrix: booster.inplace_predict(matrix, validate_features=False)


# -- comparison --------------------------------------------------------------------------------------


def _rows_to_compare(pipeline: Any, signature: Signature) -> list[dict[str, Any]]:
    """Rows over the range of training with each level, unknown levels and missing values; always the same."""
    draw = np.random.default_rng(0)
    levels = _known_levels(pipeline)
    rows: list[dict[str, Any]] = []
    for number in range(_COMPARED):
        row: dict[str, Any] = {}
        for feature in signature.features:
            low, high = feature.seen or (-3.0, 3.0)
            if feature.may_be_missing and draw.random() < 0.15:
                row[feature.name] = None
            elif feature.type == "string":
                known = levels.get(feature.name, [])
                row[feature.name] = known[number % len(known)] if known and number % 5 else "unknown"
            elif feature.type == "boolean":
                row[feature.name] = bool(draw.random() < 0.5)
            else:
                value = float(draw.uniform(low, high))
                row[feature.name] = round(value) if feature.type == "long" else value
        rows.append(row)
    return rows


def _known_levels(pipeline: Any) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for _, transformer, columns in pipeline.named_steps["preprocess"].transformers_:
        categories: Any = getattr(transformer, "categories_", ())
        for name, known in zip(columns, categories, strict=False):
            found[name] = [str(level) for level in known if not _absent(level)]
    return found
