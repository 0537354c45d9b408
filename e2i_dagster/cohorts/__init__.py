"""Cohorts: who is eligible, and why everyone else is not. Labels of a scope come from :func:`label_outcome`."""

from e2i_dagster.cohorts.build import build_cohort, count_cohort, patient_frame, write_cohort
from e2i_dagster.cohorts.compare import CohortComparison, RuleChange, compare
from e2i_dagster.cohorts.definition_page import definition_page
from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.cohorts.errors import CohortInputError, CohortStorageError, ScopeRefused
from e2i_dagster.cohorts.explain import Explanation, explain
from e2i_dagster.cohorts.lint import Finding, LintReport, lint, run_examples
from e2i_dagster.cohorts.outcome import Labels, cohort_frame, label_outcome
from e2i_dagster.cohorts.preview import Preview, preview
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.cohorts.save import record_cohort, require_new_version, why_empty
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
    "CohortComparison",
    "CohortConfigError",
    "CohortDefinition",
    "CohortExample",
    "CohortInputError",
    "CohortStorageError",
    "Criterion",
    "Explanation",
    "Finding",
    "Labels",
    "LintReport",
    "Preview",
    "RuleChange",
    "ScopeRefused",
    "TemporalRequirements",
    "build_cohort",
    "cohort_frame",
    "compare",
    "count_cohort",
    "definition_page",
    "explain",
    "label_outcome",
    "lint",
    "patient_frame",
    "preview",
    "read_cohort",
    "read_cohorts",
    "record_cohort",
    "require_new_version",
    "run_examples",
    "shown_count",
    "why_empty",
    "write_cohort",
]
