"""Frames in the form that the whole product uses: canonical columns and dtypes of a table.

Text, and JSON and arrays as JSON text: ``string[pyarrow]``; DATE: ``datetime64[us]``; TIMESTAMPTZ:
``datetime64[us, UTC]``; integer: ``Int64``; boolean: ``boolean``; other numbers: ``float64``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.errors import InputError
from e2i_dagster.tables import MAINTAINED_COLUMNS, metadata, moments
from e2i_dagster.tables.cells import json_text, read, rendered, to_arrow

TEXT = "string[pyarrow]"
DATE = "datetime64[us]"
TIMESTAMP = "datetime64[us, UTC]"


def canonical_dtype(type_: sa.types.TypeEngine[Any]) -> Any:
    """The pandas dtype of a column of the SQL type ``type_``."""
    if isinstance(type_, sa.DateTime):
        return TIMESTAMP
    if isinstance(type_, sa.Date):
        return DATE
    if isinstance(type_, sa.Boolean):
        return "boolean"
    if isinstance(type_, sa.Integer):
        return "Int64"
    if isinstance(type_, sa.Numeric | sa.Float):
        return "float64"
    return TEXT


def is_document(type_: sa.types.TypeEngine[Any]) -> bool:
    """True if frames hold the SQL type ``type_`` as JSON text (JSON and arrays)."""
    return isinstance(type_, JSONB | sa.JSON | sa.ARRAY)


def conform(table: str | sa.Table, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with exactly the columns of ``table``, in its order, in canonical dtypes.

    Args:
        table: name of a table of the warehouse, or the table.
        frame: any subset of the columns, in any order, as text or in dtypes that can be converted.
            A column that is absent becomes null. Columns that the table does not have are left out,
            but for those of ``patient_clinical``, which go into its ``extra``; ``data_split`` and
            ``split_config_id`` are always left out. ``frame`` is not changed.

    Returns:
        A new frame with a fresh index. Columns that the database maintains are not in it.

    Raises:
        InputError: values of a column cannot be converted; names column, count and what was expected,
            never a value.
    """
    target = metadata.tables[table] if isinstance(table, str) else table
    rows = len(frame)
    extra = _with_extra(target, frame)
    columns: dict[str, pd.Series] = {}
    for col in target.columns:
        if col.name in MAINTAINED_COLUMNS:
            continue
        if col.name in extra:
            given = extra[col.name]
        elif col.name in frame.columns:
            given = frame[col.name]
        else:
            columns[col.name] = pd.Series([None] * rows, dtype="object").astype(canonical_dtype(col.type))
            continue
        columns[col.name] = convert(given.reset_index(drop=True), col.type, where=f"{target.name}.{col.name}")
    return pd.DataFrame(columns, index=pd.RangeIndex(rows))


