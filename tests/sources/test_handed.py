"""Files that users hand to commands: text as delivered, the same from CSV and Parquet."""

import datetime as dt
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.cli import main
from e2i_dagster.config.mapping import HandedMapping
from e2i_dagster.errors import InputError
from e2i_dagster.sources.handed import identifier_notes, is_identifier, read_handed, read_rows_handed


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
    "cells", [["1E5", "1E05"], ["1e5", "1e05"], ["7E999", "1E3"], ["1.5", "1e+400"], ["0", "1e-400"]]
)
def test_codes_and_numbers_that_no_double_holds_stay_text(tmp_path, cells):
    for path in both(tmp_path, {"code": cells}):
        assert read_handed(path)["code"].tolist() == cells


def test_numbers_as_programs_write_them_are_numbers(tmp_path):
    for path in both(tmp_path, {"a": ["1e-05", "1e+20", "1E-7", "1.0E5", "-2.5e3", "0e+5", "1e3"]}):
        assert read_handed(path)["a"].tolist() == [1e-5, 1e20, 1e-7, 1e5, -2500.0, 0.0, 1e3]


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
        with pytest.raises(
            InputError, match=f"{path.name}: at has 1 value.*, the first in row 2: {reason}. Write"
        ):
            read_handed(path, times=("at",))


