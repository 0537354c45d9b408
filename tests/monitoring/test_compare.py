"""Drift is measured against the rows that the model was trained on, and its answers for validation rows."""

import datetime as dt

import pytest
from model_rows import numbers, rows, visible

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.compare import compare_with_training
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.selection import LabelledRows
from e2i_dagster.training import train


@pytest.fixture(scope="module")
def trained():
    """Validation patients are much sicker than those of training."""
    later = numbers(rows(500, 1))
    sicker = later.features.assign(severity=later.features["severity"] + 3)
    seen = visible(numbers(rows(500)), LabelledRows(sicker, later.target + 6))
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    return model, seen


def severities(trained, features, predictions):
    model, seen = trained
    report = compare_with_training(
        model,
        seen,
        features.assign(prediction=predictions),
        policy=DriftPolicy.load(CHECKOUT / "config"),
        scope="s",
        day=dt.date(2025, 1, 2),
        model_id="m/1",
    )
    return {item.name: item.severity for item in report.features}


def test_training_rows_and_answers_for_validation_rows_are_the_reference(trained):
    model, seen = trained
    answers = model.scores(seen.validation.features)
    assert set(severities(trained, seen.train.features, answers).values()) == {"none"}


def test_requests_like_the_validation_rows_drift(trained):
    model, seen = trained
    found = severities(trained, seen.validation.features, model.scores(seen.validation.features))
    assert found.pop("severity") == "critical"
    assert set(found.values()) == {"none"}


def test_answers_like_those_for_training_rows_drift(trained):
    model, seen = trained
    found = severities(trained, seen.train.features, model.scores(seen.train.features))
    assert found.pop("prediction") == "critical"
    assert set(found.values()) == {"none"}
