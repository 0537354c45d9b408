"""Statistics with known answers, selection with planted features, freshness."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from e2i_dagster.config.feast_materialization import FreshnessLimits
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.scope import default_scope
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.features.freshness import freshness
from e2i_dagster.features.scope_selection import select_for_scope
from e2i_dagster.features.selection import select_features
from e2i_dagster.features.statistics import feature_statistics
from e2i_dagster.policy_files.environment import CHECKOUT

POLICY = FeatureSelectionPolicy.load(CHECKOUT / "config")


def test_statistics_known_answers():
    frame = pd.DataFrame(
        {
            "treatment_count": pd.array([*range(1, 21), None], dtype="Int64"),
            "gender": pd.array(["F"] * 12 + ["M"] * 8 + [None], dtype="string[pyarrow]"),
            "disease_severity": [1.5] * 5 + [np.nan] * 16,
            "label": 1,
        }
    )
    found = {item.feature: item for item in feature_statistics(frame)}
    assert set(found) == {"treatment_count", "gender", "disease_severity"}
    count = found["treatment_count"]
    assert (count.rows, count.missing, count.unique, count.mean) == (21, 1, 20, 10.5)
    assert count.standard_deviation == pytest.approx(np.sqrt(35))
    assert count.quantiles is not None
    assert count.quantiles["p50"] == 10.5
    assert count.missing_share == pytest.approx(1 / 21)
    # Eight rows are too few to show; so is what they would be added to.
    assert found["gender"].categories == {"F": 12}
    assert found["disease_severity"].mean is None


def test_statistics_of_an_empty_frame_are_not_numbers():
    item = feature_statistics(pd.DataFrame({"treatment_count": pd.array([], dtype="Int64")}))[0]
    assert (item.rows, item.missing_share, item.mean, item.quantiles) == (0, None, None, None)


@pytest.fixture(scope="module")
def planted():
    """2,000 rows whose label depends on severity and channel; the other columns are planted defects."""
    draw = np.random.default_rng(11)
    count = 2_000
    severity = draw.uniform(0, 10, count)
    channel = draw.choice(["email", "portal"], count)
    chance = 1 / (1 + np.exp(-(0.4 * (severity - 5) + (channel == "portal") - 0.5)))
    frame = pd.DataFrame(
        {
            "disease_severity": severity,
            "mean_contact_quality": severity * 2 + draw.normal(0, 0.1, count),
            "channel_preferences": pd.array(channel, dtype="string[pyarrow]"),
            "gender": pd.array(draw.choice(["F", "M"], count), dtype="string[pyarrow]"),
            "days_since_diagnosis": pd.array([None] * 1_950 + [3] * 50, dtype="Int64"),
            "academic_hcp": pd.array([1] * count, dtype="Int64"),
            "brand_share_90d": np.arange(count) // 100 / 20,
            "index_date": pd.Timestamp("2023-01-01") + pd.to_timedelta(np.arange(count) // 4, "D"),
            "label": pd.array((draw.uniform(size=count) < chance).astype(int), dtype="Int64"),
        }
    )
    # Where rows are not for training, gender gives the label away: it must not be seen.
    train = np.arange(count) < 1_200
    leak = pd.array(np.where(frame["label"] == 1, "F", "M"), dtype="string[pyarrow]")
    frame["gender"] = frame["gender"].where(pd.Series(train), pd.Series(leak))
    return frame, train


def test_each_rule_drops_its_planted_feature_with_a_reason(planted):
    frame, train = planted
    selection = select_features(frame, train=train, policy=POLICY)
    assert selection.rows == 1_200
    rules = {drop.feature: drop.rule for drop in selection.dropped}
    # Which of the two that say the same goes depends on the draw; the other one stays.
    twins = {"disease_severity", "mean_contact_quality"}
    (gone,) = twins & set(rules)
    assert rules == {
        "days_since_diagnosis": "missingness",
        "academic_hcp": "variance",
        "brand_share_90d": "time_shift",
        "gender": "mutual_information",
        gone: "correlation",
    }
    assert twins - {gone} <= set(selection.kept)
    assert "channel_preferences" in selection.kept
    assert len(selection.kept) == 2
    assert all(drop.reason and drop.value > drop.limit for drop in selection.dropped)
    shown = selection.to_metadata()
    assert shown["features_kept"] == 2
    assert ("gender", False) in [row[:2] for row in shown["features"].rows]


def test_a_shift_that_chance_makes_of_few_rows_drops_nothing():
    draw = np.random.default_rng(5)
    frame = pd.DataFrame({"disease_severity": draw.uniform(0, 10, 60), "label": np.arange(60) % 2})
    frame["index_date"] = pd.date_range("2023-01-01", periods=60)
    loose = POLICY.model_copy(update={"max_p_value": 1.0, "max_time_shift": 0.01})
    assert select_features(frame, train=np.ones(60, bool), policy=loose).kept == ("disease_severity",)
    frame["disease_severity"] += np.where(np.arange(60) < 40, 0, 10)
    with pytest.raises(VerdictError, match="shifts with time within the training rows"):
        select_features(frame, train=np.ones(60, bool), policy=loose)


def test_a_scope_selects_by_its_training_rows(planted):
    """Of the patients whose split is train; gender gives the label of all others away."""
    frame, train = planted
    frame = frame.assign(patient_id=[f"P{number}" for number in range(len(frame))])
    others = np.resize(["validation", "test", "holdout"], int((~train).sum()))
    splits = pd.DataFrame(
        {"patient_id": frame["patient_id"], "split": ["train"] * int(train.sum()) + [*others]}
    )
    chosen = select_for_scope(default_scope(), frame, splits.sample(frac=1, random_state=1), policy=POLICY)
    assert chosen.selection == select_features(frame, train=train, policy=POLICY)
    assert {item.rows for item in chosen.statistics} == {1_200}


def test_mutual_information_is_that_of_scikit_learn(planted):
    frame, train = planted
    selection = select_features(frame, train=train, policy=POLICY, features=["channel_preferences"])
    rows = frame[train]
    expected = mutual_info_score(rows["label"].astype(int), rows["channel_preferences"].astype(str))
    assert selection.mutual_information["channel_preferences"] == pytest.approx(expected, abs=1e-12)


def test_a_feature_that_is_mostly_one_number_is_judged_by_its_other_values():
    """92 % zeros, the others below; the label is more frequent among those."""
    draw = np.random.default_rng(3)
    values = np.where(draw.uniform(size=1_000) < 0.08, draw.uniform(-9, -1, 1_000), 0.0)
    label = (draw.uniform(size=1_000) < np.where(values < 0, 0.8, 0.2)).astype(int)
    frame = pd.DataFrame({"disease_severity": values, "label": label})
    selection = select_features(frame, train=np.full(1_000, True), policy=POLICY)
    exact = mutual_info_score(label, values < 0)
    assert selection.mutual_information["disease_severity"] == pytest.approx(exact, rel=0.2)


@given(seed=st.integers(0, 1_000))
@settings(max_examples=5, deadline=None)
def test_selection_depends_on_training_rows_alone(planted, seed):
    frame, train = planted
    expected = select_features(frame, train=train, policy=POLICY)
    draw = np.random.default_rng(seed)
    scrambled = frame.copy()
    others = np.flatnonzero(~train)
    scrambled.iloc[others] = frame.iloc[draw.permutation(others)].to_numpy()
    assert select_features(scrambled.astype(frame.dtypes), train=train, policy=POLICY) == expected


def test_noise_is_dropped_about_as_often_as_the_limit_says():
    draw = np.random.default_rng(1)
    kept = 0
    for _ in range(60):
        frame = pd.DataFrame(
            {
                "disease_severity": draw.uniform(size=400),
                "treatment_count": draw.integers(0, 2, 400),
                "label": draw.integers(0, 2, 400),
            }
        )
        frame["treatment_count"] = frame["label"]  # so that something is left
        selection = select_features(frame, train=np.full(400, True), policy=POLICY)
        kept += "disease_severity" in selection.kept
    # 60 draws at 0.10: mean 6, standard deviation 2.3.
    assert kept <= 15


def test_selection_refuses_what_it_cannot_judge(planted):
    frame, train = planted
    with pytest.raises(InputError, match="found 3 values for 2000 rows"):
        select_features(frame, train=np.array([True] * 3), policy=POLICY)
    with pytest.raises(InputError, match="0 labelled training rows"):
        select_features(frame, train=np.full(len(frame), False), policy=POLICY)
    with pytest.raises(VerdictError, match=r"No feature is left.*academic_hcp: 100\.0% of the rows"):
        select_features(frame, train=train, policy=POLICY, features=["academic_hcp"])


def test_freshness_limits_are_judged_to_the_second():
    limits = FreshnessLimits(warn_after_seconds=3_600, stale_after_seconds=7_200)
    now = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)
    ages = {"engagement_features": 3_600, "patient_features": 3_601, "trigger_features": 7_200}
    ages |= {"hcp_features": 7_201}
    completed = {name: now - dt.timedelta(seconds=age) for name, age in ages.items()}
    report = freshness(completed, limits, now)
    assert [view.status for view in report.views] == ["fresh", "warning", "warning", "stale", "never"]
    assert report.status == "never"
    assert freshness(dict.fromkeys([view.view for view in report.views], now), limits, now).status == "fresh"
    assert ("market_features", "never") in [row[:2] for row in report.to_metadata()["views"].rows]
