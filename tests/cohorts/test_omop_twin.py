"""One protocol, two doors: the claims protocol on raw tables, and its Circe twin on the same patients as OMOP."""

import pandas as pd
import pytest
from omop_cases import write_folder

from e2i_dagster.cohorts import CohortDefinition, build_cohort, patient_frame
from e2i_dagster.cohorts.inputs import event_frame
from e2i_dagster.cohorts.omop import build
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.synthetic.generate import generate

EXAMPLES = CHECKOUT / "docs/examples"
END = "2024-12-31"
REMIBRUTINIB, OTHER_DRUG, OTHER_DIAGNOSIS = 2000000001, 2000000002, 2000000999
DIAGNOSES = {"L50.1": 2000000501, "L50.8": 2000000508, "L50.9": 2000000509}


@pytest.fixture(scope="module")
def frames():
    tables = generate("confounded", n_hcps=60, n_patients=1_200, n_treatments=3_600, n_metrics=6,
                      n_causal_paths=6, n_activities=6, seed=3)  # fmt: skip
    patients = patient_frame(tables["patient_journeys"], tables["patient_clinical"])
    events = event_frame(tables, tables["patient_journeys"])
    # Every third patient has filled before the diagnosis: no new user, where it is within 180 days of the index.
    earlier = patients.iloc[::3]
    fills = pd.DataFrame(
        {"patient_id": earlier["patient_id"], "event_type": "prescription", "brand": "Remibrutinib"}
    )
    fills["event_date"] = earlier["diagnosis_date"] - pd.Timedelta(days=30)
    return patients, pd.concat([events, fills[fills["event_date"].notna()]], ignore_index=True)


def person(patient_ids):
    return patient_ids.str.removeprefix("PAT").astype(int)


def omop_tables(patients, events):
    """The same persons, enrolment, diagnoses and fills under OMOP's names; codes are concepts of one's own."""
    fills = events[events["event_type"] == "prescription"]
    known = patients[patients["age_at_diagnosis"].notna() & patients["diagnosis_date"].notna()]
    born = known["diagnosis_date"].dt.year - known["age_at_diagnosis"].astype(int)
    diagnosed = patients[patients["diagnosis_date"].notna()]
    return {
        "person": pd.DataFrame({"person_id": person(known["patient_id"]), "year_of_birth": born}),
        "observation_period": pd.DataFrame({
            "observation_period_id": range(len(patients)),
            "person_id": person(patients["patient_id"]),
            "observation_period_start_date": patients["first_observation_date"],
            "observation_period_end_date": patients["last_observation_date"],
        }),
        "condition_occurrence": pd.DataFrame({
            "condition_occurrence_id": range(len(diagnosed)),
            "person_id": person(diagnosed["patient_id"]),
            "condition_concept_id": diagnosed["diagnosis_code"].map(DIAGNOSES).fillna(OTHER_DIAGNOSIS).astype(int),
            "condition_start_date": diagnosed["diagnosis_date"],
        }),
        "drug_exposure": pd.DataFrame({
            "drug_exposure_id": range(len(fills)),
            "person_id": person(fills["patient_id"]),
            "drug_concept_id": (fills["brand"] == "Remibrutinib").map({True: REMIBRUTINIB, False: OTHER_DRUG}),
            "drug_exposure_start_date": fills["event_date"],
        }),
    }  # fmt: skip


def test_both_doors_give_the_same_persons_and_index_dates(frames, tmp_path):
    patients, events = frames
    folder = write_folder(tmp_path / "cdm", omop_tables(patients, events), "parquet")
    twin = build(EXAMPLES / "claims_protocol_circe.json", folder)
    protocol = CohortDefinition.from_yaml(EXAMPLES / "claims_protocol.yaml")
    cohort = build_cohort(protocol, patients, events, data_end=END)
    mine = dict(zip(person(cohort.eligible["patient_id"]), cohort.eligible["index_date"], strict=True))
    assert len(mine) >= 20
    assert dict(zip(twin.rows["subject_id"], twin.rows["cohort_start_date"], strict=True)) == mine
    assert twin.inclusion_masks[0b111] == len(mine)
    for rule in range(3):
        assert any(not mask >> rule & 1 for mask in twin.inclusion_masks), f"rule {rule} removes nobody"
