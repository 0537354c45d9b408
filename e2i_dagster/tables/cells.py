"""The one reader of delivered cells: what the text or the typed value of a cell says, or why it says nothing.

Every door asks here: the loader, layer 1 of quality control, `import check`, own columns, files of experiments.
What a cell says depends on the cell and the kind of its column alone, never on other cells. Days and moments are
read by :mod:`.moments`, codes by :func:`e2i_dagster.tables.codes.fits`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from e2i_dagster.tables import moments
from e2i_dagster.tables.arrow import compute, text_array

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "integer", "number", "boolean", "date", "timestamp", "json", "list"]

#: Spellings of booleans, in lower case and without outer blanks.
TRUE = ("true", "t", "yes", "y", "1", "1.0")
FALSE = ("false", "f", "no", "n", "0", "0.0")
#: A finite number as text.
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INFINITE = r"^[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?$"
#: Whole numbers that the database can hold.
INT32 = (-(2**31), 2**31 - 1)


@dataclass(frozen=True)
class Read:
    """The cells of a column under a kind.

    Attributes:
        values: text and JSON ``large_string``, a list as the JSON of its texts, ``int32``, ``float64``, ``bool``,
            ``date32`` or ``timestamp[us, UTC]``; null where a cell is empty or refused.
        refused: reason of a reject (a key of :data:`.rules.REASONS`) to boolean array over the cells.
    """

    values: pa.Array
    refused: Mapping[str, Any]


def kind_of(column: sa.Column[Any]) -> Kind:
    """How the cells of a described column are read."""
    kinds: tuple[tuple[type[Any], Kind], ...] = (
        (sa.Boolean, "boolean"),
        (sa.DateTime, "timestamp"),
        (sa.Date, "date"),
        (sa.Integer, "integer"),
        (sa.Numeric, "number"),
        (sa.Float, "number"),
        (JSONB, "json"),
        (ARRAY, "list"),
    )
    for type_, kind in kinds:
        if isinstance(column.type, type_):
            return kind
    return "text"


def read(kind: Kind, given: pa.Array, *, infinite: bool = False, literals: bool = False) -> Read:
    """What the cells of a column of ``kind`` say.

    Args:
        given: text, or values of any type (:func:`to_arrow`).
        infinite: an infinite number is a value; else it is refused like what is no number.
        literals: lists as PostgreSQL array literals instead of JSON.
    """
    if kind in ("date", "timestamp"):
        found = moments.days(given) if kind == "date" else moments.moments(given)
        return Read(
            found.values,
            {
                f"{kind}_format" if reason == "format" else reason: mask
                for reason, mask in found.refused.items()
            },
        )
    if kind == "number":
        values, wrong = _number(given, infinite=infinite)
    elif kind == "list":
        values, wrong = _distinct(given, _array_literal if literals else _json_list)
    else:
        values, wrong = _READERS[kind](given)
    return Read(
        values, {} if wrong is None else {"invalid_text" if kind == "text" else f"{kind}_format": wrong}
    )


def numbers_of(values: pd.Series) -> pd.Series:
    """Values as finite numbers (float64); NaN where there is none."""
    numbers = read("number", to_arrow(values)).values
    return pd.Series(numbers.to_numpy(zero_copy_only=False), index=values.index, dtype="float64")


def to_arrow(series: pd.Series) -> pa.Array:
    """One contiguous Arrow array; text is ``large_string``, NaN and NaT are null."""
    import pyarrow as pa

    if series.dtype == object:
        return _of_objects(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        return to_arrow(series.astype(series.cat.categories.dtype))
    array = pa.array(series, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.cast(pa.large_string()) if pa.types.is_string(array.type) else array


def _of_objects(series: pd.Series) -> pa.Array:
    """Objects as they come from drivers and Parquet; containers and mixed types become their text."""
    import pyarrow as pa

    missing = series.isna()
    if not {type(value) for value in series[~missing].head(1000)} & {dict, list, tuple, np.ndarray, bytes}:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError):
            array = pa.array(series, from_pandas=True)
            if pa.types.is_decimal(array.type):
                return array.cast(pa.float64())
            text = pa.types.is_null(array.type) or pa.types.is_string(array.type)
            return array.cast(pa.large_string()) if text else array
    return text_array(
        [None if empty else rendered(value) for value, empty in zip(series, missing, strict=True)]
    )


def as_text(values: pd.Series) -> list[str | None]:
    """Values as the text that a CSV file would have; null stays null."""
    import pyarrow as pa

    array = to_arrow(values)
    if pa.types.is_timestamp(array.type):
        form = "%Y-%m-%dT%H:%M:%SZ" if array.type.tz else "%Y-%m-%dT%H:%M:%S"
        # What has a zone is written by its clock, and this text says that the clock is that of UTC.
        zone = "UTC" if array.type.tz else None
        return compute().strftime(array.cast(pa.timestamp("s", zone), safe=False), form).to_pylist()
    return array.cast(pa.large_string()).to_pylist()


# --- the text of values ----------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """Canonical JSON of ``value``: sorted keys, no blanks; numpy values and dates are rendered."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def rendered(value: Any) -> str:  # noqa: PLR0911 - one line for each kind of value
    """One value in the form of :func:`cell_text`."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        # Zero has no sign, whatever it was written with.
        return np.format_float_positional(value + 0, trim="-") if np.isfinite(value) else str(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            # As PostgreSQL writes bytes.
            return f"\\x{value.hex()}"
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dict | list | tuple | set | np.ndarray):
        return json_text(value)
    return str(value)


# --- kinds -----------------------------------------------------------------------------------------

#: Values, and which cells are none; None where no cell can be wrong.
_Found = tuple[Any, Any]


def _text(given: pa.Array) -> _Found:
    import pyarrow as pa

    pc = compute()
    if not pa.types.is_large_string(given.type):
        if pa.types.is_floating(given.type):
            whole = pc.all(pc.equal(given, pc.floor(given)), skip_nulls=True).as_py()
            given = given.cast(pa.int64(), safe=False) if whole is not False else given
        given = given.cast(pa.large_string())
    data = given.buffers()[2]
    if data is None or not (np.frombuffer(data, dtype=np.uint8) == 0).any():
        return given, None
    wrong = pc.match_substring(given, "\x00")
    return null_where(given, wrong), wrong


def _number(given: pa.Array, *, infinite: bool) -> _Found:
    import pyarrow as pa

    pc = compute()
    kind = given.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        number = given.cast(pa.float64(), safe=False)
        wrong = pc.is_nan(number)
    else:
        text = pc.utf8_trim_whitespace(given.cast(pa.large_string()))
        try:
            number = text.cast(pa.float64())
            wrong = pc.is_nan(number)
        except pa.ArrowInvalid:
            fits = pc.match_substring_regex(text, f"{NUMBER}|{_INFINITE}")
            number = pc.if_else(pc.fill_null(fits, False), text, None).cast(pa.float64())
            wrong = pc.invert(fits)
    if not infinite:
        wrong = pc.or_(pc.fill_null(wrong, False), pc.fill_null(pc.is_inf(number), False))
    return null_where(number, wrong), wrong


def _integer(given: pa.Array) -> _Found:
    import pyarrow as pa

    pc = compute()
    least, most = INT32
    if pa.types.is_integer(given.type):
        wrong = pc.or_(pc.greater(given, most), pc.less(given, least))
        return null_where(given.cast(pa.int64()), wrong).cast(pa.int32()), wrong
    number, wrong = _number(given, infinite=False)
    # Files written by tools that know no null integers have 3.0.
    fraction = pc.not_equal(number, pc.floor(number))
    beyond = pc.or_(pc.greater(number, float(most)), pc.less(number, float(least)))
    wrong = pc.or_(wrong, pc.fill_null(pc.or_(fraction, beyond), False))
    return null_where(number, wrong).cast(pa.int32()), wrong


def _boolean(given: pa.Array) -> _Found:
    import pyarrow as pa

    pc = compute()
    if pa.types.is_boolean(given.type):
        return given, None
    text = pc.utf8_lower(pc.utf8_trim_whitespace(given.cast(pa.large_string())))
    true, false = (pc.is_in(text, value_set=text_array(words), skip_nulls=True) for words in (TRUE, FALSE))
    known = pc.or_(true, false)
    return pc.if_else(known, true, None), pc.and_(pc.invert(known), pc.is_valid(text))


def _json(given: pa.Array) -> _Found:
    return _distinct(given, _json_of, _all_json)


def _distinct(
    given: pa.Array, parse: Callable[[str], str | None], everything: Callable[[list[str]], bool] | None = None
) -> _Found:
    """Parse the distinct values; ``everything`` may confirm all of them as they are at once."""
    import pyarrow as pa

    pc = compute()

    coded = given.cast(pa.large_string()).dictionary_encode()
    texts = coded.dictionary.to_pylist()
    if everything is not None and everything(texts):
        return given.cast(pa.large_string()), None
    parsed = text_array([parse(text) for text in texts]).take(coded.indices)  # type: ignore[arg-type]
    return parsed, pc.and_(pc.is_null(parsed), pc.is_valid(given))


def _refuse(token: str) -> Any:
    raise ValueError(token)


def _json_of(text: str) -> str | None:
    if "\\u0000" in text or "\x00" in text:
        return None
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return text


def _all_json(texts: list[str]) -> bool:
    """True if all texts are JSON objects or lists without doubt, by one parse of all of them."""
    # Only texts that open and close alike can be joined without hiding a fault of one in the other.
    if not all((t[:1], t[-1:]) in (("{", "}"), ("[", "]")) for t in texts):
        return False
    joined = "[" + ",".join(texts) + "]"
    if "\\u0000" in joined or "\x00" in joined:
        return False
    try:
        return len(json.loads(joined, parse_constant=_refuse)) == len(texts)
    except (ValueError, RecursionError):
        return False


def _list_of(text: str) -> list[str] | None:
    """The texts of a JSON list or a PostgreSQL array literal."""
    stripped = text.strip()
    if stripped.startswith("{") and stripped.endswith("}"):
        inner = stripped[1:-1]
        if any(mark in inner for mark in '{}"\\'):
            return None
        items: list[Any] = [item.strip() for item in inner.split(",")] if inner.strip() else []
    else:
        try:
            items = json.loads(stripped)
        except (ValueError, RecursionError):
            return None
        if not isinstance(items, list) or not all(isinstance(item, str | int | float) for item in items):
            return None
    texts = [str(item) for item in items]
    return None if any("\x00" in text for text in texts) else texts


def _json_list(text: str) -> str | None:
    items = _list_of(text)
    return None if items is None else json.dumps(items, ensure_ascii=False)


def _array_literal(text: str) -> str | None:
    items = _list_of(text)
    if items is None:
        return None
    return "{" + ",".join('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items) + "}"


_READERS: Mapping[Kind, Callable[[Any], _Found]] = {
    "text": _text,
    "integer": _integer,
    "boolean": _boolean,
    "json": _json,
}


def null_where(array: pa.Array, wrong: Any) -> pa.Array:
    """``array`` without the cells that ``wrong`` marks."""
    pc = compute()
    return pc.if_else(pc.fill_null(wrong, False), None, array) if pc.any(wrong).as_py() else array
