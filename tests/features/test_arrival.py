"""What training joins on an index date is what a live look on that day has, however late rows arrive."""

import datetime as dt
import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_views import FEATURE_TABLES, feature_names
from e2i_dagster.features.build import build_feature_files
from e2i_dagster.features.compute import compute_view
from e2i_dagster.features.frame import training_frame
from e2i_dagster.features.snapshots import spine
from e2i_dagster.features.store import ScopeStore, StoreSettings
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.versions.coverage import Coverage
from tests.features.conftest import build_tables

INDEX = dt.date(2024, 5, 15)
LAG = 14
POLICY = FeastMaterializationPolicy.load(CHECKOUT / "config").snapshots
DATED = {
    "engagement_events": "engagement_date",
    "triggers": "trigger_timestamp",
    "business_metrics": "metric_date",
}


def at(days_after_index: int) -> pd.Timestamp:
    """Noon of that day, UTC."""
    return pd.Timestamp(INDEX, tz="UTC") + pd.Timedelta(days=days_after_index, hours=12)


@pytest.fixture(scope="module")
def late_tables(drawn_tables):
    """Events arrive up to 60 days later; patients' rows before, on or after the index date, or nobody says when."""
    draw = np.random.default_rng(3)
    events = drawn_tables["treatment_events"].copy()
    delay = pd.to_timedelta(draw.integers(0, 61, len(events)), "D")
    arrived = (pd.to_datetime(events["event_date"]) + delay).dt.tz_localize("UTC")
    events["source_timestamp"] = arrived.mask(draw.random(len(events)) < 0.2)
    journeys = drawn_tables["patient_journeys"].copy()
    journeys["source_timestamp"] = [
        (at(-90), at(0), at(1), at(40), pd.NaT)[number % 5] for number in range(len(journeys))
    ]
    return dict(drawn_tables) | {"treatment_events": events, "patient_journeys": journeys}


def delivered(tables):
    """The rows that there are on the index date."""
    day = pd.Timestamp(INDEX)
    live = dict(tables)
    journeys, events = tables["patient_journeys"], tables["treatment_events"]
    live["patient_journeys"] = journeys[~(journeys["source_timestamp"] > at(0)).to_numpy()]
    happened = pd.to_datetime(events["event_date"])
    known = (
        events["source_timestamp"]
        .dt.tz_localize(None)
        .dt.normalize()
        .fillna(happened + pd.Timedelta(days=LAG))
    )
    live["treatment_events"] = events[(known < day).to_numpy()]
    for table, column in DATED.items():
        dates = pd.to_datetime(tables[table][column], utc=True).dt.tz_localize(None).dt.normalize()
        live[table] = tables[table][(dates + pd.Timedelta(days=LAG) < day).to_numpy()]
    return live


def labels(journeys):
    """The first 60 patients, all with one index date; who is in ``journeys``."""
    rows = journeys.head(60)[["patient_id", "patient_journey_id", "hcp_id"]].reset_index(drop=True)
    return rows.assign(index_date=pd.Timestamp(INDEX), set="labelled", label=0)


def built(patients, tables, folder, data_end):
    return build_feature_files(
        patients,
        tables,
        brand="Remibrutinib",
        covered=dict.fromkeys(FEATURE_TABLES, Coverage(dt.date(2023, 1, 1))),
        data_end=data_end,
        source_lag_days=LAG,
        policy=POLICY,
        folder=folder,
    )


def test_training_on_a_day_is_what_the_online_store_has_on_that_day(late_tables, tmp_path):
    everyone = labels(late_tables["patient_journeys"])
    rows = spine(everyone, late_tables, brand="Remibrutinib")
    with ScopeStore(StoreSettings(project="later", folder=tmp_path / "later")) as store:
        files = built(everyone, late_tables, tmp_path / "lake", dt.date(2024, 12, 31))
        training = training_frame(rows, store.apply(files)).set_index("patient_id")
    tables = delivered(late_tables)
    there = everyone[everyone["patient_journey_id"].isin(tables["patient_journeys"]["patient_journey_id"])]
    assert len(there) == 36
    with ScopeStore(StoreSettings(project="then", folder=tmp_path / "then")) as store:
        files = built(there, tables, tmp_path / "lake", INDEX - dt.timedelta(days=1))
        store.materialize(store.apply(files))
        keys = spine(there, tables, brand="Remibrutinib")[["patient_id", "hcp_id", "brand", "region"]]
        live = store.online(keys).set_index("patient_id")
    names = list(feature_names(feature_views()))
    pd.testing.assert_frame_equal(training.loc[live.index, names], live[names])
    assert live["hcp_prescriptions_180d"].gt(0).any() and live["treatment_count"].gt(0).any()
    # Whose row arrived later was not known that day.
    unknown = training.drop(live.index)
    assert len(unknown) == 24
    static = ["age_at_diagnosis", "gender", "geographic_region", "disease_severity", "specialty"]
    counts = ["treatment_count", "recent_touches", "triggers_180d", "brand_share_90d"]
    assert unknown[[*static, *counts]].isna().all(axis=None)


