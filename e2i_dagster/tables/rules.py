"""Which rows of a raw table are accepted: rules derived from the table description.

Here belong the rules of a single row and of a row against keys that are handed in. Keys come in as
arrays: nothing here opens a connection. Everything works on whole columns; a row can break several
rules, and the first one (in the order of the rules) gives the row its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.tables import (
    cells,
    constraints,
    facts,
    frame_columns,
    primary_key,
    raw_table,
    required_columns,
)
from e2i_dagster.tables.arrow import compute, numpy_mask
from e2i_dagster.tables.arrow import positions as positions_of
from e2i_dagster.tables.frames import cell_text, json_text, own_cells

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.tables.constraints import Constraint
    from e2i_dagster.tables.own_types import OwnType
    from e2i_dagster.tables.vocabulary import VocabularyPolicy

#: Every reason of a reject, in words and with what to do. ``docs/loading.md`` prints this table.
REASONS: Mapping[str, str] = {
    "malformed_row": "The line has more or fewer fields than the header, or is no JSON of its kind. Correct it.",
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
        positions = positions_of(mask)
        if not len(positions):
            return
        values: list[str | None] = [None] * len(positions)
        if column in self.given.columns:
            values = cells.as_text(self.given[column].iloc[positions])
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
    read = {
        name: cells.read(cells.kind_of(columns[name]), cells.to_arrow(source[name]), literals=True)
        for name in names
    }
    checked.rows = pa.table(
        {name: _with_default(columns[name], found.values) for name, found in read.items()}
    )
    asked = [rule for name in names for rule in constraints.of_column(table, name, vocabulary)]
    spans = [rule for rule in constraints.spans(table) if {rule.column, rule.other} <= read.keys()]
    asked = [rule for rule in (*asked, *spans) if rule.kind in constraints.REJECTED_AS]
    wrong = constraints.violating(asked, checked.rows)
    for name, found in read.items():
        for reason, mask in found.refused.items():
            checked.add(mask, reason, name)
        for rule in asked:
            if rule.column == name and rule not in spans:
                checked.add(
                    _rejected(rule, checked, wrong[rule], found), constraints.REJECTED_AS[rule.kind], name
                )
    for rule in spans:
        checked.add(wrong[rule], constraints.REJECTED_AS[rule.kind], str(rule.other))
    return checked


def check_header(table: str, frame: pd.DataFrame) -> None:
    """Raise one InputError for required columns that are missing and columns that occur twice."""
    missing = [name for name in required_columns(table) if name not in frame.columns]
    twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    problems = []
    if missing:
        problems.append(
            InputError(
                f"{table}: required column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing. "
                f"Found: {', '.join(map(str, frame.columns))}.",
                field=f"{table}.{missing[0]}",
                remedy="Add what is missing, or map a column to it.",
            )
        )
    if twice:
        problems.append(
            InputError(
                f"{table}: column {', '.join(twice)} occurs twice.",
                field=f"{table}.{twice[0]}",
                remedy="Keep it once.",
            )
        )
    if problems:
        raise InputError.joined(problems)


def _with_default(column: sa.Column[Any], values: pa.Array) -> pa.Array:
    """The cells of a column that must be filled, with its default where they are empty."""
    default: Any = column.server_default
    if column.nullable or default is None or not values.null_count:
        return values
    return compute().fill_null(values, str(getattr(default.arg, "text", default.arg)).strip("'"))


def _rejected(rule: Constraint, checked: Checked, wrong: np.ndarray, found: cells.Read) -> np.ndarray:
    """The rows of ``wrong`` that are rejected for the rule: what cannot be read has its reason already."""
    if rule.kind == "not_null":
        for mask in found.refused.values():
            wrong = wrong & ~numpy_mask(mask)
    if rule.kind == "range" and checked.reversal.any():
        # The amounts of a reversal may be negative.
        least, most = constraints.limits(raw_table(checked.table).columns[rule.column], signed=True)
        signed = dataclasses.replace(rule, minimum=least, maximum=most)
        bounded = least is not None or most is not None
        among = (
            constraints.violating([signed], checked.rows)[signed] if bounded else np.zeros(len(wrong), bool)
        )
        return np.where(checked.reversal, among, wrong)
    return wrong


def _own_texts(checked: Checked, names: Sequence[str], own: Mapping[str, OwnType]) -> pd.DataFrame:
    """Columns of one's own as the text that is kept, each checked under its declared type."""
    from e2i_dagster.tables.own_columns import converted

    texts = {}
    for name in names:
        column = cell_text(checked.given[name])
        kept = cells.read("text", cells.to_arrow(column))
        for reason, mask in {**kept.refused, **converted(kept.values, own.get(name, "text")).refused}.items():
            checked.add(mask, reason, name)
        texts[name] = kept.values.to_numpy(zero_copy_only=False)
    return pd.DataFrame(texts, index=checked.given.index, dtype=object)


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
    waiting = numpy_mask(lost) & ~numpy_mask(lost)
    if rejected is not None and len(rejected):
        waiting = numpy_mask(pc.and_(lost, pc.is_in(given, value_set=rejected, skip_nulls=True)))
    checked.add(waiting, "parent_rejected", column)
    checked.add(numpy_mask(lost) & ~waiting, f"orphan_{parent}", column)


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


def check_unique(checked: Checked, column: str, known_keys: pd.Series) -> None:
    """Values of a unique column that two keys have, in the frame or in the warehouse.

    Args:
        known_keys: value (index) -> key of the warehouse row that has it.
    """
    if column not in checked.rows.column_names:
        return
    key = primary_key(checked.table)
    values = checked.rows.column(column).to_pandas().mask(~checked.accepted | checked.reversal)
    keys = checked.rows.column(key).to_pandas()
    twice = values.duplicated(keep=False) & values.notna()
    holder = values.map(known_keys)
    other = holder.notna() & holder.ne(keys)
    checked.add((twice | other).fillna(False).to_numpy(dtype=bool), f"duplicate_{column}", column)


def unique_columns(table: str) -> list[str]:
    """Columns other than the key whose values must be unique."""
    return [column.name for column in raw_table(table).columns if column.unique]


def row_documents(frame: pd.DataFrame) -> list[str]:
    """Each row as a JSON object of texts; empty cells are left out."""
    texts = pd.DataFrame(
        {str(name): pd.array(cells.as_text(frame[name]), dtype=object) for name in frame.columns}
    )
    lines = texts.to_json(orient="records", lines=True, force_ascii=False)
    return [line for line in (lines or "").split("\n") if line]


def _with_extras(checked: Checked, texts: pd.DataFrame) -> pd.Series:
    """The JSON column ``extra``: the user's own columns as text, over what a delivered ``extra`` holds."""
    lines = texts.to_json(orient="records", lines=True, force_ascii=False) if len(texts.columns) else ""
    own = [line for line in (lines or "").split("\n") if line] or ["{}"] * len(texts)
    if "extra" in checked.given.columns:
        given = _text_documents(checked, cells.to_arrow(checked.given["extra"]))
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
