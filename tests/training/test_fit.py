from functools import cache

import numpy as np
import pandas as pd
import pytest
from model_rows import numbers, patients, rows, visible

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.modelling.model_input import LabelledRows
from e2i_dagster.serving.models import LoadedModel
from e2i_dagster.training import train
from e2i_dagster.training.fit import invented_example, youden_threshold

BINARY = ["XGBoost", "LightGBM", "HistGradientBoosting", "RandomForest", "ExtraTrees", "LogisticRegression"]


def fitted(algorithm, train_rows=None, validation_rows=None, **more):
    defaults = dict(AlgorithmsPolicy.load().algorithm(algorithm).defaults)
    # Fifty trees are enough to behave like a forest.
    defaults |= {name: 50 for name in ("n_estimators", "max_iter") if name in defaults}
    return train(
        visible(train_rows or rows(300), validation_rows or rows(150, 1)),
        algorithm=algorithm,
        parameters=defaults,
        **more,
    )


@cache
def usual(algorithm):
    """The model of the usual patients, for tests that read it."""
    return fitted(algorithm)


@pytest.mark.parametrize("algorithm", BINARY)
def test_alone_in_a_batch_and_shuffled_is_the_same(algorithm):
    model = usual(algorithm)
    frame = patients(15, 5)
    batch = model.scores(frame)
    alone = np.concatenate([model.scores(frame.iloc[[i]]) for i in range(len(frame))])
    order = np.random.default_rng(0).permutation(len(frame))
    shuffled = model.scores(frame.iloc[order])
    # Trees to the last bit; a linear sum over one row may be rounded differently from one over forty.
    tolerance = 1e-14 if algorithm == "LogisticRegression" else 0.0
    assert np.abs(batch - alone).max() <= tolerance
    assert np.abs(batch[order] - shuffled).max() <= tolerance


@pytest.mark.parametrize("algorithm", BINARY)
def test_equal_inputs_give_the_same_model(algorithm):
    first, second = usual(algorithm), fitted(algorithm)
    assert first.digest == second.digest
    assert fitted(algorithm, train_rows=rows(300, 7)).digest != first.digest


def test_preprocessing_and_estimator_see_training_rows_only():
    train_rows, validation_rows = rows(300), rows(150, 1)
    moved = validation_rows.features.assign(severity=lambda f: f["severity"] * 100 + 7, region="elsewhere")
    kept = fitted("XGBoost", train_rows, validation_rows)
    other = fitted("XGBoost", train_rows, LabelledRows(moved, 1 - validation_rows.target))
    preprocess = [model.pipeline.named_steps["preprocess"] for model in (kept, other)]
    judged = rows(100, 9).features
    matrices = [part.transform(judged) for part in preprocess]
    assert np.array_equal(*matrices)
    margins = [m.estimator.predict(matrices[0], output_margin=True) for m in (kept, other)]
    assert np.array_equal(*margins)
    # Calibration and threshold, which are allowed to see them, do change.
    assert kept.threshold != other.threshold


def test_the_threshold_is_that_of_the_validation_rows():
    """The outcome is rarer among the validation patients, so that the best cut lies elsewhere."""
    train_rows, validation_rows = rows(600), rare(rows(400, 1), 0.2)
    model = fitted("LogisticRegression", train_rows, validation_rows)
    cuts = [
        youden_threshold(part.target, model.scores(part.features)) for part in (train_rows, validation_rows)
    ]
    assert model.threshold == cuts[1] != cuts[0]


def test_a_score_at_the_threshold_is_positive():
    model = usual("LogisticRegression")
    seen = rows(150, 1).features
    at = model.scores(seen) == model.threshold
    assert at.any(), "the threshold is the score of a validation patient"
    answers = LoadedModel(model.pipeline, model.threshold).predict(seen).predictions
    assert (np.array(answers)[at] == 1).all()


def test_calibration_is_that_of_the_validation_rows():
    """Calibrated on training rows, the mean would be theirs."""
    train_rows, validation_rows = rows(600), rare(rows(600, 1), 0.15)
    model = fitted("RandomForest", train_rows, validation_rows)
    mean = model.scores(validation_rows.features).mean()
    assert mean == pytest.approx(validation_rows.target.mean(), abs=0.02)
    assert train_rows.target.mean() > mean + 0.2
    assert model.prevalence == train_rows.target.mean()


def test_scaling_is_that_of_the_training_rows():
    train_rows = rows(300)
    scaler = fitted("LogisticRegression", train_rows).pipeline.named_steps["preprocess"]
    mean = scaler.named_transformers_["number"].named_steps["scale"].mean_[0]
    assert mean == pytest.approx(train_rows.features["severity"].mean())


def test_levels_and_missing_values_not_seen_in_training_get_a_prediction():
    model = usual("HistGradientBoosting")
    frame = patients(3, 4).assign(region="moon", severity=np.nan, insurance=None)
    scores = model.scores(frame)
    assert np.isfinite(scores).all()


def test_calibrated_probabilities_have_the_right_mean_and_slope():
    from e2i_dagster.training.metrics import calibration_line

    fresh = rows(8000, 11)
    model = fitted("RandomForest", rows(900), rows(600, 1))
    scores = model.scores(fresh.features)
    line = calibration_line(fresh.target, scores)
    assert scores.mean() == pytest.approx(fresh.target.mean(), abs=0.05)
    assert line["calibration_slope"][0] == pytest.approx(1, abs=0.3)


