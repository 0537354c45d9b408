"""Days of which no rows are kept are unknown: for a lookback, a washout, and any absence, on every engine."""

import pandas as pd
import pytest

from e2i_dagster.cohorts import build_cohort, count_cohort, write_cohort
from e2i_dagster.config.cohort import CohortDefinition

WASHOUT = {"washout": {"event": "rx", "days": 180}}
PRESENT = {"has_event": {"event": "rx", "within": [-180, -1]}}


def definition(*criteria, lookback=180):
    return CohortDefinition.model_validate(
        {
            "brand": "Examplumab",
            "indication": "demo",
            "inclusion_criteria": [{"field": "age", "operator": ">=", "value": 18}, *criteria],
            "temporal_requirements": {"lookback_days": lookback, "followup_days": 0},
        }
    )


def patients(**index_dates):
    return pd.DataFrame(
        {
            "patient_id": list(index_dates),
            "patient_journey_id": [f"J{name}" for name in index_dates],
            "age": 40,
            "diagnosis_date": pd.to_datetime(list(index_dates.values())),
            "first_observation_date": pd.Timestamp("2020-01-01"),
            "last_observation_date": pd.Timestamp("2024-12-31"),
        }
    )


#: 180 days before the first lie in full after 2022-01-01; of the second one day does not.
FRAME = patients(whole="2022-06-30", reaches="2022-06-29", late="2023-06-01")


@pytest.mark.parametrize("engine", ["pandas", "duckdb", "file"])
def test_a_lookback_before_the_kept_days_is_unknown(engine, tmp_path):
    rules = definition()
    known = {"data_start": "2022-01-01", "data_end": "2024-12-31"}
    if engine == "file":
        path = tmp_path / "patients.parquet"
        FRAME.to_parquet(path)
        attrition = write_cohort(rules, path, folder=tmp_path / "written", **known)
        kept = set(pd.read_parquet(tmp_path / "written" / "eligible.parquet")["patient_id"])
        pd.testing.assert_frame_equal(attrition, count_cohort(rules, path, **known))
    else:
        built = build_cohort(rules, FRAME, engine=engine, **known)
        kept, attrition = set(built.eligible["patient_id"]), built.attrition
    assert kept == {"whole", "late"}
    lookback = attrition.set_index("criterion").loc["lookback"]
    assert (lookback["removed"], lookback["unknown"]) == (1, 1)
    # Without a first kept day the dates of the patient frame alone decide, as before.
    assert len(build_cohort(rules, FRAME, data_end="2024-12-31").eligible) == 3


@pytest.mark.parametrize(
    ("criterion", "kept"),
    [(WASHOUT, {"whole"}), (PRESENT, {"late", "seen"})],
    ids=["absence", "presence"],
)
def test_a_washout_over_days_that_are_not_kept_is_unknown_and_presence_is_proved(criterion, kept):
    frame = patients(whole="2022-06-30", reaches="2022-06-29", seen="2022-06-29", late="2023-06-01")
    events = pd.DataFrame(
        {
            "patient_id": ["late", "seen"],
            "event_type": "rx",
            "event_date": pd.to_datetime(["2023-05-01", "2022-03-01"]),
        }
    )
    built = build_cohort(
        definition(criterion, lookback=0), frame, events, data_start="2022-01-01", data_end="2024-12-31"
    )
    assert set(built.eligible["patient_id"]) == kept
    assert built.attrition["unknown"].sum() == 1
