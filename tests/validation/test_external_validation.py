"""A model judged on other patients: known answers for performance and case mix, and who is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from model_rows import patients, rows, visible

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import default_scope
from e2i_dagster.errors import VerdictError
from e2i_dagster.training import train
from e2i_dagster.training.evaluate import measure
from e2i_dagster.validation.assess import assess, left_out, require_others
from e2i_dagster.validation.case_mix import case_mix, standardized_difference
from e2i_dagster.validation.records import ExternalValidation
from e2i_dagster.validation.store import find_validation, store_validation

POLICY = OptunaPolicy.load()
POLICY = POLICY.model_copy(update={"evaluation": POLICY.evaluation.model_copy(update={"bootstrap": 200})})


@pytest.fixture(scope="module")
def development():
    return rows(600)


@pytest.fixture(scope="module")
def model(development):
    return train(visible(development), algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})


def judged(model, development, frame):
    return assess(model, development, frame, cohort="other", scope="initiation", policy=POLICY)


def test_the_figures_are_those_of_an_evaluation_of_the_same_rows(model, development):
    found = judged(model, development, patients(400, 7))
    same = rows(400, 7)
    expected = measure(same, model.scores(same.features), model, POLICY.evaluation)
    assert found.performance == expected
    assert {"roc_auc", "pr_auc", "brier", "calibration_slope", "calibration_intercept"} <= set(
        expected.metrics
    )


def test_a_cohort_with_a_higher_risk_than_predicted_has_a_positive_intercept(model, development):
    frame = patients(2_000, 7)
    draw = np.random.default_rng(1)
    logit = np.log(model.scores(frame) / (1 - model.scores(frame)))
    frame["label"] = pd.array(draw.random(len(frame)) < 1 / (1 + np.exp(-(logit + 1.0))), dtype="Int64")
    intercept = judged(model, development, frame).performance.metrics["calibration_intercept"]
    assert intercept.low < 1.0 < intercept.high
    assert intercept.low > 0.7


def test_alike_patients_cannot_be_told_apart_and_shifted_ones_can(model, development):
    alike = case_mix(model, development, rows(600, 5), POLICY)
    assert alike.membership.low < 0.5 < alike.membership.high
    shifted = rows(600, 5)
    shifted = replace(shifted, features=shifted.features.assign(severity=shifted.features["severity"] + 2))
    mix = case_mix(model, development, shifted, POLICY)
    assert mix.membership.low > 0.85
    severity = next(one for one in mix.features if one.feature == "severity")
    assert severity.difference.low < 2.0 < severity.difference.high
    (predictor,) = mix.linear_predictor
    assert predictor.validation_mean.low > predictor.development_mean.high
    ratio = predictor.validation_sd.value / predictor.development_sd.value
    assert ratio == pytest.approx(1, abs=0.15)


def test_a_standardized_difference_is_in_units_of_the_mean_variance():
    found = standardized_difference((1.0, 3.0, 100), (6.0, 4.0, 100), 0.95)
    assert found.value == pytest.approx(5 / np.sqrt(12.5))
    assert standardized_difference((1.0, 0.0, 100), (1.0, 0.0, 100), 0.95).value is None


def test_figures_of_few_patients_are_left_out(model, development):
    other = rows(300, 5)
    features = other.features.copy()
    features.loc[features.index[:5], "region"] = "island"
    features["academic"] = [1.0] * 5 + [0.0] * 295
    mix = case_mix(model, development, replace(other, features=features), POLICY)
    assert "island" not in {one.level for one in mix.features}
    academic = next(one for one in mix.features if one.feature == "academic")
    assert academic.validation.mean is None
    assert academic.difference.value is None


def test_patients_of_the_development_cohort_are_left_out_and_counted():
    frame = patients(10)
    splits = pd.DataFrame(
        {"patient_id": frame["patient_id"][:5], "split": ["train", "validation", "train", "test", "holdout"]}
    )
    others, fitted, held_out = left_out(frame, splits)
    assert list(others["patient_id"]) == list(frame["patient_id"][5:])
    assert (fitted, held_out) == (3, 2)
    with pytest.raises(VerdictError, match="Every labelled patient of other") as refused:
        require_others(0, 20, cohort="other", development_cohort="own")
    assert refused.value.remedy == "Name a cohort with other patients."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"severity": np.nan}, "No patient of other has a value of severity"),
        ({"label": 1}, "nobody who is labelled is without the outcome"),
        ({"label": [1] * 5 + [0] * 295}, "not estimable: fewer than 11 patients of one outcome"),
    ],
)
def test_rows_that_cannot_judge_a_model_are_refused(model, development, change, said):
    frame = patients(300, 7).assign(**change)
    with pytest.raises(VerdictError, match=said) as refused:
        judged(model, development, frame)
    assert refused.value.field == "--cohort"
    assert refused.value.value == "other"
    assert refused.value.remedy


def test_a_cohort_without_labels_is_refused(model, development):
    with pytest.raises(VerdictError, match="no patient has a label"):
        judged(model, development, patients(20).iloc[:0])


def test_few_events_are_said(model, development):
    assert "fewer" not in " ".join(judged(model, development, patients(600, 7)).notes)
    (note,) = judged(model, development, patients(120, 7)).notes
    assert "at least 100 are advised" in note


@pytest.fixture
def validated(model, development):
    return ExternalValidation(
        key="a key", model="e2i-x", version="3", model_digest=model.digest, algorithm=model.algorithm,
        problem_type=model.problem_type, scope="initiation", scope_digest="d", cohort="other", cohort_version="1.0.0",
        definition_hash="h", development_cohort="own", overlap_fitted=None, overlap_held_out=0, level=0.95,
        bootstrap=200, findings=judged(model, development, patients(400, 7)), development=None,
        data={"splits": "abc"},
    )  # fmt: skip


def test_a_stored_validation_is_found_by_its_key_with_its_page(validated, tmp_path, state):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    scope = default_scope()
    assert find_validation("a key", scope, tracking_uri=uri) is None
    stored = store_validation(validated, scope, by="ann", tracking_uri=uri)
    page = stored.page.read_text("utf-8")
    assert "External validation of e2i-x version 3 on other" in page
    assert "calibration_intercept" in page
    assert "split (&lt;11)" in page
    assert "http" not in page
    stored.page.unlink()
    again = find_validation("a key", scope, tracking_uri=uri)
    assert (again.run_id, again.new, again.validation) == (stored.run_id, False, validated)
    assert again.page.read_text("utf-8") == page
    assert find_validation("another key", scope, tracking_uri=uri) is None


def test_a_stored_document_that_cannot_be_read_is_no_answer(validated, tmp_path, state):
    import mlflow

    uri, scope = f"sqlite:///{tmp_path}/mlflow.db", default_scope()
    stored = store_validation(validated, scope, by="ann", tracking_uri=uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.log_text(stored.run_id, '{"model": "e2i-x", "ver', "external_validation.json")
    assert find_validation("a key", scope, tracking_uri=uri) is None
