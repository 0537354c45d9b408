"""Rates with few events: exact tests, intervals that agree with them, one-sided error by enumeration."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.experiments import one_sided_errors
from e2i_dagster.experiments import aa_check, analyze
from e2i_dagster.experiments.statistics.rates import (
    Counts,
    Draw,
    attainable_z,
    conditional_test,
    rate_test,
    score_interval,
)


def one_sided(counts: Counts) -> float:
    return float(stats.norm.sf(rate_test(counts).z))


def frame_of(events_1: int, units_1: int, events_0: int, units_0: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arm": ["treated"] * units_1 + ["control"] * units_0,
            "y": np.r_[
                np.ones(events_1), np.zeros(units_1 - events_1), np.ones(events_0), np.zeros(units_0 - events_0)
            ],
        }
    )  # fmt: skip


def compared(*table: int, **options):
    return analyze(
        frame_of(*table), arm="arm", outcome="y", kind="proportion", control="control", **options
    ).comparison()


def test_one_or_two_events_in_the_small_arm_of_nine_to_one():
    assert one_sided(Counts(1, 50, 0, 450)) == pytest.approx(0.0787, abs=5e-4)
    assert one_sided(Counts(2, 50, 0, 450)) == pytest.approx(0.00677, abs=5e-5)
    one, two = compared(1, 50, 0, 450), compared(2, 50, 0, 450)
    assert one.p_value == pytest.approx(0.157, abs=1e-3) and one.interval[0] < 0
    assert two.z < 2.5 and two.p_value > 0.01
    assert "exact" in two.method


@pytest.mark.parametrize(
    "table", [(1, 50, 0, 450), (0, 50, 45, 450), (5, 40, 15, 60), (7, 12, 1, 15), (20, 20, 150, 200)]
)
def test_the_exact_test_is_boschloos(table):
    x1, n1, x0, n0 = table
    cells = [[x1, x0], [n1 - x1, n0 - x0]]
    both = [
        stats.boschloo_exact(cells, alternative=side, n=128).pvalue for side in ("greater", "less")
    ]  # fmt: skip
    # scipy's search for the largest probability over the rate is coarser.
    assert stats.norm.sf(abs(rate_test(Counts(*table)).z)) == pytest.approx(min(both), rel=5e-3)


def test_the_published_score_interval():
    """Newcombe, Statistics in Medicine 17 (1998), table II, row (a), method 5 (Mee): 0.0533 to 0.3377."""
    assert score_interval(Counts(56, 70, 48, 80), 1.959964) == pytest.approx((0.0533, 0.3377), abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_interval_holds_no_effect_exactly_where_the_test_does_not_reject(data):
    units_1, units_0 = data.draw(st.integers(20, 60)), data.draw(st.integers(20, 300))
    counts = Counts(data.draw(st.integers(0, units_1)), units_1, data.draw(st.integers(0, units_0)), units_0)
    test = rate_test(counts)
    for critical in (1.0, 1.959964, 2.963):
        low, high = score_interval(counts, critical, test.statistic - test.z)
        assert -1 <= low <= counts.difference <= high <= 1
        if abs(abs(test.z) - critical) > 1e-6:
            assert (low <= 0 <= high) == (abs(test.z) < critical)
    mirror = rate_test(Counts(counts.events_0, units_0, counts.events_1, units_1))
    assert mirror.z == pytest.approx(-test.z, abs=1e-9)


@pytest.mark.parametrize(
    "units", [(10, 10), (10, 100), (20, 200), (45, 150), (50, 450), (300, 30), (100, 100)]
)
@pytest.mark.parametrize("level", [0.025, 0.003])
def test_the_one_sided_error_is_held(units, level):
    assert one_sided_errors(*units, level).max() <= level + 1e-4


def test_no_event_at_all_is_an_answer():
    found = compared(0, 50, 0, 450)
    assert found.status == "estimated" and found.effect == 0 and found.p_value == 1
    assert found.interval[0] < 0 < found.interval[1]
    every = compared(50, 50, 60, 60)
    assert every.p_value == 1 and every.interval[0] < 0 < every.interval[1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_table_of_as_many_events_is_beyond_what_is_attainable(data):
    """The bound is met by the most extreme table, as every table of the same margins has its z."""
    units_1, units_0 = data.draw(st.integers(5, 40)), data.draw(st.integers(5, 40))
    events = data.draw(st.integers(0, 6))
    low, high = attainable_z(Counts(min(events, units_1), units_1, events - min(events, units_1), units_0))
    found = [
        rate_test(Counts(one, units_1, events - one, units_0)).z
        for one in range(max(0, events - units_0), min(events, units_1) + 1)
    ]
    assert low <= min(found) + 1e-9 or stats.norm.cdf(low) < 1e-3
    assert high >= max(found) - 1e-9 or stats.norm.sf(high) < 1e-3


def test_a_time_to_event_without_events_says_nothing():
    found = survival(0, 150, 0, 150)
    assert (found.status, found.z, found.p_value) == ("not_estimable", None, None)
    assert found.reason == "no event in either arm"
    one = survival(1, 150, 0, 150)
    assert one.status == "tested" and one.least_p() == pytest.approx(0.5, abs=0.01)


def test_few_events_are_not_adjusted_for_a_covariate():
    frame = frame_of(0, 20, 24, 200)
    frame["before"] = np.arange(len(frame)) % 7
    shared = {"arm": "arm", "outcome": "y", "kind": "proportion", "control": "control"}
    adjusted, plain = (
        analyze(frame, **shared, **more).comparison() for more in ({"covariate": "before"}, {})
    )
    assert adjusted.z == plain.z and "without the covariate" in adjusted.note
    assert plain.p_value > 0.05


def test_few_events_in_strata_are_tested_exactly():
    frame = frame_of(4, 60, 3, 300)
    frame["site"] = np.arange(len(frame)) % 2
    found = analyze(
        frame, arm="arm", outcome="y", kind="proportion", control="control", strata="site"
    ).comparison()
    cells = frame.groupby("site")
    draws = [
        Draw(len(part), int((part["arm"] == "treated").sum()), int(part["y"].sum())) for _, part in cells
    ]
    rng = np.random.default_rng(1)
    drawn = sum(rng.hypergeometric(d.marked, d.units - d.marked, d.drawn, 200_000) for d in draws)
    assert stats.norm.sf(found.z) == pytest.approx((drawn >= 4).mean(), abs=0.003)
    assert (found.p_value < 0.05) == (found.lower > 0)


def test_the_exact_test_of_one_table_is_fishers():
    found = conditional_test([Draw(500, 50, 2)], 2, 4.25)
    z = found.z
    assert found.attainable == (0.0, z)
    assert stats.norm.sf(z) == pytest.approx(stats.fisher_exact([[2, 0], [48, 450]])[1])


def survival(events_1, units_1, events_0, units_0):
    frame = frame_of(events_1, units_1, events_0, units_0)
    # The events of both arms are spread over the same days.
    frame["day"] = np.where(frame["y"] == 1, 1.0 + frame.groupby("arm").cumcount(), 100.0)
    return analyze(
        frame, arm="arm", outcome="day", event="y", kind="survival", control="control"
    ).comparison()


def test_an_arm_without_events_has_a_log_rank_test():
    found = survival(12, 150, 0, 150)
    assert found.status == "tested" and found.effect is None and "no finite estimate" in found.reason
    # Each death falls to either arm with the share of those at risk, nearly one half: 0.5 ** 12.
    assert stats.norm.sf(found.z) == pytest.approx(0.5**12, rel=0.35)
    assert found.restricted_mean_difference < 0


def test_too_few_deaths_for_a_ratio_are_told_by_the_limit_and_not_by_a_hidden_count():
    few = survival(4, 50, 0, 450)
    assert few.effect is None and few.reason.startswith("both arms together have fewer than 10 events")
    assert "<11" not in few.reason


def test_few_deaths_in_the_small_arm_of_nine_to_one_are_tested_exactly():
    found = survival(4, 50, 6, 450)
    assert stats.norm.sf(found.z) == pytest.approx(stats.binom.sf(3, 10, 0.1), rel=0.15)
    assert found.status == "estimated" and "exact log-rank" in found.method


def test_exact_tests_pass_the_check_by_chance_and_ignored_clusters_do_not():
    rng = np.random.default_rng(3)
    rare = pd.DataFrame({"y": (rng.random(200) < 0.1).astype(float), "clinic": np.arange(200) // 20})
    assert aa_check(rare, outcome="y", kind="proportion", draws=200).status == "passed"
    rare["y"] = np.isin(rare["clinic"], [1, 4]).astype(float)
    ignored = aa_check(rare, outcome="y", kind="proportion", randomized="clinic", draws=200)
    assert ignored.status == "failed"
