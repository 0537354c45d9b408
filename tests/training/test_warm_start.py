"""What a search takes over from earlier ones."""

import pytest
from model_rows import rows, visible

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.optuna_config import OptunaPolicy, WarmStart
from e2i_dagster.training import search_hyperparameters
from e2i_dagster.training.pattern_memory import read_patterns, write_pattern
from e2i_dagster.training.warm_start import Pattern, RememberedTrial, StudyData, similarity, warm_trials

DATA = StudyData(
    algorithm="Ridge", problem_type="regression", metric="neg_root_mean_squared_error",
    training_rows=999, n_features=10,
)  # fmt: skip
SPACE = AlgorithmsPolicy.load().algorithm("Ridge").search_space


def pattern(name, *alphas, **data):
    trials = tuple(
        RememberedTrial(number=number, parameters={"alpha": alpha}, value=-1.0)
        for number, alpha in enumerate(alphas)
    )
    return Pattern(study_name=name, scope="other", data=DATA.model_copy(update=data), trials=trials)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, 1.0),
        ({"metric": "r2"}, 0.9),
        ({"training_rows": 9_999}, 1 - 0.1 / 3),
        ({"training_rows": 9_999_999}, 0.9),
        ({"n_features": 5}, 0.95),
        ({"algorithm": "Lasso"}, 0.6),
        ({"problem_type": "binary_classification"}, 0.7),
    ],
)
def test_similarity_has_the_stated_weights(other, expected):
    assert similarity(DATA, DATA.model_copy(update=other)) == pytest.approx(expected)


def test_best_trials_of_similar_studies_come_first_and_in_turns():
    memory = [
        pattern("far", 7.0, 8.0, n_features=30),
        pattern("near", 1.0, 2.0),
        pattern("same points", 1.0, 3.0, n_features=9),
        pattern("other algorithm", 5.0, algorithm="Lasso"),
        pattern("itself", 6.0),
        pattern("outside", 1e9),
    ]
    asked = WarmStart(maximum_trials=4, minimum_similarity=0.7)
    found = warm_trials(memory, DATA, SPACE, asked, study_name="itself")
    assert [(trial.study_name, trial.parameters["alpha"]) for trial in found] == [
        ("near", 1.0), ("far", 7.0), ("near", 2.0), ("same points", 3.0)
    ]  # fmt: skip
    strict = asked.model_copy(update={"minimum_similarity": 0.95})
    assert "far" not in [
        trial.study_name for trial in warm_trials(memory, DATA, SPACE, strict, study_name="itself")
    ]
    none = asked.model_copy(update={"maximum_trials": 0})
    assert warm_trials(memory, DATA, SPACE, none, study_name="itself") == ()


def test_a_search_begins_with_what_another_scope_found_and_keeps_it_when_memory_grows(database):
    shipped = OptunaPolicy.load()

    def search(scope, seed, trials, memory):
        budget = shipped.optimization.model_copy(update={"n_trials": trials})
        return search_hyperparameters(
            "LogisticRegression", visible(rows(200, seed), rows(100, seed + 1)), scope=scope,
            policy=shipped.model_copy(update={"optimization": budget}), engine=database, memory=memory,
        )  # fmt: skip

    for scope, seed in (("first", 10), ("second", 20)):
        write_pattern(database, search(scope, seed, 6, ()).to_pattern())
    memory = read_patterns(database, "LogisticRegression", "binary_classification")
    assert [found.scope for found in memory] == ["first", "second"]
    assert read_patterns(database, "Ridge", "regression") == []

    begun = search("third", 30, 3, memory[:1])
    best = memory[0].trials[0]
    assert [trial.origin for trial in begun.trials[:2]] == [
        "defaults",
        f"{memory[0].study_name}#{best.number}",
    ]
    assert begun.trials[1].parameters == best.parameters
    shown = begun.to_metadata()["warm_start"]
    assert shown.rows[0][:3] == (memory[0].study_name, best.number, "first")

    went_on = search("third", 30, 9, memory)
    assert went_on.warm_start == begun.warm_start
    assert {trial.scope for trial in went_on.warm_start} == {"first"}
    # The same trials again without a database: what was remembered is all that they hang on.
    budget = shipped.optimization.model_copy(update={"n_trials": 3})
    again = search_hyperparameters(
        "LogisticRegression", visible(rows(200, 30), rows(100, 31)), scope="third",
        policy=shipped.model_copy(update={"optimization": budget}), memory=memory[:1],
    )  # fmt: skip
    assert again.model_dump(exclude=again.volatile_fields) == begun.model_dump(exclude=begun.volatile_fields)
