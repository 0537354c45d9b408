import socket
from importlib.util import find_spec

import numpy as np
import optuna
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from model_rows import numbers, rows, target_of, visible

from e2i_dagster.config.algorithms import AlgorithmsPolicy, FloatRange, IntRange
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.modelling.estimators import build_estimator, raw_scores
from e2i_dagster.modelling.model_input import LabelledRows, feature_kinds
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.tables.description.models import ml_hpo_trials
from e2i_dagster.training import search_hyperparameters
from e2i_dagster.training.optuna_space import suggest
from e2i_dagster.training.search import validation_score

BUILDABLE = [
    (name, problem_type)
    for name, item in AlgorithmsPolicy.load().algorithms.items()
    for problem_type in item.problem_types
    if problem_type != "causal_inference"
]


def policy(trials=5, *, n_jobs=1, **pruner):
    shipped = OptunaPolicy.load()
    budget = shipped.optimization.model_copy(update={"n_trials": trials, "n_jobs": n_jobs})
    asked = shipped.pruner.model_copy(update=pruner)
    return shipped.model_copy(update={"optimization": budget, "pruner": asked})


def document(result):
    return result.model_dump(mode="json", exclude=result.volatile_fields)


def small_forests():
    document = AlgorithmsPolicy.load().model_dump()
    forest = document["algorithms"]["RandomForest"]
    forest["search_space"]["n_estimators"] = {"kind": "int", "low": 8, "high": 24, "step": 4}
    forest["defaults"]["n_estimators"] = 12
    return AlgorithmsPolicy.model_validate(document)


@pytest.mark.parametrize(("name", "problem_type"), BUILDABLE)
def test_no_corner_of_a_space_is_invalid(name, problem_type):
    declared = AlgorithmsPolicy.load().algorithm(name)
    train = rows(80)
    matrix = train.features[["severity", "noise"]].to_numpy()
    target = target_of(train, problem_type).target
    for end in ("low", "high"):
        corner = {key: getattr(dimension, end) for key, dimension in declared.search_space.items()}
        small = {
            key: min(value, 5) if key in ("n_estimators", "max_iter") else value
            for key, value in corner.items()
        }
        build_estimator(name, problem_type, small).fit(matrix, target)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_every_penalty_of_the_logistic_space_fits(ratio):
    train = rows(120)
    matrix = train.features[["severity", "noise"]].to_numpy()
    build_estimator("LogisticRegression", "binary_classification", {"C": 0.1, "l1_ratio": ratio}).fit(
        matrix, train.target
    )


def test_draws_stay_inside_the_space():
    space = AlgorithmsPolicy.load().algorithm("LinearDML").search_space
    trial = optuna.create_study().ask()
    drawn = suggest(trial, space)
    assert drawn["model_y"] in ("linear", "forest", "gbf")
    assert 3 <= drawn["cv"] <= 5


def test_the_first_trial_is_the_defaults_and_the_best_is_no_worse():
    result = search_hyperparameters("LightGBM", visible(rows(300), rows(150, 1)), scope="s", policy=policy())
    assert result.trials[0].parameters == AlgorithmsPolicy.load().algorithm("LightGBM").defaults
    assert result.best_value >= result.default_value
    assert (len(result.trials), result.stopped_by) == (5, "trials")


def test_defaults_outside_a_narrowed_space_are_not_run():
    document = AlgorithmsPolicy.load().model_dump()
    document["algorithms"]["LightGBM"]["search_space"]["num_leaves"] = {"kind": "int", "low": 4, "high": 7}
    narrowed = AlgorithmsPolicy.model_validate(document)
    result = search_hyperparameters(
        "LightGBM", visible(rows(150), rows(80, 1)), scope="s", policy=policy(3), algorithms=narrowed
    )
    assert result.default_value is None
    assert all(4 <= trial.parameters["num_leaves"] <= 7 for trial in result.trials)
    defaults = narrowed.algorithm("LightGBM").defaults
    assert result.trials[0].parameters == {**defaults, "num_leaves": 7}
    assert result.to_metadata()["note"] == "num_leaves: default 8 is outside the search space, begun at 7"


def test_a_default_that_is_no_choice_any_more_is_drawn_and_the_others_begin():
    document = AlgorithmsPolicy.load().model_dump()
    boosting = document["algorithms"]["LightGBM"]["search_space"]
    boosting["learning_rate"] = {"kind": "categorical", "choices": [0.2, 0.1]}
    result = search_hyperparameters(
        "LightGBM", visible(rows(150), rows(80, 1)), scope="s", policy=policy(2),
        algorithms=AlgorithmsPolicy.model_validate(document),
    )  # fmt: skip
    first = result.trials[0].parameters
    defaults = AlgorithmsPolicy.load().algorithm("LightGBM").defaults
    assert first.pop("learning_rate") in (0.1, 0.2)
    assert first == {name: value for name, value in defaults.items() if name != "learning_rate"}
    assert result.note == "learning_rate: default 0.05 is outside the search space, drawn"


