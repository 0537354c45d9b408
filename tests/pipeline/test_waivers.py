"""Waivers: who may answer for what, what then passes and says so, and what goes on from where it stopped."""

import datetime as dt

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.reconstruct import ReconstructableRepository
from pipeline_runs import PATIENTS, said

from e2i_dagster.tables.description.quality import ml_gate_waivers

COHORT = "remibrutinib_csu"
RULE = "dimension_completeness"
REASON = "the supplier resends these columns on Monday"
RAW = ["source_files", *PATIENTS]
QUALITY = ["quality/patient_journeys", "quality/patient_clinical"]
COHORTS = ["cohort_definition", "cohort"]


def everything() -> dg.JobDefinition:
    """What `Materialize selected` of the UI runs."""
    from e2i_dagster.definitions import defs

    return defs.resolve_implicit_global_asset_job_def()


def sparse(journeys):
    """Four of the expected columns are empty: completeness is under its floor, and nothing else is wrong."""
    return journeys.assign(insurance_type=None, gender=None, age_group=None, geographic_region=None)


def keys(names):
    return [dg.AssetKey(name.split("/")) for name in names]


def waive(pipeline, **changed):
    config = {"table": "patient_journeys", "rule": RULE, "reason": REASON, **changed}
    return pipeline.defs.resolve_job_def("waive_gate").execute_in_process(
        run_config={"ops": {"waive_gate_rule": {"config": config}}},
        instance=pipeline.instance,
        raise_on_error=False,
    )


def checks_of(result):
    return {
        (check.asset_key.to_user_string(), check.check_name): check
        for check in result.get_asset_check_evaluations()
    }


@pytest.fixture(scope="module")
def sparse_load(load_once, drawn):
    """A sparse delivery was loaded, and the gate blocked it."""
    loaded = load_once(*PATIENTS, patient_journeys=sparse(drawn["patient_journeys"]))
    assert not loaded.result.success
    return loaded


@pytest.fixture(scope="module")
def pipeline_at_rest(go_on_together, sparse_load):
    """A pipeline after that, for tests that change nothing."""
    return go_on_together(sparse_load)


@pytest.fixture
def blocked(go_on, sparse_load):
    """The test's own pipeline after that."""
    return go_on(sparse_load)


def test_after_a_waiver_the_run_goes_on_from_failure_without_raw_data_being_made_again(
    pipeline, delivery, drawn, tmp_path
):
    folder = delivery(*PATIENTS, patient_journeys=sparse(drawn["patient_journeys"]))
    config = {"ops": {"source_files": {"config": {"folder": str(folder)}}}}
    selection = keys([*RAW, *QUALITY, *COHORTS])
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first = everything().execute_in_process(
            run_config=config, instance=instance, partition_key=COHORT, asset_selection=selection,
            raise_on_error=False,
        )  # fmt: skip
        assert not first.success and not pipeline.versions("cohort")
        done = {event.step_key for event in first.all_events if event.event_type_value == "STEP_SUCCESS"}
        assert {"patient_journeys", "quality__patient_journeys"} <= done and "cohort" not in done
        raw = pipeline.versions("patient_journeys")[None]
        assert waive(pipeline).success

        with dg.execute_job(
            ReconstructableRepository.for_module("e2i_dagster.definitions", "defs").get_reconstructable_job(
                "__ASSET_JOB"
            ),
            instance=instance,
            asset_selection=selection,
            # The UI hands on the tags of the run, too.
            tags={"dagster/partition": COHORT},
            reexecution_options=dg.ReexecutionOptions.from_failure(first.run_id, instance),
        ) as again:
            ran = {event.step_key for event in again.all_events if event.event_type_value == "STEP_START"}
            checks = checks_of(again)
            assert again.success, said(again)
    assert "cohort" in ran and not ran & {"source_files", *PATIENTS, "quality__patient_journeys"}
    assert pipeline.versions("patient_journeys")[None] == raw
    gate = checks["quality/patient_journeys", "qc_gate"]
    assert gate.passed and gate.severity == dg.AssetCheckSeverity.WARN
    assert (
        "WARN" in gate.description
        and REASON in gate.description
        and "test (self-declared)" in gate.description
    )
    # What stands on it carries the mark.
    (mark,) = pipeline.versions("cohort")[COHORT].metadata["waived"]
    assert RULE in mark and REASON in mark
    (state,) = pipeline.rows("SELECT state, reason FROM ml_stage_states WHERE stage = 'cohort'")
    assert state["state"] == "executed" and REASON in state["reason"]


