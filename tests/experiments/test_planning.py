"""Sample size and power against published values and simulation; designs with futility against gsDesign."""

import numpy as np
import pytest

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import (
    boundaries,
    design,
    inflation_factor,
    minimum_detectable_effect,
    power,
    sample_size,
)
from e2i_dagster.experiments.designs.planning import design_effect, linearized_sd


def equal(looks: int) -> np.ndarray:
    return np.arange(1, looks + 1) / looks


@pytest.mark.parametrize(("effect", "per_arm"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_means_are_cohens_table(effect, per_arm):
    """Cohen, Statistical Power Analysis (1988), table 2.4.1 and A Power Primer (1992): power 0.80, alpha 0.05."""
    found = sample_size("mean", effect=effect)
    assert found.per_arm["control"] == pytest.approx(per_arm, abs=1)
    assert power("mean", n=found.total, effect=effect) == pytest.approx(0.80, abs=0.01)


def test_means_agree_with_statsmodels():
    from statsmodels.stats.power import TTestIndPower

    reference = TTestIndPower()
    for ratio in (1.0, 2.0, 0.5):
        n0 = 80
        ours = power("mean", n=n0 * (1 + ratio), effect=0.4, ratio=ratio)
        assert ours == pytest.approx(reference.power(0.4, n0, 0.05, ratio=ratio), abs=2e-4)


def test_proportions_are_the_textbook_example():
    """R power.prop.test(p1 = .50, p2 = .75, power = .90): n = 76.7 in each group."""
    found = sample_size("proportion", baseline=0.50, effect=0.25, power=0.90)
    assert found.fixed_total / 2 == pytest.approx(76.7, abs=0.05)
    assert found.per_arm == {"control": 77, "treatment": 77}


def test_events_are_schoenfelds():
    """4 (z_a + z_b)^2 / ln(HR)^2 with equal arms; HR 0.5, power 0.80: 65.3 events (Schoenfeld 1983)."""
    found = sample_size("survival", effect=0.5, event_probability=0.6)
    assert found.events == 66
    assert power("survival", n=found.total, effect=0.5, event_probability=0.6) == pytest.approx(0.8, abs=0.01)


def test_power_of_a_proportion_holds_in_simulation():
    found = sample_size("proportion", baseline=0.30, effect=0.10, ratio={"control": 0.4, "treated": 0.6})
    n0, n1 = found.per_arm["control"], found.per_arm["treated"]
    rng = np.random.default_rng(3)
    a, b = rng.binomial(n0, 0.3, 50_000) / n0, rng.binomial(n1, 0.4, 50_000) / n1
    pooled = (n0 * a + n1 * b) / (n0 + n1)
    z = (b - a) / np.sqrt(pooled * (1 - pooled) * (1 / n0 + 1 / n1))
    assert (np.abs(z) > 1.959964).mean() == pytest.approx(0.80, abs=0.012)


def test_factors_multiply():
    plain = sample_size(effect=0.3)
    assert design_effect(20, 0.05) == pytest.approx(1.95)
    assert design_effect(20, 0.05, 0.5) == pytest.approx(1 + (1.25 * 20 - 1) * 0.05)
    clustered = sample_size(effect=0.3, cluster_size=20, icc=0.05)
    # Whole clusters, and a few more for Student's t.
    assert plain.fixed_total * 1.95 < clustered.total < plain.fixed_total * 1.95 + 4 * 20
    assert clustered.per_arm == {arm: 20 * count for arm, count in (clustered.clusters or {}).items()}
    adjusted = sample_size(effect=0.3, covariate_correlation=0.6)
    assert adjusted.fixed_total == pytest.approx(plain.fixed_total * 0.64, rel=0.01)
    lossy = sample_size(effect=0.3, dropout=0.2)
    assert lossy.total == pytest.approx(plain.fixed_total / 0.8, abs=2)
    for found, extra in ((clustered, {"cluster_size": 20, "icc": 0.05}), (lossy, {"dropout": 0.2}),
                         (adjusted, {"covariate_correlation": 0.6})):  # fmt: skip
        assert power(n=found.total, effect=0.3, **extra) == pytest.approx(0.80, abs=0.025)


def test_several_arms_share_alpha():
    found = sample_size(effect=0.3, ratio={"control": 0.4, "low": 0.3, "high": 0.3})
    assert found.alpha_per_comparison == pytest.approx(0.025)
    assert set(found.per_arm) == {"control", "low", "high"}
    assert power(n=found.total, effect=0.3, ratio={"control": 0.4, "low": 0.3, "high": 0.3}) >= 0.80


def test_ratio_metric_by_its_linearized_deviation():
    rng = np.random.default_rng(2)
    denominator = rng.gamma(4, 1, 200_000)
    numerator = 0.3 * denominator + rng.normal(0, 1, 200_000)
    sd = linearized_sd(
        numerator_sd=numerator.std(), denominator_mean=denominator.mean(), denominator_sd=denominator.std(),
        ratio=numerator.mean() / denominator.mean(), correlation=np.corrcoef(numerator, denominator)[0, 1],
    )  # fmt: skip
    linear = (numerator - numerator.mean() / denominator.mean() * denominator) / denominator.mean()
    assert sd == pytest.approx(linear.std(), rel=1e-6)
    assert sample_size("ratio", effect=0.02, sd=sd).total > 0


def test_the_detectable_effect_is_the_inverse_of_the_size():
    for kind, effect, extra in (
        ("mean", 0.4, {"sd": 2.0}), ("proportion", 0.07, {"baseline": 0.2}),
        ("survival", 0.7, {"event_probability": 0.4}),
    ):  # fmt: skip
        n = sample_size(kind, effect=effect, **extra).total
        assert minimum_detectable_effect(kind, n=n, **extra) == pytest.approx(effect, rel=0.02)


#: Jennison and Turnbull (2000), tables 2.2 and 2.4: R_P and R_B, two-sided alpha 0.05.
INFLATION = {
    ("pocock", 2): (1.110, 1.100), ("pocock", 3): (1.166, 1.151), ("pocock", 4): (1.202, 1.183),
    ("pocock", 5): (1.229, 1.207), ("pocock", 10): (1.301, 1.271),
    ("obrien_fleming", 2): (1.008, 1.007), ("obrien_fleming", 3): (1.017, 1.016),
    ("obrien_fleming", 4): (1.024, 1.022), ("obrien_fleming", 5): (1.028, 1.026),
    ("obrien_fleming", 10): (1.040, 1.037),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "looks"), INFLATION)
def test_inflation_factors_are_jennison_and_turnbulls(rule, looks):
    plan = boundaries(rule, equal(looks))
    found = inflation_factor(plan, 0.8), inflation_factor(plan, 0.9)
    assert found == pytest.approx(INFLATION[rule, looks], abs=6e-4)


def test_the_interim_plan_enlarges_the_size_and_keeps_the_power():
    plan = boundaries("pocock", equal(5))
    found = sample_size(effect=0.3, boundaries=plan)
    assert found.inflation == pytest.approx(1.229, abs=6e-4)
    assert power(n=found.total, effect=0.3, boundaries=plan) == pytest.approx(0.80, abs=0.005)


@pytest.mark.parametrize(
    ("binding", "lower", "upper", "inflation", "expected_under_null"),
    [
        # R package gsDesign, printed designs k = 5, alpha 0.025, beta 0.1, sfHSD(-4) above and (-2) below:
        # test.type 3 (binding) and test.type 4 (non-binding; N 882 of 801 in a fixed design).
        (True, [-0.92, -0.07, 0.66, 1.32, 1.97], [3.25, 2.99, 2.69, 2.37, 1.97], 1.069, 0.5636),
        (False, [-0.90, -0.04, 0.69, 1.36, 2.03], [3.25, 2.99, 2.69, 2.37, 2.03], 1.101, 0.5726),
    ],
)
def test_futility_is_gsdesigns(binding, lower, upper, inflation, expected_under_null):
    found = design(
        "hwang_shih_decani", equal(5), alpha=0.025, sides=1, power=0.9, gamma=-4,
        beta_spending="hwang_shih_decani", beta_gamma=-2, binding=binding,
    )  # fmt: skip
    assert found.futility == pytest.approx(lower, abs=6e-3)
    assert found.efficacy.z == pytest.approx(upper, abs=6e-3)
    assert found.inflation == pytest.approx(inflation, abs=6e-4)
    assert found.inflation * found.expected_information(0.0) == pytest.approx(expected_under_null, abs=6e-4)
    up, down = found.stopping_probabilities(found.drift)
    assert sum(up) == pytest.approx(0.9, abs=1e-6)
    assert sum(down) == pytest.approx(0.1, abs=1e-6)
    assert "futility" in found.to_metadata() and found.to_record()["binding"] is binding


def test_binding_futility_uses_alpha_only_when_it_is_obeyed():
    arguments = {"alpha": 0.05, "power": 0.8, "beta_spending": "lan_demets_obf"}
    binding = design("lan_demets_obf", equal(4), binding=True, **arguments)
    free = design("lan_demets_obf", equal(4), **arguments)
    assert sum(binding.stopping_probabilities(0.0)[0]) == pytest.approx(0.025, abs=1e-6)
    # Non-binding: obeyed, the error is below alpha; ignored, it is alpha.
    assert sum(free.stopping_probabilities(0.0)[0]) < 0.025
    assert free.efficacy.z == pytest.approx(
        boundaries("lan_demets_obf", equal(4), sides=1, alpha=0.025).z, abs=1e-5
    )
    assert binding.efficacy.z[-1] < free.efficacy.z[-1]


def test_a_design_without_futility_has_its_power():
    found = design("obrien_fleming", equal(3), power=0.9)
    assert sum(found.stopping_probabilities(found.drift)[0]) == pytest.approx(0.9, abs=1e-6)
    assert found.futility is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect": 0.0}, "nothing"),
        ({"effect": 0.3, "alpha": 1.2}, "alpha"),
        ({"effect": 0.3, "power": 1.0}, "power"),
        ({"effect": 0.3, "power": 0.01}, "not above"),
        ({"effect": 0.3, "sd": 0.0}, "sd"),
        ({"effect": 0.3, "sides": 0}, "sides"),
        ({"effect": 0.3, "ratio": 0.0}, "ratio"),
        ({"effect": 0.3, "ratio": {"control": 0.5, "b": 0.6}}, "sums to 1.1"),
        ({"effect": 0.3, "ratio": {"a": 0.5, "b": 0.5}}, "not an arm"),
        ({"effect": 0.3, "dropout": 1.0}, "dropout"),
        ({"effect": 0.3, "icc": 0.1}, "Give both"),
        ({"effect": 0.3, "cluster_size": 0.5, "icc": 0.1}, "at least 1"),
        ({"effect": 0.3, "covariate_correlation": 1.0}, "covariate_correlation"),
        ({"kind": "median", "effect": 0.3}, "known are"),
        ({"kind": "proportion", "effect": 0.3}, "baseline"),
        ({"kind": "proportion", "effect": 0.6, "baseline": 0.5}, "treated rate"),
        ({"kind": "survival", "effect": 0.7}, "event_probability"),
        ({"kind": "survival", "effect": 1.0, "event_probability": 0.5}, "hazard ratio"),
        ({"kind": "ratio", "effect": 0.1}, "linearized_sd"),
        ({"effect": 0.1, "relative": True}, "baseline"),
        ({"effect": 1e-9}, "too near to none"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        sample_size(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"binding": True}, "beta_spending"),
        ({"beta_spending": "pocock"}, "not one of"),
        ({"rule": "pocock", "beta_spending": "lan_demets_obf", "binding": True}, "does not spend"),
        ({"information_fractions": [0.3, 0.6]}, "ends at 1"),
        ({"power": 0.02}, "not above"),
        ({"beta_spending": "hwang_shih_decani"}, "gamma"),
    ],
)
def test_wrong_designs_are_named(arguments, message):
    given = {"rule": "lan_demets_obf", "information_fractions": [0.5, 1.0]} | arguments
    with pytest.raises(InputError, match=message):
        design(given.pop("rule"), given.pop("information_fractions"), **given)
