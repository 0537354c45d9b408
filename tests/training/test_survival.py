"""Times to an event with censoring: estimates by hand, and models from the fit to the served risk."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from model_rows import HORIZON, patients, rows, times, visible

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import VerdictError
from e2i_dagster.explain import explain
from e2i_dagster.modelling.estimators import build_estimator
from e2i_dagster.modelling.model_input import model_input
from e2i_dagster.modelling.problem import outcome_groups
from e2i_dagster.modelling.survival import (
    RiskAtHorizon,
    concordance,
    cox_slope,
    cumulative_hazard,
    kaplan_meier,
    known_at,
)
from e2i_dagster.registry.mlflow_runs import model_metadata
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.selection import SelectionRequest, select_algorithm
from e2i_dagster.serving.models import LoadedModel
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, search_hyperparameters, train
from e2i_dagster.training.metrics import survival_calibration, survival_metrics

KIND = "survival"


@pytest.fixture(scope="module")
def seen():
    return visible(times(rows(600)), times(rows(300, 1), 1))


def fitted(seen, algorithm="CoxPH", **more):
    parameters = dict(AlgorithmsPolicy.load().algorithm(algorithm).defaults)
    return train(
        seen, algorithm=algorithm, parameters=parameters, problem_type=KIND, horizon_days=HORIZON, **more
    )


@pytest.fixture(scope="module")
def model(seen):
    return fitted(seen)


def test_concordance_by_hand():
    # Events on days 1, 3 and 3, censored on days 2 and 3. Day 1 is shorter than all four others; each event of day 3
    # than the censoring of the same day; the two events of one day and the early censoring say nothing.
    target = np.array([1.0, -2, 3, 3, -3])
    scores = np.array([0.9, 0.1, 0.9, 0.5, 0.7])
    # Concordant: 1 + 0.5 (equal scores) + 1 + 1 of day 1, then 0.9 above 0.7, and 0.5 not.
    assert concordance(target, scores)[0] == pytest.approx((3.5 + 1 + 0) / 6)
    assert np.isnan(concordance(-np.abs(target), scores)[0])


def test_a_weight_of_two_is_a_patient_twice():
    draw = np.random.default_rng(0)
    target = draw.integers(1, 30, 50) * draw.choice([1.0, -1.0], 50)
    risk, counts = draw.random(50), draw.integers(0, 3, 50)
    weighted = concordance(target, risk, counts[None].astype(float))
    assert weighted == pytest.approx(concordance(np.repeat(target, counts), np.repeat(risk, counts)))


def test_kaplan_meier_by_hand():
    # Survival 4/5, then 4/5 x 2/3 (one of five censored on day 2).
    target = np.array([1.0, -2, 3, -4, -5])
    risk, error = kaplan_meier(target, 4)
    assert risk == pytest.approx(1 - 8 / 15)
    assert error == pytest.approx(8 / 15 * np.sqrt(1 / (5 * 4) + 1 / (3 * 2)))
    assert kaplan_meier(target, 2)[0] == pytest.approx(0.2)
    assert kaplan_meier(-np.abs(target), 4)[0] == 0


def test_censoring_weights_by_hand():
    target = np.array([1.0, -2, 3, -4, -5, -5])
    happened, weights = known_at(target, 5)
    assert happened.tolist() == [1, 0, 1, 0, 0, 0]
    # Kept uncensored: 4/5 after day 2, 4/5 x 2/3 after day 4.
    assert weights == pytest.approx([1, 0, 5 / 4, 0, 15 / 8, 15 / 8])
    assert weights.sum() == pytest.approx(6)


def test_without_censoring_the_metrics_are_those_of_an_event():
    draw = np.random.default_rng(1)
    risk = draw.random(80)
    target = np.where(draw.random(80) < risk, draw.integers(1, 30, 80), -30.0)
    from e2i_dagster.training.metrics import binary_metrics

    found, plain = survival_metrics(target, risk, 30), binary_metrics((target > 0).astype(int), risk, 0.5)
    assert found["roc_auc"] == pytest.approx(plain["roc_auc"])
    assert found["brier"] == pytest.approx(plain["brier"])


def test_cox_estimates_equal_those_of_statsmodels(seen):
    from statsmodels.duration.hazard_regression import PHReg

    # No two times are equal: XGBoost treats ties a little otherwise.
    draw = np.random.default_rng(7)
    target = seen.train.target + np.sign(seen.train.target) * draw.random(len(seen.train))
    x = seen.train.features[["severity", "academic"]].to_numpy()
    one = PHReg(np.abs(target), x[:, :1], status=(target > 0).astype(int)).fit()
    assert cox_slope(target, x[:, 0]) == pytest.approx((one.params[0], one.bse[0]), rel=1e-5)
    both = PHReg(np.abs(target), x, status=(target > 0).astype(int)).fit()
    penalties = {"n_estimators": 400, "learning_rate": 0.5, "reg_lambda": 0.0, "reg_alpha": 0.0}
    assert build_estimator("CoxPH", KIND, penalties).fit(x, target).coef_ == pytest.approx(
        both.params, abs=1e-3
    )
    assert np.isnan(cox_slope(target, np.ones(len(target)))[0])


def test_the_hazard_of_nobody_in_particular_is_nelson_aalens():
    target = np.array([1.0, -2, 3, -4])
    assert cumulative_hazard(target, np.zeros(4), 3) == pytest.approx(1 / 4 + 1 / 2)
    # Twice the hazard for everybody is half the baseline.
    assert cumulative_hazard(target, np.full(4, np.log(2)), 3) == pytest.approx(3 / 8)
    assert RiskAtHorizon(3, 1.0, 2.0, 0.75).risk(np.array([1.0, 1.5])) == pytest.approx(
        [1 - np.exp(-0.75), 1 - np.exp(-0.75 * np.e)]
    )


@pytest.mark.parametrize("algorithm", ["CoxPH", "XGBoost"])
def test_a_model_ranks_is_calibrated_stored_explained_and_served(seen, algorithm):
    model = fitted(seen, algorithm)
    test = times(rows(600, 2), 2)
    risk = model.scores(test.features)
    assert concordance(test.target, risk)[0] > 0.68
    assert risk.mean() == pytest.approx(kaplan_meier(test.target, HORIZON)[0], abs=0.05)
    slope, error = survival_calibration(test.target, risk, HORIZON)["calibration_slope"]
    assert abs(slope - 1) < 3 * error
    again = StoredModel.model_validate_json(StoredModel.of(model).model_dump_json()).model()
    assert again.training_means == model.training_means
    assert bool(again.training_means) == (model.algorithm == "CoxPH")
    assert np.array_equal(again.scores(test.features), risk)
    found = explain(model, seen.validation, background=seen.train)
    assert found.scale == "log hazard ratio"
    assert found.effects[0].feature == "severity"
    assert "predicted risk in 60 days" in found.narrative
    loaded = LoadedModel(model.pipeline, risk=model.risk)
    frame = model_input(patients(20, 5), model.kinds)
    answer = loaded.predict(frame)
    assert answer.probabilities is None
    assert answer.predictions == answer.values == model.logged_values(frame).tolist()


def test_the_stored_metadata_has_what_makes_a_risk(model):
    from e2i_dagster.config.scope import read_scope

    metadata = model_metadata(model, read_scope("remibrutinib_csu_time_to_fill"), {})
    assert RiskAtHorizon(**metadata["risk_at_horizon"]) == model.risk
    assert metadata["problem_type"] == KIND


def test_few_events_are_calibrated_by_cross_fitting(seen):
    kept = (
        np.flatnonzero(seen.validation.target < 0).tolist()
        + np.flatnonzero(seen.validation.target > 0).tolist()[:20]
    )
    few = replace(
        seen.validation, features=seen.validation.features.iloc[kept], target=seen.validation.target[kept]
    )
    model = fitted(replace(seen, validation=few))
    assert "cross-fitted on 600 training rows" in model.calibration_note
    assert model.scores(seen.train.features).mean() == pytest.approx(
        kaplan_meier(seen.train.target, HORIZON)[0], abs=0.03
    )


def judged(seen, model, test=None, **criteria):
    asked = SuccessCriteria.model_validate(criteria)
    test = times(rows(500, 2), 2) if test is None else test
    return evaluate(model, seen, SealedRows(lambda candidate: test), criteria=asked)


def test_an_evaluation(seen, model):
    result = judged(seen, model, min_c_index=0.65, min_auc=0.65, beats_baseline=True)
    assert result.accepted, result.reasons()
    measured = result.splits["test"].metrics
    assert measured["c_index"].low < measured["c_index"].value < measured["c_index"].high
    assert {"roc_auc", "brier", "calibration_slope", "calibration_intercept"} <= set(measured)
    assert [one.name for one in result.baselines] == ["kaplan_meier", "one_variable", "cox"]
    assert result.baselines[0].value == 0.5
    assert result.to_metadata()["test_c_index"] == measured["c_index"].value


def test_too_few_events_are_not_estimable(seen, model):
    test = times(rows(500, 2), 2)
    kept = np.flatnonzero(test.target < 0).tolist() + np.flatnonzero(test.target > 0).tolist()[:5]
    few = replace(test, features=test.features.iloc[kept], target=test.target[kept])
    result = judged(seen, model, few, min_c_index=0.6)
    assert not result.accepted
    assert "not estimable: fewer than 11 patients of one outcome" in result.splits["test"].note


def test_search_and_choice_rank_by_concordance(seen):
    choice = select_algorithm(SelectionRequest(problem_type=KIND), visible=seen)
    assert {one.algorithm for one in choice.candidates if one.state != "removed"} == {"CoxPH", "XGBoost"}
    assert choice.algorithm == "CoxPH"
    assert "C-index" in choice.rationale
    found = search_hyperparameters("CoxPH", seen, scope="demo", problem_type=KIND)
    assert found.metric == "concordance_index"
    assert found.best_value > 0.65


def test_times_without_an_event_teach_nothing(seen):
    none = replace(seen.train, target=-np.abs(seen.train.target))
    with pytest.raises(VerdictError, match="none of the 600 training rows has the event"):
        fitted(replace(seen, train=none))


def test_patients_are_alike_when_the_event_was_seen():
    label = pd.Series([3.0, -90.0, None], dtype="Float64")
    assert outcome_groups(label, KIND).tolist() == [1, 0, pd.NA]
