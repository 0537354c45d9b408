"""One file that a user hands to a command: text as delivered, and only declared or certain conversions.

Every format that is read gives the same frame. ``NA`` is text, leading zeros stay, and a column is a number or a
boolean only where every delivered value is one without doubt. What differs is declared in the words of the import
mapping.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from e2i_dagster.config.mapping import HandedMapping
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.tables import moments
from e2i_dagster.tables.arrow import compute, text_array
from e2i_dagster.tables.cells import as_text, read
from e2i_dagster.tables.frames import cell_text

if TYPE_CHECKING:
    import pyarrow as pa

#: Numbers as a program writes them: a code such as 00123, +1, 1E5 or 1e05 is text. An exponent follows a fraction or
#: has a sign, as in 1.5E5, 1e+20 and 1E-7, or is 1e5.
_CANONICAL = r"^-?(0|[1-9]\d{0,14})(\.\d+([eE][+-]?\d{1,3})?|[eE][+-]\d{1,3}|e(0|[1-9]\d{0,2}))?$"
#: Columns of a file of refused rows that are none of the delivery: row and reasons, and the text of a row whose
#: fields could not be distinguished.
ROW, REASONS, LINE = "_row", "_reasons", "_line"
#: Why a row has no frame of its own.
UNEVEN = "more or fewer fields than the header, often by a quotation mark; correct it"
#: Names of columns that identify, such as id, patient_id, npi, mrn, zip.
_IDENTIFIES = r"(^|_)(id|ids|npi|mrn|zip|zip_?code|ndc|uuid)$"
#: What looks like a day or moment: day and month, in any order, and a year of four digits. A column whose filled cells
#: do so in this share is one of days, and the others are mistakes.
_DAY = r"^\s*(\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{4})([T ].*)?$"
_NEARLY_ALL = 0.9
_TEXT = pd.StringDtype("pyarrow")
#: Spellings that are booleans whatever the column is: 1 and 0 are numbers, t and f may be codes.
_TRUE_OR_FALSE = ("true", "false", "yes", "no")


class RefusedRow(NamedTuple):
    """A row that cannot be used: its number in the file (the header not counted), where, what and why."""

    row: int
    column: str
    value: str | None
    reason: str


@dataclass(frozen=True)
class HandedRows:
    """The rows of a file that can be read, and those that cannot.

    Attributes:
        frame: as :func:`read_handed` gives it; its index is the number of the row in the file, from 0.
        delivered: text of all rows but uneven ones under the names of the file, on the same index.
        uneven: text of those, by the same number. refused: rows that are not in ``frame``.
        mapping: how the file is written.
    """

    frame: pd.DataFrame
    delivered: pd.DataFrame
    uneven: dict[int, str]
    refused: tuple[RefusedRow, ...]
    mapping: HandedMapping

    def value(self, row: RefusedRow) -> str | None:
        """What was delivered in the cell that ``one`` tells of."""
        names = {final: name for name, final in self.mapping.rename.items()}
        column = names.get(row.column, row.column)
        if column not in self.delivered.columns or row.row - 1 not in self.delivered.index:
            return None
        found: Any = self.delivered.at[row.row - 1, column]
        return None if pd.isna(found) else str(found)

    def write(self, stream: IO[str], refused: Sequence[RefusedRow]) -> None:
        """Write the ``refused`` rows as delivered, with number and reasons, so that they can be corrected and given
        again with the same mapping."""
        refusals = pd.DataFrame(refused, columns=list(RefusedRow._fields))
        said = (refusals["column"] + ": " + refusals["reason"]).where(
            refusals["column"] != "", refusals["reason"]
        )
        reasons = said.groupby(refusals["row"]).agg("; ".join)
        places = reasons.index.to_numpy() - 1
        rows = self.delivered.reindex(places)
        form, plain = self.mapping.form, self.mapping.quote == "none"
        if plain:
            reasons = reasons.astype("string").str.replace(form.separator, " ", regex=False)
        rows.insert(0, ROW, reasons.index.to_numpy())
        rows.insert(1, REASONS, reasons.to_numpy())
        if self.uneven:
            lines = pd.Series(self.uneven, dtype=object).reindex(places)
            rows[LINE] = lines.str.replace(form.separator, " ", regex=False) if plain else lines
        quoting: Any = {"quoting": csv.QUOTE_NONE} if plain else {"quotechar": form.quote}
        rows.to_csv(stream, index=False, sep=form.separator, **quoting)


def read_handed(
    path: Path,
    *,
    text: Collection[str] = (),
    times: Collection[str] = (),
    measured: Collection[str] = (),
    mapping: HandedMapping | None = None,
) -> pd.DataFrame:
    """The rows of ``path``, one column for each of the file.

    Args:
        text: columns that are text whatever they look like: identifiers, versions, codes.
        times: columns of days or moments that have passed; they become ``datetime64[us, UTC]``, as those do that
            ``mapping`` declares as dates.
        measured: columns that are ``times`` where nearly all their cells look like days, unless ``mapping`` declares
            them as ``text``.
        mapping: how the file is written, and which names, dates and values differ.

    Returns:
        Other columns are float64 where every value is a number written canonically, boolean where every value
        is true, false, yes or no, and text as delivered otherwise.

    Raises:
        InputError: the file cannot be read, a row has another number of fields than the header, the mapping names a
            column that is not there, or a cell of ``times`` is no day, one that is ambiguous, or in the future; names
            file, column, row and remedy.
    """
    handed = read_rows_handed(path, text=text, times=times, measured=measured, mapping=mapping)
    if handed.refused:
        first = handed.refused[0]
        count = sum(row.column == first.column for row in handed.refused)
        what = f"{first.column} has {count:,} value(s)" if first.column else f"{count:,} row(s)"
        why, _, remedy = first.reason.partition("; ")
        raise InputError(
            f"{path.name}: {what} that cannot be used, the first in row {first.row}: {why}.",
            file=path,
            field=first.column or None,
            value=f"row {first.row}",
            remedy=f"{remedy[:1].upper()}{remedy[1:]}." if remedy else None,
        )
    return handed.frame


def read_rows_handed(
    path: Path,
    *,
    text: Collection[str] | None = (),
    times: Collection[str] = (),
    measured: Collection[str] = (),
    mapping: HandedMapping | None = None,
) -> HandedRows:
    """As :func:`read_handed`, but a row that cannot be read does not stop the others.

    Args:
        text: None: every column but ``times``.

    Raises:
        InputError: the file as a whole cannot be read, or the mapping names a column that is not there.
    """
    import pyarrow as pa

    from e2i_dagster.sources.files import read_file

    mapping = mapping or HandedMapping()
    read = read_file(path, mapping.form)
    rows, uneven = read.rows, read.malformed
    original = [str(name).strip() for name in rows.column_names]
    names = _final_names(path, original, mapping)
    numbers = read.numbers - 1
    index = pd.Index(numbers)
    refused = [RefusedRow(number, "", None, UNEVEN) for number, _ in uneven]
    columns: dict[str, Any] = {}
    delivered: dict[str, Any] = {}
    for place, name in enumerate(names):
        given = rows.column(place)
        array = pa.concat_arrays(given.chunks) if given.num_chunks else pa.array([], given.type)
        written = _written(array, mapping)
        delivered[original[place]] = pd.array(written.to_pylist(), dtype=_TEXT)
        if name in (ROW, REASONS, LINE, *mapping.ignore):
            continue
        as_text = text is None or name in text or name in mapping.text
        seen = name in measured and not as_text and _looks_like_days(array, written)
        if name in times or name in mapping.dates or seen:
            columns[name], wrong = _moments(
                name, array, written, numbers, mapping, past=name in times or seen
            )
            if seen and name not in mapping.dates:
                ways = f", or write text: [{name}] in --mapping where it is no time"
                wrong = [row._replace(reason=row.reason + ways) for row in wrong]
            refused += wrong
        else:
            columns[name] = _column(name, written, mapping, as_text)
    frame = pd.DataFrame(columns, index=index)
    unreadable = {row.row - 1 for row in refused}
    lines = {number - 1: content for number, content in uneven}
    kept = frame[~frame.index.isin(unreadable)] if refused else frame
    return HandedRows(
        kept,
        pd.DataFrame(delivered, index=index).drop(columns=[ROW, REASONS, LINE], errors="ignore"),
        lines,
        tuple(sorted(refused, key=lambda row: row[:2])),
        mapping,
    )


def canonical_numbers(text: pa.Array) -> pa.Array:
    """float64 of each cell of ``text`` (large_string) that is a number without doubt; null where it is text.

    A number that no double holds is text: 1e400 would be infinite, and 1e-400 is not 0.
    """
    import pyarrow as pa

    from e2i_dagster.tables.rules import compute

    pc = compute()
    written = pc.fill_null(pc.match_substring_regex(text, _CANONICAL), False)
    number = pc.if_else(written, text, pa.scalar(None, pa.large_string())).cast(pa.float64())
    zero = pc.invert(pc.match_substring_regex(text, r"^-?[0.]*[1-9]"))
    representable = pc.and_(pc.is_finite(number), pc.or_(pc.not_equal(number, 0.0), zero))
    return pc.if_else(representable, number, pa.scalar(None, pa.float64()))


def is_identifier(name: str) -> bool:
    """Whether a column is by its name an identifier: text, whatever its values look like."""
    return bool(re.search(_IDENTIFIES, name, re.IGNORECASE))


def identifier_notes(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What is to be known of those columns of ``names`` that are or may be identifiers and no measurements."""
    notes = []
    for name in names:
        if name not in frame.columns:
            continue
        column = frame[name]
        if is_identifier(name):
            notes.append(
                f"{name} identifies, so each of its {column.nunique():,} values is a category and no number."
            )
        elif (
            pd.api.types.is_float_dtype(column)
            and len(column) > 1
            and column.is_unique
            and (column.dropna() % 1 == 0).all()
        ):
            notes.append(
                f"{name} has another whole number in every row and is adjusted for as a number. If it identifies, "
                "leave it out, or name it under `text` in --mapping."
            )
    return notes


