"""Cohorts: who is eligible, and why everyone else is not. Labels of a scope come from :func:`label_outcome`."""

from e2i_dagster.cohorts.build import build_cohort, patient_frame
from e2i_dagster.cohorts.errors import CohortInputError, CohortStorageError, ScopeRefused
from e2i_dagster.cohorts.lint import Finding, LintReport, lint, run_examples
from e2i_dagster.cohorts.outcome import Labels, cohort_frame, label_outcome
from e2i_dagster.cohorts.record import record_cohort
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import (
    CohortConfigError,
    CohortDefinition,
    CohortExample,
    Criterion,
    TemporalRequirements,
    read_cohort,
    read_cohorts,
)

__all__ = [
    "Cohort",
    "CohortConfigError",
    "CohortDefinition",
    "CohortExample",
    "CohortInputError",
    "CohortStorageError",
    "Criterion",
    "Finding",
    "Labels",
    "LintReport",
    "ScopeRefused",
    "TemporalRequirements",
    "build_cohort",
    "cohort_frame",
    "label_outcome",
    "lint",
    "patient_frame",
    "read_cohort",
    "read_cohorts",
    "record_cohort",
    "run_examples",
]
