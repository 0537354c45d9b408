"""Means of few different values: the permutation test, its interval, and where it is used."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from e2i_dagster.experiments import analyze, analyze_statistics, merge, summarize
from e2i_dagster.experiments.statistics.permutation import Pool, needs_permutation, permutation_test


def frame_of(treated, control, **columns):
    arms = ["treated"] * len(treated) + ["control"] * len(control)
    return pd.DataFrame({"arm": arms, "y": np.r_[treated, control].astype(float), **columns})


def compared(treated, control, **options):
    columns = {name: options.pop(name) for name in ("site", "before") if name in options}
    frame = frame_of(treated, control, **columns)
    return analyze(frame, arm="arm", outcome="y", control="control", **options).comparisons[0]


def padded(values, size):
    return np.r_[values, np.zeros(size - len(values))]


def pool_of(values, treated):
    different, place = np.unique(values, return_inverse=True)
    return Pool(different, np.bincount(place), np.bincount(place[treated], minlength=len(different)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 5.0, -3.0]), min_size=5, max_size=9), st.data())
def test_the_exact_law_is_that_of_every_way_to_give_the_values_to_the_units(values, data):
    size = data.draw(st.integers(2, len(values) - 2))
    treated = data.draw(st.permutations(range(len(values))))[:size]
    values = np.array(values)
    if len(set(values)) == 1:
        return
    sums = np.array(
        [values[list(chosen)].sum() for chosen in itertools.combinations(range(len(values)), size)]
    )
    observed = values[treated].sum()
    tails = (sums >= observed).mean(), (sums <= observed).mean()
    found = permutation_test([pool_of(values, treated)])
    assert stats.norm.sf(abs(found.z)) == pytest.approx(min(*tails, 0.5), abs=1e-9)
    assert found.attainable == pytest.approx(
        (
            min(0.0, stats.norm.ppf((sums == sums.min()).mean())),
            max(0.0, stats.norm.isf((sums == sums.max()).mean())),
        )
    )


@pytest.mark.parametrize("events", [1, 4, 5])
def test_an_outcome_of_0_and_1_has_one_answer_whatever_it_is_called(events):
    treated, control = np.zeros(50), padded(np.ones(events), 450)
    mean = compared(treated, control)
    rate = compared(treated, control, kind="proportion")
    assert mean.p_value == rate.p_value > 0.9 and mean.interval == rate.interval
    assert mean.method == rate.method


@pytest.mark.parametrize(
    ("units_1", "units_0", "rate"), [(100, 1000, 0.005), (50, 450, 0.01), (20, 200, 0.05), (100, 1000, 0.3)]
)
def test_sparse_counts_hold_the_level_that_welchs_t_does_not(units_1, units_0, rate):
    draw = np.random.default_rng(4)
    wrong = {"welch": 0, "used": 0}
    draws = 400
    for _ in range(draws):
        counts = draw.poisson(rate, units_1 + units_0)
        if not counts.any():
            continue
        pool = pool_of(counts.astype(float), np.arange(units_1))
        assert needs_permutation([pool])
        wrong["used"] += abs(permutation_test([pool]).z) > 1.959964
        with np.errstate(all="ignore"):
            wrong["welch"] += (
                stats.ttest_ind(counts[:units_1], counts[units_1:], equal_var=False).pvalue < 0.05
            )
    # 95 % of draws of a test at 0.05 give no more.
    assert wrong["used"] <= stats.binom.ppf(0.95, draws, 0.05)
    assert wrong["welch"] > wrong["used"]


def test_a_single_unit_with_events_cannot_speak():
    found = compared(padded([12], 100), np.zeros(100))
    assert found.status == "estimated" and found.method == "exact permutation test"
    assert found.p_value == 1.0 and found.lower < 0 < found.upper
    assert found.least_p() == pytest.approx(0.5)


def test_enough_events_in_arms_of_equal_size_stay_with_welchs_t():
    draw = np.random.default_rng(0)
    for treated, control in (
        (draw.poisson(2.0, 300), draw.poisson(2.0, 300)),
        (draw.normal(size=40), draw.normal(size=40)),
    ):
        found = compared(treated, control)
        assert found.method == "Welch t"
        assert found.p_value == pytest.approx(stats.ttest_ind(treated, control, equal_var=False).pvalue)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12), st.booleans())
def test_the_interval_holds_no_effect_exactly_where_the_test_does_not_reject(treated, control, strata):
    treated, control = padded(treated, 30), padded(control, 90)
    if not (treated.any() or control.any()):
        return
    options = {"site": list("ab" * 60), "strata": "site"} if strata else {}
    found = compared(treated, control, **options)
    assert found.lower <= found.effect <= found.upper
    assert (found.lower <= 0 <= found.upper) == (found.p_value >= 0.05 - 1e-12)


def test_a_covariate_of_too_few_different_outcomes_is_left_out_with_a_note_and_parts_merge():
    treated, control = padded([3, 1, 2], 40), padded([1], 80)
    found = compared(treated, control, covariate="before", before=np.arange(120.0))
    assert "without the covariate" in found.note and found.z == compared(treated, control).z
    frame = frame_of(treated, control)
    parts = [summarize(part, arm="arm", outcome="y") for part in (frame[::2], frame[1::2])]
    merged = analyze_statistics(merge(parts), control="control").comparisons[0]
    assert merged.z == pytest.approx(compared(treated, control).z)


def test_a_ratio_of_sparse_numerators_is_not_estimable_and_says_why():
    frame = frame_of(padded([2], 50), padded([1, 1], 450), visits=10.0)
    found = analyze(
        frame, arm="arm", outcome="y", kind="ratio", denominator="visits", control="control"
    ).comparisons[0]
    assert found.status == "not_estimable" and "another numerator" in found.reason


def test_an_arm_whose_clusters_do_not_vary_takes_the_variance_of_both():
    draw = np.random.default_rng(2)
    site = np.repeat(np.arange(160), 10)
    frame = pd.DataFrame({"arm": np.where(site < 40, "treated", "control"), "site": site, "y": 0.0})
    frame.loc[draw.choice(np.flatnonzero(site >= 40), 12, replace=False), "y"] = 1.0
    found = analyze(frame, arm="arm", outcome="y", cluster="site", control="control").comparisons[0]
    pooled = frame[site >= 40].groupby("site")["y"].mean().var() * 119 / 158
    assert found.standard_error == pytest.approx(np.sqrt(pooled * (1 / 40 + 1 / 120)))
    assert found.degrees_of_freedom == pytest.approx(158)
