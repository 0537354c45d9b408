"""The engine and an interpreter that goes person by person give one answer for random definitions and data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from omop_cases import rows, write_folder
from omop_interpreter import Interpreter
from omop_random import random_expression, random_tables

from e2i_dagster.cohorts.omop import build


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_engine_agrees_with_the_interpreter(random: Random):
    document, tables = random_expression(random), random_tables(random)
    with tempfile.TemporaryDirectory() as folder:
        cohort = build(document, write_folder(Path(folder), tables, random.choice(("csv", "parquet"))))
    expected_rows, by_person, by_event = Interpreter(document, tables).answer()
    assert rows(cohort) == expected_rows
    assert cohort.event_masks == by_event
    assert cohort.inclusion_masks == by_person
