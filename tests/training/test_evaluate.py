import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_rows import numbers, rows, visible
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.modelling.preprocessing import build_preprocessor
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, train
from e2i_dagster.training.metrics import (
    binary_metrics,
    calibration_bins,
    calibration_line,
    interval,
    jackknife_errors,
    regression_metrics,
    resamples,
)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.35, 0.5, 0.8, 0.95])), min_size=4, max_size=40)
    .filter(lambda pairs: len({hit for hit, _ in pairs}) == 2)
)  # fmt: skip
def test_metrics_equal_scikit_learns_ties_included(pairs):
    target = np.array([int(hit) for hit, _ in pairs])
    scores = np.array([score for _, score in pairs])
    found = {name: value[0] for name, value in binary_metrics(target, scores, 0.5).items()}
    called = scores >= 0.5
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(target, scores))
    assert found["pr_auc"] == pytest.approx(reference.average_precision_score(target, scores))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(target, scores))
    assert found["log_loss"] == pytest.approx(reference.log_loss(target, scores))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(target, called))
    assert found["recall"] == pytest.approx(reference.recall_score(target, called))
    assert found["f1"] == pytest.approx(reference.f1_score(target, called))
    if called.any():
        assert found["precision"] == pytest.approx(reference.precision_score(target, called))
    else:
        assert np.isnan(found["precision"])


def test_a_weight_of_two_is_a_patient_twice():
    target, scores = np.array([0, 1, 1, 0]), np.array([0.2, 0.4, 0.7, 0.5])
    weighted = binary_metrics(target, scores, 0.45, np.array([[1.0, 2.0, 1.0, 3.0]]))
    repeated = binary_metrics(np.repeat(target, [1, 2, 1, 3]), np.repeat(scores, [1, 2, 1, 3]), 0.45)
    for name, value in repeated.items():
        assert weighted[name] == pytest.approx(value), name


def test_regression_metrics_equal_scikit_learns():
    draw = np.random.default_rng(0)
    target = draw.normal(10, 2, 50)
    scores = target + draw.normal(size=50)
    found = {name: value[0] for name, value in regression_metrics(target, scores).items()}
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(target, scores))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(target, scores))
    assert found["r2"] == pytest.approx(reference.r2_score(target, scores))
    assert found["mape"] == pytest.approx(reference.mean_absolute_percentage_error(target, scores))


def test_the_bootstrap_interval_of_a_mean_is_the_textbook_one():
    draw = np.random.default_rng(1)
    target = (draw.random(400) < 0.3).astype(int)
    values = np.concatenate([block @ target / 400 for block in resamples(400, 4000, 3)])
    low, high = interval(values, 0.95)
    share, width = target.mean(), 1.96 * np.sqrt(target.mean() * (1 - target.mean()) / 400)
    assert (low, high) == (pytest.approx(share - width, abs=0.005), pytest.approx(share + width, abs=0.005))


def repeated_rows(people=300, each=4, seed=1):
    """Outcomes that the rows of a patient share, their scores, and whose rows they are."""
    draw = np.random.default_rng(seed)
    patients = np.repeat(np.arange(people), each)
    logit = draw.normal(size=people)[patients]
    target = (draw.random(people) < 1 / (1 + np.exp(-logit[::each]))).astype(int)[patients]
    return target, 1 / (1 + np.exp(-logit)), patients


def test_patients_are_drawn_with_all_their_rows():
    target, _, patients = repeated_rows()
    blocks = np.concatenate(resamples(1_200, 4_000, 3, patients))
    assert (blocks.reshape(4_000, 300, 4).std(axis=2) == 0).all()
    spread = (blocks @ target / blocks.sum(axis=1)).std()
    # The rows of a patient tell no more than one of them.
    share = target.mean()
    assert spread == pytest.approx(np.sqrt(share * (1 - share) / 300), rel=0.05)
    alone = np.concatenate(resamples(1_200, 4_000, 3)) @ target / 1_200
    assert spread == pytest.approx(2 * alone.std(), rel=0.06)


