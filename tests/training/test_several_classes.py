"""Models of one of several classes, from the fit to the served answer."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from model_rows import CLASSES, choices, numbers, patients, rows, visible
from sklearn import metrics as reference

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.explain import explain
from e2i_dagster.modelling.model_input import label_classes, labelled_rows, model_input
from e2i_dagster.modelling.problem import headline, outcome_groups
from e2i_dagster.registry.mlflow_runs import signature_of
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.selection import SelectionRequest, select_algorithm
from e2i_dagster.serving.models import LoadedModel
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, search_hyperparameters, train
from e2i_dagster.training.metrics import multiclass_metrics, regression_metrics

KIND = "multiclass_classification"
ALGORITHMS = [
    "XGBoost",
    "LightGBM",
    "HistGradientBoosting",
    "RandomForest",
    "ExtraTrees",
    "LogisticRegression",
]


def small():
    """The shipped file with small ensembles."""
    document = AlgorithmsPolicy.load().model_dump()
    for item in document["algorithms"].values():
        item["defaults"] |= {name: 20 for name in ("n_estimators", "max_iter") if name in item["defaults"]}
    return AlgorithmsPolicy.model_validate(document)


@pytest.fixture(scope="module")
def seen():
    return visible(choices(rows(600)), choices(rows(300, 1), 1))


def fitted(seen, algorithm):
    return train(
        seen, algorithm=algorithm, parameters=small().algorithm(algorithm).defaults, problem_type=KIND
    )


@pytest.fixture(scope="module")
def model(seen):
    return fitted(seen, "LogisticRegression")


def test_shares_and_metrics_by_hand():
    target = np.array([0, 0, 1, 2])
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    found = {name: value[0] for name, value in multiclass_metrics(target, scores).items()}
    assert found["accuracy"] == 0.75
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["roc_auc"] == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.6, 0.2, 0.8, 0.4]).mean())
    assert found["brier"] == pytest.approx((0.26 + 0.98 + 0.06 + 0.54) / 4)


def test_metrics_equal_scikit_learns_and_a_weight_of_two_is_a_patient_twice():
    draw = np.random.default_rng(0)
    target, scores = draw.integers(0, 3, 60), draw.dirichlet(np.ones(3), 60)
    found = multiclass_metrics(target, scores)
    assert found["roc_auc"][0] == pytest.approx(reference.roc_auc_score(target, scores, multi_class="ovr"))
    assert found["f1"][0] == pytest.approx(reference.f1_score(target, scores.argmax(axis=1), average="macro"))
    assert found["log_loss"][0] == pytest.approx(reference.log_loss(target, scores))
    counts = draw.integers(0, 3, 60)
    twice = multiclass_metrics(np.repeat(target, counts), np.repeat(scores, counts, axis=0))
    for name, value in multiclass_metrics(target, scores, counts[None].astype(float)).items():
        assert value == pytest.approx(twice[name]), name


def test_bias_and_slope_of_numbers():
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    found = regression_metrics(3 + 2 * scores, scores)
    assert found["calibration_slope"][0] == pytest.approx(2)
    assert found["bias"][0] == pytest.approx(-4.5)
    assert np.isnan(regression_metrics(scores, np.ones(4))["calibration_slope"][0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_stores_and_explains_classes(seen, algorithm):
    model = fitted(seen, algorithm)
    frame = rows(120, 3).features
    scores = model.scores(frame)
    assert scores.shape == (120, 3)
    assert scores.sum(axis=1) == pytest.approx(np.ones(120))
    assert headline(KIND, choices(rows(300, 1), 1).target, model.scores(rows(300, 1).features)) > 0.7
    again = StoredModel.model_validate_json(StoredModel.of(model).model_dump_json()).model()
    assert again.classes == CLASSES
    assert np.array_equal(again.scores(frame), scores)
    found = explain(model, rows(100, 1), background=seen.train)
    assert found.additivity_error < 1e-4
    assert found.base_value is None
    assert [one.name for one in found.classes] == list(CLASSES)
    severity = {one.name: next(e for e in one.effects if e.feature == "severity") for one in found.classes}
    assert severity["adherent"].direction > 0.7
    assert severity["switched"].direction < -0.7
    assert found.effects[0].feature == "severity"
    assert "predicted probability of adherent" in found.narrative


def test_calibrated_shares_are_those_of_the_validation_rows(seen, model):
    assert model.calibration == "temperature"
    shares = np.bincount(seen.validation.target) / len(seen.validation)
    assert model.scores(seen.validation.features).mean(axis=0) == pytest.approx(shares, abs=0.05)


def judged(seen, model, **criteria):
    test = choices(rows(400, 2), 2)
    asked = SuccessCriteria.model_validate(criteria)
    return evaluate(model, seen, SealedRows(lambda candidate: test), criteria=asked)


def test_evaluation_has_intervals_baselines_and_the_calibration_of_each_class(seen, model):
    result = judged(seen, model, min_auc=0.7, beats_baseline=True)
    measured = result.splits["test"].metrics
    assert measured["roc_auc"].low < measured["roc_auc"].value < measured["roc_auc"].high
    assert {f"calibration_slope_{name}" for name in CLASSES} <= set(measured)
    names = [one.name for one in result.criteria]
    assert names == [
        "min_auc",
        *(f"calibration_{part}_{name}" for part in ("slope", "intercept") for name in CLASSES),
        "beats_baseline",
        "better_than_chance",
    ]
    assert result.accepted, result.reasons()
    assert [one.name for one in result.baselines] == ["prevalence", "one_variable", "logistic"]
    assert result.baselines[0].value == 0.5


def test_a_miscalibrated_class_is_named(seen, model):
    result = judged(seen, model, calibration={"slope": [0.99, 1.01], "intercept": [-3, 3]})
    strict = {one.name: one for one in result.criteria}["calibration_slope_none"]
    assert "calibration_slope_none on test between 0.99 and 1.01" in strict.reason


def test_a_split_with_too_few_of_one_class_is_not_estimable(seen, model):
    test = choices(rows(400, 2), 2)
    kept = np.flatnonzero(test.target != 1)[:100].tolist() + np.flatnonzero(test.target == 1)[:5].tolist()
    few = replace(test, features=test.features.iloc[kept], target=test.target[kept])
    result = evaluate(model, seen, SealedRows(lambda candidate: few), criteria=SuccessCriteria())
    assert "of one outcome" in result.splits["test"].note


def test_search_and_choice_rank_by_the_mean_auc(seen):
    choice = select_algorithm(SelectionRequest(problem_type=KIND), visible=seen, policy=small())
    assert choice.algorithm == "LogisticRegression"
    assert choice.metric == "roc_auc"
    removed = {one.algorithm: one.reason for one in choice.candidates if one.state == "removed"}
    assert removed["Ridge"] == "solves regression, not multiclass_classification"
    found = search_hyperparameters("LogisticRegression", seen, scope="demo", problem_type=KIND)
    assert found.metric == "roc_auc_ovr"
    assert 0.7 < found.best_value < 1


def test_a_class_without_rows_is_named(seen):
    none = replace(seen.train, target=np.minimum(seen.train.target, 1))
    with pytest.raises(VerdictError, match="no") as caught:
        train(replace(seen, train=none), algorithm="LogisticRegression", parameters={}, problem_type=KIND)
    assert (caught.value.field, caught.value.value) == ("outcome.choice", "switched")


def test_labels_become_codes_of_the_sorted_classes():
    frame = patients(3).assign(label=pd.array(["switched", "adherent", "none"], dtype="string[pyarrow]"))
    classes = label_classes(frame, KIND)
    assert classes == CLASSES
    found = labelled_rows(frame, ["severity"], problem_type=KIND, classes=classes)
    assert found.target.tolist() == [2, 0, 1]
    with pytest.raises(InputError, match="a class other than"):
        labelled_rows(frame, ["severity"], problem_type=KIND, classes=classes[:2])


def test_the_answer_names_the_class(model):
    loaded = LoadedModel(model.pipeline, classes=list(model.classes))
    frame = model_input(patients(20, 5), model.kinds)
    answer = loaded.predict(frame)
    scores = model.scores(frame)
    assert answer.predictions == [CLASSES[code] for code in scores.argmax(axis=1)]
    assert list(answer.probabilities[0]) == list(CLASSES)
    assert answer.values == model.logged_values(frame).tolist() == scores.max(axis=1).tolist()
    assert signature_of(model).outputs.inputs[0].shape == (-1, 3)


def test_groups_of_numbers_are_parts_of_the_distribution():
    label = pd.Series([0.0] * 40 + list(range(1, 61)) + [None], dtype="Float64")
    groups = outcome_groups(label, "regression")
    assert groups.isna().tolist() == [False] * 100 + [True]
    assert groups[:40].nunique() == 1
    assert not set(groups[:40]) & set(groups[40:100])
    assert groups[40:100].is_monotonic_increasing
    assert outcome_groups(label, KIND) is label


def test_a_number_is_explained_without_classes():
    seen = visible(numbers(rows(300)), numbers(rows(100, 1), 1))
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    found = explain(model, seen.validation)
    assert found.classes == ()
    assert found.scale == "outcome"