@given(
    low=st.integers(-50, 50), width=st.integers(0, 40), step=st.integers(1, 7), value=st.integers(-200, 200)
)
def test_what_a_search_begins_with_can_be_drawn_and_is_nearest(low, width, step, value):
    whole = IntRange(kind="int", low=low, high=low + width, step=step)
    near = whole.nearest(value)
    assert whole.holds(near)
    assert abs(near - value) == min(abs(one - value) for one in range(low, low + width + 1, step))
    stepped = FloatRange(kind="float", low=low, high=low + width, step=step)
    assert stepped.holds(stepped.nearest(value))
    assert abs(stepped.nearest(value) - value) == abs(near - value)


def test_an_interrupted_study_ends_like_an_undisturbed_one(database):
    forests, train, validation = small_forests(), rows(200), rows(100, 1)

    def search(trials, engine=None):
        return search_hyperparameters(
            "RandomForest",
            visible(train, validation),
            scope="s",
            algorithms=forests,
            policy=policy(trials),
            engine=engine,
        )

    whole = search(13)
    search(6, database)
    with database.begin() as connection:
        # A process that was killed leaves its trial running.
        lost = sa.update(ml_hpo_trials).where(ml_hpo_trials.c.number == 5)
        connection.execute(lost.values(state="running", value=None, worker=f"{socket.gethostname()}/0/0.00"))
    resumed = search(13, database)
    assert (resumed.resumed_trials, resumed.restarted_trials) == (5, 1)
    assert document(resumed) == document(whole)
    assert search(13, database).resumed_trials == 13


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruner", ["median", "hyperband", "none"])
def test_samplers_and_pruners_resume(database, sampler, pruner):
    asked = policy(9)
    asked = asked.model_copy(update={
        "sampler": asked.sampler.model_copy(update={"name": sampler, "n_startup_trials": 3}),
        "pruner": asked.pruner.model_copy(update={"name": pruner, "interval": 5, "n_startup_trials": 2}),
    })  # fmt: skip

    def search(trials, engine=None):
        few = asked.optimization.model_copy(update={"n_trials": trials})
        return search_hyperparameters(
            "XGBoost", visible(rows(150), rows(80, 1)), scope="s", engine=engine,
            policy=asked.model_copy(update={"optimization": few}),
        )  # fmt: skip

    whole = search(9)
    assert (whole.n_pruned > 0) == (pruner != "none")
    search(5, database)
    assert document(search(9, database)) == document(whole)


def test_other_rows_are_another_study():
    names = {
        search_hyperparameters(
            "LogisticRegression", visible(train, rows(60, 1)), scope="s", policy=policy(1)
        ).study_name
        for train in (rows(100), rows(101), rows(100, 2))
    }
    assert len(names) == 3


def test_the_median_pruner_stops_hopeless_forests():
    result = search_hyperparameters(
        "RandomForest",
        visible(rows(150), rows(80, 1)),
        scope="s",
        policy=policy(14, interval=4, n_warmup_steps=0),
        algorithms=small_forests(),
    )
    assert result.n_pruned > 0
    assert result.n_pruned + result.n_completed == 14


def test_a_search_on_numbers_maximises_minus_the_error():
    result = search_hyperparameters(
        "Ridge",
        visible(numbers(rows(200)), numbers(rows(100, 1), 1)),
        scope="s",
        problem_type="regression",
        policy=policy(3),
    )
    assert result.metric == "neg_root_mean_squared_error"
    assert -0.7 < result.best_value < -0.4


def test_one_outcome_alone_cannot_be_searched():
    train = rows(100)
    constant = LabelledRows(train.features, np.zeros(100, dtype="int64"))
    with pytest.raises(VerdictError, match="all 100 training rows have the same outcome"):
        search_hyperparameters("XGBoost", visible(constant, train), scope="s")
    empty = LabelledRows(train.features.iloc[:0], train.target[:0])
    with pytest.raises(VerdictError, match="no validation rows"):
        search_hyperparameters("XGBoost", visible(train, empty), scope="s")


def test_preprocessing_is_fitted_on_the_training_rows_alone():
    """Validation patients are sicker than those of training: scaled by their own mean, the error is another."""
    alpha = AlgorithmsPolicy.load().algorithm("Ridge").defaults["alpha"]
    draw = np.random.default_rng(4)
    severity = {"train": draw.normal(0, 1, 200), "validation": draw.normal(3, 2, 100)}
    parts = [
        LabelledRows(pd.DataFrame({"severity": values}), 10 + 2 * values + draw.normal(0, 0.1, len(values)))
        for values in severity.values()
    ]
    seen = visible(*parts)
    found = search_hyperparameters(
        "Ridge", seen, scope="s", problem_type="regression", policy=policy(1)
    ).default_value
    # Ridge on one column in deviations of the training rows, by hand; the intercept is not penalised.
    mean, deviation = severity["train"].mean(), severity["train"].std()
    scaled = {name: (values - mean) / deviation for name, values in severity.items()}
    target = seen.train.target - seen.train.target.mean()
    slope = (scaled["train"] @ target) / (scaled["train"] @ scaled["train"] + alpha)
    predicted = seen.train.target.mean() + slope * scaled["validation"]
    by_hand = -np.sqrt(np.mean((seen.validation.target - predicted) ** 2))
    assert found == pytest.approx(by_hand, rel=1e-6)
    assert found > -0.5, "scaled by the validation rows the error would be about six"


