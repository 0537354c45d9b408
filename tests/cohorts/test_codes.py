"""All spellings of one code give the same cohort, on arrays and in a plan."""

import pandas as pd
import pytest

from e2i_dagster.cohorts import build_cohort
from e2i_dagster.config.cohort import CohortDefinition, Criterion

NDC = ["00078-0946-61", "00078094661", "0078-0946-61", " 00078-0946-61 "]
SPELLINGS = [
    ("ndc", NDC, ["0078094661"]),
    ("ndc", ["12345-0678-90", "12345-678-90", "12345067890"], ["1234567890"]),
    ("ndc", ["12345-6789-01", "12345-6789-1", "12345678901"], []),
    ("icd10cm", ["L50.1", "l501", " L50.1 "], []),
    ("icd9cm", ["708.1", "7081"], []),
    ("cpt", ["0001F", "0001f "], []),
]


@pytest.mark.parametrize("engine", [None, "duckdb"])
@pytest.mark.parametrize(("system", "same", "undecided"), SPELLINGS)
def test_all_spellings_of_a_code_give_the_same_cohort(system, same, undecided, engine):
    codes = [*same, *undecided, "99999-9999-99"]
    patients = pd.DataFrame(
        {
            "patient_id": [f"P{i}" for i in range(len(codes))],
            "patient_journey_id": [f"J{i}" for i in range(len(codes))],
            "x": codes,
            "diagnosis_date": pd.Timestamp("2023-06-01"),
            "first_observation_date": pd.Timestamp("2022-01-01"),
            "last_observation_date": pd.Timestamp("2024-06-01"),
        }
    )
    wild = {NDC[0]: ["00078-*", "0078-0946-*", "00078.*"]}.get(same[0], [])
    for written in [*same, *wild]:
        rule = {"field": "x", "operator": "in", "value": [written], "code_system": system}
        definition = CohortDefinition.model_validate(
            {
                "brand": "b",
                "indication": "i",
                "title": "t",
                "version": "1.0.0",
                "inclusion_criteria": [rule],
                "temporal_requirements": {
                    "lookback_days": 0,
                    "followup_days": 0,
                    "index_date_field": "diagnosis_date",
                },
            }
        )
        cohort = build_cohort(definition, patients, engine=engine)
        assert sorted(cohort.eligible["patient_id"]) == [f"P{i}" for i in range(len(same))]
        assert cohort.attrition["unknown"].sum() == len(undecided)


def test_a_part_of_a_drug_code_is_refused_and_its_beginning_is_not():
    shared = {"field": "drug_ndc", "description": "a drug", "code_system": "ndc"}
    with pytest.raises(ValueError, match="its spellings differ: use in"):
        Criterion(operator="contains", value="0946-61", **shared)
    assert Criterion(operator="in", value=["0078-0946-*"], **shared).values == ("0078-0946-*",)
