"""Which rows of a raw table are accepted: rules derived from the table description.

Here belong the rules of a single row and of a row against keys that are handed in. Keys come in as
arrays: nothing here opens a connection. Everything works on whole columns; a row can break several
rules, and the first one (in the order of the rules) gives the row its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from e2i_dagster.config.codes import npi_holds
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse import moments
from e2i_dagster.warehouse.frames import cell_text, json_text, own_cells, rendered
from e2i_dagster.warehouse.tables import (
    MAINTAINED_COLUMNS,
    facts,
    frame_columns,
    primary_key,
    raw_table,
    required_columns,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.own_columns import OwnType
    from e2i_dagster.config.vocabulary import VocabularyPolicy

Kind = Literal["text", "integer", "number", "boolean", "date", "timestamp", "json", "list"]

#: Every reason of a reject, in words and with what to do. ``docs/loading.md`` prints this table.
REASONS: Mapping[str, str] = {
    "malformed_row": "The line has more or fewer fields than the header. Correct it, often a quote.",
    "missing_value": "A required column is empty. Deliver the value.",
    "invalid_text": "The text holds a NUL character, which no database text can hold. Remove it.",
    "integer_format": "Not a whole number (or beyond 2,147,483,647). Deliver digits only.",
    "number_format": "Not a finite number. Deliver 1234.5, or set `decimal` in the mapping.",
    "boolean_format": "Not true or false (t/f, yes/no, 1/0). Correct it or map the value.",
    "date_format": "Not a date YYYY-MM-DD of the calendar. Correct it or give `dates` in the mapping.",
    "timestamp_format": "Not an ISO timestamp (UTC where it has no offset). Correct it or give `dates`.",
    "partial_date": "A year or month without a day. Deliver it, or declare `partial_dates`: first, middle or last.",
    "two_digit_year": "A year of two digits. Deliver four, or declare `dates`, such as `%d-%m-%y`.",
    "ambiguous_date": "Day and month may be swapped. Deliver YYYY-MM-DD, or declare `dates`, such as `%d/%m/%Y`.",
    "code_format": "Not a code of the declared system (its shape or its check digit). Correct it, or declare `text`.",
    "json_format": "Not valid JSON, or in `extra` not an object. Correct it.",
    "list_format": 'Not a list of texts such as ["a", "b"] or {a,b}. Correct it.',
    "out_of_range": "Outside the range that the table description gives for the column. Correct it.",
    "unknown_value": "Not in the vocabulary. Correct it, map it, or add it to config/vocabulary.yaml.",
    "npi_check_digit": "Not ten digits whose last is the Luhn digit over prefix 80840. Correct the NPI.",
    "end_before_start": "The end lies before the start. Correct one of the two.",
    "duplicate_key_conflict": "The same key occurs with other content; all of these rows are out. Keep one.",
    "duplicate_<column>": "Another row has this value, which must be unique. Correct it.",
    "orphan_<table>": "The row refers to nothing in <table>. Deliver the parent or correct the key.",
    "orphan_patient": "No journey has this patient_id. Deliver the journey or correct the patient.",
    "parent_rejected": "The row it refers to was rejected. Resubmitting that one resubmits this one.",
    "unmatched_reversal": "No row that it takes back is there. Deliver the original, then resubmit; or correct it.",
    "partial_reversal": "Takes back less than the row that it matches. Deliver what remains as a row of its own.",
    "changed_reversal": "Took a row back before, and comes again with other values. Deliver it under a new key.",
    "changed_after_reversal": "Was reversed, and comes again with other content. Deliver it under a new key.",
    "below_threshold": "Nothing wrong with the row: too many others of its table or month were rejected.",
    "not_tried": "Nothing was looked at, because a parent table was not loaded. Load the parent.",
}

#: Pairs (start, end) that must not be the wrong way round.
SPANS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "patient_journeys": (("journey_start_date", "journey_end_date"),),
    "patient_clinical": (("first_observation_date", "last_observation_date"),),
    "observation_periods": (("start_date", "end_date"),),
    "business_metrics": (("confidence_interval_lower", "confidence_interval_upper"),),
}

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0")
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INT32 = 2**31


@dataclass(frozen=True)
class Fault:
    """Rows that break one rule: positions in the frame, and the value of the column as delivered."""

    positions: np.ndarray
    reason: str
    column: str
    values: list[str | None]


@dataclass
class Checked:
    """A table after the row rules. ``faults`` grows while references and duplicates are checked.

    Attributes:
        table: name of the raw table.
        rows: every row with parsed columns, in the column order of the table; cells that could not
            be parsed are null. Lists are PostgreSQL array literals, JSON is text.
        given: the delivered columns as they came, for the values in rejects.
        bad: True for rows that break a rule.
        ignored: delivered columns that the table has no place for.
        duplicate: True for rows that repeat an earlier row of the frame.
        reversal: True for rows that take another row back; they are no rows of the table themselves.
    """

    table: str
    rows: pa.Table
    given: pd.DataFrame
    bad: np.ndarray
    ignored: tuple[str, ...]
    duplicate: np.ndarray
    reversal: np.ndarray
    faults: list[Fault] = field(default_factory=list)

    @property
    def accepted(self) -> np.ndarray:
        """True for rows that break no rule and repeat no other row."""
        return ~(self.bad | self.duplicate)

    def add(self, mask: Any, reason: str, column: str) -> None:
        """Record that the rows of ``mask`` (boolean array, null counts as False) break a rule."""
        positions = _positions(mask)
        if not len(positions):
            return
        values: list[str | None] = [None] * len(positions)
        if column in self.given.columns:
            values = as_text(self.given[column].iloc[positions])
        self.bad[positions] = True
        self.faults.append(Fault(positions, reason, column, values))

    def faults_frame(self) -> pd.DataFrame:
        """One line per row and broken rule, by row: ``position``, ``reason``, ``column``, ``value``."""
        if not self.faults:
            texts = {name: np.array([], dtype=object) for name in ("reason", "column", "value")}
            return pd.DataFrame({"position": np.array([], dtype=np.int64), **texts})
        frame = pd.concat(
            [
                pd.DataFrame(
                    {
                        "position": fault.positions,
                        "reason": fault.reason,
                        "column": fault.column,
                        "value": pd.array(fault.values, dtype=object),
                    }
                )
                for fault in self.faults
            ],
            ignore_index=True,
        )
        return frame.sort_values("position", kind="stable", ignore_index=True)

    def first_reasons(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of all bad rows, ascending, and the reason that each row is counted under."""
        if not self.faults:
            return np.array([], dtype=np.int64), np.array([], dtype=object)
        positions = np.concatenate([fault.positions for fault in self.faults])
        reasons = np.repeat(
            np.array([fault.reason for fault in self.faults], dtype=object),
            [len(fault.positions) for fault in self.faults],
        )
        unique, first = np.unique(positions, return_index=True)
        return unique, reasons[first]