def test_a_row_with_too_many_fields_is_an_error_that_names_it(tmp_path):
    (tmp_path / "f.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(InputError, match="the first in row 2: more or fewer fields"):
        read_handed(tmp_path / "f.csv")


def mapped(**fields):
    return HandedMapping.model_validate(fields)


def test_what_differs_is_declared_in_the_words_of_the_import_mapping(tmp_path):
    frame = pd.DataFrame(
        {"id": ["007", "8"], "when": ["05.01.2024", "31.12.2024"], "dose": ["1,5", "2"], "arm": ["verum", "k.A."],
         "rest": ["x", "y"]},
        dtype="string",
    )  # fmt: skip
    frame.to_csv(tmp_path / "f.csv", index=False, sep=";")
    frame.to_parquet(tmp_path / "f.parquet")
    mapping = mapped(
        separator=";", decimal=",", nulls=["k.A."], rename={"id": "unit"}, dates={"when": "%d.%m.%Y"},
        values={"arm": {"verum": "treated"}}, ignore=["rest"], text=["unit"],
    )  # fmt: skip
    for path in (tmp_path / "f.csv", tmp_path / "f.parquet"):
        given = read_handed(path, mapping=mapping)
        assert given.columns.tolist() == ["unit", "when", "dose", "arm"]
        assert given["unit"].tolist() == ["007", "8"]
        assert given["when"].dt.strftime("%Y-%m-%d").tolist() == ["2024-01-05", "2024-12-31"]
        assert given["dose"].tolist() == [1.5, 2.0]
        assert given["arm"].tolist()[0] == "treated" and given["arm"].isna().tolist() == [False, True]


@pytest.mark.parametrize("key", ["rename", "dates", "values", "ignore", "text"])
def test_a_column_that_the_mapping_names_and_the_file_lacks_is_refused_with_the_nearest(tmp_path, key):
    (tmp_path / "f.csv").write_text("region\nnorth\n")
    shapes = {"rename": {"regoin": "r"}, "dates": {"regoin": "%Y"}, "values": {"regoin": {}}}
    with pytest.raises(InputError, match=f"`{key}` of the mapping names regoin.* Did you mean 'region'"):
        read_handed(tmp_path / "f.csv", mapping=mapped(**{key: shapes.get(key, ["regoin"])}))


def test_a_time_in_the_future_is_refused_where_it_must_have_passed(tmp_path):
    today = pd.Timestamp.now("UTC").strftime("%Y-%m-%d")
    for path in both(tmp_path, {"at": [today, "2999-12-31"]}):
        with pytest.raises(InputError, match=r"at has 1 value.*, the first in row 2: lies in the future"):
            read_handed(path, times=("at",))
        assert len(read_handed(path, mapping=mapped(dates={"at": "%Y-%m-%d"}))) == 2


def test_a_measured_column_of_days_is_one_of_times_unless_it_is_declared_as_text(tmp_path):
    days = [f"2026-01-{day:02}" for day in range(1, 20)]
    for path in both(tmp_path, {"visit": [*days, "05/01/2027"], "version": ["1.2.24", "1.2.25"] * 10}):
        with pytest.raises(
            InputError,
            match=r"visit has 1 value.*row 20: ambiguous_date. Write .*or write text: .visit. in --mapping",
        ):
            read_handed(path, measured=("visit", "version"))
        assert pd.api.types.is_string_dtype(read_handed(path)["visit"])
        frame = read_handed(path, measured=("visit", "version"), mapping=mapped(text=["visit"]))
        assert frame["visit"].iloc[-1] == "05/01/2027" and frame["version"].iloc[0] == "1.2.24"
    for path in both(tmp_path, {"visit": [*days, "2999-05-01"]}):
        with pytest.raises(InputError, match=r"row 20: lies in the future\. Correct it"):
            read_handed(path, measured=("visit",))
    for path in both(tmp_path, {"visit": [*days, None], "group": ["10-12", "2013-14"] * 10}):
        frame = read_handed(path, measured=("visit", "group"))
        assert frame["visit"].dt.day.tolist()[:19] == list(range(1, 20)) and frame["group"].iloc[0] == "10-12"


def test_a_row_that_cannot_be_read_stops_no_other_and_can_be_corrected(tmp_path):
    """Also in a file that is written with a separator of its own and without quoting."""
    (tmp_path / "f.csv").write_text('unit|at|note\n1|2024-01-05|a "b\n2|x|c\n3|2024-01-06\n4|2024-01-07|d\n')
    mapping = mapped(separator="|", quote="none")
    handed = read_rows_handed(tmp_path / "f.csv", text=None, times=("at",), mapping=mapping)
    assert handed.frame["unit"].tolist() == ["1", "4"]
    assert [(one.row, one.column) for one in handed.refused] == [(2, "at"), (3, "")]
    assert handed.value(handed.refused[0]) == "x"
    with (tmp_path / "refused.csv").open("w") as stream:
        handed.write(stream, handed.refused)
    text = (tmp_path / "refused.csv").read_text().splitlines()
    assert text[0] == "_row|_reasons|unit|at|note|_line"
    assert text[2].endswith("3 2024-01-06")
    (tmp_path / "refused.csv").write_text("\n".join([text[0], text[1].replace("|x|", "|2024-01-08|")]) + "\n")
    again = read_rows_handed(tmp_path / "refused.csv", text=None, times=("at",), mapping=mapping)
    assert again.refused == () and again.frame.columns.tolist() == ["unit", "at", "note"]


def test_identifiers_are_told_by_their_name_or_by_another_whole_number_in_every_row():
    frame = pd.DataFrame({"site_id": ["1", "2", "1"], "chart": [5.0, 9.0, 7.0], "age": [50.0, 50.0, 61.0]})
    assert [is_identifier(name) for name in ("site_id", "npi", "hcp_zip", "idle", "paid")] == [True] * 3 + [
        False
    ] * 2
    first, second = identifier_notes(frame, ["site_id", "chart", "age"])
    assert first.startswith("site_id identifies, so each of its 2 values is a category")
    assert second.startswith("chart has another whole number in every row")


_CELL = st.one_of(
    st.sampled_from(["NA", "00123", "1.0", "-3", "1e5", "yes", "no", "True", "+1", "2024-01-01", "nan", "1" * 17]),
    st.text(alphabet="0123456789.-eEyesno", min_size=1, max_size=6),
)  # fmt: skip


@given(st.lists(_CELL, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_csv_and_parquet_give_the_same_answer(tmp_path_factory, cells):
    first, second = (read_handed(path) for path in both(tmp_path_factory.mktemp("f"), {"a": cells}))
    pd.testing.assert_frame_equal(first, second)


_TYPED = {
    "whole": st.integers(-(2**62), 2**62),
    "small": st.integers(-100, 100),
    # From 16 digits on a text in CSV is no number without doubt.
    "real": st.floats(-1e14, 1e14),
    "short": st.floats(-(2**20), 2**20, width=32),
    "told": st.booleans(),
    "day": st.dates(dt.date(1950, 1, 1), dt.date(2025, 12, 31)),
    "moment": st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2025, 12, 31)).map(
        lambda at: at.replace(microsecond=0)
    ),
}  # fmt: skip
_TYPES = {
    "whole": pa.int64(), "small": pa.int16(), "real": pa.float64(), "short": pa.float32(), "told": pa.bool_(),
    "day": pa.date32(), "moment": pa.timestamp("ms"),
}  # fmt: skip


@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | one for name, one in _TYPED.items()}), min_size=1, max_size=5
    )
)
@settings(max_examples=30, deadline=None)
def test_typed_parquet_gives_the_answer_of_csv(tmp_path_factory, rows):
    """Numbers, booleans, days and moments, with gaps."""
    folder = tmp_path_factory.mktemp("f")
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in _TYPES.items()})
    pq.write_table(table, folder / "f.parquet")
    frame = pd.DataFrame({name: pd.array(table[name].to_pylist(), dtype=object) for name in _TYPES})
    frame["short"] = table["short"].to_pandas()
    frame.to_csv(folder / "f.csv", index=False)
    first, second = (read_handed(folder / name, times=("day", "moment")) for name in ("f.csv", "f.parquet"))
    pd.testing.assert_frame_equal(first, second)


