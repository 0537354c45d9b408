"""Rows as they are handed on: train and validation in the open, test behind its seal."""

import pandas as pd
import pytest
from model_rows import patients

from e2i_dagster.config.scope import default_scope
from e2i_dagster.errors import InputError
from e2i_dagster.splits import seal_openings, split_scope
from e2i_dagster.splits.leakage_check import check_rule
from e2i_dagster.splits.rows import sealed_test_rows, visible_rows

FEATURES = ("severity", "region")
PARTS = ("train", "validation", "test", "holdout", "unassigned")


@pytest.fixture(scope="module")
def frame():
    return patients(50)


@pytest.fixture(scope="module")
def splits(frame):
    """Patients dealt to the splits in turn; in another order than the frame's."""
    assigned = pd.DataFrame({"patient_id": frame["patient_id"], "split": [*PARTS] * 10})
    return assigned.sample(frac=1, random_state=1)


def test_visible_rows_are_train_and_validation_in_the_order_of_the_frame(frame, splits):
    seen = visible_rows(frame, splits, FEATURES, problem_type="binary_classification")
    for place, part in enumerate((seen.train, seen.validation)):
        expected = frame.iloc[place::5]
        assert list(part.features.columns) == [*FEATURES]
        assert part.features["severity"].tolist() == expected["severity"].tolist()
        assert part.target.tolist() == expected["label"].tolist()


def test_all_index_dates_of_a_patient_are_in_one_split(database, frame):
    scope = default_scope()
    again = frame.assign(index_date=pd.Timestamp("2024-06-01"), label=1 - frame["label"])
    twice = pd.concat([again, frame.assign(index_date=pd.Timestamp("2024-01-01"))], ignore_index=True)
    with database.begin() as connection:
        made = split_scope(connection, scope, twice)
    assert made.report.passed, made.report
    assert sorted(made.assignments["patient_id"]) == sorted(frame["patient_id"])
    for rule in ("ratios", "patient_isolation"):
        assert check_rule(rule, scope, made.assignments, twice).status == "passed"
    seen = visible_rows(twice, made.assignments, FEATURES, problem_type="binary_classification")
    assert seen.train.patients is not None
    assert len(seen.train) == 2 * len(set(seen.train.patients))
    # Strata are those of the first index date, whatever the order of the rows.
    with database.begin() as connection:
        other = scope.model_copy(update={"cohort": "other"})
        alone = split_scope(connection, other, frame.assign(index_date=pd.Timestamp("2024-01-01")))
    pd.testing.assert_frame_equal(
        made.assignments.sort_values("patient_id", ignore_index=True),
        alone.assignments.sort_values("patient_id", ignore_index=True),
    )


def test_a_patient_without_a_split_is_refused(frame, splits):
    with pytest.raises(InputError, match=r"1 row.* without a split"):
        visible_rows(frame, splits.iloc[1:], FEATURES, problem_type="binary_classification")


def test_sealed_rows_are_the_test_rows_and_opening_them_is_on_record(database, frame, splits):
    scope = default_scope()
    sealed = sealed_test_rows(scope, frame, splits, FEATURES, engine=database, opened_by="ann")
    with database.connect() as connection:
        assert seal_openings(connection, scope.key) == ()
    opened = sealed.open_for("digest 1")
    assert opened.features["severity"].tolist() == frame.iloc[2::5]["severity"].tolist()
    # Subgroups can be made of features that the model does not use, and of nothing that is no feature.
    assert opened.groups is not None
    assert opened.groups["insurance"].tolist() == frame.iloc[2::5]["insurance"].tolist()
    assert not {"patient_id", "label", "index_date"} & set(opened.groups)
    with database.connect() as connection:
        (opening,) = seal_openings(connection, scope.key)
    assert (opening.candidate, opening.split, opening.opened_by) == ("digest 1", "test", "ann")
