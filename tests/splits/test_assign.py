"""Assigning splits: ratios, stability, strata, order in time, bad input."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import InputError
from e2i_dagster.splits import RATIOS, SPLITS, assign_splits, keyed_hash, validate_splits


def ids(n, start=0):
    return [f"PAT{k:08}" for k in range(start, start + n)]


def counts(frame):
    return [int((frame["split"] == name).sum()) for name in SPLITS]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.text(min_size=1, max_size=4), st.integers(0, 10_000))
def test_each_stratum_is_within_one_row_of_its_share(n, strata, salt, seed):
    labels = np.random.default_rng(seed).integers(0, strata, n)
    frame = assign_splits(ids(n), salt=salt, strata=labels)
    assert frame["patient_id"].tolist() == ids(n)
    for value in np.unique(labels):
        size = int((labels == value).sum())
        found = counts(frame[labels == value])
        assert all(abs(f - r * size) < 1 + 1e-9 for f, r in zip(found, RATIOS, strict=True))
    assert validate_splits(frame, strata=labels).passed


@settings(max_examples=40, deadline=None)
@given(st.integers(500, 900), st.integers(1, 40), st.integers(0, 10_000))
def test_shares_are_within_two_points_from_five_hundred_patients_on(n, strata, seed):
    labels = np.random.default_rng(seed).integers(0, strata, n)
    report = validate_splits(assign_splits(ids(n), salt="s", strata=labels))
    assert report.passed, report.violations


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 1_000), st.booleans())
def test_nobody_moves_when_others_join_or_leave(first, more, seed, stratified):
    rng = np.random.default_rng(seed)
    everyone = ids(first + more)
    labels = pd.Series(rng.integers(0, 2, first + more))
    options = {"salt": "s"}
    before = assign_splits(everyone[:first], strata=labels[:first] if stratified else None, **options)
    stay = rng.random(first + more) > 0.1
    now = [key for key, kept in zip(everyone, stay, strict=True) if kept]
    after = assign_splits(
        now, existing=before, strata=labels[stay].reset_index(drop=True) if stratified else None, **options
    )
    joined = after.merge(before, on="patient_id", suffixes=("", "_before"))
    assert (joined["split"] == joined["split_before"]).all()


def test_newcomers_fill_the_largest_deficit():
    existing = pd.DataFrame({"patient_id": ids(60), "split": "train"})
    frame = assign_splits(ids(100), salt="s", existing=existing)
    assert counts(frame) == [60, 20, 15, 5]
    tilted = pd.DataFrame({"patient_id": ids(90), "split": ["train"] * 80 + ["holdout"] * 10})
    grown = assign_splits(ids(100), salt="s", existing=tilted)
    # Validation lacks 20 and test 15: ten newcomers leave both lacking 12 or 13.
    assert counts(grown) in ([80, 7, 3, 10], [80, 8, 2, 10])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.randoms())
def test_the_order_of_the_rows_does_not_matter(n, random):
    keys, labels = ids(n), [k % 3 for k in range(n)]
    order = list(range(n))
    random.shuffle(order)
    frame = assign_splits(keys, salt="s", strata=labels)
    shuffled = assign_splits([keys[k] for k in order], salt="s", strata=[labels[k] for k in order])
    again = shuffled.sort_values("patient_id", ignore_index=True)
    pd.testing.assert_frame_equal(again, frame)


def test_another_salt_is_another_split_and_the_hash_is_the_same_everywhere():
    one, other = assign_splits(ids(1_000), salt="a"), assign_splits(ids(1_000), salt="b")
    assert 0.3 < (one["split"] != other["split"]).mean() < 0.8
    assert keyed_hash(np.array(["PAT00000001"], dtype=object), "a").tolist() == [6465579693307714388]
    assert np.unique(keyed_hash(np.array(ids(50_000), dtype=object), "a")).size == 50_000


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_a_handful_of_patients(n):
    frame = assign_splits(ids(n), salt="s")
    assert len(frame) == n
    assert frame["split"].isin(SPLITS).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=80), st.integers(0, 10), st.integers(0, 40))
def test_splits_in_time_follow_each_other_with_the_gap(offsets, gap, later):
    dates = pd.Timestamp("2023-01-01") + pd.to_timedelta(offsets, unit="D")
    keys = ids(len(offsets))
    frame = assign_splits(keys, salt="s", index_dates=dates, gap_days=gap)
    report = validate_splits(frame, index_dates=dates, gap_days=gap)
    assert {c.name: c.status for c in report.checks}["temporal_order"] == "passed"

    # Newcomers keep the order, and nobody moves.
    new_dates = pd.Timestamp("2023-01-01") + pd.to_timedelta([401 + later, *offsets[:3]], unit="D")
    both = [*keys, *ids(len(new_dates), start=1_000)]
    all_dates = dates.append(new_dates)
    grown = assign_splits(both, salt="s", index_dates=all_dates, gap_days=gap, existing=frame)
    assert grown["split"].iloc[: len(keys)].tolist() == frame["split"].tolist()
    grown_report = validate_splits(grown, index_dates=all_dates, gap_days=gap)
    assert {c.name: c.status for c in grown_report.checks}["temporal_order"] == "passed"


def test_the_days_of_the_gap_belong_to_no_split():
    """One patient a day: validation begins on day 60, so with a gap of three days train ends on day 56."""
    dates = pd.date_range("2024-01-01", periods=100)
    assigned = assign_splits([f"P{day}" for day in range(100)], salt="s", index_dates=dates, gap_days=3)
    split = assigned["split"].tolist()
    assert split[55:61] == ["train", "train", "unassigned", "unassigned", "unassigned", "validation"]
    assert split[76:81] == ["validation", "unassigned", "unassigned", "unassigned", "test"]


def test_splits_in_time_have_their_shares_when_days_are_many():
    dates = pd.date_range("2020-01-01", periods=1_000)
    frame = assign_splits(ids(1_000), salt="s", index_dates=dates)
    assert counts(frame) == [600, 200, 150, 50]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": ["a", "a"]}, "occur twice"),
        ({"ids": ["a", None]}, "are null"),
        ({"ids": ["a"], "strata": [1, 2]}, "2 strata for 1"),
        ({"ids": ["a"], "index_dates": [None]}, "index date.* are null"),
        ({"ids": ["a"], "index_dates": ["2024-01-01"], "strata": [1]}, "not both"),
        ({"ids": ["a"], "ratios": (0.5, 0.5, 0.5, 0.5)}, "add up to 1"),
        ({"ids": ["a"], "existing": pd.DataFrame({"patient_id": ["b"], "split": ["live"]})}, "Unknown split"),
        ({"ids": ["a"], "existing": pd.DataFrame({"patient_id": ["b", "b"], "split": "test"})}, "twice"),
    ],
)
def test_bad_input_is_named(options, words):
    keys = options.pop("ids")
    with pytest.raises(InputError, match=words):
        assign_splits(keys, salt="s", **options)


def test_violations_are_listed_and_hash_mode_skips_the_order():
    good = assign_splits(ids(600), salt="s")
    assert {c.name: c.status for c in validate_splits(good).checks} == {
        "split_values": "passed",
        "ratios": "passed",
        "patient_isolation": "passed",
        "temporal_order": "skipped",
    }
    moved = good.assign(split=good["split"].where(good["split"] != "test", "train"))
    assert "train has 75.0% instead of 60%" in validate_splits(moved).violations[0]
    straddling = pd.concat([good, good.iloc[:3].assign(split="holdout")])
    assert any("in more than one split" in violation for violation in validate_splits(straddling).violations)
    dates = pd.Series(pd.Timestamp("2024-01-01"), index=range(600))
    assert "temporal_order: validation begins" in validate_splits(good, index_dates=dates).violations[0]
    odd = good.assign(split="live")
    assert len(validate_splits(odd).violations) == 2
    empty = validate_splits(good.iloc[:0])
    assert empty.violations == ("ratios: no patient is assigned to a split",)
    with pytest.raises(InputError, match="missing: split"):
        validate_splits(good[["patient_id"]])


def test_metadata_hides_small_splits():
    shown = validate_splits(assign_splits(ids(100), salt="s")).to_metadata()
    assert {row[1:] for row in shown["splits"].rows} == {("suppressed", None)}
    shown = validate_splits(assign_splits(ids(1_000), salt="s")).to_metadata()
    assert ("train", 600, 0.6) in shown["splits"].rows
