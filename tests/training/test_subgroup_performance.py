"""Subgroups, their floor and the decision curve, on patients whose figures are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from model_rows import HORIZON, rows, target_of, visible
from sklearn.metrics import roc_auc_score

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.config.subgroups import SubgroupColumn, joined_columns
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.modelling.problem import headline
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, train
from e2i_dagster.training.decision_curve import decision_curve, decision_table
from e2i_dagster.training.metrics import net_benefit
from e2i_dagster.training.subgroups import subgroup_performance, subgroup_table

RULES = OptunaPolicy.load().evaluation.model_copy(update={"bootstrap": 200})


def columns(*given):
    return tuple(SubgroupColumn.model_validate(column) for column in given)


def drawn(n, seed=0):
    """Outcomes drawn from their probabilities: a calibrated model."""
    draw = np.random.default_rng(seed)
    logit = draw.normal(scale=1.5, size=n)
    scores = 1 / (1 + np.exp(-logit))
    return (draw.random(n) < scores).astype("int64"), scores


def measured(groups, *given, n=None, seed=0):
    target, scores = drawn(n or len(groups), seed)
    return subgroup_performance(target, scores, groups, columns(*given), RULES)


def test_a_level_is_measured_on_its_patients_against_all():
    target, scores = drawn(600)
    groups = pd.DataFrame({"region": np.repeat(["south", "west", "north"], 200)})
    north, south, west = subgroup_performance(target, scores, groups, columns("region"), RULES)
    assert [group.level for group in (north, south, west)] == ["north", "south", "west"]
    mine = slice(200, 400)
    expected = roc_auc_score(target[mine], scores[mine])
    assert (west.n, west.events, west.status) == (200, int(target[mine].sum()), "estimated")
    assert west.metrics["roc_auc"].value == pytest.approx(expected)
    assert west.differences["roc_auc"].value == pytest.approx(expected - roc_auc_score(target, scores))
    assert west.metrics["roc_auc"].low < expected < west.metrics["roc_auc"].high
    assert west.calibration_intercept.low < 0 < west.calibration_intercept.high


def test_the_difference_is_paired_so_that_a_level_of_everybody_has_none():
    (everybody,) = measured(pd.DataFrame({"sex": ["F"] * 300}), "sex")
    assert everybody.differences["roc_auc"].with_interval == (0, 0, 0)


def test_a_planted_shift_of_one_level_is_found_in_its_calibration_alone():
    target, scores = drawn(4_000)
    shifted = np.arange(4_000) < 2_000
    logit = np.log(scores / (1 - scores))
    wrong = np.where(shifted, 1 / (1 + np.exp(-(logit - 0.7))), scores)
    groups = pd.DataFrame({"payer": np.where(shifted, "a", "b")})
    moved, kept = subgroup_performance(target, wrong, groups, columns("payer"), RULES)
    assert moved.calibration_intercept.low < 0.7 < moved.calibration_intercept.high
    assert moved.calibration_intercept.low > 0.4
    assert kept.calibration_intercept.low < 0 < kept.calibration_intercept.high


def test_bands_begin_at_their_edges_and_patients_without_a_value_are_a_level():
    age = pd.array([39, 40, 64, 65, None] * 60, dtype="Int64")
    found = measured(pd.DataFrame({"age": age}), {"column": "age", "edges": [40, 65]})
    assert {group.level: group.n for group in found} == {
        "below 40": 60, "40 to below 65": 120, "65 and above": 60, "missing": 60,
    }  # fmt: skip


def test_truth_values_and_few_numbers_are_levels_and_what_has_none_says_why():
    groups = pd.DataFrame(
        {
            "academic": pd.array([True, False, None] * 100, dtype="boolean"),
            "visits": [0.0, 1.0, 2.5] * 100,
            "cost": np.arange(300.0),
            "sex": ["F", "M", "M"] * 100,
        }
    )
    found = measured(groups, "academic", "visits", "cost", {"column": "sex", "edges": [1]}, "absent")
    assert [group.level for group in found[:6]] == ["no", "yes", "missing", "0", "1", "2.5"]
    assert {group.column: group.reason for group in found[6:]} == {
        "cost": "a number with more than 10 values needs edges",
        "sex": "edges are given, and the column is no number",
        "absent": "the training frame has no such column",
    }
    assert {group.status for group in found[6:]} == {"not_estimable"}


def test_too_few_patients_or_one_outcome_are_not_estimable_and_no_small_cell_is_shown():
    target, scores = drawn(500)
    level = np.repeat(["common", "few", "single", "rare"], [330, 5, 80, 85])
    target[level == "single"] = 0
    target[level == "rare"] = np.arange(85) < 10
    found = subgroup_performance(target, scores, pd.DataFrame({"region": level}), columns("region"), RULES)
    assert {group.level: group.reason for group in found} == {
        "common": "", "few": "fewer than 50 patients", "rare": "fewer than 11 patients of one outcome",
        "single": "one outcome only",
    }  # fmt: skip
    shown = {group.level: (group.n, group.events) for group in found}
    # The total is known, so that a second level is hidden beside the one of five patients.
    assert shown["few"] == (None, None)
    assert shown["single"] == (None, None)
    assert shown["rare"] == (85, None)
    assert shown["common"][0] == 330
    assert all(not group.metrics for group in found if group.status == "not_estimable")
    assert subgroup_table(found).rows[1][-1] == "not_estimable: fewer than 50 patients"


@pytest.fixture(scope="module")
def trained():
    seen = visible(rows(500), rows(200, 1))
    return train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0}), seen


def evaluated(trained, test_rows, *given, policy_floor=None, opened=True, **asked):
    shipped = OptunaPolicy.load()
    own = RULES.subgroups.model_copy(update={"columns": (), "floor": policy_floor})
    policy = shipped.model_copy(update={"evaluation": RULES.model_copy(update={"subgroups": own})})
    model, seen = trained
    return evaluate(
        model,
        seen,
        SealedRows(lambda candidate: test_rows) if opened else None,
        criteria=SuccessCriteria.model_validate(asked),
        subgroups=columns(*given),
        policy=policy,
    )


def two_sites(noise):
    """Test patients of two sites; the outcome of one is noise."""
    source = rows(500, 2)
    target = source.target.copy()
    target[:200] = np.where(noise, np.random.default_rng(3).integers(0, 2, 200), target[:200])
    groups = pd.DataFrame({"site": ["first"] * 200 + ["second"] * 300, "empty": ["x"] * 10 + ["y"] * 490})
    return LabelledRows(source.features, target, groups=groups)


def floor_of(result):
    (found,) = [criterion for criterion in result.criteria if criterion.name == "subgroup_floor"]
    return found


def test_a_subgroup_below_the_floor_fails_the_model_and_is_named(trained):
    result = evaluated(trained, two_sites(noise=True), "site", "empty", subgroup_floor=0.65)
    found = floor_of(result)
    assert not found.passed
    assert not result.accepted
    assert "site first" in found.reason
    assert "lies below" in found.reason
    assert "site second" not in found.reason
    assert found.distance == pytest.approx(found.high - 0.65)
    assert found.high < 0.65
    assert "Not estimable: empty x (fewer than 50 patients)" in found.reason


def test_a_floor_within_the_interval_is_met_and_names_what_was_not_estimable(trained):
    test_rows = two_sites(noise=False)
    groups = evaluated(trained, test_rows, "site").subgroups
    lowest = min(groups, key=lambda group: group.metrics["roc_auc"].high).metrics["roc_auc"]
    within = (lowest.value + lowest.high) / 2
    found = floor_of(evaluated(trained, test_rows, "site", "empty", subgroup_floor=within))
    assert found.passed
    assert found.low < found.value < within < found.high
    assert "met, lowest" in found.reason
    assert "empty x" in found.reason


def test_subgroups_that_are_not_estimable_meet_no_floor(trained):
    found = floor_of(evaluated(trained, two_sites(noise=False), "absent", subgroup_floor=0.1))
    assert not found.passed
    assert found.value is None
    assert "no subgroup is estimable" in found.reason
    closed = floor_of(evaluated(trained, None, "site", opened=False, subgroup_floor=0.1))
    assert not closed.passed
    assert "the test rows were not opened" in closed.reason


def test_there_is_no_floor_unless_scope_or_policy_states_it_and_the_scope_goes_first(trained):
    test_rows = two_sites(noise=True)
    silent = evaluated(trained, test_rows, "site")
    assert "subgroup_floor" not in [criterion.name for criterion in silent.criteria]
    assert len(silent.subgroups) == 2
    assert floor_of(evaluated(trained, test_rows, "site", policy_floor=0.65)).threshold == 0.65
    scoped = evaluated(trained, test_rows, "site", policy_floor=0.65, subgroup_floor=0.1)
    assert floor_of(scoped).threshold == 0.1
    assert floor_of(scoped).passed


def test_columns_of_the_scope_stand_behind_those_of_the_policy_or_in_their_place():
    joined = joined_columns(
        columns("sex", {"column": "age", "edges": [40]}), columns({"column": "age"}, "site")
    )
    assert [(column.column, column.edges) for column in joined] == [("sex", ()), ("age", ()), ("site", ())]


def test_net_benefit_is_that_of_vickers_and_elkin():
    target = np.array([1, 1, 0, 0, 0])
    scores = np.array([0.9, 0.3, 0.6, 0.2, 0.1])
    thresholds = np.array([0.2, 0.5])
    # At 0.2: 2 true, 2 false of 5, odds 1/4. At 0.5: 1 true, 1 false of 5, odds 1.
    assert net_benefit(target, scores, thresholds) == pytest.approx(np.array([[0.4 - 0.4 / 4, 0.0]]))
    everybody = net_benefit(target, np.ones(5), thresholds)
    assert everybody == pytest.approx(np.array([[0.4 - 0.6 / 4, 0.4 - 0.6]]))
    weights = np.array([[1.0, 2.0, 0.0, 3.0, 1.0]])
    repeated = net_benefit(np.repeat(target, [1, 2, 0, 3, 1]), np.repeat(scores, [1, 2, 0, 3, 1]), thresholds)
    assert net_benefit(target, scores, thresholds, weights) == pytest.approx(repeated)


def test_the_decision_curve_compares_with_the_better_of_all_and_none():
    target, scores = drawn(2_000)
    points = {round(point.threshold, 2): point for point in decision_curve(target, scores, RULES)}
    share = target.mean()
    low, high = points[0.1], points[0.7]
    assert low.treat_all == pytest.approx(share - (1 - share) / 9)
    assert low.gain.value == pytest.approx(low.net_benefit.value - low.treat_all)
    assert high.treat_all < 0
    assert high.gain.value == high.net_benefit.value
    assert all(point.gain.low > 0 for point in (points[0.3], points[0.5], high))
    # A model that knows nothing gains nothing.
    nothing = decision_curve(target, np.full(2_000, share), RULES)
    assert all(point.gain.value == pytest.approx(0) for point in nothing)


def test_thresholds_that_ten_patients_reach_are_left_out():
    target = np.tile([0, 1], 50)
    scores = np.repeat([0.2, 0.5, 0.8], [60, 30, 10])
    points = decision_curve(target, scores, RULES)
    assert max(point.threshold for point in points) == 0.5
    assert [row[0] for row in decision_table(points).rows] == pytest.approx(np.arange(5, 55, 5) / 100)


def test_the_page_and_the_record_have_subgroups_and_curve_of_the_opened_test_rows_alone(trained):
    result = evaluated(trained, two_sites(noise=False), "site")
    shown = result.to_metadata()
    assert [row[:2] for row in shown["subgroups"].rows] == [("site", "first"), ("site", "second")]
    assert shown["decision_curve"].uri.startswith("data:image/png;base64,iVBOR")
    assert shown["net_benefit"].rows
    record = result.to_record()
    assert [group["level"] for group in record["subgroups"]] == ["first", "second"]
    assert len(record["decision_curve"]) == len(result.decision_curve) > 50
    assert "decision_figure" not in record
    closed = evaluated(trained, None, "site", opened=False)
    assert (closed.subgroups, closed.decision_curve, closed.decision_figure) == ((), (), b"")
    assert not {"subgroups", "net_benefit", "decision_curve"} & set(closed.to_metadata())


ALGORITHMS = {
    "binary_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}),
    "multiclass_classification": ("LogisticRegression", {"C": 1.0, "l1_ratio": 0.0}),
    "regression": ("Ridge", {"alpha": 1.0}),
    "survival": ("CoxPH", {"n_estimators": 200, "learning_rate": 0.5, "reg_lambda": 0.001}),
}


def of_kind(kind, n=500):
    """A model of ``kind`` with the rows that it has seen, and test rows of two sites, one of them noise."""
    seen = visible(target_of(rows(n), kind), target_of(rows(200, 1), kind, 1))
    algorithm, parameters = ALGORITHMS[kind]
    model = train(seen, algorithm=algorithm, parameters=parameters, problem_type=kind, horizon_days=HORIZON)
    test = target_of(rows(700, 2), kind, 2)
    target = test.target.copy()
    target[:300] = np.random.default_rng(5).permutation(target[:300])
    groups = pd.DataFrame({"site": ["first"] * 300 + ["second"] * 400})
    return (model, seen), replace(test, target=target, groups=groups)


@pytest.mark.parametrize(
    ("kind", "metric", "floor"),
    [
        ("multiclass_classification", "roc_auc", 0.65),
        ("regression", "r2", 0.3),
        ("survival", "c_index", 0.65),
    ],
)
def test_every_problem_type_has_subgroups_of_its_own_measure_and_a_floor(kind, metric, floor):
    fitted, test_rows = of_kind(kind)
    result = evaluated(fitted, test_rows, "site", subgroup_floor=floor)
    first, second = result.subgroups
    model = fitted[0]
    half = slice(300, 700)
    scores = model.scores(test_rows.features)
    assert second.metrics[metric].value == pytest.approx(headline(kind, test_rows.target[half], scores[half]))
    assert second.metrics[metric].low > floor > first.metrics[metric].high
    # Both are compared with all patients, whom they are part of.
    assert first.differences[metric].high < 0 < second.differences[metric].low
    found = floor_of(result)
    assert not found.passed
    assert found.rule.startswith(f"{metric} of every subgroup")
    assert "site first" in found.reason
    assert "site second" not in found.reason
    table = result.to_metadata()["subgroups"]
    assert [row[:3] for row in table.rows] == [("site", "first", 300), ("site", "second", 400)]
    assert (first.events is None) == (kind != "survival")
    assert result.decision_curve == ()


def test_the_floor_of_the_policy_is_one_of_concordance_and_says_nothing_of_numbers():
    fitted, test_rows = of_kind("regression")
    result = evaluated(fitted, test_rows, "site", policy_floor=0.6)
    assert "subgroup_floor" not in [criterion.name for criterion in result.criteria]
    error = fitted[0].scores(test_rows.features)[:300] - test_rows.target[:300]
    assert result.subgroups[0].metrics["mae"].value == pytest.approx(np.abs(error).mean())
    assert result.subgroups[0].metrics["bias"].value == pytest.approx(error.mean())


def test_times_with_few_events_are_not_estimable():
    target = -np.arange(1.0, 201)
    target[:10] *= -1
    (found,) = subgroup_performance(
        target, np.linspace(0, 1, 200), pd.DataFrame({"sex": ["F"] * 200}), columns("sex"), RULES,
        problem_type="survival", horizon_days=60,
    )  # fmt: skip
    assert found.reason == "fewer than 11 patients with the event"
    assert found.events is None
