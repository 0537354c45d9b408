"""Executions of a cohort as they stand in the warehouse: found by run, version or model, and read back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.errors import InputError
from e2i_dagster.tables.description.cohorts import (
    ml_cohort_definitions,
    ml_cohort_executions,
    ml_patient_cohort_assignments,
)
from e2i_dagster.tables.description.control import ml_data_versions, ml_stage_states
from e2i_dagster.tables.description.models import ml_experiments, ml_model_registry, ml_training_runs

#: So many executions are named in a message.
_NAMED = 5


@dataclass(frozen=True)
class Execution:
    """One recorded execution: which rules, on which data, by which code, when."""

    execution_id: str
    definition: CohortDefinition
    definition_hash: str
    at: datetime
    data_version: str | None
    code_version: str | None
    data_end: date | None
    input_patients: int
    eligible_count: int

    def words(self) -> str:
        """The execution for people: time, version, data, run."""
        data = f", data {self.data_version[:12]}" if self.data_version else ""
        return f"{self.at:%Y-%m-%d %H:%M} version {self.definition.version}{data}, {self.execution_id}"


@dataclass(frozen=True)
class RecordedCohort:
    """An execution with the verdict on every journey: what :func:`~.compare.compare` takes.

    ``reasons``: patient_id, patient_journey_id, index_date, mask, unknown_mask. ``eligible``: the keys of
    those whose mask is 0.
    """

    execution: Execution
    reasons: pd.DataFrame

    @property
    def definition(self) -> CohortDefinition:
        return self.execution.definition

    @property
    def input_patients(self) -> int:
        return self.execution.input_patients

    @property
    def eligible(self) -> pd.DataFrame:
        keys = ["patient_id", "patient_journey_id", "index_date"]
        return self.reasons.loc[self.reasons["mask"] == 0, keys].reset_index(drop=True)


def executions(connection: sa.Connection, cohort: str) -> list[Execution]:
    """All recorded executions of the cohort ``cohort``, newest first."""
    query = (
        sa.select(ml_cohort_executions, ml_cohort_definitions.c.config_json)
        .join(ml_cohort_definitions, ml_cohort_definitions.c.cohort_id == ml_cohort_executions.c.cohort_id)
        .where(ml_cohort_definitions.c.cohort_key == cohort)
        .order_by(
            ml_cohort_executions.c.execution_timestamp.desc(), ml_cohort_executions.c.execution_id.desc()
        )
    )
    return [
        Execution(
            execution_id=row.execution_id,
            definition=CohortDefinition.model_validate(row.config_json),
            definition_hash=row.config_hash,
            at=row.execution_timestamp,
            data_version=row.input_dataset,
            code_version=row.code_version,
            data_end=row.data_end,
            input_patients=row.input_patient_count,
            eligible_count=row.eligible_row_count,
        )
        for row in connection.execute(query)
    ]


def find_execution(connection: sa.Connection, cohort: str, wanted: str | None = None) -> Execution:
    """The execution of ``cohort`` that ``wanted`` names, by default the newest.

    Args:
        wanted: a definition version (``1.0.0``, its newest execution), the beginning of an execution's or
            run's id, a run that reused what an earlier one had built, or a registered model
            (``name/version``, or the name for its newest version): the execution whose patients it learned from.

    Raises:
        InputError: nothing was recorded, or ``wanted`` names none or several; those there are, are listed.
    """
    found = executions(connection, cohort)
    if not found:
        remedy = "Build it first: `e2i run`, or the asset `cohort` in the Dagster UI."
        raise InputError(f"Cohort {cohort} has no recorded execution. {remedy}", file=cohort, remedy=remedy)
    if wanted is None:
        return found[0]
    by_version = [execution for execution in found if execution.definition.version == wanted]
    if by_version:
        return by_version[0]
    by_run = [execution for execution in found if execution.execution_id.startswith(wanted)]
    if len(by_run) == 1:
        return by_run[0]
    if not by_run:
        model = _model(connection, wanted)
        if model is not None:
            return _execution_of_model(connection, cohort, found, model)
        at = _time_of_run(connection, wanted)
        in_force = [execution for execution in found if at is not None and execution.at <= at]
        if in_force:
            return in_force[0]
    named = "\n".join(f"  - {execution.words()}" for execution in (by_run or found)[:_NAMED])
    what = "several executions begin with" if by_run else "there is no version, no run and no model"
    remedy = f"Recorded, newest first:\n{named}"
    raise InputError(
        f"Cohort {cohort}: {what} {wanted!r}. {remedy}", file=cohort, value=wanted, remedy=remedy
    )


def _model(connection: sa.Connection, wanted: str) -> sa.Row | None:
    """The registered model that ``wanted`` names, with its training run; None when there is no such model."""
    name, _, version = wanted.removeprefix("models:/").partition("/")
    registry = ml_model_registry
    query = (
        sa.select(
            registry.c.model_name,
            registry.c.model_version,
            ml_training_runs.c.data_digests,
            ml_training_runs.c.completed_at,
            ml_experiments.c.scope,
            ml_experiments.c.target_population,
        )
        .join(ml_training_runs, ml_training_runs.c.mlflow_run_id == registry.c.mlflow_run_id)
        .join(ml_experiments, ml_experiments.c.id == ml_training_runs.c.experiment_id)
        .where(registry.c.model_name == name)
        .order_by(registry.c.registered_at.desc())
    )
    models = connection.execute(query).all()
    chosen = next((model for model in models if version in ("", model.model_version)), None)
    if models and chosen is None:
        known = ", ".join(model.model_version for model in models[:_NAMED])
        remedy = f"Registered, newest first: {known}."
        raise InputError(
            f"Model {name} has no version {version!r}. {remedy}", file=name, value=version, remedy=remedy
        )
    return chosen


def _execution_of_model(
    connection: sa.Connection, cohort: str, found: list[Execution], model: sa.Row
) -> Execution:
    """Back from the model's training frame to its labels and from them to the cohort, as the ledger has them."""
    named = f"Model {model.model_name}/{model.model_version}"
    if model.target_population != cohort:
        remedy = (
            f"Ask: `e2i cohort explain {model.target_population} PATIENT --as-of "
            f"{model.model_name}/{model.model_version}`."
        )
        raise InputError(
            f"{named} was trained on the cohort {model.target_population}, not on {cohort}. {remedy}",
            file=cohort, value=f"{model.model_name}/{model.model_version}", remedy=remedy,
        )  # fmt: skip
    table = ml_data_versions

    def newest(asset: str, *conditions: sa.ColumnElement[bool]) -> sa.Row | None:
        query = sa.select(table).where(table.c.asset == asset, table.c.partition == model.scope, *conditions)
        return connection.execute(query.order_by(table.c.version_id.desc()).limit(1)).one_or_none()

    digest = model.data_digests.get("training_frame")
    frame = newest("training_frame", table.c.digest == digest, table.c.at <= model.completed_at)
    labels = frame and newest("outcome_labels", table.c.version_id < frame.version_id)
    execution = (
        None
        if labels is None
        else next((candidate for candidate in found if candidate.at <= labels.at), None)
    )
    if execution is None:
        remedy = "Name a build by run or version instead."
        raise InputError(
            f"{named}: the ledger does not have the build of {cohort} that it learned from any more (training "
            f"frame {digest}). {remedy}",
            file=cohort, value=f"{model.model_name}/{model.model_version}", remedy=remedy,
        )  # fmt: skip
    return execution