def kind_of(column: sa.Column[Any]) -> Kind:
    """How values of ``column`` are parsed."""
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


def check(
    table: str,
    frame: pd.DataFrame,
    vocabulary: VocabularyPolicy,
    own: Mapping[str, OwnType] | None = None,
    reversal: np.ndarray | None = None,
) -> Checked:
    """Parse every column of ``frame`` and apply the rules of a single row.

    Args:
        table: name of the raw table.
        frame: one row per delivered row; text (as from CSV) or canonical types; never changed.
        vocabulary: the accepted values.
        own: declared types of columns of one's own (``patient_clinical``); the others are text.
        reversal: True for rows that take another row back: their amounts may be negative.

    Raises:
        InputError: a required column is missing, or a column occurs twice.
    """
    import pyarrow as pa

    check_header(table, frame)
    columns = raw_table(table).columns
    names = [name for name in frame_columns(table) if name in frame.columns]
    ignored = tuple(str(name) for name in frame.columns if name not in columns)
    source = frame
    kept = "extra" in columns and (bool(ignored) or "extra" in names)
    count = len(frame)
    none = np.zeros(count, bool)
    taking = none if reversal is None else reversal
    left = () if kept else ignored
    checked = Checked(table, pa.table({}), frame, none.copy(), left, none.copy(), taking)
    if kept:
        source = frame.assign(extra=_with_extras(checked, _own_texts(checked, ignored, own or {})))
        names = [name for name in frame_columns(table) if name in source.columns]
    arrays: dict[str, pa.Array] = {}
    for name in names:
        arrays[name] = _check_column(checked, columns[name], _arrow(source[name]), vocabulary)
    checked.rows = pa.table(arrays)
    for start, end in SPANS.get(table, ()):
        if start in arrays and end in arrays:
            _add_spans(checked, arrays, start, end)
    return checked


