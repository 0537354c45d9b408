"""Operator by operator: which of a few invented patients are in, out, or unknown."""

from datetime import date

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.cohorts import build_cohort
from e2i_dagster.cohorts.columns import typed_column
from e2i_dagster.cohorts.errors import CohortInputError
from e2i_dagster.cohorts.operators import holds
from e2i_dagster.config.cohort import CohortDefinition, Criterion


def verdicts(values, **criterion) -> list[str]:
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    column = typed_column(series, "x")
    true = holds(Criterion(**{"field": "x", **criterion}), column)
    assert not (true & ~column.known).any()
    return ["unknown" if not k else "in" if t else "out" for t, k in zip(true, column.known, strict=True)]


NUMBERS = [17, 18, 19, None]


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("==", 18, ["out", "in", "out", "unknown"]),
        ("!=", 18, ["in", "out", "in", "unknown"]),
        (">", 18, ["out", "out", "in", "unknown"]),
        (">=", 18, ["out", "in", "in", "unknown"]),
        ("<", 18, ["in", "out", "out", "unknown"]),
        ("<=", 18, ["in", "in", "out", "unknown"]),
        ("in", [17, 19.0], ["in", "out", "in", "unknown"]),
        ("not_in", [17, 19], ["out", "in", "out", "unknown"]),
        ("between", [18, 19], ["out", "in", "in", "unknown"]),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "Int64", "object", "double[pyarrow]"])
def test_numbers(operator, value, expected, dtype):
    assert verdicts(pd.Series(NUMBERS, dtype=dtype), operator=operator, value=value) == expected


@pytest.mark.parametrize("dtype", ["object", "boolean", "bool[pyarrow]"])
@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("==", True, ["in", "out", "unknown"]),
        ("!=", True, ["out", "in", "unknown"]),
        ("in", [True, False], ["in", "in", "unknown"]),
        ("not_in", [False], ["in", "out", "unknown"]),
    ],
)
def test_true_and_false_do_not_depend_on_the_dtype(operator, value, expected, dtype):
    assert verdicts(pd.Series([True, False, None], dtype=dtype), operator=operator, value=value) == expected


@pytest.mark.parametrize("dtype", ["object", "string", "string[pyarrow]", "category"])
@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("==", "positive", ["in", "out", "out", "unknown"]),
        ("!=", "positive", ["out", "in", "in", "unknown"]),
        ("in", ["positive", "negative"], ["in", "in", "out", "unknown"]),
        ("not_in", ["positive"], ["out", "in", "in", "unknown"]),
        ("contains", "tive", ["in", "in", "out", "unknown"]),
        ("contains", "a", ["out", "in", "out", "unknown"]),  # not the "a" of "nan"
        ("contains", ".", ["out", "out", "in", "unknown"]),  # not any character
    ],
)
def test_texts(operator, value, expected, dtype):
    values = pd.Series(["positive", "negative", "p.", None], dtype=dtype)
    assert verdicts(values, operator=operator, value=value) == expected


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        ("==", "L50.1", ["in", "in", "out", "out", "out", "unknown"]),
        ("in", ["L50.*"], ["in", "in", "in", "in", "out", "unknown"]),
        ("in", ["l501*"], ["in", "in", "in", "out", "out", "unknown"]),
        ("not_in", ["L50.*"], ["out", "out", "out", "out", "in", "unknown"]),
        ("!=", "L50.1", ["out", "out", "in", "in", "in", "unknown"]),
    ],
)
def test_codes_compare_without_dots_and_case(operator, value, expected):
    codes = ["L50.1", "l501", "L50.10", "L50", "M50.1", None]
    assert verdicts(codes, field="diagnosis_code", operator=operator, value=value) == expected


def test_descendants_of_a_code():
    codes = ["D59.5", "D59.51", "D59", "D59.6"]
    found = verdicts(codes, field="diagnosis_code", operator="in", value=["D59.5"], descendants=True)
    assert found == ["in", "in", "out", "out"]


@pytest.mark.parametrize("dtype", ["datetime64[us]", "datetime64[ns, UTC]", "object", "date32[pyarrow]"])
def test_dates_ignore_the_time_of_day(dtype):
    days = [date(2024, 1, 1), date(2024, 1, 2), None]
    values = pd.Series(days, dtype="object")
    if dtype != "object":
        values = (
            values.astype(dtype) if "pyarrow" in dtype else pd.to_datetime(values).astype("datetime64[ns]")
        )
        if "UTC" in dtype:
            values = values.dt.tz_localize("UTC") + pd.Timedelta(hours=13)
    assert verdicts(values, operator="<=", value="2024-01-01") == ["in", "out", "unknown"]
    assert verdicts(values, operator="==", value=date(2024, 1, 2)) == ["out", "in", "unknown"]
    assert verdicts(values, operator="between", value=["2024-01-02", "2024-02-01"]) == [
        "out",
        "in",
        "unknown",
    ]


@pytest.mark.parametrize("dtype", ["object", "float64", "boolean", "string[pyarrow]", "datetime64[us]"])
def test_a_column_of_nulls_is_unknown_everywhere(dtype):
    value = {"boolean": True, "string[pyarrow]": "a", "datetime64[us]": "2024-01-01"}.get(dtype, 1)
    assert verdicts(pd.Series([None, None], dtype=dtype), operator="!=", value=value) == [
        "unknown",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("values", "criterion"),
    [
        ([1.0, 2.0], {"operator": "==", "value": "one"}),
        ([1.0, 2.0], {"operator": "==", "value": True}),
        ([1.0, 2.0], {"operator": "contains", "value": "1"}),
        (["a", "b"], {"operator": ">=", "value": 1}),
        (["a", "b"], {"operator": "in", "value": ["a", 1]}),
        ([True, False], {"operator": ">", "value": 0}),
        ([True, False], {"operator": "==", "value": 1}),
        ([date(2024, 1, 1)], {"operator": "==", "value": "yesterday"}),
        (["a", 1], {"operator": "==", "value": "a"}),
        ([1, 2], {"field": "diagnosis_code", "operator": "==", "value": "L50"}),
    ],
)
def test_wrong_kind_is_an_error_that_names_the_column(values, criterion):
    with pytest.raises(CohortInputError, match="CC_004") as caught:
        verdicts(pd.Series(values, dtype=object), **criterion)
    assert repr(criterion.get("field", "x")) in str(caught.value)


def test_infinite_numbers_are_values_and_not_a_number_is_unknown():
    assert verdicts([np.inf, -np.inf, np.nan], operator=">", value=0) == ["in", "out", "unknown"]


@pytest.mark.parametrize("engine", ["pandas", "duckdb"])
def test_a_date_of_a_rule_is_read_the_same_on_every_engine(engine):
    """05/01/2027 is 5 January or 1 May: no engine decides."""
    seen = pd.Timestamp("2027-05-01")
    patients = pd.DataFrame(
        {
            "patient_id": ["A"],
            "patient_journey_id": ["J"],
            "diagnosis_date": [seen],
            "first_observation_date": [seen],
            "last_observation_date": [seen],
        }
    )

    def eligible(value):
        rule = {"field": "diagnosis_date", "operator": "==", "value": value}
        times = {"lookback_days": 0, "followup_days": 0}
        built = CohortDefinition.model_validate(
            {"brand": "X", "indication": "y", "inclusion_criteria": [rule], "temporal_requirements": times}
        )
        return len(build_cohort(built, patients, engine=engine).eligible)

    assert eligible("2027-05-01") == 1
    with pytest.raises(CohortInputError, match="compares it with '05/01/2027'"):
        eligible("05/01/2027")
