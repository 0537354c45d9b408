"""A small two-arm experiment of HCPs, and its file folder as policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.policy_files.environment import config_folder

DESIGN: Mapping[str, Any] = {
    "name": "example",
    "title": "An example",
    "hypothesis": "More of the treated respond than of the others.",
    "brand": "Remibrutinib",
    "owner": "analytics",
    "unit": "hcp",
    "arms": [{"name": "usual", "ratio": 0.5, "control": True}, {"name": "treated", "ratio": 0.5}],
    "metrics": {
        "primary": {"name": "responded", "kind": "proportion", "baseline": 0.3, "minimum_effect": 0.2},
        "secondary": [{"name": "complained", "kind": "proportion", "direction": "decrease"}],
    },
    "eligibility": {
        "inclusion_criteria": [{"field": "years", "operator": ">=", "value": 3}],
        "exclusion_criteria": [{"field": "in_other_study", "operator": "==", "value": True}],
    },
    "randomization": {"method": "stratified", "strata": ["region"], "block_sizes": [2, 4], "seed": 1},
    "looks": {"rule": "lan_demets_obf", "information_fractions": [0.5, 1.0]},
    "stopping": {"futility": {"conditional_power_below": 0.1}},
    "sample_size": {"total": 200, "per_day": 20},
    "dates": {"start": "2025-01-06", "end": "2025-03-31"},
    "subgroups": ["region"],
}


@pytest.fixture
def spec() -> ExperimentSpec:
    return ExperimentSpec.model_validate(DESIGN)


@pytest.fixture(scope="session")
def lifecycle() -> LifecyclePolicy:
    return LifecyclePolicy.load(config_folder())


@pytest.fixture
def warehouse(database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    """An empty warehouse, and the key of randomization in the environment."""
    monkeypatch.setenv("E2I_RANDOMIZATION_KEY", "k" * 40)
    return database


@pytest.fixture
def running(warehouse: sa.Engine, lifecycle: LifecyclePolicy) -> Callable[..., str]:
    """Takes a design to the state running; returns its name."""
    from e2i_dagster.experiments.conduct import store

    def start(given: ExperimentSpec) -> str:
        with warehouse.begin() as connection:
            store.register(connection, given, actor="carla")
            step = {"policy": lifecycle, "reason": "test"}
            store.transition(connection, given.name, "in_review", actor="carla", **step)
            store.approve(connection, given.name, role="analytics_lead", actor="anna", **step)
            store.approve(connection, given.name, role="brand_lead", actor="ben", **step)
            for state in ("approved", "scheduled", "running"):
                store.transition(connection, given.name, state, actor="carla", **step)
        return given.name

    return start


def screening(count: int = 240, seed: int = 0) -> pd.DataFrame:
    """Units of the small experiment, one every half hour; about a fifth is not eligible."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "unit_id": [f"HCP{number:08d}" for number in range(count)],
            "screened_at": pd.Timestamp("2025-01-06", tz="UTC")
            + pd.to_timedelta(np.arange(count) * 30, unit="min"),
            "region": rng.choice(["north", "south"], count),
            "years": rng.integers(1, 20, count),
            "in_other_study": rng.random(count) < 0.1,
        }
    )


def consents(units: pd.Series) -> pd.DataFrame:
    """A consent of every unit, a day after the first screening."""
    return pd.DataFrame(
        {
            "unit_id": units,
            "event_type": "consented",
            "occurred_at": pd.Timestamp("2025-01-20", tz="UTC"),
            "consent_method": "email",
            "consent_version": "1.0",
        }
    )


def outcomes(assignments: pd.DataFrame, rates: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    """Responses by arm with the given rates, 30 days after the assignment."""
    rng = np.random.default_rng(seed)
    chance = assignments["variant"].map(rates).astype(float)
    return pd.DataFrame(
        {
            "unit_id": assignments["unit_id"],
            "metric": "responded",
            "value": (rng.random(len(assignments)) < chance).astype(float),
            "observed_at": assignments["assigned_at"] + pd.Timedelta(days=30),
        }
    )