def _final_names(path: Path, names: Sequence[str], mapping: HandedMapping) -> list[str]:
    """Names of the columns after renaming.

    Raises:
        InputError: the mapping names a column that is not there, or two columns get one name.
    """
    final = [mapping.rename.get(name, name) for name in names]
    asked = [("rename", tuple(mapping.rename), names)]
    asked += [(key, tuple(getattr(mapping, key)), final) for key in ("dates", "values", "ignore", "text")]
    for key, given, known in asked:
        for name in given:
            if name not in known:
                near = did_you_mean(name, known)
                remedy = f"{near + ' ' if near else ''}The file has: {', '.join(known)}."
                raise InputError(
                    f"{path.name}: `{key}` of the mapping names {name}, which is no column of it. {remedy}",
                    file=path, field=key, value=name, remedy=remedy,
                )  # fmt: skip
    twice = sorted({name for name in final if final.count(name) > 1})
    if twice:
        raise InputError(
            f"{path.name}: two columns become {', '.join(twice)} after the mapping.",
            remedy="Rename or ignore one of them.",
            file=path,
        )
    return final


def _written(array: pa.Array, mapping: HandedMapping) -> pa.Array:
    """Text as a CSV file would have it, null where empty; whole numbers without the fraction that gaps make.

    Lists and structures are JSON, and bytes that are no text are written in hexadecimal digits, as the loader does.
    """
    import pyarrow as pa

    pc = compute()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_rendered(array.type):
        array = pa.array(cell_text(pd.Series(array.to_pylist(), dtype=object)), pa.large_string())
    if pa.types.is_temporal(array.type):
        return pa.array(as_text(array.to_pandas()), pa.large_string())
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        if pc.all(pc.equal(array, pc.floor(array))).as_py() and pc.all(pc.less(pc.abs(array), 1e15)).as_py():
            array = array.cast(pa.int64())
    text = array.cast(pa.large_string())
    empty = pc.is_in(text, pa.array(["", *mapping.nulls], pa.large_string()))
    return pc.if_else(empty, pa.scalar(None, pa.large_string()), text)


