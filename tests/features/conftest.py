"""Small raw tables written by hand or drawn at random, for the tests of features."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.tables import frame_columns

Rows = list[dict[str, Any]]
READ = (
    "hcp_profiles",
    "patient_journeys",
    "treatment_events",
    "engagement_events",
    "triggers",
    "business_metrics",
)


def build_tables(**rows: Rows) -> dict[str, pd.DataFrame]:
    """Every table that features read, with all its columns; what is not given is null or empty."""
    return {name: pd.DataFrame(rows.get(name, []), columns=list(frame_columns(name))) for name in READ}


@pytest.fixture(scope="session")
def hand_written() -> Callable[..., dict[str, pd.DataFrame]]:
    """``build_tables``."""
    return build_tables


@pytest.fixture(scope="session")
def drawn_tables() -> Mapping[str, pd.DataFrame]:
    """200 patients of 40 professionals with events from 2023 to the end of 2024, drawn with a seed."""
    draw = np.random.default_rng(7)
    start = dt.date(2023, 1, 1)

    def days(count: int) -> list[dt.date]:
        return [start + dt.timedelta(days=int(day)) for day in draw.integers(0, 731, count)]

    hcps = [f"HCP{number:08d}" for number in range(40)]
    brands = ["Remibrutinib", "Fabhalta", "competitor"]
    journeys: Rows = [
        {
            "patient_journey_id": f"PJ{number:016d}",
            "patient_id": f"PAT{number:08d}",
            "journey_start_date": start,
            "age_at_diagnosis": int(draw.integers(18, 90)),
            "gender": str(draw.choice(["F", "M"])),
            "insurance_type": "commercial",
            "geographic_region": str(draw.choice(["south", "west"])),
            "disease_severity": round(float(draw.uniform(0, 10)), 2) if number % 9 else None,
            "academic_hcp": int(draw.integers(0, 2)),
            "hcp_id": str(draw.choice(hcps)),
            "brand": "Remibrutinib",
        }
        for number in range(200)
    ]

    def owner() -> dict[str, Any]:
        journey = journeys[int(draw.integers(0, 180))]  # the last twenty have no event
        return {key: journey[key] for key in ("patient_journey_id", "patient_id", "hcp_id")}

    kinds = ["diagnosis", "prescription", "lab_test", "procedure", "consultation", "hospitalization"]
    treatments = [
        owner()
        | {
            "event_date": day,
            "event_type": str(draw.choice(kinds)),
            "event_subtype": str(draw.choice(["new_rx", "switch"])),
            "brand": str(draw.choice(brands)),
        }
        for day in days(900)
    ]
    contacts = []
    for day in days(500):
        contact = owner()
        del contact["patient_id"]
        contacts.append(
            contact
            | {
                "engagement_date": day,
                "quality_score": float(draw.uniform(0, 10)),
                "duration_minutes": float(draw.integers(1, 60)),
                "channel": str(draw.choice(["email", "portal", "rep_visit"])),
                "brand": str(draw.choice(brands)),
            }
        )
    triggers = [
        owner()
        | {
            "trigger_timestamp": pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=int(draw.integers(0, 24))),
            "priority": str(draw.choice(["critical", "high", "low"])),
            "confidence_score": float(draw.uniform()),
        }
        for day in days(300)
    ]
    metrics = [
        {
            "metric_id": f"M{number}",
            "metric_date": day,
            "metric_type": str(draw.choice(["market_share", "trx"])),
            "brand": str(draw.choice(brands)),
            "region": str(draw.choice(["south", "west"])),
            "value": float(draw.uniform()),
        }
        for number, day in enumerate(days(150))
    ]
    profiles = [{"hcp_id": key, "specialty": "allergist", "practice_type": "solo"} for key in hcps]
    return build_tables(
        hcp_profiles=profiles,
        patient_journeys=journeys,
        treatment_events=treatments,
        engagement_events=contacts,
        triggers=triggers,
        business_metrics=metrics,
    )


@pytest.fixture(scope="session")
def cohort(drawn_tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All 200 patients, indexed from July 2023 on; the late ones are to be scored."""
    journeys = drawn_tables["patient_journeys"]
    frame = journeys[["patient_id", "patient_journey_id", "hcp_id"]].copy()
    offsets = (np.arange(len(frame)) * 37) % 540
    frame["index_date"] = pd.Series(pd.Timestamp("2023-07-01") + pd.to_timedelta(offsets, "D"))
    scoring = (frame["index_date"] > "2024-09-17").to_numpy()
    frame["label"] = pd.array((np.arange(len(frame)) % 3 == 0).astype(int), dtype="Int64")
    frame.loc[scoring, "label"] = pd.NA
    frame["set"] = np.where(scoring, "scoring", "labelled")
    frame.loc[5, "hcp_id"] = None
    return frame
