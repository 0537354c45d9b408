"""The quality gate across runs, and what goes on once it is satisfied."""

import pandas as pd
from pipeline_runs import PATIENTS, said

COHORT = "remibrutinib_csu"


def late_sources(journeys):
    """Every journey was sent after it was taken in: the loader takes the rows, quality control does not."""
    journeys = journeys.copy()
    journeys["ingestion_timestamp"] = journeys["source_timestamp"] - pd.Timedelta(days=3)
    return journeys


def test_cohort_after_a_blocked_table_is_refused_until_the_delivery_is_corrected(pipeline, delivery, drawn):
    bad = late_sources(drawn["patient_journeys"])
    loaded = pipeline.load(delivery(*PATIENTS, patient_journeys=bad), *PATIENTS)
    assert not loaded.success
    checks = {
        (check.asset_key.to_user_string(), check.check_name): check
        for check in loaded.get_asset_check_evaluations()
    }
    gate = checks["quality/patient_journeys", "qc_gate"]
    assert not gate.passed and gate.blocking and "patient_journeys" in gate.description
    assert checks["quality/patient_clinical", "qc_gate"].passed
    assert pipeline.versions("patient_journeys")[None].rows == 300

    refused = pipeline.run("build_cohorts", partition=COHORT)

    assert not refused.success
    kinds = {event.event_type_value for event in refused.all_events}
    assert "STEP_FAILURE" in kinds and "STEP_UP_FOR_RETRY" not in kinds, "a verdict is never retried"
    text = said(refused)
    assert "table patient_journeys" in text and "order" in text and "ingestion_timestamp" in text
    assert "e2i load" in text and "docs/rules" in text
    assert "patient_clinical" not in text
    (state,) = pipeline.rows("SELECT state, reason FROM ml_stage_states WHERE stage = 'cohort'")
    assert state["state"] == "blocked" and "patient_journeys" in state["reason"]
    assert not pipeline.versions("cohort")

    corrected = pipeline.load(delivery(patient_journeys=drawn["patient_journeys"]), *PATIENTS)
    assert corrected.success, said(corrected)
    again = pipeline.run("build_cohorts", partition=COHORT)
    assert again.success, said(again)
    assert set(pipeline.versions("cohort")) == {COHORT}
    # The definition was made by the refused run and is not made again.
    states = {row["stage"]: row["state"] for row in pipeline.rows("SELECT stage, state FROM ml_stage_states")}
    assert states["cohort_definition"] == "reused" and states["cohort"] == "executed"


def test_version_that_was_never_checked_is_refused_and_an_older_verdict_does_not_cover_it(
    pipeline, delivery, drawn
):
    assert pipeline.load(delivery(*PATIENTS), *PATIENTS, checked=False).success
    refused = pipeline.run("build_cohorts", partition=COHORT)
    assert not refused.success
    text = said(refused)
    assert "table patient_journeys" in text and "table patient_clinical" in text
    assert text.count(": not_checked:") == 2 and "Next: run `e2i load`" in text

    assert pipeline.load(delivery(*PATIENTS), *PATIENTS).success
    assert pipeline.run("build_cohorts", partition=COHORT).success
    changed = drawn["patient_journeys"].assign(gender="F")
    assert pipeline.load(delivery(patient_journeys=changed), *PATIENTS, checked=False).success
    text = said(pipeline.run("build_cohorts", partition=COHORT))
    assert "not_checked" in text and "patient_journeys" in text and "table patient_clinical" not in text


def test_every_partition_ok_names_the_month_that_another_run_left_bad(pipeline, delivery, drawn):
    """The gate of a run is about its months; the other check looks at all of them, whatever ran last."""
    tables = ("hcp_profiles", "patient_journeys", "triggers")
    triggers = drawn["triggers"].copy()
    of_month = triggers["trigger_timestamp"].dt.strftime("%Y-%m") == "2023-12"
    assert of_month.any()
    triggers["delivery_timestamp"] = triggers["delivery_timestamp"].mask(
        of_month, triggers["trigger_timestamp"] - pd.Timedelta(days=2)
    )
    folder = delivery(*tables, triggers=triggers)
    whole = pipeline.load(folder, *tables)
    assert not whole.success
    verdicts = {
        row["partition"]: row["blocking"]
        for row in pipeline.rows("SELECT * FROM ml_gate_verdicts WHERE table_name = 'triggers'")
    }
    assert verdicts == {"2023-11": False, "2023-12": True, "2024-01": False, "2024-02": False}

    one = pipeline.run(
        "load_and_qc",
        partition="2024-02",
        assets=[*tables, "source_files", "quality/triggers"],
        folder=folder,
    )

    assert one.success, said(one)
    checks = {
        check.check_name: check
        for check in one.get_asset_check_evaluations()
        if check.asset_key.to_user_string() == "quality/triggers"
    }
    assert checks["qc_gate"].passed
    assert not checks["every_partition_ok"].passed
    assert "2023-12" in checks["every_partition_ok"].description
    assert "2024-01" not in checks["every_partition_ok"].description
