import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_rows import patients, rows

from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.modelling.estimators import build_estimator, build_preprocessor, column_origins
from e2i_dagster.selection import feature_columns, feature_kinds, labelled_rows, model_input


def test_keys_dates_and_label_are_no_features():
    assert feature_columns(patients(5)) == (
        "severity", "engagement", "visits", "academic", "noise", "region", "insurance",
    )  # fmt: skip


def test_types_of_the_lake_become_numbers_and_text():
    frame = pd.DataFrame(
        {
            "visits": pd.array([1, None], dtype="Int64"),
            "academic": pd.array([True, None], dtype="boolean"),
            "region": pd.array(["west", None], dtype="string[pyarrow]"),
        }
    )
    kinds = feature_kinds(frame, ["visits", "academic", "region"])
    result = model_input(frame, kinds)
    assert kinds == {"visits": "number", "academic": "number", "region": "string"}
    pd.testing.assert_frame_equal(
        result,
        pd.DataFrame(
            {
                "visits": [1.0, np.nan],
                "academic": [1.0, np.nan],
                "region": pd.Series(["west", np.nan], dtype=object),
            }
        ),
    )


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=6), st.randoms())
def test_a_row_reads_the_same_alone_and_in_any_company(values, random):
    frame = pd.DataFrame(
        {
            "visits": pd.array(values, dtype="Int64"),
            "region": pd.array([None if v is None else str(v) for v in values], dtype="string"),
        }
    )
    kinds = {"visits": "number", "region": "string"}
    together = model_input(frame, kinds)
    alone = pd.concat([model_input(frame.iloc[[i]], kinds) for i in range(len(frame))])
    pd.testing.assert_frame_equal(together, alone)
    requests = pd.DataFrame(
        {
            "region": [None if v is None else str(v) for v in values],
            "visits": pd.Series(values, dtype=object),
        }
    )
    pd.testing.assert_frame_equal(together, model_input(requests, kinds))


def test_the_input_is_not_changed():
    frame = patients(20)
    before = frame.copy(deep=True)
    labelled_rows(frame, feature_columns(frame))
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": np.inf}, "'severity' holds infinite"),
        ({"visits": "many"}, "not numbers"),
    ],
)
def test_wrong_values_name_the_column_and_not_the_value(change, message):
    kinds = feature_kinds(patients(5), feature_columns(patients(5)))
    with pytest.raises(InputError, match=message) as caught:
        model_input(patients(5).assign(**change), kinds)
    assert "many" not in str(caught.value)


def test_missing_features_dates_and_unlabelled_rows_are_refused():
    frame = patients(5)
    with pytest.raises(InputError, match="missing columns: height"):
        model_input(frame, ["height"])
    with pytest.raises(InputError, match="a number, a boolean or text"):
        feature_kinds(frame, ["index_date"])
    with pytest.raises(InputError, match="1 of 5 rows have no value"):
        labelled_rows(frame.assign(label=pd.array([1, 0, None, 1, 0], dtype="Int64")), ["severity"])
    with pytest.raises(InputError, match="other than 0 and 1"):
        labelled_rows(frame.assign(label=2), ["severity"])


def test_every_matrix_column_knows_its_feature():
    source = rows(200)
    preprocessor = build_preprocessor(feature_kinds(source.features, list(source.features)), max_levels=2)
    matrix = preprocessor.fit_transform(source.features)
    origins = column_origins(preprocessor)
    assert matrix.shape[1] == len(origins)
    # The missing indicator belongs to its feature; three regions make two columns at two levels.
    assert origins.count("engagement") == 2
    assert origins.count("region") == 2
    assert np.array_equal(preprocessor.get_feature_names_out().shape, (len(origins),))


def test_models_that_cannot_be_built_are_refused_by_name():
    with pytest.raises(
        ConfigError, match="no model of 'LinearDML' can be trained for 'binary_classification'"
    ):
        build_estimator("LinearDML", "binary_classification", {})
    with pytest.raises(ConfigError, match="no model of 'Ridge'"):
        build_estimator("Ridge", "binary_classification", {})
