"""Deliveries in the layout of others: known by their shape, and made as the text says."""

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.errors import InputError
from e2i_dagster.sources.check import check_folder
from e2i_dagster.synthetic.foreign import LAST, SHAPES, draw_courses, write_shape
from e2i_dagster.tables.vocabulary import load_vocabulary


def test_who_starts_follows_the_written_probability():
    courses = draw_courses(20_000, 7)
    age = (courses["diagnosed"] - courses["born"]).dt.days / 365.25
    logit = (
        -1.9
        + 0.8 * (courses["acute_fills"] - 3)
        + 1.6 * courses["anxiety"]
        + 1.4 * courses["emergency"]
        - 0.03 * (age - 45)
    )
    assert np.abs(np.log(courses["probability"] / (1 - courses["probability"])) - logit).max() < 0.05
    started = courses["started"].notna()
    error = 4 * np.sqrt((courses["probability"] * (1 - courses["probability"])).sum()) / len(courses)
    assert abs(started.mean() - courses["probability"].mean()) < error
    delay = (courses["started"] - courses["diagnosed"]).dt.days.dropna()
    assert delay.between(5, 85).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_recognised_and_every_row_would_load(tmp_path, shape):
    written = write_shape(shape, tmp_path / "in", patients=60, seed=3)
    assert all(path.is_file() and rows for path, rows in written.items())
    found = check_folder(tmp_path / "in", load_vocabulary())
    assert found.shape is not None and not found.problems
    assert {table.table: table.rejected for table in found.tables} == {t.table: {} for t in found.tables}
    (journeys,) = (table for table in found.tables if table.table == "patient_journeys")
    assert journeys.rows == 60


def test_nothing_happens_after_the_last_day_and_the_same_seed_is_the_same_folder(tmp_path):
    first = SHAPES["omop"](draw_courses(50, 1))
    again = SHAPES["omop"](draw_courses(50, 1))
    for name, frame in first.items():
        pd.testing.assert_frame_equal(frame, again[name])
    assert pd.to_datetime(first["drug_exposure.csv"]["drug_exposure_start_date"]).max() <= LAST


def test_another_shape_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(InputError, match="claims, omop, trial") as error:
        write_shape("cda", tmp_path, patients=10, seed=1)
    assert error.value.field == "shape"
