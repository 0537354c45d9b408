"""What a cohort is built from, in the versions that the ledger calls current. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.warehouse import ledger
from e2i_dagster.warehouse.lake import Lake

PATIENT_TABLES = ("patient_journeys", "patient_clinical")


def read_current(engine: sa.Engine, lake: Lake, tables: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The current rows of raw ``tables``, all months of each.

    Raises:
        InputError: a table was never materialized; all of them are named.
    """
    versions = {table: ledger.current(engine, table) for table in tables}
    missing = [table for table, found in versions.items() if not found]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: never loaded. Load data first: `e2i load --from FOLDER`, or `e2i run` "
            "for the invented set."
        )
    return {
        table: lake.read_frame([version.path for version in found.values() if version.path])
        for table, found in versions.items()
    }