KEYS = {"patient_id": "P1", "patient_journey_id": "J1", "hcp_id": "H1", "brand": "Remibrutinib"}
BASE = {
    "hcp_profiles": [{"hcp_id": "H1", "specialty": "allergist"}],
    "patient_journeys": [
        KEYS
        | {
            "journey_start_date": INDEX - dt.timedelta(days=300),
            "geographic_region": "south",
            "age_at_diagnosis": 44,
            "source_timestamp": at(0),
        }
    ],
    "treatment_events": [
        KEYS
        | {
            "event_date": INDEX - dt.timedelta(days=40),
            "event_type": "prescription",
            "source_timestamp": at(-30),
        }
    ],
}

#: A row that is known after the index moment: arrived later, or too young for a source without arrival times.
too_young = st.integers(-LAG, 30)
known_later = st.one_of(
    st.builds(
        lambda number, start, arrival: (
            "patient_journeys",
            KEYS
            | {
                "patient_journey_id": f"J{number}",
                "patient_id": f"P{number - 3 if number > 3 else 1}",
                "journey_start_date": INDEX + dt.timedelta(days=start),
                "geographic_region": "south",
                "age_at_diagnosis": 80,
                "source_timestamp": at(arrival),
            },
        ),
        st.integers(2, 6),
        st.integers(-400, 30),
        st.integers(1, 60),
    ),
    st.builds(
        lambda day, arrival, kind: (
            "treatment_events",
            KEYS
            | {
                "event_date": INDEX + dt.timedelta(days=day),
                "event_type": kind,
                "source_timestamp": at(arrival),
            },
        ),
        st.integers(-400, 30),
        st.integers(0, 60),
        st.sampled_from(["prescription", "diagnosis", "lab_test", "hospitalization"]),
    ),
    st.builds(
        lambda day: (
            "treatment_events",
            KEYS | {"event_date": INDEX + dt.timedelta(days=day), "event_type": "prescription"},
        ),
        too_young,
    ),
    st.builds(
        lambda day: (
            "engagement_events",
            KEYS | {"engagement_date": INDEX + dt.timedelta(days=day), "quality_score": 9.0},
        ),
        too_young,
    ),
    st.builds(lambda day: ("triggers", KEYS | {"trigger_timestamp": at(day), "priority": "high"}), too_young),
    st.builds(
        lambda day: (
            "business_metrics",
            {
                "metric_id": f"M{day}",
                "metric_date": INDEX + dt.timedelta(days=day),
                "metric_type": "market_share",
                "brand": "Remibrutinib",
                "region": "south",
                "value": 0.5,
            },
        ),
        too_young,
    ),
)


def values(rows):
    """All features of the patient, the professional and the market the day before the index date."""
    tables = build_tables(**rows)
    asked = pd.DataFrame([KEYS | {"region": "south", "as_of": INDEX - dt.timedelta(days=1)}])
    frames = [compute_view(view, asked, tables, source_lag_days=LAG) for view in feature_views()]
    return pd.concat(
        [frame[list(view.feature_names)] for view, frame in zip(feature_views(), frames, strict=True)], axis=1
    )


@functools.cache
def base_values():
    return values(BASE)


@settings(max_examples=25, deadline=None)
@given(st.lists(known_later, min_size=1, max_size=8))
def test_rows_known_after_the_index_moment_change_no_feature(added):
    rows = {table: list(given) for table, given in BASE.items()}
    for table, row in added:
        rows.setdefault(table, []).append(row)
    pd.testing.assert_frame_equal(values(rows), base_values())


@pytest.mark.parametrize(("days", "volume"), [(LAG, 0), (LAG + 1, 1)])
def test_a_journey_without_arrival_counts_for_its_professional_after_the_source_lag(days, volume):
    begun = KEYS | {"journey_start_date": INDEX - dt.timedelta(days=days), "age_at_diagnosis": 44}
    seen = values(BASE | {"patient_journeys": [begun], "treatment_events": []}).iloc[0]
    assert seen["patient_volume"] == volume
    assert seen["age_at_diagnosis"] == 44
