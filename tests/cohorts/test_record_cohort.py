"""Recording a cohort in the warehouse: exact, once per execution, loud when a version is reused."""

import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.cohorts import (
    CohortConfigError,
    CohortStorageError,
    build_cohort,
    read_cohort,
    record_cohort,
)
from e2i_dagster.tables.description.cohorts import (
    ml_cohort_definitions,
    ml_cohort_eligibility_log,
    ml_cohort_executions,
    ml_patient_cohort_assignments,
)


def cohort(ages=(40, 17, 50), end="2023-12-31"):
    shipped = read_cohort("remibrutinib_csu")
    typical = shipped.examples[0].patient
    rows = [
        {**typical, "age_at_diagnosis": age, "patient_id": f"P{k}", "patient_journey_id": f"J{k}"}
        for k, age in enumerate(ages)
    ]
    frame = pd.DataFrame(rows).astype(object)
    frame.loc[2, "diagnosis_date"] = pd.Timestamp("2023-12-01").date()
    return build_cohort(shipped, frame, data_end=end)


def count(connection, table):
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()


def test_everything_is_written_and_the_same_execution_again_replaces_it(connection):
    built = cohort()
    for _ in range(2):
        written = record_cohort(
            connection, built, execution_id="run-1", executed_by="test", input_dataset="abc"
        )
        connection.commit()
    assert written["ml_patient_cohort_assignments"] == 3
    assert count(connection, ml_cohort_definitions) == 1
    assert count(connection, ml_cohort_executions) == 1
    assert count(connection, ml_cohort_eligibility_log) == len(built.definition.rules)

    execution = connection.execute(sa.select(ml_cohort_executions)).one()
    assert (execution.input_patient_count, execution.eligible_row_count, execution.pending_row_count) == (
        3,
        1,
        1,
    )
    assert (execution.status, execution.config_hash) == ("success", built.definition_hash)
    rows = connection.execute(
        sa.select(ml_patient_cohort_assignments).order_by(ml_patient_cohort_assignments.c.patient_id)
    ).all()
    assert [r.failed_criteria for r in rows] == [[], ["age_at_diagnosis"], ["followup_pending"]]
    assert [r.is_eligible for r in rows] == [True, False, False]
    assert [r.is_pending for r in rows] == [False, False, True]
    assert [r.followup_complete for r in rows] == [True, True, False]
    log = connection.execute(
        sa.select(ml_cohort_eligibility_log).order_by(ml_cohort_eligibility_log.c.criterion_order)
    ).all()
    assert [r.criterion_value for r in log][2] == ["L50.1", "L50.8", "L50.9"]
    assert log[-1].remaining_count == 1

    record_cohort(connection, built, execution_id="run-2")
    assert count(connection, ml_cohort_executions) == 2
    assert count(connection, ml_patient_cohort_assignments) == 6


def test_changed_rules_under_the_same_version_are_refused(connection):
    built = cohort()
    record_cohort(connection, built, execution_id="run-1")
    narrower = built.definition.model_copy(update={"exclusion_criteria": ()})
    other = build_cohort(narrower, _frame_of(built))
    with pytest.raises(CohortConfigError, match="Raise 'version:'"):
        record_cohort(connection, other, execution_id="run-2")
    raised = build_cohort(narrower.model_copy(update={"version": "1.1.0"}), _frame_of(built))
    record_cohort(connection, raised, execution_id="run-2")
    assert count(connection, ml_cohort_definitions) == 2


def _frame_of(built):
    typical = built.definition.examples[0].patient
    return pd.DataFrame([typical | {"patient_id": "P", "patient_journey_id": "J"}]).astype(object)


def test_an_empty_cohort_is_recorded_as_failed_with_its_code(connection):
    record_cohort(connection, cohort(ages=(3, 4, 5)), execution_id="run-1")
    execution = connection.execute(sa.select(ml_cohort_executions)).one()
    assert (execution.status, execution.error_code) == ("failed", "CC_003")


def test_what_the_database_refuses_is_a_storage_error(connection):
    with pytest.raises(CohortStorageError, match="CC_006"):
        record_cohort(connection, cohort(), execution_id="run-1", environment="moon")
    connection.rollback()
    assert count(connection, ml_cohort_definitions) == 0