def check_header(table: str, frame: pd.DataFrame) -> None:
    """Raise one InputError for required columns that are missing and columns that occur twice."""
    missing = [name for name in required_columns(table) if name not in frame.columns]
    twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    problems = []
    if missing:
        problems.append(
            f"{table}: required column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing. "
            f"Found: {', '.join(map(str, frame.columns))}. Add what is missing, or map a column to it."
        )
    if twice:
        problems.append(f"{table}: column {', '.join(twice)} occurs twice. Keep it once.")
    if problems:
        raise InputError("\n".join(problems))


def _check_column(
    checked: Checked, column: sa.Column[Any], given: pa.Array, vocabulary: VocabularyPolicy
) -> pa.Array:
    pc = compute()

    name, kind, about = column.name, kind_of(column), facts(column)
    parsed, refused = judged(kind, given)
    for reason, mask in refused.items():
        checked.add(mask, reason, name)
    if not column.nullable:
        if column.server_default is not None and parsed.null_count:
            parsed = pc.fill_null(parsed, _default_of(column))
        elif given.null_count or kind == "text":
            # An empty key is as good as none.
            checked.add(_is_empty(given), "missing_value", name)
    if kind in ("integer", "number"):
        _add_range(checked, column, parsed)
    if about.vocabulary:
        accepted = _text_array(vocabulary.values(about.vocabulary))
        known = pc.is_in(parsed, value_set=accepted, skip_nulls=True)
        checked.add(pc.and_(pc.invert(known), pc.is_valid(parsed)), "unknown_value", name)
    if name == "npi":
        checked.add(pc.and_(pc.invert(_valid_npi(parsed)), pc.is_valid(parsed)), "npi_check_digit", name)
    return parsed


def judged(kind: Kind, given: pa.Array) -> tuple[Any, dict[str, Any]]:
    """The values of cells of a kind, null where a cell is none, and for each reason which cells it refuses."""
    if kind in ("date", "timestamp"):
        found = moments.days(given) if kind == "date" else moments.moments(given)
        return found.values, {
            f"{kind}_format" if reason == "format" else reason: mask for reason, mask in found.refused.items()
        }
    parsed, wrong = _PARSERS[kind](given)
    return parsed, {} if wrong is None else {"invalid_text" if kind == "text" else f"{kind}_format": wrong}


def _own_texts(checked: Checked, names: Sequence[str], own: Mapping[str, OwnType]) -> pd.DataFrame:
    """Columns of one's own as the text that is kept, each checked under its declared type."""
    from e2i_dagster.warehouse.own_columns import converted

    texts = {}
    for name in names:
        column = cell_text(checked.given[name])
        cells, refused = judged("text", _arrow(column))
        for reason, mask in (refused | dict(converted(cells, own.get(name, "text")).refused)).items():
            checked.add(mask, reason, name)
        texts[name] = cells.to_numpy(zero_copy_only=False)
    return pd.DataFrame(texts, index=checked.given.index, dtype=object)


def _default_of(column: sa.Column[Any]) -> Any:
    default: Any = column.server_default
    return str(getattr(default.arg, "text", default.arg)).strip("'")


def _is_empty(given: pa.Array) -> Any:
    import pyarrow as pa

    pc = compute()

    null = pc.is_null(given)
    if pa.types.is_large_string(given.type):
        return pc.or_(null, pc.fill_null(pc.equal(pc.utf8_length(given), 0), False))
    return null


