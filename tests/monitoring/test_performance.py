"""Performance with labels and before them: known answers, coverage, and what an estimate cannot see."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift import detect_drift
from e2i_dagster.monitoring.estimate import (
    FAILURE_MODE,
    estimate_performance,
    expected_squares,
    fit_error_size,
    recalibrate,
)
from e2i_dagster.monitoring.labels import settle_labels
from e2i_dagster.monitoring.performance import performance_report, realised
from e2i_dagster.monitoring.profile import ModelReference, profile_values
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.training.evaluate import Estimate

POLICY = DriftPolicy.load(CHECKOUT / "config")
RULE = POLICY.performance.model_copy(update={"resamples": 200})
DAY = dt.date(2025, 6, 30)
SPREAD = 1.5


def population(n, seed, *, spread=SPREAD, concept=1.0):
    """Scores that are the true probabilities, and outcomes; ``concept`` weakens what they depend on."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, spread, n)
    chance = 1 / (1 + np.exp(-odds * concept))
    return 1 / (1 + np.exp(-odds)), (rng.random(n) < chance).astype("float64")


@pytest.fixture(scope="module")
def model():
    scores, target = population(2_000, 0)
    found = realised(_reference(scores, target, Estimate(value=0, low=0, high=0)), scores, target, RULE)
    return _reference(scores, target, found)


def _reference(scores, target, performance):
    return ModelReference(
        metric="roc_auc", performance=performance, split="test", threshold=0.5,
        scores=tuple(scores), target=tuple(target), places={}, importance={},
        recalibration=recalibrate(target, scores),
    )  # fmt: skip


def test_recalibration_of_probabilities_is_the_identity_and_of_halved_odds_doubles():
    scores, target = population(20_000, 1)
    line = recalibrate(target, scores)
    assert abs(line.intercept) < 3 * line.covariance[0][0] ** 0.5
    assert abs(line.slope - 1) < 3 * line.covariance[1][1] ** 0.5
    odds = np.log(scores / (1 - scores)) / 2
    assert recalibrate(target, 1 / (1 + np.exp(-odds))).slope == pytest.approx(2 * line.slope, rel=1e-3)
    assert recalibrate(np.ones(10), np.linspace(0.1, 0.9, 10)) is None


def test_the_estimate_is_the_area_that_the_probabilities_imply(model):
    scores, target = population(40_000, 2, spread=0.7)
    exact = model.model_copy(
        update={"recalibration": model.recalibration.model_copy(update={"intercept": 0.0, "slope": 1.0})}
    )
    few = RULE.model_copy(update={"resamples": 100})
    found = estimate_performance(exact, scores[:20_000], few, level=0.95)
    assert found.value == pytest.approx(roc_auc_score(target, scores), abs=0.008)


def test_the_interval_holds_what_is_measured_without_concept_drift(model):
    """Under shifts of the patients, too: weaker and stronger signal."""
    inside = 0
    for seed in range(40):
        scores, target = population(400, 100 + seed, spread=0.6 + 0.05 * seed)
        expected = estimate_performance(model, scores, RULE, level=0.95)
        inside += expected.low <= roc_auc_score(target, scores) <= expected.high
    assert inside >= 35


def ledger(*windows, labelled=True, per_day=100):
    """Predictions of consecutive weeks that end with DAY, each with its (spread, concept)."""
    rows, labels = [], []
    for place, (spread, concept) in enumerate(windows):
        scores, target = population(7 * per_day, 50 + place, spread=spread, concept=concept)
        for number, (score, outcome) in enumerate(zip(scores, target, strict=True)):
            day = DAY - dt.timedelta(days=7 * (len(windows) - 1 - place) + number % 7)
            at = dt.datetime.combine(day, dt.time(9), dt.UTC)
            key = f"{place}-{number}"
            rows.append((key, "m/1", key, at, score, day))
            labels.append((key, outcome, at + dt.timedelta(days=1)))
    predictions = pd.DataFrame(
        rows, columns=["prediction_id", "model_id", "patient_id", "predicted_at", "score", "closes_on"]
    )
    arrivals = pd.DataFrame(labels, columns=["prediction_id", "label", "arrived_at"])
    if labelled is not True:
        arrivals = arrivals[arrivals["prediction_id"].str.split("-").str[0].astype(int) < labelled]
    return settle_labels(predictions, arrivals, as_of=DAY + dt.timedelta(days=30))


def report(model, labels, model_id="m/1"):
    policy = POLICY.model_copy(update={"performance": RULE.model_copy(update={"windows": 4})})
    return performance_report(model, labels, policy=policy, scope="s", day=DAY, model_id=model_id)