def _looks_like_days(array: pa.Array, written: pa.Array) -> bool:
    import pyarrow as pa

    from e2i_dagster.tables.rules import compute

    pc = compute()
    if pa.types.is_date(array.type) or pa.types.is_timestamp(array.type):
        return True
    share = pc.mean(pc.match_substring_regex(written, _DAY)).as_py()
    return share is not None and share >= _NEARLY_ALL


def _is_rendered(kind: pa.DataType) -> bool:
    """Whether Arrow has no text for values of ``kind``: lists, structures, maps, bytes."""
    import pyarrow as pa

    is_bytes = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    return pa.types.is_nested(kind) or any(check(kind) for check in is_bytes)


def _column(name: str, written: pa.Array, mapping: HandedMapping, as_text: bool) -> Any:
    import pyarrow as pa

    pc = compute()
    if name in mapping.values:
        to = mapping.values[name]
        written = pa.array([to.get(cell, cell) or None for cell in written.to_pylist()], pa.large_string())
    if mapping.decimal == ",":
        # A cell alone decides, so that one that is no number changes no other.
        number = pc.match_substring_regex(written, r"^[+-]?\d+,\d+$")
        written = pc.if_else(number, pc.replace_substring(written, ",", "."), written)
    return pd.array(written.to_pylist(), dtype=_TEXT) if as_text else _certain(written)


