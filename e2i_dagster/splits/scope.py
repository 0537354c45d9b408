"""The split of a scope's labelled patients, with its report."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.modelling.problem import outcome_groups
from e2i_dagster.splits.registry import split_cohort
from e2i_dagster.splits.report import SplitReport, validate_splits


@dataclass(frozen=True)
class ScopeSplit:
    """patient_id, split of every patient of a training frame, and what is to be said of them."""

    assignments: pd.DataFrame
    report: SplitReport


def split_scope(
    connection: sa.Connection, scope: ScopeSpec, frame: pd.DataFrame, *, created_by: str | None = None
) -> ScopeSplit:
    """Assign the patients of ``frame`` (patient_id, label, index_date) by the split of the scope's cohort.

    Strata are the classes of the outcome, or groups of patients with like numbers, at the first index date of each.

    Raises:
        ConfigError: ratios, mode or gap changed under the same salt.
    """
    patients = first_index_dates(frame)
    strata = outcome_groups(patients["label"], scope.problem_type)
    _, assigned = split_cohort(
        connection,
        scope.cohort,
        scope.split,
        patients["patient_id"],
        strata=strata,
        index_dates=patients["index_date"],
        created_by=created_by,
    )
    return ScopeSplit(assigned, validate_splits(assigned, ratios=scope.split.ratios, strata=strata))


def first_index_dates(frame: pd.DataFrame) -> pd.DataFrame:
    """The row of ``frame`` (patient_id, index_date) with the first index date of each patient, in its order."""
    ordered = frame.reset_index(drop=True).sort_values("index_date", kind="stable")
    return ordered.drop_duplicates("patient_id").sort_index(ignore_index=True)
