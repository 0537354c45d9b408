"""Own clinical columns of a patient frame, read under the types that a definition declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from e2i_dagster.cohorts.disclosure import HIDDEN, is_small, shown_count
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.tables.own_columns import read_as


def with_own_fields(definition: CohortDefinition, patients: Any) -> tuple[Any, dict[str, int]]:
    """``patients`` with the own columns that rules read as values of their declared types.

    Args:
        patients: a pandas frame; anything else is returned as it is, with the types that it has.

    Returns:
        The frame, and for each column with a value that does not convert the number of such rows. They are
        null in the frame, so that rules count them as unknown.
    """
    if not isinstance(patients, pd.DataFrame):
        return patients, {}
    columns: dict[str, pd.Series] = {}
    lost: dict[str, int] = {}
    for name, kind in definition.own_fields.items():
        if name in definition.required_fields and name in patients.columns:
            columns[name], count = read_as(patients[name], kind)
            if count:
                lost[name] = count
    return (patients.assign(**columns) if columns else patients), lost


def not_converted_words(definition: CohortDefinition, lost: Mapping[str, int], rows: int) -> tuple[str, ...]:
    """``lost`` of :func:`with_own_fields` in words, small counts hidden."""
    return tuple(
        f"{name}: {HIDDEN if is_small(rows - count) else shown_count(count)} rows hold no "
        f"{definition.own_fields[name]} and are unknown"
        for name, count in lost.items()
    )
