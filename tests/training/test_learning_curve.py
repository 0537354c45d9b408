"""The learning curve: its course on a known signal, its end, and what is not fitted."""

import pytest
import yaml
from model_rows import HORIZON, rows, target_of, visible

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import ConfigError
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.training import evaluate, train
from e2i_dagster.training.learning_curve import learning_curve

POLICY = OptunaPolicy.load()
KINDS = {
    "binary_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}, "roc_auc"),
    "multiclass_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}, "roc_auc"),
    "regression": ("Ridge", {"alpha": 1.0}, "r2"),
    "survival": ("CoxPH", {"n_estimators": 50, "learning_rate": 0.5, "reg_lambda": 0.001}, "c_index"),
}


def with_rules(**changes):
    own = POLICY.evaluation.learning_curve.model_copy(update=changes)
    return POLICY.model_copy(
        update={"evaluation": POLICY.evaluation.model_copy(update={"learning_curve": own})}
    )


def fitted(kind, n=400):
    seen = visible(target_of(rows(n), kind), target_of(rows(300, 1), kind, 1))
    algorithm, parameters, _ = KINDS[kind]
    model = train(seen, algorithm=algorithm, parameters=parameters, problem_type=kind, horizon_days=HORIZON)
    return model, seen


@pytest.mark.parametrize("kind", KINDS)
def test_all_patients_give_the_figure_of_the_model_and_few_give_less(kind):
    model, seen = fitted(kind)
    result = evaluate(model, seen, criteria=SuccessCriteria())
    few, *_, everybody = result.learning_curve
    assert [point.rows for point in result.learning_curve] == [40, 100, 200, 300, 400]
    measured = result.metric("validation", KINDS[kind][2])
    # Of several classes the calibration, which the curve is without, moves the order against the rest a little.
    allowed = 1e-3 if kind == "multiclass_classification" else 1e-9
    assert everybody.validation.value == pytest.approx(measured, abs=allowed)
    assert everybody.validation.low < measured < everybody.validation.high
    if not few.reason:
        assert few.validation.value < everybody.validation.value
    shown = result.to_metadata()
    assert shown["learning_curve"].rows[-1][:2] == (1.0, 400)
    assert shown["learning_curve_figure"].uri.startswith("data:image/png;base64,iVBOR")
    assert "learning_figure" not in result.to_record()


def test_parts_with_too_few_of_an_outcome_or_too_many_patients_are_not_fitted():
    model, seen = fitted("binary_classification")
    # 30 events among 400 patients: about three in a tenth.
    target = seen.train.target * 0
    target[:30] = 1
    rare = visible(LabelledRows(seen.train.features, target), seen.validation)
    points = learning_curve(model, rare, with_rules(maximum_rows=350))
    assert points[0].reason == "fewer than 11 patients of one outcome"
    assert points[0].validation.value is None
    assert points[3].reason == ""
    assert points[3].validation.value is not None
    assert points[4].reason == "more than 350 patients (evaluation.learning_curve.maximum_rows)"


def test_switched_off_it_says_skipped():
    model, seen = fitted("regression")
    result = evaluate(model, seen, criteria=SuccessCriteria(), policy=with_rules(enabled=False))
    shown = result.to_metadata()
    assert (result.learning_curve, result.learning_figure) == ((), b"")
    assert not shown["learning_curve"].rows
    assert shown["learning_curve"].empty.startswith("skipped: evaluation.learning_curve.enabled is false")
    assert "learning_curve_figure" not in shown


def test_fractions_that_do_not_ascend_are_refused(tmp_path):
    document = yaml.safe_load((CHECKOUT / "config/optuna_config.yaml").read_text())
    document["evaluation"]["learning_curve"]["fractions"] = [0.5, 0.2, 1.0]
    (tmp_path / "optuna_config.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="fractions ascend"):
        OptunaPolicy.load(tmp_path)
