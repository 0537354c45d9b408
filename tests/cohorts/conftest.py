"""A database of the test's own with the tables of this stage."""

import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy as sa


@pytest.fixture
def connection(state) -> Iterator[sa.Connection]:
    from e2i_dagster.database.connection import drop_database, scratch_database
    from e2i_dagster.tables import metadata
    from e2i_dagster.tables.description import cohorts, control, models

    name = f"cohorts_{secrets.token_hex(4)}"
    engine = sa.create_engine(scratch_database(name))
    metadata.create_all(
        engine,
        tables=[
            cohorts.ml_cohort_definitions,
            cohorts.ml_cohort_executions,
            cohorts.ml_cohort_eligibility_log,
            cohorts.ml_patient_cohort_assignments,
            cohorts.ml_patient_level_access,
            control.ml_snapshots,
            control.ml_data_versions,
            control.ml_stage_states,
            models.ml_experiments,
            models.ml_model_registry,
            models.ml_training_runs,
        ],
    )
    with engine.connect() as opened:
        yield opened
    engine.dispose()
    drop_database(name)
