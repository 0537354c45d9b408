"""The shipped claims protocol: first fill after the diagnosis, none in the 180 days before, enrolled throughout."""

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.cohorts import CohortDefinition, build_cohort, lint, patient_frame, preview
from e2i_dagster.cohorts.inputs import EVENT_TABLES, event_frame
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.synthetic.generate import generate

PROTOCOL = CohortDefinition.from_yaml(CHECKOUT / "docs/examples/claims_protocol.yaml")
END = "2024-12-31"


@pytest.fixture(scope="module")
def tables():
    return generate("confounded", n_hcps=60, n_patients=1_200, n_treatments=3_600, n_metrics=6,
                    n_causal_paths=6, n_activities=6, seed=3)  # fmt: skip


@pytest.fixture(scope="module")
def frames(tables):
    patients = patient_frame(tables["patient_journeys"], tables["patient_clinical"])
    return patients, event_frame(tables, tables["patient_journeys"])


def test_its_examples_hold_and_every_rule_has_one():
    report = lint(PROTOCOL)
    assert report.findings == ()
    assert report.examples >= 6


def test_it_selects_whom_a_plain_evaluation_selects(frames):
    patients, events = frames
    fills = events[(events["event_type"] == "prescription") & (events["brand"] == "Remibrutinib")]
    fills = fills.merge(patients[["patient_id", "diagnosis_date"]], on="patient_id")
    after = fills[fills["event_date"] >= fills["diagnosis_date"]]
    index = after.groupby("patient_id")["event_date"].min().rename("index_date")
    rows = patients.merge(index, on="patient_id")
    before = fills.merge(index, on="patient_id")
    days = (before["event_date"] - before["index_date"]).dt.days
    earlier = set(before.loc[days.between(-180, -1), "patient_id"])
    observed = (rows["index_date"] - rows["first_observation_date"]).dt.days >= 180
    followed = (rows["last_observation_date"] - rows["index_date"]).dt.days >= 90
    over = rows["index_date"] + pd.Timedelta(days=90) <= pd.Timestamp(END)
    chosen = rows[
        rows["diagnosis_code"].isin(["L50.1", "L50.8", "L50.9"])
        & (rows["age_at_diagnosis"] >= 18).fillna(False)
        & ~rows["patient_id"].isin(earlier)
        & observed
        & followed
        & over
    ]
    cohort = build_cohort(PROTOCOL, patients, events, data_end=END)
    assert len(chosen) >= 20
    assert dict(zip(cohort.eligible["patient_id"], cohort.eligible["index_date"], strict=True)) == dict(
        zip(chosen["patient_id"], chosen["index_date"], strict=True)
    )


def test_a_longer_washout_is_previewed_against_it(frames):
    patients, events = frames
    later = PROTOCOL.model_copy(
        update={
            "version": "2.0.0",
            "temporal_requirements": PROTOCOL.temporal_requirements.model_copy(update={"lookback_days": 720}),
        }
    )
    seen = preview(later, patients, events, live=PROTOCOL, data_end=END)
    assert seen.comparison is not None
    assert set(seen.comparison.lost["rule"]) == {"lookback"}
    assert [change.rule for change in seen.comparison.rules] == ["lookback"]


def test_lint_with_data_says_which_rule_on_events_nobody_meets(frames):
    patients, events = frames
    impossible = PROTOCOL.model_copy(
        update={"inclusion_criteria": (PROTOCOL.inclusion_criteria[2].model_copy(update={"within": (0, 0)}),)}
    )
    found = lint(impossible, patients, events)
    assert ("never_true", "new_user") in {(one.kind, one.rule) for one in found.findings}


def test_events_of_all_tables_are_one_frame_with_a_row_each(tables, frames):
    _, events = frames
    of_patients = {
        name: int(tables[name]["patient_journey_id"].notna().sum()) for name in EVENT_TABLES if name in tables
    }
    assert events["table"].value_counts().to_dict() == of_patients
    assert events["patient_id"].notna().all()
    coded = events[events["table"] == "treatment_events"]
    drug = coded["drug_ndc"].notna()
    assert (coded.loc[drug, "code"] == coded.loc[drug, "drug_ndc"]).all()
    assert np.array_equal(
        coded["code"].isna(), (coded["drug_ndc"].isna() & ~coded["icd_codes"].fillna("[]").str.contains('"'))
    )
