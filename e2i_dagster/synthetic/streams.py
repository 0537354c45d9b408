"""Random streams by name, and columns in the dtypes of the warehouse.

Every column draws from a stream of its own, derived from the seed and the column's name: a new column
changes no other, and the first ``n`` values of a stream are the same whatever ``n`` is. Only the raw
doubles of PCG64 are used, whose values are part of numpy's stability promise on every platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

#: Arrays of this module: ``Floats`` float64, ``Ints`` int64, ``Flags`` bool.
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: Arrow's functions, which its stubs do not list.
pc: Any = pyarrow.compute

#: First and last day of every synthetic date, and the day number of the last.
FIRST_DAY = np.datetime64("2022-01-01", "D")
LAST_DAY = np.datetime64("2024-12-31", "D")
DATA_END = int((LAST_DAY - FIRST_DAY).astype(int))


class Streams:
    """Independent streams of uniform numbers, one per name.

    Args:
        seed: any non-negative integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, size: int) -> Floats:
        """``size`` numbers in [0, 1) of the stream ``name``."""
        words = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u4")
        sequence = np.random.SeedSequence(self.seed, spawn_key=tuple(int(word) for word in words))
        return np.random.Generator(np.random.PCG64(sequence)).random(size)

    def normal(self, name: str, size: int) -> Floats:
        """``size`` standard normal numbers, by the Box-Muller transform of two streams."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(f"{name}/radius", size)))
        return radius * np.cos(2.0 * np.pi * self.uniform(f"{name}/angle", size))

    def integer(self, name: str, low: Ints | int, high: Ints | int, size: int) -> Ints:
        """``size`` integers, uniform on the closed ranges ``low`` to ``high`` (scalars or arrays)."""
        span = np.maximum(np.asarray(high) - np.asarray(low) + 1, 1)
        return (np.asarray(low) + np.floor(self.uniform(name, size) * span)).astype(np.int64)

    def choice(self, name: str, weights: Sequence[float], size: int) -> Ints:
        """``size`` positions in ``weights``, drawn with these (relative) weights."""
        bounds = np.cumsum(np.asarray(weights, dtype=float))
        return np.searchsorted(bounds / bounds[-1], self.uniform(name, size), side="right").astype(np.int64)

    def happens(self, name: str, probability: Floats | float, size: int) -> Flags:
        """``size`` flags that are true with ``probability`` (scalar or array)."""
        return self.uniform(name, size) < probability

    def order(self, name: str, size: int) -> Ints:
        """A random permutation of ``0 .. size - 1``."""
        return np.argsort(self.uniform(name, size), kind="stable").astype(np.int64)


def sigmoid(value: Floats) -> Floats:
    """The logistic function."""
    return np.asarray(1.0 / (1.0 + np.exp(-value)), dtype=np.float64)


def text_array(values: pa.Array | pa.ChunkedArray) -> Any:
    """``values`` as a pandas ``string[pyarrow]`` array."""
    return pd.array(values.cast(pa.string()), dtype="string[pyarrow]")


def pick(options: Sequence[str | None], codes: Ints, null: Flags | None = None) -> Any:
    """The text at position ``codes`` of ``options``; null where ``null`` is true."""
    taken = pa.array(list(options), type=pa.string()).take(pa.array(codes))
    return text_array(taken if null is None else pc.if_else(pa.array(null), None, taken))


def constant(value: str, size: int) -> Any:
    """The same text ``size`` times."""
    return pick([value], np.zeros(size, dtype=np.int64))


def keys(prefix: str, numbers: Ints, digits: int, null: Flags | None = None) -> Any:
    """``prefix`` and the numbers, filled with zeros to ``digits``; null where ``null`` is true."""
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    joined = joined_text(prefix, padded)
    return text_array(joined if null is None else pc.if_else(pa.array(null), None, joined))


def joined_text(*parts: Any) -> Any:
    """Element-wise concatenation of texts, numbers and constants (a pyarrow array)."""
    cast = [part if isinstance(part, str) else pa.array(part).cast(pa.string()) for part in parts]
    return pc.binary_join_element_wise(*cast, "")


def integers(values: Any, null: Flags | None = None) -> Any:
    """Nullable ``Int64``; null where ``null`` is true."""
    data = np.asarray(values).astype(np.int64)
    return pd.arrays.IntegerArray(data, np.zeros(len(data), bool) if null is None else null.copy())


def booleans(values: Flags, null: Flags | None = None) -> Any:
    """Nullable ``boolean``; null where ``null`` is true."""
    return pd.arrays.BooleanArray(values.copy(), np.zeros(len(values), bool) if null is None else null.copy())


def numbers(values: Any, decimals: int, null: Flags | None = None) -> Floats:
    """Rounded ``float64``; NaN where ``null`` is true."""
    rounded: Floats = np.round(np.asarray(values, dtype=np.float64), decimals)
    if null is not None:
        rounded[null] = np.nan
    return rounded


def dates(days: Ints, null: Flags | None = None) -> Any:
    """Day numbers (0 is 2022-01-01) as ``datetime64[us]``; null where ``null`` is true."""
    values = (FIRST_DAY + np.asarray(days, dtype=np.int64)).astype("datetime64[us]")
    if null is not None:
        values[null] = np.datetime64("NaT")
    return pd.array(values)


def timestamps(days: Ints, seconds: Ints, null: Flags | None = None) -> Any:
    """Day numbers and seconds of the day as ``datetime64[us, UTC]``, at most the last second of the set."""
    total = np.minimum(np.asarray(days) * 86_400 + seconds, DATA_END * 86_400 + 86_399)
    values = FIRST_DAY.astype("datetime64[us]") + (total * 1_000_000).astype("timedelta64[us]")
    if null is not None:
        values[null] = np.datetime64("NaT")
    return pd.Series(values).dt.tz_localize("UTC").array