def test_a_waiver_holds_across_runs_until_it_expires(blocked):
    pipeline = blocked
    refused = pipeline.run("build_cohorts", partition=COHORT)
    assert not refused.success
    assert f"e2i gate waive patient_journeys --partition all --rule {RULE}" in said(refused)
    made = waive(pipeline, days=3)
    assert made.success, said(made)
    (waiver,) = pipeline.rows("SELECT * FROM ml_gate_waivers")
    assert (waiver["waived_by"], waiver["authentication"]) == ("test", "self-declared")
    assert waiver["expires_at"] - waiver["created_at"] == dt.timedelta(days=3)
    assert waiver["run_id"] == made.run_id
    assert pipeline.run("build_cohorts", partition=COHORT).success
    (warning,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts WHERE level = 'critical'")
    assert "patient_journeys" in warning["title"] and warning["alert_type"] == "data_quality"

    moved = {
        "created_at": dt.datetime.now(dt.UTC) - dt.timedelta(days=4),
        "expires_at": dt.datetime.now(dt.UTC),
    }
    with pipeline.warehouse.begin() as connection:
        connection.execute(sa.update(ml_gate_waivers).values(moved))

    # Not even what is stored already may be used again.
    refused = pipeline.run("build_cohorts", partition=COHORT)
    assert not refused.success and "expired" in said(refused)


def test_a_new_delivery_is_not_covered_and_a_good_one_loses_the_mark(blocked, delivery, drawn):
    pipeline = blocked
    assert waive(pipeline).success
    assert pipeline.run("build_cohorts", partition=COHORT).success
    worse = sparse(drawn["patient_journeys"]).assign(disease_severity=None)
    assert not pipeline.load(delivery(*PATIENTS, patient_journeys=worse), *PATIENTS).success
    assert not pipeline.run("build_cohorts", partition=COHORT).success
    assert pipeline.load(delivery(patient_journeys=drawn["patient_journeys"]), *PATIENTS).success
    assert pipeline.run("build_cohorts", partition=COHORT).success
    assert "waived" not in pipeline.versions("cohort")[COHORT].metadata


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rule": "schema_order"}, "cannot be waived"),
        ({"rule": "leakage_target"}, "cannot be waived"),
        ({"rule": "not_checked"}, "cannot be waived"),
        ({"table": "training_frame"}, "leakage, which cannot be waived"),
        ({"rule": "dimension_uniqueness"}, f"what blocks it is {RULE}"),
        ({"table": ""}, f"Blocked now: table patient_journeys, partition all, rule {RULE}."),
        ({"table": "patient_journey"}, "No raw table is called 'patient_journey'"),
        ({"partition": "2024-01"}, "has no partition '2024-01'"),
        ({"table": "triggers", "partition": "2024-01"}, "run `e2i load`"),
        ({"reason": " short "}, "at least 10 characters"),
        ({"days": 0}, "1 to 90 days"),
        ({"days": 1000}, "1 to 90 days"),
    ],
)
def test_what_cannot_be_waived_is_refused_with_its_reason(pipeline_at_rest, changed, told):
    result = waive(pipeline_at_rest, **changed)
    assert not result.success and told in said(result)
    assert not pipeline_at_rest.rows("SELECT * FROM ml_gate_waivers")
