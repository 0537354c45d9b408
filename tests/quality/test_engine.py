"""The rules on an engine: the same findings as on the frame in memory, whatever is broken."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.quality.engine import Engine, check_on_engine
from e2i_dagster.quality.schemas import check_schema
from e2i_dagster.quality.typed import typed
from e2i_dagster.sources.synthetic_tables import npi

Found = set[tuple[str, int, int, tuple[str, ...]]]

MOMENT = pd.Timestamp("2024-03-01", tz="UTC")
COLUMNS: dict[str, list[Any]] = {
    "trigger_id": [f"TRG{i:025d}" for i in range(3)] + ["own", "TRG1\n", None],
    "patient_id": ["PAT00000001", "pat1", None],
    "trigger_timestamp": [MOMENT, "2024-03-05T01:00:00Z", "soon", None],
    "priority": ["high", "HIGH", "low ", 3, None],
    "confidence_score": [0.5, 1.01, -0.01, float("inf"), "0.7", "much", None],
    "lead_time_days": [0, 14, -1, 2.5, None],
    "delivery_timestamp": [MOMENT, MOMENT + pd.Timedelta(days=9), None],
    "view_timestamp": [MOMENT + pd.Timedelta(days=1), None],
    "false_positive_flag": [True, False, "true", 7, None],
}


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Up to 12 triggers of which any cell may be wrong and any column absent."""
    rows = draw(st.integers(0, 12))
    kept = draw(st.sets(st.sampled_from(sorted(COLUMNS)), min_size=3))
    chosen = {
        name: draw(st.lists(st.sampled_from(COLUMNS[name]), min_size=rows, max_size=rows))
        for name in sorted(kept)
    }
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in chosen.items()})


def _in_memory(frame: pd.DataFrame, table: str, policy: QualityPolicy) -> Found:
    read = typed(frame, table)
    faults = check_schema(read, table, policy).faults
    return {(one.rule.label, one.count, one.checked, one.keys(read)) for one in faults}


def _on_engine(frame: Any, table: str, policy: QualityPolicy, engine: Engine = "duckdb") -> Found:
    return {
        (one.rule.label, one.count, one.checked, one.keys)
        for one in check_on_engine(frame, table, policy, engine=engine)
    }


@settings(max_examples=12, deadline=None)
@given(frame=frames())
def test_engines_find_what_is_found_in_memory(frame: pd.DataFrame) -> None:
    policy = current_quality_policy()
    expected = _in_memory(frame, "triggers", policy)
    assert _on_engine(frame, "triggers", policy, "duckdb") == expected
    assert _on_engine(frame, "triggers", policy, "pandas") == expected


NPIS = ["1234567893", "1234567890", "123456789", "12345678931", "123456789x", "0000000006", "", None]


@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
def test_the_check_digit_of_an_npi(policy: QualityPolicy, engine: Engine) -> None:
    """1234567893 is the example of the standard (CMS, NPI check digit, 2004)."""
    made = npi(np.arange(500, dtype=np.int64) * 199_999)
    frame = pd.DataFrame({"npi": [*NPIS, *made]})
    frame["hcp_id"] = [f"HCP{i:08d}" for i in range(len(frame))]
    found = {one.rule.label: one for one in check_on_engine(frame, "hcp_profiles", policy, engine=engine)}
    wrong = found["schema_check_digit.hcp_profiles.npi"]
    assert wrong.count == 5
    assert wrong.keys == tuple(f"HCP{i:08d}" for i in (1, 2, 3, 4, 6))
    assert wrong.rule.severity == "fatal"
    assert _in_memory(frame, "hcp_profiles", policy) == _on_engine(frame, "hcp_profiles", policy, engine)


CODES = {
    "drug_ndc": (
        [
            "00078-0946-61",
            "0078-0946-61",
            "00078094661",
            "12345-678-90",
            "12345-6789-0",
            " 00078 0946 61 ",
            None,
        ],
        ["0078094661", "12345", "unknown", "", "000780946611"],
    ),
    "icd_codes": (
        ['["L50.1", "j301"]', "{L50.1,j301}", '["708.1"]', "[]", '["V58.69"]', None],
        ['["L50.1", "itch"]', '["L5"]', "{L50.1,itch}"],
    ),
    "cpt_codes": (['["95004", "J2357"]', '["0001F", "0075T", "0001U", "0002M"]'], ['["9500"]', '["W0001"]']),
    "loinc_codes": (['["718-7", "100746-7"]'], ['["7187"]']),
}


@pytest.mark.parametrize("engine", ["duckdb", "pandas"])
@pytest.mark.parametrize("column", CODES)
def test_codes_of_every_spelling_pass_and_what_is_none_or_undecided_is_named(
    policy: QualityPolicy, engine: Engine, column: str
) -> None:
    right, wrong = CODES[column]
    frame = pd.DataFrame({column: pd.array([*right, *wrong], dtype="string[pyarrow]")})
    frame["treatment_event_id"] = [f"TE{i:025d}" for i in range(len(frame))]
    found = {one.rule.label: one for one in check_on_engine(frame, "treatment_events", policy, engine=engine)}
    fault = found[f"schema_key_format.treatment_events.{column}"]
    assert fault.rule.severity == "convention"
    assert fault.count == len(wrong)
    assert set(fault.keys) <= set(frame["treatment_event_id"].iloc[len(right) :])
    assert _in_memory(frame, "treatment_events", policy) == _on_engine(
        frame, "treatment_events", policy, engine
    )


def test_a_relation_is_asked_without_leaving_its_engine(policy: QualityPolicy) -> None:
    frame = pd.DataFrame(
        {
            "trigger_id": [f"TRG{i:025d}" for i in range(50_000)],
            "patient_id": "PAT00000001",
            "trigger_timestamp": MOMENT,
            "priority": "unheard",
            "confidence_score": "much",  # another family than described
        }
    )
    faults = check_on_engine(duckdb.connect().from_df(frame), "triggers", policy)
    found = {one.rule.label: (one.count, len(one.keys)) for one in faults}
    assert found["schema_vocabulary.triggers.priority"] == (50_000, 5)
    assert found["schema_type.triggers.confidence_score"] == (50_000, 5)


def test_odd_columns_and_empty_frames(policy: QualityPolicy) -> None:
    odd = pd.DataFrame({"trigger_id": ["a"], 'x"; DROP TABLE y; --': [1], "a b": [[1]], "priority": [None]})
    for frame in (odd, odd.iloc[:0], pd.DataFrame(), pd.DataFrame({"x": [1, 2]})):
        assert _on_engine(frame, "triggers", policy) == _in_memory(frame, "triggers", policy)
