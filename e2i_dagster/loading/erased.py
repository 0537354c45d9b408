"""Patients who were erased: no load takes their rows again.

The warehouse keeps no key of theirs, only pseudonyms (keyed hashes) of the patient and of the journeys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.pseudonyms import VARIABLE, pseudonym, pseudonym_key
from e2i_dagster.tables import PATIENT_COLUMNS
from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.description.control import ml_erased_keys

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def erased_rows(engine: sa.Engine, rows: pa.Table) -> np.ndarray | None:
    """Which of ``rows`` belong to an erased patient, as a boolean array; None where nobody was erased.

    Raises:
        ConfigError: patients were erased, and the key of pseudonyms, by which they are known, is not set.
    """
    import numpy as np

    columns = [name for name in PATIENT_COLUMNS if name in rows.column_names]
    with engine.connect() as connection:
        erased = set(connection.scalars(sa.select(ml_erased_keys.c.key_pseudonym)))
    if not erased or not columns:
        return None
    key = required_key()
    found = np.zeros(len(rows), bool)
    for name in columns:
        values = rows.column(name).cast("string")
        named = [value for value in values.unique().to_pylist() if value and pseudonym(key, value) in erased]
        found |= compute().is_in(values, value_set=_strings(named)).to_numpy(zero_copy_only=False)
    return found


def required_key() -> bytes:
    """The key of pseudonyms.

    Raises:
        ConfigError: it is not set.
    """
    key = pseudonym_key()
    if key is None:
        raise ConfigError(
            "Erased patients are known by their pseudonyms only, and the key of pseudonyms is not set.",
            file=VARIABLE,
            remedy=f"Set {VARIABLE} to the key under which they were erased.",
        )
    return key


def _strings(values: list[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, pa.string())