def _certain(text: pa.Array) -> Any:
    pc = compute()
    if text.null_count == len(text):
        return pd.array(text.to_pylist(), dtype=_TEXT)
    number = canonical_numbers(text)
    if number.null_count == text.null_count:
        return number.to_numpy(zero_copy_only=False)
    if pc.all(pc.or_(pc.is_in(pc.utf8_lower(text), text_array(_TRUE_OR_FALSE)), pc.is_null(text))).as_py():
        return pd.array(read("boolean", text).values.to_pylist(), dtype="boolean")
    return pd.array(text.to_pylist(), dtype=_TEXT)


def _moments(
    name: str, array: pa.Array, written: pa.Array, numbers: np.ndarray, mapping: HandedMapping, *, past: bool
) -> tuple[pd.Series, list[RefusedRow]]:
    """Times of a column, and the cells that are none or, where all are ``past``, lie in the future."""
    import pyarrow as pa

    from e2i_dagster.tables.moments import iso_text

    if not pa.types.is_temporal(array.type):
        array = written
        if form := mapping.dates.get(name):
            cells = array.to_pylist()
            array = pa.array(
                [None if cell is None else iso_text(cell, form) or cell for cell in cells], pa.large_string()
            )
    judged = moments.moments(array)
    values = pd.Series(judged.values.to_pandas().array, index=pd.Index(numbers))
    remedy = f"YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ, or declare its form: dates: {{{name}: '%d/%m/%Y'}}"
    refused = [
        RefusedRow(int(numbers[place]) + 1, name, written[int(place)].as_py(), f"{reason}; write {remedy}")
        for reason, mask in judged.refused.items()
        for place in np.flatnonzero(mask.to_numpy(zero_copy_only=False))
    ]
    if not past:
        return values, refused
    now = pd.Series(pd.Timestamp.now("UTC").as_unit("us"), index=values.index)
    refused += [
        RefusedRow(
            int(numbers[place]) + 1, name, written[int(place)].as_py(), "lies in the future; correct it"
        )
        for place in np.flatnonzero(moments.earlier(now, values).to_numpy(dtype=bool))
    ]
    return values, refused
