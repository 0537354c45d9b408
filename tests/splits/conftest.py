"""A database of the test's own with the tables of this stage."""

import secrets
from collections.abc import Iterator

import pytest
import sqlalchemy as sa


@pytest.fixture
def connection(state) -> Iterator[sa.Connection]:
    from e2i_dagster.database.connection import drop_database, scratch_database
    from e2i_dagster.tables import metadata
    from e2i_dagster.tables.description import serving, splits

    name = f"splits_{secrets.token_hex(4)}"
    engine = sa.create_engine(scratch_database(name))
    metadata.create_all(
        engine,
        tables=[
            splits.ml_split_registry,
            splits.ml_patient_split_assignments,
            splits.ml_seal_openings,
            serving.ml_bentoml_services,
            serving.ml_deployments,
        ],
    )
    with engine.connect() as opened:
        yield opened
    engine.dispose()
    drop_database(name)
