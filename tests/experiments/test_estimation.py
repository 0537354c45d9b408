"""Estimates after sequential looks, sample size looked at again, and what holds at every time."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from e2i_dagster.errors import InputError
from e2i_dagster.experiments import (
    Boundaries,
    always_valid,
    blinded_reestimation,
    boundaries,
    design,
    final_estimate,
    mixture_variance,
    promising_zone,
    repeated_intervals,
    stagewise_p_value,
)


def trials(plan: Boundaries, drift: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Look (from 1) and z at which simulated trials ended."""
    rng = np.random.default_rng(seed)
    fractions = np.array(plan.information_fractions)
    step = np.diff(fractions, prepend=0.0)
    score = np.cumsum(rng.normal(drift * step, np.sqrt(step), (count, len(step))), axis=1)
    z = score / np.sqrt(fractions)
    stop = (z >= np.array(plan.z)) | (z <= np.array(plan.lower))
    stop[:, -1] = True
    look = stop.argmax(axis=1)
    return look + 1, z[np.arange(count), look]


def test_the_stagewise_p_value_is_uniform_under_the_truth():
    """So is, by inversion, every limit of the interval right, and the median-unbiased estimate."""
    for rule, drift in (("pocock", 0.0), ("obrien_fleming", 2.5)):
        plan = boundaries(rule, np.arange(1, 5) / 4)
        looks, z = trials(plan, drift, 600, seed=3)
        found = [
            stagewise_p_value(plan, int(k), float(v), drift=drift) for k, v in zip(looks, z, strict=True)
        ]
        assert stats.kstest(found, "uniform").pvalue > 0.01


def test_the_order_of_stages():
    plan = boundaries("pocock", [0.25, 0.5, 0.75, 1.0])
    early, late = stagewise_p_value(plan, 1, 2.5), stagewise_p_value(plan, 2, 4.0)
    assert early < late < stagewise_p_value(plan, 2, 2.5) < stagewise_p_value(plan, 4, 1.0)
    # Never more significant than the boundary allowed: at the boundary, what was spent.
    assert 2 * stagewise_p_value(plan, 2, plan.z[1]) == pytest.approx(plan.alpha_spent[1], abs=1e-9)
    assert 2 * stagewise_p_value(plan, 4, plan.z[3]) == pytest.approx(0.05, abs=1e-6)


def test_one_look_is_the_fixed_interval():
    found = final_estimate(boundaries("pocock", [1.0]), 1, 2.5, standard_error=0.1)
    assert found.median_unbiased == pytest.approx(0.25)
    assert (found.lower, found.upper) == pytest.approx((0.25 - 0.1959964, 0.25 + 0.1959964))
    assert found.p_value == pytest.approx(2 * stats.norm.sf(2.5))
    # Far down the p-value is as exact as far up.
    far = final_estimate(boundaries("pocock", [1.0]), 1, -12.0, standard_error=0.1)
    assert far.p_value == pytest.approx(2 * stats.norm.sf(12.0))


def test_a_trial_that_ended_with_less_information_is_estimated():
    ended = boundaries("lan_demets_obf", [0.5, 0.9], final=True)
    found = final_estimate(ended, 2, 1.0, standard_error=0.1)
    assert found.lower < 0 < found.upper
    with pytest.raises(InputError, match="no final estimate"):
        final_estimate(boundaries("lan_demets_obf", [0.5, 0.9]), 2, 1.0, standard_error=0.1)


def test_stopping_early_shrinks_the_estimate_and_the_interval_agrees_with_the_test():
    plan = boundaries("pocock", np.arange(1, 6) / 5)
    found = final_estimate(plan, 2, 2.6, standard_error=0.1)
    assert 0 < found.median_unbiased < found.naive == pytest.approx(0.26)
    assert found.lower > 0 and found.p_value < 0.05
    failed = final_estimate(plan, 5, 1.9, standard_error=0.1)
    assert failed.lower < 0 < failed.upper and failed.p_value > 0.05
    # The plain estimate of a stopped trial is too large on average, the adjusted one is not on the median.
    looks, z = trials(plan, 2.0, 20_000, seed=5)
    fractions = np.array(plan.information_fractions)[looks - 1]
    assert (z / np.sqrt(fractions)).mean() > 2.1
    assert json.loads(json.dumps(found.to_record())) == found.to_record()


