"""Rows delivered of an experiment, each for itself: new, an update, known, given twice, or refused with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import did_you_mean
from e2i_dagster.sources.handed import RefusedRow, canonical_numbers
from e2i_dagster.tables.cells import FALSE, TRUE, numbers_of
from e2i_dagster.tables.moments import earlier

Kind = Literal["number", "boolean", "text"]
_WORDS: dict[str, bool] = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}


@dataclass(frozen=True)
class Taken:
    """What became of the rows of a delivery; the numbers and the refused rows add up to all rows.

    Attributes:
        new: recorded. updated: recorded as a correction of an earlier row. known: recorded before, unchanged.
        duplicate: given twice in the delivery, unchanged. refused: with row, column, value and reason.
    """

    new: int = 0
    updated: int = 0
    known: int = 0
    duplicate: int = 0
    refused: tuple[RefusedRow, ...] = ()

    @property
    def reasons(self) -> dict[str, int]:
        """Number of refused rows by column and reason, the most frequent first."""
        return dict(Counter(_said(row) for row in self.refused).most_common())

    def whole(self, what: str) -> Taken:
        """This, where every row was taken.

        Raises:
            InputError: a row was refused; says how many and why, and names no unit.
        """
        if self.refused:
            said = "; ".join(f"{count:,} row(s) with {reason}" for reason, count in self.reasons.items())
            raise InputError(
                f"{what}: {said}.",
                file=what,
                value=next(iter(self.reasons)),
                remedy="Correct these rows and give the file again.",
            )
        return self


class Fault(NamedTuple):
    """Rows that break a rule: column that is wrong, why, and a mask on the index of the delivery."""

    column: str
    reason: str
    rows: pd.Series


def _said(row: RefusedRow) -> str:
    return f"{row.column}: {row.reason}" if row.column else row.reason


def with_columns(
    frame: pd.DataFrame, columns: Sequence[str], what: str, required: Sequence[str] = ()
) -> pd.DataFrame:
    """``frame`` with exactly ``columns``; those that are absent are null.

    Raises:
        InputError: there is a column that is none of them, or a ``required`` one is absent; with the nearest name.
    """
    given = [str(name) for name in frame.columns]
    if unknown := sorted(set(given) - set(columns)):
        near = " ".join(filter(None, (did_you_mean(name, columns) for name in unknown)))
        raise InputError(
            f"{what}: unknown column(s) {', '.join(unknown)}. {near + ' ' if near else ''}Known: {', '.join(columns)}.",
            field=unknown[0],
        )
    if absent := [name for name in required if name not in given]:
        raise InputError(
            f"{what}: column(s) {', '.join(absent)} are missing. The file has: {', '.join(given)}.",
            field=absent[0],
        )
    return frame.reindex(columns=list(columns))


def sift(
    frame: pd.DataFrame, faults_of: Callable[[pd.DataFrame], Iterable[Fault]]
) -> tuple[pd.DataFrame, list[RefusedRow]]:
    """``frame`` without the rows that break a rule, each of which is reported under the first that it breaks.

    Rules are asked again without those rows: what rested on one of them falls with it.
    """
    refused: list[RefusedRow] = []
    while True:
        wrong = np.zeros(len(frame), dtype=bool)
        for fault in faults_of(frame):
            asked = fault.rows.reindex(frame.index) if len(fault.rows) != len(frame) else fault.rows
            rows = asked.fillna(False).to_numpy(dtype=bool) & ~wrong
            wrong |= rows
            refused += refused_rows(frame, rows, fault.column, fault.reason)
        if not wrong.any():
            return frame, refused
        frame = frame[~wrong]


def refused_rows(frame: pd.DataFrame, rows: np.ndarray, column: str, reason: str) -> list[RefusedRow]:
    """The ``rows`` (n,) of ``frame``, whose index is their number in the file from 0, as refused ones."""
    part = frame[rows]
    values = part[column].tolist() if column in part.columns else [None] * len(part)
    return [
        RefusedRow(int(place) + 1, column, None if pd.isna(value) else str(value), reason)
        for place, value in zip(part.index.tolist(), values, strict=True)
    ]


def recorded_before(
    given: pd.DataFrame,
    known: pd.DataFrame,
    key: Sequence[str],
    same: Mapping[str, Callable[[pd.Series, pd.Series], pd.Series]],
) -> tuple[pd.Series, list[Fault]]:
    """Which rows are recorded unchanged, and those recorded with another value.

    Args:
        known: recorded rows, at most one for each ``key``. same: by column, what tells two values the same.
    """
    columns = list(same)
    stored = known[[*key, *columns]].astype({name: given[name].dtype for name in (*key, *columns)})
    stored = stored.rename(columns={name: f"{name}_known" for name in columns}).assign(there=True)
    both = given[list(key)].merge(stored, on=list(key), how="left").set_axis(given.index)
    there = both["there"].notna()
    unchanged = there
    faults = []
    for name, are_equal in same.items():
        differs = there & ~are_equal(given[name], both[f"{name}_known"])
        faults.append(Fault(name, "is recorded already with another value, which stays", differs))
        unchanged = unchanged & ~differs
    return unchanged, faults


def equal(first: pd.Series, second: pd.Series) -> pd.Series:
    """True where two values are the same, or both null."""
    return (first == second).fillna(False).astype(bool) | (first.isna() & second.isna())


def same_time(first: pd.Series, second: pd.Series) -> pd.Series:
    """True where two times are the same at the coarser precision of the two."""
    return ~(earlier(first, second) | earlier(second, first)) & first.notna() & second.notna()


def times(column: pd.Series) -> pd.Series:
    """``column`` as times in UTC; what is none is null."""
    return pd.to_datetime(column, utc=True, errors="coerce").astype("datetime64[us, UTC]")


def numbers(column: pd.Series) -> pd.Series:
    """``column`` as floats; text that is no number, or one that no double holds, is null."""
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
        column = column.astype("string[pyarrow]")
    return numbers_of(column)


def booleans(column: pd.Series) -> pd.Series:
    """``column`` as true, false or null; text that is neither is null."""
    return column.astype("string[pyarrow]").str.strip().str.lower().map(_WORDS).astype("boolean")


def attribute_kinds(spec: ExperimentSpec, cohorts: Mapping[str, CohortDefinition]) -> dict[str, Kind]:
    """The kind of each attribute of a unit that the design decides: by its criteria and the primary covariate."""
    kinds: dict[str, Kind] = {}
    inclusion, exclusion = spec.criteria(cohorts)
    for criterion in (*inclusion, *exclusion):
        values = criterion.values
        if criterion.code_system is not None or all(isinstance(value, str) for value in values):
            kinds.setdefault(criterion.field, "text")
        elif all(isinstance(value, bool) for value in values):
            kinds.setdefault(criterion.field, "boolean")
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            kinds.setdefault(criterion.field, "number")
    if spec.metrics.primary.covariate:
        kinds.setdefault(spec.metrics.primary.covariate, "number")
    return kinds


def typed_attributes(
    frame: pd.DataFrame, kinds: Mapping[str, Kind], apart: Collection[str]
) -> tuple[pd.DataFrame, list[Fault]]:
    """``frame`` with delivered texts as values, and the cells that are not of the kind the design needs.

    Without a kind a cell alone decides: a number written canonically, true or false, else text. So a value is the
    same whatever else a delivery holds.
    """
    columns, faults = {}, []
    for name in frame.columns:
        column = frame[name]
        if name in apart or not (isinstance(column.dtype, pd.StringDtype) or column.dtype == object):
            columns[name] = column
            if (
                pd.api.types.is_float_dtype(column)
                and (infinite := column.abs().eq(np.inf).fillna(False)).any()
            ):
                faults.append(Fault(str(name), "is no number", infinite))
            continue
        kind = kinds.get(str(name))
        codes, distinct = pd.factorize(column, use_na_sentinel=True)
        cells = _values(list(distinct), kind)
        wrong = np.array([*(cell is None for cell in cells), False])[codes]
        if wrong.any():
            words = "neither true nor false" if kind == "boolean" else "no number"
            faults.append(Fault(str(name), f"is {words}", pd.Series(wrong, index=frame.index)))
        taken = np.empty(len(cells) + 1, dtype=object)
        taken[:-1] = cells
        columns[name] = pd.Series(taken[codes], index=frame.index, dtype=object)
    return pd.DataFrame(columns, index=frame.index), faults


def _values(cells: list[Any], kind: Kind | None) -> list[Any]:
    """Each delivered text as a value of ``kind``, None where it is none; what is no text stays."""
    if kind == "text":
        return cells
    texts = pd.Series([cell if isinstance(cell, str) else None for cell in cells], dtype="string[pyarrow]")
    if kind == "boolean":
        found: list[Any] = booleans(texts).tolist()
    elif kind == "number":
        found = numbers(texts).tolist()
    else:
        import pyarrow as pa

        canonical = canonical_numbers(pa.array(texts, pa.large_string())).to_pylist()
        truth = {"true": True, "false": False}
        found = [
            number if number is not None or text is pd.NA else truth.get(text.lower(), text)
            for number, text in zip(canonical, texts, strict=True)
        ]
    return [
        (None if cell in (np.inf, -np.inf) else cell)
        if not isinstance(cell, str)
        else (None if pd.isna(value) else value)
        for cell, value in zip(cells, found, strict=True)
    ]


def of_one_kind(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with text in the columns that hold values of several kinds."""
    return frame.assign(
        **{
            str(name): frame[name].map(_shown, na_action="ignore").astype("string[pyarrow]")
            for name in frame.columns
            if frame[name].dtype == object
            and pd.api.types.infer_dtype(frame[name], skipna=True).startswith("mixed")
        }
    )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
