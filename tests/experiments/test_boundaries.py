"""Stopping boundaries against published tables, their properties, and what is refused."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import boundaries, conditional_power, evaluate_look, predictive_power
from e2i_dagster.experiments.statistics.group_sequential import crossing_probabilities
from e2i_dagster.experiments.statistics.stopping import RULES, SPENDING_RULES

#: Jennison and Turnbull, Group Sequential Methods with Applications to Clinical Trials (2000),
#: table 2.1: Pocock's constants C_P(K, alpha) for two-sided tests with K equally spaced looks.
POCOCK = {
    0.01: {
        2: 2.772,
        3: 2.873,
        4: 2.939,
        5: 2.986,
        6: 3.023,
        7: 3.053,
        8: 3.078,
        9: 3.099,
        10: 3.117,
        20: 3.225,
    },
    0.05: {
        2: 2.178,
        3: 2.289,
        4: 2.361,
        5: 2.413,
        6: 2.453,
        7: 2.485,
        8: 2.512,
        9: 2.535,
        10: 2.555,
        20: 2.672,
    },
    0.10: {
        2: 1.875,
        3: 1.992,
        4: 2.067,
        5: 2.122,
        6: 2.164,
        7: 2.197,
        8: 2.225,
        9: 2.249,
        10: 2.270,
        20: 2.392,
    },
}
#: Table 2.3: O'Brien and Fleming's constants C_B(K, alpha); the boundary at look k is C_B sqrt(K / k).
OBRIEN_FLEMING = {
    0.01: {
        2: 2.580,
        3: 2.595,
        4: 2.609,
        5: 2.621,
        6: 2.631,
        7: 2.640,
        8: 2.648,
        9: 2.654,
        10: 2.660,
        20: 2.695,
    },
    0.05: {
        2: 1.977,
        3: 2.004,
        4: 2.024,
        5: 2.040,
        6: 2.053,
        7: 2.063,
        8: 2.072,
        9: 2.080,
        10: 2.087,
        20: 2.126,
    },
    0.10: {
        2: 1.678,
        3: 1.710,
        4: 1.733,
        5: 1.751,
        6: 1.765,
        7: 1.776,
        8: 1.786,
        9: 1.794,
        10: 1.801,
        20: 1.842,
    },
}
#: Chapter 2: Haybittle-Peto, z = 3 before the last look, whose value makes the two-sided error 0.05.
HAYBITTLE_PETO = {2: 1.967, 3: 1.975, 4: 1.983, 5: 1.990}


def equal(looks: int) -> np.ndarray:
    return np.arange(1, looks + 1) / looks


@pytest.mark.parametrize("alpha", POCOCK)
def test_pocock_is_jennison_and_turnbulls_table_2_1(alpha):
    for looks, constant in POCOCK[alpha].items():
        assert boundaries("pocock", equal(looks), alpha=alpha).z == pytest.approx(
            [constant] * looks, abs=6e-4
        )


@pytest.mark.parametrize("alpha", OBRIEN_FLEMING)
def test_obrien_fleming_is_jennison_and_turnbulls_table_2_3(alpha):
    for looks, constant in OBRIEN_FLEMING[alpha].items():
        found = boundaries("obrien_fleming", equal(looks), alpha=alpha).z
        assert np.array(found) * np.sqrt(equal(looks)) == pytest.approx([constant] * looks, abs=6e-4)


@pytest.mark.parametrize(("looks", "last"), HAYBITTLE_PETO.items())
def test_haybittle_peto_solves_its_last_look(looks, last):
    found = boundaries("haybittle_peto", equal(looks))
    assert found.z[:-1] == (3.0,) * (looks - 1)
    assert found.z[-1] == pytest.approx(last, abs=6e-4)


def test_sas_seqdesign_example_of_four_looks():
    """SAS/STAT, The SEQDESIGN Procedure, example "Creating Two-Sided Pocock and O'Brien-Fleming Designs"."""
    assert boundaries("pocock", equal(4)).z == pytest.approx([2.36129] * 4, abs=1e-4)
    assert boundaries("obrien_fleming", equal(4)).z == pytest.approx(
        [4.04859, 2.86278, 2.33745, 2.02429], abs=1e-4
    )


@pytest.mark.parametrize(
    ("rule", "gamma", "published"),
    [
        # Reboussin, DeMets, Kim and Lan, Controlled Clinical Trials 21 (2000), O'Brien-Fleming type, 5 looks;
        # the same in the documentation of R package ldbounds.
        ("lan_demets_obf", None, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
        # The same article and package: Pocock type.
        ("lan_demets_pocock", None, [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
        # R package gsDesign, printed design with k = 5, alpha = 0.025 per side, sfHSD(-4); two decimals.
        ("hwang_shih_decani", -4.0, [3.25, 2.99, 2.69, 2.37, 2.03]),
    ],
)
def test_spending_boundaries_of_five_looks(rule, gamma, published):
    tolerance = 5e-3 if rule == "hwang_shih_decani" else 2e-4
    assert boundaries(rule, equal(5), gamma=gamma).z == pytest.approx(published, abs=tolerance)


def test_gsdesign_default_design():
    """R package gsDesign, gsDesign(): k = 3, one-sided 0.025, sfHSD with gamma -4."""
    found = boundaries("hwang_shih_decani", [1 / 3, 2 / 3, 1], alpha=0.025, sides=1, gamma=-4)
    assert found.z == pytest.approx([3.010739, 2.546531, 1.999226], abs=1e-4)


def test_gsdesign_printed_spend_and_nominal_p():
    """R package gsDesign, print of gsDesign(k = 5, test.type = 1): nominal p and spend per look."""
    found = boundaries("hwang_shih_decani", equal(5), alpha=0.025, sides=1, gamma=-4)
    assert found.nominal_p == pytest.approx([0.0006, 0.0014, 0.0036, 0.0088, 0.0214], abs=6e-5)
    assert np.diff(found.alpha_spent, prepend=0) == pytest.approx(
        [0.0006, 0.0013, 0.0028, 0.0063, 0.0140], abs=6e-5
    )


@pytest.mark.parametrize("rule", ["lan_demets_pocock", "haybittle_peto", "obrien_fleming"])
def test_the_integration_agrees_with_the_multivariate_normal(rule):
    """Independent numbers for unequal information: the joint normal distribution of (Z_1, Z_2, Z_3)."""
    from scipy.stats import multivariate_normal

    fractions = np.array([0.2, 0.55, 1.0])
    found = boundaries(rule, fractions)
    covariance = np.sqrt(np.minimum.outer(fractions, fractions) / np.maximum.outer(fractions, fractions))
    upper = np.array(found.z)
    inside = multivariate_normal(np.zeros(3), covariance, abseps=1e-8, releps=1e-8, maxpts=500_000).cdf(
        upper, lower_limit=-upper
    )
    assert 1 - inside == pytest.approx(0.05, abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=8),
    rule=st.sampled_from(RULES),
    alpha=st.floats(0.01, 0.2),
    sides=st.sampled_from([1, 2]),
    gamma=st.floats(-6, 4),
)
def test_every_plan_spends_exactly_alpha(steps, rule, alpha, sides, gamma):
    fractions = np.cumsum(steps) / np.sum(steps)
    fractions[-1] = 1.0
    found = boundaries(
        rule, fractions, alpha=alpha, sides=sides, gamma=gamma if rule == "hwang_shih_decani" else None,
        interim_z=4.0,
    )  # fmt: skip
    lower = found.lower if sides == 2 else [-math.inf] * len(fractions)
    crossing = crossing_probabilities(fractions, lower, found.z)
    assert sides * crossing.upper.sum() == pytest.approx(alpha, abs=2e-6)
    assert found.alpha_spent[-1] == pytest.approx(alpha, abs=2e-6)
    assert (np.diff(found.alpha_spent) >= -1e-12).all()


@pytest.mark.parametrize("rule", SPENDING_RULES)
def test_looks_so_far_do_not_depend_on_looks_to_come(rule):
    gamma = -2.0 if rule == "hwang_shih_decani" else None
    whole = boundaries(rule, [0.3, 0.62, 1.0], gamma=gamma)
    so_far = boundaries(rule, [0.3, 0.62], gamma=gamma)
    # The grid is chosen by the closest pair of looks: equal to the accuracy of the integration.
    assert so_far.z == pytest.approx(whole.z[:2], abs=1e-6)
    assert so_far.alpha_spent[-1] < 0.05


def test_the_last_look_of_a_trial_that_ended_early_spends_the_rest():
    ended = boundaries("lan_demets_obf", [0.5, 0.9], final=True)
    assert ended.alpha_spent[-1] == pytest.approx(0.05, abs=1e-9)
    assert ended.z[-1] < boundaries("lan_demets_obf", [0.5, 0.9]).z[-1]


def test_a_trial_over_its_planned_information_keeps_what_was_spent():
    """A look planned at 0.5 was held; 1.2 times the planned information arrived at the end."""
    planned = boundaries("lan_demets_obf", [0.5, 1.0])
    over = boundaries("lan_demets_obf", [0.5 / 1.2, 1.0], spending_time=[0.5, 1.0])
    assert over.z[0] == pytest.approx(planned.z[0], abs=1e-6)
    assert over.z[1] != pytest.approx(planned.z[1], abs=1e-4)
    assert over.alpha_spent[-1] == pytest.approx(0.05, abs=1e-9)


def test_looks_close_to_each_other_are_still_exact():
    """A second look with almost no new information costs almost nothing."""
    near = boundaries("pocock", [0.999, 1.0])
    assert crossing_probabilities([0.999, 1.0], near.lower, near.z).upper.sum() == pytest.approx(
        0.025, abs=1e-7
    )
    assert 1.96 < near.z[0] < 2.0


def test_one_look_is_the_fixed_test():
    for rule in RULES:
        gamma = -4.0 if rule == "hwang_shih_decani" else None
        assert boundaries(rule, [1.0], gamma=gamma).z == pytest.approx([1.959964], abs=1e-5)


def test_a_very_early_look_cannot_stop():
    assert boundaries("lan_demets_obf", [0.001, 1.0]).z[0] == math.inf


@pytest.mark.parametrize(("looks", "limit"), [(5, 0.05), (20, 1.0)])
def test_boundaries_are_quick(looks, limit):
    """Time of this process: what else runs on the machine does not count. Wall time is in the benchmark."""
    boundaries("pocock", equal(looks))
    slowest = 0.0
    for rule in RULES:
        gamma = -4.0 if rule == "hwang_shih_decani" else None
        times = []
        for _ in range(5):
            began = time.process_time()
            boundaries(rule, equal(looks), gamma=gamma)
            times.append(time.process_time() - began)
        slowest = max(slowest, min(times))
    assert slowest < limit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"information_fractions": [0.5, 0.5, 1]}, "increase"),
        ({"information_fractions": [0.5, 0.25, 1]}, "increase"),
        ({"information_fractions": [0.5, 1.2]}, "above 0 and at most 1"),
        ({"information_fractions": [0.0, 1.0]}, "above 0 and at most 1"),
        ({"information_fractions": [0.5, math.nan]}, "above 0 and at most 1"),
        ({"information_fractions": []}, "at least one look"),
        ({"information_fractions": ["half", 1]}, "not numbers"),
        ({"information_fractions": [0.99999, 1.0]}, "one look"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 0.7, "sides": 1}, "below 0.5"),
        ({"sides": 3}, "sides"),
        ({"rule": "bonferroni"}, "obrien_fleming"),
        ({"rule": "hwang_shih_decani"}, "gamma"),
        ({"rule": "pocock", "gamma": 1.0}, "gamma"),
        ({"rule": "hwang_shih_decani", "gamma": -800.0}, "outside"),
        ({"rule": "pocock", "information_fractions": [0.25, 0.5]}, "whole plan"),
        ({"rule": "pocock", "spending_time": [0.5, 1]}, "does not spend"),
        ({"spending_time": [0.5]}, "1 values for 2 looks"),
        ({"rule": "haybittle_peto", "interim_z": 1.5, "information_fractions": equal(5)}, "nothing is left"),
        ({"rule": "haybittle_peto", "interim_z": -1.0}, "above 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    given_ = {"rule": "lan_demets_obf", "information_fractions": [0.5, 1.0]} | arguments
    with pytest.raises(InputError, match=message):
        boundaries(given_.pop("rule"), given_.pop("information_fractions"), **given_)


@pytest.mark.parametrize(
    ("fraction", "z", "power"), [(0.5, 0.5, 0.038), (0.5, 1.0, 0.220), (0.5, 1.5, 0.590), (0.25, 1.0, 0.518)]
)
def test_conditional_power_under_the_current_trend(fraction, z, power):
    assert conditional_power(z, fraction, final_z=1.959964) == pytest.approx(power, abs=6e-4)


def test_conditional_and_predictive_power_against_simulated_futures():
    rng = np.random.default_rng(11)
    z, t, bound, drift = 1.1, 0.4, 2.0, 2.8
    rest = rng.normal(drift * (1 - t), math.sqrt(1 - t), 400_000)
    simulated = (z * math.sqrt(t) + rest >= bound).mean()
    assert conditional_power(z, t, final_z=bound, drift=drift) == pytest.approx(simulated, abs=0.003)
    # A drift drawn from its posterior: prior N(1, 2^2), one observation z sqrt(t) = t drift + N(0, t).
    precision = t + 1 / 4
    drawn = rng.normal((z * math.sqrt(t) + 1 / 4) / precision, precision**-0.5, 400_000)
    simulated = (z * math.sqrt(t) + rng.normal(drawn * (1 - t), math.sqrt(1 - t)) >= bound).mean()
    found = predictive_power(z, t, final_z=bound, prior_mean=1.0, prior_sd=2.0)
    assert found == pytest.approx(simulated, abs=0.003)
    # A wide prior is the flat one, whose closed form is Phi((z / sqrt(t) - c) / sqrt((1 - t) / t)).
    flat = predictive_power(z, t, final_z=bound)
    assert predictive_power(z, t, final_z=bound, prior_mean=0.0, prior_sd=1e6) == pytest.approx(
        flat, abs=1e-9
    )


def test_power_at_the_end_is_the_result():
    assert conditional_power(2.1, 1.0, final_z=2.0) == 1.0
    assert predictive_power(1.9, 1.0, final_z=2.0) == 0.0


def test_the_decision_at_a_look():
    plan = boundaries("obrien_fleming", equal(4))
    early = evaluate_look(plan, 1, 2.5, information_fraction=0.25, drift=2.8)
    assert early.decision == "continue"
    assert early.conditional_power_design == pytest.approx(
        conditional_power(2.5, 0.25, final_z=plan.z[-1], drift=2.8)
    )
    assert evaluate_look(plan, 2, 2.9, earlier_z=[2.5]).decision == "stop_efficacy"
    # Harm does not stop for efficacy.
    assert evaluate_look(plan, 2, -5.0, earlier_z=[0.1]).decision == "continue"
    assert evaluate_look(plan, 2, -0.5, earlier_z=[0.1], futility_z=[-1, 0, 1, 2]).decision == "stop_futility"
    assert "last look" in evaluate_look(plan, 4, 1.0, earlier_z=[0, 0, 0]).rationale


def test_the_chances_of_looks_so_far_are_those_of_the_end():
    """With a spending rule the boundaries of looks to come are not yet known; the last one is."""
    so_far = boundaries("lan_demets_obf", [0.3, 0.5])
    whole = boundaries("lan_demets_obf", [0.3, 0.5, 1.0])
    assert not so_far.complete and whole.complete
    assert so_far.final_z == pytest.approx(whole.z[-1], abs=1e-6)
    here, there = (evaluate_look(plan, 2, 1.2, earlier_z=[0.4], drift=2.8) for plan in (so_far, whole))
    assert here.conditional_power_trend == pytest.approx(there.conditional_power_trend, abs=1e-6)
    assert here.conditional_power_design == pytest.approx(there.conditional_power_design, abs=1e-6)
    assert evaluate_look(so_far, 2, 1.2, earlier_z=[0.4], final_z=9.0).conditional_power_trend < 1e-6


def test_a_trial_that_ended_early_has_its_last_look():
    ended = boundaries("lan_demets_obf", [0.5, 0.9], final=True)
    assert ended.complete
    look = evaluate_look(ended, 2, 1.0, earlier_z=[0.4])
    assert look.conditional_power_trend == 0.0 and "last look" in look.rationale
    over = boundaries("lan_demets_obf", [0.2, 0.5], spending_time=[0.25, 0.6])
    assert over.final_z == pytest.approx(
        boundaries("lan_demets_obf", [0.2, 0.5, 1.0], spending_time=[0.25, 0.6, 1.0]).z[-1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"look": 5}, "looks 1 to 4"),
        ({"look": 0}, "looks 1 to 4"),
        ({"look": 2.5}, "looks 1 to 4"),
        ({"look": 3, "earlier_z": [0.1]}, "follows 2 looks"),
        ({"look": 2, "earlier_z": [4.5]}, "stopped for benefit at look 1"),
        ({"look": 2, "earlier_z": [0.1], "information_fraction": 0.4}, "planned looks only"),
        ({"look": 2, "earlier_z": [0.1], "z": math.nan}, "finite"),
        ({"look": 1, "futility_z": [0.0]}, "1 boundaries for 4 looks"),
    ],
)
def test_a_look_that_the_design_does_not_allow(arguments, message):
    plan = boundaries("obrien_fleming", equal(4))
    given_ = {"z": 1.0} | arguments
    with pytest.raises(InputError, match=message):
        evaluate_look(plan, given_.pop("look"), given_.pop("z"), **given_)
