"""One judge of days and moments: the table of docs/loading.md, at every door."""

import datetime as dt

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e2i_dagster.cohorts.omop.folder import _day
from e2i_dagster.config.mapping import FileFormat, ImportMapping, TableMapping
from e2i_dagster.sources import files
from e2i_dagster.sources.check import _dates
from e2i_dagster.tables import moments, rules
from e2i_dagster.tables.vocabulary import load_vocabulary

FIRST = dt.date(2013, 7, 1)
TABLE = [
    ("2024-05-10", dt.date(2024, 5, 10), None),
    ("20240510", dt.date(2024, 5, 10), None),
    ("2024-05-10T14:07:25Z", dt.date(2024, 5, 10), None),
    ("2024-05-10 14:07", dt.date(2024, 5, 10), None),
    ("2024-05-10T23:30:00-05:00", dt.date(2024, 5, 11), None),
    ("1960-01-01T00:30:00.5+01:00", dt.date(1959, 12, 31), None),
    ("9999-12-31", dt.date(9999, 12, 31), None),
    ("99991231", dt.date(9999, 12, 31), None),
    ("2013", None, "partial_date"),
    ("2013-07", None, "partial_date"),
    ("07/2013", None, "partial_date"),
    ("2013-13", None, "date_format"),
    ("2013-W07", None, "date_format"),
    ("05-01-23", None, "two_digit_year"),
    ("05/01/2023", None, "ambiguous_date"),
    ("2024-02-30", None, "date_format"),
    ("2024-W01-1", None, "date_format"),
    ("2024-05-10T24:00:00Z", None, "date_format"),
    ("9999-12-31T23:59:59-05:00", None, "date_format"),
    ("0001-01-01T00:00:00+05:00", None, "date_format"),
]


def loaded(frame, table="treatment_events", column="event_date"):
    """Values and reasons of the date column, as the loader judges them."""
    keys = {name: "x" for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    if column != "event_date":
        keys["event_date"] = "2024-01-01"
    checked = rules.check(table, pd.DataFrame({column: frame}).assign(**keys), load_vocabulary())
    faults = checked.faults_frame().query("column == @column").set_index("position")["reason"]
    return checked.rows.column(column).to_pylist(), faults.to_dict()


@pytest.mark.parametrize(("text", "day", "reason"), TABLE)
def test_the_table_of_the_documentation(text, day, reason):
    values, faults = loaded([text])
    assert (values[0], faults.get(0)) == (day, reason)


def test_a_timestamp_column_knows_the_same_days():
    cells = [text for text, _, _ in TABLE]
    name = "source_timestamp"
    values, faults = loaded(cells, column=name)
    assert [value is not None for value in values] == [day is not None for _, day, _ in TABLE]
    assert [None if one is None else one.date() for one in values] == [day for _, day, _ in TABLE]
    expected = {n: reason for n, (_, _, reason) in enumerate(TABLE) if reason}
    assert faults == {n: one.replace("date_format", "timestamp_format") for n, one in expected.items()}


@pytest.mark.parametrize(
    ("text", "form", "day"),
    [
        ("01-07-13", "%d-%m-%y", FIRST),
        ("01/07/2013", "%d/%m/%Y", FIRST),
        ("9999/12/31", "%Y/%m/%d", dt.date(9999, 12, 31)),
        ("2013-07-01T23:30:00Z", "%Y-%m-%dT%H:%M:%SZ", FIRST),
        ("2013-07-01T00:00:00 +0200", "%Y-%m-%dT%H:%M:%S %z", dt.date(2013, 6, 30)),
    ],
)
def test_a_declared_format_is_the_remedy_that_it_is_said_to_be(text, form, day):
    own = TableMapping(dates={"event_date": form})
    given_frame = pd.DataFrame({"event_date": pd.array([text, "2020-01-02"], dtype="string[pyarrow]")})
    mapped = files.apply_mapping("treatment_events", given_frame, own, FileFormat(), load_vocabulary())
    assert loaded(mapped["event_date"]) == ([day, dt.date(2020, 1, 2)], {})


@pytest.mark.parametrize(
    ("text", "rule", "day", "precision"),
    [
        ("2013-07", "first", FIRST, "month"),
        ("2012-02", "last", dt.date(2012, 2, 29), "month"),
        ("07/2013", "middle", dt.date(2013, 7, 15), "month"),
        ("201312", "last", dt.date(2013, 12, 31), "month"),
        ("2013", "first", dt.date(2013, 1, 1), "year"),
        ("2013", "middle", FIRST, "year"),
        (" 2013 ", "last", dt.date(2013, 12, 31), "year"),
    ],
)
def test_a_date_without_its_day_is_completed_by_the_rule_and_keeps_its_precision(text, rule, day, precision):
    found = moments.completed(text, rule)
    assert found == moments.Completed(day, precision)


@pytest.mark.parametrize("text", ["2013-13", "2013-W07", "0457", "2013.7", "2013-07-01", "", "x"])
def test_what_is_neither_month_nor_year_is_not_completed(text):
    assert moments.completed(text, "first") is None


@given(
    st.one_of(
        st.from_regex(r"\A[0-9]{4}([-/.]?[0-9]{1,2})?\Z"), st.from_regex(r"\A[0-9]{1,2}[-/.][0-9]{4}\Z")
    ).filter(lambda text: text.isascii() and "0000" not in text)
)
@settings(max_examples=150, deadline=None)
def test_what_is_refused_as_partial_is_exactly_what_a_rule_completes(text):
    """The remedy that the reason names always helps, and nothing that is a day already is touched by it."""
    _, faults = loaded([text])
    partial = faults.get(0) == "partial_date"
    assert partial == (moments.completed(text, "first") is not None)


def test_a_format_without_a_day_says_month_or_year_and_a_short_text_is_no_day():
    assert moments.iso_text("Jul 2013", "%b %Y") == "2013-07"
    assert moments.iso_text("2013", "%Y") == "2013"
    assert moments.iso_text("201312", "%Y%m%d") is None
    assert moments.iso_text("20131201", "%Y%m%d") == "2013-12-01"


@pytest.mark.parametrize("form", ["%d.%m", "%q", "%-d.%m.%Y"])
def test_a_format_that_is_none_is_refused_when_the_mapping_is_read(form):
    with pytest.raises(ValueError, match=r"without a year|not a strptime format"):
        TableMapping(dates={"event_date": form})


_written = st.one_of(
    st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)).flatmap(
        lambda at: st.sampled_from(
            [at.isoformat(), f"{at:%Y-%m-%d}", f"{at:%Y%m%d}", f"{at:%d/%m/%Y}", f"{at:%d-%m-%y}", f"{at:%Y-%m}",
             f"{at:%Y-%m-%dT%H:%M:%S}Z", f"{at:%Y-%m-%d %H:%M}-05:00", f"{at:%Y-%m-%dT%H:%M:%S}+1400"]
        )
    ),
    st.from_regex(r"\A[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,4}\Z"),
    st.text(alphabet="0123456789-:TZ/ .", min_size=1, max_size=12).filter(str.strip),
)  # fmt: skip


