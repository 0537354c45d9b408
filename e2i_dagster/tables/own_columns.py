"""A team's own clinical columns: kept as text as delivered, read under the type that was declared.

The loader's check and the building of a cohort both ask :func:`converted`, so they cannot disagree. A cell's
answer depends on the cell and the type alone, never on other cells, rows or deliveries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.cells import Read, read
from e2i_dagster.tables.codes import fits
from e2i_dagster.tables.frames import TEXT, cell_text
from e2i_dagster.tables.own_types import OwnType

if TYPE_CHECKING:
    import pyarrow as pa


def converted(cells: pa.Array, kind: OwnType) -> Read:
    """``cells`` (text, ``large_string``) under the declared type ``kind``.

    Codes stay as they are written, because what compares them knows their spellings; a cell that has not the
    shape of a code of the system, or a wrong check digit, does not convert.
    """
    import pyarrow as pa

    if kind == "text":
        return Read(cells, {})
    if kind in ("number", "boolean", "date"):
        return read(kind, cells)
    pc = compute()
    coded = cells.dictionary_encode()
    known = pa.array([fits(text, kind) for text in coded.dictionary.to_pylist()], pa.bool_())
    right = known.take(coded.indices)
    return Read(pc.if_else(right, cells, None), {"code_format": pc.invert(right)})


def read_as(column: pd.Series, kind: OwnType) -> tuple[pd.Series, int]:
    """A column of own cells under the type ``kind``, null where unknown, and how many cells do not convert.

    Args:
        column: text as it is kept, or typed values, which are read as the text that they would be kept as.
    """
    import pyarrow as pa

    texts = cell_text(column)
    found = converted(pa.array(texts.astype(object), pa.large_string(), from_pandas=True), kind)
    lost = found.values.null_count - int(texts.isna().sum())
    if kind == "number":
        values: pd.Series = pd.Series(found.values.to_numpy(zero_copy_only=False))
    elif kind == "boolean":
        values = pd.Series(found.values.to_pandas(), dtype="boolean")
    elif kind == "date":
        values = pd.Series(pd.arrays.ArrowExtensionArray(found.values))
    else:
        values = pd.Series(found.values.to_pandas(), dtype=TEXT)
    return values.set_axis(column.index), lost
