import pytest
from model_rows import numbers, rows, visible
from pydantic import ValidationError
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.scope import default_scope
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.modelling.estimators import build_estimator
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.selection import SelectionRequest, select_algorithm

BINARY = SelectionRequest(problem_type="binary_classification")
CAUSAL = {"CausalForest", "LinearDML", "DRLearner", "XLearner"}


def quick():
    """The shipped file with small forests, so that a benchmark takes a fraction of a second."""
    document = AlgorithmsPolicy.load().model_dump()
    for item in document["algorithms"].values():
        for name in ("n_estimators", "max_iter"):
            if name in item["defaults"]:
                item["defaults"][name] = 30
    return AlgorithmsPolicy.model_validate(document)


@pytest.fixture(scope="module")
def linear_choice():
    return select_algorithm(default_scope(), visible=visible(rows(500)), policy=quick())


def reason(choice, name):
    return next(item.reason for item in choice.candidates if item.algorithm == name)


def test_thirteen_algorithms_are_described():
    policy = AlgorithmsPolicy.load()
    assert len(policy.algorithms) == 13
    assert {name for name, item in policy.algorithms.items() if item.family == "causal"} == CAUSAL


def test_a_linear_signal_is_learned_by_the_linear_model(linear_choice):
    assert linear_choice.algorithm == "LogisticRegression"
    assert linear_choice.measured == "benchmark"
    assert "3-fold cross-validation on 500 training rows" in linear_choice.rationale
    assert len(linear_choice.candidates) == 13


def test_an_interaction_is_not():
    choice = select_algorithm(BINARY, visible=visible(rows(500, interaction=True)), policy=quick())
    assert choice.algorithm != "LogisticRegression"
    linear = next(item for item in choice.candidates if item.algorithm == "LogisticRegression")
    assert linear.performance == pytest.approx(0.5, abs=0.08)


def test_every_fold_is_preprocessed_by_its_learning_rows_alone():
    sample, policy = rows(300), quick()
    sample.features.loc[::37, "severity"] = 1e4
    found = select_algorithm(BINARY, visible=visible(sample), policy=policy).candidates
    linear = next(item for item in found if item.algorithm == "LogisticRegression")
    pipeline = make_pipeline(
        build_preprocessor(feature_kinds(sample.features, list(sample.features.columns))),
        build_estimator(
            "LogisticRegression",
            BINARY.problem_type,
            policy.algorithm("LogisticRegression").defaults,
            seed=42,
        ),
    )
    folds = StratifiedKFold(policy.selection.folds, shuffle=True, random_state=42)
    expected = cross_val_score(pipeline, sample.features, sample.target, cv=folds, scoring="roc_auc")
    assert linear.performance == pytest.approx(expected.mean(), abs=1e-12)
    assert linear.deviation == pytest.approx(expected.std(ddof=1), abs=1e-12)


def test_causal_algorithms_are_never_candidates_for_classification(linear_choice):
    removed = {item.algorithm for item in linear_choice.candidates if item.state == "removed"}
    assert removed >= CAUSAL
    assert reason(linear_choice, "CausalForest") == "solves causal_inference, not binary_classification"


def test_a_file_that_lets_them_is_refused():
    document = AlgorithmsPolicy.load().model_dump()
    document["algorithms"]["LinearDML"]["problem_types"] = ["binary_classification"]
    with pytest.raises(ValidationError, match="estimates effects and nothing else"):
        AlgorithmsPolicy.model_validate(document)


def test_equal_inputs_give_equal_records():
    sample = rows(300)
    first, second = (select_algorithm(BINARY, visible=visible(sample), policy=quick()) for _ in range(2))
    assert first.to_record() == second.to_record()


def test_limits_exclusions_and_interpretability_name_what_they_removed():
    request = SelectionRequest(
        problem_type="binary_classification", max_latency_ms=25, max_memory_gb=1.8, excluded=("LightGBM",)
    )
    choice = select_algorithm(request)
    assert "declared latency 30 ms" in reason(choice, "RandomForest")
    assert "declared memory 2 GB" in reason(choice, "XGBoost")
    assert reason(choice, "LightGBM") == "excluded by the scope"
    strict = SelectionRequest(problem_type="binary_classification", interpretability_required=True)
    assert select_algorithm(strict).alternatives == ()


def test_a_measured_latency_above_the_limit_removes():
    # Declared 1 ms; the whole pipeline with a frame of one row takes longer than that on any machine.
    request = SelectionRequest(problem_type="binary_classification", max_latency_ms=1)
    with pytest.raises(
        VerdictError, match=r"LogisticRegression: measured latency .* ms is above the limit of 1 ms"
    ):
        select_algorithm(request, visible=visible(rows(200)))


def test_history_ranks_by_what_was_measured():
    choice = select_algorithm(BINARY, history={"XGBoost": [0.84, 0.84], "LogisticRegression": [0.80, 0.80]})
    assert (choice.algorithm, choice.measured) == ("XGBoost", "history")


def test_near_ties_go_to_the_preferred_then_to_the_simpler():
    history = {"XGBoost": [0.803], "LogisticRegression": [0.80]}
    assert select_algorithm(BINARY, history=history).algorithm == "LogisticRegression"
    wish = SelectionRequest(problem_type="binary_classification", preferred=("XGBoost",))
    history = {"XGBoost": [0.80], "LightGBM": [0.803]}
    assert select_algorithm(wish, history=history).algorithm == "XGBoost"


def test_without_measurement_it_says_so():
    choice = select_algorithm(BINARY)
    assert choice.measured == "nothing"
    assert "Nothing was measured" in choice.rationale
    assert all(item.performance is None for item in choice.candidates)


def test_effects_and_numbers_have_their_own_candidates():
    causal = select_algorithm(SelectionRequest(problem_type="causal_inference"))
    assert {causal.algorithm, *causal.alternatives} == CAUSAL
    choice = select_algorithm(
        SelectionRequest(problem_type="regression"), visible=visible(numbers(rows(300))), policy=quick()
    )
    assert choice.algorithm in ("Ridge", "Lasso")
    assert choice.metric == "r2"


def test_bad_requests():
    with pytest.raises(ConfigError, match="problem type 'time_series'"):
        select_algorithm(SelectionRequest(problem_type="time_series"))
    with pytest.raises(ConfigError, match="found no algorithm 'SVM'"):
        select_algorithm(SelectionRequest(problem_type="regression", preferred=("SVM",)))
    with pytest.raises(VerdictError, match="no algorithm is left"):
        select_algorithm(SelectionRequest(problem_type="binary_classification", max_latency_ms=0.1))


def test_metadata_has_every_candidate(linear_choice):
    assert len(linear_choice.to_metadata()["candidates"].rows) == len(linear_choice.candidates) == 13


def test_the_benchmark_sees_training_rows_only():
    train_rows, other = rows(300), rows(90, 1)
    spoilt = LabelledRows(other.features.assign(severity=1e6), 1 - other.target)
    first, second = (
        select_algorithm(BINARY, visible=visible(train_rows, part), policy=quick()).to_record()
        for part in (other, spoilt)
    )
    assert first == second
    assert first["benchmark_rows"] == 300