def _add_range(checked: Checked, column: sa.Column[Any], parsed: pa.Array) -> None:
    pc = compute()

    about = facts(column)
    outside = []
    if about.minimum is not None:
        below = pc.less(parsed, about.minimum)
        outside.append(_numpy(below) & ~checked.reversal if checked.reversal.any() else below)
    if about.maximum is not None:
        outside.append(pc.greater(parsed, about.maximum))
    precision, scale = getattr(column.type, "precision", None), getattr(column.type, "scale", None)
    if isinstance(column.type, sa.Numeric) and precision is not None:
        outside.append(pc.greater_equal(pc.abs(parsed), 10.0 ** (precision - (scale or 0))))
    for mask in outside:
        checked.add(mask, "out_of_range", column.name)


def fault_words(table: str, reason: str, column: str | None) -> str:
    """Reason and column of a fault, with the limits of a column whose values lie outside."""
    if column is None:
        return reason
    limits = f" ({_range_words(raw_table(table).columns[column])})" if reason == "out_of_range" else ""
    return f"{reason} in {column}{limits}"


def _range_words(column: sa.Column[Any]) -> str:
    """What a number of ``column`` may be: ``0 to 10``, ``at least 0``, or how many digits it has room for."""
    about = facts(column)
    low, high = (None if limit is None else f"{limit:g}" for limit in (about.minimum, about.maximum))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is not None or high is not None:
        return f"at least {low}" if low is not None else f"at most {high}"
    precision, scale = getattr(column.type, "precision", None) or 0, getattr(column.type, "scale", None) or 0
    return f"less than {10.0 ** (precision - scale):g}"


def _add_spans(checked: Checked, arrays: Mapping[str, pa.Array], start: str, end: str) -> None:
    pc = compute()

    checked.add(pc.less(arrays[end], arrays[start]), "end_before_start", end)


def check_reference(
    checked: Checked, column: str, parent: str, known: pa.Array, rejected: pa.Array | None = None
) -> None:
    """Rows whose ``column`` is not among ``known`` are orphans, or ``parent_rejected``.

    Args:
        parent: name of the parent table, or ``patient`` for the journey's patient.
        known: keys that the warehouse has.
        rejected: keys whose row is in the reject table.
    """
    pc = compute()

    if column not in checked.rows.column_names:
        return
    given = checked.rows.column(column).combine_chunks()
    lost = pc.and_(pc.invert(pc.is_in(given, value_set=known, skip_nulls=True)), pc.is_valid(given))
    if not pc.any(lost).as_py():
        return
    waiting = _numpy(lost) & ~_numpy(lost)
    if rejected is not None and len(rejected):
        waiting = _numpy(pc.and_(lost, pc.is_in(given, value_set=rejected, skip_nulls=True)))
    checked.add(waiting, "parent_rejected", column)
    checked.add(_numpy(lost) & ~waiting, f"orphan_{parent}", column)


def check_duplicates(checked: Checked, unkept: np.ndarray | None = None) -> None:
    """Repeated keys: same content is a duplicate of the first row, other content rejects all of them.

    Rows that already broke a rule stay out of the comparison, but not out of the conflict: a broken
    row and a good row of one key contradict each other. ``unkept``: True for rows that are no part of what is
    kept; they speak neither for nor against another.
    """
    key = primary_key(checked.table)
    keys = checked.rows.column(key).to_pandas()
    present = keys.notna() & keys.ne("")
    if unkept is not None:
        present &= ~unkept
    # A reversal may have the key of its original.
    identity = keys.where(present)
    if checked.reversal.any():
        identity = pd.Series(pd.factorize(identity)[0] * 2 + checked.reversal)
    repeated = (identity.duplicated(keep=False) & present).to_numpy(dtype=bool)
    if not repeated.any():
        return
    positions = np.flatnonzero(repeated)
    same = checked.rows.take(positions).to_pandas().reset_index(drop=True)
    broken = checked.bad[positions]
    # A cell that could not be parsed is null in `rows`: compare such rows by what was delivered.
    same["__broken"] = broken
    delivered = checked.given.iloc[positions].reset_index(drop=True)
    content = pd.util.hash_pandas_object(same.astype(str), index=False).to_numpy()
    # Of a reversal the delivered columns count, whether the table keeps them or not.
    as_delivered = broken | checked.reversal[positions]
    if as_delivered.any():
        shown = pd.util.hash_pandas_object(delivered.astype(str), index=False).to_numpy()
        content = np.where(as_delivered, shown, content)
    groups = pd.Series(content).groupby(identity.to_numpy()[positions])
    conflict = (groups.transform("nunique") > 1).to_numpy()
    mask = np.zeros(len(keys), bool)
    mask[positions[conflict & ~broken]] = True
    checked.add(mask, "duplicate_key_conflict", key)
    agreeing = positions[~conflict & ~broken]
    again = pd.Series(identity.to_numpy()[agreeing]).duplicated(keep="first").to_numpy()
    checked.duplicate[agreeing[again]] = True


