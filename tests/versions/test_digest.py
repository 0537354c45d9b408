"""A digest depends on values alone: not on order or storage, but on every value."""

import datetime as dt
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.pandas import column, data_frames, range_indexes

from e2i_dagster.versions.digest import frame_digest, frame_digests

NAMES = ("text", "whole", "number", "day", "flag")
FRAMES = data_frames(
    [
        column("text", elements=st.none() | st.text(max_size=6), dtype=object),
        column("whole", elements=st.none() | st.integers(-(2**40), 2**40), dtype=object),
        column("number", elements=st.floats(allow_nan=True, allow_infinity=True), dtype=float),
        column("day", elements=st.none() | st.dates(dt.date(1900, 1, 1), dt.date(2200, 1, 1)), dtype=object),
        column("flag", elements=st.none() | st.booleans(), dtype=object),
    ],
    index=range_indexes(min_size=0, max_size=12),
)


def canonical(frame: pd.DataFrame) -> pd.DataFrame:
    days = pd.Series(frame["day"].to_numpy().astype("datetime64[us]"), index=frame.index)
    return pd.DataFrame(
        {
            "text": frame["text"].astype("string[pyarrow]"),
            "whole": frame["whole"].astype("Int64"),
            "number": frame["number"],
            "day": days,
            "flag": frame["flag"].astype("boolean"),
        }
    )


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.randoms())
def test_order_and_storage_do_not_matter(frame, random):
    expected = frame_digest(canonical(frame))
    order = list(range(len(frame)))
    random.shuffle(order)
    assert frame_digest(canonical(frame).iloc[order]) == expected
    assert frame_digest(frame) == expected
    nanoseconds = canonical(frame).astype({"day": "datetime64[ns]", "text": object})
    assert frame_digest(nanoseconds) == expected


def test_texts_that_differ_after_a_null_character_differ():
    for kind in (object, "string[pyarrow]"):
        frames = [pd.DataFrame({"text": ["", text]}, dtype=kind) for text in ("", "\0", "\0a", "\0b")]
        assert len({frame_digest(frame) for frame in frames}) == len(frames), kind


@settings(max_examples=60, deadline=None)
@given(FRAMES, st.lists(st.integers(0, 12), max_size=3), st.booleans())
def test_parts_together_have_the_digests_they_have_alone(frame, cuts, as_stored):
    frame = canonical(frame) if as_stored else frame
    edges = [0, *sorted(min(cut, len(frame)) for cut in cuts), len(frame)]
    parts = {str(n): frame.iloc[a:b] for n, (a, b) in enumerate(itertools.pairwise(edges))}
    assert frame_digests(parts) == {name: frame_digest(part) for name, part in parts.items()}


@settings(max_examples=60, deadline=None)
@given(FRAMES.filter(len), st.data())
def test_any_changed_value_matters(frame, data):
    frame = canonical(frame)
    row = data.draw(st.integers(0, len(frame) - 1))
    name = data.draw(st.sampled_from(NAMES))
    changed = frame.copy()
    before = changed.loc[row, name]
    if pd.isna(before):
        after = {"text": "", "whole": 0, "number": 0.0, "day": pd.Timestamp(0), "flag": False}[name]
    else:
        after = {
            "text": lambda: before + "x",
            "whole": lambda: before + 1,
            "number": lambda: np.nextafter(before, np.inf if before < np.inf else 0),
            "day": lambda: before + pd.Timedelta(days=1),
            "flag": lambda: not before,
        }[name]()
    changed.loc[row, name] = after
    assert frame_digest(changed) != frame_digest(frame)
    changed.loc[row, name] = None if name != "number" else np.nan
    if not pd.isna(before):
        assert frame_digest(changed) != frame_digest(frame)


@settings(max_examples=30, deadline=None)
@given(FRAMES.filter(len))
def test_repeated_rows_count(frame):
    frame = canonical(frame)
    assert frame_digest(pd.concat([frame, frame.iloc[:1]])) != frame_digest(frame)
    assert frame_digest(frame.iloc[1:]) != frame_digest(frame)


def test_values_are_bound_to_their_row_and_column():
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    variants = [
        frame,
        pd.DataFrame({"a": [1, 2], "b": [4, 3]}),
        pd.DataFrame({"a": [3, 4], "b": [1, 2]}),
        frame.rename(columns={"b": "c"}),
        frame[["b", "a"]],
        frame[["a"]],
        frame.iloc[:0],
    ]
    assert len({frame_digest(variant) for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "values",
    [
        ([1.5, 2.0], ["1.5", "2.0"]),
        ([1, 0], [True, False]),
        (["", "a"], [None, "a"]),
        (["nan", "a"], [np.nan, "a"]),
        ([5e-324], [1.0]),
        ([2**53 + 1], [2**53]),
        (["a\x1fb"], ["a\x1eb"]),
    ],
)
def test_values_that_only_look_alike_differ(values):
    left, right = (frame_digest(pd.DataFrame({"a": given})) for given in values)
    assert left != right


@pytest.mark.parametrize(
    "same",
    [
        ([1, 2], [1.0, 2.0]),
        ([0.0], [-0.0]),
        ([None, np.nan], [pd.NA, None]),
        ([{"b": 1, "a": [2]}], ['{"a":[2],"b":1}']),
        ([["x", "y"]], ['["x","y"]']),
        (pd.to_datetime(["2024-01-01T12:00Z"]), pd.to_datetime(["2024-01-01T14:00+02:00"])),
        (pd.Categorical(["a", "b"]), ["a", "b"]),
    ],
)
def test_equal_values_agree(same):
    left, right = (frame_digest(pd.DataFrame({"a": given})) for given in same)
    assert left == right


def test_another_process_agrees():
    code = (
        "import pandas as pd; from e2i_dagster.versions.digest import frame_digest;"
        "print(frame_digest(pd.DataFrame({'a': ['x', None], 'b': [1.5, 2]})))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == frame_digest(pd.DataFrame({"a": ["x", None], "b": [1.5, 2]}))


def test_the_input_is_not_changed():
    frame = pd.DataFrame({"a": ["x", None], "b": [{"k": 1}, None], "d": [dt.date(2024, 1, 1), None]})
    before = frame.copy(deep=True)
    frame_digest(frame)
    pd.testing.assert_frame_equal(frame, before)
