"""Textbook estimators find the true effects in the tables, and naive ones do not where they must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from e2i_dagster.synthetic.generate import FULL, generate
from e2i_dagster.synthetic.processes import selection_probability
from e2i_dagster.synthetic.truth import Truth, true_effects

PATIENTS = 25_000


class Estimate(NamedTuple):
    """A point with its standard error."""

    value: float
    error: float

    def covers(self, truth: float) -> bool:
        return abs(self.value - truth) <= 1.96 * self.error

    def misses(self, truth: float, errors: float = 4.0) -> bool:
        return abs(self.value - truth) > errors * self.error


class Sample(NamedTuple):
    """What an analyst has: outcome, treatment, severity, academic centre, time and season."""

    y: np.ndarray
    t: np.ndarray
    severity: np.ndarray
    adjustment: np.ndarray
    truth: Truth


def sample(dgp: str, seed: int = 42) -> Sample:
    small: Mapping[str, int] = {
        name: 10 for name in FULL if name not in ("n_hcps", "n_patients", "n_treatments", "n_engagements")
    }
    tables = generate(dgp, n_hcps=60, n_patients=PATIENTS, seed=seed, **small)
    journeys = tables["patient_journeys"]
    severity = journeys["disease_severity"].to_numpy()
    columns = [severity, journeys["academic_hcp"].to_numpy(dtype=float)]
    if dgp == "time_series":
        days = tables["patient_clinical"]["diagnosis_date"] - pd.Timestamp("2022-01-01")
        years = (days.dt.days / 365.25).to_numpy()
        columns += [years, np.cos(2 * np.pi * years), np.sin(2 * np.pi * years), np.exp(-years)]
    return Sample(
        journeys["treatment_initiated"].to_numpy(dtype=float),
        (journeys["engagement_score"].to_numpy() >= 5).astype(float),
        severity,
        np.column_stack(columns),
        true_effects(dgp, seed=seed),
    )


def difference_in_means(data: Sample) -> Estimate:
    treated, control = data.y[data.t == 1], data.y[data.t == 0]
    variance = treated.var(ddof=1) / len(treated) + control.var(ddof=1) / len(control)
    return Estimate(float(treated.mean() - control.mean()), float(np.sqrt(variance)))


def augmented_weighting(
    y: np.ndarray, t: np.ndarray, x: np.ndarray, weights: np.ndarray | None = None
) -> Estimate:
    """Augmented inverse probability weighting (Robins, Rotnitzky and Zhao 1994), logistic working models.

    ``weights``: inverse probabilities of being observed; the mean is then the weighted one (Hajek).
    """
    w = np.ones_like(y) if weights is None else weights
    bands = np.column_stack([x, np.square(x), x[:, 0] > 7, x[:, 0] <= 4])
    bands = bands[:, bands.std(0) > 0]

    def fitted(features: np.ndarray, target: np.ndarray, rows: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=1e4, max_iter=500)
        scaled = (features - features.mean(0)) / features.std(0)
        model.fit(scaled[rows], target[rows], sample_weight=w[rows])
        return model.predict_proba(scaled)[:, 1]

    e = fitted(x, t, np.ones(len(t), dtype=bool))
    m1, m0 = fitted(bands, y, t == 1), fitted(bands, y, t == 0)
    scores = m1 - m0 + t * (y - m1) / e - (1 - t) * (y - m0) / (1 - e)
    value = float(np.average(scores, weights=w))
    error = float(np.sqrt(np.sum(np.square(w * (scores - value)))) / w.sum())
    return Estimate(value, error)


def test_simple_linear_by_the_difference_of_means():
    data = sample("simple_linear")
    assert difference_in_means(data).covers(data.truth.ate)


@pytest.mark.parametrize("dgp", ["confounded", "heterogeneous", "time_series"])
def test_confounded_processes_need_the_adjustment_set(dgp: str):
    data = sample(dgp)
    adjusted = augmented_weighting(data.y, data.t, data.adjustment)
    assert adjusted.covers(data.truth.ate)
    assert adjusted.error < 0.01
    assert difference_in_means(data).misses(data.truth.ate)


def test_selection_needs_weights_beside_the_adjustment_set():
    data = sample("selection_bias")
    weights = 1.0 / selection_probability(data.severity, data.y == 1)
    assert np.allclose(1.0 / weights, data.truth.patients["selection_probability"])
    corrected = augmented_weighting(data.y, data.t, data.adjustment, weights)
    assert corrected.covers(data.truth.ate)
    assert augmented_weighting(data.y, data.t, data.adjustment).misses(data.truth.ate)
    assert difference_in_means(data).misses(data.truth.ate)


def test_heterogeneous_effects_are_found_in_each_band():
    data = sample("heterogeneous")
    bands = {
        "low": data.severity <= 4,
        "medium": (data.severity > 4) & (data.severity <= 7),
        "high": data.severity > 7,
    }
    for name, rows in bands.items():
        adjusted = augmented_weighting(data.y[rows], data.t[rows], data.adjustment[rows])
        assert adjusted.covers(data.truth.ate_by_band[name]), name
    effects = data.truth.ate_by_band
    assert effects["medium"] >= 3 * effects["low"]
    assert effects["high"] >= 3 * effects["medium"]


def recovered(data: Sample, dgp: str) -> Estimate:
    """The textbook estimate of the process: its design decides what must be adjusted for."""
    if dgp == "simple_linear":
        return difference_in_means(data)
    weights = None
    if dgp == "selection_bias":
        weights = 1.0 / selection_probability(data.severity, data.y == 1)
    return augmented_weighting(data.y, data.t, data.adjustment, weights)


@pytest.mark.parametrize(
    "dgp", ["simple_linear", "confounded", "heterogeneous", "time_series", "selection_bias"]
)
def test_effects_are_recovered_whatever_the_seed(dgp: str):
    """Standardised errors of draws that nobody chose: none beyond 3.3, which one in a thousand would be."""
    errors = []
    for seed in (101, 102, 103):
        data = sample(dgp, seed)
        estimate = recovered(data, dgp)
        errors.append((estimate.value - data.truth.ate) / estimate.error)
    assert np.abs(errors).max() < 3.3
    assert abs(np.mean(errors)) < 3.3 / np.sqrt(len(errors))


def test_the_effect_of_time_series_decays():
    tables = generate("time_series", n_hcps=60, n_patients=4_000)
    truth = true_effects("time_series", n_patients=4_000)
    year = tables["patient_clinical"]["diagnosis_date"].dt.year
    by_year = truth.patients["cate"].groupby(year.to_numpy()).mean()
    assert by_year[2022] > 1.3 * by_year[2023] > 1.3 * by_year[2024]
