"""One file that a user hands to a command: text as delivered, and only declared or certain conversions.

CSV and Parquet give the same frame. ``NA`` is text, leading zeros stay, and a column is a number or a boolean
only where every delivered value is one without doubt.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse import moments
from e2i_dagster.warehouse.arrow import compute, text_array
from e2i_dagster.warehouse.cells import as_text, read

if TYPE_CHECKING:
    import pyarrow as pa

#: Numbers as a program writes them: a code such as 00123 or +1 is text.
_CANONICAL = r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,3})?$"
_TEXT = pd.StringDtype("pyarrow")
#: Spellings that are booleans whatever the column is: 1 and 0 are numbers, t and f may be codes.
_TRUE_OR_FALSE = ("true", "false", "yes", "no")


def read_handed(
    path: Path, *, text: Collection[str] = (), times: Collection[str] = (), form: FileFormat | None = None
) -> pd.DataFrame:
    """The rows of ``path``, one column for each of the file.

    Args:
        text: columns that are text whatever they look like: identifiers, versions, codes.
        times: columns of days or moments; they become ``datetime64[us, UTC]``.
        form: how a CSV file is written.

    Returns:
        Other columns are float64 where every value is a number written canonically, boolean where every value
        is true, false, yes or no, and text as delivered otherwise.

    Raises:
        InputError: the file cannot be read, a row has another number of fields than the header, or a cell of
            ``times`` is no day, or one that is ambiguous; names file, column, row and remedy.
    """
    from e2i_dagster.sources.files import read_rows

    rows = read_rows(path, form or FileFormat())
    return pd.DataFrame(
        {name: _column(path, name, rows.column(name), text, times) for name in rows.column_names},
        index=pd.RangeIndex(rows.num_rows),
    )


def _column(path: Path, name: str, given: Any, text: Collection[str], times: Collection[str]) -> Any:
    import pyarrow as pa

    array = pa.concat_arrays(given.chunks) if given.num_chunks else pa.array([], given.type)
    if name in times:
        return _moments(path, name, array)
    if pa.types.is_temporal(array.type):
        return pd.array(as_text(array.to_pandas()), dtype=_TEXT)
    delivered = _delivered(array)
    return pd.array(delivered.to_pylist(), dtype=_TEXT) if name in text else _certain(delivered)


def _delivered(array: pa.Array) -> pa.Array:
    """Text as a CSV file would have it; whole numbers without a fraction, which gaps make floats in Parquet."""
    import pyarrow as pa

    pc = compute()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        if pc.all(pc.equal(array, pc.floor(array))).as_py() and pc.all(pc.less(pc.abs(array), 1e15)).as_py():
            array = array.cast(pa.int64())
    return array.cast(pa.large_string())


def _certain(text: pa.Array) -> Any:
    pc = compute()
    if text.null_count == len(text):
        return pd.array(text.to_pylist(), dtype=_TEXT)
    if pc.all(pc.match_substring_regex(text, _CANONICAL)).as_py():
        return read("number", text).values.to_numpy(zero_copy_only=False)
    if pc.all(pc.or_(pc.is_in(pc.utf8_lower(text), text_array(_TRUE_OR_FALSE)), pc.is_null(text))).as_py():
        return pd.array(read("boolean", text).values.to_pylist(), dtype="boolean")
    return pd.array(text.to_pylist(), dtype=_TEXT)


def _moments(path: Path, name: str, array: pa.Array) -> Any:
    import pyarrow as pa

    judged = moments.moments(array if pa.types.is_temporal(array.type) else array.cast(pa.large_string()))
    for reason, mask in judged.refused.items():
        wrong = mask.to_pylist()
        if any(wrong):
            raise InputError(
                f"{path.name}: {name} has {sum(map(bool, wrong)):,} value(s) refused as {reason}, the first in row "
                f"{wrong.index(True) + 1}. Write YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ."
            )
    return judged.values.to_pandas().array
