"""A column of the patient frame as typed values and a mask of what is known.

Whatever dtype a frame arrives with (object, NumPy, nullable, Arrow, categorical), a rule sees one of
four kinds of values, and a null of any sort is unknown and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from pandas.api.types import is_object_dtype

from e2i_dagster.cohorts.errors import CohortInputError

pc: Any = pyarrow.compute

Kind = Literal["boolean", "number", "text", "date", "empty"]

_KIND_OF_OBJECTS: dict[str, Kind] = {
    "boolean": "boolean",
    "string": "text",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
    "date": "date",
    "datetime": "date",
    "datetime64": "date",
    "empty": "empty",
}


@dataclass(frozen=True)
class TypedColumn:
    """Values of one column.

    Attributes:
        kind: ``boolean``, ``number`` (float64), ``date`` (datetime64[D], UTC), ``text``, or ``empty``
            (nothing but nulls, of no kind).
        values: one value per row; for text the position in ``texts``. Where not ``known``, a date is NaT and
            other values mean nothing.
        known: True where the value is not null.
        texts: the distinct texts.
    """

    name: str
    kind: Kind
    values: np.ndarray
    known: np.ndarray
    texts: tuple[str, ...] = ()


def require_columns(frame: pd.DataFrame, names: tuple[str, ...], *, what: str) -> None:
    """Check that ``frame`` has all columns of ``names``.

    Raises:
        CohortInputError: CC_002, naming each missing column and the nearest one that is there.
    """
    missing = [name for name in names if name not in frame.columns]
    if not missing:
        return
    have = [str(column) for column in frame.columns]
    hints = []
    for name in missing:
        near = get_close_matches(name, have, n=1)
        hints.append(f"{name!r}" + (f" (nearest: {near[0]!r})" if near else ""))
    raise CohortInputError(
        "CC_002",
        f"{what} needs column(s) that the data does not have: {', '.join(hints)}.",
        remedy="Load them, or correct the name in the definition. A rule is never skipped.",
    )


def typed_column(series: pd.Series, name: str) -> TypedColumn:
    """``series`` as a :class:`TypedColumn`.

    Raises:
        CohortInputError: CC_004, the column mixes kinds of values.
    """
    array = _plain_array(series)
    if array is not None:
        return arrow_column(array, name)
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        series = series.astype(dtype.categories.dtype)
        dtype = series.dtype
    known = series.notna().to_numpy(dtype=bool)
    kind = _kind(series, name)
    if kind == "empty":
        return TypedColumn(name, kind, np.zeros(len(series)), known)
    if kind == "boolean":
        return TypedColumn(name, kind, series.where(known, False).to_numpy(dtype=bool), known)
    if kind == "number":
        values = series.where(known, np.nan).astype(np.float64) if is_object_dtype(dtype) else series
        return TypedColumn(name, kind, values.to_numpy(dtype=np.float64, na_value=np.nan), known)
    if kind == "date":
        return TypedColumn(name, kind, _days(series), known)
    codes, texts = pd.factorize(series, use_na_sentinel=True)
    return TypedColumn(name, kind, codes, known, tuple(texts))


def kind_of_arrow(dtype: pa.DataType) -> Kind | None:
    """The kind of an Arrow type; None for one that is brought into no kind here."""
    types = pa.types
    if types.is_dictionary(dtype):
        return "text" if kind_of_arrow(dtype.value_type) == "text" else None
    if types.is_boolean(dtype):
        return "boolean"
    if types.is_integer(dtype) or types.is_floating(dtype) or types.is_decimal(dtype):
        return "number"
    if types.is_date(dtype) or types.is_timestamp(dtype):
        return "date"
    if types.is_string(dtype) or types.is_large_string(dtype):
        return "text"
    return "empty" if types.is_null(dtype) else None


def arrow_column(array: pa.Array, name: str) -> TypedColumn:
    """An Arrow array of a type that :func:`kind_of_arrow` knows as a :class:`TypedColumn`."""
    kind = kind_of_arrow(array.type)
    known = _numpy(array.is_valid())
    if kind == "boolean":
        return TypedColumn(name, kind, _numpy(pc.fill_null(array, False)), known)
    if kind == "number":
        values = _numpy(array.cast(pa.float64(), safe=False))
        return TypedColumn(name, kind, values, known & ~np.isnan(values))
    if kind == "date":
        return TypedColumn(name, kind, _numpy(array).astype("datetime64[D]", copy=False), known)
    if kind == "text":
        coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        texts = tuple(coded.dictionary.to_pylist())
        return TypedColumn(name, kind, _numpy(pc.fill_null(coded.indices, -1)), known, texts)
    return TypedColumn(name, "empty", np.zeros(len(array)), known)


def key_column(series: pd.Series) -> pa.Array:
    """Keys as texts, null where empty."""
    array = _plain_array(series)
    if array is None or not pa.types.is_string(array.type):
        array = pa.array(series.astype("string[pyarrow]"), type=pa.string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def is_ascending(keys: pa.Array) -> bool:
    """Whether every key is greater than the one before it, which proves that none is null or repeated."""
    if keys.null_count:
        return False
    return len(keys) < 2 or bool(pc.all(pc.less(keys[:-1], keys[1:])).as_py())


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _plain_array(series: pd.Series) -> pa.Array | None:
    """Texts, and objects that are all true/false, dates or texts, in one step; None for anything else."""
    if isinstance(series.dtype, pd.StringDtype):
        array = pa.array(series.array)
    elif is_object_dtype(series.dtype):
        try:
            array = pa.array(series, from_pandas=True)
        except (pa.ArrowException, OverflowError):
            return None
    else:
        return None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    plain = pa.types.is_date32(array.type) or kind_of_arrow(array.type) in ("boolean", "text", "empty")
    return array if plain and isinstance(array, pa.Array) else None


def date_column(series: pd.Series, name: str) -> TypedColumn:
    """``series`` as days; a text column is read as ISO dates.

    Raises:
        CohortInputError: CC_005, the column holds no dates, or texts that are no dates (their number).
    """
    column = typed_column(series, name)
    if column.kind == "empty":
        values = np.full(len(series), np.datetime64("NaT"), dtype="datetime64[D]")
        return TypedColumn(name, "date", values, column.known)
    if column.kind == "text":
        parsed = pd.to_datetime(series.astype(object), format="ISO8601", errors="coerce", utc=True)
        wrong = int((parsed.isna().to_numpy() & column.known).sum())
        if wrong:
            raise CohortInputError(
                "CC_005",
                f"column {name!r} must hold dates, but {wrong:,} of {len(series):,} values are texts that "
                f"are no dates (expected YYYY-MM-DD).",
                remedy="Correct them in the import mapping.",
            )
        return TypedColumn(name, "date", _days(parsed), column.known)
    if column.kind != "date":
        raise CohortInputError(
            "CC_005",
            f"column {name!r} must hold dates, but holds values of {column.kind}.",
            field=name,
            value=column.kind,
            remedy="Give days as YYYY-MM-DD.",
        )
    return column


def _kind(series: pd.Series, name: str) -> Kind:
    dtype = series.dtype
    found = str(dtype)
    if is_object_dtype(dtype):
        found = pd.api.types.infer_dtype(series, skipna=True)
        kind = _KIND_OF_OBJECTS.get(found)
    elif pd.api.types.is_bool_dtype(dtype):
        kind = "boolean"
    elif pd.api.types.is_datetime64_any_dtype(dtype) or "date32" in str(dtype):
        kind = "date"
    elif pd.api.types.is_numeric_dtype(dtype):
        kind = "number"
    elif pd.api.types.is_string_dtype(dtype):
        kind = "text"
    else:
        kind = None
    if kind is None:
        raise CohortInputError(
            "CC_004",
            f"column {name!r} holds values that cannot be compared ({found}); expected true/false, "
            f"numbers, dates or texts.",
            remedy="Give the column one type in the import mapping.",
        )
    return kind


def _days(series: pd.Series) -> np.ndarray:
    if "date32" in str(series.dtype) or pd.api.types.infer_dtype(series, skipna=True) == "date":
        # Not by way of timestamps, which do not reach an end of 9999-12-31.
        days = pa.array(series, type=pa.date32(), from_pandas=True)
        return np.asarray(days.to_numpy(zero_copy_only=False), dtype="datetime64[D]")
    stamps = pd.to_datetime(series)
    if isinstance(stamps.dtype, pd.DatetimeTZDtype):
        stamps = stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    return stamps.to_numpy(dtype="datetime64[us]").astype("datetime64[D]")