def check_unique(checked: Checked, column: str, held: pd.Series) -> None:
    """Values of a unique column that two keys have, in the frame or in the warehouse.

    Args:
        held: value (index) -> key of the warehouse row that has it.
    """
    if column not in checked.rows.column_names:
        return
    key = primary_key(checked.table)
    values = checked.rows.column(column).to_pandas().mask(~checked.accepted | checked.reversal)
    keys = checked.rows.column(key).to_pandas()
    twice = values.duplicated(keep=False) & values.notna()
    holder = values.map(held)
    other = holder.notna() & holder.ne(keys)
    checked.add((twice | other).fillna(False).to_numpy(dtype=bool), f"duplicate_{column}", column)


def unique_columns(table: str) -> list[str]:
    """Columns other than the key whose values must be unique."""
    return [column.name for column in raw_table(table).columns if column.unique]


def as_text(values: pd.Series) -> list[str | None]:
    """Values as the text that a CSV file would have; null stays null."""
    import pyarrow as pa

    pc = compute()

    array = _arrow(values)
    if pa.types.is_timestamp(array.type):
        form = "%Y-%m-%dT%H:%M:%SZ" if array.type.tz else "%Y-%m-%dT%H:%M:%S"
        # What has a zone is written by its clock, and this text says that the clock is that of UTC.
        zone = "UTC" if array.type.tz else None
        return pc.strftime(array.cast(pa.timestamp("s", zone), safe=False), form).to_pylist()
    return array.cast(pa.large_string()).to_pylist()


def numbers_of(values: pd.Series) -> pd.Series:
    """Values as numbers (float64); NaN where there is none or it is no number."""
    number, wrong = _parse_number(_arrow(values))
    parsed = _null_where(number, wrong)
    return pd.Series(parsed.to_numpy(zero_copy_only=False), index=values.index, dtype="float64")


def row_documents(frame: pd.DataFrame) -> list[str]:
    """Each row as a JSON object of texts; empty cells are left out."""
    texts = pd.DataFrame({str(name): pd.array(as_text(frame[name]), dtype=object) for name in frame.columns})
    lines = texts.to_json(orient="records", lines=True, force_ascii=False)
    return [line for line in (lines or "").split("\n") if line]


def compute() -> Any:
    """``pyarrow.compute``, whose functions are made at run time; imported when first needed."""
    import pyarrow.compute

    return pyarrow.compute


# --- columns -------------------------------------------------------------------------------------


