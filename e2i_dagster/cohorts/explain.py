"""Why one patient is in a cohort or not: every rule, its verdict, and the value that it saw.

Patient-level: callers record the opening first (:mod:`.access`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.build import patient_frame
from e2i_dagster.cohorts.compare import rule_words
from e2i_dagster.cohorts.executions import Execution, find_execution
from e2i_dagster.cohorts.narwhals_plan import FIRST_OBSERVED, LAST_OBSERVED
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.errors import InputError
from e2i_dagster.tables.description.cohorts import ml_patient_cohort_assignments

if TYPE_CHECKING:
    from e2i_dagster.versions.lake import Lake

Verdict = Literal["passed", "failed", "unknown, kept", "unknown, removed", "to be scored"]
#: Tables whose rows hold the values that a rule saw.
_VALUE_TABLES = ("patient_journeys", "patient_clinical")


class RuleVerdict(BaseModel):
    """What one rule said of one journey. ``found`` is the value that it saw, None where there is no single one."""

    model_config = ConfigDict(frozen=True)

    order: int
    rule: str
    side: str
    demands: str
    verdict: Verdict
    found: str | None = None
    clinical_rationale: str = ""


class JourneyVerdict(BaseModel):
    """One journey of the patient: in, waiting, or out with all rules that failed."""

    model_config = ConfigDict(frozen=True)

    patient_journey_id: str
    index_date: str | None
    verdict: Literal["eligible", "pending", "excluded"]
    failed_rules: tuple[str, ...]
    rules: tuple[RuleVerdict, ...]

    def words(self) -> str:
        """The verdict as a sentence."""
        if self.verdict == "excluded":
            return f"excluded by {', '.join(self.failed_rules)}"
        if self.verdict == "pending":
            return "meets every rule; the required follow-up ends after the data, so to be scored"
        return "eligible"


class Explanation(BaseModel):
    """The answer about one patient, as of one execution."""

    model_config = ConfigDict(frozen=True)

    cohort: str
    version: str
    definition_hash: str
    execution_id: str
    executed_at: str
    data_version: str | None
    patient_id: str
    journeys: tuple[JourneyVerdict, ...]

    def to_record(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        return self.model_dump(mode="json")


def explain(
    connection: sa.Connection,
    cohort: str,
    patient: str,
    *,
    as_of: str | None = None,
    lake: Lake | None = None,
) -> Explanation:
    """Why ``patient`` is in the cohort or not, from the record of an execution.

    Args:
        patient: a patient_id or a patient_journey_id.
        as_of: run or definition version (:func:`.executions.find_execution`); the newest by default.
        lake: where the values that the rules saw are read, in exactly the versions that the execution
            read; without it, or where such a version is gone, no values are given.

    Raises:
        InputError: the cohort was never built, ``as_of`` names no execution, or the execution knows no such
            patient.
    """
    execution = find_execution(connection, cohort, as_of)
    rows = _rows(connection, execution, patient)
    values = (
        {} if lake is None else _values(connection, lake, execution, {r.patient_journey_id for r in rows})
    )
    return Explanation(
        cohort=cohort,
        version=execution.definition.version,
        definition_hash=execution.definition_hash,
        execution_id=execution.execution_id,
        executed_at=execution.at.isoformat(timespec="seconds"),
        data_version=execution.data_version,
        patient_id=rows[0].patient_id,
        journeys=tuple(
            _journey(execution.definition, row, values.get(row.patient_journey_id, {})) for row in rows
        ),
    )


def _rows(connection: sa.Connection, execution: Execution, patient: str) -> list[Any]:
    table = ml_patient_cohort_assignments
    asked = sa.select(table.c.patient_id).where(
        table.c.execution_id == execution.execution_id,
        sa.or_(table.c.patient_id == patient, table.c.patient_journey_id == patient),
    )
    rows = connection.execute(
        sa.select(table)
        .where(table.c.execution_id == execution.execution_id, table.c.patient_id.in_(asked))
        .order_by(table.c.index_date, table.c.patient_journey_id, table.c.index_number)
    ).all()
    if not rows:
        raise InputError(
            f"Execution {execution.execution_id} of {execution.definition.key} looked at no patient and no "
            f"journey with this key. It looked at {execution.input_patients:,} patients; keys are compared "
            "as they are (PAT00000001, PJ0000000000000001).",
            field="key",
            remedy="Look the key up in the delivery; a patient loaded later appears in the next build.",
        )
    return list(rows)


def _journey(definition: CohortDefinition, row: Any, values: Mapping[str, Any]) -> JourneyVerdict:
    unknown_mask = row.unknown_mask or 0
    verdicts = []
    for rule in definition.rules:
        failed, unknown = bool(row.failed_mask & rule.bit), bool(unknown_mask & rule.bit)
        verdict: Verdict = "failed" if failed else "passed"
        if failed and rule.name == "followup_pending":
            verdict = "to be scored"
        elif unknown:
            verdict = "unknown, removed" if failed else "unknown, kept"
        verdicts.append(
            RuleVerdict(
                order=rule.order,
                rule=rule.name,
                side=rule.side,
                demands=rule_words(rule),
                verdict=verdict,
                found=_observed(rule.name, row.index_date, values)
                or _found(getattr(rule.criterion, "field", None), values),
                clinical_rationale=rule.clinical_rationale,
            )
        )
    failed_rules = tuple(rule.name for rule in definition.rules if row.failed_mask & rule.bit)
    return JourneyVerdict(
        patient_journey_id=row.patient_journey_id,
        index_date=None if row.index_date is None else row.index_date.isoformat(),
        verdict="eligible" if row.is_eligible else "pending" if row.is_pending else "excluded",
        failed_rules=failed_rules,
        rules=tuple(verdicts),
    )


def _observed(rule: str, index: date | None, values: Mapping[str, Any]) -> str | None:
    """What the rules about time saw: the index date, days observed before and after it."""
    if rule == "index_date":
        return "unknown" if index is None else index.isoformat()
    column = {"lookback": FIRST_OBSERVED, "followup": LAST_OBSERVED}.get(rule)
    if column is None or index is None or column not in values or pd.isna(values[column]):
        return None
    return f"{abs((pd.Timestamp(values[column]) - pd.Timestamp(index)).days):,} days"


def _found(field: str | None, values: Mapping[str, Any]) -> str | None:
    if field is None or field not in values:
        return None
    value = values[field]
    if value is None or value is pd.NA or value != value:  # noqa: PLR0124 - not-a-number and not-a-time
        return "unknown"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.date() if isinstance(value, pd.Timestamp) else value)


def _values(
    connection: sa.Connection, lake: Lake, execution: Execution, journeys: set[str]
) -> dict[str, dict[str, Any]]:
    """Values of the journeys' rows, from the versions of the tables that the execution read."""
    import pyarrow.parquet as pq

    from e2i_dagster.versions import ledger

    snapshot = (
        None if execution.data_version is None else ledger.read_snapshot(connection, execution.data_version)
    )
    if snapshot is None:
        return {}
    frames = {}
    for member in snapshot.members:
        if member.table not in _VALUE_TABLES:
            continue
        file = next(
            (
                version.file
                for version in ledger.versions(connection, member.table)
                if version.digest == member.digest and version.file
            ),
            None,
        )
        if file is None or not (lake.root / file.path).exists():
            return {}
        with lake.require_whole(file).open("rb") as stream:
            rows = pq.read_table(stream, filters=[("patient_journey_id", "in", sorted(journeys))])
        frames[member.table] = rows.to_pandas()
    if set(frames) != set(_VALUE_TABLES):
        return {}
    frame = patient_frame(frames["patient_journeys"], frames["patient_clinical"])
    return {
        str(row["patient_journey_id"]): {str(name): value for name, value in row.items()}
        for row in frame.to_dict("records")
    }