def test_columns_that_have_no_text_of_their_own_are_written_as_the_loader_writes_them(tmp_path):
    columns = {
        "many": (pa.array([["a", "b"], [], None]), ['["a","b"]', "[]", None]),
        "days": (pa.array([[dt.date(2026, 1, 2)], None, []]), ['["2026-01-02"]', None, "[]"]),
        "parts": (pa.array([{"n": 1, "of": ["x"]}] * 3), ['{"n":1,"of":["x"]}'] * 3),
        "pairs": (pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64())), ['[["k",1]]'] * 3),
        "bytes": (pa.array([b"ab", b"\xff", None]), ["ab", "\\xff", None]),
        "coded": (pa.array([b"\xff", b"", None]).dictionary_encode(), ["\\xff", None, None]),
        "half": (pa.array([1.5, 2.0, None], pa.float16()), [1.5, 2.0, None]),
    }
    table = pa.table({"unit": ["1", "2", "3"], **{name: given for name, (given, _) in columns.items()}})
    pq.write_table(table, tmp_path / "f.parquet")
    frame = read_handed(tmp_path / "f.parquet", text=("unit",))
    for name, (_, expected) in columns.items():
        assert [None if pd.isna(cell) else cell for cell in frame[name]] == expected, name


def test_a_list_that_nobody_asked_for_stops_no_command(tmp_path):
    rows = 200
    table = pa.table(
        {"patient_id": [f"P{n}" for n in range(rows)], "label": [n % 3 == 0 for n in range(rows)],
         "age": [n % 50 for n in range(rows)], "visits": [["a"]] * rows, "image": [b"\xff"] * rows}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    done = CliRunner().invoke(main, ["leakage-audit", "--file", str(tmp_path / "f.parquet")])
    assert done.exit_code == 0, done.output


def test_a_dataset_by_cdisc_gives_the_frame_that_csv_gives(tmp_path):
    about = {
        "datasetJSONVersion": "1.1.0",
        "columns": [{"name": "unit", "dataType": "string"}, {"name": "value", "dataType": "float"}],
    }
    (tmp_path / "f.ndjson").write_text(f'{json.dumps(about)}\n["007", 1.5]\n\n["008"\n["009", 2]\n')
    (tmp_path / "f.csv").write_text("unit,value\n007,1.5\nempty\n008\n009,2\n")
    first, second = (read_rows_handed(tmp_path / name, text=("unit",)) for name in ("f.ndjson", "f.csv"))
    assert (
        first.frame.to_dict("list")
        == second.frame.to_dict("list")
        == {"unit": ["007", "009"], "value": [1.5, 2.0]}
    )
    assert first.frame.index.tolist() == second.frame.index.tolist() == [0, 3]
    assert [one.row for one in first.refused] == [3]


def test_a_refused_cell_says_once_what_to_do(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text("patient_id,dx\nP1,2020-01-01\nP2,2020-02-03\nP3,2099-01-01\n")
    with pytest.raises(InputError) as told:
        read_handed(path, times=("dx",))
    record = told.value.to_record()
    assert (record["field"], record["value"], record["remedy"]) == ("dx", "row 3", "Correct it.")
    assert str(told.value).endswith("lies in the future. Correct it.")
