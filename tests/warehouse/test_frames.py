"""Frames in canonical form: what is accepted, what is refused, and that it is a fixed point."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.errors import InputError
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, frame_columns
from e2i_dagster.tables.frames import cell_text, conform, extra_frame, months_of
from e2i_dagster.versions.digest import frame_digest

EVENTS = pd.DataFrame(
    {
        "treatment_event_id": ["TE1", "TE2"],
        "event_date": ["2024-01-02", None],
        "icd_codes": [["L50.1", "L50.8"], None],
        "lab_values": ['{"ldh": 1, "hb": 2}', {"z": 1}],
        "cost": ["1.5", None],
        "adverse_event_flag": ["true", None],
        "sequence_number": [1.0, None],
        "drug_ndc": ["00123-456-78", None],
        "source_timestamp": ["2024-01-02T03:04:05Z", pd.Timestamp("2024-01-02 01:00", tz="Europe/Zurich")],
        "data_split": ["train", "test"],
    }
)


@pytest.mark.parametrize("name", RAW_TABLES + OPTIONAL_RAW_TABLES)
def test_an_empty_frame_has_all_columns(name):
    for empty in (pd.DataFrame(), pd.DataFrame(index=range(2))):
        frame = conform(name, empty)
        assert tuple(frame.columns) == frame_columns(name)
        assert len(frame) == len(empty)
        assert not frame.notna().to_numpy().any()


def test_texts_numbers_dates_and_documents():
    before = EVENTS.copy(deep=True)
    frame = conform("treatment_events", EVENTS)
    pd.testing.assert_frame_equal(EVENTS, before)
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert kinds["drug_ndc"] == "string"
    assert kinds["event_date"] == "datetime64[us]"
    assert kinds["source_timestamp"] == "datetime64[us, UTC]"
    assert kinds["sequence_number"] == "Int64"
    assert kinds["adverse_event_flag"] == "boolean"
    assert kinds["cost"] == "float64"
    assert frame.loc[0, "drug_ndc"] == "00123-456-78"
    assert frame["lab_values"].tolist() == ['{"hb":2,"ldh":1}', '{"z":1}']
    assert frame.loc[0, "icd_codes"] == '["L50.1","L50.8"]'
    assert frame["source_timestamp"].tolist() == [
        pd.Timestamp("2024-01-02 03:04:05", tz="UTC"),
        pd.Timestamp("2024-01-02 00:00", tz="UTC"),
    ]
    assert "data_split" not in frame


def test_conforming_again_changes_nothing():
    once = conform("treatment_events", EVENTS)
    pd.testing.assert_frame_equal(conform("treatment_events", once), once)
    assert frame_digest(conform("treatment_events", EVENTS.iloc[::-1])) == frame_digest(once)
    as_objects = once.astype(object).where(once.notna(), None)
    assert frame_digest(conform("treatment_events", as_objects)) == frame_digest(once)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("event_date", "13.02.2024", "ISO date"),
        ("event_date", "2024-02-13T10:00:00", "day without time"),
        ("event_date", "2024-02-30", "ISO date"),
        ("source_timestamp", "yesterday", "ISO timestamp"),
        ("sequence_number", 1.5, "whole number"),
        ("cost", "SECRET", "a number"),
        ("adverse_event_flag", "SECRET", "true or false"),
        ("adverse_event_flag", 2, "true or false"),
        ("lab_values", "{SECRET", "JSON"),
    ],
)
def test_what_cannot_be_converted_is_named_without_its_value(name, value, expected):
    given = pd.DataFrame({name: [value, None]})
    with pytest.raises(InputError, match=f"treatment_events.{name}: 1 of 2 values .*{expected}") as caught:
        conform("treatment_events", given)
    assert "SECRET" not in str(caught.value)


def test_dates_as_python_dates_and_timestamps():
    given = pd.DataFrame({"metric_date": [dt.date(2024, 2, 29), None]})
    assert conform("business_metrics", given)["metric_date"].tolist() == [pd.Timestamp("2024-02-29"), pd.NaT]
    given = pd.DataFrame({"metric_date": pd.to_datetime(["2024-02-29"])})
    assert conform("business_metrics", given)["metric_date"].tolist() == [pd.Timestamp("2024-02-29")]


@pytest.mark.parametrize("dtype", ["datetime64[us]", "datetime64[us, UTC]"])
def test_months_of_dates(dtype):
    days = pd.Series(["2024-01-01", None, "1899-12-31", "2024-01-31"], index=[3, 1, 2, 0]).astype(dtype)
    pd.testing.assert_series_equal(
        months_of(days), pd.Series(["2024-01", None, "1899-12", "2024-01"], index=[3, 1, 2, 0], dtype=object)
    )
    assert months_of(days.iloc[:0]).tolist() == []


def test_own_clinical_columns_are_kept_as_text_as_they_were_given():
    given = pd.DataFrame(
        {
            "patient_journey_id": ["PJ1", "PJ2"],
            "kidney_biopsy": [True, None],
            "c3_level": [0.7, 0.9],
            "code9": ["250.00", "0250.0"],
            "extra": ['{"site": "x", "dose": 1.50}', None],
        }
    )
    clinical = conform("patient_clinical", given)
    assert clinical["extra"].tolist() == [
        '{"c3_level":"0.7","code9":"250.00","dose":"1.50","kidney_biopsy":"true","site":"x"}',
        '{"c3_level":"0.9","code9":"0250.0"}',
    ]
    own = extra_frame(clinical)
    assert list(own.columns) == ["c3_level", "code9", "dose", "kidney_biopsy", "site"]
    assert set(own.dtypes.astype(str)) == {"string"}
    assert own["kidney_biopsy"].tolist() == ["true", pd.NA]
    assert extra_frame(conform("patient_clinical", pd.DataFrame())).empty


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (pd.Series([250.0, 1e16, 1e-7, np.nan, -0.0]), ["250", "10000000000000000", "0.0000001", None, "0"]),
        (pd.Series([0.1, 2.5], dtype="float32"), ["0.1", "2.5"]),
        (pd.Series([2**63 + 1, None], dtype="UInt64"), ["9223372036854775809", None]),
        (pd.Series([Decimal("250.00"), None, Decimal("1E+2")]), ["250.00", None, "100"]),
        (pd.Series([dt.date(2024, 1, 2), None]), ["2024-01-02", None]),
        (pd.Series(["2024-01-02", None], dtype="datetime64[us]"), ["2024-01-02T00:00:00", None]),
        (pd.Series([[1.5], {"b": 1, "a": None}, b"x", b"\xff"]), ["[1.5]", '{"a":null,"b":1}', "x", "\\xff"]),
        (pd.Series(["F", "", " 007 ", None], dtype="category"), ["F", None, " 007 ", None]),
    ],
)
def test_typed_cells_have_one_form_as_text(cells, texts):
    assert cell_text(cells).astype(object).where(cell_text(cells).notna(), None).tolist() == texts