def test_the_error_of_a_calibration_line_is_that_of_the_patients():
    target, scores, patients = repeated_rows(people=1_000)

    def slope(kept):
        return calibration_line(target[kept], scores[kept])["calibration_slope"][:1]

    one_row_each = calibration_line(target[::4], scores[::4])["calibration_slope"][1]
    assert jackknife_errors(slope, patients)[0] == pytest.approx(one_row_each, rel=0.25)
    # Without repeated rows it is the error of the likelihood.
    first = np.arange(0, len(target), 4)
    (single,) = jackknife_errors(
        lambda kept: calibration_line(target[first][kept], scores[first][kept])["calibration_slope"][:1],
        np.arange(len(first)),
    )
    assert single == pytest.approx(one_row_each, rel=0.25)


def test_auc_intervals_cover_the_truth_about_as_often_as_they_say():
    # Two normals one deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602.
    truth, covered = 0.7602, 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        target = np.repeat([0, 1], 100)
        scores = 1 / (1 + np.exp(-(draw.normal(size=200) + target)))
        aucs = np.concatenate(
            [binary_metrics(target, scores, 0.5, w)["roc_auc"] for w in resamples(200, 400, seed)]
        )
        low, high = interval(aucs, 0.95)
        covered += low <= truth <= high
    assert 88 <= covered <= 100


def test_the_calibration_line_finds_a_planted_slope_and_intercept():
    draw = np.random.default_rng(2)
    logit = draw.normal(size=60_000)
    target = (draw.random(60_000) < 1 / (1 + np.exp(-(0.5 * logit)))).astype(int)
    line = calibration_line(target, 1 / (1 + np.exp(-logit)))
    assert line["calibration_slope"][0] == pytest.approx(0.5, abs=4 * line["calibration_slope"][1])
    target = (draw.random(60_000) < 1 / (1 + np.exp(-(logit + 0.7)))).astype(int)
    line = calibration_line(target, 1 / (1 + np.exp(-logit)))
    assert line["calibration_intercept"][0] == pytest.approx(0.7, abs=4 * line["calibration_intercept"][1])