def _time_of_run(connection: sa.Connection, run: str) -> datetime | None:
    """When a run last wrote anything; None when the warehouse knows no such run."""
    if len(run) < 4:
        return None
    latest = [
        connection.execute(
            sa.select(sa.func.max(table.c.at)).where(table.c.run_id.startswith(run, autoescape=True))
        ).scalar()
        for table in (ml_data_versions, ml_stage_states)
    ]
    return max((at for at in latest if at is not None), default=None)


def read_execution(connection: sa.Connection, execution: Execution) -> RecordedCohort:
    """``execution`` with the verdict on every journey."""
    table = ml_patient_cohort_assignments
    rows = connection.execute(
        sa.select(
            table.c.patient_id,
            table.c.patient_journey_id,
            table.c.index_date,
            table.c.failed_mask,
            table.c.unknown_mask,
        )
        .where(table.c.execution_id == execution.execution_id)
        .order_by(table.c.patient_journey_id, table.c.index_number)
    ).all()
    names = ["patient_id", "patient_journey_id", "index_date", "mask", "unknown_mask"]
    reasons = pd.DataFrame(rows, columns=names)
    reasons["mask"] = reasons["mask"].astype("int64")
    reasons["unknown_mask"] = reasons["unknown_mask"].fillna(0).astype("int64")
    return RecordedCohort(execution, reasons)