def test_a_model_that_does_as_before_has_no_loss(model):
    found = report(model, ledger((SPREAD, 1), (SPREAD, 1), labelled=1))
    assert [one.predictions for one in found.windows] == [0, 0, 700, 700]
    assert [one.concept for one in found.windows[2:]] == ["within", "not_estimable"]
    assert (found.basis, found.severity, found.concept_drift) == ("estimated", "none", False)
    assert "a measurement needs 100 closed labels, found 0" in found.note


def test_a_shift_to_patients_that_are_harder_to_tell_apart_is_a_loss_before_any_label(model):
    found = report(model, ledger((SPREAD, 1), (0.5, 1), labelled=1))
    assert (found.basis, found.concept_drift) == ("estimated", False)
    assert found.severity in ("high", "critical") and found.loss > 0.1


def test_concept_drift_is_seen_by_the_labels_alone(model):
    hidden = report(model, ledger((SPREAD, 1), (SPREAD, 0.2), labelled=1))
    assert (hidden.severity, hidden.concept_drift) == ("none", False)
    found = report(model, ledger((SPREAD, 1), (SPREAD, 0.2)))
    assert (found.basis, found.concept_drift, found.windows[-1].concept) == ("realised", True, "outside")
    assert found.severity in ("high", "critical")
    assert FAILURE_MODE in found.to_metadata()["windows"].note


def test_a_loss_that_was_measured_stays_when_the_newest_window_has_only_an_estimate(model):
    found = report(model, ledger((SPREAD, 1), (SPREAD, 0.2), (SPREAD, 0.2), labelled=2))
    assert (found.basis, found.concept_drift) == ("realised", True)


def test_a_measured_loss_that_the_estimate_foresaw_is_over_when_the_newest_estimate_says_so(model):
    found = report(model, ledger((SPREAD, 1), (0.5, 1), (SPREAD, 1), labelled=2))
    assert found.windows[-2].concept == "within" and found.windows[-2].realised.value < 0.7
    assert (found.basis, found.severity) == ("estimated", "none")


def test_too_few_predictions_or_labels_are_no_figure_and_say_so(model):
    few = report(model, ledger((SPREAD, 1), per_day=2))
    assert few.basis is None and few.loss is None and few.severity == "none"
    assert "an estimate needs 100 predictions, found 14" in few.note
    nothing = report(model, ledger((SPREAD, 1)), model_id="m/2")
    assert nothing.note == "no predictions" and nothing.to_record() == []


def test_one_outcome_alone_is_not_measured(model):
    labels = ledger((SPREAD, 1))
    alike = labels.predictions.assign(label=0.0)
    found = report(model, type(labels)(alike, labels.arrivals))
    assert found.windows[-1].realised is None and "10 labels of the rarer outcome, found 0" in found.note


def test_scores_that_are_no_probabilities_are_not_estimated(model):
    found = report(model.model_copy(update={"recalibration": None}), ledger((SPREAD, 1)))
    assert found.windows[-1].estimated is None and found.windows[-1].realised is not None
    assert "no calibrated probabilities" in found.note


def test_the_report_shows_both_on_one_chart_and_records_every_window(model):
    found = report(model, ledger((SPREAD, 1), (SPREAD, 0.2)))
    assert found.to_metadata()["chart"].uri.startswith("data:image/png")
    rows = found.to_record()
    assert [row["concept"] for row in rows] == ["within", "outside"]
    assert rows[0]["realised_low"] < rows[0]["realised"] < rows[0]["realised_high"]


