"""From a frame to the arrays that every estimator gets, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import did_you_mean

#: Variances and their products must be finite.
LARGEST = 1e50

MissingOutcome = Literal["refuse", "drop"]


@dataclass(frozen=True)
class CausalRows:
    """Rows ready for estimation.

    Attributes:
        y: outcome, floats (n,). t: treatment, 0.0 or 1.0 (n,). x: encoded confounders (n, p), no missing values.
        names: of the p columns. binary: the outcome has the values 0 and 1 only.
        dropped: rows left out because their outcome is missing. constant: confounders left out because
            they have one value.
    """

    y: np.ndarray
    t: np.ndarray
    x: np.ndarray
    names: tuple[str, ...]
    binary: bool
    dropped: int
    constant: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> CausalRows:
        """The rows at ``rows``."""
        return CausalRows(
            self.y[rows], self.t[rows], self.x[rows], self.names, self.binary, self.dropped, self.constant
        )

    def with_treatment(self, t: np.ndarray) -> CausalRows:
        """The same rows under another treatment."""
        return CausalRows(self.y, t, self.x, self.names, self.binary, self.dropped, self.constant)

    def with_outcome(self, y: np.ndarray) -> CausalRows:
        """The same rows with another outcome."""
        binary = bool(np.isin(y, (0.0, 1.0)).all())
        return CausalRows(y, self.t, self.x, self.names, binary, self.dropped, self.constant)

    def with_confounder(self, name: str, values: np.ndarray) -> CausalRows:
        """The same rows with one confounder more."""
        x = np.column_stack([self.x, values])
        return CausalRows(self.y, self.t, x, (*self.names, name), self.binary, self.dropped, self.constant)


def causal_rows(
    frame: pd.DataFrame,
    *,
    treatment: str,
    outcome: str,
    confounders: Sequence[str],
    missing_outcome: MissingOutcome = "refuse",
    maximum_levels: int = 50,
) -> CausalRows:
    """Check ``frame`` and encode it.

    Numbers stay as they are, categories become indicators of all levels but the first. A missing number
    becomes the median with an indicator beside it, a missing category a level of its own.

    Args:
        frame: one row per unit. treatment: column with two values of 0/1 or false/true.
        outcome: numeric or boolean column. confounders: measured before the treatment; at least one.
        missing_outcome: ``refuse`` rows without outcome, or ``drop`` and count them.
        maximum_levels: of a categorical confounder.

    Raises:
        InputError: a column is absent, named twice or of the wrong kind; the treatment has one level or
            is missing somewhere; outcomes are missing and not to be dropped; the frame is empty.
    """
    named = [treatment, outcome, *confounders]
    _check_columns(frame, named, confounders)
    t = _binary_treatment(frame[treatment])
    y = _numeric(frame[outcome], "outcome")
    missing = np.isnan(y)
    if missing.any() and missing_outcome == "refuse":
        raise InputError(
            f"Outcome {outcome!r}: {int(missing.sum()):,} of {len(y):,} rows have none.",
            field=outcome,
            value=f"{int(missing.sum())} missing",
            remedy='Label them, or leave them out: `--missing-outcome drop`, in Python missing_outcome="drop" (valid '
            "only when missingness is unrelated to the outcome given treatment and confounders).",
        )
    kept = ~missing
    y, t = y[kept], t[kept]
    _check_levels(t, treatment)
    x, names, constant = _encoded(frame.loc[kept, list(confounders)], maximum_levels)
    return CausalRows(y, t, x, names, bool(np.isin(y, (0.0, 1.0)).all()), int(missing.sum()), constant)


def require_named(frame: pd.DataFrame, named: Sequence[str], what: str = "") -> None:
    """Every one of ``named`` is a column of ``frame``; ``what`` they are named for.

    Raises:
        InputError: one is not; says which may be meant.
    """
    absent = [name for name in named if name not in frame.columns]
    if absent:
        columns = list(map(str, frame.columns))
        raise InputError(
            f"The frame has no column {', '.join(map(repr, absent))}{what}. It has: {', '.join(columns)}.",
            field=absent[0],
            remedy=did_you_mean(absent[0], columns) or "Name one of its columns.",
        )


def _check_columns(frame: pd.DataFrame, named: Sequence[str], confounders: Sequence[str]) -> None:
    require_named(frame, named)
    twice = sorted({name for name in named if list(named).count(name) > 1})
    if twice:
        raise InputError(
            f"{', '.join(twice)}: named twice; treatment, outcome and confounders are different columns.",
            field=twice[0],
            remedy="Name it once.",
        )
    if not confounders:
        raise InputError(
            "No confounder is named.",
            remedy="Name at least one column measured before the treatment; without any, a difference of "
            "means is the estimate (experiments.analyze).",
        )
    if frame.empty:
        raise InputError("The frame has no row.", field="frame", remedy="Give at least one row.")


def _binary_treatment(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(
            f"Treatment {column.name!r} holds days; expected 0/1 or false/true.",
            field=str(column.name),
            remedy="Name a column that is 1 where the unit was treated, whatever the day, and 0 where it was not.",
        )
    if column.isna().any():
        raise InputError(
            f"Treatment {column.name!r}: {int(column.isna().sum()):,} rows have none.",
            remedy="Leave them out first.",
        )
    values = _numeric(column, "treatment")
    if not np.isin(values, (0.0, 1.0)).all():
        levels = len(np.unique(values))
        raise InputError(
            f"Treatment {column.name!r}: {levels} different values; expected 0/1 or false/true.",
            remedy="Cut it at a threshold stated beforehand.",
        )
    return values


def _check_levels(t: np.ndarray, name: str) -> None:
    if len(np.unique(t)) < 2:
        level = "no row" if len(t) == 0 else "all treated" if t[0] == 1 else "none treated"
        raise InputError(
            f"Treatment {name!r} has one level ({level}): there is nothing to compare with.",
            field=name,
            value=str(level),
            remedy="Give the rows of the other arm, too.",
        )


def _numeric(column: pd.Series, role: str) -> np.ndarray:
    if pd.api.types.is_datetime64_any_dtype(column):
        raise InputError(
            f"{role.capitalize()} {column.name!r} holds days; expected numbers or booleans.",
            field=str(column.name),
            remedy="Name a column of numbers, such as the days from a beginning that is the same for every unit.",
        )
    if not (pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column)):
        numbers = pd.to_numeric(column, errors="coerce")
        lost = np.flatnonzero((numbers.isna() | np.isinf(numbers.astype(float))) & column.notna())
        if len(lost):
            raise InputError(
                f"{role.capitalize()} {column.name!r}: {len(lost):,} of {len(column):,} cells are no number or "
                f"boolean, the first in row {lost[0] + 1}.",
                field=str(column.name),
                value=f"row {lost[0] + 1}",
                remedy="Write numbers or true and false, and leave a cell empty where nothing is known.",
            )
        column = numbers
    values = column.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    if np.isinf(values).any():
        raise InputError(
            f"{role.capitalize()} {column.name!r} has infinite values.",
            field=str(column.name),
            remedy="Give finite numbers; leave a missing one empty.",
        )
    largest = np.nanmax(np.abs(values), initial=0.0)
    if largest > LARGEST:
        raise InputError(
            f"{role.capitalize()} {column.name!r} has values up to {largest:g}, whose squares no computer holds: no "
            "measurement. Give it in a larger unit, or leave it out.",
            field=str(column.name),
            remedy="Give it in a larger unit, or leave it out.",
        )
    return values


def _encoded(frame: pd.DataFrame, maximum_levels: int) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    columns: dict[str, np.ndarray] = {}
    constant: list[str] = []
    for name in frame.columns:
        column = frame[name]
        if column.nunique(dropna=False) < 2:
            constant.append(str(name))
        elif pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            columns |= _encoded_number(str(name), _numeric(column, "confounder"))
        elif pd.api.types.is_datetime64_any_dtype(column):
            columns |= _encoded_number(str(name), days_of(column))
        else:
            columns |= _encoded_levels(str(name), column, maximum_levels)
    if not columns:
        raise InputError(
            f"Every confounder has one value only ({', '.join(constant)}): there is nothing to adjust for.",
            field="confounders",
            remedy="Name a confounder that differs between rows.",
        )
    return np.column_stack(list(columns.values())), tuple(columns), tuple(constant)


def days_of(column: pd.Series) -> np.ndarray:
    """Moments as days since the first of them, NaN where there is none."""
    return ((column - column.min()).dt.total_seconds() / 86_400).to_numpy(dtype=float)


def _encoded_number(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    missing = np.isnan(values)
    if not missing.any():
        return {name: values}
    filled = np.where(missing, np.nanmedian(values), values)
    indicator = {f"{name}=missing": missing.astype(float)}
    return indicator if np.ptp(filled) == 0 else {name: filled, **indicator}


def _encoded_levels(name: str, column: pd.Series, maximum_levels: int) -> dict[str, np.ndarray]:
    text = column.astype("string").fillna("missing")
    levels = sorted(text.unique())
    require_few_levels(name, levels, maximum_levels, "Confounder")
    return {f"{name}={level}": (text == level).to_numpy(dtype=float) for level in levels[1:]}


def require_few_levels(name: str, levels: Sequence[str], maximum_levels: int, role: str) -> None:
    """Refuse a category of more than ``maximum_levels``, which is none."""
    if len(levels) > maximum_levels:
        raise InputError(
            f"{role} {name!r} has {len(levels):,} levels, more than {maximum_levels}: an identifier, "
            f"or a code that needs grouping.",
            field=name,
            remedy="Leave it out, or group it (config/causal.yaml: maximum_levels).",
        )
