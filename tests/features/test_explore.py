"""What is told of features: of a cohort without small cells, of a patient row by row, and candidates by counts."""

import dataclasses
import datetime as dt

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from commands.cli import main
from e2i_dagster.config.feature_files import read_feature_file
from e2i_dagster.config.feature_views import FEATURE_TABLES
from e2i_dagster.errors import InputError
from e2i_dagster.features.compute import compute_view
from e2i_dagster.features.explore import explain_feature, preview, setting_of, suggest
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.vocabulary import load_vocabulary
from e2i_dagster.versions.coverage import Coverage

INDEX = dt.date(2024, 1, 10)
COUNT = 40


@pytest.fixture(scope="module")
def setting(hand_written):
    """40 patients; 20 have L50.1 before the index, 39 a prescription, 10 E11.9, and 15 J45 on the index day."""

    def event(number, days, kind, **values):
        keys = {"patient_id": f"P{number:02d}", "patient_journey_id": f"J{number:02d}", "hcp_id": "H1"}
        return keys | {"event_date": INDEX - dt.timedelta(days=days), "event_type": kind} | values

    journeys = [
        {"patient_id": f"P{n:02d}", "patient_journey_id": f"J{n:02d}", "hcp_id": "H1", "geographic_region": "south",
         "journey_start_date": INDEX - dt.timedelta(days=400)}
        for n in range(COUNT)
    ]  # fmt: skip
    events = [event(n, 30, "diagnosis", icd_codes='["L50.1"]' if n % 2 else "l501; I10") for n in range(20)]
    events += [event(n, 5, "prescription", drug_ndc="0078-0946-61") for n in range(39)]
    events += [event(n, 40, "diagnosis", icd_codes='["E11.9"]') for n in range(10)]
    events += [event(n, 0, "diagnosis", icd_codes='["J45"]') for n in range(15)]
    events += [event(0, 400, "prescription"), event(0, 3, "consultation")]
    late = pd.Timestamp(INDEX, tz="UTC")
    events += [event(0, 2, "prescription", source_timestamp=late)]
    tables = hand_written(patient_journeys=journeys, treatment_events=events, hcp_profiles=[{"hcp_id": "H1"}])
    cohort = pd.DataFrame(journeys)[["patient_id", "patient_journey_id"]].assign(index_date=INDEX)
    covered = dict.fromkeys(FEATURE_TABLES, Coverage(dt.date(2023, 1, 1)))
    return setting_of(cohort, tables, brand="Remibrutinib", covered=covered, source_lag_days=0)


def test_candidates_are_counted_before_the_index_and_small_counts_are_left_out(setting):
    found = {(one.column, one.code): one.patients for one in suggest(setting)}
    assert found == {
        ("event_type", "diagnosis"): "20",
        # One patient has none: how many have one would say so.
        ("event_type", "prescription"): "suppressed",
        ("icd_codes", "L501"): "20",
        ("drug_ndc", "00078094661"): "suppressed",
    }
    assert suggest(setting, min_share=0.8, days=4) == ()


def test_a_suggested_feature_can_be_written_and_counts_the_same_patients(setting, tmp_path):
    content = {
        "keys": ["patient_id"],
        "description": "x",
        "features": [one.feature for one in suggest(setting)],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    view = read_feature_file(tmp_path / "mine.yaml", load_vocabulary(CHECKOUT / "config"))
    frame = compute_view(view, setting.entities(view), **setting.known)
    having = {name: int((frame[name] > 0).sum()) for name in view.feature_names}
    assert having == {
        "n_diagnosis_365d": 20, "n_prescription_365d": 39, "n_icd10cm_l501_365d": 20, "n_ndc_00078094661_365d": 39,
    }  # fmt: skip


def test_a_value_is_explained_by_the_rows_that_count_and_those_that_do_not(setting):
    answer = explain_feature(setting, "prior_prescriptions", "P00")
    rows = [(row["day"], row["verdict"]) for row in answer.rows if row["holds"].startswith("prescription")]
    assert answer.value == sum(verdict == "counts" for _, verdict in rows)
    assert ("2024-01-05", "counts") in rows and ("2024-01-08", "known later") in rows
    others = {row["verdict"] for row in answer.rows if not row["holds"].startswith("prescription")}
    assert others == {"not what is asked for", "known later"}
    market = explain_feature(setting, "brand_share_90d", "P00")
    assert market.entity == {"brand": "Remibrutinib", "region": "south"}
    with pytest.raises(InputError, match="P99 is not a patient of the cohort"):
        explain_feature(setting, "prior_prescriptions", "P99")
    with pytest.raises(InputError, match="Did you mean 'prior_prescriptions'"):
        explain_feature(setting, "prior_prescription", "P00")


def test_a_value_over_days_that_were_never_loaded_is_explained_by_them(setting):
    day = INDEX - dt.timedelta(days=30)
    covered = setting.covered | {"treatment_events": Coverage(dt.date(2023, 1, 1), unobserved=((day, day),))}
    answer = explain_feature(dataclasses.replace(setting, covered=covered), "prior_prescriptions", "P00")
    assert answer.value is None and answer.unknown_because.startswith("treatment_events covers 2023-01-01 to")
    assert "without 2023-12-11 to 2023-12-11 (never loaded)" in answer.unknown_because


def test_a_preview_has_what_is_asked_for_and_no_small_cell(setting):
    found = {
        one.feature: one for one in preview(setting, ["prior_prescriptions", "brand_share_90d", "gender"])
    }
    assert set(found) == {"prior_prescriptions", "brand_share_90d", "gender"}
    assert (found["prior_prescriptions"].rows, found["prior_prescriptions"].missing) == (COUNT, 0)
    # One market: a mean of one value would be that value.
    assert found["brand_share_90d"].rows == 1 and found["brand_share_90d"].mean is None


def test_the_list_says_how_each_is_calculated_and_one_patient_needs_permission(monkeypatch):
    done = CliRunner().invoke(main, ["features", "list", "--json"])
    assert done.exit_code == 0 and '"calculation": "patient_journeys.age_at_diagnosis as of' in done.stdout
    monkeypatch.delenv("E2I_ALLOW_PATIENT_LEVEL", raising=False)
    refused = CliRunner().invoke(main, ["features", "explain", "prior_prescriptions", "P00"])
    assert refused.exit_code == 4 and "E2I_ALLOW_PATIENT_LEVEL=1" in refused.stderr