def _with_extra(target: sa.Table, frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The column ``extra`` of the clinical table, with the frame's own columns packed into it as text."""
    ignored = {*target.columns.keys(), *MAINTAINED_COLUMNS, "data_split", "split_config_id"}
    own = [name for name in frame.columns if name not in ignored]
    if "extra" not in target.columns or not own:
        return {}
    cells = pd.DataFrame({name: cell_text(frame[name]).astype(object) for name in own})
    given = frame["extra"] if "extra" in frame.columns else [None] * len(frame)
    merged = [
        json_text({**own_cells(before), **{k: v for k, v in row.items() if isinstance(v, str)}})
        for before, row in zip(given, cells.to_dict("records"), strict=True)
    ]
    return {"extra": pd.Series(merged, dtype=TEXT)}


def own_cells(document: Any) -> dict[str, str | None]:
    """The cells of one ``extra``, text as delivered; a value that was given as another kind as its JSON text.

    Raises:
        ValueError: the text is not a JSON object.
    """
    if not isinstance(document, dict) and _is_missing(document):
        return {}
    values = document
    if not isinstance(document, dict):
        # Digits are kept as they are written: 250.00 is not 250.
        values = json.loads(document, parse_float=str, parse_int=str, parse_constant=_no_number)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if any(isinstance(value, dict | list) for value in values.values()) and not isinstance(document, dict):
        whole = json.loads(document)
        values |= {key: whole[key] for key, value in values.items() if isinstance(value, dict | list)}
    return {str(key): None if value is None else rendered(value) for key, value in values.items()}


def _no_number(token: str) -> Any:
    raise ValueError(f"{token} is no JSON")


def extra_frame(clinical: pd.DataFrame) -> pd.DataFrame:
    """The user's own clinical columns: ``extra`` of a ``patient_clinical`` frame, unpacked.

    Returns:
        A frame with the index of ``clinical`` and one text column for each key that occurs, in
        alphabetical order: what was delivered. :func:`.own_columns.read_as` reads it under a declared type.
    """
    if "extra" not in clinical.columns:
        return pd.DataFrame(index=clinical.index)
    rows = [own_cells(value) for value in clinical["extra"]]
    names = sorted({name for row in rows for name in row})
    return pd.DataFrame(
        {name: pd.array([row.get(name) for row in rows], dtype=TEXT) for name in names}, index=clinical.index
    )


def cell_text(column: pd.Series) -> pd.Series:
    """``column`` as the text that its cells are kept as, whatever kind of file they came from.

    Text stays as it is; an empty text is a missing cell, since CSV cannot tell them apart. Typed cells have
    one form: ``true``/``false``, digits, the shortest decimal that reads back as the same number (without an
    exponent, whole numbers without a point), a decimal with its own digits, ISO days and moments, JSON.

    Returns:
        ``string[pyarrow]`` with the index of ``column``.
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column = column.astype(dtype.categories.dtype)
        dtype = column.dtype
    if isinstance(dtype, pd.StringDtype):
        text = column.astype(TEXT)
        return text.mask(text == "")
    if pd.api.types.is_integer_dtype(dtype):
        return column.astype(TEXT)
    if pd.api.types.is_object_dtype(dtype):
        # Lists and mappings have no hash: each value by itself.
        texts = [None if _is_missing(value) else rendered(value) or None for value in column]
    else:
        # As an array a short float stays short: 0.1 of 32 bits is not 0.1 of 64.
        plain = column.to_numpy(na_value=np.nan) if pd.api.types.is_float_dtype(dtype) else column
        codes, distinct = pd.factorize(plain, use_na_sentinel=True)
        texts = np.array([*map(rendered, distinct), None], dtype=object)[codes]
    return pd.Series(texts, index=column.index, dtype=TEXT)


def months_of(dates: pd.Series) -> pd.Series:
    """The month (``YYYY-MM``, in UTC) of each of ``dates``, null where there is none; a text per month, not per row."""
    plain = dates.dt.tz_convert(None) if dates.dt.tz is not None else dates
    months = plain.to_numpy().astype("datetime64[M]")
    codes, distinct = pd.factorize(months.view(np.int64))
    labels = np.datetime_as_string(distinct.view("datetime64[M]")).astype(object)
    return pd.Series(labels[codes], index=dates.index, dtype=object).where(dates.notna(), None)


def convert(column: pd.Series, type_: sa.types.TypeEngine[Any], *, where: str) -> pd.Series:
    """``column`` in the canonical dtype of the SQL type ``type_``.

    Raises:
        InputError: values cannot be converted; ``where`` names the column in the message.
    """
    dtype = canonical_dtype(type_)
    if is_document(type_):
        return _documents(column, where)
    if dtype == TEXT:
        return _text(column)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if dtype == "boolean":
        return _boolean(column, where)
    if dtype in ("Int64", "float64"):
        return _number(column, where, whole=dtype == "Int64")
    return _time(column, where, zoned=dtype == TIMESTAMP)


def _refuse(where: str, bad: pd.Series, expected: str) -> None:
    count = int(bad.sum())
    if count:
        raise InputError(
            f"{where}: {count} of {len(bad)} values are not {expected}.", remedy="Correct or reject them."
        )


def _text(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.StringDtype) or pd.api.types.infer_dtype(column, skipna=True) in (
        "string",
        "empty",
    ):
        return column.astype(TEXT)
    if pd.api.types.is_float_dtype(column.dtype):
        whole = column.dropna()
        if (whole == np.floor(whole)).all():
            return column.astype("Int64").astype(TEXT)
    return column.map(str, na_action="ignore").astype(TEXT)


def _documents(column: pd.Series, where: str) -> pd.Series:
    """JSON text in canonical form; lists and mappings become JSON. Repeated values are parsed once."""
    if not isinstance(column.dtype, pd.StringDtype):
        rendered = [
            value if isinstance(value, str) else None if _is_missing(value) else json_text(value)
            for value in column
        ]
        column = pd.Series(rendered, index=column.index, dtype=object)
    codes, values = pd.factorize(column.astype(object), use_na_sentinel=True)
    canonical: list[str | None] = []
    bad = 0
    for position, value in enumerate(values):
        try:
            canonical.append(json_text(json.loads(value)))
        except json.JSONDecodeError:
            canonical.append(None)
            bad += int((codes == position).sum())
    if bad:
        raise InputError(
            f"{where}: {bad} of {len(column)} values are not JSON.", remedy="Correct or reject them."
        )
    return pd.Series(np.array([*canonical, None], dtype=object)[codes], dtype=TEXT)


def _is_missing(value: Any) -> bool:
    return not isinstance(value, dict | list | tuple | set | np.ndarray) and bool(pd.isna(value))


def _boolean(column: pd.Series, where: str) -> pd.Series:
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype("boolean")
    found = pd.Series(
        read("boolean", to_arrow(column)).values.to_pandas(), index=column.index, dtype="boolean"
    )
    _refuse(where, column.notna() & found.isna(), "true or false")
    return found


def _number(column: pd.Series, where: str, *, whole: bool) -> pd.Series:
    if whole and (pd.api.types.is_integer_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype)):
        return column.astype("Int64")
    numbers = read("number", to_arrow(column), infinite=True).values.to_numpy(zero_copy_only=False)
    floats = pd.Series(numbers, index=column.index, dtype="float64")
    _refuse(where, column.notna() & floats.isna(), "a number")
    if not whole:
        return floats
    _refuse(where, floats.notna() & (floats != np.floor(floats)), "a whole number")
    return floats.astype("Int64")


def _time(column: pd.Series, where: str, *, zoned: bool) -> pd.Series:
    times: pd.Series
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        times = column.dt.tz_convert("UTC") if column.dt.tz is not None else column.dt.tz_localize("UTC")
    else:
        times = pd.Series(moments.moments(to_arrow(column)).values.to_pandas().array, index=column.index)
        _refuse(where, column.notna() & times.isna(), "an ISO timestamp" if zoned else "an ISO date")
    times = times.astype(TIMESTAMP)
    if zoned:
        return times
    midnights = times.dt.tz_localize(None)
    _refuse(where, midnights.notna() & (midnights != midnights.dt.normalize()), "a day without time")
    return midnights


__all__ = [
    "canonical_dtype",
    "cell_text",
    "conform",
    "convert",
    "extra_frame",
    "is_document",
    "json_text",
    "months_of",
    "own_cells",
]
