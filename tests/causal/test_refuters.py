"""Each refuter with what it gives on a planted effect, a planted null, and an estimator that is wrong."""

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.causal.negative_controls import calibrate, fit_systematic_error, negative_controls
from e2i_dagster.causal.nuisances import fit_nuisances
from e2i_dagster.causal.refute import PointAndError, doubly_robust, refute
from e2i_dagster.causal.rows import causal_rows
from e2i_dagster.causal.sensitivity import assess_sensitivity

ASKED = {"treatment": "treated", "outcome": "outcome", "confounders": ["severity", "academic"]}


def refuted(frame, policy, effect=None):
    rows = causal_rows(frame, **ASKED)
    nuisances = fit_nuisances(rows, floor=policy.propensity_floor, seed=42)
    sensitivity = assess_sensitivity(rows, nuisances, level=policy.level)
    quick = policy.model_copy(update={"refutation": policy.refutation.model_copy(update={"repetitions": 5})})
    effect = effect or doubly_robust("linear", "linear", policy.propensity_floor)
    found = refute(rows, nuisances, sensitivity, quick, seed=42, effect=effect)
    return {one.name: one for one in found}


def difference_of_means(rows, seed):
    """Ignores every confounder."""
    treated, control = rows.y[rows.t == 1], rows.y[rows.t == 0]
    error = np.sqrt(treated.var() / len(treated) + control.var() / len(control))
    return PointAndError(float(treated.mean() - control.mean()), float(error))


@pytest.fixture(scope="module")
def on_effect(plant, causal_policy):
    return refuted(plant(1.5), causal_policy)


@pytest.fixture(scope="module")
def on_null(plant, causal_policy):
    return refuted(plant(0.0), causal_policy)


@pytest.fixture(scope="module")
def on_naive(plant, causal_policy):
    return refuted(plant(1.5), causal_policy, effect=difference_of_means)


def test_a_planted_effect_stands(on_effect):
    assert [name for name, one in on_effect.items() if not one.passed] == []
    assert on_effect["subset"].expected > 0.2
    assert abs(on_effect["placebo_treatment"].found) < 0.05
    assert abs(on_effect["dummy_outcome"].found) < 0.05


def test_a_planted_null_does_not_outlast_an_unobserved_confounder(on_null):
    assert [name for name, one in on_null.items() if not one.passed] == ["unobserved_confounder"]
    assert abs(on_null["random_common_cause"].found) < 0.06


def test_an_estimator_that_ignores_confounding_is_caught(on_naive):
    """Placebo treatments and dummy outcomes are as confounded as the real ones, so bias shows."""
    assert not on_naive["placebo_treatment"].passed
    assert not on_naive["dummy_outcome"].passed
    assert on_naive["dummy_outcome"].found > 0.1


def test_right_answers_are_not_refuted_whatever_the_size_of_the_effect(causal_policy):
    """Five randomized and five confounded draws, effects of 0 to 2 standard deviations."""
    failed = []
    for confounding in (0.0, 0.8):
        for draw, size in enumerate((0.0, 0.5, 1.0, 1.5, 2.0)):
            generator = np.random.default_rng([draw, int(confounding * 10)])
            severity, academic = generator.normal(size=(2, 400))
            treated = generator.random(400) < 1 / (1 + np.exp(-confounding * severity))
            outcome = severity + 0.5 * academic + generator.normal(size=400)
            outcome += size * outcome.std() * treated
            frame = pd.DataFrame(
                {"severity": severity, "academic": academic, "treated": treated, "outcome": outcome}
            )
            failed += [
                (confounding, size, name)
                for name, one in refuted(frame, causal_policy).items()
                if not one.passed and name != "unobserved_confounder"
            ]
    assert failed == []


def test_a_planted_unmeasured_confounder_is_not_outlasted(causal_policy):
    generator = np.random.default_rng(3)
    severity, academic, hidden = generator.normal(size=(3, 800))
    treated = generator.random(800) < 1 / (1 + np.exp(-0.8 * (severity + hidden)))
    outcome = severity + hidden + generator.normal(size=800)
    frame = pd.DataFrame({"severity": severity, "academic": academic, "treated": treated, "outcome": outcome})
    assert not refuted(frame, causal_policy)["unobserved_confounder"].passed


