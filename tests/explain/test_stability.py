"""Importances of bootstrap refits: what carries the signal leads in all of them."""

import numpy as np
import pytest
from model_rows import HORIZON, rows, target_of, visible

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.explain import explain_validation
from e2i_dagster.explain.stability import importance_stability
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.training import train

POLICY = OptunaPolicy.load()
KINDS = {
    "binary_classification": ("XGBoost", {"n_estimators": 20, "max_depth": 3}),
    "multiclass_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}),
    "regression": ("Ridge", {"alpha": 1.0}),
    "survival": ("CoxPH", {"n_estimators": 50, "learning_rate": 0.5, "reg_lambda": 0.001}),
}


def with_rules(**changes):
    return POLICY.model_copy(update={"explanations": POLICY.explanations.model_copy(update=changes)})


def fitted(kind):
    seen = visible(target_of(rows(400), kind), target_of(rows(200, 1), kind, 1))
    algorithm, parameters = KINDS[kind]
    return train(
        seen, algorithm=algorithm, parameters=parameters, problem_type=kind, horizon_days=HORIZON
    ), seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_signal_leads_in_every_refit_and_noise_in_few(kind):
    model, seen = fitted(kind)
    found = explain_validation(model, seen, with_rules(bootstrap_refits=5))
    shares = {each.feature: each for each in found.stability}
    assert shares.keys() == set(model.features)
    assert {each.refits for each in found.stability} == {5}
    assert shares["severity"].leading == 1.0
    assert shares["severity"].low > shares["noise"].high
    assert shares["severity"].low <= shares["severity"].high
    assert found.to_metadata()["stability"].rows[0][-1] == 1.0
    again = explain_validation(model, seen, with_rules(bootstrap_refits=5))
    assert again.stability == found.stability


def test_the_policy_bounds_the_refits():
    model, seen = fitted("regression")
    for rules in (with_rules(bootstrap_refits=0), with_rules(maximum_rows=100)):
        found = explain_validation(model, seen, rules)
        assert found.stability == ()
        shown = found.to_metadata()["stability"]
        assert not shown.rows and shown.empty.startswith("skipped: ") and "explanations." in shown.empty


def test_patients_are_drawn_with_all_their_rows():
    seen = visible(target_of(rows(150), "regression"), target_of(rows(100, 1), "regression", 1))
    again = np.repeat(np.arange(150), 3)
    train_rows = LabelledRows(seen.train.features.iloc[again], seen.train.target[again], patients=again)
    repeated = visible(train_rows, seen.validation)
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    spread = [
        np.mean([each.high - each.low for each in importance_stability(model, given, POLICY)[0]])
        for given in (seen, repeated)
    ]
    assert spread[1] == pytest.approx(spread[0], rel=0.2)
