"""The OMOP door: cohort definitions of OHDSI's tools over OMOP tables in files."""

from e2i_dagster.cohorts.omop.build import OmopCohort, build
from e2i_dagster.cohorts.omop.expression import read_expression

__all__ = ["OmopCohort", "build", "read_expression"]
