"""Answers about single patients and exact small counts: allowed by the deployment, each opening on record."""

from __future__ import annotations

import sqlalchemy as sa

from e2i_dagster.errors import VerdictError
from e2i_dagster.policy_files.environment import actor, patient_level_allowed
from e2i_dagster.tables.description.cohorts import ml_patient_level_access


class PatientLevelRefused(VerdictError):
    """The deployment does not allow answers at patient level."""


def require_patient_level(purpose: str) -> None:
    """Refuse ``purpose`` unless the deployment allows answers at patient level. Opens no connection.

    Raises:
        PatientLevelRefused: ``E2I_ALLOW_PATIENT_LEVEL`` is not 1.
    """
    if not patient_level_allowed():
        raise PatientLevelRefused(
            f"{purpose}: answers about single patients and counts below 11 are not allowed here. Someone who "
            "may see them sets E2I_ALLOW_PATIENT_LEVEL=1 for the command; every opening is recorded in "
            "ml_patient_level_access."
        )


def record_opening(
    engine: sa.Engine,
    purpose: str,
    cohort: str | None = None,
    *,
    patient: str | None = None,
    execution_id: str | None = None,
) -> int:
    """Check the permission and commit one row to ``ml_patient_level_access``, before anything is shown.

    Args:
        purpose: what is opened, such as ``explain``.
        cohort: None when the answer is about no single cohort.
        patient: the patient or journey asked for; None for exact counts.

    Returns:
        Key of the recorded opening.

    Raises:
        PatientLevelRefused: the deployment does not allow it; the refusal is recorded.
    """
    name, source = actor()
    row = {
        "actor": name,
        "actor_source": source,
        "purpose": purpose,
        "cohort_key": cohort,
        "patient_id": patient,
        "execution_id": execution_id,
        "outcome": "opened" if patient_level_allowed() else "refused",
    }
    with engine.begin() as connection:
        recorded = connection.execute(
            ml_patient_level_access.insert().values(row).returning(ml_patient_level_access.c.access_id)
        ).scalar_one()
    require_patient_level(purpose)
    return recorded