def test_a_calibration_line_without_a_maximum_is_not_estimable():
    line = calibration_line(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert np.isnan(line["calibration_slope"][0])
    constant = calibration_line(np.array([0, 1, 0, 1]), np.full(4, 0.5))
    assert np.isnan(constant["calibration_slope"][0])


def test_calibration_groups_are_never_small():
    assert all(
        item["n"] >= 11
        for item in calibration_bins(np.random.default_rng(0).integers(0, 2, 57), np.linspace(0, 1, 57))
    )
    assert calibration_bins(np.array([0, 1]), np.array([0.1, 0.9])) == []


@pytest.fixture(scope="module")
def trained():
    seen = visible(rows(700), rows(250, 1))
    defaults = AlgorithmsPolicy.load().algorithm("LogisticRegression").defaults
    model = train(seen, algorithm="LogisticRegression", parameters=defaults)
    return model, seen


def sealed(test_rows):
    return SealedRows(lambda candidate: test_rows)


def criteria(**given):
    return SuccessCriteria.model_validate(given)


def test_an_accepted_model(trained):
    opened = []

    def open_for(candidate):
        opened.append(candidate)
        return rows(240, 2)

    result = evaluate(*trained, SealedRows(open_for), criteria=criteria(min_auc=0.7, beats_baseline=True))
    assert result.accepted, result.reasons()
    assert opened == [trained[0].digest]
    assert {name: split.n for name, split in result.splits.items()} == {
        "train": 700,
        "validation": 250,
        "test": 240,
    }
    test = result.splits["test"].metrics
    assert test["roc_auc"].low < test["roc_auc"].value < test["roc_auc"].high
    assert {"calibration_slope", "calibration_intercept", "brier", "log_loss", "pr_auc", "f1"} <= set(test)
    assert [item.name for item in result.baselines] == ["prevalence", "one_variable", "logistic"]
    assert result.baselines[0].value == 0.5
    assert result.baselines[1].detail == "severity"
    assert result.flat()["test_roc_auc"] == test["roc_auc"].value


def test_intervals_are_of_patients_where_these_have_several_rows(trained):
    source = rows(240, 2)
    one = evaluate(*trained, sealed(source), criteria=criteria()).splits["test"]
    again = np.repeat(np.arange(240), 3)
    repeated = LabelledRows(source.features.iloc[again], source.target[again], patients=again)
    of_patients = evaluate(*trained, sealed(repeated), criteria=criteria())
    found = of_patients.splits["test"]
    assert (one.patients, found.n, found.patients) == (None, 720, 240)
    assert "test (n = 720, of 240 patients)" in of_patients.to_metadata()["metrics"].columns
    for name in ("roc_auc", "brier", "calibration_slope", "calibration_intercept"):
        assert found.metrics[name].value == pytest.approx(one.metrics[name].value)
        width = found.metrics[name].high - found.metrics[name].low
        assert width == pytest.approx(one.metrics[name].high - one.metrics[name].low, rel=0.3), name
    assert [group.n for group in of_patients.subgroups] == [
        group.n for group in evaluate(*trained, sealed(source), criteria=criteria()).subgroups
    ]
    assert of_patients.chance is not None and of_patients.chance.n == 240
    # Three rows of each of ten patients are ten patients.
    few = np.repeat(np.r_[np.flatnonzero(source.target == 0), np.flatnonzero(source.target == 1)[:10]], 3)
    scarce = LabelledRows(source.features.iloc[few], source.target[few], patients=few)
    assert "fewer than 11" in evaluate(*trained, sealed(scarce), criteria=criteria()).splits["test"].note


def test_each_missed_criterion_has_value_interval_threshold_and_distance(trained):
    result = evaluate(
        *trained,
        sealed(rows(250, 2)),
        criteria=criteria(min_auc={"value": 0.99, "split": "test", "estimate": "lower"}, max_brier=0.9),
    )
    missed, met = result.criteria[:2]
    assert not result.accepted
    assert missed.distance == pytest.approx(missed.low - 0.99)
    assert (missed.passed, met.passed) == (False, True)
    assert "short by" in result.reasons()[0]


def test_a_sealed_test_set_stays_closed_and_counts_as_not_met(trained):
    result = evaluate(*trained, criteria=criteria(min_auc=0.6, beats_baseline=True))
    assert "test" not in result.splits
    assert not result.test_opened
    assert [item.passed for item in result.criteria] == [False] * 5
    assert all("the test rows were not opened" in reason for reason in result.reasons())


def test_noise_does_not_beat_the_baselines():
    def noise(n, seed):
        source = rows(n, seed)
        target = np.random.default_rng(seed + 50).integers(0, 2, n)
        return LabelledRows(source.features, target)

    parameters = AlgorithmsPolicy.load().algorithm("XGBoost").defaults
    seen = visible(noise(400, 0), noise(200, 1))
    model = train(seen, algorithm="XGBoost", parameters=parameters)
    result = evaluate(model, seen, sealed(noise(200, 2)), criteria=criteria(min_auc=0.7))
    assert not result.accepted
    assert result.metric("test", "roc_auc") == pytest.approx(0.5, abs=0.12)


def test_a_split_with_too_few_of_one_outcome_is_not_estimable(trained):
    source = rows(60, 2)
    keep = np.concatenate([np.flatnonzero(source.target == 0), np.flatnonzero(source.target == 1)[:3]])
    few = LabelledRows(source.features.iloc[keep], source.target[keep])
    result = evaluate(*trained, sealed(few), criteria=criteria(min_auc=0.6, beats_baseline=True))
    assert result.splits["test"].metrics == {}
    assert "fewer than 11" in result.splits["test"].note
    assert not result.accepted


def test_calibration_is_a_criterion_of_every_binary_model(trained):
    """Weights by outcome without calibration miss it; too few events satisfy nothing."""
    from dataclasses import replace

    from sklearn.pipeline import Pipeline

    model, seen = trained
    train_rows = seen.train
    kept = evaluate(*trained, sealed(rows(250, 2)), criteria=criteria())
    assert [item.name for item in kept.criteria] == [
        "calibration_slope",
        "calibration_intercept",
        "better_than_chance",
    ]
    assert kept.accepted, kept.reasons()

    preprocess = model.pipeline.named_steps["preprocess"]
    rare = np.concatenate(
        [np.flatnonzero(train_rows.target == 0), np.flatnonzero(train_rows.target == 1)[:36]]
    )
    few = LabelledRows(train_rows.features.iloc[rare], train_rows.target[rare])
    weighted = LogisticRegression(class_weight="balanced").fit(preprocess.transform(few.features), few.target)
    unfit = replace(model, pipeline=Pipeline([("preprocess", preprocess), ("model", weighted)]))
    result = evaluate(unfit, visible(few, seen.validation), sealed(few), criteria=criteria())
    assert not result.accepted
    intercept = result.criteria[1]
    assert not intercept.passed
    assert intercept.distance < 0
    assert "lies outside the limits" in intercept.reason

    six = LabelledRows(few.features.iloc[-60:], np.r_[few.target[-60:-6] * 0, np.ones(6, dtype="int64")])
    unsaid = evaluate(model, seen, sealed(six), criteria=criteria())
    assert [item.passed for item in unsaid.criteria] == [False] * 3
    assert "not evaluable" in unsaid.reasons()[0]


def test_equal_inputs_give_equal_evaluations(trained):
    first, second = (
        evaluate(*trained, sealed(rows(250, 2)), criteria=criteria(min_auc=0.6)) for _ in range(2)
    )
    assert first.to_record() == second.to_record()
    assert first.figure == second.figure


def test_metadata_has_tables_and_a_figure(trained):
    shown = evaluate(*trained, criteria=criteria(min_auc=0.6)).to_metadata()
    assert shown["figure"].alt == "ROC curve and calibration"
    assert shown["figure"].uri.startswith("data:image/png;base64,iVBOR")
    assert "roc_auc" in [row[0] for row in shown["metrics"].rows]
    assert not shown["metrics"].note


def test_a_number_is_judged_by_its_own_metrics():
    seen = visible(numbers(rows(400)), numbers(rows(200, 1), 1))
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    result = evaluate(
        model,
        seen,
        sealed(numbers(rows(200, 2), 2)),
        criteria=criteria(min_r2=0.6, max_rmse=1.0, beats_baseline=True),
    )
    assert result.accepted, result.reasons()
    assert [item.name for item in result.baselines] == ["mean", "one_variable", "linear"]


def test_baselines_are_fitted_on_training_rows_and_chosen_on_validation_rows():
    """Noise tells the outcome of the validation patients alone, whose severity is in another unit."""
    parts = [rows(400), rows(200, 1), rows(300, 2)]
    told = (0.5, 4.0, 0.0)
    moved = [
        part.features.assign(noise=part.features["noise"] + strength * part.target)
        for part, strength in zip(parts, told, strict=True)
    ]
    moved[1]["severity"] *= 1_000
    seen = visible(LabelledRows(moved[0], parts[0].target), LabelledRows(moved[1], parts[1].target))
    test_rows = LabelledRows(moved[2], parts[2].target)
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})
    result = evaluate(model, seen, sealed(test_rows), criteria=criteria())
    one, everything = result.baselines[1:]
    assert one.detail == "noise"
    matrix = build_preprocessor(model.kinds).fit(seen.train.features)
    by_hand = LogisticRegression(C=1.0, tol=1e-6, max_iter=2_000).fit(
        matrix.transform(seen.train.features), seen.train.target
    )
    expected = reference.roc_auc_score(
        test_rows.target, by_hand.predict_proba(matrix.transform(test_rows.features))[:, 1]
    )
    assert everything.value == pytest.approx(expected, abs=1e-6)


def test_the_average_of_a_baseline_is_that_of_the_training_rows():
    seen = visible(numbers(rows(200)), numbers(rows(100, 1)))
    later = numbers(rows(150, 2))
    test_rows = LabelledRows(later.features, later.target + 5)
    model = train(seen, algorithm="Ridge", parameters={"alpha": 1.0}, problem_type="regression")
    result = evaluate(model, seen, sealed(test_rows), criteria=criteria())
    constant = np.full(150, seen.train.target.mean())
    assert result.baselines[0].value == pytest.approx(reference.r2_score(test_rows.target, constant))


def test_a_criterion_is_met_exactly_at_its_threshold(trained):
    test_rows = rows(250, 2)
    measured = evaluate(*trained, sealed(test_rows), criteria=criteria()).metric("test", "roc_auc")
    for value, met in ((measured, True), (np.nextafter(measured, 1), False)):
        result = evaluate(*trained, sealed(test_rows), criteria=criteria(min_auc=float(value)))
        assert result.criteria[0].passed is met