def costs(n, seed, *, level=4.0, concept=1.0):
    """Predictions and outcomes whose error is a share of the prediction; ``concept`` widens it."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(level, 250, n)
    return scores, scores * (1 + 0.3 * concept * rng.normal(size=n))


@pytest.fixture(scope="module")
def cost_model():
    scores, target = costs(1_000, 0)
    reference = ModelReference(
        metric="rmse", performance=Estimate(value=0, low=0, high=0), split="test", threshold=None,
        scores=tuple(scores), target=tuple(target), places={}, importance={}, recalibration=None,
        error_size=fit_error_size(target, scores),
    )  # fmt: skip
    return reference.model_copy(update={"performance": realised(reference, scores, target, RULE)})


def test_the_error_of_a_number_is_a_function_of_its_prediction(cost_model):
    scores = np.asarray(cost_model.scores)
    expected = expected_squares(scores, cost_model.error_size)
    assert expected.mean() == pytest.approx(((scores - np.asarray(cost_model.target)) ** 2).mean())
    low, high = np.quantile(scores, [0.2, 0.8])
    known = expected_squares(np.array([low, high]), cost_model.error_size) ** 0.5
    assert known == pytest.approx([0.3 * low, 0.3 * high], rel=0.15)


def test_the_interval_of_the_error_holds_what_is_measured_when_patients_shift(cost_model):
    inside, naive = 0, 0
    for seed in range(40):
        scores, target = costs(400, 100 + seed, level=3.0 + 0.06 * seed)
        error = np.sqrt(((scores - target) ** 2).mean())
        expected = estimate_performance(cost_model, scores, RULE, level=0.95)
        inside += expected.low <= error <= expected.high
        naive += cost_model.performance.low <= error <= cost_model.performance.high
    assert inside >= 34 > naive


def weeks_of_costs(*windows):
    rows, labels = [], []
    for place, (level, concept) in enumerate(windows):
        scores, target = costs(700, 50 + place, level=level, concept=concept)
        for number, (score, outcome) in enumerate(zip(scores, target, strict=True)):
            day = DAY - dt.timedelta(days=7 * (len(windows) - 1 - place) + number % 7)
            at = dt.datetime.combine(day, dt.time(9), dt.UTC)
            rows.append((f"{place}-{number}", "m/1", f"{place}-{number}", at, score, day))
            labels.append((f"{place}-{number}", outcome, at + dt.timedelta(days=1)))
    columns = ["prediction_id", "model_id", "patient_id", "predicted_at", "score", "closes_on"]
    return settle_labels(
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(labels, columns=["prediction_id", "label", "arrived_at"]),
        as_of=DAY + dt.timedelta(days=30),
    )


def test_concept_drift_of_a_number_leaves_the_estimate_and_is_seen_by_the_labels_alone(cost_model):
    found = report(cost_model, weeks_of_costs((4, 1), (4.5, 1), (4, 1.6)))
    assert [window.concept for window in found.windows[1:]] == ["within", "within", "outside"]
    before, _, after = found.windows[1:]
    assert after.estimated.value == pytest.approx(before.estimated.value, rel=0.1)
    assert (found.basis, found.concept_drift) == ("realised", True) and found.loss > 0.3


def test_predictions_beyond_the_validation_rows_have_no_estimate_and_say_so(cost_model):
    found = report(cost_model, weeks_of_costs((12, 1)))
    assert found.windows[-1].estimated is None and found.windows[-1].realised is not None
    assert "of the predictions lie beyond those of the validation rows" in found.note


@pytest.mark.parametrize("rows", [99, 200])
def test_an_error_that_is_no_function_of_the_prediction_is_not_fitted(rows):
    scores, target = costs(rows, 3)
    assert fit_error_size(target[:99], scores[:99]) is None
    assert fit_error_size(scores, scores) is None
    assert fit_error_size(target, np.full(rows, 3.0)) is None


def test_labels_that_drift_are_told_with_the_interval_of_their_difference(model, cost_model):
    trained = profile_values(pd.Series(np.arange(2_000) % 2 == 0), bins=10)
    labels = ledger((SPREAD, 1))
    many = labels.predictions.assign(label=(np.arange(700) % 10 < 8).astype("float64"))
    found = report(model.model_copy(update={"label": trained}), type(labels)(many, labels.arrivals)).label
    assert found.difference.value == pytest.approx(0.3)
    assert found.difference.low == pytest.approx(0.260, abs=0.002)
    assert found.difference.high == pytest.approx(0.335, abs=0.002)
    costly = cost_model.model_copy(update={"label": profile_values(pd.Series(cost_model.target), bins=10)})
    higher = report(costly, weeks_of_costs((5, 1))).label
    assert higher.difference.low > 150 and higher.difference.high < 350 and higher.test == "ks"
    assert report(costly, weeks_of_costs((4, 1))).label.difference.low < 0
    drift = detect_drift(
        pd.DataFrame({"x": np.arange(200.0)}), pd.DataFrame({"x": np.arange(200.0)}), policy=POLICY, scope="s",
        day=DAY, model_id="m/1", label=found,
    )  # fmt: skip
    assert (
        "label: share of positives of the closed labels minus that of training +0.3 (95 % interval +0.262 to +0.336)"
        in drift.findings[0]
    )
    assert drift.to_record()[-1]["drift_type"] == "label"


def test_too_few_closed_labels_are_no_drift_of_labels_and_say_so(model):
    trained = profile_values(pd.Series(np.arange(2_000) % 2 == 0), bins=10)
    found = report(model.model_copy(update={"label": trained}), ledger((SPREAD, 1), labelled=0)).label
    assert found.state == "skipped" and "needs 100 closed labels" in found.reason and found.difference is None


def test_a_kind_of_model_that_is_not_measured_says_why():
    found = performance_report(
        None, weeks_of_costs((4, 1)), unavailable="times are censored", policy=POLICY, scope="s", day=DAY,
        model_id="m/1",
    )  # fmt: skip
    assert found.note == "performance is unavailable: times are censored" and found.basis is None
