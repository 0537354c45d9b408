"""Who was lost at each step: age, sex, region and payer of those removed, beside those who stayed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from e2i_dagster.cohorts.disclosure import HIDDEN, is_small, shown_count, shown_partition
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.display import Table

AGE = "age_at_diagnosis"
#: Columns whose distribution is shown, with the word for each.
GROUPS = {"gender": "sex", "geographic_region": "region", "insurance_type": "payer"}
ELIGIBLE = "eligible"


@dataclass(frozen=True)
class StepCharacteristics:
    """One group of persons: those removed by ``step``, or the eligible. ``shares``: column -> value -> share.

    A share is None where it would give away a group below 11, and so is the median age of a hidden group.
    """

    step: str
    persons: str
    median_age: float | None
    shares: dict[str, dict[str, float | None]]


def characteristics(cohort: Cohort, patients: pd.DataFrame) -> tuple[StepCharacteristics, ...]:
    """Age, sex, region and payer by step, as they may be shown.

    Args:
        patients: the frame that the cohort was built from; columns that it lacks are left out.
    """
    removed_at = _removed_at(cohort)
    known = [name for name in (AGE, *GROUPS) if name in patients.columns]
    persons = (
        patients.loc[:, ["patient_id", *known]]
        .drop_duplicates("patient_id")
        .set_index("patient_id")
        .reindex(removed_at.index)
    )
    steps = [(step.criterion, step.order, step.removed) for step in cohort.shown()]
    past = len(steps) + 1
    last = cohort.shown()[-1].remaining if steps else shown_count(cohort.eligible_count)
    found = []
    for name, order, count in [*steps, (ELIGIBLE, past, last)]:
        rows = persons[(removed_at == order).to_numpy()]
        if len(rows):
            found.append(_of_group(name, count, rows, known))
    return tuple(found)


def characteristics_table(found: tuple[StepCharacteristics, ...]) -> Table:
    """The groups as a table; shares that are hidden are left out and said to be."""
    columns = [column for column in GROUPS if any(column in group.shares for group in found)]
    return Table(
        ("removed by", "persons", "median age", *(GROUPS[column] for column in columns)),
        [
            (
                *(group.step, group.persons, group.median_age),
                *(_shares(group.shares.get(column, {})) for column in columns),
            )
            for group in found
        ],
        {"median age": ".0f"},
    )


def _removed_at(cohort: Cohort) -> pd.Series:
    """By patient: order of the rule that removed the last of the patient's journeys; past the end if eligible."""
    mask = cohort.reasons["mask"].to_numpy(dtype=np.int64)
    lowest = mask & -mask
    past = len(cohort.definition.rules) + 1
    order = np.where(mask == 0, past, np.log2(np.maximum(lowest, 1)).astype(np.int64) + 1)
    return pd.Series(order).groupby(cohort.reasons["patient_id"].to_numpy()).max()


def _of_group(step: str, shown: str, rows: pd.DataFrame, known: list[str]) -> StepCharacteristics:
    hidden = is_small(len(rows)) or not shown.replace(",", "").isdigit()
    shares: dict[str, dict[str, float | None]] = {}
    for column in GROUPS:
        if column not in known:
            continue
        values = rows[column].astype("string").fillna("unknown")
        counts = {str(value): int(count) for value, count in values.value_counts().items()}
        visible = shown_partition(counts)
        shares[column] = {
            value: None if hidden or visible[value] == HIDDEN else counts[value] / len(rows)
            for value in sorted(counts)
        }
    ages = pd.to_numeric(rows[AGE], errors="coerce").dropna() if AGE in known else pd.Series(dtype=float)
    age = ages.median() if len(ages) and not is_small(len(ages)) else None
    return StepCharacteristics(
        step=step,
        persons=shown,
        median_age=None if hidden or age is None else float(age),
        shares=shares,
    )


def _shares(shares: dict[str, float | None]) -> str:
    """Shares in words, largest first: ``F 63%, M 36%``."""
    known = sorted(((value, name) for name, value in shares.items() if value is not None), reverse=True)
    said = [f"{name} {value:.0%}" for value, name in known]
    if len(known) < len(shares):
        said.append("rest hidden" if said else "hidden")
    return ", ".join(said)
