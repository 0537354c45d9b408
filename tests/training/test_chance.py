"""The permutation test: exact probabilities, models of noise and of a signal, the gate and its policy."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import yaml
from model_rows import HORIZON, rows, target_of, visible
from scipy.stats import mannwhitneyu

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, train
from e2i_dagster.training.chance import chance_test

POLICY = OptunaPolicy.load()
RULES = POLICY.evaluation.better_than_chance
KINDS = {
    "binary_classification": ("XGBoost", {"n_estimators": 30, "max_depth": 3}),
    "multiclass_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}),
    "regression": ("Ridge", {"alpha": 1.0}),
    "survival": ("CoxPH", {"n_estimators": 50, "learning_rate": 0.5, "reg_lambda": 0.001}),
}


def p_value(target, scores, kind="binary_classification", count=9999):
    rules = RULES.model_copy(update={"permutations": count})
    return chance_test(target, scores, kind, split="test", policy=rules, seed=1).p_value


def test_the_p_value_is_that_of_mann_and_whitney():
    draw = np.random.default_rng(4)
    target = np.repeat([0, 1], [9, 7])
    scores = draw.normal(size=16) + 0.8 * target
    exact = mannwhitneyu(
        scores[target == 1], scores[target == 0], alternative="greater", method="exact"
    ).pvalue
    # Four standard errors of 9,999 permutations.
    assert p_value(target, scores) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 9999) ** 0.5)


def test_numbers_have_the_exact_share_of_the_orders():
    target, scores = np.array([1.0, 2, 4, 3]), np.array([1.0, 2, 3, 4])
    sums = [np.dot(scores, order) for order in permutations(target)]
    share = np.mean(np.array(sums) >= target @ scores)
    assert share == pytest.approx(4 / 24)
    assert p_value(target, scores, "regression") == pytest.approx(share, abs=0.016)


def test_equal_predictions_know_nothing_and_a_perfect_order_is_beaten_by_no_permutation():
    target = np.repeat([0, 1], 30)
    assert p_value(target, np.full(60, 0.3), count=99) == 1.0
    assert p_value(target, np.linspace(0, 1, 60), count=99) == 0.01
    days = np.r_[np.arange(1.0, 31), -np.arange(31.0, 61)]
    assert p_value(days, np.linspace(1, 0, 60), "survival", 99) == 0.01
    assert p_value(days, np.linspace(0, 1, 60), "survival", 99) == 1.0
    numbers = np.linspace(3, 9, 40)
    assert p_value(numbers, np.full(40, 0.1), "regression", 99) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_noise_fails_the_gate_and_a_model_of_the_signal_passes(kind):
    def parts(noise):
        found = [target_of(rows(n, seed), kind, seed) for n, seed in ((400, 0), (200, 1), (300, 2))]
        if noise:
            draw = np.random.default_rng(11)
            found = [replace(part, target=draw.permutation(part.target)) for part in found]
        return found

    algorithm, parameters = KINDS[kind]
    verdicts = {}
    for noise in (True, False):
        learn, choose, test = parts(noise)
        seen = visible(learn, choose)
        model = train(
            seen, algorithm=algorithm, parameters=parameters, problem_type=kind, horizon_days=HORIZON
        )
        opened = SealedRows(lambda candidate, test=test: test)
        result = evaluate(model, seen, opened, criteria=SuccessCriteria())
        (verdicts[noise],) = [each for each in result.criteria if each.name == "better_than_chance"]
        assert result.chance is not None
        assert result.chance.split == "test"
        assert verdicts[noise].value == result.chance.p_value
        assert result.to_metadata()["better_than_chance"].rows[0][-1] == result.chance.p_value
        assert result.accepted <= verdicts[noise].passed
    assert (verdicts[True].passed, verdicts[False].passed) == (False, True)
    assert "not met" in verdicts[True].reason
    assert verdicts[False].value == 0.001


def test_validation_rows_are_shown_but_meet_no_gate():
    seen = visible(rows(300), rows(150, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})
    closed = evaluate(model, seen, criteria=SuccessCriteria())
    (gate,) = [each for each in closed.criteria if each.name == "better_than_chance"]
    assert not gate.passed
    assert "the test rows were not opened" in gate.reason
    shown = closed.to_metadata()["better_than_chance"]
    assert shown.rows[0][0] == "validation"
    assert "too small" in shown.note


def test_without_the_gate_the_test_is_shown_and_decides_nothing():
    rules = POLICY.evaluation.model_copy(
        update={"better_than_chance": RULES.model_copy(update={"gate": False})}
    )
    seen = visible(rows(300), rows(150, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})
    opened = SealedRows(lambda candidate: rows(200, 2))
    policy = POLICY.model_copy(update={"evaluation": rules})
    result = evaluate(model, seen, opened, criteria=SuccessCriteria(), policy=policy)
    assert "better_than_chance" not in [each.name for each in result.criteria]
    assert result.chance is not None


def test_a_limit_that_no_permutations_can_reach_is_refused(tmp_path):
    document = yaml.safe_load((CHECKOUT / "config/optuna_config.yaml").read_text())
    document["evaluation"]["better_than_chance"] |= {"permutations": 99, "maximum_p_value": 0.001}
    (tmp_path / "optuna_config.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"maximum_p_value 0\.001 needs 999"):
        OptunaPolicy.load(tmp_path)
