"""Layer 1: planted defects are found with rule, column, count and rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.quality.schemas import SchemaFault, check_schema
from e2i_dagster.quality.typed import typed

Plant = Callable[[pd.DataFrame], pd.DataFrame]


def _faults(frame: pd.DataFrame, policy: QualityPolicy) -> dict[tuple[str, str], SchemaFault]:
    result = check_schema(frame, "patient_journeys", policy)
    return {(fault.rule.kind, fault.rule.column): fault for fault in result.faults}


def _set(column: str, rows: list[int], value: Any) -> Plant:
    def plant(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.assign(**{column: frame[column].astype(object)})
        changed.loc[rows, column] = value
        return changed

    return plant


PLANTED: list[tuple[str, str, list[int], Plant]] = [
    ("type", "age_at_diagnosis", [3], _set("age_at_diagnosis", [3], "forty")),
    ("type", "age_at_diagnosis", [4], _set("age_at_diagnosis", [4], 40.5)),
    ("type", "journey_start_date", [5], _set("journey_start_date", [5], "2024-13-45")),
    ("type", "gender", [6], _set("gender", [6], "F\x00")),
    ("vocabulary", "gender", [18], _set("gender", [18], 1)),
    ("not_null", "patient_id", [7, 9], _set("patient_id", [7, 9], None)),
    ("unique_key", "patient_journey_id", [0, 1, 2], _set("patient_journey_id", [1, 2], f"PJ{0:016d}")),
    ("range", "disease_severity", [10], _set("disease_severity", [10], 10.01)),
    ("range", "age_at_diagnosis", [11, 12], _set("age_at_diagnosis", [11, 12], 121)),
    ("finite", "disease_severity", [13], _set("disease_severity", [13], np.inf)),
    ("vocabulary", "brand", [14], _set("brand", [14], "remibrutinib")),
    ("order", "journey_start_date", [15], _set("journey_end_date", [15], pd.Timestamp("2024-01-09"))),
    ("key_format", "hcp_id", [16], _set("hcp_id", [16], "HCP1")),
]


def test_a_clean_frame_has_no_faults(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    result = check_schema(journeys, "patient_journeys", policy)
    assert result.faults == ()
    assert result.rules_checked > 70


@pytest.mark.parametrize(("kind", "column", "rows", "plant"), PLANTED)
def test_a_planted_defect_is_found_alone(
    journeys: pd.DataFrame, policy: QualityPolicy, kind: str, column: str, rows: list[int], plant: Plant
) -> None:
    found = _faults(plant(journeys), policy)
    assert set(found) == {(kind, column)}
    assert found[(kind, column)].positions.tolist() == rows
    assert found[(kind, column)].count == len(rows)


def test_all_planted_defects_are_found_together(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    frame = journeys
    wanted: dict[tuple[str, str], set[int]] = {}
    for kind, column, rows, plant in PLANTED:
        frame = plant(frame)
        wanted.setdefault((kind, column), set()).update(rows)
    found = _faults(frame, policy)
    assert {key: set(fault.positions.tolist()) for key, fault in found.items()} == wanted


def test_missing_columns_are_one_fault_each(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    found = _faults(journeys.drop(columns=["patient_id", "brand", "journey_end_date"]), policy)
    assert set(found) == {("required_column", "patient_id"), ("expected_column", "brand")}
    assert found[("required_column", "patient_id")].rule.severity == "fatal"
    assert found[("expected_column", "brand")].rule.severity == "convention"


def test_an_empty_frame_is_checked_for_its_columns(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    assert _faults(journeys.iloc[:0], policy) == {}
    assert ("required_column", "patient_id") in _faults(journeys.iloc[:0].drop(columns="patient_id"), policy)
    assert ("required_column", "patient_id") in _faults(pd.DataFrame(), policy)


def test_one_row_and_an_all_null_column(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    assert _faults(journeys.iloc[:1], policy) == {}
    assert _faults(journeys.assign(brand=None, age_at_diagnosis=np.nan), policy) == {}


def test_mixed_types_and_odd_column_names_do_not_stop_it(
    journeys: pd.DataFrame, policy: QualityPolicy
) -> None:
    mixed = journeys.assign(
        **{
            "gender": ["F", 1, None, 2.5, pd.Timestamp("2024-01-01")] * 8,
            'x"; DROP TABLE y; --': 1,
            "a b": [[1]] * 40,
        }
    )
    assert _faults(mixed, policy)[("vocabulary", "gender")].count == 24
    assert typed(mixed, "patient_journeys").extra == ('x"; DROP TABLE y; --', "a b")


def test_two_columns_of_one_name_are_refused(journeys: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="columns occur twice: brand"):
        typed(pd.concat([journeys, journeys[["brand"]]], axis=1), "patient_journeys")


def test_the_frame_is_not_changed_and_its_index_does_not_matter(
    journeys: pd.DataFrame, policy: QualityPolicy
) -> None:
    broken = _set("brand", [14], "x")(journeys).set_index(pd.Index(np.arange(40)[::-1] + 100))
    before = broken.copy(deep=True)
    assert _faults(broken, policy)[("vocabulary", "brand")].positions.tolist() == [14]
    pd.testing.assert_frame_equal(broken, before)


def test_dtypes_of_lake_and_of_files_give_the_same(journeys: pd.DataFrame, policy: QualityPolicy) -> None:
    broken = _set("brand", [14], "x")(_set("age_at_diagnosis", [2], 130)(journeys))
    canonical = typed(broken, "patient_journeys").frame
    as_text = broken.astype(object).astype({"journey_start_date": str})
    for form in (broken, canonical, as_text):
        assert {key: fault.count for key, fault in _faults(form, policy).items()} == {
            ("vocabulary", "brand"): 1,
            ("range", "age_at_diagnosis"): 1,
        }


def test_counts_stay_exact_and_bounded_when_every_row_fails(policy: QualityPolicy) -> None:
    n = 50_000
    frame = pd.DataFrame({"hcp_id": ["HCP00000001"] * n, "decile": 11, "geographic_region": "east"})
    faults = check_schema(frame, "hcp_profiles", policy).faults
    counts = {(fault.rule.kind, fault.rule.column): fault.count for fault in faults}
    assert counts[("unique_key", "hcp_id")] == n
    assert counts[("range", "decile")] == n
    assert counts[("vocabulary", "geographic_region")] == n
