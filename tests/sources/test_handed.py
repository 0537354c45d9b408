"""Files that users hand to commands: text as delivered, the same from CSV and Parquet."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2i_dagster.errors import InputError
from e2i_dagster.sources.handed import read_handed


def both(folder, columns):
    """The frames of one content as text in CSV and in Parquet."""
    frame = pd.DataFrame(columns, dtype="string")
    frame.to_csv(folder / "f.csv", index=False)
    frame.to_parquet(folder / "f.parquet")
    return folder / "f.csv", folder / "f.parquet"


def test_nothing_that_was_delivered_is_guessed(tmp_path):
    paths = both(
        tmp_path,
        {"unit_id": ["00123", "000123"], "region": ["NA", "EU"], "consent_version": ["1.0", "2.0"],
         "smoker": ["yes", "No"], "code": ["007", "12"], "value": ["1", "2.5"]},
    )  # fmt: skip
    for path in paths:
        frame = read_handed(path, text=("unit_id", "consent_version"))
        assert frame["unit_id"].tolist() == ["00123", "000123"]
        assert frame["region"].tolist() == ["NA", "EU"]
        assert frame["consent_version"].tolist() == ["1.0", "2.0"]
        assert frame["smoker"].tolist() == [True, False]
        assert frame["code"].tolist() == ["007", "12"]
        assert frame["value"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("05/01/2027", "ambiguous_date"),
        ("2027-01", "partial_date"),
        ("5-1-27", "two_digit_year"),
        ("x", "format"),
    ],
)
def test_a_time_that_is_none_names_its_reason_and_row(tmp_path, cell, reason):
    for path in both(tmp_path, {"at": ["2026-01-01", cell]}):
        with pytest.raises(InputError, match=f"{path.name}: at has 1 value.* {reason}, the first in row 2"):
            read_handed(path, times=("at",))


def test_a_row_with_too_many_fields_is_an_error_that_names_it(tmp_path):
    (tmp_path / "f.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(InputError, match="the first is row 2"):
        read_handed(tmp_path / "f.csv")


_CELL = st.one_of(
    st.sampled_from(["NA", "00123", "1.0", "-3", "1e5", "yes", "no", "True", "+1", "2024-01-01", "nan", "1" * 17]),
    st.text(alphabet="0123456789.-eEyesno", min_size=1, max_size=6),
)  # fmt: skip


@given(st.lists(_CELL, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_csv_and_parquet_give_the_same_answer(tmp_path_factory, cells):
    first, second = (read_handed(path) for path in both(tmp_path_factory.mktemp("f"), {"a": cells}))
    pd.testing.assert_frame_equal(first, second)