def test_trials_are_scored_on_validation_rows():
    """Labels of the validation rows are turned round: what is learned well is scored badly."""
    train_rows, other = rows(300), rows(150, 1)
    turned = LabelledRows(other.features, 1 - other.target)
    straight, wrong = (
        search_hyperparameters(
            "LogisticRegression", visible(train_rows, validation), scope="s", policy=policy(1)
        ).best_value
        for validation in (other, turned)
    )
    assert straight > 0.7
    assert wrong == pytest.approx(1 - straight)


def test_every_trial_draws_a_point_of_its_own():
    result = search_hyperparameters(
        "LogisticRegression", visible(rows(100), rows(60, 1)), scope="s", policy=policy(6)
    )
    drawn = {tuple(sorted(trial.parameters.items())) for trial in result.trials}
    assert len(drawn) == 6


@pytest.mark.parametrize("name", ["XGBoost", "LightGBM"])
@pytest.mark.parametrize("problem_type", ["binary_classification", "regression"])
def test_boosting_is_pruned_by_round_and_ends_early_and_the_model_has_the_rounds_found(name, problem_type):
    parts = [rows(150), rows(80, 1)]
    if problem_type == "regression":
        parts = [numbers(part, seed) for seed, part in enumerate(parts)]
    seen = visible(*parts)
    found = search_hyperparameters(
        name, seen, scope="s", problem_type=problem_type,
        policy=policy(12, interval=5, n_startup_trials=2, n_warmup_steps=0),
    )  # fmt: skip
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned
    assert all(
        trial.steps[-1][0] % 5 == 0 and trial.steps[-1][0] < trial.parameters["n_estimators"]
        for trial in pruned
    )
    ended_early = [trial for trial in found.trials if trial.rounds is not None]
    assert ended_early
    best = found.trials[found.best_trial]
    assert found.parameters["n_estimators"] == (best.rounds or best.parameters["n_estimators"])
    # Fitted anew with these parameters the estimator scores what the trial scored.
    preprocessor = build_preprocessor(feature_kinds(parts[0].features, list(parts[0].features.columns)), 50)
    estimator = build_estimator(name, problem_type, found.parameters)
    estimator.fit(preprocessor.fit_transform(parts[0].features), parts[0].target)
    scores = raw_scores(estimator, preprocessor.transform(parts[1].features), problem_type)
    again = validation_score(parts[1].target, scores, problem_type)
    assert again == pytest.approx(found.best_value, abs=1e-6)


def test_threads_decide_nothing():
    found = [
        search_hyperparameters(
            "RandomForest", visible(rows(150), rows(80, 1)), scope="s", algorithms=small_forests(),
            policy=policy(9, n_jobs=3, interval=4, n_startup_trials=2),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert document(found[0]) == document(found[1])
    assert len({str(trial.parameters) for trial in found[0].trials}) == 9


def test_a_scope_may_have_a_number_of_trials_of_its_own():
    asked = policy(2)
    budget = asked.optimization.model_copy(update={"n_trials_by_scope": {"thorough": 4}})
    asked = asked.model_copy(update={"optimization": budget})
    counts = [
        len(
            search_hyperparameters(
                "LogisticRegression", visible(rows(100), rows(60, 1)), scope=scope, policy=asked
            ).trials
        )
        for scope in ("thorough", "quick")
    ]
    assert counts == [4, 2]


def test_a_small_space_is_searched_through_and_no_further():
    document = AlgorithmsPolicy.load().model_dump()
    document["algorithms"]["Ridge"]["search_space"]["alpha"] = {
        "kind": "categorical", "choices": [0.1, 1.0, 10.0]
    }  # fmt: skip
    found = search_hyperparameters(
        "Ridge", visible(numbers(rows(80)), numbers(rows(60, 1), 1)), scope="s", problem_type="regression",
        algorithms=AlgorithmsPolicy.model_validate(document), policy=policy(10),
    )  # fmt: skip
    assert (found.stopped_by, sorted(trial.parameters["alpha"] for trial in found.trials)) == (
        "space",
        [0.1, 1.0, 10.0],
    )


def test_cmaes_without_its_package_is_refused():
    asked = policy(1)
    asked = asked.model_copy(update={"sampler": asked.sampler.model_copy(update={"name": "cmaes"})})
    if find_spec("cmaes") is not None:
        assert len(
            search_hyperparameters(
                "LogisticRegression", visible(rows(100), rows(60, 1)), scope="s", policy=asked
            ).trials
        )
        return
    with pytest.raises(ConfigError, match="needs the package cmaes") as refused:
        search_hyperparameters("LogisticRegression", visible(rows(100), rows(60, 1)), scope="s", policy=asked)
    assert (refused.value.field, refused.value.value) == ("sampler.name", "cmaes")
