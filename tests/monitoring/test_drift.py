"""Drift: planted shifts are found with the right severity, and nothing is found where nothing changed."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift import detect_drift, population_stability_index
from e2i_dagster.monitoring.profile import ParquetColumns, count_numbers, profile_values
from e2i_dagster.policy_files.environment import CHECKOUT

POLICY = DriftPolicy.load(CHECKOUT / "config")
DAY = dt.date(2025, 1, 2)


def report(reference: pd.DataFrame, current: pd.DataFrame):
    return detect_drift(
        reference.drop(columns="prediction"),
        current.drop(columns="prediction"),
        policy=POLICY,
        scope="s",
        day=DAY,
        model_id="m/1",
        predictions=(reference["prediction"], current["prediction"]),
    )


def frame(rng: np.random.Generator, rows: int, shift: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "disease_severity": rng.normal(5 + shift, 2, rows),
            "insurance_type": rng.choice(["commercial", "medicare", "medicaid"], rows, p=[0.6, 0.3, 0.1]),
            "prediction": rng.uniform(0, 1, rows),
        }
    )


def test_index_of_two_known_distributions():
    reference = pd.Series(["a"] * 50 + ["b"] * 50)
    current = pd.Series(["a"] * 80 + ["b"] * 20)
    by_hand = (0.8 - 0.5) * np.log(0.8 / 0.5) + (0.2 - 0.5) * np.log(0.2 / 0.5)
    assert population_stability_index(reference, current) == pytest.approx(by_hand, rel=0.03)


def test_values_far_outside_the_reference_count():
    rng = np.random.default_rng(1)
    reference = pd.Series(rng.normal(size=5_000))
    current = pd.Series(np.where(np.arange(5_000) % 5 == 0, 1_000.0, rng.normal(size=5_000)))
    assert population_stability_index(reference, current) > 0.1


def test_a_planted_shift_is_found_and_the_rest_is_not():
    rng = np.random.default_rng(2)
    reference, current = frame(rng, 3_000), frame(rng, 1_000)
    current["disease_severity"] += 3
    found = {feature.name: feature for feature in report(reference, current).features}
    assert found["disease_severity"].severity == "critical"
    assert found["insurance_type"].severity == "none"
    assert found["prediction"].kind == "prediction"
    assert found["prediction"].severity == "none"


def test_new_category_is_found():
    rng = np.random.default_rng(3)
    reference, current = frame(rng, 3_000), frame(rng, 1_000)
    current.loc[current.index[:400], "insurance_type"] = "cash"
    assert report(reference, current).worst == "critical"


def test_missing_values_that_appear_are_found():
    rng = np.random.default_rng(4)
    reference, current = frame(rng, 3_000), frame(rng, 1_000)
    current.loc[current.index[:500], "disease_severity"] = np.nan
    assert report(reference, current).worst in ("high", "critical")


def test_false_alarms_without_drift_are_rare():
    rng = np.random.default_rng(5)
    alarms = sum(report(frame(rng, 1_000), frame(rng, 150)).worst != "none" for _ in range(100))
    assert alarms <= 10, "at a false-discovery rate of 5 % at most about 5 of 100 null reports show anything"


def test_too_few_values_are_skipped_with_their_reason():
    rng = np.random.default_rng(6)
    few = report(frame(rng, 1_000), frame(rng, 40, shift=5))
    assert {feature.state for feature in few.features} == {"skipped"}
    assert "needs 100 values" in few.features[0].reason
    assert few.composite_score is None


def test_empty_day_is_a_report_not_a_crash():
    rng = np.random.default_rng(7)
    empty = report(frame(rng, 500), frame(rng, 0))
    assert len(empty.tested) == 0
    assert empty.to_metadata()["features_skipped"] == 3


def test_inputs_stay_as_they_are():
    rng = np.random.default_rng(8)
    reference, current = frame(rng, 500), frame(rng, 500)
    before = reference.copy(), current.copy()
    report(reference, current)
    pd.testing.assert_frame_equal(reference, before[0])
    pd.testing.assert_frame_equal(current, before[1])


def test_metadata_shows_a_table_and_a_figure():
    rng = np.random.default_rng(9)
    shown = report(frame(rng, 500), frame(rng, 500, shift=4)).to_metadata()
    assert ("disease_severity", "critical") in [row[:2] for row in shown["drift"].rows]
    assert shown["figure"].uri.startswith("data:image/png")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=200), st.randoms(use_true_random=False))
def test_index_is_zero_for_the_same_values_in_any_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert population_stability_index(pd.Series(values), pd.Series(shuffled)) == pytest.approx(0, abs=1e-12)


def halves(left: int, right: int) -> pd.Series:
    return pd.Series(["a"] * left + ["b"] * right)


def one_feature(reference: pd.Series, current: pd.Series, policy=POLICY):
    found = detect_drift(
        reference.to_frame("x"), current.to_frame("x"), policy=policy, scope="s", day=DAY, model_id="m/1"
    )
    return found.features[0]


def test_a_distribution_says_what_was_and_what_is():
    found = one_feature(halves(500, 500), halves(700, 300))
    assert found.distribution == (("= a", 0.5, 0.7), ("= b", 0.5, 0.3))
    assert found.reason == "= a: 50% before, 70% now"


def test_distances_of_known_distributions():
    """A shift by one standard deviation; halves that swap 20 points."""
    values = pd.Series(np.random.default_rng(10).normal(size=3_000))
    moved = one_feature(values, values + values.std(ddof=0))
    assert moved.wasserstein == pytest.approx(1, abs=0.01)
    found = one_feature(halves(500, 500), halves(700, 300))
    mixed = np.array([0.6, 0.4])
    divergence = sum(
        0.5 * np.sum(side * np.log2(side / mixed)) for side in (np.array([0.5, 0.5]), np.array([0.7, 0.3]))
    )
    assert found.jensen_shannon == pytest.approx(divergence**0.5) and found.wasserstein is None


def test_the_kolmogorov_smirnov_test_is_that_of_scipy():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(11)
    for then, now in (
        (rng.normal(size=900), rng.normal(0.1, 1, size=700)),
        (rng.integers(0, 6, 900).astype(float), rng.integers(0, 7, 700).astype(float)),
    ):
        expected = ks_2samp(then, now, method="asymp")
        found = one_feature(pd.Series(then), pd.Series(now))
        assert found.statistic == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.integers(0, 9, n).astype(float),
        lambda rng, n: rng.lognormal(0, 3, n),
        lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.normal(size=n)),
        lambda rng, n: np.where(rng.random(n) < 0.01, np.inf, rng.normal(size=n) * 1e150),
        lambda rng, n: np.full(n, 7.0),
    ],
    ids=["normal", "whole", "skewed", "mostly zero", "extreme", "constant"],
)
def test_many_values_are_counted_as_few_are(draw):
    """Counting by cells gives what sorting gives, for values at, between and beyond the points."""
    rng = np.random.default_rng(12)
    profile = profile_values(pd.Series(draw(rng, 5_000)), bins=10)
    values = np.concatenate(
        [draw(rng, 30_000), profile.points, np.nextafter(profile.points, np.inf), [-1e9, 1e9]]
    )
    counted = count_numbers(profile, values, len(values))
    ordered, points = np.sort(values), np.asarray(profile.points)
    assert np.array_equal(counted.below, np.searchsorted(ordered, points, side="left"))
    assert np.array_equal(counted.at_most, np.searchsorted(ordered, points, side="right"))


def test_a_column_that_is_gone_or_changed_its_type_is_a_finding():
    rng = np.random.default_rng(13)
    reference, current = frame(rng, 500), frame(rng, 500)
    gone = detect_drift(
        reference, current.drop(columns="disease_severity"), policy=POLICY, scope="s", day=DAY, model_id="m/1"
    )
    assert gone.findings == ("disease_severity: the column is no longer there",) and gone.worst == "critical"
    text = current.assign(disease_severity="high")
    changed = detect_drift(reference, text, policy=POLICY, scope="s", day=DAY, model_id="m/1")
    assert changed.findings[0].startswith("disease_severity: is object where the reference has numbers")


def test_a_file_is_compared_as_its_frame(tmp_path):
    rng = np.random.default_rng(15)
    reference, current = frame(rng, 500), frame(rng, 500, shift=1)
    current.loc[:20, "disease_severity"] = np.nan
    current.to_parquet(tmp_path / "day.parquet")
    about = {"policy": POLICY, "scope": "s", "day": DAY, "model_id": "m/1"}
    from_file = detect_drift(reference, ParquetColumns(tmp_path / "day.parquet"), **about)
    assert from_file == detect_drift(reference, current, **about)


def test_a_large_sample_does_not_make_a_small_shift_more_than_a_note():
    rng = np.random.default_rng(14)
    found = one_feature(pd.Series(rng.normal(size=100_000)), pd.Series(rng.normal(0.03, 1, 100_000)))
    assert found.adjusted_p_value < 0.05 and found.severity in ("none", "low")


def test_a_severity_begins_at_its_bound():
    reference, current = halves(500, 500), halves(700, 300)
    index = population_stability_index(reference, current)
    for bound, severity in ((index, "high"), (float(np.nextafter(index, 1)), "medium")):
        bounds = POLICY.severity_psi.model_copy(update={"high": bound, "critical": 1.0})
        policy = POLICY.model_copy(update={"severity_psi": bounds})
        found = detect_drift(
            reference.to_frame("x"), current.to_frame("x"), policy=policy, scope="s", day=DAY, model_id="m/1"
        )
        assert found.features[0].severity == severity


def test_as_many_values_as_needed_are_enough():
    needed = POLICY.minimum_sample.psi
    for size, state in ((needed, "executed"), (needed - 1, "skipped")):
        found = report(frame(np.random.default_rng(6), 1_000), frame(np.random.default_rng(7), size))
        assert {feature.state for feature in found.features} == {state}


def test_the_reference_makes_the_bins_and_is_counted_as_such():
    rng = np.random.default_rng(8)
    reference, current = frame(rng, 900), frame(rng, 300, shift=1)
    found = report(reference, current).features[0]
    assert (found.reference_count, found.current_count) == (900, 300)
    name = "disease_severity"
    assert found.psi == population_stability_index(reference[name], current[name], POLICY.psi_bins)
    assert found.psi != population_stability_index(current[name], reference[name], POLICY.psi_bins)


def test_features_that_were_not_tested_weigh_nothing():
    rng = np.random.default_rng(9)
    reference, current = frame(rng, 1_000), frame(rng, 500, shift=5)
    unknown = reference.assign(insurance_type=np.nan, prediction=np.nan)
    found = report(unknown, current)
    assert [feature.state for feature in found.features] == ["executed", "skipped", "skipped"]
    assert found.composite_score == POLICY.severity_weight["critical"]
