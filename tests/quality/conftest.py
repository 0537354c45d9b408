"""Small clean tables by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.policy_files.environment import CHECKOUT


@pytest.fixture(scope="session")
def policy() -> QualityPolicy:
    return QualityPolicy.load(CHECKOUT / "config")


@pytest.fixture
def journeys() -> pd.DataFrame:
    """40 clean journeys."""
    n = 40
    return pd.DataFrame(
        {
            "patient_journey_id": [f"PJ{i:016d}" for i in range(n)],
            "patient_id": [f"PAT{i:08d}" for i in range(n)],
            "journey_start_date": pd.Timestamp("2024-01-10"),
            "journey_end_date": [pd.NaT, pd.Timestamp("2024-09-01")] * (n // 2),
            "primary_diagnosis_code": "L50.1",
            "brand": ["Remibrutinib", "Fabhalta", "Kisqali", "other"] * (n // 4),
            "age_group": "35-44",
            "age_at_diagnosis": 40,
            "gender": ["F", "M"] * (n // 2),
            "geographic_region": "south",
            "insurance_type": "commercial",
            "data_source": "Komodo",
            "hcp_id": [f"HCP{i % 7:08d}" for i in range(n)],
            "disease_severity": np.linspace(0, 10, n),
            "academic_hcp": [0, 1] * (n // 2),
        }
    )


@pytest.fixture
def events() -> pd.DataFrame:
    """360 clean treatment events, 120 in each of three months over a change of year."""
    n = 360
    months = np.repeat(["2023-12", "2024-01", "2024-02"], 120)
    days = pd.to_datetime(pd.Series(months) + "-01") + pd.to_timedelta(np.arange(n) % 28, unit="D")
    return pd.DataFrame(
        {
            "treatment_event_id": [f"TE{i:025d}" for i in range(n)],
            "patient_journey_id": [f"PJ{i % 50:016d}" for i in range(n)],
            "patient_id": [f"PAT{i % 50:08d}" for i in range(n)],
            "hcp_id": "HCP00000001",
            "event_date": days,
            "event_type": ["prescription", "consultation", "lab_test"] * (n // 3),
            "brand": "Remibrutinib",
            "cost": 12.5,
            "data_source": "Komodo",
        }
    )


@pytest.fixture
def months(events: pd.DataFrame) -> pd.Series:
    return events["event_date"].dt.strftime("%Y-%m")
