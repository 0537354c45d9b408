"""The ten operators over typed columns, in three-valued logic.

A condition on a null is unknown: neither true nor false, for every operator. What becomes of an
unknown patient is the criterion's ``on_unknown``, decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np

from e2i_dagster.cohorts.columns import Kind, TypedColumn
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.config.cohort import Criterion, code_patterns
from e2i_dagster.tables.codes import BAR, is_readable, normal_list, readings

_EXPECTED: dict[str, str] = {
    "boolean": "true or false",
    "number": "a number",
    "date": "a date (YYYY-MM-DD)",
    "text": "a text",
}
_TEXT_ONLY = frozenset({"contains"})
_NO_ORDER = frozenset({">", ">=", "<", "<=", "between"})


def decidable(criterion: Criterion, column: TypedColumn) -> TypedColumn:
    """``column`` without the codes that decide otherwise by what they are read as: they are unknown.

    A drug code without hyphens that is none of the criterion's codes, whatever it is read as, is known not to be one of
    them; a cell with a drug code that cannot be read is unknown for every criterion. So is one of another system with
    a part that cannot be read, unless one of the criterion's codes is beside it.
    """
    if criterion.code_system is None or column.kind != "text":
        return column
    matches = _code_matcher(criterion)
    if criterion.code_system == "ndc":
        decided = [len({matches(reading) for reading in readings(text, "ndc")}) == 1 for text in column.texts]
    else:
        first = criterion.position == "first"
        decided = [matches(normal_list(text)) or is_readable(text, first=first) for text in column.texts]
    return replace(column, known=column.known & np.array([*decided, False])[column.values])


def holds(criterion: Criterion, column: TypedColumn) -> np.ndarray:
    """True where the condition is true; False where it is false or unknown (not known in ``decidable``).

    Raises:
        CohortInputError: CC_004, operator or value do not fit the kind of the column.
    """
    column = decidable(criterion, column)
    if column.kind == "empty":
        return np.zeros(len(column.known), dtype=bool)
    if column.kind == "text" or criterion.code_system is not None:
        return _text(criterion, column) & column.known
    if criterion.operator in _TEXT_ONLY or (column.kind == "boolean" and criterion.operator in _NO_ORDER):
        raise _misfit(criterion, column, f"operator {criterion.operator} cannot be used on it")
    values = [_as_kind(criterion, column, value) for value in criterion.values]
    return _compare(criterion.operator, column.values, values) & column.known


def _compare(operator: str, found: np.ndarray, values: list) -> np.ndarray:  # noqa: PLR0911
    with np.errstate(invalid="ignore"):
        match operator:
            case "==":
                return found == values[0]
            case "!=":
                return found != values[0]
            case ">":
                return found > values[0]
            case ">=":
                return found >= values[0]
            case "<":
                return found < values[0]
            case "<=":
                return found <= values[0]
            case "between":
                return (found >= values[0]) & (found <= values[1])
            case "in":
                return np.isin(found, np.array(values, dtype=found.dtype))
            case _:
                return ~np.isin(found, np.array(values, dtype=found.dtype))


def _text(criterion: Criterion, column: TypedColumn) -> np.ndarray:
    """Evaluates the distinct texts once and spreads the answers over the rows."""
    if column.kind != "text":
        raise _misfit(criterion, column, "codes are texts")
    if criterion.operator in _NO_ORDER:
        raise _misfit(criterion, column, f"operator {criterion.operator} needs numbers or dates")
    wrong = [value for value in criterion.values if not isinstance(value, str)]
    if wrong:
        raise _misfit(criterion, column, f"the definition compares it with {wrong[0]!r}")
    texts = column.texts
    if criterion.code_system == "ndc":
        matches = _code_matcher(criterion)
        # Where the readings differ the caller masks the answer as unknown.
        answers = [all(map(matches, readings(text, "ndc"))) for text in texts]
    elif criterion.code_system is not None:
        answers = list(map(_code_matcher(criterion), map(normal_list, texts)))
    elif criterion.operator == "contains":
        answers = [criterion.value in text for text in texts]
    else:
        answers = [text in criterion.values for text in texts]
    # Position -1 (null) points at the value appended here; the caller masks it as unknown.
    answered = np.array([*answers, False], dtype=bool)
    if criterion.operator in ("!=", "not_in"):
        answered = ~answered
    return answered[column.values]


def _code_matcher(criterion: Criterion) -> Callable[[str], bool]:
    """Whether codes in the form in which they are compared are, or have among them, one of the criterion's."""
    exact, prefixes = code_patterns(criterion)
    if criterion.code_system == "ndc":
        return lambda code: code in exact or code.startswith(prefixes)
    if criterion.operator == "contains":
        sought = exact + prefixes
    else:
        sought = (*(f"{BAR}{code}{BAR}" for code in exact), *(f"{BAR}{prefix}" for prefix in prefixes))
    if criterion.position == "first":
        return lambda codes: any(text in codes[: codes.find(BAR, 1) + 1] for text in sought)
    return lambda codes: any(text in codes for text in sought)


def _as_kind(criterion: Criterion, column: TypedColumn, value: object) -> object:
    kind: Kind = column.kind
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "date" and isinstance(value, date):
        return np.datetime64(value, "D")
    if kind == "date" and isinstance(value, str):
        try:
            return np.datetime64(date.fromisoformat(value), "D")
        except ValueError:
            raise _misfit(criterion, column, f"the definition compares it with {value!r}") from None
    raise _misfit(criterion, column, f"the definition compares it with {value!r}")


def _misfit(criterion: Criterion, column: TypedColumn, why: str) -> CohortInputError:
    expected = _EXPECTED[column.kind]
    return CohortInputError(
        "CC_004",
        f"criterion '{criterion.words()}': column {criterion.field!r} holds values of kind {column.kind}; {why}.",
        field=criterion.field,
        value=column.kind,
        remedy=f"Write a condition on {expected}.",
    )