def _arrow(series: pd.Series) -> pa.Array:
    """One contiguous Arrow array; text is ``large_string``, NaN and NaT are null."""
    import pyarrow as pa

    if series.dtype == object:
        return _arrow_of_objects(series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
        return _arrow(series)
    array = pa.array(series, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.cast(pa.large_string()) if pa.types.is_string(array.type) else array


def _arrow_of_objects(series: pd.Series) -> pa.Array:
    """Objects as they come from drivers and Parquet: text, dates, decimals; containers become JSON, bytes text."""
    import pyarrow as pa

    missing = series.isna()
    kinds = {type(value) for value in series[~missing].head(1000)}
    if kinds & {dict, list, tuple, np.ndarray, bytes}:
        plain = [None if empty else rendered(value) for value, empty in zip(series, missing, strict=True)]
        return pa.array(plain, pa.large_string())
    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        plain = [None if empty else str(value) for value, empty in zip(series, missing, strict=True)]
        return pa.array(plain, pa.large_string())
    if pa.types.is_decimal(array.type):
        return array.cast(pa.float64())
    if pa.types.is_null(array.type) or pa.types.is_string(array.type):
        return array.cast(pa.large_string())
    return array


def _numpy(mask: Any) -> np.ndarray:
    """A boolean Arrow or numpy array as numpy; null is False."""
    if isinstance(mask, np.ndarray):
        return mask
    pc = compute()

    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)


def _positions(mask: Any) -> np.ndarray:
    if not isinstance(mask, np.ndarray):
        pc = compute()

        if not pc.any(mask, skip_nulls=True).as_py():
            return np.array([], dtype=np.int64)
    return np.flatnonzero(_numpy(mask))


def _text_array(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.large_string())


Parsed = tuple[Any, Any]


def _is_text(given: pa.Array) -> bool:
    import pyarrow as pa

    return pa.types.is_large_string(given.type)


def _parse_text(given: pa.Array) -> Parsed:
    import pyarrow as pa

    pc = compute()

    if not _is_text(given):
        if pa.types.is_floating(given.type):
            whole = pc.all(pc.equal(given, pc.floor(given)), skip_nulls=True).as_py()
            given = given.cast(pa.int64(), safe=False) if whole is not False else given
        given = given.cast(pa.large_string())
    data = given.buffers()[2]
    if data is None or not (np.frombuffer(data, dtype=np.uint8) == 0).any():
        return given, None
    wrong = pc.match_substring(given, "\x00")
    return pc.if_else(pc.fill_null(wrong, False), None, given), wrong


def _parse_number(given: pa.Array) -> Parsed:
    import pyarrow as pa

    pc = compute()

    if pa.types.is_floating(given.type) or pa.types.is_integer(given.type) or pa.types.is_boolean(given.type):
        number = given.cast(pa.float64(), safe=False)
        wrong = pc.invert(pc.is_finite(number))
        return _null_where(number, wrong), wrong
    trimmed = pc.utf8_trim_whitespace(given if _is_text(given) else given.cast(pa.large_string()))
    fits = None
    try:
        number = trimmed.cast(pa.float64())
    except pa.ArrowInvalid:
        fits = pc.match_substring_regex(trimmed, NUMBER)
        number = pc.if_else(pc.fill_null(fits, False), trimmed, None).cast(pa.float64())
    wrong = pc.invert(pc.is_finite(number))
    if fits is not None:
        wrong = pc.or_(pc.fill_null(wrong, False), pc.invert(fits))
    return _null_where(number, wrong), wrong


def _parse_integer(given: pa.Array) -> Parsed:
    import pyarrow as pa

    pc = compute()

    if pa.types.is_integer(given.type):
        wrong = pc.or_(pc.greater_equal(given, _INT32), pc.less(given, -_INT32))
        return _null_where(given.cast(pa.int64()), wrong).cast(pa.int32()), wrong
    number, wrong = _parse_number(given)
    wrong = pc.fill_null(wrong, False)
    # Files written by tools that know no null integers have 3.0.
    fraction = pc.fill_null(pc.not_equal(number, pc.floor(number)), False)
    large = pc.fill_null(pc.greater_equal(pc.abs(number), float(_INT32)), False)
    wrong = pc.or_(wrong, pc.or_(fraction, large))
    return _null_where(number, wrong).cast(pa.int32()), wrong


def _parse_boolean(given: pa.Array) -> Parsed:
    import pyarrow as pa

    pc = compute()

    if pa.types.is_boolean(given.type):
        return given, None
    text = pc.utf8_lower(pc.utf8_trim_whitespace(given.cast(pa.large_string())))
    true = pc.is_in(text, value_set=_text_array(_TRUE), skip_nulls=True)
    false = pc.is_in(text, value_set=_text_array(_FALSE), skip_nulls=True)
    known = pc.or_(true, false)
    return pc.if_else(known, true, None), pc.and_(pc.invert(known), pc.is_valid(text))


def _parse_json(given: pa.Array) -> Parsed:
    return _parse_distinct(given, _json_of, _all_json)


def _parse_list(given: pa.Array) -> Parsed:
    return _parse_distinct(given, _list_of, None)


def _parse_distinct(
    given: pa.Array, one: Callable[[str], str | None], everything: Callable[[list[str]], bool] | None
) -> Parsed:
    """Parse the distinct values; ``everything`` may confirm all of them as they are at once."""
    import pyarrow as pa

    pc = compute()

    coded = given.cast(pa.large_string()).dictionary_encode()
    texts = coded.dictionary.to_pylist()
    if everything is not None and everything(texts):
        return given.cast(pa.large_string()), None
    parsed = _text_array([one(text) for text in texts]).take(coded.indices)  # type: ignore[arg-type]
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


def _list_of(text: str) -> str | None:
    """A JSON list of texts or a PostgreSQL array literal, as a PostgreSQL array literal."""
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
    if any("\x00" in str(item) for item in items):
        return None
    quoted = ('"' + str(item).replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"


_PARSERS: Mapping[Kind, Callable[[Any], Parsed]] = {
    "text": _parse_text,
    "integer": _parse_integer,
    "number": _parse_number,
    "boolean": _parse_boolean,
    "json": _parse_json,
    "list": _parse_list,
}


def _null_where(array: pa.Array, wrong: Any) -> pa.Array:
    pc = compute()

    return pc.if_else(pc.fill_null(wrong, False), None, array) if pc.any(wrong).as_py() else array


def _valid_npi(npi: pa.Array) -> Any:
    """True where a text is ten digits with the check digit of an NPI."""
    import pyarrow as pa

    pc = compute()

    shaped = pc.fill_null(pc.match_substring_regex(npi, r"^[0-9]{10}$"), False)
    texts = pc.if_else(shaped, npi, "0000000000").cast(pa.large_string())
    digits = np.frombuffer("".join(texts.to_pylist()).encode(), dtype=np.uint8).reshape(-1, 10) - 48
    return pc.and_(shaped, pa.array(npi_holds([*digits.T])))


def _with_extras(checked: Checked, texts: pd.DataFrame) -> pd.Series:
    """The JSON column ``extra``: the user's own columns as text, over what a delivered ``extra`` holds."""
    lines = texts.to_json(orient="records", lines=True, force_ascii=False) if len(texts.columns) else ""
    own = [line for line in (lines or "").split("\n") if line] or ["{}"] * len(texts)
    if "extra" in checked.given.columns:
        given = _text_documents(checked, _arrow(checked.given["extra"]))
        # The last of two equal keys wins in JSONB.
        own = [
            mine if theirs in (None, "{}") else theirs if mine == "{}" else f"{theirs[:-1]},{mine[1:]}"
            for theirs, mine in zip(given, own, strict=True)
        ]
    return pd.Series(pd.array(own, dtype="string[pyarrow]"), index=texts.index)


def _text_documents(checked: Checked, given: pa.Array) -> list[str | None]:
    """A delivered ``extra`` with every value as text; what is no JSON object is recorded and left out."""
    import pyarrow as pa

    found: list[str | None] = []
    wrong = np.zeros(len(given), bool)
    for place, text in enumerate(given.cast(pa.large_string()).to_pylist()):
        try:
            found.append(None if text is None else json_text(own_cells(text)))
        except (ValueError, RecursionError):
            found.append(None)
            wrong[place] = True
    checked.add(wrong, "json_format", "extra")
    return found


__all__ = [
    "MAINTAINED_COLUMNS",
    "REASONS",
    "Checked",
    "Fault",
    "as_text",
    "check",
    "check_duplicates",
    "check_header",
    "check_reference",
    "check_unique",
    "kind_of",
    "numbers_of",
    "row_documents",
    "unique_columns",
]
