"""Feature frames as models read them: one conversion, used by training and by serving.

Here belongs what turns a frame of any origin (Parquet, warehouse, JSON request) into the two kinds
of columns that a pipeline knows: numbers (float64, missing as NaN) and text (object, missing as NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError

Kind = Literal["number", "string"]

#: Columns of a training frame that identify or judge a row; never features.
NOT_FEATURES = (
    "patient_id",
    "patient_journey_id",
    "hcp_id",
    "index_date",
    "event_timestamp",
    "as_of",
    "label",
    "set",
    "split",
)


@dataclass(frozen=True)
class LabelledRows:
    """Rows to learn from or to be judged on.

    Attributes:
        features: frame as :func:`model_input` returns it, shape (n, features).
        target: shape (n,); 0 and 1 as int64 for a binary outcome, the position in ``classes`` as int64 for one of
            several classes, float64 for a number (of a time see :mod:`~.survival`).
        classes: names of the classes of a multiclass outcome.
        groups: columns that subgroups are made of, in the order of ``features``; None: the features.
        patients: whose row each is, as a number from 0 on, shape (n,); None: every row is a patient of its own.
    """

    features: pd.DataFrame
    target: np.ndarray
    classes: tuple[str, ...] = ()
    groups: pd.DataFrame | None = None
    patients: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def whose(self) -> np.ndarray:
        """The patient of each row as a number from 0 on, shape (n,)."""
        return np.arange(len(self)) if self.patients is None else self.patients


def feature_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """Columns of a training or scoring frame that are features: all but keys, dates and label."""
    return tuple(str(name) for name in frame.columns if name not in NOT_FEATURES)


def feature_kinds(frame: pd.DataFrame, features: Sequence[str]) -> dict[str, Kind]:
    """Whether each feature is a number or text, from the column types of ``frame``.

    Booleans are numbers (0 and 1).

    Raises:
        InputError: a feature is missing, or is neither number nor text (dates, lists).
    """
    _require(frame, features)
    return {name: _kind(frame[name]) for name in features}


def model_input(frame: pd.DataFrame, features: Mapping[str, Kind] | Sequence[str]) -> pd.DataFrame:
    """``frame`` reduced to ``features`` in that order, with the two column types a pipeline knows.

    Args:
        frame: any frame that has the features; other columns are left out.
        features: the kinds a model was trained with (always at prediction, so that one row reads the
            same as a thousand), or names, whose kinds are then read off ``frame``.

    Returns:
        New frame, same index and row order: float64 columns with NaN, object columns of str with NaN.

    Raises:
        InputError: a feature is missing; a number cannot be read as one or is infinite.
    """
    kinds = features if isinstance(features, Mapping) else feature_kinds(frame, features)
    _require(frame, list(kinds))
    return pd.DataFrame(
        {
            name: _numbers(frame[name]) if kind == "number" else _texts(frame[name])
            for name, kind in kinds.items()
        },
        index=frame.index,
    )


def labelled_rows(
    frame: pd.DataFrame,
    features: Mapping[str, Kind] | Sequence[str],
    target: str = "label",
    *,
    problem_type: str = "binary_classification",
    classes: Sequence[str] = (),
) -> LabelledRows:
    """Features and target of ``frame``.

    Args:
        classes: of a multiclass outcome, in the order of their codes.

    Raises:
        InputError: no target column, unlabelled rows among them, a binary target other than 0 and 1, or a class
            that is not among ``classes``.
    """
    _require(frame, [target])
    given = frame[target]
    unlabelled = int(given.isna().sum())
    if unlabelled:
        raise InputError(
            f"{unlabelled} of {len(frame)} rows have no value in {target!r}. Only labelled patients can be "
            "learned from.",
            field=target,
            remedy="Leave the scoring set out.",
        )
    if problem_type == "multiclass_classification":
        values = pd.Index(classes).get_indexer(pd.Index(given.astype(str)))
        if (values < 0).any():
            raise InputError(
                f"{target!r} holds a class other than {', '.join(classes)}.",
                field=target,
                remedy="Name every class of the outcome.",
            )
        return LabelledRows(
            model_input(frame, features), values, tuple(classes), patients=_repeated_patients(frame)
        )
    values = _numbers(given)
    if problem_type == "binary_classification":
        if not np.isin(values, (0.0, 1.0)).all():
            raise InputError(
                f"{target!r} holds values other than 0 and 1, which a binary outcome needs.",
                field=target,
                remedy="Give 0 and 1.",
            )
        values = values.astype("int64")
    return LabelledRows(model_input(frame, features), values, patients=_repeated_patients(frame))


def _repeated_patients(frame: pd.DataFrame) -> np.ndarray | None:
    """The patient of each row as a number, where a patient has several rows."""
    if "patient_id" not in frame.columns or not frame["patient_id"].duplicated().any():
        return None
    return pd.factorize(frame["patient_id"])[0]


def label_classes(frame: pd.DataFrame, problem_type: str, target: str = "label") -> tuple[str, ...]:
    """Names of the classes in ``frame``, sorted; empty where the outcome is not one of several classes."""
    if problem_type != "multiclass_classification":
        return ()
    return tuple(sorted(frame[target].dropna().astype(str).unique()))


def _require(frame: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise InputError(
            f"missing columns: {', '.join(missing)}. The frame has {', '.join(map(str, frame.columns))}.",
            field=missing[0],
            remedy="Give a frame with all features of the model.",
        )
    if not len(names):
        raise InputError("no feature is named.", field="features", remedy="Name one.")


def _kind(series: pd.Series) -> Kind:
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype):
        return "number"
    if isinstance(dtype, pd.CategoricalDtype | pd.StringDtype) or (
        pd.api.types.is_object_dtype(dtype)
        and pd.api.types.infer_dtype(series, skipna=True) in ("string", "empty")
    ):
        return "string"
    raise InputError(
        f"feature {series.name!r} has the type {dtype}; a feature is a number, a boolean or text.",
        field=str(series.name),
        value=str(dtype),
        remedy="Derive one from it (for example days between two dates).",
    )


def _numbers(series: pd.Series) -> np.ndarray:
    try:
        values = series.to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError):
        raise InputError(
            f"column {series.name!r} holds values that are not numbers.",
            field=str(series.name),
            remedy="Give numbers; a missing one is null.",
        ) from None
    if np.isinf(values).any():
        raise InputError(
            f"column {series.name!r} holds infinite values.",
            field=str(series.name),
            remedy="Give finite numbers; a missing one is null.",
        )
    return values


def _texts(series: pd.Series) -> np.ndarray:
    values = np.array(series.astype("string").to_numpy(dtype=object, na_value=np.nan), dtype=object)
    return values