def test_futility_that_is_obeyed_enters_the_p_value():
    plan = design(
        "lan_demets_obf", [0.5, 1.0], beta_spending="lan_demets_obf", binding=True, sides=1, alpha=0.025
    )
    with_, without = (
        stagewise_p_value(plan.efficacy, 2, 1.9, lower=lower)
        for lower in (plan.futility, [-math.inf, -math.inf])
    )
    assert with_ < without
    found = final_estimate(plan.efficacy, 1, plan.futility[0] - 0.1, standard_error=0.2, lower=plan.futility)
    assert found.p_value > 0.025 and found.lower < 0 < found.upper


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"look": 2, "z": 1.0}, "no final estimate yet"),
        ({"look": 9, "z": 1.0}, "looks 1 to 4"),
        ({"look": 4, "z": math.nan}, "finite"),
        ({"look": 4, "z": 1.0, "standard_error": 0.0}, "standard_error"),
        ({"look": 4, "z": 1.0, "lower": [0.0]}, "1 boundaries for look 4"),
    ],
)
def test_no_final_estimate_without_an_end(arguments, message):
    given = {"standard_error": 1.0} | arguments
    with pytest.raises(InputError, match=message):
        final_estimate(boundaries("pocock", np.arange(1, 5) / 4), given.pop("look"), given.pop("z"), **given)


def test_repeated_intervals_hold_at_all_looks_at_once():
    plan = boundaries("obrien_fleming", np.arange(1, 5) / 4)
    fractions = np.array(plan.information_fractions)
    rng = np.random.default_rng(7)
    drift = 1.7
    step = np.diff(fractions, prepend=0.0)
    score = np.cumsum(rng.normal(drift * step, np.sqrt(step), (20_000, 4)), axis=1)
    errors = 1 / np.sqrt(fractions)
    missed = np.abs(score / fractions - drift) > np.array(plan.z) * errors
    assert missed.any(axis=1).mean() == pytest.approx(0.05, abs=0.006)
    found = repeated_intervals(plan, list(score[0] / fractions), list(errors))
    for (low, high), estimate, error, z in zip(found, score[0] / fractions, errors, plan.z, strict=True):
        assert (low, high) == pytest.approx((estimate - z * error, estimate + z * error))
    with pytest.raises(InputError, match="5 and 5"):
        repeated_intervals(plan, [0.0] * 5, [1.0] * 5)
    with pytest.raises(InputError, match="above 0"):
        repeated_intervals(plan, [0.0], [0.0])


def test_always_valid_holds_at_every_look():
    """Looked at after each of 2,000 pairs, at most 5 in 100 sequences ever leave out the truth."""
    rng = np.random.default_rng(11)
    draws = rng.normal(0.3, 1.0, (1_000, 2_000))
    n = np.arange(1, 2_001)
    mean = np.cumsum(draws, axis=1) / n
    tuning = mixture_variance(1 / math.sqrt(500))
    variance = 1 / n
    half = np.sqrt(
        variance * (variance + tuning) / tuning * np.log((variance + tuning) / (variance * 0.05**2))
    )
    assert (np.abs(mean - 0.3) > half).any(axis=1).mean() <= 0.05
    at = always_valid(float(mean[0, 499]), 1 / math.sqrt(500), tuning_variance=tuning)
    assert (at.lower, at.upper) == pytest.approx((mean[0, 499] - half[499], mean[0, 499] + half[499]))
    # Wider than a fixed interval, and excludes zero exactly when its p-value is below 0.05.
    assert half[499] > 1.96 / math.sqrt(500)
    edge = always_valid(half[499], 1 / math.sqrt(500), tuning_variance=tuning)
    assert edge.p_value == pytest.approx(0.05)


def test_the_mixture_is_tightest_where_it_was_planned():
    tuning = mixture_variance(0.1)
    widths = [always_valid(0.0, 0.1, tuning_variance=tuning * factor).upper for factor in (0.7, 1.0, 1.4)]
    assert min(widths) == widths[1]


def test_what_was_excluded_stays_excluded():
    first = always_valid(1.0, 0.1, tuning_variance=0.1)
    later = always_valid(0.4, 0.2, tuning_variance=0.1, before=first)
    assert later.p_value == first.p_value
    assert later.lower == first.lower
    with pytest.raises(InputError, match="fixed before"):
        always_valid(0.4, 0.2, tuning_variance=0.2, before=first)
    with pytest.raises(InputError, match="nothing in common"):
        always_valid(-3.0, 0.1, tuning_variance=0.1, before=first)
    with pytest.raises(InputError, match="above 0"):
        always_valid(0.4, 0.0, tuning_variance=0.2)