def test_a_strongly_shrunk_model_is_calibrated_with_an_intercept():
    """Its log-odds lie around those of the mean, which a temperature alone would move: slope 2 to 3 without one."""
    from e2i_dagster.training.metrics import calibration_line

    train_rows, validation_rows, fresh = (
        few(rows(n, seed), 0.5) for n, seed in ((2000, 0), (900, 1), (9000, 11))
    )
    model = train(
        visible(train_rows, validation_rows),
        algorithm="LogisticRegression",
        parameters={"C": 0.001, "l1_ratio": 0.0},
    )
    assert model.calibration == "sigmoid" and "temperature alone" in model.calibration_note
    line = calibration_line(fresh.target, model.scores(fresh.features))
    assert line["calibration_slope"][0] == pytest.approx(1, abs=0.2)


def few(source, kept):
    """``source`` with so much of its events."""
    events = np.flatnonzero(source.target == 1)
    keep = np.concatenate([np.flatnonzero(source.target == 0), events[: int(kept * len(events))]])
    return LabelledRows(source.features.iloc[keep], source.target[keep])


def rare(source, share):
    keep = np.concatenate(
        [np.flatnonzero(source.target == 0), np.flatnonzero(source.target == 1)[: int(share * len(source))]]
    )
    return LabelledRows(source.features.iloc[keep], source.target[keep])


@pytest.mark.parametrize("algorithm", BINARY)
def test_a_rare_outcome_keeps_its_mean(algorithm):
    train_rows, validation_rows = rare(rows(900), 0.06), rare(rows(900, 1), 0.06)
    model = fitted(algorithm, train_rows, validation_rows)
    assert model.calibration == "sigmoid"
    mean = model.scores(validation_rows.features).mean()
    assert mean == pytest.approx(validation_rows.target.mean(), abs=0.01)


@pytest.mark.parametrize("algorithm", BINARY)
def test_twenty_eight_events_in_validation_give_calibrated_probabilities(algorithm):
    """Prevalence 8 %: calibration is cross-fitted on training rows, and holds on patients not seen."""
    from e2i_dagster.training.metrics import calibration_line

    def eight(source, events):
        positive = np.flatnonzero(source.target == 1)[:events]
        keep = np.concatenate([np.flatnonzero(source.target == 0)[: round(events * 11.5)], positive])
        return LabelledRows(source.features.iloc[keep], source.target[keep])

    model = fitted(algorithm, eight(rows(2400), 84), eight(rows(900, 1), 28))
    assert model.calibration == "sigmoid"
    assert "cross-fitted on 1050 training rows" in model.calibration_note
    fresh = eight(rows(2400, 2), 84)
    scores = model.scores(fresh.features)
    share = fresh.target.mean()
    assert scores.mean() == pytest.approx(share, abs=0.025)
    assert np.mean((scores - fresh.target) ** 2) <= share * (1 - share)
    slope, error = calibration_line(fresh.target, scores)["calibration_slope"]
    assert slope - 1.96 * error <= 1 <= slope + 1.96 * error


def test_too_few_validation_patients_are_not_calibrated_and_it_says_so():
    model = fitted("XGBoost", rows(60), rows(40, 1))
    assert model.calibration == "none"
    assert "fewer than 30" in model.calibration_note


def test_youden_threshold_by_hand():
    # Cuts from above: .9 -> 1/2 - 0, .8 -> 1/2 - 1/2, .7 -> 1 - 1/2, so .9 and .7 tie; the larger wins.
    assert youden_threshold(np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])) == 0.9
    # A tie of scores is one cut.
    assert youden_threshold(np.array([1, 0, 0]), np.array([0.5, 0.5, 0.2])) == 0.5


def test_the_example_is_invented():
    model = usual("XGBoost")
    features = rows(300).features
    example = model.input_example
    assert list(example.columns) == list(model.features)
    assert not (features == example.iloc[0]).all(axis=1).any()
    assert np.isfinite(model.scores(example)).all()


def test_an_example_that_a_patient_has_is_moved():
    features = pd.DataFrame({"visits": [2.0, 2.0, 3.0], "region": ["west", "west", "west"]})
    example = invented_example(features, {"visits": "number", "region": "string"})
    assert example.iloc[0].to_dict() == {"visits": 4.0, "region": "west"}
    text = invented_example(features[["region"]], {"region": "string"})
    assert text.iloc[0, 0] == "example west"


@pytest.mark.parametrize("algorithm", ["Ridge", "Lasso", "XGBoost", "LightGBM", "RandomForest"])
def test_numbers_are_predicted(algorithm):
    model = fitted(algorithm, numbers(rows(400)), numbers(rows(200, 1), 1), problem_type="regression")
    judged = numbers(rows(300, 2), 2)
    error = judged.target - model.scores(judged.features)
    assert model.threshold is None
    assert 1 - error.var() / judged.target.var() > 0.8


def test_inputs_are_not_changed():
    train_rows, validation_rows = rows(200), rows(100, 1)
    before = train_rows.features.copy(deep=True), validation_rows.features.copy(deep=True)
    fitted("XGBoost", train_rows, validation_rows)
    pd.testing.assert_frame_equal(train_rows.features, before[0])
    pd.testing.assert_frame_equal(validation_rows.features, before[1])
