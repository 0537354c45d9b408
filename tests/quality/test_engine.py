"""The rules on an engine: the same findings as on the frame in memory, whatever is broken."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.errors import InputError
from e2i_dagster.quality.dimensions import score
from e2i_dagster.quality.engine import Engine, check_on_engine
from e2i_dagster.quality.schemas import check_schema
from e2i_dagster.quality.typed import typed
from e2i_dagster.synthetic.raw_tables import npi
from e2i_dagster.tables.constraints import families

Found = set[tuple[str, int, int, tuple[str, ...]]]

MOMENT = pd.Timestamp("2024-03-01", tz="UTC")
COLUMNS: dict[str, list[Any]] = {
    "trigger_id": [f"TRG{i:025d}" for i in range(3)] + ["own", "TRG1\n", None],
    "patient_id": ["PAT00000001", "pat1", None],
    "trigger_timestamp": [MOMENT, "2024-03-05T01:00:00Z", "soon", None],
    "priority": ["high", "HIGH", "low ", 3, None],
    "confidence_score": [0.5, 1.01, -0.01, float("inf"), "0.7", "much", None],
    "lead_time_days": [0, 14, -1, 2.5, None],
    "delivery_timestamp": [MOMENT, MOMENT + pd.Timedelta(days=9), "2024-03-05", "2024-03-04T23:59:59Z", None],
    "view_timestamp": [MOMENT + pd.Timedelta(days=1), "2024-03-05T00:30:00Z", None],
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
    "cpt_codes": (
        ['["95004", "J2357"]', '["0001A", "0001F", "0075T", "0001U", "0002M"]'],
        ['["9500"]', '["W0001"]'],
    ),
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
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    faults = check_on_engine(connection.from_df(frame), "triggers", policy)
    found = {one.rule.label: (one.count, len(one.keys)) for one in faults}
    assert found["schema_vocabulary.triggers.priority"] == (50_000, 5)
    assert found["schema_type.triggers.confidence_score"] == (50_000, 5)


def test_odd_columns_and_empty_frames(policy: QualityPolicy) -> None:
    odd = pd.DataFrame({"trigger_id": ["a"], 'x"; DROP TABLE y; --': [1], "a b": [[1]], "priority": [None]})
    for frame in (odd, odd.iloc[:0], pd.DataFrame(), pd.DataFrame({"x": [1, 2]})):
        assert _on_engine(frame, "triggers", policy) == _in_memory(frame, "triggers", policy)


DAY = "2022-09-09"
MOMENTS = [
    DAY,
    f"{DAY}T00:00:01Z",
    f"{DAY}T09:00:00Z",
    f"{DAY}T23:59:59Z",
    "2022-09-08",
    "2022-09-08T23:59:59Z",
]
PAIRS = [
    (table, first, second)
    for table, about in current_quality_policy().settings.tables.items()
    for first, second in about.ordered
    if families(table)[first] == "timestamp"
]


@pytest.mark.parametrize(("table", "first", "second"), PAIRS)
@pytest.mark.parametrize("way", ["layer 1", "duckdb", "pandas", "arrow", "share"])
def test_a_day_is_not_earlier_than_a_moment_of_that_day(
    policy: QualityPolicy, table: str, first: str, second: str, way: Engine
) -> None:
    """For each pair of times: what is out of order by whole days, or by the clock where both have one."""
    both = [(one, other) for one in MOMENTS for other in MOMENTS]
    frame = pd.DataFrame(both, columns=[first, second])
    late = [
        one[:10] > other[:10] if DAY in (one, other) or "2022-09-08" in (one, other) else one > other
        for one, other in both
    ]
    label = f"schema_order.{table}.{first}.{second}"
    if way == "layer 1":
        found = {one.rule.label: one.positions for one in check_schema(frame, table, policy).faults}
        assert found[label].tolist() == np.flatnonzero(late).tolist()
    elif way == "share":
        scored = {one.column: one for one in score(frame, table, policy=policy).columns}
        assert scored[first].consistency == pytest.approx(1 - np.mean(late))
    else:
        given = pa.Table.from_pandas(typed(frame, table).frame[[first, second]]) if way == "arrow" else frame
        faults = {one.rule.label: one.count for one in check_on_engine(given, table, policy, engine=way)}
        assert faults[label] == sum(late)


def test_an_engine_that_knows_the_days_of_another_zone_is_refused(policy: QualityPolicy) -> None:
    frame = typed(pd.DataFrame({"trigger_timestamp": [f"{DAY}T09:00:00Z"]}), "triggers").frame
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'America/New_York'")
    relation = connection.from_df(frame[["trigger_timestamp"]])
    with pytest.raises(
        InputError, match=r"trigger_timestamp has moments of the zone America/New_York.*TimeZone"
    ):
        check_on_engine(relation, "triggers", policy)
    connection.execute("SET TimeZone = 'UTC'")
    check_on_engine(connection.from_df(frame[["trigger_timestamp"]]), "triggers", policy)
