"""Layer 1: structural rules of a raw table, checked by Pandera on a pandas frame.

The schema is built from the rule table (``rules``), so a column that is described once is checked
here without a line of its own. All failures come at once; each is a rule, a column and the positions
of its rows, so that it can be attributed to months.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.config.codes import npi_holds
from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.quality.rules import Family, Rule, families, rules_for
from e2i_dagster.warehouse.tables import primary_key

if TYPE_CHECKING:
    from pandera.pandas import DataFrameSchema

_DTYPES: Mapping[Family, str] = {
    "text": "string[pyarrow]",
    "integer": "Int64",
    "number": "float64",
    "boolean": "boolean",
    "date": "datetime64[us]",
    "timestamp": "datetime64[us, UTC]",
}

#: Keys of failing rows that a fault names.
SAMPLE = 5


@dataclass(frozen=True)
class TypedFrame:
    """A raw table with exactly the described columns in their described types.

    Attributes:
        frame: one row per input row in input order, index 0..n-1. A cell that could not be read as
            its type is null here and marked in ``faults``; an absent column is all null.
        absent: described columns that the input does not have.
        faults: column to a mask of the cells that could not be read (only columns with any).
        extra: input columns that the description does not know; they are checked by nothing.
    """

    table: str
    frame: pd.DataFrame
    absent: frozenset[str] = frozenset()
    faults: Mapping[str, np.ndarray] = field(default_factory=dict)
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class SchemaFault:
    """One violated rule: how many rows, and which (positions in the input, ascending).

    An absent column concerns every row.
    """

    rule: Rule
    count: int
    checked: int
    positions: np.ndarray

    def keys(self, read: TypedFrame) -> tuple[str, ...]:
        """The smallest few keys of the rows that violate the rule (``read``: the frame of the check)."""
        if self.rule.kind in ("required_column", "expected_column"):
            return ()
        return smallest_keys(read, self.positions)


@dataclass(frozen=True)
class SchemaResult:
    """All violated rules of one frame and the number of rules that were checked."""

    table: str
    rows: int
    rules_checked: int
    faults: tuple[SchemaFault, ...]


def smallest_keys(read: TypedFrame, positions: np.ndarray) -> tuple[str, ...]:
    """At most :data:`SAMPLE` keys of the rows at ``positions``, the smallest first; rows without key are left out."""
    listed = read.frame[primary_key(read.table)].iloc[positions].dropna().sort_values()
    return tuple(listed.head(SAMPLE).tolist())


def typed(frame: pd.DataFrame, table: str) -> TypedFrame:
    """``frame`` as its described types, with every cell that has another type marked.

    Text columns accept text only (a number where a code is expected has lost its leading zeros);
    number, integer, boolean and date columns accept text that reads as one.

    Raises:
        InputError: the frame has two columns of one name.
    """
    if not frame.columns.is_unique:
        twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
        raise InputError(f"{table}: columns occur twice: {', '.join(twice)}. Rename or drop one of each.")
    described = families(table)
    columns: dict[str, pd.Series] = {}
    faults: dict[str, np.ndarray] = {}
    index = pd.RangeIndex(len(frame))
    for name, kind in described.items():
        if name not in frame.columns:
            columns[name] = pd.Series(pd.NA if kind != "number" else np.nan, index=index, dtype=_DTYPES[kind])
            continue
        given = frame[name].set_axis(index)
        read = _READERS[kind](given)
        lost = (given.notna() & read.isna()).to_numpy(dtype=bool)
        if lost.any():
            faults[name] = lost
        columns[name] = read
    return TypedFrame(
        table,
        pd.DataFrame(columns, index=index),
        frozenset(name for name in described if name not in frame.columns),
        faults,
        tuple(str(name) for name in frame.columns if name not in described),
    )


def _as_text(given: pd.Series) -> pd.Series:
    if isinstance(given.dtype, pd.StringDtype):
        return given.astype("string[pyarrow]")
    if isinstance(given.dtype, pd.CategoricalDtype):
        given = given.astype(object)
    if given.dtype != object and not _is_arrow_text(given):
        return pd.Series(pd.NA, index=given.index, dtype="string[pyarrow]")
    if pd.api.types.infer_dtype(given, skipna=True) not in ("string", "empty"):
        # Only a column that is known to mix types is looked at cell by cell. Lists and objects are the
        # frame form of array and JSON columns.
        accepted = given.map(
            lambda cell: isinstance(cell, str | list | dict | np.ndarray), na_action="ignore"
        )
        given = given.where(accepted.eq(True), None).map(str, na_action="ignore")
    return given.astype("string[pyarrow]")


def _is_arrow_text(given: pd.Series) -> bool:
    return isinstance(given.dtype, pd.ArrowDtype) and pd.api.types.is_string_dtype(given.dtype)


def _as_number(given: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(given.dtype) or pd.api.types.is_datetime64_any_dtype(given.dtype):
        return pd.Series(np.nan, index=given.index, dtype="float64")
    return pd.to_numeric(given, errors="coerce").astype("float64")


def _as_integer(given: pd.Series) -> pd.Series:
    if pd.api.types.is_integer_dtype(given.dtype):
        return given.astype("Int64")
    number = _as_number(given)
    whole = number.where(np.isfinite(number) & (number == np.floor(number)))
    return whole.astype("Int64")


def _as_boolean(given: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(given.dtype):
        return given.astype("boolean")
    if pd.api.types.is_datetime64_any_dtype(given.dtype):
        return pd.Series(pd.NA, index=given.index, dtype="boolean")
    if pd.api.types.is_numeric_dtype(given.dtype):
        number = given.astype("Float64")
        return number.eq(1).where(number.isin([0, 1])).astype("boolean")
    text = given.astype("string").str.lower()
    return text.eq("true").where(text.isin(["true", "false"])).astype("boolean")


def _as_date(given: pd.Series) -> pd.Series:
    return _as_moment(given).dt.tz_localize(None).astype("datetime64[us]")


def _as_timestamp(given: pd.Series) -> pd.Series:
    return _as_moment(given).astype("datetime64[us, UTC]")


def _as_moment(given: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(given.dtype):
        given = pd.Series(pd.NaT, index=given.index, dtype="datetime64[us, UTC]")
    if pd.api.types.is_datetime64_any_dtype(given.dtype):
        return pd.to_datetime(given, utc=True)
    return pd.to_datetime(given, errors="coerce", utc=True, format="ISO8601")


_READERS: Mapping[Family, Callable[[pd.Series], pd.Series]] = {
    "text": _as_text,
    "integer": _as_integer,
    "number": _as_number,
    "boolean": _as_boolean,
    "date": _as_date,
    "timestamp": _as_timestamp,
}


def violations(  # noqa: PLR0911 - one for each kind
    rule: Rule, data: Any, *, unreadable: np.ndarray | None = None, absent: bool = False
) -> np.ndarray:
    """Mask (one per row) of the rows that violate ``rule``; a null violates ``not_null`` only.

    Args:
        rule: the rule.
        data: the typed column of the rule, or the typed frame for ``order``.
        unreadable: cells that could not be read as the described type (``TypedFrame.faults``).
        absent: the input does not have the column.
    """
    none = np.zeros(len(data), dtype=bool)
    match rule.kind:
        case "required_column" | "expected_column":
            return ~none if absent else none
        case "type":
            return none if unreadable is None else unreadable
        case "not_null":
            if absent:  # said by required_column
                return none
            empty = _empty(data)
            return empty if unreadable is None else empty & ~unreadable  # said by type
        case "unique_key":
            return data.duplicated(keep=False).to_numpy(dtype=bool) & ~_empty(data)
        case "finite":
            return np.isinf(data.to_numpy(dtype="float64"))
        case "range":
            numbers = data.to_numpy(dtype="float64", na_value=np.nan)
            low = -np.inf if rule.minimum is None else rule.minimum
            high = np.inf if rule.maximum is None else rule.maximum
            return np.isfinite(numbers) & ((numbers < low) | (numbers > high))
        case "vocabulary":
            return ~(np.asarray(data.array.isin(list(rule.values)), dtype=bool) | _empty(data))
        case "order":
            return (data[rule.column] > data[rule.other]).to_numpy(dtype=bool, na_value=False)
        case "check_digit":
            return ~(_npi_holds(data) | _empty(data))
        case "key_format":
            shaped = data.str.fullmatch(_unanchored(rule.pattern or ""))
            return ~shaped.to_numpy(dtype=bool, na_value=True)


def _empty(data: pd.Series) -> np.ndarray:
    return np.asarray(data.array.isna(), dtype=bool)


def _npi_holds(npi: pd.Series) -> np.ndarray:
    """Ten digits whose last is the check digit of an NPI."""
    shaped = npi.str.fullmatch("[0-9]{10}").to_numpy(dtype=bool, na_value=False)
    texts = npi.where(shaped, "0000000000").to_numpy(dtype="S10")
    digits = texts.view("uint8").reshape(-1, 10) - 48
    return shaped & npi_holds([*digits.T])


def _unanchored(pattern: str) -> str:
    return pattern.removeprefix("^").removesuffix("$")


def pandera_schema(
    table: str, policy: QualityPolicy, given: TypedFrame, failing: dict[str, np.ndarray]
) -> DataFrameSchema:
    """The Pandera schema of ``table``: one named check for each rule of the rule table.

    ``given`` supplies what a frame in its described types can no longer show: unreadable cells and
    absent columns. Rules that reading the frame has answered already (its columns are there, its cells
    have their types) are no checks again, and an absent column has none but that it is absent.

    A check tells Pandera whether it holds and puts the mask of the rows that violate it into ``failing``
    under the rule's label: Pandera's own list of failing cells costs more than the check, and holds values.
    All are checks of the frame: a Pandera column would copy itself and look for empty cells once more, which
    costs a quarter of the time of all checks.
    """
    import pandera.pandas as pa

    checks = [
        pa.Check(_check(rule, given, failing), name=rule.label, error=rule.label, ignore_na=False)
        for rule in rules_for(table, policy)
        if not _answered(rule, given)
    ]
    return pa.DataFrameSchema(checks=checks, strict=False, coerce=False, name=table)


def _answered(rule: Rule, given: TypedFrame) -> bool:
    """True if ``given`` itself shows that no row violates ``rule``."""
    if rule.kind in ("required_column", "expected_column"):
        return rule.column not in given.absent
    if rule.kind == "type":
        return rule.column not in given.faults
    return rule.column in given.absent or (rule.other is not None and rule.other in given.absent)


def _check(rule: Rule, given: TypedFrame, failing: dict[str, np.ndarray]) -> Callable[[Any], bool]:
    def satisfied(frame: pd.DataFrame) -> bool:
        data = frame if rule.kind == "order" else frame[rule.column]
        bad = violations(
            rule, data, unreadable=given.faults.get(rule.column), absent=rule.column in given.absent
        )
        if bad.any():
            failing[rule.label] = bad
        return rule.label not in failing

    return satisfied


def check_schema(given: pd.DataFrame | TypedFrame, table: str, policy: QualityPolicy) -> SchemaResult:
    """Check every rule of ``table`` and list every violated one (not the first only).

    An empty frame is checked for its columns. Counts are exact however many rows fail.

    Raises:
        InputError: the frame has two columns of one name.
        RuntimeError: Pandera reports a failure that belongs to no rule, or a check raised.
    """
    from pandera.errors import SchemaErrors

    read = given if isinstance(given, TypedFrame) else typed(given, table)
    rules = rules_for(table, policy)
    by_label = {rule.label: rule for rule in rules}
    rows = len(read.frame)
    found: list[SchemaFault] = []
    failing: dict[str, np.ndarray] = {}
    try:
        # In place: nothing is coerced, so the frame is not changed, and need not be copied.
        pandera_schema(table, policy, read, failing).validate(read.frame, lazy=True, inplace=True)
    except SchemaErrors as errors:
        for error in errors.schema_errors:
            rule = by_label.get(str(getattr(error.check, "name", "")))
            if rule is None or rule.label not in failing:
                reason = error.reason_code.name if error.reason_code else "unknown"
                raise RuntimeError(f"{table}: Pandera could not run a check ({reason}).") from None
            positions = np.flatnonzero(failing[rule.label])
            checked = int(read.frame[rule.column].notna().sum())
            if rule.kind in ("required_column", "expected_column", "not_null", "type"):
                checked = rows
            found.append(SchemaFault(rule, len(positions), checked, positions))
    if not rows:
        found.extend(
            SchemaFault(rule, 0, 0, np.empty(0, dtype=int))
            for rule in rules
            if rule.kind in ("required_column", "expected_column") and rule.column in read.absent
        )
    order = {rule.label: position for position, rule in enumerate(rules)}
    return SchemaResult(table, rows, len(rules), tuple(sorted(found, key=lambda one: order[one.rule.label])))
