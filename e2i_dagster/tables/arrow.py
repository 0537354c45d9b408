"""The few lines that every use of Arrow arrays needs: its functions, text arrays, masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def compute() -> Any:
    """``pyarrow.compute``, whose functions are made at run time; imported when first needed."""
    import pyarrow.compute

    return pyarrow.compute


def text_array(values: Sequence[str | None]) -> pa.Array:
    """``values`` as ``large_string``, the text type of every array here."""
    import pyarrow as pa

    return pa.array(values, pa.large_string())


def numpy_mask(mask: Any) -> np.ndarray:
    """A boolean Arrow or numpy array as numpy; null is False."""
    return (
        mask
        if isinstance(mask, np.ndarray)
        else compute().fill_null(mask, False).to_numpy(zero_copy_only=False)
    )


def positions(mask: Any) -> np.ndarray:
    """Positions at which a boolean Arrow or numpy array is True."""
    if not isinstance(mask, np.ndarray) and not compute().any(mask, skip_nulls=True).as_py():
        return np.array([], dtype=np.int64)
    return np.flatnonzero(numpy_mask(mask))
