"""Variances without resamples: by their definition on few patients, and against the bootstrap on many."""

import numpy as np
import pytest
from model_rows import HORIZON, rows, times

from e2i_dagster.training.influence import METRICS, half_width, normal_interval, roc_auc
from e2i_dagster.training.metrics import (
    binary_metrics,
    multiclass_metrics,
    regression_metrics,
    resamples,
    survival_metrics,
)


def delong(target, scores):
    """The variance as DeLong et al. define it, pair by pair."""
    cases, controls = scores[target == 1], scores[target == 0]
    kernel = (cases[:, None] > controls) + 0.5 * (cases[:, None] == controls)
    return kernel.mean(axis=1).var(ddof=1) / len(cases) + kernel.mean(axis=0).var(ddof=1) / len(controls)


@pytest.mark.parametrize("decimals", [1, 6])
def test_the_variance_of_an_area_is_that_of_delong_with_and_without_ties(decimals):
    draw = np.random.default_rng(0)
    target = draw.integers(0, 2, 60)
    scores = np.round(draw.normal(size=60) + target, decimals)
    value, influence = roc_auc(target, scores)
    assert value == pytest.approx(binary_metrics(target, scores, 0.5)["roc_auc"][0])
    assert (influence**2).sum() == pytest.approx(delong(target, scores))
    assert influence.sum() == pytest.approx(0)


def test_an_interval_by_hand():
    # Two cases, three controls. Placements of the cases 1 and 2/3, of the controls 1, 1 and 1/2:
    # variance (1/6)^2 * 2 / (2 * 1) + (1/36 + 1/36 + 1/9) / (3 * 2) = 1/36 + 1/36.
    target, scores = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.5, 0.6, 0.2, 0.1])
    found = normal_interval("roc_auc", roc_auc(target, scores), 0.95)
    width = 1.959964 * (1 / 18) ** 0.5
    assert found.value == pytest.approx(5 / 6)
    assert found.low == pytest.approx(5 / 6 - width)
    assert found.high == 1.0


def of_kind(kind, n):
    draw = np.random.default_rng(1)
    if kind == "survival":
        source = times(rows(n), 0)
        return source.target, 1 / (1 + np.exp(-source.features["severity"].to_numpy()))
    if kind == "regression":
        truth = draw.normal(size=n)
        return truth, truth + draw.normal(size=n) + 0.1
    logits = draw.normal(size=(n, 3 if kind == "multiclass_classification" else 2))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (draw.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    return target, chances if kind == "multiclass_classification" else chances[:, 1]


@pytest.mark.parametrize("kind", METRICS)
def test_value_and_error_of_every_metric_are_those_of_the_bootstrap(kind):
    target, scores = of_kind(kind, 600)

    def drawn(weights=None):
        if kind == "binary_classification":
            return binary_metrics(target, scores, 0.5, weights)
        if kind == "multiclass_classification":
            return multiclass_metrics(target, scores, weights)
        if kind == "survival":
            return survival_metrics(target, scores, HORIZON, weights)
        return regression_metrics(target, scores, weights)

    many = [drawn(block) for block in resamples(600, 2000, 7)]
    for name, measure in METRICS[kind].items():
        value, influence = measure(target, scores)
        assert value == pytest.approx(drawn()[name][0]), name
        error = np.concatenate([block[name] for block in many]).std()
        # Of 2,000 resamples a standard error is known to 1.6 %.
        assert np.sqrt((influence**2).sum()) == pytest.approx(error, rel=0.06), name


def test_the_error_of_a_paired_difference_is_that_of_the_bootstrap():
    target, scores = of_kind("binary_classification", 600)
    inside = np.arange(600) < 200
    apart = -roc_auc(target, scores)[1]
    apart[inside] += roc_auc(target[inside], scores[inside])[1]
    drawn = np.concatenate(
        [
            binary_metrics(target[inside], scores[inside], 0.5, block[:, inside])["roc_auc"]
            - binary_metrics(target, scores, 0.5, block)["roc_auc"]
            for block in resamples(600, 2000, 7)
        ]
    )
    assert half_width(apart, 0.95) == pytest.approx(1.96 * drawn.std(), rel=0.06)


def test_what_is_not_defined_is_no_number():
    one_outcome = roc_auc(np.ones(5, dtype=int), np.arange(5.0))
    no_event = METRICS["survival"]["c_index"](-np.ones(4), np.ones(4))
    constant = METRICS["regression"]["r2"](np.ones(5), np.arange(5.0))
    for measured in (one_outcome, no_event, constant):
        assert normal_interval("roc_auc", measured, 0.95).with_interval == (None, None, None)


def test_rows_of_one_patient_tell_no_more_than_one_of_them():
    draw = np.random.default_rng(3)
    target, patients = draw.integers(0, 2, 300), np.repeat(np.arange(300), 4)
    scores = draw.random(300) * 0.5 + target * 0.2
    once = normal_interval("roc_auc", roc_auc(target, scores), 0.95)
    again = normal_interval("roc_auc", roc_auc(target[patients], scores[patients]), 0.95, patients)
    assert again.value == pytest.approx(once.value)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.01)