def test_blinded_variance():
    shared = {"planned_variance": 4.0, "most": 1.5}
    assert blinded_reestimation(400, pooled_variance=5.0, **shared).size == 500
    assert blinded_reestimation(400, pooled_variance=9.0, **shared).size == 600
    assert blinded_reestimation(400, pooled_variance=3.0, **shared).size == 400
    assert blinded_reestimation(400, pooled_variance=4.8, trigger=1.25, **shared).size == 400
    assert blinded_reestimation(400, pooled_variance=2.0, least=0.75, **shared).size == 300
    # The effect itself is part of the pooled variance: 0.25 * 2^2 = 1.
    found = blinded_reestimation(400, pooled_variance=5.0, assumed_effect=2.0, **shared)
    assert (found.variance_ratio, found.size) == (1.0, 400)
    for wrong in ({"pooled_variance": 0.0}, {"pooled_variance": 1.0, "assumed_effect": 5.0}):
        with pytest.raises(InputError):
            blinded_reestimation(400, **shared, **wrong)
    with pytest.raises(InputError, match="most"):
        blinded_reestimation(400, planned_variance=1, pooled_variance=1, most=0.5)
    with pytest.raises(InputError, match="planned"):
        blinded_reestimation(0, planned_variance=1, pooled_variance=1)


def test_the_promising_zone_grows_the_trial_and_keeps_the_error():
    plan = boundaries("obrien_fleming", [0.5, 1.0])
    zones = {
        z: promising_zone(plan, 1, z, planned=500, most=1_000, target_power=0.9) for z in (0.5, 1.5, 2.2, 2.9)
    }
    assert [found.zone for found in zones.values()] == ["unfavourable", "promising", "favourable", "efficacy"]
    assert zones[1.5].size > 500 and zones[1.5].conditional_power_after > zones[1.5].conditional_power
    assert all(found.size == 500 for z, found in zones.items() if z != 1.5)
    # Type-I error with the plain final boundary, over simulated null trials.
    rng = np.random.default_rng(13)
    first = rng.normal(size=60_000)
    z_grid = np.linspace(-4, 4, 801)
    sizes = np.array(
        [promising_zone(plan, 1, float(z), planned=500, most=1_000, target_power=0.9).size for z in z_grid]
    )
    size = sizes[np.clip(np.searchsorted(z_grid, first), 0, 800)]
    score = first * math.sqrt(0.5) + rng.normal(size=60_000) * np.sqrt(size / 500 - 0.5)
    final = score / np.sqrt(size / 500)
    rejected = (first >= plan.z[0]) | (final >= plan.z[1])
    assert rejected.mean() <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 60_000)


@pytest.mark.parametrize(("factor", "least"), [(1.5, 0.41), (2.0, 0.36), (3.0, 0.31)])
def test_the_promising_zone_begins_where_mehta_and_pocock_say(factor, least):
    """Mehta and Pocock (2011), table 1: least conditional power by largest over planned size, look at 0.5."""
    plan = boundaries("lan_demets_obf", [0.5, 1.0])
    for z in np.linspace(0.8, 1.8, 101):
        found = promising_zone(plan, 1, float(z), planned=10_000, most=int(10_000 * factor), target_power=0.9)
        assert (found.zone == "promising") == (found.conditional_power > least) or (
            abs(found.conditional_power - least) < 0.01
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"look": 1}, "last look but one"),
        ({"look": 4}, "looks 1 to 3"),
        ({"most": 100}, "below the 500"),
        ({"target_power": 1.0}, "target_power"),
    ],
)
def test_the_promising_zone_has_its_place(arguments, message):
    given = {"look": 2, "z": 1.0, "planned": 500, "most": 1_000} | arguments
    with pytest.raises(InputError, match=message):
        promising_zone(boundaries("pocock", [1 / 3, 2 / 3, 1]), given.pop("look"), given.pop("z"), **given)


def test_records_keep_infinite_boundaries():
    plan = boundaries("lan_demets_obf", [0.001, 1.0])
    assert Boundaries.model_validate(json.loads(json.dumps(plan.to_record(), allow_nan=False))) == plan
