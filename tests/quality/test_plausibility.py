"""Plausibility: each planted implausibility is found alone and together, with its verdict; clean data has none."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality import check_table
from e2i_dagster.quality.plausibility import check_plausibility
from e2i_dagster.synthetic.generate import generate
from e2i_dagster.tables import RAW_TABLES, related_tables

END = dt.date(2024, 12, 31)
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def drawn() -> Tables:
    return dict(generate(n_hcps=200, n_patients=400, n_treatments=1_200, seed=7))


def _event(tables: Tables, **cells: Any) -> Tables:
    """The third treatment event changed."""
    events = tables["treatment_events"].copy()
    for name, value in cells.items():
        events.loc[events.index[2], name] = value
    return {**tables, "treatment_events": events}


def _journey_of_the_event(tables: Tables, **cells: Any) -> Tables:
    journeys = tables["patient_journeys"].copy()
    row = journeys["patient_journey_id"] == tables["treatment_events"]["patient_journey_id"].iloc[2]
    for name, value in cells.items():
        journeys.loc[row, name] = value
    return {**tables, "patient_journeys": journeys}


def _clinical(tables: Tables, column: str, value: Any) -> Tables:
    clinical = tables["patient_clinical"].copy()
    clinical.loc[clinical.index[5], column] = value
    return {**tables, "patient_clinical": clinical}


def _another_patient(tables: Tables) -> Tables:
    events = tables["treatment_events"]
    other = events.loc[events["patient_id"] != events["patient_id"].iloc[2], "patient_id"].iloc[0]
    return _event(tables, patient_id=other)


def _observed_until(tables: Tables) -> Tables:
    clinical = tables["patient_clinical"].copy()
    event = tables["treatment_events"].iloc[2]
    row = clinical["patient_journey_id"] == event["patient_journey_id"]
    clinical.loc[row, "last_observation_date"] = event["event_date"] - pd.Timedelta(days=1)
    return {**tables, "patient_clinical": clinical}


def _spelled(tables: Tables) -> Tables:
    events = tables["treatment_events"].copy()
    common = events["data_source"].mode().iloc[0]
    rows = events.index[events["data_source"] == common][:3]
    events.loc[rows[0], "data_source"] = common.upper()
    events.loc[rows[1], "data_source"] = f" {common} "
    return {**tables, "treatment_events": events}


def _ended_before(tables: Tables) -> Tables:
    day = tables["treatment_events"]["event_date"].iloc[2] - pd.Timedelta(days=1)
    return _journey_of_the_event(tables, journey_end_date=day)


Plant = Callable[[Tables], Tables]
PLANTED: list[tuple[str, str, set[tuple[str, str]], Plant]] = [
    ("orphan", "treatment_events", {("orphan_key", "hcp_id")}, lambda t: _event(t, hcp_id="HCP99999999")),
    ("patient", "treatment_events", {("other_patient", "patient_id")}, _another_patient),
    (
        "unknown patient",
        "treatment_events",
        {("orphan_key", "patient_id"), ("other_patient", "patient_id")},
        lambda t: _event(t, patient_id="PAT99999999"),
    ),
    (
        "birth",
        "treatment_events",
        {
            ("before_birth", "event_date"),
            ("before_journey", "event_date"),
            ("outside_observation", "event_date"),
        },
        lambda t: _event(t, event_date=pd.Timestamp("1900-01-01")),
    ),
    (
        "start",
        "treatment_events",
        {("before_journey", "event_date")},
        lambda t: _journey_of_the_event(
            t, journey_start_date=t["treatment_events"]["event_date"].iloc[2] + pd.Timedelta(days=1)
        ),
    ),
    ("end", "treatment_events", {("after_journey", "event_date")}, _ended_before),
    ("observed", "treatment_events", {("outside_observation", "event_date")}, _observed_until),
    (
        "future",
        "triggers",
        {("future", "delivery_timestamp")},
        lambda t: {
            **t,
            "triggers": t["triggers"].assign(
                delivery_timestamp=t["triggers"]["delivery_timestamp"].mask(
                    t["triggers"].index == t["triggers"].index[1], pd.Timestamp("2025-02-01", tz="UTC")
                )
            ),
        },
    ),
    (
        "ldh zero",
        "patient_clinical",
        {("clinical_range", "ldh_ratio")},
        lambda t: _clinical(t, "ldh_ratio", 0.0),
    ),
    ("egfr", "patient_clinical", {("clinical_range", "egfr")}, lambda t: _clinical(t, "egfr", 230.0)),
    ("ldh unit", "patient_clinical", {("unit", "ldh_ratio")}, lambda t: _clinical(t, "ldh_ratio", 480.0)),
    (
        "proteinuria unit",
        "patient_clinical",
        {("unit", "proteinuria_g_day")},
        lambda t: _clinical(t, "proteinuria_g_day", 2100.0),
    ),
    ("egfr unit", "patient_clinical", {("unit", "egfr")}, lambda t: _clinical(t, "egfr", 1.4)),
    ("spelling", "treatment_events", {("spelling", "data_source")}, _spelled),
]


def _found(tables: Tables, table: str, policy: QualityPolicy) -> set[tuple[str, str]]:
    faults = check_plausibility(tables[table], table, policy, references=tables, as_of=END)
    return {(fault.rule, fault.column) for fault in faults}


@pytest.mark.parametrize(
    ("table", "expected", "plant"), [case[1:] for case in PLANTED], ids=[c[0] for c in PLANTED]
)
def test_a_planted_implausibility_is_found_alone(
    drawn: Tables, policy: QualityPolicy, table: str, expected: set[tuple[str, str]], plant: Plant
) -> None:
    assert _found(drawn, table, policy) == set()
    assert _found(plant(drawn), table, policy) == expected


def test_all_are_found_together_and_only_broken_references_block(
    drawn: Tables, policy: QualityPolicy
) -> None:
    tables = _spelled(_clinical(_clinical(drawn, "egfr", 230.0), "ldh_ratio", 480.0))
    tables = _event(tables, event_date=pd.Timestamp("1900-01-01"), hcp_id="HCP99999999")
    report = check_table(
        "treatment_events", tables["treatment_events"], policy=policy, as_of=END, references=tables
    )
    assert {one.rule for one in report.findings if one.layer == "plausibility"} == {
        "plausibility_orphan_key",
        "plausibility_before_birth",
        "plausibility_before_journey",
        "plausibility_outside_observation",
        "plausibility_spelling",
    }
    assert {one.rule for one in report.blocking} == {"plausibility_orphan_key"}
    clinical = check_table(
        "patient_clinical", tables["patient_clinical"], policy=policy, as_of=END, references=tables
    )
    found = {(one.rule, one.column, one.severity) for one in clinical.findings}
    assert ("plausibility_clinical_range", "egfr", "convention") in found
    assert ("plausibility_unit", "ldh_ratio", "convention") in found
    assert ("schema_range", "ldh_ratio", "fatal") in found  # 480 is beyond what the table accepts, too


def test_each_clinical_scale(policy: QualityPolicy) -> None:
    """Published scales: UAS7 0 to 42, ECOG 0 to 5; an LDH ratio above 0; no negative proteinuria; eGFR to 200."""
    scales = policy.settings.plausibility.clinical_ranges["patient_clinical"]
    inside = {
        "urticaria_severity_uas7": [0, 42],
        "ldh_ratio": [0.01],
        "proteinuria_g_day": [0],
        "egfr": [0, 200],
        "ecog_performance_status": [0, 5],
    }
    outside = {
        "urticaria_severity_uas7": [-1, 42.5],
        "ldh_ratio": [0, -0.5],
        "proteinuria_g_day": [-0.1],
        "egfr": [-1, 200.1],
        "ecog_performance_status": [-1, 6, 1.5],
    }
    assert set(scales) == set(inside)
    for name, scale in scales.items():
        assert scale.holds(np.asarray(inside[name], dtype=float)).all(), name
        assert not scale.holds(np.asarray(outside[name], dtype=float)).any(), name


def test_spellings_are_compared_within_a_partition(drawn: Tables, policy: QualityPolicy) -> None:
    events = drawn["treatment_events"].reset_index(drop=True)
    codes = np.arange(len(events)) % 2
    events["data_source"] = np.where(codes == 0, "Komodo", "KOMODO")
    apart = check_plausibility(events, "treatment_events", policy, codes=codes)
    assert apart == ()
    together = check_plausibility(events, "treatment_events", policy)
    assert [(fault.rule, fault.column) for fault in together] == [("spelling", "data_source")]
    assert len(together[0].positions) == len(events) // 2


def test_rows_without_a_journey_are_compared_with_all_journeys_of_the_patient(policy: QualityPolicy) -> None:
    journeys = pd.DataFrame(
        {
            "patient_journey_id": ["a", "b", "c"],
            "patient_id": ["p", "p", "q"],
            "journey_start_date": pd.to_datetime(["2024-03-01", "2024-06-01", "2024-03-01"]),
            "journey_end_date": pd.to_datetime(["2024-04-01", None, "2024-04-01"]),
            "age_at_diagnosis": [40, 40, None],
        }
    )
    triggers = pd.DataFrame(
        {
            "trigger_id": list("123456"),
            "patient_id": ["p", "p", "p", "q", "q", None],
            "trigger_timestamp": pd.to_datetime(
                ["2024-02-28", "2024-05-01", "2024-12-01", "2024-04-01T23:00", "2024-04-02", "2024-01-01"],
                utc=True,
                format="ISO8601",
            ),
        }
    )
    found = {
        fault.rule: fault.positions.tolist()
        for fault in check_plausibility(
            triggers, "triggers", policy, references={"patient_journeys": journeys}, as_of=END
        )
    }
    assert found == {"before_journey": [0], "after_journey": [4]}


def test_what_needs_a_table_that_is_not_there_is_not_asked(drawn: Tables, policy: QualityPolicy) -> None:
    broken = _event(drawn, hcp_id="HCP99999999", event_date=pd.Timestamp("1900-01-01"))
    assert check_plausibility(broken["treatment_events"], "treatment_events", policy, as_of=END) == ()
    assert related_tables("triggers") == ("hcp_profiles", "patient_clinical", "patient_journeys")
    assert related_tables("business_metrics") == ()


def test_empty_odd_and_all_null_frames(drawn: Tables, policy: QualityPolicy) -> None:
    events = drawn["treatment_events"]
    for frame in (
        events.iloc[:0],
        events.iloc[:1],
        events.assign(patient_journey_id=None, patient_id=None, event_date=pd.NaT, data_source=None),
        pd.DataFrame({'x"; DROP TABLE y; --': [1], "a b": [[1]], "event_date": ["soon"]}),
        events.assign(data_source=[1, "x", None] * (len(events) // 3)),
    ):
        assert check_plausibility(frame, "treatment_events", policy, references=drawn, as_of=END) == ()


def test_clean_draws_of_every_process_have_no_finding(policy: QualityPolicy) -> None:
    """Each table twice; benchmarks/quality.py asks all layers of every table of 50 draws."""
    for seed, dgp in enumerate(
        ("simple_linear", "confounded", "heterogeneous", "time_series", "selection_bias")
    ):
        tables = dict(generate(dgp, n_hcps=60, n_patients=120, n_treatments=400, seed=seed))
        for name in [table for place, table in enumerate(RAW_TABLES) if (place + seed) % 5 < 2]:
            faults = check_plausibility(tables[name], name, policy, references=tables, as_of=END)
            assert faults == (), (seed, name, [(one.rule, one.column) for one in faults])
