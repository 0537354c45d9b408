"""The split registry: where every patient of a cohort was put, once and for good."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.scope import SplitPolicy
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.splits.assign import assign_splits
from e2i_dagster.tables.description.splits import ml_patient_split_assignments, ml_split_registry

_NAMESPACE = uuid.UUID("a1a7a1de-5b5c-5d31-9f0e-3b8f6f1c9a52")
_STRATEGY = {"hash": "patient_stratified", "temporal": "chronological"}


def split_config_id(cohort: str, policy: SplitPolicy) -> uuid.UUID:
    """Identifier of a cohort's split under one salt: the same wherever it is computed."""
    return uuid.uuid5(_NAMESPACE, f"{cohort}\n{policy.salt}")


def register_split(
    connection: sa.Connection, cohort: str, policy: SplitPolicy, *, created_by: str | None = None
) -> uuid.UUID:
    """Enter a cohort's split into the registry, once; later calls check that nothing changed.

    Raises:
        ConfigError: ratios, mode or gap changed under the same salt.
    """
    identifier = split_config_id(cohort, policy)
    train, validation, test, holdout = policy.ratios
    values: dict[str, Any] = {
        "split_strategy": _STRATEGY[policy.mode],
        "train_ratio": train,
        "validation_ratio": validation,
        "test_ratio": test,
        "holdout_ratio": holdout,
        "temporal_gap_days": policy.gap_days if policy.mode == "temporal" else 0,
    }
    connection.execute(
        insert(ml_split_registry)
        .values(
            split_config_id=identifier,
            config_name=f"{cohort}/{policy.salt}",
            cohort_key=cohort,
            salt=policy.salt,
            created_at=datetime.now(UTC),
            created_by=created_by,
            **values,
        )
        .on_conflict_do_nothing()
    )
    table = ml_split_registry.c
    stored = connection.execute(
        sa.select(*(table[name] for name in values)).where(table.split_config_id == identifier)
    ).one()
    changed = [
        name
        for name, value in values.items()
        if (
            stored._mapping[name] != value
            if isinstance(value, str)
            else abs(float(stored._mapping[name]) - value) > 1e-9
        )
    ]
    if changed:
        raise ConfigError(
            f"The split of cohort {cohort} changed ({', '.join(changed)}) under the same salt {policy.salt!r}. "
            "Patients never move.",
            file="config/scopes",
            field="split.salt",
            value=policy.salt,
            remedy="Give the split a new salt in every scope of the cohort.",
        )
    return identifier


def read_assignments(connection: sa.Connection, identifier: uuid.UUID) -> pd.DataFrame:
    """patient_id, split of everybody who was assigned under ``identifier`` (left the cohort or not)."""
    table = ml_patient_split_assignments.c
    rows = connection.execute(
        sa.select(table.patient_id, table.assigned_split)
        .where(table.split_config_id == identifier)
        .order_by(table.patient_id)
    ).all()
    frame = pd.DataFrame(rows, columns=["patient_id", "split"])
    return frame.astype("string[pyarrow]")


def store_assignments(
    connection: sa.Connection,
    identifier: uuid.UUID,
    assignments: pd.DataFrame,
    *,
    reason: str = "new patient",
) -> int:
    """Add the patients of ``assignments`` (patient_id, split) that are not in the registry yet.

    Returns:
        Number of patients added.

    Raises:
        VerdictError: a patient is in the registry with another split. Nobody is moved.
    """
    known = read_assignments(connection, identifier)
    both = assignments.merge(known, on="patient_id", how="left", suffixes=("", "_known"))
    moved = int((both["split_known"].notna() & (both["split_known"] != both["split"])).sum())
    if moved:
        raise VerdictError(
            f"{moved:,} patient(s) would move to another split. The registry never moves a patient: assign "
            "with existing=read_assignments(...)."
        )
    new = both.loc[both["split_known"].isna(), ["patient_id", "split"]]
    if len(new):
        common = {
            "split_config_id": identifier,
            "assignment_reason": reason,
            "assigned_at": datetime.now(UTC),
        }
        connection.execute(
            insert(ml_patient_split_assignments).on_conflict_do_nothing(),
            [
                {"patient_id": patient, "assigned_split": split} | common
                for patient, split in zip(new["patient_id"].tolist(), new["split"].tolist(), strict=True)
            ],
        )
    return len(new)


def split_cohort(
    connection: sa.Connection,
    cohort: str,
    policy: SplitPolicy,
    ids: Sequence[str] | pd.Series,
    *,
    strata: Sequence[Any] | pd.Series | None = None,
    index_dates: Sequence[Any] | pd.Series | None = None,
    created_by: str | None = None,
) -> tuple[uuid.UUID, pd.DataFrame]:
    """Register, read, assign what is new, store: the split of a cohort's patients in one step.

    One writer at a time per cohort and salt (advisory lock until the caller's transaction ends).

    Args:
        strata: stratum of each id (the label of the cohort's first scope). Ignored in temporal mode.
        index_dates: index date of each id; needed in temporal mode, ignored in hash mode.

    Returns:
        Identifier of the split, and patient_id, split for ``ids`` in their order.
    """
    identifier = register_split(connection, cohort, policy, created_by=created_by)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(str(identifier), 0))))
    in_time = policy.mode == "temporal"
    if in_time and index_dates is None:
        raise ConfigError(
            f"The split of cohort {cohort} is temporal: it needs the index dates.",
            field="index_dates",
            remedy="Give them.",
        )
    assignments = assign_splits(
        ids,
        salt=policy.salt,
        strata=None if in_time else strata,
        index_dates=index_dates if in_time else None,
        existing=read_assignments(connection, identifier),
        ratios=policy.ratios,
        gap_days=policy.gap_days if in_time else 0,
    )
    store_assignments(connection, identifier, assignments)
    return identifier, assignments