def test_an_effect_carried_by_few_rows_is_caught_by_subsets(plant, causal_policy):
    frame = plant(0.0, rows=600)
    frame["outcome"] = np.random.default_rng(2).normal(size=600)
    chosen = frame.index[frame["treated"]][:3]
    frame.loc[chosen, "outcome"] += 400.0

    def robust_error(rows, seed):
        found = difference_of_means(rows, seed)
        spread = np.quantile(rows.y, 0.75) - np.quantile(rows.y, 0.25)
        return PointAndError(found.point, float(spread / np.sqrt(len(rows.y))))

    assert not refuted(frame, causal_policy, effect=robust_error)["subset"].passed


def test_an_unstable_estimator_is_caught_by_noise(plant, causal_policy):
    def depends_on_columns(rows, seed):
        return PointAndError(0.1 * rows.x.shape[1], 0.02)

    assert not refuted(plant(1.0, rows=400), causal_policy, effect=depends_on_columns)[
        "random_common_cause"
    ].passed


# Negative controls


def test_the_systematic_error_is_recovered():
    generator = np.random.default_rng(4)
    errors = generator.uniform(0.02, 0.06, size=400)
    effects = generator.normal(0.15, np.hypot(0.08, errors))
    bias, spread = fit_systematic_error(effects, errors)
    assert bias == pytest.approx(0.15, abs=0.015)
    assert spread == pytest.approx(0.08, abs=0.012)
    clean = generator.normal(0.0, errors)
    assert fit_systematic_error(clean, errors) == pytest.approx((0.0, 0.0), abs=0.015)


def test_calibration_moves_and_widens():
    effect, lower, upper, p = calibrate(PointAndError(0.30, 0.05), 0.25, 0.10, level=0.95)
    assert effect == pytest.approx(0.05)
    assert (upper - lower) / 2 == pytest.approx(1.959964 * np.hypot(0.05, 0.10))
    assert p == pytest.approx(0.655, abs=0.001)
    assert calibrate(PointAndError(0.30, 0.05), 0.0, 0.0, level=0.95)[3] < 1e-8


def controls_of(frame, effect, policy, count):
    rows = causal_rows(frame, **ASKED)
    generator = np.random.default_rng(11)
    severity = frame["severity"].to_numpy()
    outcomes = {f"control{k}": 0.5 * severity + generator.normal(size=len(frame)) for k in range(count)}
    outcomes["rare"] = (np.arange(len(frame)) < 3).astype(float)
    return negative_controls(
        rows, outcomes, effect, minimum=policy.minimum_negative_controls, minimum_arm=policy.minimum_arm,
        level=0.95, seed=42,
    )  # fmt: skip


def test_negative_controls_show_the_bias_of_an_estimator(plant, causal_policy):
    frame = plant(1.5)
    naive = controls_of(frame, difference_of_means, causal_policy, 6)
    assert naive.left_out == ("rare",)
    assert naive.bias > 0.2
    assert not any(one.covers_zero for one in naive.controls)
    biased = difference_of_means(causal_rows(frame, **ASKED), 0).point
    assert naive.effect < biased - 0.08  # towards the planted effect
    sound = controls_of(frame, doubly_robust("linear", "linear", 0.02), causal_policy, 6)
    assert abs(sound.bias) < 0.06
    assert sum(one.covers_zero for one in sound.controls) >= 5
    assert sound.lower < frame.attrs["ate"] < sound.upper


def test_too_few_controls_calibrate_nothing(plant, causal_policy):
    found = controls_of(plant(1.5, rows=400), difference_of_means, causal_policy, 2)
    assert found.state == "not_estimable"
    assert found.effect is None
    assert "2 negative controls" in found.reason


def test_levels_of_a_category_are_outcomes_of_their_own():
    from e2i_dagster.causal.study import control_outcomes

    frame = pd.DataFrame(
        {"region": ["n", "s", "w", None], "sex": ["F", "M", "F", "M"], "age": [1, 2, None, 4]}
    )
    outcomes = control_outcomes(frame, ["region", "sex", "age"], 50)
    assert set(outcomes) == {"region=missing", "region=n", "region=s", "region=w", "sex=M", "age"}
    assert outcomes["age"].tolist() == [1.0, 2.0, 2.0, 4.0]
