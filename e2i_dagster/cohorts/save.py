"""Writing an executed cohort to the warehouse: definition, execution, attrition, every journey's verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from e2i_dagster.cohorts.compare import compare_rules
from e2i_dagster.cohorts.errors import CohortStorageError
from e2i_dagster.cohorts.result import Cohort
from e2i_dagster.config.cohort import CohortConfigError, CohortDefinition
from e2i_dagster.database.upsert import upsert
from e2i_dagster.loading.staging import encode
from e2i_dagster.tables.description.cohorts import (
    ml_cohort_definitions,
    ml_cohort_eligibility_log,
    ml_cohort_executions,
    ml_patient_cohort_assignments,
)
from e2i_dagster.versions.ledger import SnapshotMember, record_snapshot, snapshot_of


def record_cohort(
    connection: sa.Connection,
    cohort: Cohort,
    *,
    execution_id: str,
    executed_by: str | None = None,
    environment: str = "development",
    input_dataset: str | None = None,
    read: Iterable[tuple[str, str | None, str]] = (),
    output_dataset: str | None = None,
    code_version: str | None = None,
    at: datetime | None = None,
) -> dict[str, int]:
    """Record one execution in the caller's transaction. The same ``execution_id`` again replaces it.

    Args:
        execution_id: identifier of the execution (run and cohort).
        input_dataset: digest of the snapshot that was read. output_dataset: digest of the eligible rows.
        read: (table, partition, digest) of everything that was read, instead of ``input_dataset``: stored
            as a snapshot, so that :func:`~.explain.explain` finds the very rows again.
        environment: ``development``, ``staging`` or ``production``.
        at: time of the record; now by default.

    Returns:
        Rows written per table.

    Raises:
        CohortConfigError: CC_001, the rules changed although the version did not.
        CohortStorageError: CC_006, the database refused the rows.
    """
    import psycopg

    at = at or datetime.now(UTC)
    definition = cohort.definition
    require_new_version(connection, definition)
    snapshot = snapshot_of(SnapshotMember(table, part, digest, 0) for table, part, digest in read)
    if snapshot.members:
        input_dataset = snapshot.digest
    try:
        record_snapshot(connection, snapshot)
        connection.execute(_definition(cohort, executed_by, at))
        executions = ml_cohort_executions
        connection.execute(executions.delete().where(executions.c.execution_id == execution_id))
        execution = cohort.to_record() | {
            "execution_id": execution_id,
            "execution_timestamp": at,
            "executed_by": executed_by,
            "environment": environment,
            "input_dataset": input_dataset,
            "output_dataset": output_dataset,
            "code_version": code_version,
        }
        connection.execute(executions.insert(), execution)
        log = _log(cohort, execution_id, at)
        connection.execute(ml_cohort_eligibility_log.insert(), log)
        assigned = _copy_assignments(connection, cohort, execution_id, at)
    except (SQLAlchemyError, psycopg.Error) as error:
        raise CohortStorageError(
            f"CC_006: cohort {definition.key} could not be recorded ({type(error).__name__}). Nothing of "
            f"this execution is kept.",
            remedy="Check the database (e2i status) and run it again.",
        ) from error
    return {
        "ml_cohort_definitions": 1,
        "ml_cohort_executions": 1,
        "ml_cohort_eligibility_log": len(log),
        "ml_patient_cohort_assignments": assigned,
    }


def require_new_version(connection: sa.Connection, definition: CohortDefinition) -> None:
    """Refuse rules that differ from those recorded under the same version.

    Raises:
        CohortConfigError: CC_001, with the rules that changed in words.
    """
    row = connection.execute(
        sa.select(ml_cohort_definitions.c.config_hash, ml_cohort_definitions.c.config_json).where(
            ml_cohort_definitions.c.cohort_id == definition.cohort_id
        )
    ).one_or_none()
    if row is None or row.config_hash == definition.definition_hash:
        return
    changed = compare_rules(CohortDefinition.model_validate(row.config_json), definition)
    listed = "".join(f"\n  - {change.words()}" for change in changed)
    raise CohortConfigError(
        f"CC_001: the rules of {definition.key} changed under version {definition.version} (recorded "
        f"{row.config_hash}, now {definition.definition_hash}).",
        remedy=f"Raise 'version:' in config/cohorts/{definition.key}.yaml.{listed}",
    )


def why_empty(connection: sa.Connection, cohort: str) -> str | None:
    """What the newest execution of ``cohort`` says when nobody was eligible (names the rule); else None."""
    return connection.execute(
        sa.select(ml_cohort_executions.c.error_message)
        .join(ml_cohort_definitions, ml_cohort_definitions.c.cohort_id == ml_cohort_executions.c.cohort_id)
        .where(ml_cohort_definitions.c.cohort_key == cohort)
        .order_by(ml_cohort_executions.c.execution_timestamp.desc())
        .limit(1)
    ).scalar()


def _definition(cohort: Cohort, created_by: str | None, at: datetime) -> sa.Executable:
    definition = cohort.definition
    changing = {
        "updated_date": at,
        "cohort_name": definition.title or definition.key,
        "status": "draft" if definition.approval is None else "approved",
        "approved_by": None if definition.approval is None else definition.approval.by,
        "approved_on": None if definition.approval is None else definition.approval.on,
        "clinical_rationale": definition.clinical_rationale,
        "config_json": definition.model_dump(mode="json"),
        "initial_population": cohort.input_patients,
        "eligible_population": cohort.eligible_count,
        "excluded_population": cohort.input_patients - cohort.eligible_count,
        "exclusion_rate": cohort.exclusion_rate,
    }
    times = definition.temporal_requirements
    values = changing | {
        "cohort_id": definition.cohort_id,
        "cohort_key": definition.key,
        "brand": definition.brand,
        "indication": definition.indication,
        "version": definition.version,
        "created_date": at,
        "created_by": created_by,
        "inclusion_criteria": [c.model_dump(mode="json") for c in definition.inclusion_criteria],
        "exclusion_criteria": [c.model_dump(mode="json") for c in definition.exclusion_criteria],
        "lookback_days": times.lookback_days,
        "followup_days": times.followup_days,
        "index_date_field": times.index_date_field if definition.index is None else None,
        "required_fields": list(definition.required_fields),
        "config_hash": cohort.definition_hash,
    }
    return upsert(ml_cohort_definitions, changing).values(values)


def _log(cohort: Cohort, execution_id: str, at: datetime) -> list[dict]:
    steps = cohort.attrition.to_dict("records")
    return [
        {
            "cohort_id": cohort.definition.cohort_id,
            "execution_id": execution_id,
            "criterion_order": rule.order,
            "criterion_name": rule.name,
            "criterion_type": rule.side,
            "operator": rule.operator,
            "criterion_value": rule.model_dump(mode="json")["value"],
            "removed_count": step["removed"],
            "remaining_count": step["remaining"],
            "unknown_count": step["unknown"],
            "marginal_gain": step["marginal_gain"],
            "description": rule.description,
            "clinical_rationale": rule.clinical_rationale,
            "applied_at": at,
        }
        for rule, step in zip(cohort.definition.rules, steps, strict=True)
    ]


def _copy_assignments(connection: sa.Connection, cohort: Cohort, execution_id: str, at: datetime) -> int:
    """COPY of one row per journey and index date; a JSON list of failed rules is written once per distinct mask."""
    import pyarrow as pa

    bits = {rule.name: rule.bit for rule in cohort.definition.rules}
    reasons = cohort.reasons
    codes, masks = pd.factorize(reasons["mask"])
    lists = pd.Series([json.dumps([name for name, bit in bits.items() if m & bit]) for m in masks.tolist()])
    mask = reasons["mask"]
    pending = bits.get("followup_pending", 0)
    rows = pd.DataFrame(
        {
            "patient_journey_id": reasons["patient_journey_id"],
            "cohort_id": cohort.definition.cohort_id,
            "execution_id": execution_id,
            "index_number": reasons.groupby("patient_journey_id").cumcount() + 1,
            "patient_id": reasons["patient_id"],
            "assigned_at": at.isoformat(),
            "is_eligible": mask == 0,
            "is_pending": (mask == pending) & (pending != 0),
            "failed_criteria": lists.take(codes).array if len(lists) else pd.Series(dtype=str),
            "failed_mask": mask,
            "unknown_mask": reasons["unknown_mask"],
            "lookback_complete": (mask & bits["lookback"]) == 0,
            "followup_complete": (mask & (bits["followup"] | pending)) == 0,
            "index_date": reasons["index_date"].astype("date32[pyarrow]"),
        }
    )
    names = list(rows.columns)
    unknown = set(names) - set(ml_patient_cohort_assignments.c.keys())
    assert not unknown, unknown
    encoded = encode(pa.Table.from_pandas(rows, preserve_index=False))
    statement = f"COPY {ml_patient_cohort_assignments.name} ({', '.join(names)}) FROM STDIN (FORMAT csv)"
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(memoryview(encoded))
    return len(rows)
