from dataclasses import replace

import numpy as np
import pytest
from model_rows import numbers, patients, rows, visible
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.explain import explain, explain_validation
from e2i_dagster.modelling.shap_values import sum_to_features
from e2i_dagster.training import train


def fitted(algorithm, **more):
    parameters = dict(AlgorithmsPolicy.load().algorithm(algorithm).defaults)
    parameters |= {name: 40 for name in ("n_estimators", "max_iter") if name in parameters}
    return train(visible(rows(400), rows(200, 1)), algorithm=algorithm, parameters=parameters, **more)


@pytest.mark.parametrize(
    "algorithm",
    ["XGBoost", "LightGBM", "HistGradientBoosting", "RandomForest", "ExtraTrees", "LogisticRegression"],
)
def test_values_add_up_and_find_the_signal(algorithm):
    found = explain(fitted(algorithm), rows(150, 1), background=rows(400))
    assert found.additivity_error < 1e-4
    # The three features of the process, in some order, before those that mean nothing.
    assert {item.feature for item in found.effects[:3]} == {"severity", "engagement", "academic"}
    assert sum(item.share for item in found.effects) == pytest.approx(1)
    severity = next(item for item in found.effects if item.feature == "severity")
    assert severity.direction > 0.8
    assert found.rows == 150
    assert found.scale == ("probability" if algorithm in ("RandomForest", "ExtraTrees") else "log-odds")


def test_linear_values_by_hand():
    train_rows = rows(400)
    model = fitted("LogisticRegression")
    found = explain(model, train_rows, background=train_rows)
    matrix = model.pipeline.named_steps["preprocess"].transform(train_rows.features)
    weight = model.estimator.coef_[0][0]
    # severity is standardised: its values are weight times itself.
    severity = next(item for item in found.effects if item.feature == "severity")
    assert severity.importance == pytest.approx(np.abs(weight * matrix[:, 0]).mean())


def test_validation_rows_are_explained_against_the_training_rows():
    seen = visible(rows(400), rows(200, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})
    found = explain_validation(model, seen)
    matrix = model.pipeline.named_steps["preprocess"].transform(seen.train.features)
    assert found.base_value == pytest.approx(model.estimator.decision_function(matrix).mean())
    assert (found.rows, found.split) == (200, "validation")


def test_columns_of_one_feature_are_summed():
    values = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 1.0]])
    assert sum_to_features(values, ("b", "a", "b"), ("a", "b")).tolist() == [[2.0, 5.0], [-1.0, 1.0]]


def test_numbers_are_explained_in_their_own_unit():
    parameters = AlgorithmsPolicy.load().algorithm("Ridge").defaults
    model = train(
        visible(numbers(rows(300)), numbers(rows(100, 1))),
        algorithm="Ridge",
        parameters=parameters,
        problem_type="regression",
    )
    found = explain(model, rows(100, 1), background=rows(300))
    assert found.scale == "outcome"
    assert found.effects[0].feature == "severity"


def test_any_other_model_is_explained_by_bounded_permutation():
    model = fitted("LogisticRegression")
    preprocess = model.pipeline.named_steps["preprocess"]
    source = rows(400)
    bayes = GaussianNB().fit(preprocess.transform(source.features), source.target)
    other = replace(
        model,
        algorithm="NaiveBayes",
        pipeline=Pipeline([("preprocess", preprocess), ("model", bayes)]),
    )
    references = rows(50, 2)
    found = explain(other, rows(200, 1), background=references)
    assert (found.method, found.rows, found.scale) == ("permutation", 50, "probability")
    assert {item.feature for item in found.effects[:3]} == {"severity", "engagement", "academic"}
    assert found.base_value == pytest.approx(other.scores(references.features).mean(), abs=1e-12)
    assert found.additivity_error < 1e-9


def test_more_rows_than_the_limit_are_thinned_the_same_way_each_time():
    model, source = fitted("LightGBM"), rows(300, 3)
    first, second = (explain(model, source, max_rows=100) for _ in range(2))
    assert first.rows == 100
    assert first.to_record() | {"computation_duration_seconds": 0} == second.to_record() | {
        "computation_duration_seconds": 0
    }
    assert first.figure == second.figure


def test_narrative_and_metadata_come_from_the_numbers():
    found = explain(fitted("XGBoost"), rows(200, 1))
    assert found.narrative.startswith("On 200 validation patients, severity")
    assert "severity: larger values go with a higher predicted probability" in found.narrative
    shown = found.to_metadata()
    assert shown["summary"].uri.startswith("data:image/png")
    assert len(shown["importance"].rows) == len(found.effects)


def test_levels_of_few_patients_are_not_named():
    frame = patients(200, 1)
    frame["region"] = ["rare"] * 5 + ["south"] * 100 + ["west"] * 95
    found = explain(fitted("XGBoost"), frame)
    region = next(item for item in found.effects if item.feature == "region")
    assert {region.highest, region.lowest} <= {"south", "west"}
    assert "rare" not in str(found.to_metadata())


def test_no_rows_is_an_error():
    with pytest.raises(InputError, match="no rows to explain"):
        explain(fitted("LogisticRegression"), patients(10).iloc[:0])
