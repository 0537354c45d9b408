"""The split registry: what it holds never moves; a policy never changes under its salt."""

import pandas as pd
import pytest

from e2i_dagster.config.scope import SplitPolicy, default_scope
from e2i_dagster.errors import ConfigError, VerdictError
from e2i_dagster.splits import (
    read_assignments,
    register_split,
    split_cohort,
    split_scope,
    store_assignments,
    validate_splits,
)

POLICY = SplitPolicy(salt="demo-1")
IDS = [f"PAT{k:08}" for k in range(700)]


def test_a_cohort_is_split_once_and_newcomers_are_added(connection):
    labels = [k % 3 == 0 for k in range(700)]
    first, before = split_cohort(connection, "demo", POLICY, IDS[:600], strata=labels[:600])
    connection.commit()
    again, same = split_cohort(connection, "demo", POLICY, IDS[:600], strata=labels[:600])
    assert first == again
    pd.testing.assert_frame_equal(before, same)
    _, after = split_cohort(connection, "demo", POLICY, IDS[50:], strata=labels[50:])
    stored = read_assignments(connection, first)
    assert len(stored) == 700
    joined = before.merge(stored, on="patient_id", suffixes=("", "_stored"))
    assert (joined["split"] == joined["split_stored"]).all()
    assert validate_splits(after, strata=labels[50:]).passed


def test_another_salt_is_another_split_beside_the_first(connection):
    first, one = split_cohort(connection, "demo", POLICY, IDS)
    second, other = split_cohort(connection, "demo", SplitPolicy(salt="demo-2"), IDS)
    assert first != second
    assert (one["split"] != other["split"]).any()


def test_a_policy_that_changes_under_its_salt_is_refused(connection):
    register_split(connection, "demo", POLICY)
    for changed in (
        SplitPolicy(salt="demo-1", ratios=(0.7, 0.1, 0.15, 0.05)),
        SplitPolicy(salt="demo-1", mode="temporal"),
    ):
        with pytest.raises(ConfigError, match="new salt"):
            register_split(connection, "demo", changed)


def test_the_registry_refuses_to_move_a_patient(connection):
    identifier, assigned = split_cohort(connection, "demo", POLICY, IDS)
    moved = assigned.assign(split="train")
    with pytest.raises(VerdictError, match="would move to another split"):
        store_assignments(connection, identifier, moved)
    assert store_assignments(connection, identifier, assigned) == 0


def test_a_split_in_time(connection):
    policy = SplitPolicy(salt="demo-t", mode="temporal", gap_days=3)
    dates = pd.Series(pd.date_range("2022-01-01", periods=700))
    identifier, assigned = split_cohort(connection, "demo", policy, IDS, index_dates=dates)
    assert validate_splits(assigned, index_dates=dates, gap_days=3).passed
    assert (read_assignments(connection, identifier)["split"] == "unassigned").sum() == 9
    with pytest.raises(ConfigError, match="needs the index dates"):
        split_cohort(connection, "demo", policy, IDS)


def test_a_scope_is_split_by_its_label_and_reported(connection):
    scope = default_scope()
    frame = pd.DataFrame(
        {
            "patient_id": IDS,
            "label": [int(k % 7 == 0) for k in range(700)],
            "index_date": pd.Timestamp("2024-01-01"),
        }
    )
    made = split_scope(connection, scope, frame, created_by="ann")
    _, expected = split_cohort(connection, scope.cohort, scope.split, IDS)
    pd.testing.assert_frame_equal(made.assignments, expected)
    assert made.report.passed
    joined = frame.merge(made.assignments, on="patient_id")
    positive = joined[joined["label"] == 1]["split"].value_counts()
    # One in seven, so a hundred: dealt by their own shares, not by chance.
    assert positive.to_dict() == {"train": 60, "validation": 20, "test": 15, "holdout": 5}


def test_a_scope_split_in_time_follows_the_index_dates(connection):
    scope = default_scope()
    scope = scope.model_copy(update={"split": SplitPolicy(salt="t-1", mode="temporal", gap_days=0)})
    dates = pd.date_range("2024-01-01", periods=700)
    frame = pd.DataFrame({"patient_id": IDS, "label": 1, "index_date": dates})
    made = split_scope(connection, scope, frame)
    assert made.assignments["split"].tolist() == (
        ["train"] * 420 + ["validation"] * 140 + ["test"] * 105 + ["holdout"] * 35
    )