@given(_written)
@example("2024-05-10T14:07:25Z")
@example("2013-07")
@example("05-01-23")
@settings(max_examples=60, deadline=None)
def test_every_door_gives_the_same_verdict_and_day(text):
    import pyarrow as pa

    (value,), _faults = loaded([text])
    assert _day(pa.array([text])).to_pylist() == [value]
    seen = _dates(pd.Series([text.strip()]))
    declared = seen.date_format if seen else None
    if seen is not None and declared is None:
        assert value is not None or moments.completed(text, "first") is not None
    if value is not None:
        assert seen is not None and declared is None
    at = loaded([text], column="source_timestamp")[0][0]
    assert (None if at is None else at.date()) == value


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800])
def test_a_typed_moment_or_day_outside_the_years_1_to_9999_is_refused(unit, seconds):
    import pyarrow as pa

    at = seconds * {"s": 1, "ms": 10**3, "us": 10**6}[unit]
    for cells in (
        pa.array([at, 0, None], pa.int64()).cast(pa.timestamp(unit, "Asia/Tokyo")),
        pa.array([seconds // 86_400, 0, None], pa.int32()).cast(pa.date32()),
    ):
        for found in (moments.days(cells), moments.moments(cells)):
            assert found.values.is_null().to_pylist() == [True, False, True]
            assert found.refused["format"].to_pylist() == [True, False, False]


def test_an_open_end_is_no_moment_of_a_zone_as_text_and_typed():
    import pyarrow as pa

    end = dt.datetime(9999, 12, 31, 23, 59, 59)
    typed = moments.in_zone(pa.array([end], pa.timestamp("us")), "America/New_York")
    text = moments.in_zone(pa.array([end.isoformat()], pa.large_string()), "America/New_York")
    assert moments.moments(typed).values.to_pylist() == moments.moments(text).values.to_pylist()
    assert moments.days(typed).values.to_pylist() == [end.date()]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "+02:00"])
def test_one_moment_is_one_day_in_csv_and_parquet(tmp_path, zone):
    times = pd.Series(pd.to_datetime(["2024-05-10T23:30:00", "1960-03-01T01:30:00"])).dt.tz_localize(zone)
    ids = {name: ["a", "b"] for name in ("treatment_event_id", "patient_journey_id", "patient_id")}
    found = []
    for suffix in ("csv", "parquet"):
        folder = tmp_path / suffix
        folder.mkdir()
        frame = pd.DataFrame({**ids, "event_date": times})
        if suffix == "csv":
            frame.assign(event_date=[one.isoformat() for one in times]).to_csv(
                folder / "treatment_events.csv", index=False
            )
        else:
            frame.to_parquet(folder / "treatment_events.parquet")
        found.append(loaded(files.read(folder, ImportMapping())["treatment_events"]["event_date"]))
    assert found[0] == found[1]
    assert found[0][0] == [one.tz_convert("UTC").date() for one in times]
