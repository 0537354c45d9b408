"""SAS, Dataset-JSON and FHIR folders through a load: what is kept, what is a reject, what the report says."""

import datetime as dt
import shutil

import pandas as pd
import pytest

from e2i_dagster.loading.load import load
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.sources.files import read


@pytest.fixture
def example(tmp_path):
    def copied(name: str):
        return shutil.copytree(CHECKOUT / "docs/examples" / name, tmp_path / name)

    return copied


def test_a_trial_in_sas_files(database, content, example):
    folder = example("sas")
    delivery = read(folder, folder / "mapping.yaml")
    assert load(delivery, dry_run=True).tables["patient_clinical"].notes == (
        "adqs.sas7bdat: AVAL: special missing values .A 6, .N 5",
    )
    report = load(delivery)
    assert {name: (done.inserted, done.rejected) for name, done in report.tables.items()} == {
        "patient_journeys": (24, 0), "patient_clinical": (24, 0), "treatment_events": (47, 0),
    }  # fmt: skip
    assert report.tables["treatment_events"].completed == {"event_date": {"month": 16}}
    clinical = content("patient_clinical").set_index("patient_journey_id").loc["EX-301-101-001"]
    assert pd.isna(clinical["urticaria_severity_uas7"])
    assert clinical["diagnosis_date"] == dt.date(2023, 6, 23)
    # The same trial as Dataset-JSON: the same events, so nothing changes.
    folder = example("dataset_json")
    again = load(read(folder, folder / "mapping.yaml"))
    assert {name: done.unchanged for name, done in again.tables.items()} == {
        "patient_journeys": 24, "treatment_events": 47,
    }  # fmt: skip


def test_a_broken_line_of_an_export_is_a_reject_with_its_number(database, content, example):
    folder = example("fhir")
    path = folder / "MedicationRequest.ndjson"
    lines = path.read_text().splitlines(keepends=True)
    broken = lines[3][:80]
    path.write_text("".join([*lines[:3], broken + "\n", "\n", *lines[4:]]))
    report = load(read(folder, folder / "mapping.yaml"), success_threshold=0.9)
    done = report.tables["treatment_events"]
    assert (done.source, done.inserted, done.lines, done.reasons) == (48, 47, 48, {"malformed_row": 1})
    (reject,) = content("load_rejects").to_dict("records")
    assert (reject["row_number"], reject["reason"]) == (4, "malformed_row")
    assert reject["raw_row"] == {"_line": broken, "_file": "MedicationRequest.ndjson"}
    assert content("hcp_profiles")["npi"].notna().all()
