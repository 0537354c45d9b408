"""Digest of a frame's values: the same rows give the same digest, whatever their order or storage.

Row order, the index, and how a column is stored (text as object or Arrow; whole numbers as int32 or
Int64; timestamps in micro- or nanoseconds) do not matter. Every value, every null, the number of times
a row occurs, and the names and order of the columns do.

Each value becomes a 64-bit number by a keyed SipHash of its text or of its bits; a row is the mix of
its values with their column; the digest is SHA-256 over the sorted rows. Hash keys are constants, so
digests are stable across processes and machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

Key = TypeVar("Key")

_HASH_KEY = "e2i-frame-digest"
_NULL = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
#: Kinds of values: values of different kinds are never equal.
_TEXT, _NUMBER, _TIME, _BOOLEAN = 1, 2, 3, 4


def frame_digest(frame: pd.DataFrame) -> str:
    """Digest (32 hex digits) of the values of ``frame``.

    Args:
        frame: columns of text, numbers, booleans, dates, timestamps, or objects that ``str`` renders
            (lists and mappings by their JSON).

    Returns:
        The same text for frames with the same columns and the same rows in any order. Null, NaN and
        NaT are one value; 1 and 1.0 are equal; "1", 1 and True are not.
    """
    return _digest(frame.columns, *_row_numbers(frame))


def frame_digests(frames: Mapping[Key, pd.DataFrame]) -> dict[Key, str]:
    """:func:`frame_digest` of each of ``frames``: of the parts of one table in one pass over all rows."""
    parts = list(frames.values())
    if len(parts) < 2 or any(_has_objects(part) or not parts[0].dtypes.equals(part.dtypes) for part in parts):
        return {key: frame_digest(frame) for key, frame in frames.items()}
    whole = pd.concat(parts, ignore_index=True)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    rows, second = (np.split(numbers, ends) for numbers in _row_numbers(whole))
    return {key: _digest(whole.columns, *numbers) for key, *numbers in zip(frames, rows, second, strict=True)}


def _has_objects(frame: pd.DataFrame) -> bool:
    """A column whose kind is that of the values it happens to hold, so that a part can have another than the whole."""
    return any(
        pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype)
        for dtype in frame.dtypes
    )


def _row_numbers(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Two 64-bit numbers of each row; those of a row depend on nothing but its values and their columns."""
    rows = np.zeros(len(frame), dtype=np.uint64)
    second = np.zeros(len(frame), dtype=np.uint64)
    for position in range(frame.shape[1]):
        values = _hashed(frame.iloc[:, position])
        rows = _mix(rows + values * np.uint64(3) + _constant(position + 1), 30)
        second = _mix((second ^ values) + _constant((position + 1) * int(_MULTIPLIERS[0])), 27)
    return rows, second


def _digest(names: pd.Index, rows: np.ndarray, second: np.ndarray) -> str:
    order = np.lexsort((second, rows))
    digest = hashlib.sha256()
    digest.update("\x1f".join(map(str, names)).encode())
    digest.update(f"\x1e{len(rows)}\x1e".encode())
    digest.update(np.ascontiguousarray(rows[order].astype("<u8")).tobytes())
    digest.update(np.ascontiguousarray(second[order].astype("<u8")).tobytes())
    return digest.hexdigest()[:32]


def _constant(number: int) -> np.uint64:
    return np.uint64(number % 2**64)


def _mix(values: np.ndarray, shift: int) -> np.ndarray:
    """A bijective scrambling of 64-bit numbers (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(shift))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


def _hashed(column: pd.Series) -> np.ndarray:
    """One 64-bit number for each value of ``column``; nulls are one constant."""
    missing = column.isna().to_numpy(dtype=bool)
    kind, numbers = _numbers(column, missing)
    hashes = _mix(numbers + _constant(kind * int(_MULTIPLIERS[1])), 30)
    hashes[missing] = _NULL
    return hashes


def _numbers(column: pd.Series, missing: np.ndarray) -> tuple[int, np.ndarray]:
    """``column`` as 64-bit numbers, equal exactly when the values are, and the kind of its values."""
    dtype = column.dtype
    if isinstance(dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(dtype):
        stamps = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
        micros = stamps.astype("datetime64[us]").to_numpy().view("int64")
        nanos = _below_microseconds(stamps)
        return _TIME, micros.view("uint64") ^ (nanos << np.uint64(54))
    if pd.api.types.is_bool_dtype(dtype):
        return _BOOLEAN, column.fillna(False).to_numpy(dtype=bool).astype(np.uint64)
    if pd.api.types.is_integer_dtype(dtype):
        whole = np.uint64 if pd.api.types.is_unsigned_integer_dtype(dtype) else np.int64
        return _NUMBER, column.fillna(0).to_numpy(dtype=whole).view(np.uint64)
    if pd.api.types.is_float_dtype(dtype):
        floats = column.to_numpy(dtype=np.float64, na_value=np.nan)
        # Minus zero equals zero.
        return _NUMBER, _float_numbers(np.where(missing, 0.0, floats) + 0.0)
    return _object_numbers(column, missing)


def _below_microseconds(stamps: pd.Series) -> np.ndarray:
    if getattr(stamps.dtype, "str", "").endswith("[ns]"):
        ticks = np.where(stamps.isna().to_numpy(), 0, stamps.to_numpy().view("int64"))
        return np.mod(ticks, 1_000).astype(np.uint64)
    return np.zeros(len(stamps), dtype=np.uint64)


def _float_numbers(floats: np.ndarray) -> np.ndarray:
    """Whole floats as the integer they are, the others by their scrambled bits."""
    whole = (floats == np.floor(floats)) & (np.abs(floats) < 2.0**63)
    bits = _mix(np.ascontiguousarray(floats).view(np.uint64), 27)
    return np.where(whole, np.where(whole, floats, 0).astype(np.int64).view(np.uint64), bits)


def _object_numbers(column: pd.Series, missing: np.ndarray) -> tuple[int, np.ndarray]:
    """Text and other objects: objects that are all of one plain kind are handled as that kind."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _object_numbers(column.astype(object), missing)
    if not isinstance(dtype, pd.StringDtype):
        plain = pd.api.types.infer_dtype(column, skipna=True)
        converted = _plain(column, plain)
        if converted is not None:
            return _numbers(converted, missing)
        if plain != "string":
            column = column.map(_rendered, na_action="ignore")
    # pandas compares Python's texts up to their first null character only.
    codes, values = pd.factorize(column.astype("string[pyarrow]"), use_na_sentinel=True)
    hashed = pd.util.hash_array(np.asarray(values, dtype=object), hash_key=_HASH_KEY, categorize=False)
    return _TEXT, np.append(hashed, np.uint64(0))[codes]


def _plain(column: pd.Series, kind: str) -> pd.Series | None:
    """An object column of whole numbers, fractions, booleans or dates in its own dtype."""
    target = {"integer": "Int64", "boolean": "boolean", "floating": "float64", "decimal": "float64"}.get(kind)
    if target is not None:
        return column.astype(target)  # pyright: ignore
    if kind in ("mixed-integer-float", "integer-na"):
        return pd.to_numeric(column).astype("float64")
    if kind == "date":
        days = column.astype(object).where(column.notna(), None).to_numpy()
        return pd.Series(days.astype("datetime64[us]"))
    if kind in ("datetime", "datetime64"):
        return pd.to_datetime(column, utc=True)
    return None


def _rendered(value: Any) -> str:
    if isinstance(value, dict | list | tuple | np.ndarray):
        from e2i_dagster.tables.frames import json_text

        return json_text(value)
    return str(value)
